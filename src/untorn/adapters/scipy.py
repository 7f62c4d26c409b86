"""scipy.sparse: every format, as array and as matrix.

The arrays of CSR, CSC, BSR, COO and DIA are views of shared memory. LIL and DOK consist of Python objects; they are
sent as CSR and COO, and each reader converts them back.

A reader checks only what does not depend on the number of elements: that the index arrays have integers, that their
lengths fit the shape, and that the last pointer fits the indices. It does not check the indices themselves; the
matrix's ``check_format(full_check=True)`` does.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from scipy import sparse

from untorn.adapter_registry import Adapter, Parts

__all__ = ["ADAPTERS"]

_COMPRESSED = ("data", "indices", "indptr")
#: flags that a reader would otherwise have to compute from the whole matrix
_FLAGS = ("has_sorted_indices", "has_canonical_format")


def _take_compressed(value: Any) -> Parts:
    flags = tuple(bool(getattr(value, flag)) for flag in _FLAGS)
    return Parts((_shape(value), flags), {name: getattr(value, name) for name in _COMPRESSED})


def _put_compressed(make: type) -> Callable[[Any, dict[str, Any]], Any]:
    def put(meta: Any, parts: dict[str, Any]) -> Any:
        shape, flags = meta
        _check_indices(parts["indices"], parts["indptr"])
        made = make(tuple(parts[name] for name in _COMPRESSED), shape=tuple(shape), copy=False)
        if getattr(made, "blocksize", (1, 1)) != (1, 1) and any(map(int.__mod__, made.shape, made.blocksize)):
            raise ValueError(f"blocks of shape {made.blocksize} do not divide the shape {made.shape}")
        for name in _COMPRESSED:
            setattr(made, name, parts[name])  # scipy may have converted the indices to a smaller dtype
        for name, flag in zip(_FLAGS, flags, strict=True):
            setattr(made, name, flag)
        return made

    return put


def _take_coo(value: Any) -> Parts:
    coords = {f"coord{axis}": coord for axis, coord in enumerate(value.coords)}
    return Parts((_shape(value), bool(value.has_canonical_format)), {"data": value.data, **coords})


def _put_coo(make: type) -> Callable[[Any, dict[str, Any]], Any]:
    def put(meta: Any, parts: dict[str, Any]) -> Any:
        shape, canonical = meta
        coords = tuple(parts[f"coord{axis}"] for axis in range(len(shape)))
        _check_indices(*coords)
        made = make((parts["data"], coords), shape=tuple(shape), copy=False)
        made.coords, made.has_canonical_format = coords, canonical
        return made

    return put


def _take_dia(value: Any) -> Parts:
    return Parts((_shape(value),), {"data": value.data, "offsets": value.offsets})


def _put_dia(make: type) -> Callable[[Any, dict[str, Any]], Any]:
    def put(meta: Any, parts: dict[str, Any]) -> Any:
        _check_indices(parts["offsets"])
        made = make((parts["data"], parts["offsets"]), shape=tuple(meta[0]), copy=False)
        made.data, made.offsets = parts["data"], parts["offsets"]
        return made

    return put


def _check_indices(*found: Any) -> None:
    """Check the arrays that the matrix will use; scipy itself may check only converted copies of them."""
    for array in found:
        if not (isinstance(array, np.ndarray) and array.ndim == 1 and array.dtype.kind == "i" and array.dtype.isnative):
            raise ValueError("expected indices as an array of integers with one axis")


def _shape(value: Any) -> tuple[int, ...]:
    return tuple(map(int, value.shape))


def _through(container: str, kind: str, back: str) -> tuple[Any, Any]:
    """Return the adapter functions of a format that is sent as another one."""
    take, put = _DIRECT[kind]
    carrier = getattr(sparse, f"{kind}_{container}")
    return (lambda value: take(getattr(value, f"to{kind}")())), (
        lambda meta, parts: getattr(put(carrier)(meta, parts), f"to{back}")()
    )


_DIRECT: dict[str, tuple[Any, Any]] = {
    "csr": (_take_compressed, _put_compressed),
    "csc": (_take_compressed, _put_compressed),
    "bsr": (_take_compressed, _put_compressed),
    "coo": (_take_coo, _put_coo),
    "dia": (_take_dia, _put_dia),
}


def _exactly(cls: type) -> Callable[[type], bool]:
    return lambda other: other is cls


def _adapters() -> tuple[Adapter, ...]:
    made = []
    for container in ("array", "matrix"):
        for kind, (take, put) in _DIRECT.items():
            cls = getattr(sparse, f"{kind}_{container}")
            made.append(Adapter(f"scipy.sparse.{kind}_{container}", _exactly(cls), take, put(cls)))
        for kind, carrier in (("lil", "csr"), ("dok", "coo")):
            cls = getattr(sparse, f"{kind}_{container}")
            made.append(Adapter(f"scipy.sparse.{kind}_{container}", _exactly(cls), *_through(container, carrier, kind)))
    return tuple(made)


ADAPTERS = _adapters()
