"""A job of training, from its plan to its end: for the epochs of fit, and for single steps."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from untorn.train.data import Source
from untorn.train.optim.base import Optimizer
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

    @contextmanager
    def run(
        self, source: Source, examples: int, batch_size: int, min_examples: int, *, one_by_one: bool = False
    ) -> Iterator[StepStrategy]:
        """Run a job inside the block, which gets the strategy of its steps.

        Args:
            source: the data.
            examples, batch_size: the number of examples of the board's epochs, and of a step.
            min_examples: the minimum number of examples of a shard.
            one_by_one: see Plan.
        """
        version, first_step = self._weights.version, self._state.step
        plan = Plan(
            settings=self._settings,
            kernels=self._optimizer.kernels,
            server_steps=self._optimizer.server_steps,
            examples=examples,
            batch_size=batch_size,
            min_examples=min_examples,
            first_step=first_step,
            one_by_one=one_by_one,
            turns=self._optimizer.turns,
        )
        try:
            with self._pool.train(plan, source, self._weights, self._optimizer) as strategy:
                yield strategy
        finally:
            # after a failure, some steps are not counted yet
            step = first_step + self._weights.version - version
            self._state.count(step - self._state.step, single=one_by_one)
