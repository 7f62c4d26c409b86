"""SIGKILL at random moments of processes that put into a queue, take from it, or do both through forks.

Each process writes down what it did in shared memory: a producer counts an item behind put(), a consumer notes an item
before finish() and counts it behind. So after a kill it is known, but for the one item that the dead process was busy
with, what must be true: every item that was put is finished exactly once, or is still there, and none is torn.
"""

from __future__ import annotations

import mmap
import os
import random
import time

import numpy as np
import pytest

import untorn
from helpers import descriptors, start, untorn_mappings

PRODUCERS, CONSUMERS = 2, 2
KILLS = 80
SOAK_KILLS = int(os.environ.get("UNTORN_QUEUE_KILLS", "10_000"))  # 20 minutes on a busy machine
LIFE = 1 << 15  # items of one life of a producer, at most
SIZES = (1, 20, 200, 2_000, 20_000)  # numbers in an item: small places, windows, and changes between the two


class Log:
    """What the processes write down, in memory that forked children share."""

    def __init__(self, kills: int) -> None:
        lives = kills + PRODUCERS + CONSUMERS
        self.finished = np.frombuffer(mmap.mmap(-1, lives * LIFE), np.uint8)
        #: by life of a producer, whose items are numbered from life * LIFE on: how many were put
        self.put = np.frombuffer(mmap.mmap(-1, lives * 8), np.int64)
        #: by life of a consumer: the item that it is busy with, or -1
        self.busy = np.frombuffer(mmap.mmap(-1, lives * 8), np.int64)
        self.busy[:] = -1


def payload(item: int) -> dict:
    return {"item": item, "x": np.full(SIZES[item % len(SIZES)], item, np.int64)}


def whole(value: dict) -> int:
    """Return the number of an item; fail unless it is one whole item."""
    item = value["item"]
    assert len(value["x"]) == SIZES[item % len(SIZES)]
    assert (value["x"] == item).all(), f"item {item} is torn"
    return item


def _produce(pipe, queue, log, life):
    pipe.put()
    for item in range(life * LIFE, (life + 1) * LIFE):
        if item % 7:
            queue.put(payload(item))
        else:
            with queue.reserve(like=payload(item)) as value:
                value["x"][:] = item
        log.put[life] += 1
    pipe.get()


def _consume(pipe, queue, log, life, seed):
    rng = random.Random(seed)
    pipe.put()
    held = []
    while True:
        try:
            with queue.take() as taken:
                if rng.random() < 0.1:
                    raise ZeroDivisionError
                item = whole(taken.value)
                if rng.random() < 0.3:
                    held.append(taken.value)
                log.busy[life] = item
                taken.finish()
                log.finished[item] += 1
                log.busy[life] = -1
        except ZeroDivisionError:
            pass
        except untorn.ClosedError:
            break
        while len(held) > rng.randrange(4):
            whole(held.pop(0))
    pipe.put("over")


def file_nbytes(queue) -> int:
    return os.fstat(queue._side.fd).st_blocks * 512


class Processes:
    """Producers and consumers, each replaced when it is killed."""

    def __init__(self, queue, rng, kills: int) -> None:
        self.queue, self.rng, self.log = queue, rng, Log(kills)
        self.producer_lives = self.consumer_lives = 0
        self.dead_consumers: list[int] = []
        self.producers = [self.producer() for _ in range(PRODUCERS)]
        self.consumers = [self.consumer() for _ in range(CONSUMERS)]

    def producer(self):
        life, self.producer_lives = self.producer_lives, self.producer_lives + 1
        child = start(_produce, self.queue, self.log, life)
        child.get()
        return child, life

    def consumer(self):
        life, self.consumer_lives = self.consumer_lives, self.consumer_lives + 1
        child = start(_consume, self.queue, self.log, life, self.rng.random())
        child.get()
        return child, life

    def kill_one(self) -> None:
        place = self.rng.randrange(PRODUCERS + CONSUMERS)
        time.sleep(self.rng.expovariate(1 / 0.003))  # when, not what: any moment will do
        if place < PRODUCERS:
            child, _ = self.producers[place]
            assert child.kill() == -9
            self.producers[place] = self.producer()
        else:
            child, life = self.consumers[place - PRODUCERS]
            assert child.kill() == -9
            self.dead_consumers.append(life)
            self.consumers[place - PRODUCERS] = self.consumer()


def kill_and_count(rng, kills: int) -> None:
    with untorn.queue(16, nbytes=2 << 20, max_processes=12) as queue:
        processes = Processes(queue, rng, kills)
        log = processes.log
        fds = mappings = memory = 0
        for number in range(kills):
            processes.kill_one()
            if number == kills // 2:
                fds, mappings = len(descriptors()), len(untorn_mappings())
                memory = file_nbytes(queue)
        used = (len(descriptors()), len(untorn_mappings()), file_nbytes(queue))
        assert used[0] <= fds
        assert used[1] <= mappings
        assert used[2] <= memory + (2 << 20)
        for child, _ in processes.producers:
            assert child.kill() == -9
        queue.close()
        for child, _ in processes.consumers:
            assert child.get() == "over"
            assert child.join() == 0
        with pytest.raises(untorn.ClosedError):
            queue.get(timeout_s=5)
        busy = {int(log.busy[life]) for life in processes.dead_consumers} - {-1}
        count = missing = 0
        for life in range(processes.producer_lives):
            begun, put = life * LIFE, int(log.put[life])
            finished = log.finished[begun : begun + put + 1]
            assert finished.max(initial=0) <= 1, "an item was finished twice"
            lost = {int(begun + index) for index in np.flatnonzero(finished[:put] == 0)}
            assert lost <= busy, f"items {sorted(lost - busy)[:5]} were put, and nobody had them"
            count, missing = count + put, missing + len(lost)
        assert len(queue.processes()) == 1
        assert queue._side.slots() == [slot for slot in queue._side.slots() if slot[1] == 0]  # all are free
        assert queue.nbytes <= 2 << 20
        print(
            f"{kills} kills, {count} items put by processes that lived to see it, {count - missing} counted exactly "
            f"once, {missing} finished by a process that was killed before it counted; descriptors, mappings and bytes "
            f"in the middle: {fds}, {mappings}, {memory:,}; at the end: {used[0]}, {used[1]}, {used[2]:,}"
        )
        assert count > 10 * kills


def test_every_item_is_finished_exactly_once(rng):
    kill_and_count(rng, KILLS)


@pytest.mark.soak
def test_every_item_is_finished_exactly_once_after_many_kills(rng):
    kill_and_count(rng, SOAK_KILLS)
