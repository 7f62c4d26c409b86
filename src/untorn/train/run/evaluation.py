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

from untorn.engines.threads import threads_limited
from untorn.train.data import SharedData, Source
from untorn.train.run.chunks import Chunks, Collector, Evaluation, Means, Outputs
from untorn.train.run.evaluation_worker import ChunkEvaluator
from untorn.train.run.local_model import LocalModel
from untorn.train.run.pool import Pool
from untorn.train.run.weights import Weights
from untorn.train.settings import Settings

__all__ = ["EVALUATION_BATCH_SIZE", "Evaluator"]

EVALUATION_BATCH_SIZE = 1024
#: less work than this is not worth the overhead of the workers
_WORTH_S = 0.1


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
        pool: Pool,
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
                    for chunk in self._have_workers_answer(shared, collector, nbytes):
                        collector.take(chunk, answer(chunk))

    def _have_workers_answer(self, shared: SharedData, collector: Collector, nbytes: int) -> list[int]:
        """Have the workers compute the answers for all chunks but the first. Return the chunks that they have left."""
        evaluation = Evaluation(
            private=self.local.model.private_params,
            chunks=collector.chunks,
            seed=self._settings.seed,
            form=collector.form,
            outputs=collector.outputs,
            nbytes=nbytes,
        )
        left = dict.fromkeys(range(1, collector.chunks.count))
        for chunk, answer in self._pool.answers(evaluation, self._weights, shared, list(left), self._while_waiting):
            collector.take_answer(chunk, answer)
            del left[chunk]
        return list(left)
