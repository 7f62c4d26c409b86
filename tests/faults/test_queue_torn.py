"""No item of a queue is torn, lost, doubled or out of order, in ten million (``-m soak``), while all processes hurry.

Every element of an item is its number, and its length follows from that. Items of each producer must reach each
consumer in the order in which they were put.
"""

from __future__ import annotations

import os
from multiprocessing.connection import wait

import numpy as np
import pytest

import untorn
from helpers import start

PRODUCERS, CONSUMERS = 2, 2
ITEMS = 20_000
SOAK_ITEMS = int(os.environ.get("UNTORN_QUEUE_ITEMS", "10_000_000"))
#: numbers in an item: most lie in a small place, a few have pages of their own, and slots change between the two
SIZES = (1, 3, 10, 30, 60, 2, 5, 20, 40, 100, 600)


def _produce(pipe, queue, first, count):
    whole = [np.empty(size, np.int64) for size in SIZES]
    pipe.get()
    for item in range(first, first + count):
        array = whole[item % len(SIZES)]
        array.fill(item)
        queue.put(array)
    pipe.put(count)


def _consume(pipe, queue, count):
    taken = total = 0
    last = [-1] * PRODUCERS
    pipe.get()
    for array in queue:
        item = int(array[0])
        assert len(array) == SIZES[item % len(SIZES)], f"item {item} has {len(array)} numbers"
        assert (array == item).all(), f"item {item} is torn: it has {np.unique(array)}"
        assert item > last[item // count], f"item {item} came behind {last[item // count]}"
        last[item // count] = item
        taken, total = taken + 1, total + item
    pipe.put((taken, total))


def none_is_torn(items):
    count = items // PRODUCERS
    with untorn.queue(100, nbytes=4 << 20, max_processes=8) as queue:
        producers = [start(_produce, queue, number * count, count) for number in range(PRODUCERS)]
        consumers = [start(_consume, queue, count) for _ in range(CONSUMERS)]
        for child in [*producers, *consumers]:
            child.put()
        putting = list(producers)
        while putting:  # for minutes, in a soak; a consumer that fails has a message, too
            ready = wait([child.pipe for child in (*putting, *consumers)])
            for child in [each for each in (*putting, *consumers) if each.pipe in ready]:
                assert child.get() == count
                assert child.join() == 0
                putting.remove(child)
        queue.close()
        taken, totals = zip(*[child.get() for child in consumers], strict=True)
        for child in consumers:
            assert child.join() == 0
        assert sum(taken) == PRODUCERS * count
        assert sum(totals) == sum(range(PRODUCERS * count))
        print(f"{sum(taken):,} items, none torn, lost, doubled or out of order")


def test_no_item_is_torn():
    none_is_torn(ITEMS)


@pytest.mark.soak
def test_no_item_of_many_is_torn():
    none_is_torn(SOAK_ITEMS)
