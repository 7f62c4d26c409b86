"""Measure contestants in turns within one run (A, B, B, A, ...), and compute ratios per turn.

The speed of a shared machine changes from minute to minute, so the absolute times of two runs are hardly comparable.
Two times of one turn are milliseconds apart, so their ratio is meaningful, and its quartiles show the uncertainty.
"""

from __future__ import annotations

import os
import random
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

UNITS = {"s": 1.0, "ms": 1e3, "us": 1e6, "ns": 1e9}


@dataclass(frozen=True)
class Row:
    """One line of a result.

    Attributes:
        what: the timed operation.
        median: of all turns, in ``unit``; None if it could not be measured.
        unit: s, ms, us, ns, or the unit of a rate.
        ratio: median over turns of this time against that of ``ratio_to`` in the same turn.
        spread: the quartiles of that ratio.
        ratio_to: the row that it is compared with.
        aim: a text such as ``ratio at most 1.1``; empty if there is none.
        reached: whether the aim is reached.
        note: a remark for the reader, for example that a competitor is not installed.

    """

    what: str
    median: float | None
    unit: str = "us"
    ratio: float | None = None
    spread: tuple[float, float] | None = None
    ratio_to: str = ""
    aim: str = ""
    reached: bool | None = None
    note: str = ""


def seconds(call: Callable[[], object], number: int = 1) -> float:
    """Return the seconds per call, over ``number`` consecutive calls."""
    start = time.perf_counter()
    for _ in range(number):
        call()
    return (time.perf_counter() - start) / number


def interleaved(contestants: dict[str, Callable[[], float]], *, turns: int, warm_up: int) -> dict[str, list[float]]:
    """Run the contestants in turns; return the seconds of each contestant for each turn.

    Each is called ``warm_up`` times first, which touches its pages. A contestant returns the seconds that it took, so
    that it can exclude its preparation. The order is shuffled every turn (seed 0), so that no contestant always runs
    after the same neighbour, which may leave the caches cold.
    """
    for contestant in contestants.values():
        for _ in range(warm_up):
            contestant()
    times: dict[str, list[float]] = {name: [] for name in contestants}
    order = list(contestants)
    dice = random.Random(0)
    for _ in range(turns):
        dice.shuffle(order)
        for name in order:
            times[name].append(contestants[name]())
    return times


def ratios(of: Sequence[float], to: Sequence[float]) -> tuple[float, tuple[float, float]]:
    """Compute the median of the ratios of all turns, and their quartiles."""
    each = [a / b for a, b in zip(of, to, strict=True)]
    low, median, high = statistics.quantiles(each, n=4)
    return median, (low, high)


def row(
    what: str,
    times: Sequence[float],
    *,
    unit: str = "us",
    to: Sequence[float] | None = None,
    ratio_to: str = "",
    ratio_at_most: float | None = None,
    ratio_at_least: float | None = None,
    at_most: float | None = None,
    note: str = "",
) -> Row:
    """Create a Row of measured times (in seconds), with an aim for the time (``at_most``, in ``unit``) or the ratio."""
    median = statistics.median(times) * UNITS[unit]
    ratio, spread = ratios(times, to) if to is not None else (None, None)
    aim, reached = "", None
    if ratio_at_most is not None and ratio is not None:
        aim, reached = f"ratio at most {ratio_at_most:g}", ratio <= ratio_at_most
    elif ratio_at_least is not None and ratio is not None:
        aim, reached = f"ratio at least {ratio_at_least:g}", ratio >= ratio_at_least
    elif at_most is not None:
        aim, reached = f"at most {at_most:g} {unit}", median <= at_most
    return Row(what, median, unit, ratio, spread, ratio_to, aim, reached, note)


def table(rows: Sequence[Row]) -> str:
    """Format the rows as a Markdown table that is also readable in a terminal."""
    head = ("what", "median", "ratio (quartiles)", "to", "aim", "reached", "note")
    cells = [head, *(_cells(each) for each in rows)]
    columns = [i for i in range(len(head)) if i < 2 or any(line[i] for line in cells[1:])]
    widths = {i: max(len(line[i]) for line in cells) for i in columns}
    lines = ["| " + " | ".join(line[i].ljust(widths[i]) for i in columns) + " |" for line in cells]
    lines.insert(1, "| " + " | ".join("-" * widths[i] for i in columns) + " |")
    return "\n".join(lines)


def _cells(row: Row) -> tuple[str, ...]:
    ratio = "" if row.ratio is None else f"{row.ratio:.3g}"
    if row.spread is not None:
        ratio += f" ({row.spread[0]:.3g} to {row.spread[1]:.3g})"
    return (
        row.what,
        "-" if row.median is None else f"{row.median:,.4g} {row.unit}",
        ratio,
        row.ratio_to,
        row.aim,
        "" if row.reached is None else ("yes" if row.reached else "NO"),
        row.note,
    )


@contextmanager
def environment(variables: dict[str, str]) -> Iterator[None]:
    """Set environment variables for the multiprocessing children that are started in the block."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
