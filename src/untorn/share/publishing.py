"""Open a channel for writing: a new one, or that of a dead publisher."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable
from typing import Never

from untorn import _core
from untorn.errors import BusyError
from untorn.first_guesses import only_known_arguments, unknown_arguments, words
from untorn.share import notes, opening, places, storage
from untorn.share.journal import log_channel
from untorn.share.naming import NameKeeper
from untorn.share.places import Files
from untorn.share.publisher import Publisher
from untorn.share.storage_errors import meaning
from untorn.share.versions import FREE_SLOT_TIMEOUT_S, Tree, Versions
from untorn.typevars import T

__all__ = ["continue_channel", "publish", "publish_received", "publish_tree"]

_log = logging.getLogger(__name__)

#: how long publish() waits for a process that is a channel's publisher only for a moment
_PATIENCE_S = 0.05

_GUESSES = words(
    ("channel channel_name key id label", "the channel's name is name="),
    ("path dir folder dirname file filename", "write directory=, and the channel's name as name="),
    ("pickle pickled use_pickle", "write allow_pickle=True, on both sides"),
    ("persist persistent fsync sync", "write durable=True, with directory= on a disk"),
    ("readers n_readers max_subscribers subscribers", "write max_readers="),
    ("versions depth buffers buffer queue queue_size history keep_last", "write slots= and max_slots="),
    ("timeout timeout_s wait block", "publish() waits for no one"),
    ("overwrite exist_ok replace create", "publish() takes over the channel of a dead publisher by itself"),
)


@only_known_arguments
def publish(
    value: T,
    *more: Never,
    name: str | None = None,
    directory: str | os.PathLike[str] | None = None,
    slots: int = 4,
    max_slots: int = 64,
    max_readers: int = 256,
    durable: bool = False,
    allow_pickle: bool = False,
    keep: bool = True,
    fixed: bool = False,
    **unknown: Never,
) -> Publisher[T]:
    """Open a channel with ``value`` as its first version, or take over the channel of a dead publisher.

    Args:
        value: a dict, list, tuple, named tuple or dataclass tree of NumPy arrays, numbers, str, bytes and None, a
            FrozenDict, or values of SciPy, pandas, Arrow, polars, PyTorch or JAX (docs/values.md). It is copied into
            shared memory.
        name: the channel's name for subscribe(). A channel without one is anonymous: other processes get it as
            ``publisher.subscriber()``, and the kernel frees it with the last process that uses it.
        directory: the directory of a named channel's files; by default this user's own directory in /dev/shm.
        slots: the number of versions whose space is kept for reuse.
        max_slots: the number of versions that can exist at a time (2 to 64) while readers hold old ones.
        max_readers: the number of processes that can read at a time.
        durable: write each version to the disk before it becomes the newest, and return when that is on the disk too.
            After a crash of the machine, the channel opens at the last version whose call returned, or at the one that
            was being published. Costs two or three disk flushes per version; useful with ``directory`` on a disk.
        allow_pickle: pickle values that cannot be shared otherwise (protocol 5; arrays inside stay zero-copy). Readers
            must pass allow_pickle=True as well.
        keep: whether a named channel stays when its publisher ends, for readers and for the next publisher. With False,
            its files are removed when the publisher is closed, dropped, or its process exits; after a kill, subscribe()
            no longer finds it. docs/lifetimes.md has a table.
        fixed: refuse versions of another structure than the first: other keys, types, dtypes or shapes. So
            ``patch({"w": "text"})`` over an array is a ValueError. Texts, tables and sets may still change in size.

    Raises:
        BusyError: the channel has a living publisher.
        UnsupportedTypeError: the value, or a part of it, cannot be shared.
        CapacityError: there is no room for the channel.
        FormatError: the file of that name is not a channel.

    Example:
        >>> import numpy as np, untorn
        >>> weights = untorn.publish({"w": np.zeros(2)})
        >>> weights.update({"w": np.ones(2)})
        2
        >>> weights.close()
    """
    if more or unknown:
        named = f"publish(value, name={value!r})" if isinstance(value, str) else "publish(value, name=...)"
        instead = f"the value comes first and the name is a keyword, as in {named}"
        raise unknown_arguments("publish", (value, *more), unknown, guesses=_GUESSES, instead=instead)
    _check_range("slots", slots, 1, 64)
    _check_range("max_slots", max_slots, 2, 64)
    _check_range("max_readers", max_readers, 1, 65535)
    if name is None and directory is not None:
        raise ValueError("directory= needs name=: an anonymous channel has no files")
    if name is None and durable:
        raise ValueError("durable= needs name=: an anonymous channel ends with its processes")
    if durable and not keep:
        raise ValueError("durable=True keeps each version on the disk, and keep=False removes the channel: use one")
    return publish_tree(
        Tree.of(value, allow_pickle=allow_pickle, pack=not fixed),
        name=name,
        directory=directory,
        sizes=(max_readers, max_slots, slots),
        durable=durable,
        allow_pickle=allow_pickle,
        keep=keep,
        fixed=fixed,
    )


def publish_tree(
    tree: Tree,
    *,
    name: str | None,
    directory: str | os.PathLike[str] | None,
    sizes: tuple[int, int, int],
    durable: bool = False,
    allow_pickle: bool = False,
    tolerant: bool = False,
    keep: bool = True,
    fixed: bool = False,
) -> Publisher:
    """Publish a value that was taken apart, optionally with a second tree beside it, which lowlevel.extra() returns.

    ``sizes`` are max_readers, max_slots and slots. ``tolerant``: if another channel gets this one's name, warn instead
    of raising an error.
    """
    return _open_channel(
        lambda versions: versions.publish(tree, FREE_SLOT_TIMEOUT_S),
        name=name,
        directory=directory,
        sizes=sizes,
        durable=durable,
        allow_pickle=allow_pickle,
        tolerant=tolerant,
        keep=keep,
        fixed=fixed,
    )


def publish_received(
    fill: Callable[[memoryview], object],
    nbytes: int,
    version: int,
    *,
    name: str | None = None,
    sizes: tuple[int, int, int] = (256, 64, 4),
    tolerant: bool = False,
) -> Publisher:
    """Open a channel as publish_raw() does, but receive the bytes straight into shared memory.

    Args:
        fill: is called with the memory for the version, and writes all of it. If it raises, there is no channel.
        nbytes: the size of the version, which is that of the memory. Its sender decides about it: check it before.
        version: its number, from 1 on.
        name: of the channel; None for an anonymous one.
        sizes: max_readers, max_slots and slots, as for untorn.publish().
        tolerant: as for publish_tree().
    """
    written: list[Versions] = []

    def write_first(versions: Versions) -> None:
        slot, room = versions.begin_received(nbytes, version, FREE_SLOT_TIMEOUT_S)
        try:
            if written:  # another channel took the name meanwhile; the bytes came only once
                _core.copy(room.memory, 0, written[-1].newest())
            else:
                fill(room.memory)
        finally:
            room.end(versions.attachment)
        versions.finish_received(slot, nbytes, version)
        written.append(versions)

    return _open_channel(write_first, name=name, directory=None, sizes=sizes, tolerant=tolerant)


def continue_channel(name: str, *, tolerant: bool = False) -> Publisher | None:
    """Take over the channel of a publisher that is dead or has closed it, and leave it at its newest version. Returns
    None if there is no channel of this name; raises BusyError if it has a living publisher.

    Until the next whole version, its parts cannot be changed."""
    files = places.named(name)
    taken = _take_over(files)
    if taken is None:
        return None
    notes.write_note(taken, {})
    notes.begin_living(taken)  # its newest version counts as this publisher's
    versions = Versions(taken, files.label, durable=False)
    versions.name = NameKeeper(files, taken, durable=False, tolerant=tolerant)
    return Publisher(versions, files)


def _open_channel(
    write_first: Callable[[Versions], object],
    *,
    name: str | None,
    directory: str | os.PathLike[str] | None,
    sizes: tuple[int, int, int],
    durable: bool = False,
    allow_pickle: bool = False,
    tolerant: bool = False,
    keep: bool = True,
    fixed: bool = False,
) -> Publisher:
    """Open a new channel, or take over one, with a first version that ``write_first`` makes. It is called again if
    another channel took the name meanwhile."""
    if name is None:
        attachment = opening.attach(*storage.anonymous(*sizes), _core.PUBLISHER, "anonymous")
        versions = _begun(attachment, write_first, "anonymous", fixed=fixed)
        storage.seal(attachment)
        return Publisher(versions, None, allow_pickle=allow_pickle)
    files = places.named(name, directory)
    while True:
        taken = _take_over(files)
        if taken is None and files.exists():
            continue
        attachment = taken or opening.attach(*storage.nameless(files, *sizes), _core.PUBLISHER, files.label)
        notes.write_note(attachment, {} if keep else {notes.KEEP: False})
        versions = _begun(attachment, write_first, files.label, durable=durable, fixed=fixed)
        notes.begin_living(attachment)
        if taken is not None or storage.give_names(files, attachment, durable=durable):
            versions.name = NameKeeper(files, attachment, durable=durable, tolerant=tolerant)
            return Publisher(versions, files, allow_pickle=allow_pickle, keep=keep)


def _begun(
    attachment: _core.Attachment,
    write_first: Callable[[Versions], object],
    label: str,
    *,
    durable: bool = False,
    fixed: bool = False,
) -> Versions:
    """Return the writing side of a channel that has its first version, or the first one after a takeover."""
    versions = Versions(attachment, label, durable=durable, fixed=fixed)
    try:
        write_first(versions)
    except _core.StatusError as error:
        attachment.abandon()  # the traceback would keep the lock
        raise meaning(error, label) from None
    except BaseException:
        attachment.abandon()
        raise
    log_channel(attachment, label)
    return versions


def _take_over(files: Files) -> _core.Attachment | None:
    """Take over the channel if there is one, and wait for `untorn gc` and unlink() to finish."""
    deadline = time.monotonic() + _PATIENCE_S
    while files.exists():
        try:
            taken = storage.take_over(files)
            if taken is not None:
                _log.info("channel %r: taken over at version %d, as its publisher is gone", files.label, taken.version)
            return taken
        except BusyError:
            if time.monotonic() >= deadline:
                raise
        time.sleep(0.002)
    return None


def _check_range(name: str, value: int, least: int, most: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name}: expected an int, found {type(value).__name__}")
    if not least <= value <= most:
        raise ValueError(f"{name}: expected {least} to {most}, found {value}")
