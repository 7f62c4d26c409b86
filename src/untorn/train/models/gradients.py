"""The check of a gradient tree: the structure and the shapes of the parameters; dtypes are converted. None is no
gradient, in the place of an array."""

from __future__ import annotations

from typing import Any

import numpy as np

from untorn.errors import UnsupportedTypeError
from untorn.share.lowlevel import flatten
from untorn.trees import CONTAINERS, Collect, Spec, collector, mismatch, names_of, path_of

__all__ = ["GradientCheck"]

_DIFFERS = "the gradient tree differs from the parameters"


class GradientCheck:
    """Takes gradient trees apart.

    Args:
        params: the tree of parameters, whose structure never changes.
    """

    def __init__(self, params: Any) -> None:
        self._spec = flatten(params)[0]
        # it runs for every shard of every step
        self._collect = collector(self._spec, _collect_array)

    def leaves(self, grads: Any) -> list[Any]:
        """Return the gradients in the order of the parameters. Raises TypeError or ValueError if the tree differs."""
        leaves: list[Any] = []
        if not self._collect(grads, leaves):
            raise _tree_error(self._spec, grads)
        return leaves


def _collect_array(spec: Spec) -> Collect:
    shape = spec.detail[1]

    def collect(grad: Any, leaves: list[Any]) -> bool:
        leaves.append(grad)
        if grad is None:
            return True
        if type(grad) is np.ndarray:
            return grad.shape == shape and grad.dtype.kind in "fiub"
        return shape == () and isinstance(grad, float | int | np.floating | np.integer)

    return collect


def _tree_error(params: Spec, grads: Any) -> Exception:
    """Return the error for a gradient tree that is not like the parameters."""
    try:
        difference = mismatch(params, flatten(grads)[0], _is_gradient_of)
    except UnsupportedTypeError as error:
        return TypeError(f"the gradient tree: {error}")
    if difference is None:
        return ValueError(f"{_DIFFERS}; it must be the same tree, with the same shapes")
    path, expected, found = difference
    are_leaves = expected.kind not in CONTAINERS and found.kind not in CONTAINERS
    where = path_of(path)
    are_alike = expected.kind == found.kind == "array" and expected.detail[1] == found.detail[1]
    kind = "dtype" if are_alike else "shape"
    problem = f"the gradient of {where} has another {kind}" if are_leaves else f"{_DIFFERS} at {where}"
    return ValueError(f"{problem}: expected {_describe_spec(expected)}, found {_describe_spec(found)}")


def _is_gradient_of(param: Spec, grad: Spec) -> bool:
    return grad.kind == "none" or _leaf_shape(param) == _leaf_shape(grad)


def _leaf_shape(spec: Spec) -> Any:
    if spec.kind == "array":
        dtype, shape, _ = spec.detail
        return shape if dtype.kind in "fiub" else None
    if spec.kind == "numpy":
        return () if spec.detail.kind in "fiub" else None
    return () if spec.kind in ("float", "int") else spec.kind


def _describe_spec(spec: Spec) -> str:
    if spec.kind == "array":
        return f"{spec.detail[0]} array of shape {spec.detail[1]}"
    if spec.kind in CONTAINERS:
        return f"{spec.kind} of {', '.join(names_of(spec)) or 'nothing'}"
    return spec.kind
