"""A curve of losses, drawn with braille characters between two axes."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

from rich.text import Text

__all__ = ["curve", "framed_curve"]

#: the axis is logarithmic if the largest loss is at least this many times the smallest
_LOG_FROM = 30.0
#: the bits of a braille character's dots, by row and column
_DOTS = ((0x01, 0x08), (0x02, 0x10), (0x04, 0x20), (0x40, 0x80))


def framed_curve(losses: Sequence[Sequence[Any]], width: int, height: int) -> list[Text]:
    """Return the curve with its axes: ``height`` lines, and one below them."""
    points = [(float(step), float(loss)) for step, loss in losses if loss is not None]
    if not points:
        return [Text("no losses yet", style="dim"), Text()]
    low, high = min(loss for _, loss in points), max(loss for _, loss in points)
    logarithmic = low > 0 and high / low >= _LOG_FROM
    middle = math.sqrt(low * high) if logarithmic else (low + high) / 2
    at = {0: high, height // 2: middle, height - 1: low} if high > low else {height // 2: low}
    numbers = [f"{at[row]:.4g}" if row in at else "" for row in range(height)]
    margin = max(len("loss"), *map(len, numbers))
    across = max(8, width - margin - 2)
    scaled = [(step, math.log(loss)) for step, loss in points] if logarithmic else points
    rows = curve(scaled, width=across, height=height)
    lines = [
        Text.assemble((f"{number:>{margin}} {'┤' if number else '│'}", "dim"), (row, "cyan"))
        for number, row in zip(numbers, rows, strict=True)
    ]
    first, last = f"{points[0][0]:,.0f}", f"step {points[-1][0]:,.0f}"
    kind = "logarithmic" if logarithmic else ""
    axis = f"{first}{kind:^{max(0, across - len(first) - len(last))}}{last}"
    lines.append(Text(f"{'loss':>{margin}}  {axis}", style="dim"))
    for line in lines:
        line.no_wrap, line.overflow = True, "crop"
    return lines


def curve(points: Sequence[tuple[float, float]], *, width: int, height: int) -> list[str]:
    """Return ``height`` strings of ``width`` braille characters (2 x 4 dots) that join the points by straight lines."""
    columns, rows = 2 * width - 1, 4 * height - 1
    (left, *_, right), heights = (points[0][0], points[-1][0]), [y for _, y in points]
    bottom, top = min(heights), max(heights)
    places = [(_scaled(x, left, right, columns, 0.0), rows - _scaled(y, bottom, top, rows, 0.5)) for x, y in points]
    cells = [[0] * width for _ in range(height)]
    for (x0, y0), (x1, y1) in itertools.pairwise([places[0], *places]):
        parts = max(abs(x1 - x0), abs(y1 - y0), 1)
        for part in range(parts + 1):
            x, y = round(x0 + (x1 - x0) * part / parts), round(y0 + (y1 - y0) * part / parts)
            cells[y // 4][x // 2] |= _DOTS[y % 4][x % 2]
    return ["".join(chr(0x2800 + cell) if cell else " " for cell in row).ljust(width) for row in cells]


def _scaled(value: float, low: float, high: float, size: int, otherwise: float) -> int:
    """Return the position of the value between low and high, from 0 to size."""
    return round(size * ((value - low) / (high - low) if high > low else otherwise))
