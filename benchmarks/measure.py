"""How the benchmarks measure: contestants take turns in one run (A, B, B, A, ...); ratios are taken per turn.

A shared machine changes its speed from minute to minute, so absolute times of two runs say little about each
other. Two times of one turn lie milliseconds apart: their ratio says something, and its quartiles say how much.
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
        what: what was timed.
        median: of all turns, in ``unit``; None if it could not be measured.
        unit: s, ms, us, ns, or that of a rate.
        ratio: median over turns of this time against that of ``ratio_to`` in the same turn.
        spread: the quartiles of that ratio.
        ratio_to: the row that it is compared with.
        aim: in words, for example ``ratio at most 1.1``; empty if there is none.
        reached: is the aim reached?
        note: what a reader has to know, for example that a competitor is not installed.

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
    """Seconds per call, over ``number`` calls in a row."""
    start = time.perf_counter()
    for _ in range(number):
        call()
    return (time.perf_counter() - start) / number


def interleaved(contestants: dict[str, Callable[[], float]], *, turns: int, warm_up: int) -> dict[str, list[float]]:
    """Let the contestants take turns; return the seconds of each for each turn.

    Each is called ``warm_up`` times first, which touches its pages. A contestant returns the seconds that it took,
    so that it can leave out what does not count. The order is shuffled every turn (seed 0): nobody always comes
    right after the same neighbour, who may leave the caches cold.
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
    """Compute the median of the ratios turn by turn, and their quartiles."""
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
    """Make a Row of measured times (in seconds), judged by ``at_most`` (in ``unit``) or by its ratio."""
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
    """Write the rows as a Markdown table that also reads well in a terminal."""
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
    """Set variables for processes of multiprocessing that are started inside."""
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
