"""The plan of a job of training: the sizes and numbers that boards and workers need, on this machine or on nodes."""

from __future__ import annotations

from dataclasses import dataclass

from untorn.board import BoardSpec, KernelSettings
from untorn.train.data import SharedData
from untorn.train.models.base import Turn
from untorn.train.run.gradient_worker import GradientJob
from untorn.train.run.weights import Weights
from untorn.train.run.worker_count import WorkerCount
from untorn.train.settings import Settings

__all__ = ["Plan"]


@dataclass(frozen=True)
class Plan:
    """The plan of a job. It is pickled.

    Attributes:
        settings: the settings of the trainer.
        kernels: the optimizer and its settings, of each group of parameters, if the workers make the steps.
        server_steps: whether the server makes the steps.
        examples: the number of examples of an epoch.
        batch_size: the number of examples of a step.
        min_examples: the minimum number of examples of a shard.
        first_step: the number of steps since training began before the board's step 0.
        one_by_one: whether each step has a batch of its own, in a version of its own of the data's channel. An epoch of
            the board is then one step, and ``examples`` the largest batch.
        turns: the turns that the steps take, if the model has several losses.
    """

    settings: Settings
    kernels: tuple[KernelSettings, ...]
    server_steps: bool
    examples: int
    batch_size: int
    min_examples: int
    first_step: int
    one_by_one: bool = False
    turns: tuple[Turn, ...] = ()

    @property
    def steps(self) -> int:
        """The number of steps of an epoch."""
        return -(-self.examples // self.batch_size)

    def board_spec(self, weights: Weights, count: WorkerCount, *, step: int = 0, exchange: bool = False) -> BoardSpec:
        """Return the sizes of a board for these weights, which begins at this step.

        Args:
            weights: the weights, whose newest version is that of this step.
            count: the number of workers.
            step: the board's first step.
            exchange: whether nodes exchange sums.
        """
        settings = self.settings
        return BoardSpec(
            shards=settings.max_staleness + 1 if settings.is_async else settings.shards,
            max_workers=count.max,
            workers=count.wanted,
            is_async=settings.is_async,
            steps=self.steps,
            examples=self.examples,
            batch_size=self.batch_size,
            gradient_nbytes=weights.layout.nbytes,
            state_stride=weights.layout.state_stride,
            first_version=weights.target.version,
            first_step=step,
            exchange=exchange,
            kernels=self.kernels,
            clip_norm=0.0 if self.server_steps else settings.clip_norm or 0.0,
            ranges=weights.layout.ranges(),
            leaves=weights.layout.leaves(),
            sets_at=weights.layout.sets_at,
            sets_nbytes=weights.layout.sets_nbytes,
        )

    def gradient_job(self, weights: Weights, data: SharedData) -> GradientJob:
        """Return the job for the workers, with this data."""
        return GradientJob(
            weights=weights.subscriber().address,
            target=weights.target.subscriber().address,
            data=data,
            layout=weights.layout,
            seed=self.settings.seed,
            first_step=self.first_step,
            accumulate=self.settings.accumulate,
            min_examples=self.min_examples,
            one_by_one=self.one_by_one,
            turns=self.turns,
        )
