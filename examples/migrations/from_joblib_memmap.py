"""From joblib's memory maps to a channel: the tasks of a pool read one large array.

``before`` and ``after`` do the same work. Usage: python examples/migrations/from_joblib_memmap.py
"""

import sys
import tempfile
from pathlib import Path

import joblib
import numpy as np

import untorn


def add_up_before(table, row):
    return float(table[row].sum())


def before():
    with tempfile.TemporaryDirectory() as folder, joblib.Parallel(n_jobs=2) as parallel:
        joblib.dump(np.arange(4000.0).reshape(4, 1000), Path(folder) / "table")
        table = joblib.load(Path(folder) / "table", mmap_mode="r")
        first = parallel(joblib.delayed(add_up_before)(table, row) for row in range(4))
        joblib.dump(np.ones((4, 1000)), Path(folder) / "newer")  # another file: writing to this one would tear
        table = joblib.load(Path(folder) / "newer", mmap_mode="r")
        return first, parallel(joblib.delayed(add_up_before)(table, row) for row in range(4))


def add_up_after(reader, row):
    return float(reader.snapshot().value[row].sum())


def after():
    with untorn.publish(np.arange(4000.0).reshape(4, 1000)) as table, joblib.Parallel(n_jobs=2) as parallel:
        reader = table.subscriber()
        first = parallel(joblib.delayed(add_up_after)(reader, row) for row in range(4))
        table.update(np.ones((4, 1000)))  # tasks that run keep the version that they have
        return first, parallel(joblib.delayed(add_up_after)(reader, row) for row in range(4))


if __name__ == "__main__":
    for half in sys.argv[1:] or ["before", "after"]:
        print(f"{half}:", globals()[half]())
