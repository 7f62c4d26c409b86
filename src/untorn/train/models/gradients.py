"""The check of a gradient tree: the structure and the shapes of the parameters; dtypes are converted."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from untorn.errors import UnsupportedTypeError
from untorn.share.tree import CONTAINERS, Spec, flatten, member_names, path_of

__all__ = ["GradientCheck"]

_Collect = Callable[[Any, list[Any]], bool]


class GradientCheck:
    """Takes gradient trees apart.

    Args:
        params: the tree of parameters, whose structure never changes.
    """

    def __init__(self, params: Any) -> None:
        self._spec = flatten(params)[0]
        self._collect = _collector(self._spec)

    def leaves(self, grads: Any) -> list[Any]:
        """Return the gradients in the order of the parameters. Raises TypeError or ValueError if the tree differs."""
        leaves: list[Any] = []
        if not self._collect(grads, leaves):
            raise _tree_error(self._spec, grads)
        return leaves


def _collector(spec: Spec) -> _Collect:
    """Return a function that appends the leaves of a gradient tree in the parameters' order, and returns False for
    another tree. It runs for every shard of every step, so all that is known beforehand is prepared here."""
    if spec.kind == "array":
        shape = spec.detail[1]

        def collect_array(grad: Any, leaves: list[Any]) -> bool:
            leaves.append(grad)
            if type(grad) is np.ndarray:
                return grad.shape == shape and grad.dtype.kind in "fiub"
            return shape == () and isinstance(grad, float | int | np.floating | np.integer)

        return collect_array
    children = [_collector(child) for child in spec.children]
    if spec.kind in ("dict", "odict"):
        items = list(zip((key for _, key in spec.detail), children, strict=True))

        def collect_dict(grads: Any, leaves: list[Any]) -> bool:
            return (
                isinstance(grads, dict)
                and len(grads) == len(items)
                and all(key in grads and collect(grads[key], leaves) for key, collect in items)
            )

        return collect_dict
    if spec.kind == "dataclass":
        members = list(zip(spec.detail[2], children, strict=True))
        return lambda grads, leaves: all(
            hasattr(grads, name) and collect(getattr(grads, name), leaves) for name, collect in members
        )
    kind = list if spec.kind == "list" else tuple
    names = spec.detail[2] if spec.kind == "namedtuple" else None

    def collect_sequence(grads: Any, leaves: list[Any]) -> bool:
        return (
            isinstance(grads, kind)
            and getattr(grads, "_fields", None) == names
            and len(grads) == len(children)
            and all(collect(grad, leaves) for collect, grad in zip(children, grads, strict=True))
        )

    return collect_sequence


def _tree_error(expected: Spec, grads: Any) -> Exception:
    """Return the error for a gradient tree that is not like the parameters."""
    try:
        _check_same_tree(expected, flatten(grads)[0], ())
    except UnsupportedTypeError as error:
        return TypeError(f"the gradient tree: {error}")
    except ValueError as error:
        return error
    return ValueError("the gradient tree differs from the parameters; it must be the same tree, with the same shapes")


def _check_same_tree(expected: Spec, found: Spec, path: tuple[str, ...]) -> None:
    """Raise ValueError, naming the place, where structure or shapes differ."""
    where = path_of(path)
    if expected.kind in CONTAINERS or found.kind in CONTAINERS:
        if expected.kind != found.kind or set(member_names(expected)) != set(member_names(found)):
            raise ValueError(
                f"the gradient tree differs from the parameters at {where}: expected {_describe_spec(expected)}, "
                f"found {_describe_spec(found)}"
            )
        others = dict(zip(member_names(found), found.children, strict=True))
        for name, mine in zip(member_names(expected), expected.children, strict=True):
            _check_same_tree(mine, others[name], (*path, name))
        return
    if _leaf_shape(expected) != _leaf_shape(found):
        raise ValueError(
            f"the gradient of {where} has another shape: expected {_describe_spec(expected)}, "
            f"found {_describe_spec(found)}"
        )


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
        return f"{spec.kind} of {', '.join(member_names(spec)) or 'nothing'}"
    return spec.kind
