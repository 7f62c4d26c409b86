"""Compare large plain containers with pickling them.

``update()`` with the same keys and with a key that is new in each turn, beside ``pickle.dumps`` (protocol 5) of the
same value, and the value of a new snapshot beside ``pickle.loads``. All in one process.
"""

from __future__ import annotations

import contextlib
import pickle
import time
from functools import partial

import untorn
from benchmarks.measure import Row, interleaved, row, seconds

NAME = "plain"
QUESTION = "What does a version with a plain dict or list of 100,000 values cost, compared with a pickle?"

TURNS, WARM_UP, COUNT = 15, 2, 100_000


def values():
    """Return the values, each with a function that gives it a part that it did not have."""
    return {
        "dict of str to int": ({f"key {i}": i for i in range(COUNT)}, lambda value, i: value.update({f"new {i}": i})),
        "list of float": ([i / 3 for i in range(COUNT)], lambda value, i: value.append(float(i))),
        "dict of str to records": (
            {f"key {i}": {"id": i, "name": f"name {i}", "tags": ["a", "b"]} for i in range(COUNT // 10)},
            lambda value, i: value.update({f"new {i}": {"id": i, "name": "", "tags": []}}),
        ),
    }


def run() -> list[Row]:
    rows = []
    for name, (value, add) in values().items():
        with untorn.publish(value) as publisher, contextlib.closing(publisher.subscriber()) as reader:
            times = interleaved(_contestants(value, add, publisher, reader), turns=TURNS, warm_up=WARM_UP)
        for what, base in (("update()", "dumps"), ("update(), a new key", "dumps"), ("new snapshot's value", "loads")):
            to, label = times[base], f"pickle.{base}, {name}"
            rows.append(row(f"{what}, {name}", times[what], unit="ms", to=to, ratio_to=label, ratio_at_most=1))
        rows += [row(f"pickle.{base}, {name}", times[base], unit="ms") for base in ("dumps", "loads")]
    return rows


def _contestants(value, add, publisher, reader):
    def update_more() -> float:
        add(value, publisher.version)
        return seconds(lambda: publisher.update(value))

    def read() -> float:
        publisher.update(value)
        start = time.perf_counter()
        found = reader.snapshot().value
        took = time.perf_counter() - start
        assert len(found) == len(value)
        return took

    def loads() -> float:
        pickled = pickle.dumps(value, 5)
        return seconds(lambda: pickle.loads(pickled))

    return {
        "update()": partial(seconds, lambda: publisher.update(value)),
        "update(), a new key": update_more,
        "new snapshot's value": read,
        "dumps": partial(seconds, lambda: pickle.dumps(value, 5)),
        "loads": loads,
    }
