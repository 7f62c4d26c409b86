"""Small tables in HTML, which notebooks show in place of an object's repr. All text is escaped, and cut to a line."""

from __future__ import annotations

import html
import reprlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

__all__ = ["described", "facts", "outline", "size_text", "table"]

_CELL = "text-align: left; vertical-align: top"
#: the longest text of a cell, in characters
_WIDTH = 120
#: the number of rows of a table
MAX_ROWS = 12
_ONE_LINE = reprlib.Repr()
_ONE_LINE.maxstring = _ONE_LINE.maxother = 60
_PLAIN = (bool, int, float, complex, str, bytes, type(None))


def facts(title: str, rows: Mapping[str, object]) -> str:
    """Return a table of two columns, names and facts. None is left out."""
    shown = [(name, fact) for name, fact in rows.items() if fact is not None]
    return _table(title, [f"<tr>{_cell('th', name)}{_cell('td', fact)}</tr>" for name, fact in shown])


def table(title: str, columns: Sequence[str], rows: Iterable[Sequence[object]], *, total: int) -> str:
    """Return a table with these columns. ``total`` is the number of rows that there are, of which some may be here."""
    given = list(rows)
    lines = [f"<tr>{''.join(_cell('th', each) for each in columns)}</tr>"]
    lines += [f"<tr>{''.join(_cell('td', each) for each in row)}</tr>" for row in given]
    if total > len(given):
        lines.append(f'<tr><td colspan="{len(columns)}" style="{_CELL}">... {total - len(given):,} more</td></tr>')
    return _table(title, lines)


def outline(value: Any) -> str:
    """Return a table of the parts of a value, without those parts' parts: no large value is shown."""
    if isinstance(value, Mapping):
        parts, total = value.items(), len(value)
    elif isinstance(value, list | tuple):
        parts, total = dict(enumerate(value[:MAX_ROWS])).items(), len(value)
    else:
        return facts("", {"value": described(value)})
    rows = [(_ONE_LINE.repr(key), described(part)) for key, part in _first(parts)]
    return table("", ("part", "value"), rows, total=total)


def described(value: Any) -> str:
    """Return a plain value itself, of other values the type, the shape or the number of parts, in one line."""
    if isinstance(value, _PLAIN):
        return _ONE_LINE.repr(value)
    name = type(value).__name__
    shape, dtype = getattr(value, "shape", None), getattr(value, "dtype", None)
    if shape is not None and dtype is not None:
        return f"{name}, {dtype}, {' x '.join(map(str, shape)) or 'one number'}"
    try:
        return f"{name} of {len(value):,}"
    except TypeError:
        return name


def size_text(nbytes: int) -> str:
    """Return a number of bytes for people."""
    return f"{nbytes:,} bytes"


def _first(items: Iterable[Any]) -> list[Any]:
    return [item for _, item in zip(range(MAX_ROWS), items, strict=False)]


def _table(title: str, lines: Iterable[str]) -> str:
    caption = f'<caption style="{_CELL}"><b>{_text(title)}</b></caption>' if title else ""
    return f"<table>{caption}{''.join(lines)}</table>"


def _cell(tag: str, content: object) -> str:
    return f'<{tag} style="{_CELL}">{_text(content)}</{tag}>'


def _text(content: object) -> str:
    text = str(content)
    return html.escape(text if len(text) <= _WIDTH else f"{text[:_WIDTH]}...")
