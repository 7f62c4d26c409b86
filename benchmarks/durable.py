"""Measure the cost of durable=True.

The benchmark publishes versions of 1 KB, 1 MB and 16 MB, and a patch of one number, in a channel on a disk, with and
without durable, and compares them with the flush of one changed byte. The disk is that of the temporary directory;
TMPDIR selects another. On a tmpfs a flush does nothing.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from pathlib import Path

import numpy as np

import untorn
from benchmarks.measure import Row, interleaved, row, seconds

NAME = "durable"
QUESTION = "What does it cost to flush each version to the disk?"

TURNS = 50
WARM_UP = 6
FLUSH = "fdatasync of one changed byte"


def run() -> list[Row]:
    rows = []
    for size, words in {"1 KB": 1 << 7, "1 MB": 1 << 17, "16 MB": 1 << 21}.items():
        with tempfile.TemporaryDirectory() as folder:
            rows += _compare(size, np.ones(words), Path(folder))
    return rows


def _compare(size: str, values: np.ndarray, folder: Path) -> list[Row]:
    with contextlib.ExitStack() as stack:
        plain, durable, patched = (
            stack.enter_context(untorn.publish({"x": values, "n": 0}, name=name, directory=folder, durable=durable))
            for name, durable in (("plain", False), ("durable", True), ("patched", True))
        )
        file = stack.enter_context(open(folder / "byte", "wb", buffering=0))

        def flush() -> None:
            file.write(b"x")
            os.fdatasync(file.fileno())

        calls = {
            FLUSH: flush,
            f"update() of {size}": lambda: plain.update({"x": values, "n": 1}),
            f"update() of {size}, durable": lambda: durable.update({"x": values, "n": 1}),
            f"patch() of a number beside {size}, durable": lambda: patched.patch({"n": 2}),
        }
        times = interleaved(
            {what: lambda call=call: seconds(call) for what, call in calls.items()}, turns=TURNS, warm_up=WARM_UP
        )
    first = [row(FLUSH, times.pop(FLUSH), unit="ms")]
    return first + [row(what, each, unit="ms") for what, each in times.items()]
