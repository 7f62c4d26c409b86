"""Queues: order, bounds, memory, views, the end, and every error. Kills are in tests/faults/test_queue_kills.py."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import math
import multiprocessing
import os
import pickle
import queue as standard
import random
import re
import struct
import subprocess
import threading
import time
from collections import OrderedDict
from concurrent.futures import ThreadPoolExecutor
from itertools import chain

import numpy as np
import pytest

import untorn
from helpers import start

PAGE = os.sysconf("SC_PAGESIZE")


@pytest.fixture
def queue():
    with untorn.queue(4, nbytes=1 << 20) as made:
        yield made


def fill(queue) -> list[int]:
    for number in range(queue.capacity):
        queue.put(number)
    return list(range(queue.capacity))


# -- order and values


def test_items_come_out_in_order(queue):
    for start_at in range(0, 400, 4):
        items = [start_at, [start_at + 1], {"x": start_at + 2}, np.full(5000, start_at + 3)]
        for item in items:
            queue.put(item)
        assert queue.qsize() == 4
        found = queue.get_many(10)
        assert found[:3] == items[:3]
        assert np.array_equal(found[3], items[3])
    assert queue.empty()


def test_values_are_read_only_views_and_copies_on_request(queue):
    queue.put(np.arange(10_000))
    queue.put(np.arange(10_000))
    view, copy = queue.get(), queue.get(copy=True)
    assert not view.flags.writeable
    with pytest.raises(ValueError, match="read-only"):
        view[0] = 1
    copy[0] = 7
    assert view[0] == 0
    assert queue.processes()[0].held == 1  # the copy holds nothing
    del view
    assert queue.processes()[0].held == 0


def test_a_view_keeps_the_bytes_while_the_queue_goes_on(queue):
    small, large = np.arange(8), np.arange(10_000)
    queue.put([small, large])
    held = queue.get()
    part = held[1][100:]
    del held
    for number in range(50):
        queue.put(np.full(10_000, number))
        assert queue.get()[5] == number
    assert np.array_equal(part, large[100:])


def test_put_many_says_how_many_are_in(queue):
    assert queue.put_many(iter("abc")) == 3
    with pytest.raises(untorn.FullError) as caught:
        queue.put_many("defg", timeout_s=0)
    assert caught.value.put_count == 1
    assert queue.get_many(9) == list("abcd")


def test_reserve_writes_in_place(queue):
    with queue.reserve(like={"x": np.empty((2, 3)), "n": 7, "t": "text"}) as item:
        item["x"][:] = 5
        item["n"] = 8
        kept = item["x"][0]
    kept[:] = 9  # goes to a private copy
    found = queue.get()
    assert (found["x"] == 5).all()
    assert (found["n"], found["t"]) == (8, "text")


def test_reserve_may_change_the_structure_and_puts_nothing_after_an_error(queue):
    with queue.reserve(like={"x": np.empty(3)}) as item:
        item["y"] = "more"
        item["x"][:] = 1
    assert queue.get()["y"] == "more"
    with pytest.raises(ZeroDivisionError), queue.reserve(like=[np.empty(3)]):
        raise ZeroDivisionError
    assert queue.empty()
    assert queue.processes()[0].writing == 0


def test_a_forked_child_cannot_put_what_its_parent_reserved(queue):
    for number in range(2):  # once without an error in the child's block, once with one
        block = queue.reserve(like={"x": np.empty(5000)})
        item = block.__enter__()
        item["x"][:] = 1
        with start(_end_reserving, block, item, number == 1) as child:
            assert child.join() == 0
        block.__exit__(None, None, None)
        assert (queue.get()["x"] == 1).all()
        assert queue.empty()
        assert queue.processes()[0].writing == 0


def _end_reserving(pipe, block, item, fails):
    item["x"][:] = 2  # in a copy
    if fails:
        error = ZeroDivisionError()
        assert not block.__exit__(type(error), error, None)
        return
    with pytest.raises(untorn.UntornError, match="belongs to the parent"):
        block.__exit__(None, None, None)


# -- take


def test_a_taken_item_is_finished_by_its_block(queue):
    queue.put("one")
    with queue.take() as item:
        assert (item.value, queue.qsize()) == ("one", 0)
        assert queue.processes()[0].taken == 1
    assert queue.processes()[0].taken == 0
    with pytest.raises(untorn.ClosedError, match="is over"):
        _ = item.value
    assert queue.empty()


def test_an_error_gives_it_back_first_in_line_or_drops_it(queue):
    queue.put_many(["one", "two"])
    with pytest.raises(ZeroDivisionError), queue.take():
        raise ZeroDivisionError
    assert queue.qsize() == 2
    assert queue.get() == "one"
    with pytest.raises(ZeroDivisionError), queue.take(on_error="drop"):
        raise ZeroDivisionError
    assert queue.empty()


def test_what_was_given_back_comes_in_its_old_order(queue):
    queue.put_many("abcd")
    items = [queue.take() for _ in range(4)]
    for index in (2, 0, 1, 3):
        items[index].give_back()
    assert queue.get_many(9) == list("abcd")


def test_it_goes_back_when_no_view_is_left(queue):
    queue.put(np.arange(10_000))
    item = queue.take()
    part = item.value[5:]
    item.give_back()
    with pytest.raises(untorn.EmptyError):
        queue.get_nowait()
    del part
    assert queue.get_nowait()[5] == 5


def test_an_item_that_is_dropped_by_a_program_goes_back(queue):
    queue.put("one")
    queue.take()
    gc.collect()
    assert queue.get_nowait() == "one"


def test_a_value_that_cannot_be_read_goes_back(queue):
    with untorn.queue(4, allow_pickle=True) as trusting:
        trusting.put(standard.Queue)
        distrusting = untorn.Queue(trusting._address, trusting._side)
        with pytest.raises(untorn.UnsupportedTypeError, match="allow_pickle=True"):
            distrusting.get()
        gc.collect()
        assert trusting.get(timeout_s=0) is standard.Queue


def test_get_many_gives_all_back_after_an_error():
    with untorn.queue(4, allow_pickle=True) as trusting:
        trusting.put_many([np.arange(10_000), standard.Queue, 3])
        distrusting = untorn.Queue(trusting._address, trusting._side)
        with pytest.raises(untorn.UnsupportedTypeError, match="allow_pickle=True") as caught:
            distrusting.get_many(3)
        assert trusting.processes()[0].taken <= 1  # the one that the error's traceback keeps
        del caught
        gc.collect()
        first, *others = trusting.get_many(3)
        assert first[7] == 7
        assert others == [standard.Queue, 3]


# -- bounds


def test_full_and_empty_are_the_standard_ones(queue):
    with pytest.raises(standard.Empty, match="queue 'anonymous' is empty"):
        queue.get_nowait()
    with pytest.raises(standard.Empty):
        queue.get(False)
    fill(queue)
    assert queue.full()
    with pytest.raises(standard.Full, match="4 items wait, which is its capacity"):
        queue.put_nowait(5)
    with pytest.raises(standard.Full):
        queue.put(5, True, 0.01)
    assert queue.get(True, 1) == 0
    queue.put(5, False)
    assert queue.get(block=False) == 1
    queue.join_thread()
    queue.cancel_join_thread()


def test_an_item_larger_than_the_bound_is_an_error_of_its_own(queue):
    with pytest.raises(
        untorn.CapacityError, match=r"this item needs 1,0\d\d,\d+ bytes, and all items together have 1,048,576"
    ):
        queue.put(np.zeros(1 << 20, np.uint8))
    queue.put(np.zeros((1 << 20) - 1024, np.uint8))  # as large as one may be
    assert queue.get().nbytes == (1 << 20) - 1024


def test_the_bytes_are_a_bound_and_views_count(queue):
    big = np.zeros(600_000, np.uint8)
    queue.put(big)
    with pytest.raises(untorn.FullError, match=r"needs 600,\d+ bytes.*1 items wait"):
        queue.put(big, timeout_s=0)
    held = queue.get()
    with pytest.raises(untorn.FullError, match=rf"pid {os.getpid()} has taken 0, holds 1"):
        queue.put(big, timeout_s=0)
    queue.put("small items have room of their own")
    del held
    queue.put(big, timeout_s=0)
    assert queue.nbytes <= 1 << 20


def test_every_slot_may_be_held(queue):
    held = []
    with pytest.raises(untorn.FullError, match="every slot has an item"):
        while True:
            queue.put(np.zeros(3), timeout_s=0)
            held.append(queue.get())
    assert len(held) > queue.capacity
    held.pop()
    queue.put(1, timeout_s=0)


def test_nothing_that_fits_is_refused(rng):
    """Sizes at random, items held at random: a put succeeds if and only if the pages of all fit."""
    limit = 64
    with untorn.queue(1000, nbytes=limit * PAGE) as queue:
        held, refused = [], 0
        for _ in range(3000):
            pages = rng.choice((0, 1, 1, 2, 3, 5, 8, 13, 40, 64))
            value = np.zeros(max(0, pages * PAGE - 512), np.uint8)
            fits = sum(pages for pages, _ in held) + pages <= limit
            if fits:
                queue.put(value, timeout_s=0)
                held.append((pages, queue.get()))
            else:
                with pytest.raises(untorn.FullError):
                    queue.put(value, timeout_s=0)
                refused += 1
            while held and rng.random() < 0.5:
                held.pop(rng.randrange(len(held)))
        assert refused
        assert queue.nbytes <= limit * PAGE
        held.clear()
        assert file_nbytes(queue) <= limit * PAGE + shared_nbytes(queue)


def file_nbytes(queue) -> int:
    """The memory that the queue's file has."""
    return os.fstat(queue._side.fd).st_blocks * 512


