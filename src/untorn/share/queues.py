"""A bounded queue in shared memory: any number of processes put values, and any number take them.

::

    put ──> Putter: spec, Layout ──> _core.QueueDraft (a slot being written) ──> in the queue
    get <── Taker: Decoder <──────── _core.QueueItem (base of every array of the value) <──┘

An item that was taken and not finished when its process dies goes back. No process holds a lock that a kill could leave
locked: csrc/queue.c has the protocol and its proof.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import AbstractContextManager
from types import TracebackType
from typing import TYPE_CHECKING, Any, Generic, Literal, NoReturn, Self

from untorn import _core, html
from untorn.errors import ClosedError, EmptyError, FullError
from untorn.first_guesses import unknown_attribute, words
from untorn.share import queue_files as files_of
from untorn.share.journal import log_queue
from untorn.share.places import Files
from untorn.share.queue_files import QueueAddress, check_range, meaning
from untorn.share.queue_items import Item, OnError
from untorn.share.queue_processes import QueueProcess, processes_of
from untorn.share.queue_putting import Putter
from untorn.share.queue_taking import Taker
from untorn.share.queue_waiting import deadline_of, wait_async
from untorn.share.specs import flatten
from untorn.share.tree_plans import Plans
from untorn.typevars import T

__all__ = ["Queue"]

_GUESSES = words(
    (
        "task_done join",
        "take() says when an item is done: work in the block of `with queue.take() as item`; to wait until all are "
        "done, close() the queue and join the processes that take",
    ),
    ("maxsize max_size _maxsize", "write capacity"),
    ("pop popleft receive recv read", "write get()"),
    ("push append send extend write", "write put(), or put_many()"),
    ("size length", "write qsize()"),
    ("is_empty is_full", "write empty() or full()"),
    ("shutdown end finish stop terminate", "write close(): consumers get what waits, and then ClosedError"),
    ("clear drain get_all flush", "write get_many(queue.capacity, timeout_s=0), which returns what waits"),
    ("peek", "an item is looked at by one process, which takes it: take(), and Item.give_back()"),
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
        "_ended",
        "_gates",
        "_get_plan",
        "_plans",
        "_put_plan",
        "_putter",
        "_side_or_none",
        "_taker",
    )

    def __init__(self, address: QueueAddress, core: _core.Queue | None = None, *, allow_pickle: bool = False) -> None:
        self._address = address
        self._allow_pickle = allow_pickle
        self._side_or_none = core
        self._ended = False
        self._putter = Putter(address.label, allow_pickle)
        self._taker = Taker(address.label, allow_pickle)
        self._gates: dict[bool, _core.QueueGate] = {}
        #: of the last small values that were put and taken: the next one often has the same structure
        self._put_plan: _core.TreePlan | None = None
        self._get_plan: _core.TreePlan | None = None
        self._plans = Plans()

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
        return processes_of(self._side, self.name)

    def _look(self) -> tuple[int, bool]:
        return files_of.look(self._side, self.name)

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
        deadline = deadline_of(block, timeout, timeout_s)
        plan = self._put_plan
        if plan is not None and self._side.put_tree(plan, value) == 1:
            return
        spec, leaves = flatten(value, allow_pickle=self._allow_pickle, pack=True)
        self._put_plan = self._plans.of(self._putter.put(self._side, spec, leaves, deadline))

    def put_nowait(self, value: T) -> None:
        """Put a value if there is room now, as ``put(value, timeout_s=0)``."""
        self.put(value, timeout_s=0)

    def put_many(self, values: Iterable[T], *, timeout_s: float | None = None) -> int:
        """Put these values, in order; return their number. Other processes may put some in between. Blocks and raises
        as put() does; ``timeout_s`` is for all together, and ``FullError.put_count`` says how many are in the queue."""
        deadline = deadline_of(True, None, timeout_s)
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
        return _core.Block(self._putter.reserve(self._side, like, deadline_of(True, None, timeout_s)))

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
        deadline = deadline_of(block, timeout, timeout_s)
        plan = self._get_plan
        if plan is not None and not copy:
            value = self._get_planned(plan)
            if value is not NotImplemented and not isinstance(value, _core.QueueItem):
                return value  # type: ignore[no-any-return]
            item = self._taker.take(self._side, deadline) if value is NotImplemented else value
        else:
            item = self._taker.take(self._side, deadline)
        value = self._value_of(item, copy)
        if (side := self._side_or_none) is not None:  # another thread may have left the queue
            log_queue(side, self.name)
        item.finish()
        return value  # type: ignore[no-any-return]  # decoding cannot know the type

    def get_nowait(self, *, copy: bool = False) -> T:
        """Return the first item if one waits now, as ``get(timeout_s=0)``."""
        return self.get(timeout_s=0, copy=copy)

    def get_many(self, count: int, *, timeout_s: float | None = None, copy: bool = False) -> list[T]:
        """Wait for one item, and return up to ``count``: those that wait then. Blocks and raises as get() does. After
        an error all of them go back, as they do if this process dies before it has them all."""
        check_range("count", count, 1, 2**31)
        items = [self._taker.take(self._side, deadline_of(True, None, timeout_s))]
        try:
            while len(items) < count and (item := self._taker.take_next(self._side)) is not None:
                items.append(item)
            values = [self._value_of(item, copy) for item in items]
        except BaseException:
            item = None
            items.clear()  # the error's traceback would keep them
            raise
        for item in items:
            item.finish()
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
        return Item(
            self._taker.take(self._side, deadline_of(block, timeout, timeout_s)),
            self._value_of,
            self.name,
            on_error,
        )

    def _value_of(self, item: _core.QueueItem, copy: bool = False) -> Any:
        """Return an item's value, without finishing the item."""
        schema = item.schema()
        plan = None if copy else self._plans.known(schema)
        value = NotImplemented if plan is None else plan.read(item)
        if value is NotImplemented:
            value = self._taker.decode(item, copy)
        self._get_plan = self._plans.of(schema)
        return value

    def _get_planned(self, plan: _core.TreePlan) -> Any:
        """Return what Queue.get_tree() of the core does."""
        try:
            return self._side.get_tree(plan)
        except (_core.StatusError, OSError) as error:
            raise self._taker.untaken(error) from None

    def __iter__(self) -> Iterator[T]:
        """Yield the items, as get() returns them, until the queue is closed and empty. If another thread leaves the
        queue meanwhile, this goes on."""
        own = self._twin()
        while True:
            try:
                value = own.get()
            except ClosedError:
                return
            yield value
            del value  # otherwise its memory would stay during the wait

    # -- waiting

    async def put_async(self, value: T, *, timeout_s: float | None = None) -> None:
        """Put a value as put() does, but wait in asyncio: block only the coroutine. Raises what put() does.

        Example:
            >>> import asyncio, untorn
            >>> with untorn.queue(10) as tasks:
            ...     asyncio.run(tasks.put_async("dig"))
            ...     asyncio.run(tasks.get_async())
            'dig'
        """
        deadline = deadline_of(True, None, timeout_s)
        while True:
            seen = self._side.events(True)
            try:
                return self.put(value, timeout_s=0)
            except FullError:
                if not await wait_async(self._side, self._gates, True, seen, deadline):
                    raise

    async def get_async(self, *, timeout_s: float | None = None, copy: bool = False) -> T:
        """Return the first item as get() does, but wait in asyncio, as put_async(). Raises what get() does."""
        deadline = deadline_of(True, None, timeout_s)
        while True:
            seen = self._side.events(False)
            try:
                return self.get(timeout_s=0, copy=copy)
            except EmptyError:
                if not await wait_async(self._side, self._gates, False, seen, deadline):
                    raise

    async def take_async(self, *, timeout_s: float | None = None, on_error: OnError = "return") -> Item[T]:
        """Take the first item as take() does, but wait in asyncio, as put_async(). Raises what take() does."""
        deadline = deadline_of(True, None, timeout_s)
        while True:
            seen = self._side.events(False)
            try:
                return self.take(timeout_s=0, on_error=on_error)
            except EmptyError:
                if not await wait_async(self._side, self._gates, False, seen, deadline):
                    raise

    def __aiter__(self) -> AsyncIterator[T]:
        """Iterate as __iter__ does, with ``async for``."""
        return _Items(self._twin())

    def _twin(self) -> Queue[T]:
        """Return another object for the queue: it is open as long as that is used."""
        return Queue(self._address, self._side, allow_pickle=self._allow_pickle)

    if not TYPE_CHECKING:  # a type checker would take every name for one that is here
        __contains__ = None  # searching would take every item, and then wait

        def __getattr__(self, name: str) -> NoReturn:
            """Raise the error for an attribute that is not there."""
            raise unknown_attribute(self, name, _GUESSES)

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
        if self._ended:
            return  # the block has left the queue, without closing it
        try:
            self.close()
        finally:
            self.leave()

    def __reduce__(self) -> tuple[Any, ...]:
        core = self._side_or_none
        address = self._address if core is None or core.fd < 0 else self._address.here(core)
        return _unpickle, (*address, self._allow_pickle)

    def _repr_html_(self) -> str:
        title = f"Queue {self.name!r}"
        if self._side_or_none is None:
            return html.facts(title, {"state": "not open in this process"})
        waiting, closed = self._look()
        rows = {"items": f"{waiting:,} of at most {self.capacity:,}", "state": "closed" if closed else "open"}
        processes = self.processes()
        return html.facts(title, {**rows, "processes": len(processes), "size": html.size_text(self.nbytes)})

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
