"""Gradients in a worker: take a shard, compute its gradient, commit it. The same code in a process or in place.

What a worker needs travels in a GradientJob. Results travel through shared memory alone, so a killed worker leaves
nothing half-sent behind.
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
from untorn.train.models.base import Gradient, Replica
from untorn.train.run.parameter_layout import ParameterLayout
from untorn.train.run.reporter import Reporter

__all__ = ["GradientJob", "GradientWorker"]

#: how long a worker waits for work before it looks whether its server lives
_WAIT_S = 0.1
_RETRY_S = 0.01


@dataclass(frozen=True)
class GradientJob:
    """Compute gradients, and update weights with them.

    Attributes:
        weights: the channel to read the weights from.
        target: the channel that updates write to: the next weights, or sums for the server to step with.
        layout: how gradients and weights lie in memory.
        seed: of the trainer.
        first_step: the board's first step, since training began.
        accumulate: parts that every shard is computed in.
        least: examples of a shard, at least.
    """

    weights: Address
    target: Address
    data: SharedData
    layout: ParameterLayout
    seed: int
    first_step: int
    accumulate: int = 1
    least: int = 1

    def begin(self, index: int, board: Board, model: Replica) -> Worker:
        """See Job."""
        return GradientWorker(self, index, board, model)


class _Buffer(NamedTuple):
    """A gradient buffer: number of examples, loss and metrics, the version that the gradient is of, where the gradients
    go, and writable views of them."""

    count: Any
    measured: Any
    version: Any
    places: tuple[tuple[int, int, str], ...]
    views: list[Any]


class _CannotMapError(Exception):
    """The kernel maps no more memory into this process; ``number`` is the errno."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


class GradientWorker:
    """Computes gradients for one job: takes a shard, or in async mode a batch, and commits what it has made of it."""

    def __init__(self, job: GradientJob, index: int, board: Board, model: Replica) -> None:
        self.job = job
        self.index = index
        self.board = board
        self.model = model
        self.steps = self.board.steps
        self._is_async = self.board.is_async
        self.cut = {
            "shards": 1 if self._is_async else self.board.shards,
            "examples": self.board.examples,
            "batch_size": self.board.batch_size,
            "least": job.least,
        }
        self.target = attach_writer(job.target)
        self.weights = self.target if job.weights == job.target else attach_writer(job.weights)
        self.data = job.data.open()
        self.order = self.board.order
        #: the model's buffers may be anything, and an optimizer of another library may take a NaN for a sign
        self._first_checked = len(job.layout.arrays) if job.layout.sums else job.layout.buffers
        self._decoder: Decoder | None = None
        self._buffers: dict[int, _Buffer] = {}
        self._random = sampler.ShardRandom(job.seed, self.cut["shards"])
        self._reporter = Reporter(board, index)
        self._spin = True

    def run_once(self, wait_s: float = _WAIT_S) -> int:
        """Take the next task and finish it, with whatever is due on the way. Returns its kind, ``_core.RUN_...``."""
        kind, step, shard, buffer_at = self.board.next(self.target, self.index, self._spin, wait_s)
        self._spin = kind != _core.RUN_IDLE  # a worker that waited in vain gains nothing from spinning
        if kind != _core.RUN_GRADIENT:
            return kind
        if self._is_async:
            shard = 0
        try:
            self._compute(step, shard, buffer_at)
        except _CannotMapError as error:  # another worker may do better, and this one later
            self.board.refuse(self.index, error.number)
            time.sleep(min(wait_s, _RETRY_S))
            return _core.RUN_IDLE
        except Exception as error:
            if not self.board.still_claimed():  # this worker was stopped, and the others went on without it
                return kind
            self._reporter.report(error, step, shard)
            return _core.RUN_STOP
        self.board.commit(self.index)
        return kind

    def _compute(self, step: int, shard: int, buffer_at: int) -> None:
        start, stop = sampler.shard_bounds(step % self.steps, shard, **self.cut)
        if start == stop:
            self._buffer(buffer_at)[0][0] = 0
            return
        try:
            hold = self.weights.pin()
        except OSError as error:
            raise _CannotMapError(error.errno or 0) from None
        if self._decoder is None:
            self._decoder = decoder_of(hold)
        rng = None
        if self.model.takes_rng:
            rng = self._random.rng(self.job.first_step + step, shard)
        params = self._decoder.value(hold)
        buffer = self._buffer(buffer_at)
        buffer.count[0] = examples = stop - start
        buffer.version[0] = hold.version
        parts = self.job.accumulate
        if parts == 1:
            self._write(self.model(params, self.data.take(self.order[start:stop]), rng), buffer)
            return
        for part in range(parts):
            first, last = sampler.shard_bounds(
                0, part, shards=parts, examples=examples, batch_size=examples, least=self.job.least
            )
            if first < last:
                batch = self.data.take(self.order[start + first : start + last])
                gradient = self.model(params, batch, rng)
                self._add(gradient, (last - first) / examples, buffer, begin=first == 0)
                if self.job.layout.buffers:  # the next part goes on with what this one made of them
                    names = list(params)[-len(buffer.views) :]
                    params = params | dict(zip(names[: self.job.layout.buffers], buffer.views, strict=False))
        self._check_finite(buffer, range(len(buffer.views)))

    def _write(self, gradient: Gradient, buffer: _Buffer) -> None:
        buffer.measured[0] = gradient.loss
        self._reporter.name_metrics(tuple(gradient.metrics))
        for index, value in enumerate(gradient.metrics.values()):
            buffer.measured[1 + index] = value
        missed, bad = _core.copy_leaves(self.board, buffer.places, gradient.leaves, self._first_checked)
        for index in missed:  # those that need conversion
            np.copyto(buffer.views[index], gradient.leaves[index], casting="same_kind")
        self._check_finite(buffer, missed if bad < 0 else [bad])

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
        """Add one part of a shard, which has this share of its examples. Loss, metrics and gradients add up to means;
        of the model's own buffers, which come first, the last part's values stand."""
        self._reporter.name_metrics(tuple(gradient.metrics))
        measured = np.array([gradient.loss, *gradient.metrics.values()])
        buffer.measured[: len(measured)] = share * measured + (0 if begin else buffer.measured[: len(measured)])
        for index, (view, leaf) in enumerate(zip(buffer.views, gradient.leaves, strict=True)):
            if index < self.job.layout.buffers:
                np.copyto(view, leaf)
                continue
            part = np.multiply(leaf, view.dtype.type(share))
            if begin:
                np.copyto(view, part, casting="same_kind")
            else:
                np.add(view, part, out=view, casting="same_kind")

    def _buffer(self, buffer_at: int) -> _Buffer:
        """Return the views of a buffer, which are made once."""
        views = self._buffers.get(buffer_at)
        if views is None:
            layout = self.job.layout
            count, measured, version, payload_at = self.board.buffer(buffer_at)
            places, gradients = layout.gradient_places(payload_at), layout.gradient_views(self.board, buffer_at)
            views = _Buffer(count, measured, version, places, gradients)
            self._buffers[buffer_at] = views
        return views
