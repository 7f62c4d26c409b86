"""The operations of victims on queues, and what must be in the queue afterwards.

The queue has the items 1, 2 and 3 before. The ``versions`` of an operation are the items that may be in it after a
kill, each a tuple in their order; the last one is what is in it when the work is done. The sweeper itself has the queue
open meanwhile, unless the victim makes or removes it.
"""

from __future__ import annotations

import contextlib
import gc
import os
import pickle
import signal
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

import untorn
from helpers import WATCHDOG_S
from sweep.operations import MISTAKES, Operation, Stage, exiting, in_a_killed_child, operation, refused, with_a_loop
from sweep.scenes import LARGE, NAME, SMALL, Scene, payload
from untorn.cli.gc import collect
from untorn.cli.rm import remove
from untorn.share.lowlevel import QueueView, queue_files_of

__all__ = ["QUEUE_OPERATIONS", "QueueScene"]

QUEUE_OPERATIONS: dict[str, Operation] = {}
CAPACITY, NBYTES, PROCESSES = 5, 600_000, 4
#: numbers in a small item, which lies in its slot's small place, one with pages of its own, and one with many
TINY, PAGED = 10, SMALL
ITEMS = (1, 2, 3)


def opened(folder: Path) -> untorn.Queue[Any]:
    """Make or open the queue of this directory."""
    return untorn.queue(CAPACITY, nbytes=NBYTES, max_processes=PROCESSES, name=NAME, directory=folder)


def whole(value: dict[str, Any]) -> int:
    """The number of an item that is exactly one item. Raises AssertionError otherwise."""
    item = value["version"]
    assert np.array_equiv(value["x"], item), f"item {item} is torn: it has {np.unique(value['x'])}"
    return int(item)


def drained(queue: untorn.Queue[Any]) -> tuple[int, ...]:
    """Take all items."""
    items = []
    with contextlib.suppress(untorn.EmptyError, untorn.ClosedError):
        while True:
            items.append(whole(queue.get(timeout_s=0)))
    return tuple(items)


class QueueScene(Scene):
    """The victim works on a named queue.

    Args:
        watched: the sweeper has the queue open, which exists before.
    """

    def __init__(self, folder: Path, *, watched: bool = True) -> None:
        super().__init__(folder)
        self._watched = watched
        self._queue: untorn.Queue[Any] | None = None

    def ready(self, message: Any) -> None:
        if self._watched:
            self._queue = opened(self.folder)

    def after(self, versions: tuple[Any, ...]) -> None:
        self.call("the items that are left", self._look, versions)
        self.call("going on", self._go_on)
        self.call("a queue that has ended", self._begin_again)
        self.call("gc", collect, self.folder)

    def _look(self, versions: tuple[Any, ...]) -> None:
        if self._queue is None:
            self._queue = opened(self.folder)
        self._wait_for_the_dead()
        found = drained(self._queue)
        assert found in versions, f"expected one of {versions}, found {found}"

    def _wait_for_the_dead(self) -> None:
        """A process closes its pipe to this one a moment before it closes the queue."""
        assert self._queue is not None
        deadline = time.monotonic() + WATCHDOG_S
        while others := [process.pid for process in self._queue.processes() if process.pid != os.getpid()]:
            assert time.monotonic() < deadline, f"processes {others} still have the queue"

    def _go_on(self) -> None:
        queue = self._queue
        assert queue is not None
        if not queue.closed:
            use(queue)
        states = [state for _, state, *_ in queue._side.slots() if state]
        assert not states, f"slots in states {states} belong to nobody"
        assert queue.nbytes <= NBYTES + 4096, f"the items have {queue.nbytes} bytes"
        taken = os.fstat(queue._side.fd).st_blocks * 512
        assert taken <= NBYTES + (256 << 10), f"the file takes {taken} bytes"

    def _begin_again(self) -> None:
        queue, self._queue = self._queue, None
        if queue is not None:
            queue.close()
            queue.leave()
            del queue
            gc.collect()
        again = opened(self.folder)
        try:
            assert not again.closed
            use(again)
        finally:
            again.unlink()
            again.leave()


