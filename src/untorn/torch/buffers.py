"""Buffers of a module that forward changes, such as BatchNorm's running mean."""

from __future__ import annotations

from typing import Any

import torch
from numpy.typing import NDArray
from torch import nn

__all__ = ["Buffer"]


class Buffer:
    """A buffer of a replica's module, in separate memory, at every place where the module holds it."""

    def __init__(self, module: nn.Module, name: str, tensor: torch.Tensor) -> None:
        self._name = name
        self._owners = [(m, key) for m in module.modules() for key, each in m._buffers.items() if each is tensor]  # noqa: SLF001 (named_buffers() lists a shared one once)
        self._memory: torch.Tensor | None = None
        self._shape = tensor.shape

    def start_from(self, value: NDArray[Any]) -> None:
        """Copy this value, and undo any replacement of the tensor by the last batch."""
        given = torch.from_numpy(value)
        self._shape = given.shape
        fits = self._memory is not None and self._memory.shape == self._shape  # forward may have used resize_()
        self._memory = self._memory.detach() if self._memory is not None and fits else torch.empty_like(given)
        self._memory.copy_(given)
        for owner, key in self._owners:
            owner._buffers[key] = self._memory  # noqa: SLF001 (setattr is slow, and may be overridden)

    def taken(self) -> NDArray[Any]:
        """Return the value now. Raises ValueError if forward put a tensor of another shape there."""
        owner, key = self._owners[0]
        found = owner._buffers[key]  # noqa: SLF001 (likewise)
        assert self._memory is not None
        if found is None or found.shape != self._shape:
            raise ValueError(
                f"buffer {self._name!r}: expected shape {tuple(self._shape)}, as before forward, found "
                f"{None if found is None else tuple(found.shape)}; if it has its shape from the first batch, run one "
                "through the module before it is trained, or else keep it in a plain attribute"
            )
        if found is not self._memory:
            self._memory.copy_(found.detach())
        taken: NDArray[Any] = self._memory.detach().numpy()
        return taken
