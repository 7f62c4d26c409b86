"""Measure the time that a reader needs to get the newest version as a usable array.

::

    this process: publishes  ── "now" (pipe) ──>  reader process: times its read
                             <── seconds (pipe) ──

Unchanged version: the mean of many consecutive calls per turn. New version: a single call right after a version was
published, with cold caches, and including the 0.05 us of the clock. The timed call returns a NumPy array over shared
memory (``snapshot().value``); for untorn ``snapshot()`` is also timed by itself. The competitors in peers/ do the same
in turns. All pages have been touched before.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import time
from functools import partial
from multiprocessing.connection import Connection

import numpy as np

from benchmarks import peers
from benchmarks.measure import Row, interleaved, row, seconds

NAME = "snapshot"
QUESTION = "How long does a reader take to get the newest version, unchanged or new, and does it depend on the size?"

SIZES = {"1 KB": 1_000, "40 MB": 40_000_000}
CALLS = 2000
TURNS = 120
WARM_UP = 8
AIM_US = {"unchanged": 1.0, "new": 10.0}


def reader(pipe: Connection, addresses: dict[tuple[str, str], object]) -> None:
    """Run the reader process: answer ("unchanged" or "new", channel, with or without .value) with seconds."""
    readers, views = peers.attach(pipe, addresses)
    while (task := pipe.recv()) is not None:
        state, key, usable = task
        read = readers[key].read if usable else readers[key].subscriber.snapshot
        if state == "unchanged":
            views.pop(key, None)
            held = read()  # as in a loop that keeps the version that it works on
            took = seconds(read, CALLS)
            views[key] = held
        else:
            start = time.perf_counter()
            held = read()
            took = time.perf_counter() - start
            views[key] = held  # and releases the version before
        del held
        pipe.send(took)
    views.clear()
    for each in readers.values():
        each.close()


def run() -> list[Row]:
    there = [peer for peer in peers.ALL if not peer.missing()]
    with contextlib.ExitStack() as stack:
        arrays = {size: np.ones(nbytes, np.uint8) for size, nbytes in SIZES.items()}
        writers = {}
        for peer in there:
            for size, array in arrays.items():
                writers[peer.NAME, size] = peer.Writer(array)
                stack.callback(writers[peer.NAME, size].close)
        times = _measure(writers, arrays)

    rows = []
    for state, aim_us in AIM_US.items():
        for size in SIZES:
            base = times[state, ("untorn", size), True]
            rows.append(
                row(
                    f"untorn: snapshot(), {state}, {size}",
                    times[state, ("untorn", size), False],
                    at_most=aim_us,
                )
            )
            rows.append(row(f"untorn: snapshot().value, {state}, {size}", base, at_most=aim_us))
            for peer in there[1:]:
                each = times[state, (peer.NAME, size), True]
                what = f"{peer.NAME}: {state}, {size}"
                rows.append(row(what, each, to=base, ratio_to="snapshot().value", note=peer.NOTE))
    return rows + [Row(peer.NAME, None, note=peer.missing()) for peer in peers.ALL if peer.missing()]


def _measure(writers, arrays):
    """Return the seconds per turn of each (state, (peer, size), usable)."""
    # spawn: LMDB does not allow the same environment on both sides of a fork
    context = multiprocessing.get_context("spawn")
    pipe, theirs = context.Pipe()
    process = context.Process(
        target=reader, args=(theirs, {key: writer.address for key, writer in writers.items()}), daemon=True
    )
    process.start()
    theirs.close()  # so that the death of the reader is an EOFError here
    pipe.recv()  # the reader is attached
    for (_, size), writer in writers.items():
        writer.publish(arrays[size])  # iceoryx2 gives nothing to a reader before the next send
    pipe.send("published")

    def turn(state, key, usable):
        if state == "new":
            writers[key].publish(arrays[key[1]])
        pipe.send((state, key, usable))
        return pipe.recv()

    contestants = {
        (state, key, usable): partial(turn, state, key, usable)
        for state in AIM_US
        for key in writers
        for usable in (True, False)
        if usable or key[0] == "untorn"
    }
    times = interleaved(contestants, turns=TURNS, warm_up=WARM_UP)
    pipe.send(None)
    process.join()
    return times
