"""ml_dtypes: NumPy arrays and scalars of bfloat16, the float8 types, int4 and the like, as views of shared memory.

NumPy cannot describe these dtypes to another process, so an array is sent as unsigned integers with the dtype's name.
"""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from untorn.adapter_registry import Adapter, Parts

__all__ = ["ADAPTERS", "from_bits", "to_bits"]


def to_bits(array: NDArray[Any]) -> NDArray[Any]:
    """Return a view as unsigned integers if the dtype is one of ml_dtypes, otherwise the array itself."""
    return array.view(f"u{array.dtype.itemsize}") if array.dtype.type.__module__ == "ml_dtypes" else array


def from_bits(array: NDArray[Any], name: str) -> NDArray[Any]:
    """Return a view with the dtype of that name, the inverse of to_bits(). Raises ValueError if there is no such
    dtype."""
    if array.dtype.name == name:
        return array
    made = getattr(ml_dtypes, name, None)
    if not (isinstance(made, type) and issubclass(made, np.generic)):
        raise ValueError(
            f"ml_dtypes {ml_dtypes.__version__} has no dtype {name!r}; install the publisher's version or a newer one"
        )
    return array.view(made)


def _take(value: Any) -> Parts:
    array = np.asarray(value)
    return Parts((array.dtype.name, isinstance(value, np.generic)), {"bits": to_bits(array)})


def _put(meta: Any, parts: dict[str, Any]) -> Any:
    name, is_scalar = meta
    array = from_bits(parts["bits"], name)
    return array[()] if is_scalar else array


ADAPTERS = (
    # for an array, share calls this with the class of its elements
    Adapter("ml_dtypes.array", lambda cls: issubclass(cls, np.generic), _take, _put),
)
