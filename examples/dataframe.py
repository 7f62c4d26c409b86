"""Replace a DataFrame while other processes query it.

python examples/dataframe.py --rows 500000
"""

from __future__ import annotations

import argparse
import multiprocessing

import numpy as np
import pandas as pd

import untorn


def report(table, versions, results):
    """Send the mean by city of each version, computed on a whole table."""
    seen = 0
    for _ in range(versions):
        with table.snapshot(newer_than=seen, timeout_s=60) as snap:
            seen, frame = snap.version, snap.value
            means = frame.groupby("city", observed=True)["temperature"].mean().round(1)
            results.put((seen, means.to_dict()))


def measurements(rows, day):
    dice = np.random.default_rng(day)
    cities = pd.Categorical.from_codes(dice.integers(3, size=rows), ["Athens", "Oslo", "Quito"])
    times = pd.date_range("2026-01-01", periods=rows, freq="s") + pd.Timedelta(days=day)
    return pd.DataFrame({"time": times, "city": cities, "temperature": dice.normal(10 + day, 5, rows)})


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=500_000)
    parser.add_argument("--days", type=int, default=3)
    options = parser.parse_args()

    results = multiprocessing.Queue()
    with untorn.publish(measurements(options.rows, 0)) as table:
        process = multiprocessing.Process(target=report, args=(table.subscriber(), options.days, results))
        process.start()
        for day in range(1, options.days + 1):
            version, means = results.get(timeout=60)
            print(f"version {version}: {means}")
            if day < options.days:
                table.update(measurements(options.rows, day))
        process.join()


if __name__ == "__main__":
    main()
