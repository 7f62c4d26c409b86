"""Send a dataset to the workers as a pickle, with its arrays and tensors outside the pickle in shared memory.

So a dataset that holds its examples in memory exists once, not once per worker. Each worker reads it through a private
mapping, so that writes in its ``__getitem__`` stay in that worker.
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
    """Return the value as arrays of bytes, the pickle first. Raises TypeError, which says why it cannot be sent."""
    otherwise = "open files, connections and the like in __getitem__, or use engine='serial'"
    stream, apart = pickled_apart(f"{what}: the dataset", value, otherwise=otherwise, reduce=_reduced)
    return [np.frombuffer(stream, np.uint8), *apart]


def received(snapshot: Snapshot) -> Any:
    """Return the value, in the memory of the version. It loads a pickle, so it must only be used for jobs, whose server
    this process trusts."""
    stream, *buffers = lowlevel.private_value(snapshot)
    return pickle.loads(stream, buffers=buffers)


def _reduced(part: Any) -> Any:
    array = _memory(part)
    return NotImplemented if array is None else (_tensor, (array,))


def _memory(part: Any) -> NDArray[Any] | None:
    """Return the memory of a plain tensor, which torch itself would put into the pickle; None for anything else."""
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
