"""From multiprocessing.shared_memory to a channel: another process adds up a table that it finds by name.

``before`` and ``after`` do the same work. Usage: python examples/migrations/from_shared_memory.py
"""

import multiprocessing
import os
import sys
from multiprocessing.shared_memory import SharedMemory

import numpy as np

import untorn

SHAPE, DTYPE = (1000, 100), np.float32
NAME = f"from-shared-memory-{os.getpid()}"


def add_up_before(name, sums):
    memory = SharedMemory(name)
    table = np.ndarray(SHAPE, DTYPE, memory.buf)  # shape and type are agreed upon elsewhere
    sums.put(float(table.sum()))  # somebody may write meanwhile
    del table  # or close() raises BufferError
    memory.close()


def before():
    sums = multiprocessing.SimpleQueue()
    memory = SharedMemory(NAME, create=True, size=int(np.prod(SHAPE)) * np.dtype(DTYPE).itemsize)
    try:
        table = np.ndarray(SHAPE, DTYPE, memory.buf)
        table[:] = 1
        process = multiprocessing.Process(target=add_up_before, args=(NAME, sums))
        process.start()
        process.join()
        del table
    finally:
        memory.close()
        memory.unlink()  # after the last process; a kill leaves the memory
    return sums.get()


def add_up_after(name, sums):
    sums.put(float(untorn.subscribe(name).snapshot().value.sum()))


def after():
    sums = multiprocessing.SimpleQueue()
    with untorn.publish(np.ones(SHAPE, DTYPE), name=NAME, keep=False):
        process = multiprocessing.Process(target=add_up_after, args=(NAME, sums))
        process.start()
        process.join()
    return sums.get()


if __name__ == "__main__":
    for half in sys.argv[1:] or ["before", "after"]:
        print(f"{half}:", globals()[half]())
