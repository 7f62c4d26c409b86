"""A fingerprint of the weights, which is equal for two trees if they hold the same bits in the same structure.

The memory layout of an array (C or Fortran order, a view with gaps, read-only or not) makes no difference; its dtype,
its shape and every bit of its elements do. So two runs agree if their digests agree, and -0.0 differs from 0.0.
"""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np

from untorn.share.lowlevel import flatten
from untorn.trees import CONTAINERS, Spec

__all__ = ["weights_sha256"]


def weights_sha256(params: Any) -> str:
    """Return the SHA-256 of a tree: its structure, and the dtype, shape and C-order bytes of every leaf.

    Args:
        params: a tree as ``publish`` takes it, made of dicts, lists, tuples, named tuples and dataclasses with NumPy
            arrays, numbers, str, bytes and None.

    Returns:
        64 hexadecimal digits.

    Raises:
        UnsupportedTypeError: something in the tree cannot be shared; the message says where.

    Example:
        >>> import numpy as np
        >>> w = np.arange(6, dtype=np.float32).reshape(2, 3)
        >>> weights_sha256({"w": w}) == weights_sha256({"w": np.asfortranarray(w)})
        True
        >>> weights_sha256({"w": w}) == weights_sha256({"w": w.astype(np.float64)})
        False
        >>> weights_sha256({"w": w})[:8]
        '8569e813'

    """
    spec, leaves = flatten(params)
    digest = hashlib.sha256()
    # The length first, so that no structure can look like the beginning of another one's leaves.
    structure = repr(_structure(spec)).encode("utf-8", "surrogatepass")
    digest.update(len(structure).to_bytes(8, "little"))
    digest.update(structure)
    for leaf in leaves:
        content = _content(leaf)
        digest.update(len(content).to_bytes(8, "little"))
        digest.update(content)
    return digest.hexdigest()


def _structure(spec: Spec) -> tuple[Any, ...]:
    """Return the spec as plain values, without the memory layout of the arrays."""
    if spec.kind == "array":
        dtype, shape, _strides = spec.detail
        return ("array", np.lib.format.dtype_to_descr(dtype), shape)
    if spec.kind == "numpy":
        return ("numpy", np.lib.format.dtype_to_descr(spec.detail))
    if spec.kind in CONTAINERS:
        detail = spec.detail
        if spec.kind in ("namedtuple", "dataclass"):
            detail = (
                detail[0].__qualname__,
                detail[1],
            )  # the same class is __main__.P in one process and model.P in another
        return (spec.kind, detail, tuple(_structure(child) for child in spec.children))
    return (spec.kind,)


def _content(leaf: Any) -> bytes:
    if isinstance(leaf, np.ndarray | np.generic):
        return leaf.tobytes()  # C order, whatever the layout
    if isinstance(leaf, bytes):
        return leaf
    if isinstance(leaf, str):
        return leaf.encode("utf-8", "surrogatepass")
    if isinstance(leaf, float | complex):
        return np.asarray(leaf).tobytes()  # every bit, the sign of zero and the payload of a NaN too
    return repr(leaf).encode()  # int, bool, None
