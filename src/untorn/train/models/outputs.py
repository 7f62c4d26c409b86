"""The predictions of a model, chunk by chunk: an array with a row per example, or a dict or tuple of such, joined.

A dict or tuple, even nested, is flattened to its arrays; all chunks have the same form. A worker writes the arrays of a
chunk one after the other to its buffer, each at the position that it has for a chunk of full size.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from untorn import trees

__all__ = ["Form", "flattened"]

_ALIGNMENT = 64
#: the containers of an answer; a list is an array here
_KINDS = trees.BATCH - {"list"}


def flattened(answer: Any) -> tuple[list[tuple[str, Any]], Any]:
    """Return the parts of an answer with their names, and its tree with a number for each part. None is no part."""
    parts: list[tuple[str, Any]] = []

    def number(name: str, part: Any) -> int | None:
        if part is None and name:
            return None
        parts.append((name, part))
        return len(parts) - 1

    form = trees.map_with_path(number, answer, kinds=_KINDS)
    return parts, form


@dataclass(frozen=True)
class Form:
    """The form of the first chunk: the tree of the parts' numbers; their names; shape and dtype of a row of each."""

    tree: Any
    names: tuple[str, ...]
    rows: tuple[tuple[tuple[int, ...], Any], ...]

    def checked(self, answer: Any, where: str) -> list[Any]:
        """Return the parts of another chunk's answer. Raises ValueError unless they are like the first's."""
        parts, tree = flattened(answer)
        if tree != self.tree:
            raise ValueError(
                f"predict: for the first examples the outputs were {_listed(self.names)}, for {where} they are "
                f"{_listed(name for name, _ in parts)}; expected the same for all"
            )
        for (name, part), (shape, dtype) in zip(parts, self.rows, strict=True):
            found = np.asarray(part)
            if (found.shape[1:], found.dtype) != (shape, dtype):
                raise ValueError(
                    f"predict: for the first examples each output{name and f' {name}'} was {dtype} of shape {shape}, "
                    f"for {where} it is {found.dtype} of shape {found.shape[1:]}; expected the same for all"
                )
        return [part for _, part in parts]

    def empty(self, rows: int) -> list[NDArray[Any]]:
        """Return arrays for the parts of ``rows`` examples."""
        return [np.empty((rows, *shape), dtype) for shape, dtype in self.rows]

    def nbytes(self, size: int) -> int:
        """Return the memory that the parts of a chunk of this size need."""
        return self._ends(size)[-1] if self.rows else 0

    def places(self, size: int, rows: int) -> Iterator[tuple[Any, tuple[int, ...], int]]:
        """Yield (dtype, shape, offset) of each part in such memory, for a chunk of ``rows`` rows."""
        for (shape, dtype), offset in zip(self.rows, [0, *self._ends(size)], strict=False):
            yield dtype, (rows, *shape), offset

    def _ends(self, size: int) -> list[int]:
        ends, at = [], 0
        for shape, dtype in self.rows:
            at += size * int(np.prod(shape, dtype=object)) * dtype.itemsize
            at += -at % _ALIGNMENT
            ends.append(at)
        return ends

    def built(self, parts: list[Any]) -> Any:
        """Return the answer that has these parts."""
        return trees.map(lambda number: None if number is None else parts[number], self.tree, kinds=_KINDS)


def _listed(names: Iterable[str]) -> str:
    return ", ".join(name or "an array" for name in names) or "nothing"