def shared_nbytes(queue) -> int:
    """The size of what all items of a queue share, by its file."""
    return struct.unpack_from("<Q", os.pread(queue._side.fd, 136, 0), 128)[0]


def test_memory_is_taken_as_it_is_needed_and_kept_for_the_next_item():
    with untorn.queue(100, nbytes=1 << 34) as queue:
        before = file_nbytes(queue)
        assert before <= 1 << 20
        for _ in range(20):
            queue.put(np.zeros(1 << 20, np.uint8))
            queue.get()
        assert file_nbytes(queue) - before <= (1 << 20) + 2 * PAGE


# -- processes


def test_waits_for_items_and_for_room(queue):
    with start(_echo, queue) as child:
        for number in range(100):
            child.put()
            queue.put(number)
        assert child.get() == list(range(100))


def _echo(pipe, queue):
    pipe.put([queue.get() for _ in range(100)])
    pipe.get()


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_many_producers_and_consumers(method, seed):
    with untorn.queue(8, nbytes=1 << 22) as queue:
        producers = [start(_produce, queue, number, 150, method=method) for number in range(3)]
        consumers = [start(_consume, queue, method=method) for _ in range(2)]
        for child in producers:
            assert child.join() == 0
        queue.close()
        found = [child.get() for child in consumers]
        for child in consumers:
            assert child.join() == 0
        assert sorted(chain.from_iterable(found)) == [(number, index) for number in range(3) for index in range(150)]
        for items in found:  # each consumer gets those of a producer in order
            for number in range(3):
                own = [index for producer, index in items if producer == number]
                assert own == sorted(own)


