"""Evaluation in a worker: one chunk of the data at a time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from untorn import _core
from untorn.board import Board
from untorn.engines import Worker
from untorn.share.lowlevel import Address, attach_writer, decoder_of
from untorn.train.data import SharedData, sampler
from untorn.train.models.base import Replica
from untorn.train.run.chunks import Evaluation
from untorn.train.run.reporter import Reporter

__all__ = ["ChunkEvaluator", "EvaluationJob"]

#: the step that keys a model's random numbers during evaluation; no training reaches it
_STEP_OF_EVALUATION = 2**40


class ChunkEvaluator:
    """A model with the weights to evaluate.

    Args:
        model: the model.
        params: the weights.
        seed: the seed of the model's random numbers.
        outputs: whether to compute the model's outputs instead of its loss and metrics.
    """

    def __init__(self, model: Replica, params: Any, seed: int, *, outputs: bool) -> None:
        self._model, self._params, self._seed, self._outputs = model, params, seed, outputs

    def __call__(self, batch: Any) -> Any:
        """Return the model's answer for a batch: outputs, or a Gradient, whose leaves are not used."""
        if self._outputs:
            return self._model.predict(self._params, batch)
        takes_rng = self._model.takes_rng
        rng = sampler.shard_rng(self._seed, _STEP_OF_EVALUATION, 0, 1) if takes_rng else None
        return self._model.measure(self._params, batch, rng)


@dataclass(frozen=True)
class EvaluationJob:
    """The job of evaluating the chunks that the server assigns. See job.Job.

    Attributes:
        weights: the channel of the weights, whose newest version is evaluated.
        data: the data to evaluate.
        evaluation: what to compute.
    """

    weights: Address
    data: SharedData
    evaluation: Evaluation

    def begin(self, index: int, board: Board, model: Replica) -> Worker:
        """See job.Job."""
        return _EvaluationWorker(self, index, board, model)


class _EvaluationWorker:
    """Evaluates one chunk in each call of run_once."""

    def __init__(self, job: EvaluationJob, index: int, board: Board, model: Replica) -> None:
        self.board = board
        self._evaluation = job.evaluation
        self._index = index
        self._weights = attach_writer(job.weights)
        self._data = job.data.open()
        self._pinned = self._weights.pin()
        decoder = decoder_of(self._pinned, arrays=True)
        params = decoder.value(self._pinned.private() if job.evaluation.private else self._pinned)
        self._evaluate = ChunkEvaluator(model, params, job.evaluation.seed, outputs=job.evaluation.outputs)
        self._reporter = Reporter(board, index)
        self._spin = True

    def run_once(self, wait_s: float) -> int:
        """See Worker."""
        kind, chunk, _, buffer_at = self.board.next(self._weights, self._index, self._spin, wait_s)
        self._spin = kind != _core.RUN_IDLE
        if kind != _core.RUN_GRADIENT:
            return kind
        try:
            answer = self._evaluate(self._data.take(self._evaluation.chunks.indices(chunk)))
            if self._evaluation.outputs:
                self._write_outputs(chunk, buffer_at, answer)
            else:
                self._write_measured(buffer_at, answer)
        except Exception as error:
            if not self.board.still_claimed():
                return kind
            self._reporter.report(error, chunk, 0)
            return _core.RUN_STOP
        self.board.commit(self._index)
        return kind

    def _write_measured(self, buffer_at: int, answer: Any) -> None:
        self._reporter.name_metrics(tuple(answer.metrics))
        measured = self.board.buffer(buffer_at).measured
        measured[: 1 + len(answer.metrics)] = [answer.loss, *answer.metrics.values()]

    def _write_outputs(self, chunk: int, buffer_at: int, answer: Any) -> None:
        form, chunks = self._evaluation.form, self._evaluation.chunks
        parts = form.checked(answer, chunks.describe(chunk))
        places = form.places(chunks.size, len(chunks.indices(chunk)))
        for part, (dtype, shape, offset) in zip(parts, places, strict=True):
            np.copyto(self.board.payload_array(buffer_at, dtype, shape, offset), part)
