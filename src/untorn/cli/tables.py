"""Output of the commands: readable sizes and ages, tables, JSON, and a stdout that may be closed.

On a terminal a table fits its width and has colors; in a pipe it is complete and without colors. Text that comes from a
channel (names, keys, messages) passes through ``plain``, so that it cannot control the terminal.
"""

from __future__ import annotations

import errno
import io
import json
import os
import re
import signal
import sys
from collections.abc import Iterable, Sequence
from typing import Any, TextIO

from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

__all__ = ["age", "count", "facts", "grid", "json_line", "plain", "say", "size"]

#: the width of a table in a pipe, where lines may be of any length
_UNBOUNDED = 100_000
_GAP = 2
#: the width to which columns of text are narrowed, before other columns are left out
_LEAST = 16
#: the parts of a text between which it may be broken
_PARTS = re.compile(r"\s*[^\s\-_./]*[\s\-_./]?")
_CLOSED_STDOUT = 128 + signal.SIGPIPE


def size(nbytes: float) -> str:
    """Return a size with its unit, in powers of ten: ``512 B``, ``1.2 kB``, ``40.0 MB``."""
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if nbytes < 999.95 or unit == "TB":
            return f"{nbytes:,.0f} {unit}" if unit == "B" else f"{nbytes:,.1f} {unit}"
        nbytes /= 1000
    raise AssertionError


def age(seconds: float | None) -> str:
    """Return a duration with its unit: ``3 s``, ``5 min``, ``2 h``, ``4 d``; a dash for None."""
    if seconds is None:
        return "-"
    for unit, length, below in (("s", 1, 120), ("min", 60, 120), ("h", 3600, 48)):
        if seconds < length * below:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds / 86400:.0f} d"


def count(number: int, what: str) -> str:
    """Return a number with its noun: ``1 channel``, ``2 channels``."""
    return f"{number} {what}{'' if number == 1 else 's'}"


def plain(text: object) -> str:
    """Return the text on one line, with unprintable characters escaped as in Python."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in str(text))


def grid(
    columns: Sequence[str],
    rows: Iterable[Sequence[str | Text]],
    *,
    right: Iterable[str] = (),
    optional: Iterable[str] = (),
    width: int | None = None,
) -> Table:
    """Return a table without lines.

    Args:
        columns: the headings.
        rows: the rows, each with a cell per column.
        right: the columns that are aligned right, as numbers are.
        optional: the columns to leave out, in this order, if the table is too wide although its texts are wrapped.
        width: in characters; by default the terminal's width, or unlimited in a pipe.
    """
    cells = [[Text(cell) if isinstance(cell, str) else cell for cell in row] for row in rows]
    numbers, room = set(right), width_of_stdout() if width is None else width
    widest = [max([len(name), *(row[at].cell_len for row in cells)]) for at, name in enumerate(columns)]
    least = [
        widest[at] if name in numbers else max([len(name), *(_least(row[at]) for row in cells)])
        for at, name in enumerate(columns)
    ]
    shown = list(range(len(columns)))
    for name in optional:
        if sum(least[at] + _GAP for at in shown) - _GAP > room:
            shown.remove(columns.index(name))
    widths = _shrunk({at: widest[at] for at in shown}, least, room - _GAP * (len(shown) - 1))
    table = Table(box=None, pad_edge=False, padding=(0, _GAP, 0, 0), header_style="bold")
    for at in shown:
        number = columns[at] in numbers
        table.add_column(columns[at], justify="right" if number else "left", no_wrap=number, overflow="fold")
    for row in cells:
        table.add_row(*(_wrapped(row[at], widths[at]) for at in shown))
    return table


def _least(cell: Text) -> int:
    """Return the width to which a cell may shrink: that of its longest part, but at most a little."""
    if cell.no_wrap:
        return cell.cell_len
    return min(_LEAST, max((len(part.rstrip()) for part in _PARTS.findall(cell.plain)), default=0))


def _shrunk(widths: dict[int, int], least: Sequence[int], room: int) -> dict[int, int]:
    """Return widths that fit, of which the largest are made smaller first."""
    while sum(widths.values()) > room:
        most = max(widths, key=lambda at: (widths[at] > least[at], widths[at]))
        if widths[most] <= max(1, least[most]):
            break  # the terminal is too narrow for whole words
        widths[most] -= 1
    return widths


def _wrapped(cell: Text, width: int) -> Text:
    """Return the text on lines of this width, broken behind spaces and the separators of names, or else anywhere."""
    if cell.cell_len <= width or cell.no_wrap:
        return cell
    lines = [""]
    for part in _PARTS.findall(cell.plain):
        if lines[-1] and len(lines[-1]) + len(part.rstrip()) > width:
            lines.append("")
        lines[-1] += part
        while len(lines[-1].rstrip()) > width:
            lines[-1:] = [lines[-1][:width], lines[-1][width:]]
    return Text("\n".join(line.rstrip() for line in lines), style=cell.style)


def width_of_stdout() -> int:
    """Return the number of characters in a line."""
    out = _stdout()
    return Console(file=out).width if out.isatty() else _UNBOUNDED


def _stdout() -> TextIO:
    """Return stdout. Raises OSError if the shell closed it (``>&-``), as writing to it would."""
    if sys.stdout is None:
        raise OSError(errno.EBADF, "stdout is closed")
    return sys.stdout


def facts(pairs: Iterable[tuple[str, str | Text]]) -> Table:
    """Return a table with one line per pair of name and value."""
    table = Table.grid(padding=(0, 2, 0, 0))
    for name, what in pairs:
        table.add_row(Text(name, style="bold"), Text(what) if isinstance(what, str) else what)
    return table


def say(*parts: RenderableType) -> None:
    """Write to stdout: a str unchanged, anything else formatted for the terminal. If the reader of a pipe is gone, exit
    without a message, as programs do on SIGPIPE."""
    out = _stdout()
    if out.isatty():
        console, buffer = Console(file=out, highlight=False), None
    else:
        buffer = io.StringIO()
        console = Console(file=buffer, highlight=False, width=_UNBOUNDED, color_system=None)
    try:
        for part in parts:
            console.print(Text(part) if isinstance(part, str) else part, soft_wrap=isinstance(part, str))
        if buffer is not None:
            out.write("".join(line.rstrip() + "\n" for line in buffer.getvalue().removesuffix("\n").split("\n")))
        out.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), out.fileno())  # otherwise Python's flush at exit would fail
        raise SystemExit(_CLOSED_STDOUT) from None


def json_line(document: Any, *, indent: int | None = None) -> str:
    """Return a JSON document in ASCII only, so that it passes through every pipe."""
    return json.dumps(document, indent=indent, allow_nan=False)
