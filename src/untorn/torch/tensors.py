"""Tensors as arrays, and arrays as tensors, without a copy where possible."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.lib.array_utils import byte_bounds
from numpy.typing import NDArray
from torch import nn

from untorn import trees

__all__ = ["TRAINABLE", "array_of", "check_apart", "tensor_of", "tensors_of"]

TRAINABLE = (torch.float32, torch.float64)
_NUMBERS = (np.ndarray, np.generic, bool, int, float, complex)


def tensor_of(leaf: Any) -> Any:
    """Return an array or a number of a batch as a tensor, without a copy where possible. Anything else, such as an
    object that a collate_fn made, stays as it is."""
    if type(leaf) is np.ndarray:
        return torch.from_numpy(leaf)
    return torch.as_tensor(leaf) if isinstance(leaf, _NUMBERS) else leaf


def tensors_of(batch: Any) -> Any:
    """Return the same tree with a tensor for each array and number."""
    if type(batch) is tuple and all(type(part) is np.ndarray for part in batch):  # most batches; five times as fast
        return tuple(map(torch.from_numpy, batch))
    return trees.map(tensor_of, batch)


def check_apart(trained: dict[str, NDArray[Any]], others: dict[str, NDArray[Any]]) -> None:
    """Raise ValueError if a parameter that is trained shares memory with another one, or with a buffer: in place, the
    optimizer would change both, and here each has memory of its own."""
    arrays = [(name, array, name in trained) for name, array in (others | trained).items() if array.size]
    spans = sorted((*byte_bounds(array), index) for index, (_, array, _) in enumerate(arrays))
    open_spans: list[tuple[int, int]] = []
    for low, high, index in spans:
        open_spans = [(end, other) for end, other in open_spans if end > low]
        name, array, is_trained = arrays[index]
        for _, other in open_spans:
            other_name, other_array, other_is_trained = arrays[other]
            if (is_trained or other_is_trained) and _overlap(array, other_array):
                raise ValueError(
                    f"module: {other_name!r} and {name!r} share memory, so that a plain loop's optimizer changes both "
                    "at once; expected parameters and buffers apart. Make them one (module.b = module.a), compute one "
                    "from the other in forward, or give one memory of its own with .clone()"
                )
        open_spans.append((high, index))


def _overlap(one: NDArray[Any], other: NDArray[Any]) -> bool:
    try:
        return np.shares_memory(one, other, max_work=100_000)  # type: ignore[arg-type]  # any int
    except np.exceptions.TooHardError:
        return True


def array_of(what: str, tensor: torch.Tensor, *, copied: bool = False) -> NDArray[Any]:
    """Return its memory, or a copy. Raises TypeError if NumPy cannot have it, ValueError if it has no memory."""
    if nn.parameter.is_lazy(tensor):
        raise ValueError(f"{what}: it has no shape yet; run one batch through the module before it is trained")
    if tensor.device.type != "cpu" or tensor.layout != torch.strided:
        raise TypeError(
            f"{what}: expected a dense tensor in CPU memory, found one of layout {tensor.layout} on device "
            f"{str(tensor.device)!r}; workers train on the CPU: module.cpu(), or .to_dense()"
        )
    try:
        bare = tensor.detach().resolve_conj().resolve_neg()
        array: NDArray[Any] = (bare.clone() if copied else bare).numpy()
    except TypeError:
        raise TypeError(f"{what}: expected a dtype that NumPy has, found {tensor.dtype}; convert it") from None
    return array
