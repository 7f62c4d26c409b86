"""Making queues, and opening those that have a name."""

from __future__ import annotations

import os
from typing import Any, Never

from untorn import _core
from untorn.first_guesses import only_known_arguments, unknown_arguments, words
from untorn.share import queue_files as files_of
from untorn.share.queue_files import QueueAddress, QueueSizes, check_range
from untorn.share.queues import Queue

__all__ = ["queue"]

_GUESSES = words(
    ("maxsize max_size size maxlen length", "write capacity=, or the number alone: queue(100)"),
    ("max_size_bytes max_nbytes max_bytes nbytes_max", "write nbytes="),
    ("path dir folder dirname", "write directory=, and name="),
    ("pickle pickled use_pickle", "write allow_pickle=True, on both sides"),
    ("ctx context", "leave it out: the queue goes to processes of every start method"),
    ("max_workers workers consumers producers", "write max_processes=, of both kinds together"),
)


@only_known_arguments
def queue(
    capacity: int = 1000,
    *,
    nbytes: int = 1 << 30,
    name: str | None = None,
    directory: str | os.PathLike[str] | None = None,
    max_processes: int = 256,
    allow_pickle: bool = False,
    **unknown: Never,
) -> Queue[Any]:
    """Make a queue, or open the queue of that name.

    Args:
        capacity: the number of items that can wait in it (1 to 100,000).
        nbytes: the memory of all its items, in bytes, counted in pages: those that wait, are being written, or are
            still looked at. No item can be larger. Memory is taken as items need it. Items of up to about a kilobyte
            have a place of their own and do not count.
        name: with a name, any process can open the queue with the same call. Without one, it is anonymous: other
            processes get the Queue object, and the kernel frees it with the last process that has it.
        directory: the directory of a named queue's file; by default this user's own directory in /dev/shm.
        max_processes: the number of processes that can have it open at a time (1 to 8191).
        allow_pickle: put() pickles values that cannot be shared otherwise, and get() unpickles them. A pickle can run
            arbitrary code, so use this only if you trust all processes that have the queue.

    A named queue that exists must have the same sizes. Its items are there still, unless it was closed and all of its
    processes are gone: then this makes a new one.

    Raises:
        ValueError: a size is out of range, or not that of the existing queue.
        CapacityError: there is no room for the queue, or it has as many processes as it may.
        FormatError: the file of that name is not a queue.

    Example:
        >>> import numpy as np, untorn
        >>> with untorn.queue(10) as batches:
        ...     batches.put({"x": np.ones(3)})
        ...     batches.get()
        {'x': array([1., 1., 1.])}
    """
    if unknown:
        raise unknown_arguments("queue", keywords=unknown, guesses=_GUESSES)
    check_range("capacity", capacity, 1, _core.QUEUE_MAX_CAPACITY)
    check_range("nbytes", nbytes, 1, 2**62)
    check_range("max_processes", max_processes, 1, _core.QUEUE_MAX_PROCESSES)
    if name is None and directory is not None:
        raise ValueError("directory= needs name=: an anonymous queue has no file")
    files = None if name is None else files_of.named(name, directory)
    core = files_of.make(QueueSizes(max_processes, capacity, nbytes), files)
    label = "anonymous" if files is None else files.label
    _check_sizes(core, label, QueueSizes(max_processes, capacity, nbytes))
    places = () if files is None else (files.control,)
    return Queue(QueueAddress(core.id, places, label).here(core), core, allow_pickle=allow_pickle)


def _check_sizes(core: _core.Queue, label: str, sizes: QueueSizes) -> None:
    page = os.sysconf("SC_PAGESIZE")
    expected = (sizes.max_processes, sizes.capacity, -(-sizes.nbytes // page) * page)
    found = (core.max_processes, core.capacity, core.limit_nbytes)
    for what, asked, there in zip(("max_processes", "capacity", "nbytes"), expected, found, strict=True):
        if asked != there:
            raise ValueError(
                f"queue {label!r} exists, with {what}={there:,} and not {asked:,}; all of its processes must ask for "
                "the same sizes"
            )
