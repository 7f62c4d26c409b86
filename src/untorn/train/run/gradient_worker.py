"""Gradients in a worker: take a shard, compute its gradient, commit it. Every engine runs this code.

::

    board: next shard ─> examples of the shard ──┐
    newest weights ─> pinned version ────────────┴─> model ─> gradient buffer of the board ─> board: commit

A GradientJob has everything that a worker needs. Results go only through shared memory, so a killed worker leaves no
partial message behind.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from untorn import _core
from untorn.board import Board
from untorn.engines import Worker
from untorn.errors import NonFiniteLossError
from untorn.share.lowlevel import Address, Decoder, attach_writer, decoder_of
from untorn.train.data import SharedData, sampler
from untorn.train.models.base import Gradient, Replica, Rows, Turn
from untorn.train.run.parameter_layout import ParameterLayout
from untorn.train.run.reporter import Reporter

__all__ = ["GradientJob", "GradientWorker"]

#: how long a worker waits for work before it checks that its server is alive
_WAIT_S = 0.1
_RETRY_S = 0.01
_EVERY_ROW = ~np.uint64(0)


@dataclass(frozen=True)
class GradientJob:
    """The job of computing gradients and updating the weights with them.

    Attributes:
        weights: the channel to read the weights from.
        target: the channel that updates write to: the next weights, or sums for the step of the server.
        data: the training data.
        layout: the memory layout of gradients and weights.
        seed: the seed of the trainer.
        first_step: the number of steps since training began before the board's first one.
        accumulate: the number of parts that every shard is computed in.
        min_examples: the minimum number of examples of a shard.
        one_by_one: whether the batch of a step is all of the newest version of the data.
        turns: the turns of the steps since training began, over and over; none if the model has one loss.
    """

    weights: Address
    target: Address
    data: SharedData
    layout: ParameterLayout
    seed: int
    first_step: int
    accumulate: int = 1
    min_examples: int = 1
    one_by_one: bool = False
    turns: tuple[Turn, ...] = ()

    def begin(self, index: int, board: Board, model: Replica) -> Worker:
        """See Job."""
        return GradientWorker(self, index, board, model)


class _Buffer(NamedTuple):
    """A gradient buffer: writable views of the number of examples, of loss and metrics, of the version of the weights,
    of the gradients and of the bytes that tell which are absent; the places of both for copy_leaves; and of the tables
    the places for put_rows, and the sets of rows."""

    count: Any
    measured: Any
    version: Any
    places: tuple[tuple[int, int, str], ...]
    views: list[Any]
    absent: Any
    absent_at: int
    tables: dict[int, tuple[int, str, int, int, int]]
    sets: dict[int, Any]


class _CannotMapError(Exception):
    """The kernel refuses to map more memory into this process; ``number`` is the errno."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