def use(queue: untorn.Queue[Any]) -> None:
    """A queue that no other process has can do all that it should, without a wait."""
    for size in (TINY, LARGE, PAGED, 2 * LARGE):
        queue.put(payload(7, size), timeout_s=0)
        with queue.reserve(like=payload(8, TINY), timeout_s=0) as value:
            value["x"][:] = 8
        with queue.take(timeout_s=0) as item:
            assert whole(item.value) == 7
        assert whole(queue.get(timeout_s=0)) == 8
    for number in range(CAPACITY):
        queue.put(payload(number, TINY), timeout_s=0)
    with contextlib.suppress(untorn.FullError):
        queue.put(payload(9, TINY), timeout_s=0)
        raise AssertionError("an item more than the capacity was put")
    assert drained(queue) == tuple(range(CAPACITY))


class Leaving:
    """A queue that is left, and not closed, when its stage is closed."""

    def __init__(self, queue: untorn.Queue[Any]) -> None:
        self.queue = queue

    def close(self) -> None:
        self.queue.leave()


# -- what comes before


def nothing(stage: Stage) -> None:
    """There is no queue."""


def kept(stage: Stage, queue: untorn.Queue[Any]) -> untorn.Queue[Any]:
    stage.keep(Leaving(queue))
    return queue


def filled(stage: Stage, size: int = TINY) -> untorn.Queue[Any]:
    """A queue of three items."""
    queue = kept(stage, opened(stage.folder))
    for item in ITEMS:
        queue.put(payload(item, size))
    return queue


def filled_by_the_dead(stage: Stage) -> None:
    """The same, of a process that was killed."""
    in_a_killed_child(lambda: filled(stage))


def ended(stage: Stage) -> None:
    """A queue that was closed, and has no process."""
    in_a_killed_child(lambda: filled(stage).close())


def with_free_pages(stage: Stage) -> untorn.Queue[Any]:
    """A queue whose free slots have most of its bytes."""
    queue = kept(stage, opened(stage.folder))
    queue.put(payload(7, LARGE))
    queue.put(payload(8, LARGE))
    both = queue.get(), queue.get()
    del both
    for item in ITEMS:
        queue.put(payload(item, TINY))
    return queue


def taken_by_the_dead(stage: Stage) -> untorn.Queue[Any]:
    """Of three items, the first was taken by a process that was killed, and a fourth one was not put completely."""
    queue = filled(stage, PAGED)
    told, tell = os.pipe()
    pid = os.fork()
    if pid == 0:
        with exiting():
            taken, writing = queue.take(), queue.reserve(like=payload(4, PAGED))
            assert whole(taken.value) == 1
            with writing:
                os.write(tell, b"x")
                signal.pause()
    os.close(tell)
    assert os.read(told, 1)
    os.close(told)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return queue


def with_views(stage: Stage) -> untorn.Queue[Any]:
    """A queue, of which this process has taken an item and holds another one."""
    queue = filled(stage, PAGED)
    held = queue.get()
    stage.views += [queue.take(), held["x"]]
    return queue


def pickled(stage: Stage) -> bytes:
    """The queue as it travels to another process."""
    data = pickle.dumps(filled(stage, PAGED))
    stage.close()
    gc.collect()
    return data


unwatched = partial(QueueScene, watched=False)


def queue_operation(
    prepare: Callable[[Stage], Any],
    scene: Callable[[Path], Scene] = QueueScene,
    table: dict[str, Operation] = QUEUE_OPERATIONS,
    **rest: Any,
) -> Any:
    """Make an operation on queues of the function below, under its name."""
    return operation(prepare, scene, table, **rest)


# -- making, opening and ending


@queue_operation(nothing, unwatched, versions=((),))
def _queue_create(stage: Stage, state: Any) -> None:
    kept(stage, opened(stage.folder))


@queue_operation(filled_by_the_dead, versions=(ITEMS,))
def _queue_open(stage: Stage, state: Any) -> None:
    kept(stage, opened(stage.folder))


@queue_operation(ended, unwatched, versions=(ITEMS, ()))
def _queue_open_one_that_ended(stage: Stage, state: Any) -> None:
    kept(stage, opened(stage.folder))


@queue_operation(filled, versions=(ITEMS,))
def _queue_anonymous(stage: Stage, state: Any) -> None:
    with untorn.queue(2, nbytes=NBYTES, max_processes=2) as queue:
        queue.put(payload(1, LARGE))
        assert whole(queue.get()) == 1


