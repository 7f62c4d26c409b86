"""Measure the memory of 8 processes that read one value of 400 MB.

Each spawned child reads the whole value. The result is the sum of the proportional set sizes of all children and of the
publisher's mapping of the channel: a page that n processes map counts 1/n for each, so the sum is the memory in use.
The memory of children that have loaded the same modules but read nothing is subtracted. For comparison, 2 children get
a pickled copy each; 8 would need four times that.
"""

from __future__ import annotations

import multiprocessing
import pickle
from pathlib import Path

import numpy as np

import untorn
from benchmarks.measure import Row

NAME = "memory"
QUESTION = "How much memory do 8 processes take that read one value of 400 MB, beyond their interpreters?"

NBYTES = 400_000_000
READERS = 8
COPIES = 2


def _reader(pipe, subscriber, pickled_nbytes) -> None:
    values = None
    if subscriber is not None:
        values = subscriber.snapshot().value["values"]
    elif pickled_nbytes:
        values = pickle.loads(pipe.recv_bytes())
    total = float(values.sum()) if values is not None else 0.0
    pipe.send(total)
    pipe.recv()


def _pss(pid: int) -> int:
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:"))


def _mapped_here() -> int:
    """Return this process's share of the channel's pages."""
    total, counting = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if "-" in line.split()[0]:
            counting = "untorn" in line
        elif counting and line.startswith("Pss:"):
            total += int(line.split()[1]) * 1024
    return total


def _measure(count: int, subscriber=None, pickled: bytes = b"") -> float:
    """Return the sum of the proportional set sizes of the children, in MB."""
    context = multiprocessing.get_context("spawn")
    children = []
    for _ in range(count):
        ours, theirs = context.Pipe()
        process = context.Process(target=_reader, args=(theirs, subscriber, len(pickled)))
        process.start()
        children.append((process, ours))
    for _, pipe in children:
        if pickled:
            pipe.send_bytes(pickled)
    for _, pipe in children:
        pipe.recv()
    total = sum(_pss(process.pid) for process, _ in children) + _mapped_here()
    for process, pipe in children:
        pipe.send(None)
        process.join()
    return total / 1e6


def run() -> list[Row]:
    values = np.ones(NBYTES // 8)
    publisher = untorn.publish({"values": values})
    pickled = pickle.dumps(values, protocol=5)
    del values
    with publisher:
        shared = _measure(READERS, publisher.subscriber())
    nothing = _measure(READERS)
    shared -= nothing
    copies = _measure(COPIES, pickled=pickled) - nothing * COPIES / READERS
    aim = "under 450 MB"
    return [
        Row(f"untorn: {READERS} processes, beyond their interpreters", shared, "MB", aim=aim, reached=shared < 450),
        Row(f"a pickled copy each: {COPIES} processes", copies, "MB", note=f"{READERS} would take 4 times that"),
        Row(f"the interpreters of {READERS} processes", nothing, "MB"),
    ]
