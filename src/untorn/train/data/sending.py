"""A dataset on its way to the workers: a pickle whose arrays and tensors lie beside it in shared memory.

So a dataset that holds its examples in memory is there once, not once per worker. Each worker reads it through a
private mapping: what its ``__getitem__`` writes is its own.
"""

from __future__ import annotations

import pickle
from typing import Any

import numpy as np
from numpy.typing import NDArray

from untorn.share import Snapshot, lowlevel
from untorn.train.models.pickling import pickled_apart

__all__ = ["received", "sendable"]


def sendable(what: str, value: Any) -> list[NDArray[np.uint8]]:
    """Return the value as arrays of bytes: the pickle first. Raises TypeError saying why it cannot be sent."""
    otherwise = "open files, connections and the like in __getitem__, or use engine='serial'"
    stream, apart = pickled_apart(f"{what}: the dataset", value, otherwise=otherwise, reduce=_reduced)
    return [np.frombuffer(stream, np.uint8), *apart]


def received(snapshot: Snapshot) -> Any:
    """The value again, on memory of the version. Loads a pickle: for jobs alone, whose server this process obeys."""
    stream, *buffers = lowlevel.private_value(snapshot)
    return pickle.loads(stream, buffers=buffers)


def _reduced(part: Any) -> Any:
    array = _memory(part)
    return NotImplemented if array is None else (_tensor, (array,))


def _memory(part: Any) -> NDArray[Any] | None:
    """The memory of a plain tensor: torch itself would put it into the stream, and into every worker."""
    cls = type(part)
    if cls.__module__ != "torch" or cls.__name__ != "Tensor" or part.requires_grad:
        return None
    try:
        array: NDArray[Any] = part.numpy()
    except (RuntimeError, TypeError):
        return None
    return array


def _tensor(array: NDArray[Any]) -> Any:
    import torch

    return torch.from_numpy(array)
