"""The memory layout of parameters, optimizer state and gradients, and the ranges that an update is divided into.

A version of the weights is one slot of the channel. First come the parameters that are not trained ("kept"), then the
model's buffers, such as BatchNorm's means, then the trained parameters. The optimizer's state follows, as trees with
the structure of the trained parameters, so each state buffer lies at a fixed distance from them. Behind it lie
the numbers of steps that skipped each parameter, if the optimizer counts them. A gradient buffer holds the results of a
shard: new values of the model's buffers, gradients, and a byte per parameter, which is 1 if it has no gradient. For a
table, whose gradient has few rows that are not zero, it also holds the set of these rows (csrc/sparse.h)::

    slot      header, schema | kept: e0 | buffers: m0 v0 | trained: w0 b0 w1 b1 | momentum: w0 b0 w1 b1 | skipped
                                        ^ start          |<--- state_stride --->|
    gradient                     header | m0 v0          | w0 b0 w1 b1 | absent | sets

Most models have no kept parameters and no buffers.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from untorn import _core
from untorn.board import Board, UpdateTask, pack_leaves, pack_ranges
from untorn.share.lowlevel import Layout, flatten
from untorn.train.data import sampler
from untorn.train.optim.base import SKIPPED
from untorn.trees import path_of, paths

__all__ = ["ABSENT", "ParameterLayout", "Table"]

#: the name of what is published beside sums: 1 for each parameter that has no gradient
ABSENT = "absent"

_DTYPES = {np.dtype(np.float32): _core.KERNEL_F32, np.dtype(np.float64): _core.KERNEL_F64}
_LINE = 64
_RANGE_NBYTES = 32 * 1024
_MAX_RANGES = 16
#: a table is cut finer: most of its rows that change may be close together, as those of the frequent words are
_TABLE_CUTS = 8
_BYTE = np.dtype(np.uint8)


class Table(NamedTuple):
    """A parameter whose gradient may have few rows.

    Attributes:
        set_at: the offset in a gradient buffer's payload of the set of its rows.
        by_rows: whether an update leaves the rows that have no gradient as they are.
    """

    set_at: int
    by_rows: bool


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
        tables: the tables by their index among the arrays.
        sets_at, sets_nbytes: the place in a gradient buffer's payload of their sets of rows.
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
    tables: dict[int, Table] = field(default_factory=dict)
    sets_at: int = 0
    sets_nbytes: int = 0

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
        tables: Collection[str] = (),
        by_rows: tuple[bool, ...] = (False,),
    ) -> ParameterLayout:
        """Return the layout of these parameters, with this optimizer state if any. The first ``kept`` leaves are not
        trained, and the next ``buffers`` leaves are buffers of the model. ``groups`` has the group of each of the
        rest, if there are several; ``carried`` are the paths of the buffers that are cut by shards, of this number.
        ``tables`` are the paths of parameters whose gradients may have few rows; ``by_rows`` tells of each group
        whether an update leaves the other rows as they are. What ``extra`` has under the name "skipped", or of sums
        under "absent", comes last.
        """
        spec, leaves = flatten(params)
        layout = Layout(spec, None if extra is None else flatten(extra)[0])
        places = layout.leaves[kept : len(leaves)]
        start = places[0][1]
        arrays = tuple((offset - start, *leaf.detail) for leaf, offset in places)
        _, end = layout.leaf_range(len(leaves) - 1)
        absent_at = -(-(end - start) // _LINE) * _LINE
        sets_at = absent_at + -(-(len(leaves) - kept - buffers) // _LINE) * _LINE
        stride = layout.leaves[len(leaves)][1] - places[buffers][1] if extra is not None else 0
        ends = (layout.leaf_range(index) for index in range(kept))
        names = tuple(path_of(path) for path in paths(spec))[kept:]
        end, placed = sets_at, {}
        for index, (_, _, shape, strides) in enumerate(arrays):
            if names[index] in tables and len(shape) > 1 and strides is None and 0 not in shape:
                placed[index] = Table(end, by_rows[groups[index - buffers] if groups else 0] and not sums)
                end += -(-shape[0] // (8 * _LINE)) * _LINE
        return cls(
            start=start,
            nbytes=end,
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
            tables=placed,
            sets_at=sets_at,
            sets_nbytes=end - sets_at,
            absent_slot=layout.leaves[-1][1] if extra and (ABSENT if sums else SKIPPED) in extra else 0,
        )

    def ranges(self) -> bytes:
        """Return the update tasks, in the form of BoardSpec: runs of one dtype and one group, cut at cache lines."""
        nbytes = self.nbytes + sum(size for _, size in self.kept)
        target = max(_RANGE_NBYTES, -(-nbytes // _MAX_RANGES // _LINE) * _LINE)
        tasks: list[UpdateTask] = []
        for offset, end, dtype, kind, group in self._runs():
            if kind == _core.MERGE_ROWS:
                tasks += self._table_tasks(offset - self.start, target // _TABLE_CUTS, group)
                continue
            for at in range(offset, end, target):
                nbytes = min(target, end - at)
                grad = 0 if kind == _core.MERGE_KEEP else at - self.start
                tasks.append(UpdateTask(at, grad, nbytes // dtype.itemsize, _DTYPES.get(dtype, 0), kind, group))
        kind = _core.MERGE_SKIPPED if self.absent_slot and not self.sums else _core.MERGE_ABSENT
        tasks.append(UpdateTask(self.absent_slot, self.absent_at, len(self.arrays) - self.buffers, kind=kind))
        return pack_ranges(tasks)

    def _table_tasks(self, offset: int, target: int, group: int) -> Iterator[UpdateTask]:
        """Yield the update tasks of the table at this offset, of about this many bytes: whole words of its set."""
        index = next(index for index in self.tables if self.arrays[index][0] == offset)
        _, dtype, shape, _ = self.arrays[index]
        row = int(np.prod(shape[1:], dtype=object))
        words = max(1, target // (row * dtype.itemsize * _core.SPARSE_ROWS))
        for word in range(0, -(-shape[0] // _core.SPARSE_ROWS), words):
            first = word * _core.SPARSE_ROWS
            rows = min(words * _core.SPARSE_ROWS, shape[0] - first)
            at, set_at = offset + first * row * dtype.itemsize, self.tables[index].set_at + 8 * word
            yield UpdateTask(self.start + at, at, rows * row, _DTYPES[dtype], _core.MERGE_ROWS, group, row, set_at)

    def leaves(self) -> bytes:
        """Return each parameter's place in a gradient buffer, and its group, in the form of BoardSpec."""
        arrays = self.arrays[self.buffers :]
        groups = self.groups or [0] * len(arrays)
        return pack_leaves((offset, group) for (offset, *_), group in zip(arrays, groups, strict=True))

    def _runs(self) -> list[tuple[int, int, Any, int, int]]:
        """Join adjacent arrays of one dtype, kind and group, with the padding between them, into runs."""
        runs: list[tuple[int, int, Any, int, int]] = []
        for offset, end, *kind in self._regions():
            if runs and [*runs[-1][2:]] == kind and kind[1] != _core.MERGE_ROWS:
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
                if index in self.tables and self.tables[index].by_rows:
                    kind = _core.MERGE_ROWS
                group = self.groups[index - self.buffers] if self.groups else 0
            else:
                element = _float_of(dtype)
                kind = _core.MERGE_MEAN if element in _DTYPES else _core.MERGE_FIRST
            yield self.start + offset, self.start + end, element, kind, group

    def gradient_places(self, at: int) -> tuple[tuple[int, int, str], ...]:
        """Return (offset, bytes, buffer format) of each gradient in a payload at this offset, for copy_leaves. A
        parameter that is not in C order, or a table, has 0 bytes there, and is copied otherwise."""
        return tuple(
            (at + offset, dtype.itemsize * int(np.prod(shape, dtype=object)) if is_whole else 0, dtype.char)
            for offset, dtype, shape, is_whole in (
                (offset, dtype, shape, strides is None and index not in self.carried and index not in self.tables)
                for index, (offset, dtype, shape, strides) in enumerate(self.arrays)
            )
        )

    def table_places(self, at: int) -> dict[int, tuple[int, str, int, int, int]]:
        """Return the places of the tables in a payload at this offset, as put_rows takes them."""
        places = {}
        for index, table in self.tables.items():
            offset, dtype, shape, _ = self.arrays[index]
            row = int(np.prod(shape[1:], dtype=object))
            places[index] = (at + offset, dtype.char, shape[0], row, at + table.set_at)
        return places

    def set_view(self, board: Board, buffer_at: int, index: int) -> Any:
        """Return a writable view of a gradient buffer's set of the rows of a table, with a bit for each."""
        words = -(-self.arrays[index][2][0] // _core.SPARSE_ROWS)
        return board.payload_array(buffer_at, np.uint64, (words,), self.tables[index].set_at)

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