class GradientWorker:
    """Computes the gradients of one job: of one shard, or in async mode one batch, at a time."""

    def __init__(self, job: GradientJob, index: int, board: Board, model: Replica) -> None:
        self.job = job
        self.index = index
        self.board = board
        self.model = model
        self.steps = self.board.steps
        self._is_async = self.board.is_async
        self._sharding = {
            "shards": 1 if self._is_async else self.board.shards,
            "examples": self.board.examples,
            "batch_size": self.board.batch_size,
            "min_examples": job.min_examples,
        }
        self.target = attach_writer(job.target)
        self.weights = self.target if job.weights == job.target else attach_writer(job.weights)
        self.data = None if job.one_by_one else job.data.open()
        self.order = self.board.order
        #: the first array to check for NaN: not the model's buffers, nor sums for an optimizer that may expect NaNs
        self._first_checked = len(job.layout.arrays) if job.layout.sums else job.layout.buffers
        self._decoder: Decoder | None = None
        self._buffers: dict[int, _Buffer] = {}
        self._random = sampler.ShardRandom(job.seed, self._sharding["shards"])
        self._reporter = Reporter(board, index)
        self._spin = True
        #: the rows of the state that is carried, of the current shard
        self._rows = slice(0, 0)

    def run_once(self, wait_s: float = _WAIT_S) -> int:
        """Take the next task and finish it, and any update that is due. Return the kind of task, ``_core.RUN_...``."""
        kind, step, shard, buffer_at = self.board.next(self.target, self.index, self._spin, wait_s)
        self._spin = kind != _core.RUN_IDLE  # a worker that found no work gains nothing from spinning
        if kind != _core.RUN_GRADIENT:
            return kind
        if self._is_async:
            shard = 0
        try:
            self._compute(step, shard, buffer_at)
        except _CannotMapError as error:  # another worker may succeed, or this one later
            self.board.refuse(self.index, error.number)
            time.sleep(min(wait_s, _RETRY_S))
            return _core.RUN_IDLE
        except Exception as error:
            if not self.board.still_claimed():  # this worker was stopped, and the others have taken over its task
                return kind
            self._reporter.report(error, step, shard)
            return _core.RUN_STOP
        self.board.commit(self.index)
        return kind

    def _compute(self, step: int, shard: int, buffer_at: int) -> None:
        data, sharding, order = self.data, self._sharding, self.order
        if data is None:
            data = self.job.data.open()
            sharding = sharding | {"examples": data.examples, "batch_size": data.examples}
        start, stop = sampler.shard_bounds(step % self.steps, shard, **sharding)
        if start == stop:
            self._buffer(buffer_at)[0][0] = 0
            return
        try:
            pinned = self.weights.pin()
        except OSError as error:
            raise _CannotMapError(error.errno or 0) from None
        if self._decoder is None:
            self._decoder = decoder_of(pinned, arrays=True)
        rng = None
        if self.model.takes_rng:
            rng = self._random.rng(self.job.first_step + step, shard)
        if self.job.layout.carried:
            first = sampler.shard_bounds(step % self.steps, 0, **sharding)[0]
            self._take_rows(start - first, stop - first, sharding)
        if self.job.turns:
            self.model.take_turn(self.job.turns[(self.job.first_step + step) % len(self.job.turns)])
        params = self._decoder.value(pinned)
        buffer = self._buffer(buffer_at)
        buffer.count[0] = examples = stop - start
        buffer.version[0] = pinned.version
        parts = self.job.accumulate
        if parts == 1:
            self._write(self.model(params, data.take(order[start:stop]), rng), buffer)
            return
        for part in range(parts):
            first, last = sampler.shard_bounds(
                0, part, shards=parts, examples=examples, batch_size=examples, min_examples=self.job.min_examples
            )
            if first < last:
                batch = data.take(order[start + first : start + last])
                gradient = self.model(params, batch, rng)
                self._add(gradient, (last - first) / examples, buffer, begin=first == 0)
                if self.job.layout.buffers:  # the next part begins with the buffers that this one has written
                    names = list(params)[-len(buffer.views) :]
                    params = params | dict(zip(names[: self.job.layout.buffers], buffer.views, strict=False))
        self._check_finite(buffer, range(len(buffer.views)))

    def _take_rows(self, start: int, stop: int, sharding: dict[str, Any]) -> None:
        """Compute with these examples of a step, and the state that is carried from the step before."""
        rows = self.job.layout.arrays[self.job.layout.carried[0]][2][0]
        if not self._is_async and (sharding["batch_size"] != rows or sharding["examples"] % rows):
            raise ValueError(
                f"the state that is carried has {rows} rows; expected batches of as many examples, found "
                f"{sharding['examples']} examples in batches of {sharding['batch_size']}"
            )
        self.model.take_rows(start, stop)
        self._rows = slice(start, stop)

    def _write(self, gradient: Gradient, buffer: _Buffer) -> None:
        buffer.measured[0] = gradient.loss
        self._reporter.name_metrics(tuple(gradient.metrics))
        for index, value in enumerate(gradient.metrics.values()):
            buffer.measured[1 + index] = value
        carried = self.job.layout.carried
        leaves: list[Any] | None = gradient.addresses
        if leaves is None:
            leaves = gradient.leaves
            for index in carried:
                buffer.views[index][self._rows] = leaves[index]
                leaves[index] = None
        missed, bad = _core.copy_leaves(
            self.board,
            buffer.places,
            leaves,
            self._first_checked,
            self.job.layout.buffers,
            buffer.absent_at,
            leaves is gradient.addresses,
        )
        converted = []
        for index in missed:
            leaf = gradient.leaves[index]
            if index in buffer.tables and (leaf is None or isinstance(leaf, Rows)):
                if not self._put_rows(buffer, index, leaf, begin=True):
                    bad = index
            elif index not in carried:
                self._mark_whole(buffer, index)
                leaf = leaf.dense() if isinstance(leaf, Rows) else leaf
                np.copyto(buffer.views[index], 0 if leaf is None else leaf, casting="same_kind")
                converted.append(index)
        self._check_finite(buffer, converted if bad < 0 else [bad])

    def _put_rows(self, buffer: _Buffer, index: int, rows: Rows | None, *, begin: bool) -> bool:
        """Add rows to the gradient of a table, which is zero at first if this begins it. Return whether the results are
        finite."""
        indices, values = (None, None) if rows is None else (rows.indices, rows.values)
        return _core.put_rows(self.board, buffer.tables[index], begin, indices, values)

    def _mark_whole(self, buffer: _Buffer, index: int) -> None:
        """Before a dense gradient is written, have the set of a table say that any row may have a gradient."""
        if index in buffer.sets:
            buffer.sets[index][...] = _EVERY_ROW

    def _check_finite(self, buffer: _Buffer, indices: Iterable[int]) -> None:
        """Raise NonFiniteLossError, naming the parameter, if one of these gradients is not finite."""
        layout = self.job.layout
        for index in indices:
            if index >= self._first_checked and not np.isfinite(buffer.views[index]).all():
                raise NonFiniteLossError(
                    f"the gradient of parameter {layout.names[index]} has a NaN or an infinity (the loss is "
                    f"{buffer.measured[0]:.6g})"
                )

    def _add(self, gradient: Gradient, share: float, buffer: _Buffer, *, begin: bool) -> None:
        """Add the gradient of one part of a shard, which has this share of its examples. Loss, metrics and gradients
        add up to means; the model's own buffers, which come first, keep the values of the last part."""
        self._reporter.name_metrics(tuple(gradient.metrics))
        measured = np.array([gradient.loss, *gradient.metrics.values()])
        buffer.measured[: len(measured)] = share * measured + (0 if begin else buffer.measured[: len(measured)])
        buffers = self.job.layout.buffers
        if begin:
            buffer.absent[...] = 1
            for index in buffer.tables:
                self._put_rows(buffer, index, None, begin=True)
        for index, (view, leaf) in enumerate(zip(buffer.views, gradient.leaves, strict=True)):
            if index < buffers:
                np.copyto(view, leaf)
            elif leaf is None:  # the sum of the shards reads zeros
                if begin and index not in buffer.tables:
                    view[...] = 0
            elif isinstance(leaf, Rows) and index in buffer.tables:
                values = np.multiply(leaf.values, view.dtype.type(share))
                self._put_rows(buffer, index, Rows(leaf.indices, values, leaf.shape), begin=False)
                buffer.absent[index - buffers] = 0
            else:
                self._mark_whole(buffer, index)
                part = np.multiply(leaf.dense() if isinstance(leaf, Rows) else leaf, view.dtype.type(share))
                if buffer.absent[index - buffers]:  # the first part that has one
                    np.copyto(view, part, casting="same_kind")
                else:
                    np.add(view, part, out=view, casting="same_kind")
                buffer.absent[index - buffers] = 0

    def _buffer(self, buffer_at: int) -> _Buffer:
        """Return the views of a buffer, which are created once."""
        views = self._buffers.get(buffer_at)
        if views is None:
            layout = self.job.layout
            count, measured, version, payload_at = self.board.buffer(buffer_at)
            places, gradients = layout.gradient_places(payload_at), layout.gradient_views(self.board, buffer_at)
            absent = layout.absent_view(self.board, buffer_at)
            tables = layout.table_places(payload_at)
            sets = {index: layout.set_view(self.board, buffer_at, index) for index in tables}
            absent_at = payload_at + layout.absent_at
            views = _Buffer(count, measured, version, places, gradients, absent, absent_at, tables, sets)
            self._buffers[buffer_at] = views
        return views
