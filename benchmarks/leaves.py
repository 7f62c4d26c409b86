"""Compare trees of small arrays with pickling them.

Publishing: ``update()`` with the structure of the version before, ``edit()`` of one array in place, beside
``pickle.dumps`` (protocol 5) of the same tree, which is only the first half of sending it. Reading: the value of a new
version, beside ``pickle.loads``. All in one process, with warm caches; each turn is the mean of many calls, except
for reading, where each call needs a version of its own.
"""

from __future__ import annotations

import contextlib
import pickle
import time
from functools import partial

import numpy as np

import untorn
from benchmarks.measure import Row, interleaved, row, seconds

NAME = "leaves"
QUESTION = "What does a version of many small arrays cost, compared with a pickle?"

TURNS, CALLS, READS, WARM_UP = 60, 100, 20, 2
TREES = {
    "1 leaf": {"w": np.zeros(8, np.float32)},
    "40 leaves": {f"layer{i}": {"w": np.zeros((8, 8), np.float32), "b": np.zeros(8, np.float32)} for i in range(20)},
}
#: microseconds for one leaf and for forty
AIMS_US = {"update()": (2.5, 15), "edit()": (6, None), "value of a new version": (None, 6)}


def run() -> list[Row]:
    with contextlib.ExitStack() as stack:
        calls = {}
        for size, tree in TREES.items():
            publisher = stack.enter_context(untorn.publish(tree))
            calls |= _contestants(size, tree, publisher, publisher.subscriber())
        times = interleaved(calls, turns=TURNS, warm_up=WARM_UP)
    rows = []
    for what, (one_us, forty_us) in AIMS_US.items():
        for size, aim_us in zip(TREES, (one_us, forty_us), strict=True):
            base = f"pickle.{'loads' if 'value' in what else 'dumps'}, {size}"
            found = times[f"{what}, {size}"]
            rows.append(row(f"{what}, {size}", found, to=times[base], ratio_to=base))
            if aim_us is not None:
                rows.append(row(f"{what}, {size}", found, at_most=aim_us))
    return rows + [row(name, times[name]) for name in times if name.startswith("pickle")]


def _contestants(size, tree, publisher, reader):
    def edit() -> None:
        with publisher.edit() as params:
            next(iter(params.values()))

    def read() -> float:
        took = 0.0
        for _ in range(READS):
            publisher.update(tree)
            start = time.perf_counter()
            value = reader.snapshot().value
            took += time.perf_counter() - start
            del value
        return took / READS

    pickled = pickle.dumps(tree, 5)
    return {
        f"update(), {size}": partial(seconds, lambda: publisher.update(tree), CALLS),
        f"edit(), {size}": partial(seconds, edit, CALLS),
        f"value of a new version, {size}": read,
        f"pickle.dumps, {size}": partial(seconds, lambda: pickle.dumps(tree, 5), CALLS),
        f"pickle.loads, {size}": partial(seconds, lambda: pickle.loads(pickled), CALLS),
    }
