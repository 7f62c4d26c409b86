"""Steps that the server makes: the workers sum the gradients, and an optimizer of another library updates the weights.

::

    workers ── mean of the shards' gradients ──> channel of the sums ──> ServerStepper: clip, step, publish
       ^                                                                                      │
       └────── weights of version t+1, and beside them the optimizer's state <── channel of the weights

The board's update tasks write the weighted mean of the shards into a version of the sums' channel, where a fused
optimizer would write new weights (parameter_layout.py). The server lets the board advance one step at a time, so
version t is the newest one when a worker computes a gradient of step t. Beside the sums they write which parameters
have no gradient; the optimizer gets None for these. The optimizer's state is published beside the
weights, as for the fused optimizers, so a training can continue from a single version, and checkpoints are the same.

The optimizer at work lives as long as the trainer: from job to job it goes on where it was (Steppers). Another one
begins from the newest version only if somebody else has published it: a checkpoint was loaded, or another node was
ahead.

A loop outside may make the steps with an optimizer of its own (LoopStepper): it gets the mean gradient, and the weights
that it has made are published before the next gradient.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from untorn.board import Board
from untorn.share import lowlevel
from untorn.share.lowlevel import flatten
from untorn.train.optim.base import LoopOptimizer, Optimizer
from untorn.train.run.parameter_layout import ABSENT
from untorn.train.run.weights import Weights
from untorn.train.settings import Settings

__all__ = ["ServerStepper", "Stepper", "Steppers"]

_Array = NDArray[Any]
#: the epsilon of torch.nn.utils.clip_grad_norm_, against a division by a norm of 0
_CLIP_EPSILON = 1e-6


class Steppers:
    """Keeps the stepper of the last job for the next one."""

    def __init__(self) -> None:
        self._kept: Stepper | None = None

    def get(self, optimizer: Optimizer, weights: Weights, settings: Settings, step: int = 0) -> Stepper | None:
        """Return the stepper for a job that begins now; None if the workers make the steps.

        Args:
            optimizer, weights, settings: as for ServerStepper.
            step: the board's step that the newest weights are those of.

        Raises RuntimeError if another stepper would have to begin, and the optimizer cannot begin from a version.
        """
        if not optimizer.server_steps:
            return None
        kept = self._kept
        if kept is None or not kept.is_at(weights):
            if kept is not None and optimizer.outside:
                raise RuntimeError(
                    f"optimizer: it cannot go on: {optimizer.outside}, and a step of it was interrupted, or the "
                    "weights were replaced; make another Trainer"
                )
            self._kept = None  # its memory is free before the next one takes some
            if isinstance(optimizer, LoopOptimizer):
                kept = LoopStepper(optimizer, weights)
            else:
                kept = ServerStepper(optimizer, weights, settings)
            self._kept = kept
        kept.begin(step)
        return kept

    def close(self) -> None:
        """Forget the stepper."""
        self._kept = None


class Stepper(ABC):
    """Makes the steps of one job after another in this process, from the sums of the workers. Abstract.

    Args:
        weights: the weights to read and publish.
    """

    def __init__(self, weights: Weights) -> None:
        self._weights = weights
        #: the version whose values the optimizer has; None during a step
        self._version: int | None = weights.version
        self._reader = weights.target.subscriber()

    def is_at(self, weights: Weights) -> bool:
        """Return whether the optimizer has the values of the newest version of these weights."""
        return self._weights is weights and self._version == weights.version

    @abstractmethod
    def begin(self, step: int) -> None:
        """Begin a job at this step of its board."""

    @property
    @abstractmethod
    def steps(self) -> int:
        """The number of steps made, since the board's step 0."""

    def prepare(self) -> None:  # noqa: B027 - the weights of a ServerStepper are published already
        """Publish the weights for the gradient of the next step, unless they are published."""

    @abstractmethod
    def make(self, board: Board) -> None:
        """Make this step of the board, from the newest sum. Raises CapacityError if readers hold every slot."""


