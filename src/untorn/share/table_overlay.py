"""The changes of a FrozenDict since its base, as they grow from version to version.

A publisher keeps them in private memory, so a version costs adding what changed and one copy.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from typing import Any, Self

from untorn import _core
from untorn.share.frozen_dict import REMOVED, Changes, FrozenDict, Packing, base_of, parts_of

__all__ = ["Overlay"]


class Overlay:
    """The changes of a FrozenDict. After an error, drop it.

    Attributes:
        length: the number of entries of the dictionary with these changes.
    """

    def __init__(self, builder: _core.FrozenBuilder, packing: Packing, *, allow_pickle: bool, length: int) -> None:
        self.length = length
        self._builder = builder
        self._packing = packing
        self._allow_pickle = allow_pickle

    @classmethod
    def begin(cls, table: FrozenDict[Any, Any], *, allow_pickle: bool) -> Self:
        """Return a overlay without changes, of a table that is whole by now."""
        builder = _core.FrozenBuilder(secrets.randbits(64))
        return cls(builder, Packing(allow_pickle), allow_pickle=allow_pickle, length=len(table))

    @classmethod
    def of(cls, table: FrozenDict[Any, Any], *, allow_pickle: bool) -> Self:
        """Return the overlay of a version: of its changes, or without changes if it is whole."""
        if base_of(table) is None:
            return cls.begin(table, allow_pickle=allow_pickle)
        packing = Packing(allow_pickle)
        packing.begin(table)
        builder = _core.FrozenBuilder(secrets.randbits(64), table)
        return cls(builder, packing, allow_pickle=allow_pickle, length=len(table))

    def add(self, changes: Mapping[Any, Any], base: FrozenDict[Any, Any] | None) -> None:
        """Add keys with new values or REMOVED. Without the base, ``length`` has to be set afterwards."""
        packing = self._packing
        self.length += self._builder.add(changes, packing.pack, packing.refuse, REMOVED, base)

    def changes(self) -> Changes:
        """Return what to publish. It must be gone before the next add()."""
        return Changes(parts_of(self._builder.parts(), self._packing, self.length), self._allow_pickle)
