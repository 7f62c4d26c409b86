"""Batches that are dataclasses, or contain some, whose arrays have a row per example.

::

    Batch(x=tensor, y=tensor) ── record_of ──> [array, array], Form ── cut, sent as arrays ──> Form.make ──> Batch(...)

Only the arrays are cut and sent; the class is found by its name where the batch is made again, as pickle finds it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from untorn.share.lowlevel import class_at
from untorn.train.data.arrays import as_array, is_array
from untorn.trees import CONTAINERS, Spec, flatten, opened, unflatten

__all__ = ["Form", "record_of"]

_KINDS = CONTAINERS - {"odict"}


class Form(NamedTuple):
    """The form of a batch with dataclasses: its structure, and which of its leaves are tensors of torch."""

    spec: Spec
    tensors: tuple[bool, ...]

    def make(self, arrays: list[NDArray[Any]]) -> Any:
        """Return a batch of this form with these arrays; tensors have the same memory."""
        return unflatten(
            self.spec, [_tensor(a) if is_one else a for a, is_one in zip(arrays, self.tensors, strict=True)]
        )


def record_of(tree: Any) -> tuple[Form, list[NDArray[Any]]] | None:
    """Return the form and the arrays of a batch with dataclasses, if it can be cut: if all of its leaves are arrays or
    tensors, and have the same number of rows; else None."""
    found = list(_dataclasses_of(tree))
    if not found or not all(map(_is_plain, found)):
        return None
    spec, leaves = flatten(tree, kinds=_KINDS)
    if not leaves or not all(map(is_array, leaves)):
        return None
    try:
        arrays = [as_array("batch", leaf) for leaf in leaves]
    except TypeError:  # such as a tensor of bfloat16
        return None
    if any(array.ndim == 0 for array in arrays) or len({len(array) for array in arrays}) != 1 or not len(arrays[0]):
        return None
    return Form(spec, tuple(not isinstance(leaf, np.ndarray) and _is_tensor(leaf) for leaf in leaves)), arrays


def _dataclasses_of(tree: Any) -> Iterator[Any]:
    node = opened(tree, _KINDS)
    if node is None:
        return
    if node.kind == "dataclass":
        yield tree
    for member in node.members:
        yield from _dataclasses_of(member)


def _is_plain(value: Any) -> bool:
    """Return whether an object is made of its fields alone, and its class is found by its name."""
    cls = type(value)
    names = {field.name for field in dataclasses.fields(cls)}
    return getattr(value, "__dict__", {}).keys() <= names and class_at(cls.__module__, cls.__qualname__) is cls


def _is_tensor(leaf: Any) -> bool:
    return (type(leaf).__module__, type(leaf).__name__) == ("torch", "Tensor")


def _tensor(array: NDArray[Any]) -> Any:
    import torch

    return torch.from_numpy(array)
