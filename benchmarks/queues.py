"""Measure queues in one process, and what a put costs while other processes sleep.

::

    round trip      one process puts an item and gets it: what the library itself costs, without waking anybody
    40 MB           put against a memcpy of the same bytes; get against that of 1 MB
    sleeping        put an item while several consumers sleep, which wakes one; and until that one has taken it

Between processes: benchmarks/queues_between.py. The peers do the same in turns; torch.multiprocessing sends tensors as
handles of shared memory.
"""

from __future__ import annotations

import importlib.util
import mmap
import multiprocessing
import os
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np

import untorn
from benchmarks.measure import Row, interleaved, row, seconds
from benchmarks.peers.queues import ITEMS, Iceoryx2, Peer, Ray, Zmq, peers, removed

NAME = "queues"
QUESTION = "What does an item cost that goes through a queue, and does that depend on its size, or on who waits?"

TURNS = 30
NUMBERS = {"100 B": 200, "small tree": 200, "10 KB": 100, "1 MB": 10}
SLEEPING = (1, 8, 64)


def _round_trip(each: Peer, item: Any, number: int) -> float:
    def once() -> None:
        each.put(item)
        each.get()

    return seconds(once, number)


def round_trips() -> Iterator[Row]:
    """Time a put and a get of each item through each queue."""
    for size, item in ITEMS.items():
        number = NUMBERS[size]
        contestants = {}
        made: dict[str, Peer] = {}
        makers = peers() | ({"Ray": Ray} if importlib.util.find_spec("ray") else {})
        for name, make in makers.items():
            if size == "1 MB" and name in ("SimpleQueue", "ZeroMQ"):
                continue  # a pipe is full before anybody reads it
            made[name] = each = make()
            if isinstance(each, Zmq | Iceoryx2):
                each.join("PULL", 1, 1)  # before anything is put
            contestants[name] = partial(_round_trip, each, item, 5 if name == "Ray" else number)
        if size == "10 KB":
            contestants.update(_tensors(number))
        times = interleaved(contestants, turns=TURNS, warm_up=2)
        for each in made.values():
            removed(each)
        carries = [name for name in times if name not in ("untorn", "torch.multiprocessing")]
        best = min(carries, key=lambda name: sum(times[name]))
        aims = {"100 B": ("faster-fifo", 1.0), "small tree": (best, 0.5)}
        to, most = aims.get(size, (best, None))
        to = to if to in times else best
        yield row(f"untorn, {size}", times["untorn"], to=times[to], ratio_to=to, ratio_at_most=most)
        for name in times:
            if name != "untorn":
                yield row(f"{name}, {size}", times[name], to=times["untorn"], ratio_to="untorn")


def _tensors(number: int) -> dict[str, Callable[[], float]]:
    if not importlib.util.find_spec("torch"):
        return {}
    import torch
    import torch.multiprocessing

    torch.set_num_threads(1)
    each, tensor = torch.multiprocessing.SimpleQueue(), torch.ones(1250, dtype=torch.float64)
    return {"torch.multiprocessing": partial(_round_trip, each, tensor, number)}


def large() -> Iterator[Row]:
    """Time put and get of 40 MB.

    Each turn ends with a copy elsewhere, so that neither the slot nor the target of the memcpy is in the caches: with a
    cache of 32 MB, a copy to where 40 MB were just written takes up to 0.15 less.
    """
    item, elsewhere = np.ones(5_000_000), np.empty(5_000_000)
    target = np.frombuffer(mmap.mmap(-1, item.nbytes))  # with the small pages of shared memory, as the slots
    small = np.ones(125_000)
    with untorn.queue(4) as each:
        got: dict[str, float] = {}

        def put_and_get(name: str, value: Any) -> float:
            took = seconds(lambda: each.put(value))
            np.copyto(elsewhere, item)
            got[name] = seconds(each.get)
            return took

        def memcpy() -> float:
            took = seconds(lambda: np.copyto(target, item))
            np.copyto(elsewhere, item)
            return took

        def get_of(name: str, value: Any) -> float:
            put_and_get(name, value)
            return got[name]

        times = interleaved(
            {
                "put": lambda: put_and_get("40 MB", item),
                "memcpy": memcpy,
                "get": lambda: get_of("40 MB", item),
                "get 1 MB": lambda: get_of("1 MB", small),
            },
            turns=TURNS,
            warm_up=3,
        )
    yield row(
        "put, 40 MB",
        times["put"],
        unit="ms",
        to=times["memcpy"],
        ratio_to="memcpy into shared memory",
        ratio_at_most=1.1,
    )
    yield row("get, 40 MB", times["get"], to=times["get 1 MB"], ratio_to="get, 1 MB", ratio_at_most=1.5)


# -- sleeping consumers


def _consume(items: untorn.Queue[int], back: untorn.Queue[tuple[int, float]], ready: Any) -> None:
    ready.release()
    for _ in items:
        taken_at = time.perf_counter()
        back.put((os.getpid(), taken_at))


class _Sleeping:
    """A queue at which some processes sleep."""

    def __init__(self, number: int) -> None:
        self._items = untorn.queue(number, max_processes=number + 1)
        self._back = untorn.queue(number, max_processes=number + 1)
        ready = multiprocessing.Semaphore(0)
        self._processes = [
            multiprocessing.Process(target=_consume, args=(self._items, self._back, ready), daemon=True)
            for _ in range(number)
        ]
        for process in self._processes:
            process.start()
        for _ in self._processes:
            ready.acquire()
        #: by consumer: the seconds from the put of its first item until that was taken
        self.first: dict[int, float] = {}
        self.until_taken = 0.0
        while len(self.first) < number:
            self.put()

    def put(self) -> float:
        """Return the seconds that a put takes, when all of them sleep again."""
        while sum(process.waits_for == "item" for process in self._items.processes()) < len(self._processes):
            time.sleep(0.001)
        start = time.perf_counter()
        self._items.put(1)
        took = time.perf_counter() - start
        pid, taken_at = self._back.get()
        self.until_taken = taken_at - start  # the clock is the machine's
        self.first.setdefault(pid, self.until_taken)
        return took

    def end(self) -> None:
        self._items.close()
        for process in self._processes:
            process.join()


def sleeping() -> Iterator[Row]:
    """Time a put while this number of consumers sleep, and until one has the item.

    The first item of a forked child has a row of its own: Python copies some 170 of its pages then, while 3 pages of
    the queue's memory are touched for the first time.
    """
    each = {number: _Sleeping(number) for number in SLEEPING}
    contestants: dict[str, Callable[[], float]] = {}
    taken: dict[str, list[float]] = {f"{number}": [] for number in SLEEPING}
    for number, many in each.items():

        def put(number: int = number, many: _Sleeping = many) -> float:
            took = many.put()
            taken[f"{number}"].append(many.until_taken)
            return took

        contestants[f"{number}"] = put
    times = interleaved(contestants, turns=2 * TURNS, warm_up=3)
    for many in each.values():
        many.end()
    for what, found in (("put", times), ("put until taken", taken)):
        for number in SLEEPING:
            text = f"{what}, {number} sleeping consumer{'s' * (number > 1)}"
            last = found[f"{number}"][-2 * TURNS :]
            yield row(text, last, to=found["1"][-2 * TURNS :], ratio_to="1 sleeping consumer")
    first = list(each[SLEEPING[-1]].first.values())
    yield row(f"put until taken, {SLEEPING[-1]} consumers, the first item of each", first)


def run() -> list[Row]:
    return [*round_trips(), *large(), *sleeping()]