def _produce(pipe, queue, number, count):
    sizes = random.Random(number)
    for index in range(count):
        queue.put((number, index, np.full(sizes.choice((3, 3, 2000)), index)))


def _consume(pipe, queue):
    found = []
    for number, index, array in queue:
        assert (array == index).all()
        found.append((number, index))
    pipe.put(found)


def test_travels_through_a_pool(queue):
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        assert pool.starmap(_put_square, [(queue, number) for number in range(4)]) == [None] * 4
        pool.close()
        pool.join()
    assert sorted(queue.get_many(4)) == [0, 1, 4, 9]


def _put_square(queue, number):
    queue.put(number * number)


def test_a_name_opens_it_everywhere(name):
    with untorn.queue(4, name=name) as queue:
        same = untorn.queue(4, name=name)
        queue.put("one")
        assert same.get() == "one"
        with start(_put_by_name, name, method="spawn") as child:
            assert queue.get(timeout_s=60) == "by name"
            assert child.join() == 0
        with pytest.raises(ValueError, match=f"queue '{name}' exists, with capacity=4 and not 5"):
            untorn.queue(5, name=name)
        queue.unlink()
        with untorn.queue(5, name=name) as other:
            assert other.capacity == 5
            other.unlink()


def _put_by_name(pipe, name):
    untorn.queue(4, name=name).put("by name")


