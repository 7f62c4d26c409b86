"""Who is woken at a queue: one put wakes one consumer, and the wake is not lost if that one does not take the item."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
import time
from pathlib import Path

import numpy as np
import pytest

import untorn
from helpers import start

ITEMS, ROOM = False, True


@pytest.fixture
def queue():
    with untorn.queue(4, nbytes=1 << 20) as made:
        yield made


def wait_until(holds) -> None:
    while not holds():
        time.sleep(0.001)


FUTEX_CALLS = ("202", "98")  # x86-64's and AArch64's number; 449 is futex_waitv's
SHARED_WAIT = "0x0"  # who waits for the GIL sleeps on a private futex


def sleeps_at_a_gate(process: str | int) -> bool:
    try:
        call = Path(f"/proc/{process}/syscall").read_text().split()
    except (FileNotFoundError, ProcessLookupError):
        return False  # the thread has ended
    return call[0] == "449" or (call[0] in FUTEX_CALLS and call[2] == SHARED_WAIT)


class Waiter(threading.Thread):
    """Sleeps at a gate for a minute, without looking again."""

    def __init__(self, queue, for_room: bool) -> None:
        super().__init__()
        self.core, self.for_room, self.seen = queue._side, for_room, queue._side.events(for_room)
        self.woken = None
        self.start()
        wait_until(self.is_asleep)

    def run(self) -> None:
        self.woken = self.core.wait(self.for_room, self.seen, 60)

    def is_asleep(self) -> bool:
        return sleeps_at_a_gate(f"self/task/{self.native_id}")


def asleep(waiters) -> int:
    return sum(waiter.is_asleep() for waiter in waiters)


def end(queue, waiters) -> None:
    queue.close()
    for waiter in waiters:
        waiter.join()
        assert waiter.woken


def test_a_put_wakes_one_consumer(queue):
    waiters = [Waiter(queue, ITEMS) for _ in range(4)]
    for left in (3, 2):
        queue.put("one")
        assert asleep(waiters) == left  # who is woken is not asleep when put() returns
    queue.put("one")
    queue.put("one")
    assert asleep(waiters) == 0
    end(queue, waiters)


def test_an_item_that_is_given_back_wakes_one_consumer(queue):
    queue.put("one")
    item = queue.take()
    waiters = [Waiter(queue, ITEMS) for _ in range(2)]
    del item
    assert asleep(waiters) == 1
    end(queue, waiters)


def test_a_take_wakes_one_producer_and_all_while_one_lacks_memory(queue):
    large = np.zeros(100_000)
    queue.put(large)
    for number in range(3):
        queue.put(number)
    waiters = [Waiter(queue, ROOM) for _ in range(3)]
    held = queue.get()
    assert asleep(waiters) == 2
    with pytest.raises(untorn.FullError, match="this item needs"):
        queue.put(large, timeout_s=0)
    item = queue.take()
    assert asleep(waiters) == 0  # otherwise the one that is woken might be the one that lacks memory
    del held, item
    end(queue, waiters)


def test_closing_wakes_all(queue):
    waiters = [Waiter(queue, ITEMS) for _ in range(3)]
    queue.close()
    assert asleep(waiters) == 0
    end(queue, waiters)


def test_a_wake_that_is_not_used_is_passed_on(queue):
    waiters = [Waiter(queue, ITEMS) for _ in range(2)]
    queue.put("one")
    assert asleep(waiters) == 1
    queue._side.pass_on(ITEMS)
    assert asleep(waiters) == 0
    end(queue, waiters)


def _interrupted(pipe, queue):
    def stop(number, frame):
        raise ZeroDivisionError

    signal.signal(signal.SIGUSR1, stop)
    pipe.put()
    try:
        queue.get()
    except ZeroDivisionError:
        pipe.put("stopped")


def test_a_signal_handler_that_ends_a_wait_passes_the_wake_on(queue):
    child = start(_interrupted, queue)
    child.get()
    wait_until(lambda: any(process.waits_for == "item" for process in queue.processes()))
    waiter = Waiter(queue, ITEMS)
    os.kill(child.pid, signal.SIGUSR1)
    assert child.get() == "stopped"
    assert not waiter.is_asleep()
    assert child.join() == 0
    waiter.join()


def test_a_coroutine_passes_the_wake_on_although_its_loop_is_busy(queue):
    async def main():
        task = asyncio.create_task(queue.get_async())
        while not watch_sleeps():
            await asyncio.sleep(0)
        waiter = Waiter(queue, ITEMS)
        queue.put("one")
        wait_until(lambda: not waiter.is_asleep())  # and this loop runs nothing meanwhile
        assert await task == "one"
        return waiter

    def watch_sleeps() -> bool:
        threads = [thread for thread in threading.enumerate() if thread.name == "untorn-waiting"]
        return any(sleeps_at_a_gate(f"self/task/{each.native_id}") for each in threads)

    end(queue, [asyncio.run(main())])


def test_a_cancelled_coroutine_leaves_the_item_to_others(queue):
    async def main():
        tasks = [asyncio.create_task(queue.get_async()) for _ in range(2)]
        await asyncio.sleep(0)
        queue.put("one")
        tasks[0].cancel()
        assert await tasks[1] == "one"
        with pytest.raises(asyncio.CancelledError):
            await tasks[0]

    asyncio.run(main())


def _wakes_up_only(pipe, queue):
    pipe.put()
    pipe.put(queue._side.wait(ITEMS, queue._side.events(ITEMS), 60))
    pipe.get()


def _get(pipe, queue):
    pipe.put()
    pipe.put(queue.get())


def test_another_consumer_gets_the_item_if_the_one_that_was_woken_is_killed(queue):
    first = start(_wakes_up_only, queue)
    first.get()
    wait_until(lambda: sleeps_at_a_gate(first.pid))
    second = start(_get, queue)
    second.get()
    wait_until(lambda: sum(process.waits_for == "item" for process in queue.processes()) == 2)
    queue.put("one")
    assert first.get()  # it has slept longest
    assert first.kill() == -9
    assert second.get() == "one"
    assert second.join() == 0
