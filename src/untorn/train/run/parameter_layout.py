"""The memory layout of parameters, optimizer state and gradients, and the ranges that an update is divided into.

A version of the weights is one slot of the channel. First come the parameters that are not trained ("kept"), then the
model's buffers, such as BatchNorm's means, then the trained parameters. The optimizer's state follows, as trees with
the structure of the trained parameters, so each state buffer lies at a fixed distance from them. Behind it lie
the numbers of steps that skipped each parameter, if the optimizer counts them. A gradient buffer holds the results of a
shard: new values of the model's buffers, gradients, and a byte per parameter, which is 1 if it has no gradient::

    slot      header, schema | kept: e0 | buffers: m0 v0 | trained: w0 b0 w1 b1 | momentum: w0 b0 w1 b1 | skipped
                                        ^ start          |<--- state_stride --->|
    gradient                     header | m0 v0          | w0 b0 w1 b1 | absent

Most models have no kept parameters and no buffers.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from untorn import _core
from untorn.board import Board, pack_leaves, pack_ranges
from untorn.share.lowlevel import Layout, flatten
from untorn.train.data import sampler
from untorn.train.optim.base import SKIPPED
from untorn.trees import path_of, paths

__all__ = ["ABSENT", "ParameterLayout"]

#: the name of what is published beside sums: 1 for each parameter that has no gradient
ABSENT = "absent"

_DTYPES = {np.dtype(np.float32): _core.KERNEL_F32, np.dtype(np.float64): _core.KERNEL_F64}
_LINE = 64
_RANGE_NBYTES = 32 * 1024
_MAX_RANGES = 16
_BYTE = np.dtype(np.uint8)


@dataclass(frozen=True)
class ParameterLayout:
    """The places of parameters, optimizer state and gradients.

    Attributes:
        start: the offset in a slot of the array that a gradient buffer begins with.
        nbytes: the size of a gradient buffer's payload, with padding.
        state_stride: the distance in bytes from one state buffer to the next.
        arrays: (offset in a gradient buffer's payload, dtype, shape, strides) of each array that a shard computes.
        names: the paths of these arrays.
        buffers: the number of these arrays that are buffers of the model; they come first.
        kept: (offset in a slot, bytes) of each array that is not trained.
        parameters: the number of trained numbers.
        groups: the group of each trained array; empty if all are in the first.
        carried: the indices of the arrays whose rows belong to the examples of a step: each shard has its own.
        shards: the number of shards, if there are such arrays.
        sums: whether an update writes the mean of the gradients in place of the parameters, for the server's step.
        absent_at: the offset in a gradient buffer's payload of the bytes that tell which parameters have no gradient.
        absent_slot: the offset in a slot at which an update counts the steps that skipped each parameter, or, of sums,
            writes which have no gradient; 0 for nowhere.
    """

    start: int
    nbytes: int
    state_stride: int
    arrays: tuple[tuple[int, Any, tuple[int, ...], tuple[int, ...] | None], ...]
    names: tuple[str, ...]
    parameters: int
    buffers: int = 0
    kept: tuple[tuple[int, int], ...] = ()
    groups: tuple[int, ...] = ()
    carried: tuple[int, ...] = ()
    shards: int = 1
    sums: bool = False
    absent_at: int = 0
    absent_slot: int = 0

    @classmethod
    def of(
        cls,
        params: Any,
        extra: Any,
        *,
        kept: int = 0,
        buffers: int = 0,
        groups: tuple[int, ...] = (),
        carried: tuple[str, ...] = (),
        shards: int = 1,
        sums: bool = False,
    ) -> ParameterLayout:
        """Return the layout of these parameters, with this optimizer state if any. The first ``kept`` leaves are not
        trained, and the next ``buffers`` leaves are buffers of the model. ``groups`` has the group of each of the
        rest, if there are several; ``carried`` are the paths of the buffers that are cut by shards, of this number.
        What ``extra`` has under the name "skipped", or of sums under "absent", comes last.
        """
        spec, leaves = flatten(params)
        layout = Layout(spec, None if extra is None else flatten(extra)[0])
        places = layout.leaves[kept : len(leaves)]
        start = places[0][1]
        arrays = tuple((offset - start, *leaf.detail) for leaf, offset in places)
        _, end = layout.leaf_range(len(leaves) - 1)
        absent_at = -(-(end - start) // _LINE) * _LINE
        nbytes = absent_at + -(-(len(leaves) - kept - buffers) // _LINE) * _LINE
        stride = layout.leaves[len(leaves)][1] - places[buffers][1] if extra is not None else 0
        ends = (layout.leaf_range(index) for index in range(kept))
        names = tuple(path_of(path) for path in paths(spec))[kept:]
        return cls(
            start=start,
            nbytes=nbytes,
            state_stride=stride,
            arrays=arrays,
            names=names,
            parameters=sum(leaf.size for leaf in leaves[kept + buffers :]),
            buffers=buffers,
            kept=tuple((first, last - first) for first, last in ends if last > first),
            groups=groups,
            carried=tuple(names.index(name) for name in carried),
            shards=shards,
            sums=sums,
            absent_at=absent_at,
            absent_slot=layout.leaves[-1][1] if extra and (ABSENT if sums else SKIPPED) in extra else 0,
        )

    def ranges(self) -> bytes:
        """Return the update tasks, in the form of BoardSpec: runs of one dtype and one group, cut at cache lines."""
        nbytes = self.nbytes + sum(size for _, size in self.kept)
        target = max(_RANGE_NBYTES, -(-nbytes // _MAX_RANGES // _LINE) * _LINE)
        tasks = []
        for offset, end, dtype, kind, group in self._runs():
            for at in range(offset, end, target):
                nbytes = min(target, end - at)
                grad = 0 if kind == _core.MERGE_KEEP else at - self.start
                tasks.append((at, grad, nbytes // dtype.itemsize, _DTYPES.get(dtype, 0), kind, group))
        kind = _core.MERGE_SKIPPED if self.absent_slot and not self.sums else _core.MERGE_ABSENT
        tasks.append((self.absent_slot, self.absent_at, len(self.arrays) - self.buffers, 0, kind, 0))
        return pack_ranges(tasks)

    def leaves(self) -> bytes:
        """Return each parameter's place in a gradient buffer, and its group, in the form of BoardSpec."""
        arrays = self.arrays[self.buffers :]
        groups = self.groups or [0] * len(arrays)
        return pack_leaves((offset, group) for (offset, *_), group in zip(arrays, groups, strict=True))

    def _runs(self) -> list[tuple[int, int, Any, int, int]]:
        """Join adjacent arrays of one dtype, kind and group, with the padding between them, into runs."""
        runs: list[tuple[int, int, Any, int, int]] = []
        for offset, end, *kind in self._regions():
            if runs and [*runs[-1][2:]] == kind:
                runs[-1] = (runs[-1][0], end, *kind)
            else:
                runs.append((offset, end, *kind))
        return [run for run in runs if run[1] > run[0]]

    def _regions(self) -> Iterator[tuple[int, int, Any, int, int]]:
        """Yield (start, end, element, kind, group) of every array, with offsets in a slot."""
        for offset, nbytes in self.kept:
            yield offset, offset + nbytes, _BYTE, _core.MERGE_KEEP, 0
        for index, (offset, dtype, shape, _) in enumerate(self.arrays):
            end, group = offset + dtype.itemsize * int(np.prod(shape, dtype=object)), 0
            if index in self.carried:
                row = (end - offset) // shape[0]
                for shard in range(self.shards):
                    rows = sampler.shard_bounds(0, shard, shards=self.shards, examples=shape[0], batch_size=shape[0])
                    first, last = (self.start + offset + row * each for each in rows)
                    yield first, last, _BYTE, _core.MERGE_SHARD, shard
                continue
            if index >= self.buffers:
                element, kind = dtype, _core.MERGE_SUM if self.sums else _core.MERGE_STEP
                group = self.groups[index - self.buffers] if self.groups else 0
            else:
                element = _float_of(dtype)
                kind = _core.MERGE_MEAN if element in _DTYPES else _core.MERGE_FIRST
            yield self.start + offset, self.start + end, element, kind, group

    def gradient_places(self, at: int) -> tuple[tuple[int, int, str], ...]:
        """Return (offset, bytes, buffer format) of each gradient in a payload at this offset, for copy_leaves. A
        parameter that is not in C order has 0 bytes there, and is copied otherwise."""
        return tuple(
            (at + offset, dtype.itemsize * int(np.prod(shape, dtype=object)) if is_whole else 0, dtype.char)
            for offset, dtype, shape, is_whole in (
                (offset, dtype, shape, strides is None and index not in self.carried)
                for index, (offset, dtype, shape, strides) in enumerate(self.arrays)
            )
        )

    def absent_view(self, board: Board, buffer_at: int) -> Any:
        """Return a writable view of the bytes of a gradient buffer that tell which parameters have no gradient."""
        return board.payload_array(buffer_at, np.uint8, (len(self.arrays) - self.buffers,), self.absent_at)

    def gradient_views(self, board: Board, buffer_at: int) -> list[Any]:
        """Return writable views of one gradient buffer, one per parameter."""
        return [
            board.payload_array(buffer_at, dtype, shape, offset, strides)
            for offset, dtype, shape, strides in self.arrays
        ]


def _float_of(dtype: Any) -> Any:
    """Return the float dtype by whose elements an array can be averaged, or the dtype of bytes if there is none."""
    if dtype.kind == "c":
        dtype = np.dtype(f"f{dtype.itemsize // 2}")  # real and imaginary part
    return dtype if dtype in _DTYPES else _BYTE
