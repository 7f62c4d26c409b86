"""Count torn reads with multiprocessing.Array, its lock and a loop over the elements, and with untorn.

A writer flips the sign of a whole array as fast as it can; readers check that all elements have the same sign. Array
takes its lock for every element, so a loop can see half of a write; a snapshot is one whole version. Usage:

    python examples/torn.py --seconds 3 --elements 1000 --readers 2
"""

from __future__ import annotations

import argparse
import multiprocessing
import signal
import threading
import time

import numpy as np

import untorn

# Set by Ctrl-C, and checked between writes: a KeyboardInterrupt inside multiprocessing's locks would leave them
# locked. The readers inherit the handler, and end with this process.
interrupted = threading.Event()


def read_array(shared):
    return np.array([shared[i] for i in range(len(shared))])


def read_snapshot(weights):
    return weights.snapshot().value


def count_torn(read, shared, ready, seconds, results):
    """Read for the given time; send (reads, torn reads)."""
    ready.wait()
    deadline = time.monotonic() + seconds
    reads = torn = 0
    while time.monotonic() < deadline:
        positive = read(shared) > 0
        torn += bool(positive.any() and not positive.all())
        reads += 1
    results.put((reads, torn))


def measure(read, shared, write, options):
    """Write in this process while others read; return (reads, torn reads, writes)."""
    ready = multiprocessing.Barrier(options.readers + 1)
    results = multiprocessing.Queue()
    readers = [
        multiprocessing.Process(target=count_torn, args=(read, shared, ready, options.seconds, results), daemon=True)
        for _ in range(options.readers)
    ]
    for process in readers:
        process.start()
    ready.wait()
    writes = 0
    while any(process.is_alive() for process in readers):
        if interrupted.is_set():
            raise KeyboardInterrupt
        for _ in range(10):
            write(1.0 if writes % 2 else -1.0)
            writes += 1
    counts = [results.get(timeout=10) for _ in readers]
    for process in readers:
        process.join()
    return sum(reads for reads, _ in counts), sum(torn for _, torn in counts), writes


def with_array(options):
    shared = multiprocessing.Array("d", [1.0] * options.elements)

    def write(sign):
        for i in range(len(shared)):
            shared[i] = sign

    return measure(read_array, shared, write, options)


def with_untorn(options):
    with untorn.publish(np.ones(options.elements)) as weights:

        def write(sign):
            with weights.edit(copy=False) as values:
                values[:] = sign

        return measure(read_snapshot, weights.subscriber(), write, options)


def positive(kind):
    def parse(text):
        number = kind(text)
        if number <= 0:
            raise argparse.ArgumentTypeError(f"expected more than 0, found {text}")
        return number

    return parse


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=positive(float), default=3.0, help="duration of each run (default: 3)")
    parser.add_argument("--elements", type=positive(int), default=1000, help="size of the array (default: 1000)")
    parser.add_argument("--readers", type=positive(int), default=2, help="number of reader processes (default: 2)")
    options = parser.parse_args()

    signal.signal(signal.SIGINT, lambda *_: interrupted.set())
    print(f"{'':24}{'reads':>12}{'torn reads':>12}{'reads/s':>12}{'writes/s':>12}")
    for label, run in (("multiprocessing.Array", with_array), ("untorn", with_untorn)):
        reads, torn, writes = run(options)
        rates = f"{reads / options.seconds:12,.0f}{writes / options.seconds:12,.0f}"
        print(f"{label:24}{reads:12,}{torn:12,}{rates}", flush=True)


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        print("interrupted")
