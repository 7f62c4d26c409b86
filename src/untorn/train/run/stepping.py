"""Single steps: each with a batch that the caller has at hand.

::

    Trainer.step(batch) ──> Feed.put ──> workers ──> the next version, and a row of the step log
                              └── one job for all of them, on a board whose epochs are one step

The job stays open from step to step, so a step costs little more than one inside an epoch. It ends when something else
needs the workers or changes the weights (fit, load, new params), when the trainer is closed, and after an error. The
next step begins another.
"""

from __future__ import annotations

import contextlib
import logging
from typing import Any

import numpy as np

from untorn.train.data.feed import Feed
from untorn.train.data.stream import Batch, checked_batch
from untorn.train.run.lifetime import Lifetime
from untorn.train.run.pool import Pool
from untorn.train.run.step_log import StepLog
from untorn.train.run.steps import StepStrategy
from untorn.train.run.training_job import TrainingJobs
from untorn.train.run.weights import Weights
from untorn.train.settings import Settings
from untorn.train.state import TrainingState

__all__ = ["Stepping"]

_log = logging.getLogger(__name__)


class Stepping:
    """Makes single steps, in one job after another.

    Args:
        settings: the settings of the trainer.
        state: the state of the training, which the steps update.
        weights: the channel of the weights.
        pool: the workers.
        jobs: runs the jobs.
        lifetime: tells whether the trainer may still be used.
    """

    def __init__(
        self,
        *,
        settings: Settings,
        state: TrainingState,
        weights: Weights,
        pool: Pool,
        jobs: TrainingJobs,
        lifetime: Lifetime,
    ) -> None:
        self._settings = settings
        self._state = state
        self._weights = weights
        self._pool = pool
        self._jobs = jobs
        self._lifetime = lifetime
        self._stack = contextlib.ExitStack()
        self._job: tuple[Feed, StepStrategy, StepLog] | None = None
        #: by number of examples, the minimum number of those of a shard; and that of the job
        self._min_examples: dict[int, int] = {}
        self._min_of_job = 1

    def step(self, given: Any) -> dict[str, float]:
        """Make one step with this batch. Return its loss and metrics."""
        batch = checked_batch("batch", given)
        try:
            feed, strategy, log = self._opened(batch)
            self._run(feed, strategy)
            row = log.row(0)
        except BaseException:
            self.close()
            raise
        del row["examples"]
        return row | self._state.loss_of_turn(self._state.step - 1, row["loss"])

    def _opened(self, batch: Batch) -> tuple[Feed, StepStrategy, StepLog]:
        """Return a job whose data is this batch: the current one if the batch fits its board, or a new one."""
        if self._job is not None:
            feed, strategy, _ = self._job
            fits = batch.examples <= strategy.board.examples and (batch.spec is None) == feed.are_objects
            if self._pool.needs_equal_batches:
                fits = fits and batch.examples == feed.examples
            if fits and self._min_for(batch, feed) == self._min_of_job:
                feed.put(batch)
                return self._job
            self.close()
        return self._open(Feed(batch), batch)

    def _min_for(self, batch: Batch, feed: Feed) -> int:
        known = self._min_examples.get(batch.examples)
        if known is None:
            known = self._jobs.min_examples(Feed(batch), batch.examples, batch.examples, cut=False)
            self._min_examples[batch.examples] = known
        return known

    def _open(self, feed: Feed, batch: Batch) -> tuple[Feed, StepStrategy, StepLog]:
        if self._state.partial is not None:
            _log.warning("epoch %d, which was partly done, starts over after single steps", self._state.epoch)
            self._state.partial = None
        self._min_of_job = self._min_for(batch, feed)
        job = self._jobs.run(feed, batch.examples, batch.examples, self._min_of_job, one_by_one=True)
        strategy = self._stack.enter_context(job)
        strategy.board.order[:] = np.arange(batch.examples)
        self._job = feed, strategy, StepLog(strategy.board, clips=self._settings.clip_norm is not None)
        return self._job

    def _run(self, feed: Feed, strategy: StepStrategy) -> None:
        board, state, pool = strategy.board, self._state, self._pool
        board.rates[:] = state.learning_rate.rates(state.step, 1)
        strategy.tasks.set_step(state.step, feed.examples)
        pool.stepping = True
        try:
            strategy.begin(1)
            pool.begin_epoch(state.step)
            while not strategy.advance():
                pool.advance(board, strategy.tasks, strategy.until, self._lifetime.check)
                if board.need_slot:
                    self._weights.make_room(board)
                if board.refused:
                    raise self._weights.no_mapping(board)
        finally:
            pool.stepping = False
        state.count(1, single=True)
        pool.follow(board, state.step)
        self._weights.look_after_name()

    def close(self) -> None:
        """End the current job, if there is one."""
        self._job = None
        self._stack.close()
