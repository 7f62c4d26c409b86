"""A bounded queue in shared memory: any number of processes put values, and any number take them.

::

    put ──> spec, Layout ──> _core.QueueDraft (a slot being written) ──> in the queue
    get <── Decoder <────── _core.QueueItem (base of every array of the value) <──┘

An item that was taken and not finished when its process dies goes back. No process holds a lock that a kill could leave
locked: csrc/queue.c has the protocol and its proof.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Generic, Literal, Self

from untorn import _core
from untorn.errors import CapacityError, ClosedError, EmptyError, FormatError, FullError, UnsupportedTypeError
from untorn.share import queue_files as files_of
from untorn.share import storage, waiting
from untorn.share.edit import Edit
from untorn.share.layout import Decoder, Layout
from untorn.share.queue_files import QueueAddress, QueueSizes, meaning
from untorn.share.queue_items import Item, OnError
from untorn.share.specs import flatten
from untorn.share.storage import Files
from untorn.share.storage_errors import labelled
from untorn.share.tree_plans import plan_of
from untorn.trees import Spec
from untorn.typevars import T

__all__ = ["Item", "Queue", "QueueProcess", "queue"]

#: how often a waiting process looks for dead ones
LIVENESS_INTERVAL_S = 0.1
_MAX_KNOWN = 64
_STATES = {
    _core.QUEUE_WRITING: "writing",
    _core.QUEUE_OFFERED: "writing",
    _core.QUEUE_TAKEN: "taken",
    _core.QUEUE_HELD: "held",
}


@dataclass(frozen=True)
class QueueProcess:
    """One living process that has a queue open.

    Attributes:
        pid: its process id, as it wrote it down.
        waits_for: what it waits for: "item", "room" or nothing (None).
        taken: how many items it has taken and not finished.
        held: how many items it has finished, but has views of.
        writing: how many items it writes.
        nbytes: the memory of all of these, in bytes; small items have none of their own.
    """

    pid: int
    waits_for: Literal["item", "room"] | None
    taken: int
    held: int
    writing: int
    nbytes: int


def queue(
    capacity: int = 1000,
    *,
    nbytes: int = 1 << 30,
    name: str | None = None,
    directory: str | os.PathLike[str] | None = None,
    max_processes: int = 256,
    allow_pickle: bool = False,
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
    _check_range("capacity", capacity, 1, _core.QUEUE_MAX_CAPACITY)
    _check_range("nbytes", nbytes, 1, 2**62)
    _check_range("max_processes", max_processes, 1, _core.QUEUE_MAX_PROCESSES)
    if name is None and directory is not None:
        raise ValueError("directory= needs name=: an anonymous queue has no file")
    files = None if name is None else files_of.named(name, directory)
    core = files_of.make(QueueSizes(max_processes, capacity, nbytes), files)
    label = "anonymous" if files is None else files.label
    _check_sizes(core, label, QueueSizes(max_processes, capacity, nbytes))
    places = () if files is None else (files.control,)
    return Queue(QueueAddress(core.id, places, label).here(core), core, allow_pickle=allow_pickle)


def _check_range(name: str, value: int, least: int, most: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name}: expected an int, found {type(value).__name__}")
    if not least <= value <= most:
        raise ValueError(f"{name}: expected {least:,} to {most:,}, found {value:,}")


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


class Queue(Generic[T]):
    """A bounded queue in shared memory for values of any kind that untorn.publish() takes. Made by untorn.queue().

    Items come out in the order in which they were put. Threads and processes may share it: it pickles to a few hundred
    bytes (for process arguments, pools, other queues), and survives fork. The methods of multiprocessing.Queue are
    there, too.
    """

    __slots__ = (
        "__weakref__",
        "_address",
        "_allow_pickle",
        "_decoders",
        "_ended",
        "_gates",
        "_get_plan",
        "_layouts",
        "_plans",
        "_put_plan",
        "_side_or_none",
    )

    def __init__(self, address: QueueAddress, core: _core.Queue | None = None, *, allow_pickle: bool = False) -> None:
        self._address = address
        self._allow_pickle = allow_pickle
        self._side_or_none = core
        self._ended = False
        self._layouts: dict[Spec, Layout] = {}
        self._decoders: dict[bytes, Decoder] = {}
        self._gates: dict[bool, _core.QueueGate] = {}
        #: of the last small values that were put and taken: the next one often has the same structure
        self._put_plan: _core.TreePlan | None = None
        self._get_plan: _core.TreePlan | None = None
        self._plans: dict[bytes, _core.TreePlan | None] = {}

    @property
    def _side(self) -> _core.Queue:
        core = self._side_or_none
        if core is not None:
            return core
        if self._ended:
            raise ClosedError(f"this process has left queue {self.name!r}; open it again")
        core = files_of.attached_to(self._address)
        self._side_or_none = core
        return core

    # -- properties

    @property
    def name(self) -> str:
        """The queue's name, or its path, or ``anonymous``."""
        return self._address.label

    @property
    def capacity(self) -> int:
        """The number of items that can wait."""
        return self._side.capacity

    @property
    def closed(self) -> bool:
        """Whether the queue was closed. Items may still wait in it."""
        return self._look()[1]

    @property
    def nbytes(self) -> int:
        """The shared memory that its items use now, and that it keeps for the next ones, in bytes."""
        return sum(nbytes for *_, nbytes in self._side.slots())

    def qsize(self) -> int:
        """Return the number of items that wait. Others may put and take some at any time."""
        return self._look()[0]

    def empty(self) -> bool:
        """Return whether no item waits, at this moment."""
        return self.qsize() == 0

    def full(self) -> bool:
        """Return whether as many items wait as may, at this moment."""
        return self.qsize() >= self.capacity

    def processes(self) -> list[QueueProcess]:
        """Return the living processes that have the queue open, what each waits for and what it holds."""
        try:
            core = self._side
            slots, rows = core.slots(), core.rows()
        except OSError as error:
            raise labelled(error, self.name) from None
        counts: dict[int, dict[str, int]] = {
            row: dict.fromkeys(("taken", "held", "writing", "nbytes"), 0) for row, *_ in rows
        }
        for _, state, row, _, nbytes in slots:
            if state in _STATES and row in counts:
                counts[row][_STATES[state]] += 1
                counts[row]["nbytes"] += nbytes
        waits: dict[int, Literal["item", "room"]] = {1: "item", 2: "room"}
        return [QueueProcess(pid, waits.get(waiting), **counts[row]) for row, pid, _, waiting in rows]

    def _look(self) -> tuple[int, bool]:
        try:
            return self._side.look()
        except _core.StatusError as error:
            raise meaning(error, self.name) from None

    # -- putting

    def put(
        self, value: T, block: bool = True, timeout: float | None = None, *, timeout_s: float | None = None
    ) -> None:
        """Put a value, which is copied once, at the end of the queue. Blocks while there is no room.

        Args:
            value: as for untorn.publish().
            block: whether to wait for room.
            timeout: the longest time to wait, in seconds; None waits for ever. As for multiprocessing.Queue.
            timeout_s: the same, by the name that the rest of untorn uses.

        Raises:
            FullError: there is no room now, or there was none in time. It is a queue.Full; the message says what there
                is too little of.
            ClosedError: the queue is closed.
            CapacityError: the value is larger than the queue's bytes, or the machine has no memory for it.
            UnsupportedTypeError: the value cannot be shared.

        Example:
            >>> import untorn
            >>> with untorn.queue(1) as tasks:
            ...     tasks.put("first")
            ...     tasks.put("second", timeout_s=0)
            Traceback (most recent call last):
            untorn.errors.FullError: queue 'anonymous' is full: 1 items wait, which is its capacity
        """
        deadline = _deadline(block, timeout, timeout_s)
        plan = self._put_plan
        if plan is not None and self._side.put_tree(plan, value) == 1:
            return
        spec, leaves = flatten(value, allow_pickle=self._allow_pickle)
        self._put_leaves(spec, leaves, deadline)
        self._put_plan = self._plan(self._layout(spec).schema)

    def put_nowait(self, value: T) -> None:
        """Put a value if there is room now, as ``put(value, timeout_s=0)``."""
        self.put(value, timeout_s=0)

    def put_many(self, values: Iterable[T], *, timeout_s: float | None = None) -> int:
        """Put these values, in order; return their number. Other processes may put some in between. Blocks and raises
        as put() does; ``timeout_s`` is for all together, and ``FullError.put_count`` says how many are in the queue."""
        deadline = _deadline(True, None, timeout_s)
        count = 0
        for value in values:
            left = None if deadline is None else max(0.0, deadline - time.monotonic())
            try:
                self.put(value, timeout_s=left)
            except FullError as error:
                error.put_count = count
                raise
            count += 1
        return count

    def reserve(self, like: T, *, timeout_s: float | None = None) -> AbstractContextManager[T, Literal[False]]:
        """Write the next item in place: yield a tree like this one, and put it unless the block raises an error.

        The arrays of the tree are shared memory with arbitrary bytes, and every element must be written; all else is as
        in ``like``. Arrays may also be replaced. After the block they are read-only. Blocks and raises as put() does.

        Example:
            >>> import numpy as np, untorn
            >>> with untorn.queue(10) as batches:
            ...     with batches.reserve(like={"x": np.empty(3), "step": 7}) as batch:
            ...         batch["x"][:] = 1
            ...     batches.get()
            {'x': array([1., 1., 1.]), 'step': 7}
        """
        return _core.Block(self._reserve(like, _deadline(True, None, timeout_s)))

    def _reserve(self, like: T, deadline: float | None) -> Iterator[T]:
        spec, leaves = flatten(like, allow_pickle=self._allow_pickle)
        layout = self._layout(spec)
        draft = self._begin(layout.nbytes, deadline, windowed=True)
        arrays = set(layout.arrays)
        for index, leaf in enumerate(leaves):
            if index not in arrays:
                layout.write_leaf(draft, index, leaf)
        spread: list[Any] = []
        decoder = layout.decoder(allow_pickle=self._allow_pickle)
        edit = Edit(spread.append, None, layout, decoder, draft, only=None, allow_pickle=self._allow_pickle)
        try:
            try:
                yield edit.tree
                restructured = edit.collect()
            finally:
                edit.end()
            if restructured is not None:
                self._put_leaves(restructured.spec, restructured.leaves, deadline)
                return
            if spread:  # some array of it may still be written to
                self._side.seal(draft, layout.nbytes, len(layout.schema))
            self._insert(draft, layout, deadline)
        finally:
            self._side.discard(draft)  # unless it was put

    def _put_leaves(self, spec: Spec, leaves: list[Any], deadline: float | None) -> None:
        layout = self._layout(spec)
        draft = self._begin(layout.nbytes, deadline)
        for index, leaf in enumerate(leaves):
            layout.write_leaf(draft, index, leaf)
        layout.write_schema(draft)
        self._insert(draft, layout, deadline)

    def _layout(self, spec: Spec) -> Layout:
        layout = self._layouts.get(spec)
        if layout is None:
            layout = self._layouts[spec] = Layout(spec)
            _drop_oldest(self._layouts)
        return layout

    def _begin(self, nbytes: int, deadline: float | None, *, windowed: bool = False) -> _core.QueueDraft:
        """Return a slot to write to; wait for one."""
        core, looked = self._side, False
        while True:
            seen = core.events(True)
            try:
                return core.begin(nbytes, windowed)
            except _core.StatusError as error:
                if error.args[0] not in ("no_slot", "no_room"):
                    raise self._unbegun(error, nbytes) from None
                reason = error.args[0]
            except OSError as error:
                raise labelled(error, self.name) from None
            if not looked or self._wait(True, seen, deadline):
                looked = True
                core.reap(False)
                continue
            raise FullError(self._why_full(reason, nbytes))

    def _unbegun(self, error: _core.StatusError, nbytes: int) -> Exception:
        core = self._side
        if error.args[0] == "too_large":
            return CapacityError(
                f"queue {self.name!r}: this item needs {nbytes:,} bytes, and all items together have "
                f"{core.limit_nbytes:,}; make the queue with a larger nbytes, or put the value in parts"
            )
        if error.args[0] == "no_space":
            return storage.no_space(core.fd, nbytes, f"queue {self.name!r}: an item", number=error.args[1])
        return meaning(error, self.name)

    def _insert(self, draft: _core.QueueDraft, layout: Layout, deadline: float | None) -> None:
        core, looked = self._side, False
        while True:
            seen = core.events(True)
            try:
                if core.put(draft, layout.nbytes, len(layout.schema)):
                    return
            except _core.StatusError as error:
                if error.args[0] == "ended":
                    raise ClosedError(f"queue {self.name!r} is closed: nothing can be put into it") from None
                raise meaning(error, self.name) from None
            if not looked or self._wait(True, seen, deadline):
                looked = True
                continue
            raise FullError(self._why_full("full", layout.nbytes))

    def _why_full(self, reason: str, nbytes: int) -> str:
        core, label = self._side, f"queue {self.name!r}"
        if reason == "full":
            return f"{label} is full: {core.capacity:,} items wait, which is its capacity"
        holders = "; ".join(
            f"pid {process.pid} has taken {process.taken}, holds {process.held} and writes {process.writing}"
            for process in self.processes()
            if process.taken or process.held or process.writing
        )
        waiting = f"{self.qsize():,} items wait" + (f"; {holders}" if holders else "")
        if reason == "no_slot":
            return f"{label} is full: every slot has an item ({waiting}); let items and their views go, or copy them"
        return (
            f"{label} is full: this item needs {nbytes:,} bytes, and all items together have {core.limit_nbytes:,} "
            f"({waiting}); let items and their views go, or make the queue with a larger nbytes"
        )

    # -- taking

    def get(
        self,
        block: bool = True,
        timeout: float | None = None,
        *,
        timeout_s: float | None = None,
        copy: bool = False,
    ) -> T:
        """Remove the first item, and return its value. The cost does not depend on its size. Blocks while none waits.

        Arrays are read-only views of shared memory, and so are values of other libraries if these allow it
        (docs/values.md); all else is a copy. The memory is free again when the last view is gone, and until then it
        counts against the queue's bytes: copy what is kept for long.

        Args:
            block: whether to wait for an item.
            timeout: the longest time to wait, in seconds; None waits for ever. As for multiprocessing.Queue.
            timeout_s: the same, by the name that the rest of untorn uses.
            copy: return a copy, whose arrays are writable.

        Raises:
            EmptyError: no item waits now, or came in time. It is a queue.Empty.
            ClosedError: the queue is closed and has no items, and no other process has one that it may give back.
            UnsupportedTypeError: a pickled value, without allow_pickle. The item goes back.
            FormatError: the item is damaged, and dropped; or the value's class is not known here, and it goes back.

        Example:
            >>> import untorn
            >>> with untorn.queue(10) as tasks:
            ...     tasks.put(["dig", 3])
            ...     tasks.get()
            ['dig', 3]
        """
        plan = self._get_plan
        if plan is not None and not copy:
            value = self._get_planned(plan)
            if value is not NotImplemented and not isinstance(value, _core.QueueItem):
                return value  # type: ignore[no-any-return]
            item = self._take(_deadline(block, timeout, timeout_s)) if value is NotImplemented else value
        else:
            item = self._take(_deadline(block, timeout, timeout_s))
        value = self._decode(item, copy)
        item.finish()
        self._get_plan = self._plan(item.schema())
        return value  # type: ignore[no-any-return]  # decoding cannot know the type

    def get_nowait(self, *, copy: bool = False) -> T:
        """Return the first item if one waits now, as ``get(timeout_s=0)``."""
        return self.get(timeout_s=0, copy=copy)

    def get_many(self, count: int, *, timeout_s: float | None = None, copy: bool = False) -> list[T]:
        """Wait for one item, and return up to ``count``: those that wait then. Blocks and raises as get() does."""
        _check_range("count", count, 1, 2**31)
        values = [self.get(timeout_s=timeout_s, copy=copy)]
        while len(values) < count:
            try:
                values.append(self.get(timeout_s=0, copy=copy))
            except (EmptyError, ClosedError):
                break
        return values

    def take(
        self,
        block: bool = True,
        timeout: float | None = None,
        *,
        timeout_s: float | None = None,
        on_error: OnError = "return",
    ) -> Item[T]:
        """Take the first item, without finishing it: if this process dies before, another one gets it. Blocks while
        none waits, and raises, as get() does; the value is decoded when Item.value is used.

        Args:
            block, timeout, timeout_s: as for get().
            on_error: what becomes of the item after an error in the block of ``with``: "return" gives it back to the
                queue, "drop" finishes it.
        """
        if on_error not in ("return", "drop"):
            raise ValueError(f"on_error: expected 'return' or 'drop', found {on_error!r}")
        return Item(self._take(_deadline(block, timeout, timeout_s)), self._decode, self.name, on_error)

    def _take(self, deadline: float | None) -> _core.QueueItem:
        core, looked = self._side, False
        while True:
            seen = core.events(False)
            item = self._try_take(core)
            if item is not None:
                return item
            if not looked:
                looked = True
                if core.reap(False):
                    continue
            if not self._wait(False, seen, deadline):
                raise EmptyError(f"queue {self.name!r} is empty")

    def _get_planned(self, plan: _core.TreePlan) -> Any:
        """Return what Queue.get_tree() of the core does."""
        try:
            return self._side.get_tree(plan)
        except (_core.StatusError, OSError) as error:
            raise self._untaken(error) from None

    def _plan(self, schema: bytes) -> _core.TreePlan | None:
        """Return the plan for this structure, which is kept; None if it has none."""
        if schema not in self._plans:
            self._plans[schema] = plan_of(schema)
            _drop_oldest(self._plans)
        return self._plans[schema]

    def _try_take(self, core: _core.Queue) -> _core.QueueItem | None:
        try:
            return core.take()
        except (_core.StatusError, OSError) as error:
            raise self._untaken(error) from None

    def _untaken(self, error: _core.StatusError | OSError) -> Exception:
        if isinstance(error, OSError):
            return labelled(error, self.name)
        if error.args[0] == "ended":
            return ClosedError(f"queue {self.name!r} is closed and empty")
        return meaning(error, self.name)

    def _decode(self, item: _core.QueueItem, copy: bool = False) -> Any:
        schema = item.schema()
        decoder = self._decoders.get(schema)
        if decoder is None or decoder.slot_nbytes > item.nbytes:
            try:
                decoder = Decoder(schema, item.nbytes, allow_pickle=self._allow_pickle)
            except (FormatError, UnsupportedTypeError, ImportError) as error:
                raise type(error)(f"queue {self.name!r}: {error}") from error
            self._decoders[schema] = decoder
            _drop_oldest(self._decoders)
        return decoder.value(bytearray(memoryview(item)) if copy else item)

    def __iter__(self) -> Iterator[T]:
        """Yield the items, as get() returns them, until the queue is closed and empty."""
        while True:
            try:
                value = self.get()
            except ClosedError:
                return
            yield value
            del value  # otherwise its memory would stay during the wait

    # -- waiting

    def _wait(self, for_room: bool, seen: int, deadline: float | None) -> bool:
        """Wait for events other than those seen, a moment at most, and undo what dead processes left. Returns False if
        time is up."""
        core = self._side
        left = LIVENESS_INTERVAL_S if deadline is None else deadline - time.monotonic()
        if left <= 0:
            return False
        if not core.wait(for_room, seen, min(left, LIVENESS_INTERVAL_S)) and left > LIVENESS_INTERVAL_S:
            core.reap(True)
        return True

    async def _wait_async(self, for_room: bool, seen: int, deadline: float | None) -> bool:
        core = self._side
        left = LIVENESS_INTERVAL_S if deadline is None else deadline - time.monotonic()
        if left <= 0:
            return False
        gate = self._gates.get(for_room)
        if gate is None:
            gate = self._gates[for_room] = _core.QueueGate(core, for_room)
        await waiting.changed(gate, seen, or_lost=False, timeout_s=min(left, LIVENESS_INTERVAL_S))
        if core.events(for_room) == seen:
            core.reap(True)
        return True

    async def put_async(self, value: T, *, timeout_s: float | None = None) -> None:
        """Put a value as put() does, but wait in asyncio: block only the coroutine. Raises what put() does.

        Example:
            >>> import asyncio, untorn
            >>> with untorn.queue(10) as tasks:
            ...     asyncio.run(tasks.put_async("dig"))
            ...     asyncio.run(tasks.get_async())
            'dig'
        """
        deadline = _deadline(True, None, timeout_s)
        while True:
            seen = self._side.events(True)
            try:
                return self.put(value, timeout_s=0)
            except FullError:
                if not await self._wait_async(True, seen, deadline):
                    raise

    async def get_async(self, *, timeout_s: float | None = None, copy: bool = False) -> T:
        """Return the first item as get() does, but wait in asyncio, as put_async(). Raises what get() does."""
        deadline = _deadline(True, None, timeout_s)
        while True:
            seen = self._side.events(False)
            try:
                return self.get(timeout_s=0, copy=copy)
            except EmptyError:
                if not await self._wait_async(False, seen, deadline):
                    raise

    async def take_async(self, *, timeout_s: float | None = None, on_error: OnError = "return") -> Item[T]:
        """Take the first item as take() does, but wait in asyncio, as put_async(). Raises what take() does."""
        deadline = _deadline(True, None, timeout_s)
        while True:
            seen = self._side.events(False)
            try:
                return self.take(timeout_s=0, on_error=on_error)
            except EmptyError:
                if not await self._wait_async(False, seen, deadline):
                    raise

    def __aiter__(self) -> AsyncIterator[T]:
        """Iterate as __iter__ does, with ``async for``."""
        return _Items(self)

    # -- the end

    def close(self) -> None:
        """Let nothing more be put, by any process. Items that wait can still be taken; then get() raises ClosedError,
        and iterations end. May be called twice."""
        try:
            self._side.close()
        except _core.StatusError as error:
            raise meaning(error, self.name) from None

    def leave(self) -> None:
        """Leave the queue in this process, without closing it. Values and items of it stay valid. May be called
        twice."""
        self._ended = True
        self._side_or_none = None
        self._gates.clear()
        files_of.forget(self._address.id)

    def unlink(self) -> None:
        """Remove the name of a named queue; processes that have it open keep it. Does nothing for an anonymous one."""
        for place in self._address.places:
            if not place.startswith("/proc/"):
                files_of.unlink(Files(place, place, self.name), self._side)

    def join_thread(self) -> None:
        """Do nothing: put() has no thread. For code that was written for multiprocessing.Queue."""

    def cancel_join_thread(self) -> None:
        """Do nothing, as join_thread()."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self.close()
        finally:
            self.leave()

    def __reduce__(self) -> tuple[Any, ...]:
        core = self._side_or_none
        address = self._address if core is None or core.fd < 0 else self._address.here(core)
        return _unpickle, (*address, self._allow_pickle)

    def __repr__(self) -> str:
        if self._side_or_none is None:
            return f"<untorn.Queue {self.name!r}>"
        waiting, closed = self._look()
        return f"<untorn.Queue {self.name!r}, {waiting} of {self.capacity} items{', closed' * closed}>"


class _Items:
    """The iterator of ``async for``."""

    __slots__ = ("_queue",)

    def __init__(self, queue: Queue[Any]) -> None:
        self._queue = queue

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Any:
        try:
            return await self._queue.get_async()
        except ClosedError:
            raise StopAsyncIteration from None


def _deadline(block: bool, timeout: float | None, timeout_s: float | None) -> float | None:
    """Return the time by the monotonic clock at which a wait ends; None for never."""
    if timeout is not None and timeout_s is not None:
        raise TypeError("timeout and timeout_s are the same; pass one of them")
    longest = timeout_s if timeout is None else timeout
    if not block:
        return -math.inf
    return None if longest is None else waiting.deadline_of(longest)


def _drop_oldest(table: dict[Any, Any]) -> None:
    while len(table) > _MAX_KNOWN:
        table.pop(next(iter(table)), None)


def _unpickle(id: bytes, places: tuple[str, ...], label: str, allow_pickle: bool) -> Queue[Any]:
    address = QueueAddress(id, places, label)
    try:
        core = files_of.attached_to(address)
    except Exception:
        # Pools unpickle outside the task, where an error ends the worker and multiprocessing.Pool then waits forever.
        # So the first use tries again, and raises the error.
        return Queue(address, allow_pickle=allow_pickle)
    files_of.keep_attached(core, address)
    return Queue(address, core, allow_pickle=allow_pickle)
