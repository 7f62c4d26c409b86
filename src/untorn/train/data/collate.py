"""Combine items into a batch, as torch's default_collate does, but into NumPy arrays.

A tuple, a list or a dict of parts keeps its form. A number, an array or a tensor becomes a row of an array, and so does
a list of numbers, since datasets that are read from JSON or Arrow give vectors as lists.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from untorn import trees
from untorn.train.data.arrays import as_array, is_array, type_name

__all__ = ["as_batch", "collate"]

_NUMBERS = (bool, int, float, complex, np.generic)


def collate(items: list[Any], names: list[str]) -> Any:
    """Return a batch of these items, of which there is at least one. Raises TypeError or ValueError for items that do
    not fit together, which appear there by their ``names``."""
    node = trees.opened(items[0], trees.BATCH)
    if node is None or _is_row(items[0]):
        return _stacked(items, names)
    _check_alike(items, names)
    keys = [key for _, key in node.detail] if node.kind == "dict" else range(len(node.members))
    return node.make([collate([item[key] for item in items], [f"{name}[{key!r}]" for name in names]) for key in keys])


def as_batch(path: str, tree: Any) -> Any:
    """Return the result of a collate_fn with NumPy arrays in place of tensors. Other leaves stay unchanged, as do
    tensors that no array can be: of bfloat16, sparse ones."""
    return trees.map_with_path(_array_or_leaf, tree, at=path)


def _array_or_leaf(path: str, leaf: Any) -> Any:
    if not is_array(leaf):
        return leaf
    try:
        return as_array(path, leaf)
    except TypeError:
        if type(leaf).__module__.partition(".")[0] == "torch":
            return leaf
        raise


def _is_row(value: Any) -> bool:
    """Return whether the value is a list of numbers, or of such lists."""
    return isinstance(value, list) and len(value) > 0 and (isinstance(value[0], _NUMBERS) or _is_row(value[0]))


def _stacked(items: list[Any], names: list[str]) -> NDArray[Any]:
    rows = [_row(item, name) for item, name in zip(items, names, strict=True)]
    for row, name in zip(rows, names, strict=True):
        if row.shape != rows[0].shape or row.dtype != rows[0].dtype:
            raise ValueError(
                f"{name} is {_described(row)}, and {names[0]} is {_described(rows[0])}; expected items of one shape "
                "and dtype. Convert them in the dataset, or in a collate_fn: Examples(dataset, collate_fn)"
            )
    return np.stack(rows)


def _row(item: Any, name: str) -> NDArray[Any]:
    if isinstance(item, _NUMBERS):
        row = np.asarray(item)
    elif is_array(item):
        row = as_array(name, item)
    elif _is_row(item):
        try:
            row = np.asarray(item)
        except ValueError:
            raise ValueError(f"{name}: found lists of different lengths; pad them, or give a collate_fn") from None
    else:
        raise TypeError(
            f"{name}: expected a number, an array, a tensor, or a tuple, list or dict of them, found "
            f"{type_name(item)}; leave it out of the items, convert it to a number, or give a collate_fn: "
            "Examples(dataset, collate_fn)"
        )
    if row.dtype.kind in "OSU":
        raise TypeError(f"{name}: expected numbers, found {item!r:.100}")
    return row


def _check_alike(items: list[Any], names: list[str]) -> None:
    expected = _structure(items[0])
    for item, name in zip(items, names, strict=True):
        if _structure(item) != expected:
            raise ValueError(
                f"{name} is {_outline(item)}, and {names[0]} is {_outline(items[0])}; expected items of one structure"
            )


def _structure(item: Any) -> Any:
    if isinstance(item, dict):
        return sorted(map(repr, item))
    return (isinstance(item, list), len(item)) if isinstance(item, tuple | list) else None


def _outline(item: Any) -> str:
    if isinstance(item, dict):
        return f"a dict of {', '.join(map(repr, item)) or 'nothing'}"
    return f"a {type(item).__name__}" + (f" of {len(item)} parts" if isinstance(item, tuple | list) else "")


def _described(row: NDArray[Any]) -> str:
    return f"{row.dtype} of shape {row.shape}"
