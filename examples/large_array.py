"""Read a large, changing array in several processes without a copy.

    python examples/large_array.py --megabytes 200 --readers 3

In each version all elements are equal, so a reader can check that a version is whole. Readers that are slower than the
publisher skip versions.
"""

from __future__ import annotations

import argparse
import multiprocessing
import time

import numpy as np

import untorn


def reader(array, results):
    whole = total = 0
    for snap in array:  # each newer version; ends when the publisher closes
        values = snap.value  # a read-only view of shared memory: nothing is copied
        whole, total = whole + bool((values == values[0]).all()), total + 1
    results.put((whole, total))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--megabytes", type=int, default=200)
    parser.add_argument("--readers", type=int, default=3)
    parser.add_argument("--versions", type=int, default=10)
    options = parser.parse_args()

    results = multiprocessing.Queue()
    with untorn.publish(np.zeros(options.megabytes * 125_000)) as array:
        readers = [
            multiprocessing.Process(target=reader, args=(array.subscriber(), results)) for _ in range(options.readers)
        ]
        for process in readers:
            process.start()
        for version in range(2, options.versions + 1):
            start = time.perf_counter()
            with array.edit() as numbers:  # the next version, written in place
                numbers[:] = version
            print(f"version {version} published in {1000 * (time.perf_counter() - start):.0f} ms")
    for _ in readers:
        whole, total = results.get(timeout=60)
        print(f"a reader took {total} snapshots; {whole} were whole")
    for process in readers:
        process.join()


if __name__ == "__main__":
    main()
