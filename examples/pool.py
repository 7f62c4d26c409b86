"""Give a pool's tasks a large array to read: as an argument, through an initializer, and as an untorn Subscriber.

    argument      the array is pickled and copied for every task
    initializer   the array is copied once to every worker, before the first task; later changes do not reach it
    Subscriber    the array is in shared memory once; a task gets its address, and reads the newest version

Each way computes the same sums. The memory is the sum of the workers' largest PSS (a page that several processes share
is divided among them). Usage:

    python examples/pool.py --tasks 20 --megabytes 100
"""

from __future__ import annotations

import argparse
import functools
import multiprocessing
import os
import signal
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import resource_tracker
from pathlib import Path

import numpy as np

import untorn

WORKERS = 2


def add_up(array, part, parts):
    """Run one task. Return the sum of a part of the array, the worker's pid and its memory."""
    return array[part::parts].sum(), os.getpid(), memory_mb()


def memory_mb():
    """Return this process's memory in MB."""
    for line in Path("/proc/self/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) / 1024
    raise RuntimeError("/proc/self/smaps_rollup has no line that begins with Pss:")


# -- as an argument


def with_argument(array, tasks):
    return run_in_pool(functools.partial(add_up, array, parts=tasks), tasks)


# -- through an initializer, which leaves it in a global variable of the worker


def remember(array):
    global remembered  # noqa: PLW0603 (an initializer has no other place)
    remembered = array


def add_up_remembered(part, parts):
    return add_up(remembered, part, parts)


def with_initializer(array, tasks):
    return run_in_pool(functools.partial(add_up_remembered, parts=tasks), tasks, remember, (array,))


# -- as a Subscriber


def add_up_newest(subscriber, part, parts):
    with subscriber.snapshot() as snap:
        return add_up(snap.value, part, parts)


def with_subscriber(array, tasks):
    with untorn.publish(array) as publisher:
        return run_in_pool(functools.partial(add_up_newest, publisher.subscriber(), parts=tasks), tasks)


def run_in_pool(function, tasks, initializer=None, arguments=()):
    """Return the results of function(0), function(1), ... from new processes, which inherit nothing."""
    context = multiprocessing.get_context("spawn")
    resource_tracker.ensure_running()  # its first start would unblock Ctrl-C
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # inherited: only this process gets Ctrl-C
    with ProcessPoolExecutor(WORKERS, context, initializer, arguments) as pool:
        try:
            results = pool.map(function, range(tasks))
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
            return list(results)
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def positive(text):
    number = int(text)
    if number <= 0:
        raise argparse.ArgumentTypeError(f"expected more than 0, found {text}")
    return number


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tasks", type=positive, default=20, help="number of tasks for each way (default: 20)")
    parser.add_argument("--megabytes", type=positive, default=100, help="size of the array (default: 100)")
    options = parser.parse_args()

    array = np.random.default_rng(0).integers(100, size=options.megabytes * 2**20 // 8)
    print(f"{'passed as':16}{'seconds':>10}{'MB in workers':>16}{'sum':>16}", flush=True)
    for label, run in (
        ("argument", with_argument),
        ("initializer", with_initializer),
        ("Subscriber", with_subscriber),
    ):
        began = time.perf_counter()
        results = run(array, options.tasks)
        seconds = time.perf_counter() - began
        largest = {}
        for _, worker, memory in results:
            largest[worker] = max(memory, largest.get(worker, 0))
        total = sum(part for part, *_ in results)
        print(f"{label:16}{seconds:10.2f}{sum(largest.values()):16.0f}{total:16,}", flush=True)


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        print("interrupted")
