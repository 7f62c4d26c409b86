"""Look up keys of a large dictionary in many processes that share one copy of it.

python examples/dictionary.py --entries 1000000 --readers 4
"""

from __future__ import annotations

import argparse
import multiprocessing
import random
import time
from pathlib import Path

import untorn

LOOKUPS = 100_000


def private_megabytes():
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith("Private")) / 1000


def reader(prices, entries, seed, results):
    dice = random.Random(seed)
    keys = [f"article-{dice.randrange(2 * entries)}" for _ in range(LOOKUPS)]
    before = private_megabytes()
    table = prices.snapshot().value  # an untorn.FrozenDict: a Mapping over shared memory
    start = time.perf_counter()
    found = sum(key in table for key in keys)
    seconds = time.perf_counter() - start
    results.put((found / LOOKUPS, 1e9 * seconds / LOOKUPS, private_megabytes() - before))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--entries", type=int, default=1_000_000)
    parser.add_argument("--readers", type=int, default=4)
    options = parser.parse_args()

    start = time.perf_counter()
    table = untorn.FrozenDict((f"article-{i}", i % 1000 / 100) for i in range(options.entries))
    print(f"{len(table):,} entries, {table.nbytes / 1e6:.0f} MB, built in {time.perf_counter() - start:.2f} s")
    results = multiprocessing.Queue()
    with untorn.publish(table) as prices:
        readers = [
            multiprocessing.Process(target=reader, args=(prices.subscriber(), options.entries, seed, results))
            for seed in range(options.readers)
        ]
        for process in readers:
            process.start()
        for _ in readers:
            found, nanoseconds, megabytes = results.get(timeout=60)
            print(f"a reader found {found:.0%} of its keys, {nanoseconds:.0f} ns each; {max(0, megabytes):.1f} MB more")
        for process in readers:
            process.join()


if __name__ == "__main__":
    main()