def test_a_named_queue_outlives_its_processes_unless_it_was_closed(name, tmp_path):
    with start(_put_and_leave, name, tmp_path) as child:
        assert child.join() == 0
    queue = untorn.queue(4, name=name, directory=tmp_path)
    assert queue.name == os.fspath(tmp_path / name)
    assert queue.get() == "left"
    queue.close()
    queue.leave()
    gc.collect()
    with untorn.queue(7, name=name, directory=tmp_path) as again:  # it had ended
        again.put("new")


def _put_and_leave(pipe, name, folder):
    untorn.queue(4, name=name, directory=folder).put("left")


def test_forked_children_have_copies_of_what_their_parent_holds(queue):
    queue.put(np.arange(10))
    queue.put(np.arange(10_000))
    queue.put("taken")
    held, item = [queue.get(), queue.get()], queue.take()
    with start(_look_at_copies, queue, held, item) as child:
        held.clear()
        queue.put(np.zeros(10, np.int64))
        queue.put(np.zeros(10_000, np.int64))
        queue.get_many(2)
        child.put()
        assert child.get() == "looked"
        assert queue.get() == "from the child"
    assert queue.empty()
    item.finish()


def _look_at_copies(pipe, queue, held, item):
    pipe.get()
    assert np.array_equal(held[0], np.arange(10))
    assert np.array_equal(held[1], np.arange(10_000))
    assert item.value == "taken"
    with pytest.raises(untorn.UntornError, match="belongs to the parent"):
        item.finish()
    del item
    held.clear()
    queue.put("from the child")
    pipe.put("looked")
    pipe.get()


def test_threads_share_it(queue):
    with ThreadPoolExecutor(4) as pool:
        putting = [pool.submit(queue.put_many, [number] * 200) for number in range(2)]
        getting = [pool.submit(lambda: [queue.get() for _ in range(200)]) for _ in range(2)]
        assert [task.result() for task in putting] == [200, 200]
        assert sorted(chain.from_iterable(task.result() for task in getting)) == [0] * 200 + [1] * 200


def test_tells_who_has_it(queue):
    queue.put(np.zeros(2000))
    with start(_hold_and_wait, queue) as child:
        assert child.get() == "holds"
        while True:
            there = {process.pid: process for process in queue.processes()}[child.pid]
            assert (there.held, there.taken) == (1, 0)
            assert there.nbytes >= 16_000
            if there.waits_for == "item":  # it sleeps by now, with moments between its looks
                break


def test_the_dead_are_looked_for_by_one_process_at_a_time(queue):
    taken = math.inf
    while taken >= 0.04:  # until this process is not kept waiting in between
        with start(_idle, queue) as child:
            begun = time.monotonic_ns()
            pass_one(queue)  # after a pause it would look itself
            child.kill()
        row_at = struct.unpack_from("<Q", os.pread(queue._side.fd, 96, 0), 88)[0] + 2 * 64
        os.pwrite(queue._side.fd, struct.pack("<Q", time.monotonic_ns()), 344)
        assert pass_one(queue) == 1
        attached = os.pread(queue._side.fd, 4, row_at)
        taken = (time.monotonic_ns() - begun) / 1e9
    assert attached == b"\1\0\0\0"  # another one had looked just before
    os.pwrite(queue._side.fd, struct.pack("<Q", begun - 10**9), 344)
    assert pass_one(queue) == 1
    assert os.pread(queue._side.fd, 4, row_at) == bytes(4)


def pass_one(queue) -> int:
    queue.put(1)
    return queue.get()


def _idle(pipe, queue):
    pipe.get()


def _hold_and_wait(pipe, queue):
    held = queue.get()
    pipe.put("holds")
    queue.get()
    del held


# -- the end


def room_events(queue) -> int:
    return queue._side.events(True)


def test_takers_wake_producers_for_several_places_at_once():
    with untorn.queue(64) as queue:
        for _ in range(64):
            queue.put(1)
        before = room_events(queue)
        for _ in range(31):
            queue.get()
        assert room_events(queue) == before
        queue.get()
        assert room_events(queue) > before


def test_takers_wake_producers_for_each_place_of_a_short_queue(queue):
    for count in range(4):
        queue.put(count)
    before = room_events(queue)
    queue.get()
    assert room_events(queue) > before


