"""How parameters, optimizer state and gradients lie in memory, and how an update is cut into ranges.

A version of the weights is one slot of the channel. The optimizer's state lies behind the parameters in the same slot,
as trees of the same structure, so every state buffer is the parameters' region at a fixed distance. A gradient buffer
is the parameters' region alone::

    slot      header, schema | params: w0 b0 w1 b1 | momentum: w0 b0 w1 b1
                             ^ start               ^ start + stride
    gradient  header | w0 b0 w1 b1
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Any

import numpy as np

from untorn import _core
from untorn.share.layout import Layout
from untorn.share.tree import CONTAINERS, Spec, flatten, path_of
from untorn.share.views import array_over

__all__ = ["ParameterPlan", "check_parameters"]

_RANGE = struct.Struct("<QQQQ")
_DTYPES = {np.dtype(np.float32): 0, np.dtype(np.float64): 1}
_LINE = 64
_RANGE_NBYTES = 32 * 1024
_MAX_RANGES = 16


@dataclass(frozen=True)
class ParameterPlan:
    """Where every parameter lies.

    Attributes:
        start: offset of the first parameter from the start of a slot.
        nbytes: of the region of the parameters, padding included; of a gradient buffer's payload.
        state_stride: distance of one state buffer from the next.
        arrays: (offset in the region, dtype, shape, strides) of each parameter.
        parameters: number of trainable numbers.
    """

    start: int
    nbytes: int
    state_stride: int
    arrays: tuple[tuple[int, Any, tuple[int, ...], tuple[int, ...] | None], ...]
    parameters: int

    @classmethod
    def of(cls, params: Any, extra: Any) -> ParameterPlan:
        """The plan of these parameters, stored beside this optimizer state (None for none)."""
        spec, leaves = flatten(params)
        layout = Layout(spec, None if extra is None else flatten(extra)[0])
        places = layout.leaves[: len(leaves)]
        start = places[0][1]
        arrays = tuple((offset - start, *leaf.detail) for leaf, offset in places)
        end = layout.leaf_end(len(leaves) - 1)
        nbytes = -(-(end - start) // _LINE) * _LINE
        stride = layout.leaves[len(leaves)][1] - start if extra is not None else 0
        return cls(start, nbytes, stride, arrays, sum(leaf.size for leaf in leaves))

    def ranges(self) -> bytes:
        """The update tasks, as format_board takes them: runs of one dtype, cut at cache lines."""
        target = max(_RANGE_NBYTES, -(-self.nbytes // _MAX_RANGES // _LINE) * _LINE)
        tasks = []
        for offset, end, dtype in self._runs():
            for at in range(offset, end, target):
                nbytes = min(target, end - at)
                tasks.append(_RANGE.pack(self.start + at, at, nbytes // dtype.itemsize, _DTYPES[dtype]))
        return b"".join(tasks)

    def _runs(self) -> list[tuple[int, int, Any]]:
        """Neighbours of one dtype are one run, with the padding between them."""
        runs: list[tuple[int, int, Any]] = []
        for offset, dtype, shape, _ in self.arrays:
            end = offset + dtype.itemsize * int(np.prod(shape, dtype=object))
            if runs and runs[-1][2] == dtype:
                runs[-1] = (runs[-1][0], end, dtype)
            else:
                runs.append((offset, end, dtype))
        return [run for run in runs if run[1] > run[0]]

    def gradient_places(self, buffer_at: int) -> tuple[tuple[int, int, str], ...]:
        """(offset, bytes, buffer format) of each gradient in one buffer, as copy_leaves takes them. A parameter that
        is not in C order has no such place: its bytes are 0."""
        payload = buffer_at + _core.BOARD_BUFFER_HEADER_NBYTES
        return tuple(
            (payload + offset, dtype.itemsize * int(np.prod(shape, dtype=object)) if strides is None else 0, dtype.char)
            for offset, dtype, shape, strides in self.arrays
        )

    def gradient_views(self, board: _core.Board, buffer_at: int) -> list[Any]:
        """Writable views of one gradient buffer, one per parameter."""
        payload = buffer_at + _core.BOARD_BUFFER_HEADER_NBYTES
        return [
            array_over(board, dtype, shape, payload + offset, strides) for offset, dtype, shape, strides in self.arrays
        ]


def check_parameters(params: Any) -> None:
    """Raises TypeError or ValueError, naming the place, unless params is a tree of float32 and float64 arrays."""
    spec, leaves = flatten(params)
    _check_node(spec, ())
    if sum(leaf.size for leaf in leaves) == 0:
        raise ValueError("params: there is nothing to train; expected a tree with at least one number in its arrays")


def _check_node(spec: Spec, path: tuple[str, ...]) -> None:
    if spec.kind in CONTAINERS:
        names = [str(key) for _, key in spec.detail] if spec.kind in ("dict", "odict") else None
        for index, child in enumerate(spec.children):
            _check_node(child, (*path, names[index] if names else str(index)))
        return
    dtype = spec.detail[0] if spec.kind == "array" else None
    if dtype not in _DTYPES:
        found = f"an array of {dtype}" if dtype is not None else f"a {spec.kind}"
        raise TypeError(
            f"params: {path_of(path)}: expected an array of float32 or float64, found {found}; "
            "convert it, or keep what is not trained out of params"
        )
