"""The data of a fit: a tree of arrays with one example per row, and what is wrong with it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["check_data", "chunks"]


def check_data(what: str, data: Any) -> int:
    """The number of examples in a tuple, list, dict or single array. Raises TypeError or ValueError saying which part
    does not fit."""
    arrays = list(_arrays(what, data))
    if not arrays:
        raise ValueError(f"{what}: no arrays in it; expected arrays with one example per row, such as (x, y)")
    for path, array in arrays:
        if array.ndim == 0:
            raise ValueError(f"{path}: a single number; expected an array with one example per row")
    examples = len(arrays[0][1])
    for path, array in arrays[1:]:
        if len(array) != examples:
            raise ValueError(f"{path} has {len(array):,} examples and {arrays[0][0]} has {examples:,}")
    if examples == 0:
        raise ValueError(f"{what}: no examples in it")
    return examples


def _arrays(path: str, data: Any) -> Iterator[tuple[str, NDArray[Any]]]:
    if isinstance(data, np.ndarray):
        yield path, data
    elif isinstance(data, dict):
        for key, part in data.items():
            yield from _arrays(f"{path}[{key!r}]", part)
    elif isinstance(data, tuple | list):
        for index, part in enumerate(data):
            yield from _arrays(f"{path}[{index}]", part)
    else:
        raise TypeError(
            f"{path}: expected a NumPy array, or a tuple, list or dict of them, found "
            f"{type(data).__module__}.{type(data).__qualname__}; np.asarray(...) may convert it"
        )


def chunks(examples: int, size: int) -> Iterator[NDArray[np.int64]]:
    """Indices 0 to examples, ``size`` at a time."""
    for start in range(0, examples, size):
        yield np.arange(start, min(examples, start + size))
