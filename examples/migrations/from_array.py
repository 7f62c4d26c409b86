"""From multiprocessing.Array to a channel: one process moves a point, another one follows it.

``before`` and ``after`` do the same work. Usage: python examples/migrations/from_array.py
"""

import multiprocessing
import sys
import time

import numpy as np

import untorn

STEPS = 100


def follow_array(shared, seen):
    """Look at the point until it has arrived. Without the lock, its coordinates may be of two different steps."""
    while True:
        with shared.get_lock():
            point = list(shared)
        if point[0] == STEPS:
            seen.put(point)
            return
        time.sleep(0.001)  # there is no way to wait for a change


def before():
    shared, seen = multiprocessing.Array("d", 3), multiprocessing.SimpleQueue()
    process = multiprocessing.Process(target=follow_array, args=(shared, seen))
    process.start()
    for step in range(1, STEPS + 1):
        with shared.get_lock():  # the reader waits meanwhile, for ever if this process is killed here
            shared[:] = [step, 2 * step, 3 * step]
    process.join()
    return seen.get()


def follow_channel(reader, seen):
    for snap in reader:  # waits for the next version
        if snap.value[0] == STEPS:
            seen.put(snap.value.tolist())
            break


def after():
    seen = multiprocessing.SimpleQueue()
    with untorn.publish(np.zeros(3)) as point:
        process = multiprocessing.Process(target=follow_channel, args=(point.subscriber(), seen))
        process.start()
        for step in range(1, STEPS + 1):
            with point.edit() as xyz:
                xyz[:] = [step, 2 * step, 3 * step]
        process.join()
    return seen.get()


if __name__ == "__main__":
    for half in sys.argv[1:] or ["before", "after"]:
        print(f"{half}:", globals()[half]())
