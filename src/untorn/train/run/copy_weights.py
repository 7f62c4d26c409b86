"""Setting the weights of a trainer."""

from __future__ import annotations

from typing import Any

import numpy as np

from untorn.train.checkpoints import checkpoint

__all__ = ["copy_weights"]


def copy_weights(target: Any, value: Any) -> None:
    """Copy a tree of arrays into a writable one. Raises ValueError, naming the place, where they differ in structure,
    shape or dtype; then nothing is changed."""
    targets, values = checkpoint.named_arrays("params", target), checkpoint.named_arrays("params", value)
    for name in sorted(targets.keys() ^ values.keys()):
        there, here = ("no", "one") if name in targets else ("one", "none")
        raise ValueError(f"params: what is set has {there} {_short(name)}, and this trainer has {here}")
    arrays = {name: np.asarray(leaf) for name, leaf in values.items()}
    for name, array in arrays.items():
        wanted = targets[name]
        if (array.dtype, array.shape) != (wanted.dtype, wanted.shape):
            raise ValueError(
                f"params: {_short(name)}: expected {wanted.dtype} of shape {wanted.shape}, "
                f"found {array.dtype} of shape {array.shape}"
            )
    for name, array in arrays.items():
        np.copyto(targets[name], array)


def _short(name: str) -> str:
    return name.removeprefix("params/")
