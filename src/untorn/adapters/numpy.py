"""NumPy's array subclasses: masked arrays, record arrays and matrices. All of them are views of shared memory.

Plain arrays need no adapter, since untorn.share handles them itself. Writing to a masked array of a snapshot is an
error, as it is for any array of a snapshot.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from untorn.adapter_registry import Adapter, Parts

__all__ = ["ADAPTERS"]


def _take_masked(value: np.ma.MaskedArray[Any, Any]) -> Parts:
    mask = value.mask
    children = {"data": np.asarray(value.data)}
    if mask is not np.ma.nomask:
        children["mask"] = np.asarray(mask)
    if value.fill_value != np.ma.default_fill_value(value):
        children["fill_value"] = np.asarray(value.fill_value)
    return Parts((bool(value.hardmask),), children)


def _put_masked(meta: Any, parts: dict[str, Any]) -> Any:
    return np.ma.MaskedArray(
        parts["data"],
        parts.get("mask", np.ma.nomask),
        fill_value=parts["fill_value"][()] if "fill_value" in parts else None,
        hard_mask=meta[0],
        copy=False,
    )


ADAPTERS = (
    Adapter("numpy.ma.MaskedArray", lambda cls: cls is np.ma.MaskedArray, _take_masked, _put_masked),
    Adapter(
        "numpy.recarray",
        lambda cls: cls is np.recarray,
        lambda value: Parts((), {"data": value.view(np.dtype((np.void, value.dtype)), np.ndarray)}),
        lambda _, parts: parts["data"].view(np.recarray),
    ),
    Adapter(
        "numpy.matrix",
        lambda cls: cls is np.matrix,
        lambda value: Parts((), {"data": value.view(np.ndarray)}),
        lambda _, parts: parts["data"].view(np.matrix),
    ),
)
