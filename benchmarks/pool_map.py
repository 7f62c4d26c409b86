"""Compare Pool.map over 400 MB of read-only data as an argument, through an initializer, and as a Subscriber.

A pool of 2 spawned processes runs 16 tasks; each sums a part of the array. The time includes creating the pool, passing
the data, and the tasks. An argument is pickled for each task, the argument of an initializer once per process. A
Subscriber attaches once per process. untorn's time includes publishing.
"""

from __future__ import annotations

import multiprocessing
import time
from functools import partial

import numpy as np

import untorn
from benchmarks.measure import Row, interleaved, row

NAME = "pool_map"
QUESTION = "How long does Pool.map over a 400 MB read-only array take, for different ways to pass the array?"

ELEMENTS = 50_000_000
TASKS = 16
TURNS = 3

_global: np.ndarray | None = None


def _part(values, task: int) -> float:
    return float(values[task :: TASKS * 64].sum())


def _from_argument(pair) -> float:
    values, task = pair
    return _part(values, task)


def _initialize(values) -> None:
    global _global  # noqa: PLW0603 (initializers are used in this way)
    _global = values


def _from_global(task: int) -> float:
    return _part(_global, task)


def _from_subscriber(subscriber, task: int) -> float:
    with subscriber.snapshot() as snapshot:
        return _part(snapshot.value, task)


def run() -> list[Row]:
    values = np.ones(ELEMENTS)
    context = multiprocessing.get_context("spawn")

    def by_argument() -> float:
        start = time.perf_counter()
        with context.Pool(2) as pool:
            pool.map(_from_argument, [(values, task) for task in range(TASKS)], chunksize=1)
        return time.perf_counter() - start

    def by_initializer() -> float:
        start = time.perf_counter()
        with context.Pool(2, _initialize, (values,)) as pool:
            pool.map(_from_global, range(TASKS), chunksize=1)
        return time.perf_counter() - start

    def by_subscriber() -> float:
        start = time.perf_counter()
        with untorn.publish(values) as publisher, context.Pool(2) as pool:
            pool.map(partial(_from_subscriber, publisher.subscriber()), range(TASKS), chunksize=1)
        return time.perf_counter() - start

    def nothing() -> float:
        start = time.perf_counter()
        with context.Pool(2) as pool:
            pool.map(abs, range(TASKS), chunksize=1)
        return time.perf_counter() - start

    contestants = {
        "untorn: a Subscriber": by_subscriber,
        "an initializer": by_initializer,
        "an argument of each task": by_argument,
        "the pool alone, without data": nothing,
    }
    times = interleaved(contestants, turns=TURNS, warm_up=1)
    base = times["untorn: a Subscriber"]
    rows = [row("untorn: a Subscriber", base, unit="s")]
    return rows + [row(what, each, to=base, ratio_to="untorn", unit="s") for what, each in list(times.items())[1:]]