def test_who_lacks_pages_is_told_when_a_view_ends_and_is_not_told_of_its_own_tries(queue):
    queue.put(np.zeros(100_000))
    held = queue.get()
    with pytest.raises(untorn.FullError, match="needs 800"):
        queue.put(np.zeros(100_000), timeout_s=0)
    before = room_events(queue)
    with pytest.raises(untorn.FullError, match="needs 800"):
        queue.put(np.zeros(100_000), timeout_s=0)
    assert room_events(queue) == before  # or it would never sleep
    del held
    assert room_events(queue) > before
    queue.put(np.zeros(100_000), timeout_s=0)


def test_who_lacks_a_slot_is_told_when_a_view_ends(queue):
    held = []
    with pytest.raises(untorn.FullError, match="every slot has an item"):
        while True:
            queue.put(np.zeros(10), timeout_s=0)
            held.append(queue.get())
    before = room_events(queue)
    held.pop()
    assert room_events(queue) > before
    queue.put(1, timeout_s=0)


def test_closing_ends_producers_at_once_and_consumers_when_it_is_empty(queue):
    queue.put_many([1, 2, 3])
    queue.close()
    queue.close()
    assert queue.closed
    with pytest.raises(untorn.ClosedError, match="is closed: nothing can be put into it"):
        queue.put(4)
    assert list(queue) == [1, 2, 3]
    with pytest.raises(untorn.ClosedError, match="is closed and empty"):
        queue.get()


def test_closing_ends_producers_that_wait_for_memory_or_a_slot(queue):
    held = []
    queue.put(np.zeros(100_000))
    with contextlib.suppress(untorn.FullError):
        while True:
            queue.put(1, timeout_s=0)
            held.append(queue.take())
    with ThreadPoolExecutor(2) as pool:
        waiting = [pool.submit(queue.put, value) for value in (np.zeros(100_000), 1)]
        while "room" not in [process.waits_for for process in queue.processes()]:
            pass
        queue.close()
        for each in waiting:
            assert "is closed: nothing can be put" in str(each.exception())
    with pytest.raises(untorn.ClosedError, match="nothing can be put"), queue.reserve(like=1):
        pytest.fail("it could be put only at the end of the block")


def test_closing_wakes_those_that_wait(queue):
    with start(_drain, queue) as consumer:
        assert consumer.get() == "begins"
        queue.put("last")
        queue.close()
        assert consumer.get() == ["last"]


def _drain(pipe, queue):
    pipe.put("begins")
    pipe.put(list(queue))


def test_the_end_waits_for_what_others_may_give_back(queue):
    queue.put("one")
    with start(_take_and_wait, queue) as taker:
        assert taker.get() == "one"
        queue.close()
        with pytest.raises(untorn.EmptyError):
            queue.get(timeout_s=0)
        taker.kill()
        assert queue.get() == "one"
    with pytest.raises(untorn.ClosedError):
        queue.get()


def _take_and_wait(pipe, queue):
    item = queue.take()
    pipe.put(item.value)
    pipe.get()


def test_leaving_is_not_closing(queue):
    other = pickle.loads(pickle.dumps(queue))
    other.put("one")
    other.leave()
    other.leave()
    with pytest.raises(untorn.ClosedError, match="has left queue"):
        other.put("two")
    assert queue.get() == "one"
    assert not queue.closed


def test_an_iteration_goes_on_to_the_end_although_the_process_leaves():
    begun, left = threading.Event(), threading.Event()

    def consume():
        found = []
        for item in queue:
            begun.set()
            left.wait()
            found.append(item)
        return found

    with ThreadPoolExecutor(1) as pool:
        with untorn.queue(4) as queue:
            consumer = pool.submit(consume)
            queue.put_many([1, 2, 3])
            begun.wait()
        left.set()
        assert consumer.result() == [1, 2, 3]
        with pytest.raises(untorn.ClosedError, match="has left queue"):
            list(queue)
    with untorn.queue(4) as queue:
        queue.leave()


def test_an_anonymous_queue_ends_with_its_last_process():
    queue = untorn.queue(4)
    text = pickle.dumps(queue)
    queue.leave()
    del queue
    gc.collect()
    with pytest.raises(untorn.ChannelNotFoundError, match="until the last process that has it open ends"):
        pickle.loads(text).put(1)


# -- asyncio


