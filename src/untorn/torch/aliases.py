"""Tensors that share the memory of a parameter or buffer, such as ``self.w = self.weight.data`` or a view of it.

In a plain loop the optimizer writes to that memory, so such tensors have the new values, too. In a copy of the module
the parameters move from version to version, and their aliases move with them::

    module.weight ────┐                             copy.weight ──> the version's memory
                      ├── memory      becomes                            ^
    module.w = .data ─┘                             copy.w ──────────────┘ the same elements of it

NumPy arrays cannot be moved, nor can a tensor over the memory of several parameters: these are refused.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.lib.array_utils import byte_bounds
from torch import nn

__all__ = ["Alias", "Memory", "move"]


class Alias(NamedTuple):
    """A tensor of a copy, and the elements of the copy's parameter or buffer ``name`` that it is."""

    path: str
    name: str
    tensor: torch.Tensor
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    #: in elements, from the first one of the parameter
    offset: int
    #: of the parameter
    stride_of_whole: tuple[int, ...]


class Memory:
    """The memory of a module's parameters and buffers."""

    def __init__(self, module: nn.Module) -> None:
        named = [*module.named_parameters(remove_duplicate=False), *module.named_buffers(remove_duplicate=False)]
        self._members = {id(tensor) for _, tensor in named}
        #: by their storage's address
        self._within: dict[int, list[tuple[str, torch.Tensor]]] = {}
        unique = {id(tensor): (name, tensor) for name, tensor in reversed(named) if _has_memory(tensor)}
        for name, tensor in unique.values():
            self._within.setdefault(tensor.untyped_storage().data_ptr(), []).append((name, tensor))

    def alias(self, value: torch.Tensor, path: str) -> Alias | None:
        """Return which part of which parameter this tensor is, if it shares the memory of one.

        Raises TypeError if it is more than a part of one, or of another dtype.
        """
        if id(value) in self._members or not _has_memory(value):
            return None
        shares = [
            (name, whole)
            for name, whole in self._within.get(value.untyped_storage().data_ptr(), ())
            if _overlap(value, whole)
        ]
        if not shares:
            return None
        name, whole = shares[0]
        first, last = _bounds(whole)
        if value.dtype != whole.dtype or _bounds(value)[0] < first or _bounds(value)[1] > last:
            raise _cannot_follow(path, name)
        offset = int(value.storage_offset() - whole.storage_offset())
        return Alias(path, name, value, tuple(value.shape), tuple(value.stride()), offset, tuple(whole.stride()))

    def check_apart(self, array: np.ndarray[Any, Any], path: str) -> None:
        """Raise TypeError if this array shares the memory of a parameter or buffer."""
        if not array.size:
            return
        first, last = byte_bounds(array)
        for wholes in self._within.values():
            for name, whole in wholes:
                low, high = _bounds(whole)
                if first < high and low < last:
                    raise _cannot_follow(path, name)


def move(aliases: Iterable[Alias], to: Mapping[str, torch.Tensor]) -> None:
    """Have the aliases refer to the same elements of these parameters and buffers as of the module's."""
    for alias in aliases:
        whole = to[alias.name].detach()
        if whole.stride() == alias.stride_of_whole:
            alias.tensor.data = whole.as_strided(alias.shape, alias.stride, whole.storage_offset() + alias.offset)
        elif (whole.shape, alias.stride_of_whole, 0) == (alias.shape, alias.stride, alias.offset):
            alias.tensor.data = whole
        else:
            raise _cannot_follow(alias.path, alias.name)


def _cannot_follow(path: str, name: str) -> TypeError:
    return TypeError(
        f"module{path}: it shares the memory of {name!r}, which the trained copies of the module cannot keep up to "
        "date; compute it from the parameter in forward, or use a copy (.clone(), .copy()) if it should not change"
    )


def _has_memory(tensor: torch.Tensor) -> bool:
    return (
        not nn.parameter.is_lazy(tensor)
        and tensor.device.type == "cpu"
        and tensor.layout == torch.strided
        and type(tensor).__torch_dispatch__ is torch.Tensor.__torch_dispatch__
        and tensor.numel() > 0
    )


def _bounds(tensor: torch.Tensor) -> tuple[int, int]:
    """Return the addresses of its first byte, and after its last one. torch has no negative strides."""
    elements = 1 + sum((length - 1) * stride for length, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return tensor.data_ptr(), tensor.data_ptr() + elements * tensor.element_size()


def _overlap(one: torch.Tensor, other: torch.Tensor) -> bool:
    return _bounds(one)[0] < _bounds(other)[1] and _bounds(other)[0] < _bounds(one)[1]