class ServerStepper(Stepper):
    """Reads in each step the sum of the workers, and publishes the next weights. See Stepper.

    Args:
        optimizer: the optimizer, which begins with the newest weights and state.
        weights: the weights to read and publish.
        settings: the settings of the trainer.
    """

    def __init__(self, optimizer: Optimizer, weights: Weights, settings: Settings) -> None:
        super().__init__(weights)
        self._clip_norm = settings.clip_norm
        with weights.snapshot() as newest:
            params, state = lowlevel.copy_with_extra(newest, arrays=True)
        leaves = flatten(params)[1]
        kept, buffers = weights.untrained
        untrained = kept + buffers
        self._changed = range(kept, len(leaves) + len(state))
        self._buffers = leaves[kept:untrained]
        self._gradients = [np.empty_like(leaf) for leaf in leaves[untrained:]]
        self._names = [*(f"parameter {index}" for index in range(len(self._gradients))), *state]
        self._kinds = [(leaf.shape, leaf.dtype) for leaf in [*leaves[untrained:], *state.values()]]
        trained = dict(list(params.items())[untrained:]) if untrained else params
        self._session = optimizer.session(trained, state, threads=settings.threads_per_worker)

    def begin(self, step: int) -> None:
        """See Stepper."""
        self._base_version = self._weights.version - step

    @property
    def steps(self) -> int:
        """See Stepper."""
        return self._weights.version - self._base_version

    def make(self, board: Board) -> None:
        """See Stepper."""
        gradients = self._read()
        present = [gradient for gradient in gradients if gradient is not None]
        norm = 0.0 if self._clip_norm is None else _clip(present, self._clip_norm)
        row = self.steps % board.steps
        if self._clip_norm is not None:
            board.log["grad_norm"][row] = norm
        self._version = None
        self._session.step(gradients, float(board.rates[row, 0]))
        self._publish()
        self._version = self._weights.version

    def _read(self) -> list[_Array | None]:
        """Read the newest sum; return the gradients, None for a parameter that has none."""
        with self._reader.snapshot() as newest:
            for target, leaf in zip(self._buffers + self._gradients, flatten(newest.value)[1], strict=True):
                np.copyto(target, leaf)
            absent = lowlevel.extra(newest)[ABSENT].tolist()
        return [None if none else each for each, none in zip(self._gradients, absent, strict=True)]

    def _publish(self) -> None:
        values = self._session.values()
        for name, value, kind in zip(self._names, values, self._kinds, strict=True):
            if (value.shape, value.dtype) != kind:
                raise TypeError(
                    f"optimizer: {name}: expected {kind[1]} of shape {kind[0]}, as before the first step, found "
                    f"{value.dtype} of shape {value.shape}; only state that stays as large as it is can be published"
                )
        lowlevel.update_leaves(self._weights.channel, dict(zip(self._changed, self._buffers + values, strict=True)))


class LoopStepper(Stepper):
    """Publishes before each gradient the weights that a loop outside has, and hands the gradient to it. See Stepper.

    Args:
        optimizer: the loop's optimizer, which makes the steps.
        weights: the weights to publish.
    """

    def __init__(self, optimizer: LoopOptimizer, weights: Weights) -> None:
        super().__init__(weights)
        self._optimizer = optimizer
        self._steps = 0

    def begin(self, step: int) -> None:
        """See Stepper."""
        self._steps = step

    @property
    def steps(self) -> int:
        """See Stepper."""
        return self._steps

    def prepare(self) -> None:
        """See Stepper. Raises CapacityError if readers hold every slot."""
        lowlevel.update_leaves(self._weights.channel, dict(enumerate(self._optimizer.values())))
        self._version = self._weights.version

    def make(self, board: Board) -> None:
        """See Stepper."""
        buffers = self._weights.untrained[1]
        with self._reader.snapshot() as newest:
            leaves = flatten(newest.value)[1]
            absent = lowlevel.extra(newest)[ABSENT].tolist()
            gradients = [None if none else each for each, none in zip(leaves[buffers:], absent, strict=True)]
            self._optimizer.take(leaves[:buffers], gradients)
        self._steps += 1


def _clip(gradients: list[_Array], clip_norm: float) -> float:
    """Scale the gradients in place, as torch.nn.utils.clip_grad_norm_ does. Return the norm before that, in float64."""
    norm = math.sqrt(sum(float(np.square(gradient, dtype=np.float64).sum()) for gradient in gradients))
    scale = clip_norm / (norm + _CLIP_EPSILON)
    if not scale > 1:  # a norm of NaN is applied too, so that every parameter becomes NaN
        for gradient in gradients:
            np.multiply(gradient, gradient.dtype.type(scale), out=gradient)
    return norm