def test_async_variants_wait_in_their_loop(queue):
    async def both():
        consumer = asyncio.create_task(collect())
        for number in range(50):
            await queue.put_async(number)
        queue.close()
        return await consumer

    async def collect():
        return [item async for item in queue]

    assert asyncio.run(both()) == list(range(50))


def test_async_timeouts_and_take(queue):
    async def main():
        with pytest.raises(untorn.EmptyError):
            await queue.get_async(timeout_s=0.02)
        await queue.put_async("one")
        async_item = await queue.take_async(timeout_s=1)
        with async_item as item:
            assert item.value == "one"
        fill(queue)
        with pytest.raises(untorn.FullError):
            await queue.put_async("more", timeout_s=0.02)

    asyncio.run(main())


# -- bad input


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        ({"capacity": 0}, ValueError, "capacity: expected 1 to 100,000, found 0"),
        ({"capacity": 1.5}, TypeError, "capacity: expected an int, found float"),
        ({"nbytes": 0}, ValueError, "nbytes: expected 1 to"),
        ({"max_processes": 10_000}, ValueError, "max_processes: expected 1 to 8,191, found 10,000"),
        ({"directory": "/tmp"}, ValueError, "directory= needs name="),
        ({"name": "a/b"}, ValueError, "has a slash in it"),
        ({"capacity": 100_000, "nbytes": 1 << 46}, untorn.CapacityError, "use a smaller capacity or nbytes"),
    ],
)
def test_bad_arguments(arguments, error, text):
    with pytest.raises(error, match=re.escape(text)):
        untorn.queue(**arguments)


def test_bad_calls(queue):
    with pytest.raises(TypeError, match="pass one of them"):
        queue.get(timeout=1, timeout_s=1)
    for number in range(3):  # the same whether an item waits, and whether its structure is known
        with pytest.raises(TypeError, match="timeout_s: expected a number"):
            queue.get(timeout_s="1")
        with pytest.raises(ValueError, match="found nan"):
            queue.get(timeout_s=float("nan"))
        for block in (0.5, 5, None, "no"):
            with pytest.raises(TypeError, match=f"block: expected True or False, found {block!r}; a time"):
                queue.get(block)
            with pytest.raises(TypeError, match=f"block: expected True or False, found {block!r}; a time"):
                queue.put(number, block)
        queue.put(number)
        if number:
            assert queue.get(timeout_s=np.float32(3)) == number - 1
    assert queue.get(True, float("inf")) == 2
    with pytest.raises(untorn.EmptyError):
        queue.get(timeout_s=-1)
    with pytest.raises(ValueError, match="on_error: expected 'return' or 'drop', found 'x'"):
        queue.take(on_error="x")
    with pytest.raises(untorn.UnsupportedTypeError, match="cannot share"):
        queue.put(threading.Lock())
    with pytest.raises(TypeError, match="an Item stays in its process"):
        queue.put(1)
        pickle.dumps(queue.take())


def test_a_full_file_system_is_a_capacity_error_and_the_queue_goes_on(tmp_path):
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m,mode=0700", "tmpfs", tmp_path], check=False)
    if mounted.returncode != 0:
        pytest.skip("mounting a small tmpfs needs root in this container")
    try:
        full = r"and its file system has [\d,]+ free of 1,048,576"
        with untorn.queue(4, nbytes=1 << 24, max_processes=4, name="full", directory=tmp_path) as queue:
            queue.put(np.ones(50_000))
            with pytest.raises(untorn.CapacityError, match=r"an item needs 800,\d\d\d bytes, " + full):
                queue.put(np.ones(100_000))
            with pytest.raises(untorn.CapacityError, match=r"a new queue needs 1,4\d\d,\d\d\d bytes, " + full):
                untorn.queue(500, name="another", directory=tmp_path)
            queue.put(2)
            assert queue.get().sum() == 50_000
            assert queue.get() == 2
            queue.put_many([np.ones(20_000)] * 4)
            queue.get_many(4)
            queue.put(np.ones(80_000))  # needs what the file keeps for the slots that are free
            assert queue.get().sum() == 80_000
    finally:
        subprocess.run(["umount", "--lazy", tmp_path], check=True)


