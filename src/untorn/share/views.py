"""Arrays over the core's objects."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from untorn import _core

__all__ = ["array_over", "private_memory"]

#: an item of a queue that is smaller is copied: that takes less time than mapping it
_MAPPED_NBYTES = 1 << 16


def array_over(
    exporter: _core.Hold | _core.Draft | _core.QueueDraft | bytearray,
    dtype: Any,
    shape: int | tuple[int, ...],
    offset: int,
    strides: tuple[int, ...] | None = None,
) -> NDArray[Any]:
    """Return a view of the exporter's memory, which stays mapped while the array lives; writable if the exporter is."""
    buffer: Any = exporter  # NumPy's stubs know no user-defined buffers before Python 3.12
    return np.ndarray(shape, dtype, buffer, offset, strides)


def private_memory(exporter: Any) -> Any:
    """Return the same bytes, writable. If ``exporter`` is read-only, a write goes to a private copy of the page that it
    touches."""
    if isinstance(exporter, _core.Hold) or (
        isinstance(exporter, _core.QueueItem) and exporter.nbytes >= _MAPPED_NBYTES
    ):
        return exporter.private()
    view = memoryview(exporter)
    return bytearray(view) if view.readonly else exporter
