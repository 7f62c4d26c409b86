"""Waiting in asyncio: results, publishers and subscribers that start and end meanwhile, and the one sleeping thread."""

import asyncio
import contextlib
import gc
import os
import signal
import subprocess
import sys
import threading
import time
import weakref

import pytest

import untorn
from helpers import WATCHDOG_S, start
from untorn import BrokenChannelError, ClosedError, _core
from untorn.share import waiting


def watching_threads():
    return [thread for thread in threading.enumerate() if thread.name == "untorn-waiting"]


@pytest.fixture(autouse=True)
def no_thread_is_left():
    """The thread ends by itself, and nothing of what it knew stays."""
    yield
    for thread in watching_threads():
        thread.join(WATCHDOG_S)
    assert watching_threads() == []
    for watcher in waiting._watchers:
        assert not watcher._inbox and not watcher._waiters and not watcher._versions


@pytest.fixture(params=["sleeps", "polls"])
def kernel(request, monkeypatch):
    """Both ways to wait: sleeping on all channels at once, and without futex_waitv."""
    monkeypatch.setattr(waiting, "_watchers", [waiting._Watcher(polls=request.param == "polls")])
    return request.param


@pytest.fixture
def weights():
    with untorn.publish("first") as publisher:
        yield publisher


def waiters():
    """The coroutines that the threads know of."""
    return {waiter for watcher in waiting._watchers for group in list(watcher._waiters.values()) for waiter in group}


async def until(condition):
    async with asyncio.timeout(WATCHDOG_S):
        while not condition():
            await asyncio.sleep(0)


async def waiting_task(coroutine):
    """A task that runs this, and is known to be waiting for its channel."""
    before = waiters()
    task = asyncio.create_task(coroutine)
    await until(lambda: waiters() - before)
    return task


# -- values


def test_what_is_there_comes_at_once_and_gives_others_a_turn(weights):
    async def main():
        reader = weights.subscriber()
        turns = []
        task = asyncio.create_task(asyncio.sleep(0, turns.append(1)))
        assert await reader.wait_async(0) == 1
        assert (await reader.snapshot_async()).value == "first"
        assert (await reader.snapshot_async(newer_than=0, timeout_s=0)).version == 1
        assert turns == [1]
        await task

    asyncio.run(main())
    assert watching_threads() == []


def test_a_task_gets_the_next_version(weights, kernel):
    async def main():
        reader = weights.subscriber()
        task = await waiting_task(reader.snapshot_async(newer_than=1))
        weights.update("second")
        assert (await task).value == "second"
        task = await waiting_task(reader.wait_async(2, timeout_s=WATCHDOG_S))
        weights.update("third")
        assert await task == 3

    asyncio.run(main())
    assert waiting._watchers[0]._watch.polls or kernel == "sleeps"


def test_a_version_in_the_future_is_waited_for(weights, kernel):
    async def main():
        reader = weights.subscriber()
        far = await waiting_task(reader.wait_async(10))
        near = await waiting_task(reader.wait_async(1))
        for value in range(9):
            weights.update(value)
        assert await near > 1
        assert not far.done()
        weights.update(9)
        assert await far == 11

    asyncio.run(main())


def _count_up(pipe, inbox, last):
    with untorn.publish(0) as publisher:
        pipe.put(publisher.subscriber())
        heard = inbox.snapshot(newer_than=1).version
        for value in range(1, last + 1):
            publisher.update(value)
            if value % 100 == 0:  # now and then the reader keeps up, and has to wait
                heard = inbox.snapshot(newer_than=heard, timeout_s=WATCHDOG_S).version
        pipe.get()


def test_versions_from_another_process_come_in_order(kernel):
    last = 2000

    async def read(reader, answers):
        seen = []
        async for snap in reader:
            assert snap.value == snap.version - 1
            seen.append(snap.version)
            if snap.version % 100 == 1:
                answers.update(snap.version)
            if snap.value == last:
                break
        return seen

    with untorn.publish(0) as answers, start(_count_up, answers.subscriber(), last) as child:
        seen = asyncio.run(read(child.get(), answers))
        assert seen == sorted(set(seen)) and seen[-1] == last + 1
        child.put()
        assert child.join() == 0