def test_names_that_people_try_first_say_the_right_word(queue):
    with pytest.raises(
        AttributeError, match="'Queue' object has no attribute 'task_done': take\\(\\) says when an item"
    ):
        queue.task_done()
    with pytest.raises(AttributeError, match="no attribute 'maxsize': write capacity"):
        queue.maxsize  # noqa: B018
    with pytest.raises(TypeError, match="has no argument 'maxsize': write capacity="):
        untorn.queue(maxsize=4)
    with pytest.raises(TypeError, match=r"has no argument 'sise'$"):
        untorn.queue(sise=4)
    with pytest.raises(TypeError, match="'Queue' object is not a container"):
        1 in queue  # noqa: B015
    assert not hasattr(queue, "no_such_name")


def test_as_many_processes_as_may(name):
    with untorn.queue(4, max_processes=1) as queue, start(_refused, queue) as child:
        assert "max_processes" in child.get()


def _refused(pipe, queue):
    with pytest.raises(untorn.CapacityError) as caught:
        queue.put(1)
    pipe.put(str(caught.value))


@pytest.mark.parametrize(
    ("offset", "data", "text"),
    [
        (0, b"something", "is damaged, or is not a queue"),
        (8, struct.pack("<I", 7), "has another layout than version 1"),
        (52, struct.pack("<I", 0), "is damaged"),
        (72, struct.pack("<Q", 1 << 40), "is damaged"),
        (32, b"another boot 123", "is from before this machine was started again"),
    ],
)
def test_files_that_are_no_queue(name, tmp_path, offset, data, text):
    untorn.queue(4, name=name, directory=tmp_path).leave()
    gc.collect()
    path = tmp_path / f"{name}.queue"
    with open(path, "r+b") as file:
        file.seek(offset)
        file.write(data)
    with pytest.raises(untorn.FormatError, match=text):
        untorn.queue(4, name=name, directory=tmp_path)


def test_a_queue_of_a_newer_layout_is_kept_although_it_may_have_ended(name, tmp_path):
    untorn.queue(4, name=name, directory=tmp_path).close()
    gc.collect()
    with open(tmp_path / f"{name}.queue", "r+b") as file:
        file.seek(8)
        file.write(struct.pack("<I", 2))
    with pytest.raises(untorn.FormatError, match="has another layout than version 1"):
        untorn.queue(4, name=name, directory=tmp_path)


@pytest.mark.skipif(os.geteuid() != 0, reason="becoming another user needs root")
def test_another_users_process_is_refused(queue, name, tmp_path):
    named = untorn.queue(4, name=name, directory=tmp_path)
    with start(_open_as_another_user, pickle.dumps(queue), name, tmp_path) as child:
        anonymous, by_name = child.get()
    assert "and only for the user of the process that has it (this is user 65534)" in anonymous
    assert f"queue '{tmp_path / name}' cannot be opened for reading and writing: this user has no right to" in by_name
    named.unlink()


def _open_as_another_user(pipe, text, name, folder):
    os.setuid(65534)
    found = []
    for call in (lambda: pickle.loads(text).put(1), lambda: untorn.queue(4, name=name, directory=folder)):
        with pytest.raises((untorn.ChannelNotFoundError, PermissionError)) as caught:
            call()
        found.append(str(caught.value))
    pipe.put(found)


def test_a_short_file_is_no_queue(name, tmp_path):
    (tmp_path / f"{name}.queue").write_bytes(b"utqueue\n")
    with pytest.raises(untorn.FormatError, match="is not a queue"):
        untorn.queue(4, name=name, directory=tmp_path)


def test_damaged_words_are_errors_and_not_loops(queue):
    """A ring that names slots that do not exist, or words in no state of the protocol."""
    queue.put(1)
    ring_at = struct.unpack_from("<Q", os.pread(queue._side.fd, 136, 0), 104)[0]
    cells = struct.unpack_from("<I", os.pread(queue._side.fd, 136, 0), 60)[0]
    for cell in (1 << 18 | 5000, 7 << 18 | 0):
        os.pwrite(queue._side.fd, struct.pack("<Q", cell), ring_at)
        with pytest.raises(untorn.FormatError, match="damaged"):
            queue.get(timeout_s=0)
    assert cells == 64


