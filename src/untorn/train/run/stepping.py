"""Single steps: each with a batch that the caller has at hand.

::

    Trainer.step(batch) ──> Stepping ──> BatchJobs ──> one job for all steps

The job ends when something else needs the workers or changes the weights (fit, load, new params), when the trainer is
closed, and after an error. The next step begins another.
"""

from __future__ import annotations

import logging
from typing import Any

from untorn.control import Control
from untorn.train.data.stream import checked_batch
from untorn.train.run.batch_jobs import BatchJob, BatchJobs
from untorn.train.run.lifetime import Lifetime
from untorn.train.run.pool import Pool
from untorn.train.run.status import JobStatus
from untorn.train.run.training_job import TrainingJobs
from untorn.train.run.weights import Weights
from untorn.train.settings import Settings
from untorn.train.state import TrainingState

__all__ = ["Stepping"]

_log = logging.getLogger(__name__)


class Stepping:
    """Makes single steps.

    Args:
        settings: the settings of the trainer.
        state: the state of the training, which the steps update.
        weights: the channel of the weights.
        pool: the workers.
        jobs: runs the jobs.
        lifetime: tells whether the trainer may still be used.
        control: answers requests of other processes, or None.
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
        control: Control | None,
    ) -> None:
        self._state = state
        self._weights = weights
        self._pool = pool
        self._jobs = BatchJobs(settings=settings, pool=pool, jobs=jobs, single=True)
        self._lifetime = lifetime
        self._control = control
        self._status = JobStatus(settings, state, pool, weights, None)

    def step(self, given: Any) -> dict[str, float]:
        """Make one step with this batch. Return its loss and metrics."""
        batch = checked_batch("batch", given)
        if self._state.partial is not None:
            _log.warning("epoch %d, which was partly done, starts over after single steps", self._state.epoch)
            self._state.partial = None
        try:
            job = self._jobs.opened(batch)
            self._run(job)
            row = job.log.row(0)
        except BaseException:
            self.close()
            raise
        del row["examples"]
        return row | self._state.loss_of_turn(self._state.step - 1, row["loss"])

    def _run(self, job: BatchJob) -> None:
        strategy, state, pool = job.strategy, self._state, self._pool
        board = strategy.board
        job.rates[:] = state.learning_rate.rates(state.step, 1)
        strategy.tasks.set_step(state.step, job.feed.examples)
        if self._control is not None:
            self._status.begin_segment(board, job.log, state.single_steps, None)
        pool.stepping = True
        try:
            strategy.begin(1)
            pool.begin_epoch(state.step)
            self._weights.look_after_name()  # while the workers compute
            while not strategy.advance():
                pool.advance(board, strategy.tasks, strategy.until, self._lifetime.check)
                if board.need_slot:
                    self._weights.make_room(board)
                if board.refused:
                    raise self._weights.no_mapping(board)
                self._answer_requests()
        finally:
            pool.stepping = False
        state.count(1, single=True)
        self._status.update(1)
        self._answer_requests()
        pool.follow(board, state.step)

    def _answer_requests(self) -> None:
        if self._control is not None:
            self._control.poll(self._status)

    def close(self) -> None:
        """End the current job, if there is one."""
        self._jobs.close()