def test_async_for_skips_what_it_missed(weights):
    async def main():
        versions = aiter(weights.subscriber())
        assert (await anext(versions)).version == 1
        for value in range(10):
            weights.update(value)
        assert (await anext(versions)).version == 11

    asyncio.run(main())


# -- many


def test_two_tasks_on_one_channel_and_a_thread(weights, kernel):
    async def main():
        reader, again = weights.subscriber(), weights.subscriber()
        blocking = asyncio.create_task(asyncio.to_thread(reader.wait, 1))
        tasks = [await waiting_task(source.wait_async(1)) for source in (reader, again, reader)]
        assert len(waiting._watchers[0]._versions) == 1
        weights.update("second")
        assert await asyncio.gather(blocking, *tasks) == [2] * 4

    asyncio.run(main())


def _publish_many(pipe, count):
    with contextlib.ExitStack() as stack:
        publishers = [stack.enter_context(untorn.publish(i)) for i in range(count)]
        pipe.put([publisher.subscriber() for publisher in publishers])
        while (order := pipe.get()) is not None:
            for i in order:
                publishers[i].update(-i)


@pytest.mark.parametrize("count", [50, 200])
def test_many_channels_in_one_process(kernel, count, rng):
    async def main(child, readers):
        order = [*range(count)]
        for known in range(1, 4):
            tasks = [asyncio.create_task(reader.snapshot_async(newer_than=known)) for reader in readers]
            await until(lambda: len(waiters()) == count)
            assert len(watching_threads()) == 1 + count // 127
            rng.shuffle(order)
            child.put(order)
            snaps = await asyncio.gather(*tasks)
            assert [snap.value for snap in snaps] == [-i for i in range(count)]
            assert {snap.version for snap in snaps} == {known + 1}

    with start(_publish_many, count) as child:
        asyncio.run(main(child, child.get()))
        child.put()
        assert child.join() == 0


def test_event_loops_in_several_threads(weights, kernel):
    async def read():
        return [snap.version async for snap in weights.subscriber()]

    results = []
    threads = [threading.Thread(target=lambda: results.append(asyncio.run(read()))) for _ in range(3)]
    for thread in threads:
        thread.start()
    while len(waiters()) < 3 or len(watching_threads()) > 1:  # a vain wait that began with it ends at once
        time.sleep(0)
    assert len(watching_threads()) == 1
    for value in range(50):
        weights.update(value)
    weights.close()
    for thread in threads:
        thread.join(WATCHDOG_S)
    assert len(results) == 3
    for seen in results:
        assert seen == sorted(set(seen)) and (seen[0], seen[-1]) == (1, 51)


# -- the end of a wait


@pytest.mark.parametrize("timeout_s", [0, -1, 0.001, 0.15])
def test_a_timeout_names_the_version(weights, timeout_s):
    async def main():
        reader = weights.subscriber()
        with pytest.raises(TimeoutError, match="newer than version 1"):
            await reader.wait_async(1, timeout_s)
        began = time.monotonic()
        with pytest.raises(TimeoutError, match="newer than version 1"):
            await reader.snapshot_async(newer_than=1, timeout_s=timeout_s)
        assert time.monotonic() - began >= timeout_s

    asyncio.run(main())


def test_newer_than_must_be_a_version(weights):
    reader = weights.subscriber()
    with pytest.raises(TypeError, match="newer_than"):
        asyncio.run(reader.wait_async("1"))
    with pytest.raises(ValueError, match="newer_than"):
        asyncio.run(reader.snapshot_async(newer_than=-1))
    reader.close()
    with pytest.raises(ClosedError):
        asyncio.run(reader.wait_async(0))
    with pytest.raises(ClosedError):
        asyncio.run(reader.snapshot_async())


def test_a_cancelled_wait_is_forgotten(weights, kernel):
    async def main():
        reader = weights.subscriber()
        other = await waiting_task(reader.wait_async(1))
        task = await waiting_task(reader.wait_async(1))
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await until(lambda: len(waiters()) == 1)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(reader.wait_async(1), 0.01)
        weights.update("second")
        assert await other == 2

    asyncio.run(main())