@queue_operation(pickled, versions=(ITEMS, (2, 3)))
def _queue_unpickle(stage: Stage, data: bytes) -> None:
    queue = kept(stage, pickle.loads(data))
    assert whole(queue.get(timeout_s=0)) == 1


@queue_operation(filled, versions=(ITEMS,))
def _queue_close(stage: Stage, queue: untorn.Queue[Any]) -> None:
    queue.close()


@queue_operation(filled, unwatched, versions=(ITEMS, ()))
def _queue_unlink(stage: Stage, queue: untorn.Queue[Any]) -> None:
    queue.unlink()


@queue_operation(filled_by_the_dead, unwatched, versions=(ITEMS, ()))
def _queue_gc(stage: Stage, state: Any) -> None:
    refused(collect(stage.folder))


@queue_operation(filled_by_the_dead, versions=(ITEMS,))
def _queue_gc_of_a_used_one(stage: Stage, state: Any) -> None:
    collect(stage.folder)


@queue_operation(filled_by_the_dead, unwatched, versions=(ITEMS, ()))
def _queue_rm(stage: Stage, state: Any) -> None:
    remove(str(stage.folder / NAME))


# -- putting

LONGER = (*ITEMS, 4)


@queue_operation(filled, versions=(ITEMS, LONGER))
def _queue_put(stage: Stage, queue: untorn.Queue[Any]) -> None:
    queue.put(payload(4, TINY))


@queue_operation(filled, versions=(ITEMS, LONGER))
def _queue_put_large(stage: Stage, queue: untorn.Queue[Any]) -> None:
    queue.put(payload(4, LARGE))