def test_a_ring_of_later_rounds_is_an_error_and_not_a_loop():
    with pytest.raises(untorn.FormatError, match="damaged"), untorn.queue(4) as queue:
        ring_at = struct.unpack_from("<Q", os.pread(queue._side.fd, 136, 0), 104)[0]
        os.pwrite(queue._side.fd, struct.pack("<Q", 1000 << 18), ring_at)
        with pytest.raises(untorn.FormatError, match="damaged"):
            queue.put(1, timeout_s=0)


def test_a_change_of_the_pages_of_no_slot_is_over(queue):
    os.pwrite(queue._side.fd, struct.pack("<Q", 1 << 18 | 5000), 328)
    queue.put(np.arange(5000))
    assert (queue.get() == np.arange(5000)).all()


# -- small trees of one structure, which go through the core in one call

SMALL = {"a": 1, "b": [1.5, "x", None], "c": np.arange(3.0), "d": (True, b"yz"), "e": np.float32(2)}
NEAR = [
    SMALL | {"a": True},
    SMALL | {"a": 2**70},
    SMALL | {"a": -1.0},
    SMALL | {"b": (1.5, "x", None)},
    SMALL | {"b": [1.5, "xy", None]},
    SMALL | {"b": [1.5, "\ud800", None]},
    SMALL | {"b": [1.5, "x", 0]},
    SMALL | {"b": [1.5, "x"]},
    SMALL | {"c": np.arange(3)},
    SMALL | {"c": np.arange(4.0)},
    SMALL | {"c": np.arange(3.0).reshape(3, 1)},
    SMALL | {"c": np.arange(6.0)[::2]},
    SMALL | {"c": np.arange(3.0).astype(">f8")},
    SMALL | {"c": np.ma.masked_array(np.arange(3.0))},
    SMALL | {"d": (False, b"zy")},
    SMALL | {"d": [True, b"yz"]},
    SMALL | {"e": np.float64(2)},
    SMALL | {"e": 2.0},
    SMALL | {"f": 1},
    dict(reversed(SMALL.items())),
    OrderedDict(SMALL),
    {"a": 1},
    [SMALL],
    "text",
    None,
    b"",
]


def assert_equal(found, expected) -> None:
    assert type(found) is type(expected)
    if isinstance(expected, dict):
        assert list(found) == list(expected)
        for key in expected:
            assert_equal(found[key], expected[key])
    elif isinstance(expected, list | tuple):
        assert len(found) == len(expected)
        for one, other in zip(found, expected, strict=True):
            assert_equal(one, other)
    elif isinstance(expected, np.ndarray | np.generic):
        assert found.dtype == expected.dtype
        assert found.shape == expected.shape
        assert np.array_equal(found, expected)
    else:
        assert found == expected


@pytest.mark.parametrize("near", range(len(NEAR)))
def test_values_of_nearly_the_same_structure_come_out_as_they_are(queue, near):
    for value in (SMALL, SMALL, NEAR[near], NEAR[near], SMALL, NEAR[near]):
        queue.put(value)
        assert_equal(queue.get(), value)
    queue.put_many([SMALL, NEAR[near], SMALL])
    for value, found in zip([SMALL, NEAR[near], SMALL], queue.get_many(3), strict=True):
        assert_equal(found, value)
    assert queue.processes()[0].writing == 0


def test_a_full_or_closed_queue_is_that_for_known_structures_too(queue):
    queue.put(SMALL)
    queue.put(SMALL)
    assert len(queue.get_many(2)) == 2
    queue.put_many([SMALL] * 4)
    with pytest.raises(untorn.FullError):
        queue.put(SMALL, timeout_s=0)
    queue.close()
    with pytest.raises(untorn.ClosedError):
        queue.put(SMALL)
    assert len(list(queue)) == 4
    assert queue.processes()[0].writing == 0


def test_a_plan_must_be_one_tree():
    def plan(*nodes, nbytes=128):
        return untorn._core.TreePlan(list(nodes), b"{}", nbytes, np.ndarray)

    none = ("none", 0, 0, 0, None, None, None, (), b"")
    for nodes in ([], [none, none], [("list", 2, 0, 0, None, None, None, (), b""), none]):
        with pytest.raises(ValueError, match="TreePlan"):
            plan(*nodes)
    with pytest.raises(ValueError, match="outside the item"):
        plan(("int", 0, 124, 8, None, None, None, (), b""))
    with pytest.raises(ValueError, match="no known kind"):
        plan(("pickle", 0, 0, 0, None, None, None, (), b""))
