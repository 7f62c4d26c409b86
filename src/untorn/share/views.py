"""Arrays over the core's objects."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from untorn import _core
from untorn.errors import FormatError

__all__ = ["array_over", "private_memory"]


def array_over(
    exporter: _core.Hold | _core.Draft | _core.Board | bytearray,
    dtype: Any,
    shape: int | tuple[int, ...],
    offset: int,
    strides: tuple[int, ...] | None = None,
) -> NDArray[Any]:
    """Return a view of the exporter's memory, which stays mapped while the array lives; writable if the exporter is.
    Raises FormatError for one of a board that its memory does not have."""
    buffer: Any = exporter  # NumPy's stubs know no user-defined buffers before Python 3.12
    if isinstance(exporter, _core.Board) and strides is None:  # where it lies is read from shared memory
        nbytes = np.dtype(dtype).itemsize * (shape if isinstance(shape, int) else math.prod(shape))
        if not 0 <= nbytes <= memoryview(buffer).nbytes - offset:  # NumPy's own check may overflow
            raise FormatError(f"an array at bytes {offset} to {offset + nbytes} lies outside its board")
    return np.ndarray(shape, dtype, buffer, offset, strides)


def private_memory(exporter: Any) -> Any:
    """The same bytes for somebody who may write to them: where ``exporter`` is read-only, writes land in a private copy
    of the pages that they touch."""
    if isinstance(exporter, _core.Hold):
        return exporter.private()
    view = memoryview(exporter)
    return bytearray(view) if view.readonly else exporter
