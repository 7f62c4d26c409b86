"""Compare sharing a sparse matrix and a DataFrame with the tasks of a pool with pickling them for each task.

The pool of 2 processes exists already. A turn is one map over 2 tasks, each of which gets the whole value and computes
one column sum. For untorn a turn includes publishing the value again, as if it had changed.
"""

from __future__ import annotations

import multiprocessing
import time
from functools import partial

import numpy as np

import untorn
from benchmarks.measure import Row, interleaved, row

NAME = "tables"
QUESTION = "How fast is publishing sparse matrices and tables for a pool, compared with pickling them for each task?"

TASKS = 2
TURNS = 15


def values():
    """Return the values, about 50 MB each."""
    import pandas
    import pyarrow
    from scipy import sparse

    dice = np.random.default_rng(0)
    columns = {f"c{i}": dice.random(500_000) for i in range(12)}
    return {
        "scipy.sparse.csr_array": sparse.random_array((20_000, 20_000), density=0.01, format="csr", rng=dice),
        "pandas.DataFrame": pandas.DataFrame(columns | {"n": np.arange(500_000)}),
        "pyarrow.Table": pyarrow.table(columns),
    }


def _touch(value) -> float:
    if hasattr(value, "indptr"):
        return float(value.data[::1000].sum())
    column = value["c1"]
    return float(np.asarray(column)[::1000].sum())


def _shared(subscriber, task: int) -> float:
    return _touch(subscriber.snapshot().value)


def _sent(value, task: int) -> float:
    return _touch(value)


def run() -> list[Row]:
    rows = []
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        for name, value in values().items():
            with untorn.publish(value) as publisher:
                times = interleaved(
                    {
                        "untorn": partial(_turn_shared, pool, publisher, value),
                        "pickled": partial(_turn_sent, pool, value),
                    },
                    turns=TURNS,
                    warm_up=2,
                )
            rows.append(row(f"{name}: untorn, publish and read", times["untorn"], unit="ms"))
            rows.append(
                row(f"{name}: pickled to each task", times["pickled"], to=times["untorn"], ratio_to="untorn", unit="ms")
            )
    return rows


def _turn_shared(pool, publisher, value) -> float:
    start = time.perf_counter()
    publisher.update(value)
    pool.map(partial(_shared, publisher.subscriber()), range(TASKS), chunksize=1)
    return time.perf_counter() - start


def _turn_sent(pool, value) -> float:
    start = time.perf_counter()
    pool.map(partial(_sent, value), range(TASKS), chunksize=1)
    return time.perf_counter() - start
