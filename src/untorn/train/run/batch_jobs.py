"""Jobs for batches that come one after another: those of a stream, and those of single steps.

::

    batch ── Feed.put ──> workers, on a board whose epochs are one step ──> the next version, and a row of the step log

A job stays open from batch to batch, so a step costs little more than one of an epoch whose batches are all known. When
batches arrive decides nothing: each is one step.
"""

from __future__ import annotations

import contextlib
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from untorn.train.data.feed import Feed
from untorn.train.data.stream import Batch
from untorn.train.run.pool import Pool
from untorn.train.run.step_log import StepLog
from untorn.train.run.steps import StepStrategy
from untorn.train.run.training_job import TrainingJobs
from untorn.train.settings import Settings

__all__ = ["BatchJob", "BatchJobs"]


class BatchJob(NamedTuple):
    """A job that is open.

    Attributes:
        feed: its data, the batch of the current step.
        strategy: makes its steps.
        log: the step log of its board, which has one row.
        rates: the board's rates, which have one row.
    """

    feed: Feed
    strategy: StepStrategy
    log: StepLog
    rates: NDArray[np.float64]


class BatchJobs:
    """Runs one job after another, each for as many batches as fit its board. Close it to end the last one.

    Args:
        settings: the settings of the trainer.
        pool: the workers.
        jobs: runs the jobs.
        single: whether the steps belong to no epoch.
    """

    def __init__(self, *, settings: Settings, pool: Pool, jobs: TrainingJobs, single: bool) -> None:
        self._settings = settings
        self._pool = pool
        self._jobs = jobs
        self._single = single
        self._stack = contextlib.ExitStack()
        self._job: BatchJob | None = None
        #: by number of examples, the minimum number of those of a shard; and that of the job
        self._min_examples: dict[int, int] = {}
        self._min_of_job = 1

    def opened(self, batch: Batch) -> BatchJob:
        """Return a job whose data is this batch: the current one if the batch fits its board, or a new one."""
        job = self._job
        if job is not None and self._fits(batch, job):
            job.feed.put(batch)
            return job
        self.close()
        return self._open(batch)

    def _fits(self, batch: Batch, job: BatchJob) -> bool:
        if batch.examples > job.strategy.board.examples or not job.feed.reads(batch):
            return False
        if self._pool.needs_equal_batches and batch.examples != job.feed.examples:
            return False
        return self._min_for(batch) == self._min_of_job

    def _min_for(self, batch: Batch) -> int:
        known = self._min_examples.get(batch.examples)
        if known is None:
            known = self._jobs.min_examples(Feed(batch), batch.examples, batch.examples, cut=False)
            self._min_examples[batch.examples] = known
        return known

    def _open(self, batch: Batch) -> BatchJob:
        feed, self._min_of_job = Feed(batch), self._min_for(batch)
        job = self._jobs.run_batches(feed, batch.examples, self._min_of_job, single=self._single)
        strategy = self._stack.enter_context(job)
        strategy.board.order[:] = np.arange(batch.examples)
        log = StepLog(strategy.board, clips=self._settings.clip_norm is not None)
        self._job = BatchJob(feed, strategy, log, strategy.board.rates)
        return self._job

    def close(self) -> None:
        """End the current job, if there is one."""
        self._job = None
        self._stack.close()
