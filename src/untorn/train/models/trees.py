"""Functions on trees of dicts, lists, tuples and named tuples."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["mapped", "take_examples"]


def take_examples(data: Any, indices: NDArray[np.int64]) -> Any:
    """The examples of these indices from every array of a tree of arrays; copies."""
    return mapped(data, lambda array: array.take(indices, axis=0))


def mapped(tree: Any, function: Callable[[Any], Any]) -> Any:
    """The same tree of dicts, lists, tuples and named tuples with this done to every leaf."""
    if isinstance(tree, dict):
        return {key: mapped(part, function) for key, part in tree.items()}
    if isinstance(tree, tuple) and hasattr(tree, "_fields"):
        return type(tree)(*(mapped(part, function) for part in tree))
    if isinstance(tree, tuple | list):
        return type(tree)(mapped(part, function) for part in tree)
    return function(tree)