def test_the_channel_is_let_go_with_the_last_wait(weights):
    async def main():
        reader = weights.subscriber()
        task = await waiting_task(reader.wait_async(1))
        reader.close()
        assert len(weights.readers()) == 1
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
        del task, reader
        await until(lambda: gc.collect() >= 0 and weights.readers() == [])

    asyncio.run(main())


def test_async_for_ends_when_the_publisher_closes(weights, kernel):
    async def main():
        seen = []
        async for snap in weights.subscriber():
            seen.append(snap.version)
            if snap.version < 5:
                weights.update(snap.version)
            else:
                asyncio.get_running_loop().call_later(0.01, weights.close)
        return seen

    assert asyncio.run(main()) == [1, 2, 3, 4, 5]


def test_a_closed_channel_can_be_read_but_not_waited_for(weights, kernel):
    async def main():
        reader = weights.subscriber()
        task = await waiting_task(reader.wait_async(1))
        weights.close()
        for wait in (task, reader.wait_async(1), reader.wait_async(1, WATCHDOG_S)):
            with pytest.raises(BrokenChannelError, match="closed it"):
                await wait
        assert (await reader.snapshot_async()).value == "first"

    asyncio.run(main())


def _publish_and_wait(pipe, name=None):
    with untorn.publish("first", name=name) as publisher:
        pipe.put(publisher.subscriber())
        pipe.get()


def test_a_killed_publisher_is_a_broken_channel(kernel):
    async def main(child, reader):
        tasks = [await waiting_task(reader.wait_async(1, timeout_s)) for timeout_s in (None, WATCHDOG_S)]
        iteration = aiter(reader)
        await anext(iteration)
        tasks.append(await waiting_task(anext(iteration)))
        os.kill(child.pid, signal.SIGKILL)
        for task in tasks:
            with pytest.raises(BrokenChannelError, match="is dead"):
                await task
        with pytest.raises(BrokenChannelError, match="is dead"):
            await anext(iteration)

    with start(_publish_and_wait) as child:
        asyncio.run(main(child, child.get()))


def test_a_channel_taken_over_is_waited_for_to_the_end(name, kernel):
    async def main(child, reader):
        task = await waiting_task(reader.snapshot_async(newer_than=1, timeout_s=WATCHDOG_S))
        child.kill()
        with pytest.raises(TimeoutError, match="is dead"):
            await reader.wait_async(1, timeout_s=0.25)
        with pytest.raises(BrokenChannelError, match="is dead"):
            await reader.wait_async(1)
        assert not task.done()
        with untorn.publish("taken over", name=name) as publisher:
            assert (await task).value == "taken over"
            publisher.unlink()

    with start(_publish_and_wait, name) as child:
        asyncio.run(main(child, child.get()))


def test_break_keeps_nothing_pinned(weights):
    async def main():
        async for snap in weights.subscriber():
            assert snap.version == 1
            break
        weights.update("second")
        assert weights.readers()[0].versions == (1,)
        del snap
        assert weights.readers() == []

    asyncio.run(main())


# -- loops, threads and processes that end


def waits_in_a_closed_loop(reader):
    """A task that waits for version 2 in a loop that does not run any more."""
    loop = asyncio.new_event_loop()
    task = loop.run_until_complete(waiting_task(reader.wait_async(1)))
    task._log_destroy_pending = False  # that complaint is for its owner
    loop.close()
    return task


@pytest.mark.parametrize("news", [False, True])
def test_a_loop_that_is_closed_while_a_task_waits(weights, kernel, news):
    task = waits_in_a_closed_loop(weights.subscriber())
    if news:
        weights.update("second")
    for thread in watching_threads():
        thread.join(WATCHDOG_S)
    assert watching_threads() == [] and not task.done()
    gone = weakref.ref(task)
    del task
    gc.collect()
    assert gone() is None
    assert asyncio.run(weights.subscriber().wait_async(0)) == weights.version


def test_the_thread_comes_back(weights):
    for version in range(1, 4):

        async def main(version=version):
            task = await waiting_task(weights.subscriber().wait_async(version))
            weights.update("next")
            assert await task == version + 1

        asyncio.run(main())
        for thread in watching_threads():
            thread.join(WATCHDOG_S)