@queue_operation(with_free_pages, versions=(ITEMS, LONGER))
def _queue_put_in_a_smaller_place(stage: Stage, queue: untorn.Queue[Any]) -> None:
    queue.put(payload(4, LARGE // 2))


@queue_operation(with_free_pages, versions=(ITEMS, LONGER))
def _queue_put_with_pages_of_free_slots(stage: Stage, queue: untorn.Queue[Any]) -> None:
    queue.put(payload(4, 3 * LARGE))


@queue_operation(filled, versions=(ITEMS, LONGER))
def _queue_put_in_place(stage: Stage, queue: untorn.Queue[Any]) -> None:
    with queue.reserve(like=payload(4, LARGE)) as value:
        value["x"][:] = 4


@queue_operation(filled, versions=(ITEMS, LONGER))
def _queue_put_in_place_and_look_again(stage: Stage, queue: untorn.Queue[Any]) -> None:
    with queue.reserve(like=payload(4, LARGE)) as value:
        view = value["x"]
        view[:] = 4
    assert view[0] == 4


@queue_operation(filled, versions=(ITEMS,))
def _queue_put_in_place_with_an_error(stage: Stage, queue: untorn.Queue[Any]) -> None:
    with contextlib.suppress(ZeroDivisionError), queue.reserve(like=payload(4, LARGE)):
        raise ZeroDivisionError


@queue_operation(filled, versions=(ITEMS, LONGER, (*LONGER, 5)))
def _queue_put_until_it_is_full(stage: Stage, queue: untorn.Queue[Any]) -> None:
    with contextlib.suppress(untorn.FullError):
        for item in (4, 5, 6):
            queue.put(payload(item, TINY), timeout_s=0.01)


@queue_operation(filled, versions=(ITEMS, LONGER, (*LONGER, 5)))
def _queue_put_many(stage: Stage, queue: untorn.Queue[Any]) -> None:
    assert queue.put_many([payload(4, PAGED), payload(5, TINY)]) == 2


# -- taking


@queue_operation(partial(filled, size=SMALL), versions=(ITEMS, (2, 3), (3,), ()))
def _queue_get_many(stage: Stage, queue: untorn.Queue[Any]) -> None:
    assert tuple(map(whole, queue.get_many(5))) == ITEMS


@queue_operation(filled, versions=(ITEMS, (2, 3)))
def _queue_get(stage: Stage, queue: untorn.Queue[Any]) -> None:
    assert whole(queue.get(timeout_s=0)) == 1


@queue_operation(partial(filled, size=SMALL), versions=(ITEMS, (2, 3)))
def _queue_get_with_pages(stage: Stage, queue: untorn.Queue[Any]) -> None:
    assert whole(queue.get(timeout_s=0)) == 1


@queue_operation(partial(filled, size=SMALL), versions=(ITEMS, (2, 3)))
def _queue_get_a_copy(stage: Stage, queue: untorn.Queue[Any]) -> None:
    assert whole(queue.get(timeout_s=0, copy=True)) == 1


@queue_operation(partial(filled, size=SMALL), versions=(ITEMS,))
def _queue_take_and_give_back(stage: Stage, queue: untorn.Queue[Any]) -> None:
    with contextlib.suppress(ZeroDivisionError), queue.take(timeout_s=0) as item:
        assert whole(item.value) == 1
        raise ZeroDivisionError


@queue_operation(taken_by_the_dead, versions=(ITEMS, (1, 3), (1,), (2, 3), (3,), ()))
def _queue_get_what_the_dead_had(stage: Stage, queue: untorn.Queue[Any]) -> None:
    assert sorted(drained(queue)) == [1, 2, 3]


@queue_operation(filled, versions=(ITEMS, (2, 3), (3,), ()))
def _queue_get_until_it_is_empty(stage: Stage, queue: untorn.Queue[Any]) -> None:
    with contextlib.suppress(untorn.EmptyError):
        while True:
            whole(queue.get(timeout_s=0.01))


@queue_operation(partial(with_a_loop, filled), versions=(ITEMS, (2, 3), (3,), ()))
def _queue_get_async(stage: Stage, queue: untorn.Queue[Any]) -> None:
    async def get_all() -> None:
        with contextlib.suppress(untorn.EmptyError):
            while True:
                whole(await queue.get_async(timeout_s=0.01))

    stage.kept[-1].run_until_complete(get_all())


# -- looking, and fork


@queue_operation(filled, versions=(ITEMS,))
def _queue_look(stage: Stage, queue: untorn.Queue[Any]) -> None:
    assert (queue.qsize(), queue.closed, queue.full()) == (3, False, False)
    assert os.getpid() in [process.pid for process in queue.processes()]


@queue_operation(filled_by_the_dead, versions=(ITEMS,))
def _queue_look_from_outside(stage: Stage, state: Any) -> None:
    with QueueView.open(queue_files_of(str(stage.folder / NAME))) as view:
        assert view.state().waiting == 3


def fork_and_look(stage: Stage, queue: untorn.Queue[Any], *, put: bool = False) -> None:
    """Fork with an item and a view; the child looks at both, may put an item, and ends; the parent finishes."""
    taken, view = stage.views
    pid = os.fork()
    if pid == 0:
        with exiting():
            assert np.array_equiv(view, 1)
            assert whole(taken.value) == 2
            with contextlib.suppress(untorn.UntornError, OSError):  # without a row it can do no more
                assert queue.qsize() == 1
                if put:
                    queue.put(payload(4, TINY), timeout_s=0)
    taken.finish()
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    # SIGSEGV: without memory for its copies, a child cannot read what its parent holds
    assert status in (0, -signal.SIGKILL, -signal.SIGSEGV), f"the child ended with {status}"


@queue_operation(with_views, versions=((2, 3), (3,)))
def _queue_fork(stage: Stage, queue: untorn.Queue[Any]) -> None:
    fork_and_look(stage, queue)


@queue_operation(with_views, versions=((3,), (3, 4)), follow_child=True)
def _queue_forked_child(stage: Stage, queue: untorn.Queue[Any]) -> None:
    fork_and_look(stage, queue, put=True)


# -- mistakes


@queue_operation(filled, versions=(ITEMS,), table=MISTAKES)
def _queue_losing_an_item(stage: Stage, queue: untorn.Queue[Any]) -> None:
    queue.get()
    assert queue.qsize() == 2


@queue_operation(filled, versions=(ITEMS,), table=MISTAKES)
def _queue_writing_into_an_item(stage: Stage, queue: untorn.Queue[Any]) -> None:
    side, number = queue._side, (1).to_bytes(8, "little")
    place = int.from_bytes(os.pread(side.fd, 8, 120), "little") + side.slots()[0][0] * side.small_nbytes
    os.pwrite(side.fd, bytes(8), place + os.pread(side.fd, side.small_nbytes, place).index(TINY * number))
    assert queue.qsize() == 3
