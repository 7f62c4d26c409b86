"""Compare publishing 40 MB with a plain memcpy.

One process times ``np.copyto`` into preallocated arrays, ``update()``, ``edit(copy=False)`` filled with one
``np.copyto``, and publishing the same bytes with LMDB and iceoryx2. All contestants copy from the same source, and all
pages have been touched before.

Shared memory has pages of 4 KB, unless the administrator allows huge ones (transparent_hugepage/shmem_enabled), and
NumPy's own memory has huge pages. So the memcpy writes two arrays in shared memory in turns, as a publisher must leave
the version before as it is; the one into NumPy's memory is shown beside.
"""

from __future__ import annotations

import itertools
import mmap

import numpy as np

import untorn
from benchmarks import peers
from benchmarks.measure import Row, interleaved, row, seconds

NAME = "publish"
QUESTION = "How much slower than a plain memcpy is publishing 10 million float32 (40 MB)?"

ELEMENTS = 10_000_000
TURNS = 200
MEMCPY = "memcpy into shared memory"
PRIVATE = "memcpy into private memory"
WARM_UP = 6  # more than the slots that a publisher alternates between


def run() -> list[Row]:
    source = np.random.default_rng(0).random(ELEMENTS, dtype=np.float32)
    private = np.zeros_like(source)
    shared = [np.frombuffer(mmap.mmap(-1, source.nbytes), source.dtype) for _ in range(2)]
    turns = itertools.cycle(shared)
    updated, edited = untorn.publish(source), untorn.publish(source)

    def edit() -> None:
        with edited.edit(copy=False) as values:
            np.copyto(values, source)

    calls = {
        MEMCPY: lambda: np.copyto(next(turns), source),
        PRIVATE: lambda: np.copyto(private, source),
        "untorn: update()": lambda: updated.update(source),
        "untorn: edit(copy=False), filled": edit,
    }
    notes: dict[str, str] = {}
    writers = []
    absent = []
    for peer in peers.ALL[1:]:
        if peer.missing():
            absent.append(Row(f"{peer.NAME}: publish", None, note=peer.missing()))
            continue
        writer = peer.Writer(source.view(np.uint8))
        writers.append(writer)
        calls[f"{peer.NAME}: publish"] = lambda writer=writer: writer.publish(source.view(np.uint8))
        notes[f"{peer.NAME}: publish"] = peer.NOTE
    try:
        times = interleaved(
            {what: lambda call=call: seconds(call) for what, call in calls.items()},
            turns=TURNS,
            warm_up=WARM_UP,
        )
    finally:
        for closing in (updated, edited, *writers):
            closing.close()

    rows = [row(MEMCPY, times[MEMCPY])]
    for what in list(times)[1:]:
        aim = 1.1 if what.startswith("untorn") else None
        note = notes.get(what, "")
        rows.append(row(what, times[what], to=times[MEMCPY], ratio_to=MEMCPY, ratio_at_most=aim, note=note))
    return rows + absent
