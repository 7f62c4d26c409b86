"""Measure the cost of a new version in which one small leaf of a large tree changes.

One leaf of 4 KB changes in a tree of 40 MB with 101 leaves. ``patch`` and ``edit(leaves=...)`` are compared with
``update`` of the whole tree, and with copying only the leaf.
"""

from __future__ import annotations

import numpy as np

import untorn
from benchmarks.measure import Row, interleaved, row, seconds

NAME = "patch"
QUESTION = "What does a new version cost if 4 KB of 40 MB change?"

TURNS = 200
WARM_UP = 6
UPDATE = "untorn: update(), all of it"


def run() -> list[Row]:
    tree = {f"layer{i}": np.ones(100_000, np.float32) for i in range(100)} | {"head": np.ones(1000, np.float32)}
    small, target = np.ones(1000, np.float32), np.zeros(1000, np.float32)
    updated, patched, edited = (untorn.publish(tree) for _ in range(3))

    def edit() -> None:
        with edited.edit(leaves=["head"]) as values:
            np.copyto(values["head"], small)

    calls = {
        UPDATE: lambda: updated.update(tree),
        "untorn: patch({'head': ...})": lambda: patched.patch({"head": small}),
        "untorn: edit(leaves=['head'])": edit,
        "copying the 4 KB alone": lambda: np.copyto(target, small),
    }
    times = interleaved(
        {what: lambda call=call: seconds(call) for what, call in calls.items()}, turns=TURNS, warm_up=WARM_UP
    )
    for publisher in (updated, patched, edited):
        publisher.close()
    rows = [row(UPDATE, times[UPDATE])]
    return rows + [row(what, each, to=times[UPDATE], ratio_to="update()") for what, each in list(times.items())[1:]]
