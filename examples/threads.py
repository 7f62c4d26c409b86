"""Read a changing configuration in several threads, through one subscriber and without a lock.

python examples/threads.py --threads 4 --seconds 1
"""

from __future__ import annotations

import argparse
import threading
import time

import untorn


def worker(settings, stop, mixed, counts):
    reads = 0
    while not stop.is_set():
        value = settings.snapshot().value  # the newest version, whole
        if value["limit"] != 10 * value["generation"]:
            mixed.append(value)
        reads += 1
    counts.append(reads)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=4)
    parser.add_argument("--seconds", type=float, default=1.0)
    options = parser.parse_args()

    stop, mixed, counts = threading.Event(), [], []
    with untorn.publish({"generation": 0, "limit": 0}) as publisher:
        settings = publisher.subscriber()
        threads = [
            threading.Thread(target=worker, args=(settings, stop, mixed, counts)) for _ in range(options.threads)
        ]
        for thread in threads:
            thread.start()
        end = time.monotonic() + options.seconds
        while time.monotonic() < end:
            generation = publisher.version
            publisher.update({"generation": generation, "limit": 10 * generation})
        stop.set()
        for thread in threads:
            thread.join()
        print(
            f"{sum(counts):,} reads of {publisher.version:,} versions by {options.threads} threads; {len(mixed)} mixed"
        )


if __name__ == "__main__":
    main()