def test_a_failure_of_the_thread_strands_nobody(weights, monkeypatch):
    failures = []
    monkeypatch.setattr(threading, "excepthook", failures.append)

    async def main():
        task = await waiting_task(weights.subscriber().wait_async(1))
        with monkeypatch.context() as context:
            context.setattr(waiting._Watcher, "_serve", lambda *_: 1 / 0)
            await until(lambda: failures)
        weights.update("second")
        assert await task == 2

    asyncio.run(main())
    for thread in watching_threads():
        thread.join(WATCHDOG_S)
    failures.clear()


@pytest.mark.filterwarnings("ignore:This process.*is multi-threaded:DeprecationWarning")
def test_fork_while_a_task_waits(weights, kernel):
    with contextlib.closing(asyncio.new_event_loop()) as loop:
        held = {"reader": weights.subscriber()}
        held["task"] = loop.run_until_complete(waiting_task(held["reader"].wait_async(1)))
        with start(_wait_in_a_child, held) as child:
            assert child.get() == 0
            weights.update("second")
            assert child.get() == "second"
            assert loop.run_until_complete(held["task"]) == 2
            assert len(weights.readers()) == 2
            child.put()
            assert child.get() == "let go"
            assert [info.pid for info in weights.readers()] == [os.getpid()]
            child.put()
            assert child.join() == 0


def _wait_in_a_child(pipe, held):
    """The child has the parent's waiter and not its thread. It waits with one of its own, and lets all go."""
    pipe.put(len(watching_threads()) + len(waiters()))
    pipe.put(asyncio.run(held["reader"].snapshot_async(newer_than=1)).value)
    pipe.get()
    held["task"]._log_destroy_pending = False  # its loop is the parent's
    held.clear()
    gc.collect()
    for thread in watching_threads():
        thread.join(WATCHDOG_S)
    pipe.put("let go")
    pipe.get()


@pytest.mark.parametrize("how", ["return", "raise", "exit"])
def test_the_interpreter_ends_while_somebody_waits(how):
    code = f"""
import asyncio, sys, threading, untorn
publisher = untorn.publish(1)
reader = publisher.subscriber()
started = threading.Event()
def wait():
    async def main():
        task = asyncio.ensure_future(reader.wait_async(1))
        await asyncio.sleep(0.01)
        started.set()
        await task
    asyncio.run(main())
threading.Thread(target=wait, daemon=True).start()
started.wait()
how = {how!r}
if how == "raise":
    raise SystemExit(3)
if how == "exit":
    sys.exit(3)
"""
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True, timeout=WATCHDOG_S)
    assert (done.returncode, done.stderr) == (0 if how == "return" else 3, "")


# -- the core's part


def test_a_watch_says_what_it_expects(weights):
    watch = _core.Watch()
    attachment = weights.subscriber()._attached.attachment
    with pytest.raises(TypeError, match="Attachment or QueueGate: version"):
        watch.wait({1: 1}, 0.0)
    with pytest.raises(TypeError):
        watch.wait({attachment: "1"}, 0.0)
    assert watch.wait({attachment: 0}, WATCHDOG_S) == [attachment]
    assert watch.wait({attachment: 1}, 0.0) == []
    watch.ring()
    assert watch.wait({attachment: 1}, WATCHDOG_S) == []
    watch.forget()
    assert watch.wait({}, 0.0) == []


def test_one_thread_sleeps_on_a_watch(weights):
    watch = _core.Watch()
    attachment = weights.subscriber()._attached.attachment
    began = threading.Event()

    def sleep():
        began.set()
        watch.wait({attachment: 1}, WATCHDOG_S)

    thread = threading.Thread(target=sleep)
    thread.start()
    began.wait()
    message = ""
    while "another thread" not in message:  # until it sleeps
        with contextlib.suppress(RuntimeError):
            watch.wait({}, 0.0)
            continue
        message = "another thread"
    watch.forget()  # in its own process that is no time to let go
    watch.ring()
    thread.join(WATCHDOG_S)
    assert watch.wait({attachment: 1}, 0.0) == []
