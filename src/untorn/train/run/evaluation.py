"""The evaluation of a model: evaluate and predict, on chunks of the data that idle workers share.

::

    Evaluator ──┬── little work, or no workers: this process ─────────────────────────────────────────> Collector
                └── much work: a board ── one chunk per slot ──> workers: loss and metrics, or outputs ──> Collector

The answer for a chunk depends only on the weights and the chunk, and the collector combines the answers in order. So
the result has the same bits whichever process computed a chunk. Workers with a job of training leave its board for the
evaluation, and then return to it (WorkerPool.interrupt).
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from typing import Any

from untorn import _core
from untorn.board import Board, BoardSpec
from untorn.engines.threads import threads_limited
from untorn.train.data import SharedData, Source
from untorn.train.run.chunks import Chunks, Collector, Means, Outputs
from untorn.train.run.evaluation_worker import ChunkEvaluator, EvaluationJob
from untorn.train.run.local_model import LocalModel
from untorn.train.run.pool import WorkerPool
from untorn.train.run.weights import Weights
from untorn.train.settings import Settings

__all__ = ["EVALUATION_BATCH_SIZE", "Evaluator"]

EVALUATION_BATCH_SIZE = 1024
#: less work than this is not worth the overhead of the workers
_WORTH_S = 0.1
_SLOTS_PER_WORKER = 2


class Evaluator:
    """Evaluates the newest weights.

    Args:
        settings: the settings of the trainer.
        weights: the channel of the weights.
        pool: the workers.
        local: the model in this process.
        while_waiting: called repeatedly while workers evaluate.
    """

    def __init__(
        self,
        settings: Settings,
        weights: Weights,
        pool: WorkerPool,
        local: LocalModel,
        while_waiting: Callable[[], None],
    ) -> None:
        self.local = local
        self._settings = settings
        self._weights = weights
        self._pool = pool
        self._while_waiting = while_waiting

    def evaluate(
        self, source: Source, batch_size: int = EVALUATION_BATCH_SIZE, share: Callable[[], SharedData] | None = None
    ) -> dict[str, float]:
        """Return loss and metrics, means over all examples.

        Args:
            source: the data.
            batch_size: examples per chunk.
            share: returns the data shared with workers; by default it is shared for the duration of this call.
        """
        means = Means(Chunks(source.examples, batch_size))
        self._collect(source, means, share)
        return means.result()

    def predict(self, source: Source, batch_size: int) -> Any:
        """Return the model's outputs for all examples, in order."""
        outputs = Outputs(Chunks(source.examples, batch_size))
        self._collect(source, outputs, None)
        return outputs.result()

    def _collect(self, source: Source, collector: Collector, share: Callable[[], SharedData] | None) -> None:
        chunks = collector.chunks
        with self._weights.snapshot() as snapshot:
            params = self.local.params(snapshot)
            evaluate = ChunkEvaluator(self.local.replica, params, self._settings.seed, outputs=collector.outputs)

            def answer(chunk: int) -> Any:
                with threads_limited(self._settings.threads_per_worker):
                    return evaluate(source.take(chunks.indices(chunk)))

            began = time.perf_counter()
            nbytes = collector.begin(answer(0))
            rest = range(1, chunks.count)
            worth_it = nbytes >= 0 and (time.perf_counter() - began) * len(rest) >= _WORTH_S
            with self._pool.idle_processes() if worth_it else contextlib.nullcontext(False) as idle:
                if not idle:
                    for chunk in rest:
                        collector.take(chunk, answer(chunk))
                    return
                with contextlib.ExitStack() as stack:
                    if share is None:
                        sharing = source.shared(max_readers=self._pool.count.max_readers, local=False)
                        shared = stack.enter_context(sharing)
                    else:
                        shared = share()
                    self._have_workers_answer(shared, collector, nbytes)

    def _have_workers_answer(self, shared: SharedData, collector: Collector, nbytes: int) -> None:
        """Have the workers compute the answers for all chunks but the first."""
        pool, chunks = self._pool, collector.chunks
        spec = BoardSpec(
            shards=min(chunks.count - 1, _SLOTS_PER_WORKER * pool.count.wanted),
            max_workers=pool.count.max,
            workers=pool.count.wanted,
            is_async=True,
            steps=1,
            examples=1,
            batch_size=1,
            gradient_nbytes=nbytes,
            state_stride=0,
            first_version=0,
        )
        job = EvaluationJob(
            weights=self._weights.subscriber().address,
            data=shared,
            private=self.local.model.private_params,
            chunks=chunks,
            seed=self._settings.seed,
            form=collector.form,
            outputs=collector.outputs,
        )
        with (
            pool.make_board(spec, advice="use a smaller batch_size") as board,
            pool.interrupt(job, board),
        ):
            self._collect_from(board, collector)

    def _collect_from(self, board: Board, collector: Collector) -> None:
        rest = iter(range(1, collector.chunks.count))
        in_flight = dict(zip(range(board.shards), rest, strict=False))
        for slot, chunk in in_flight.items():
            board.inflight_open(slot, chunk)
        while in_flight:
            self._pool.advance(board, collector.chunks, 0, self._while_waiting)
            for slot, chunk in list(in_flight.items()):
                found = board.in_flight(slot)
                if found.state != _core.TASK_DONE:
                    continue
                collector.take_from(board, found.buffer_at, chunk)
                board.inflight_empty(slot)
                del in_flight[slot]
                following = next(rest, None)
                if following is not None:
                    in_flight[slot] = following
                    board.inflight_open(slot, following)
