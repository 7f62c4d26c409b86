"""A FrozenDict that is being changed, as the block of Publisher.edit() gets it. table_writer.py publishes it."""

from __future__ import annotations

from collections.abc import Iterator, MutableMapping
from typing import Any, Self

import numpy as np

from untorn.errors import ClosedError
from untorn.share.frozen_dict import REMOVED, FrozenDict

__all__ = ["TableEdit"]


class TableEdit(MutableMapping[Any, Any]):
    """A FrozenDict that is being changed, in the block of Publisher.edit(). It can be used as a dict.

    Nothing is written to shared memory before the block ends. Values are stored as they are then, so a list may be
    changed after it was set. Arrays that are read are views of the version before. Iteration is in the order of the
    FrozenDict, then of new keys.
    """

    def __init__(self, table: FrozenDict[Any, Any]) -> None:
        self._table: FrozenDict[Any, Any] | None = table
        self._changes: dict[Any, Any] = {}
        self._is_cleared = False  # then the table is as if it were empty
        self._first: Iterator[Any] = iter(())  # of keys, for popitem()

    def _open(self) -> FrozenDict[Any, Any]:
        table = self._table
        if table is None:
            raise ClosedError("this block of edit() has ended; begin another one to change the FrozenDict")
        return _EMPTY if self._is_cleared else table

    def changes(self) -> dict[Any, Any]:
        """Return the keys that changed, with their new values, or REMOVED."""
        self._open()
        return self._changes

    def replacement(self) -> dict[Any, Any] | None:
        """Return all entries if clear() was called; then they replace the table. None if it was not."""
        self._open()
        return self._changes if self._is_cleared else None

    def end(self) -> None:
        """End the block."""
        self._table, self._changes = None, {}

    def __getitem__(self, key: Any) -> Any:
        table = self._open()
        value = self._changes.get(key, _UNCHANGED)
        if value is _UNCHANGED:
            return table[key]
        if value is REMOVED:
            raise KeyError(key)
        return value

    def __setitem__(self, key: Any, value: Any) -> None:
        self._open()
        self._changes[key] = value

    def __delitem__(self, key: Any) -> None:
        if key not in self:
            raise KeyError(key)
        if key in self._open():  # True and 1.0 find 1, but are no keys themselves
            self._changes[int(key) if isinstance(key, bool | float | np.bool_) else key] = REMOVED
        else:
            del self._changes[key]

    def __contains__(self, key: object) -> bool:
        table = self._open()
        value = self._changes.get(key, _UNCHANGED)
        return key in table if value is _UNCHANGED else value is not REMOVED

    def __len__(self) -> int:
        table = self._open()
        more = (int(value is not REMOVED) - int(key in table) for key, value in self._changes.items())
        return len(table) + sum(more)

    def __iter__(self) -> Iterator[Any]:
        table, changes = self._open(), self._changes
        yield from (key for key in table if changes.get(key) is not REMOVED)
        yield from [key for key, value in changes.items() if value is not REMOVED and key not in table]

    def update(self, *others: Any, **more: Any) -> None:
        """Set all of these, as dict.update() does."""
        self._open()
        self._changes.update(*others, **more)

    def __ior__(self, other: Any) -> Self:
        self.update(other)
        return self

    def clear(self) -> None:
        """Remove all keys. The next version is written as a whole."""
        self._open()
        self._changes, self._is_cleared = {}, True

    def popitem(self) -> tuple[Any, Any]:
        """Remove a key, the first as a rule, and return it with its value. Raises KeyError if there is none."""
        for _ in range(2):  # the second time from the front: keys may have come back there
            for key in self._first:
                if key in self:
                    return key, self.pop(key)
            self._first = iter(self)
        raise KeyError("popitem: the FrozenDict is empty")

    def __repr__(self) -> str:
        table = self._table
        state = "ended" if table is None else f"{len(self._changes)} changes of {len(self._open()):,} entries"
        return f"<untorn edit of a FrozenDict, {state}>"


_UNCHANGED = object()
_EMPTY: FrozenDict[Any, Any] = FrozenDict()
