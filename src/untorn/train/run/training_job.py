"""A job of training, from its plan to its end: for the epochs of fit, and for single steps."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager

from untorn.train.data import Source
from untorn.train.optim.base import LoopOptimizer, Optimizer
from untorn.train.run.local_model import LocalModel
from untorn.train.run.plan import Plan
from untorn.train.run.pool import Pool
from untorn.train.run.small_batches import min_shard_examples
from untorn.train.run.steps import StepStrategy
from untorn.train.run.weights import Weights
from untorn.train.settings import Settings
from untorn.train.state import TrainingState

__all__ = ["TrainingJobs"]


class TrainingJobs:
    """Runs the jobs of a trainer, one after another.

    Args:
        settings: the settings of the trainer.
        state: the state of the training, whose step is right again after each job.
        weights: the channel of the weights.
        pool: the workers.
        local: the model in this process.
        optimizer: the optimizer.
    """

    def __init__(
        self,
        *,
        settings: Settings,
        state: TrainingState,
        weights: Weights,
        pool: Pool,
        local: LocalModel,
        optimizer: Optimizer,
    ) -> None:
        self._settings = settings
        self._state = state
        self._weights = weights
        self._pool = pool
        self._local = local
        self._optimizer = optimizer

    def min_examples(self, source: Source, examples: int, batch_size: int, *, cut: bool) -> int:
        """Return the minimum number of examples of a shard. See min_shard_examples."""
        return min_shard_examples(
            self._local, self._weights, source, self._settings, examples=examples, batch_size=batch_size, cut=cut
        )

    def run(
        self, source: Source, examples: int, batch_size: int, min_examples: int
    ) -> AbstractContextManager[StepStrategy]:
        """Run a job inside the block, which gets the strategy of its steps.

        Args:
            source: the data.
            examples, batch_size: the number of examples of the board's epochs, and of a step.
            min_examples: the minimum number of examples of a shard.
        """
        return self._run(source, self._plan(examples, batch_size, min_examples), single=False)

    def run_batches(
        self, source: Source, examples: int, min_examples: int, *, single: bool
    ) -> AbstractContextManager[StepStrategy]:
        """Run a job of steps that have a batch of their own each, see Plan.one_by_one.

        Args:
            source: the data, the batch of the current step.
            examples: the number of examples of the largest batch.
            min_examples: the minimum number of examples of a shard.
            single: whether the steps belong to no epoch.
        """
        plan = dataclasses.replace(self._plan(examples, examples, min_examples), one_by_one=True)
        return self._run(source, plan, single=single)

    def _plan(self, examples: int, batch_size: int, min_examples: int) -> Plan:
        return Plan(
            settings=self._settings,
            kernels=self._optimizer.kernels,
            server_steps=self._optimizer.server_steps,
            examples=examples,
            batch_size=batch_size,
            min_examples=min_examples,
            first_step=self._state.step,
            turns=self._optimizer.turns,
        )

    @contextmanager
    def _run(self, source: Source, plan: Plan, *, single: bool) -> Iterator[StepStrategy]:
        version = self._weights.version
        try:
            with self._pool.train(plan, source, self._weights, self._optimizer) as strategy:
                yield strategy
        finally:
            if not isinstance(self._optimizer, LoopOptimizer):  # whose weights are published before each step
                # after a failure, some steps are not counted yet
                step = plan.first_step + self._weights.version - version
                self._state.count(step - self._state.step, single=single)
