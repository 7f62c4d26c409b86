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
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from untorn.board import Board
from untorn.share import lowlevel
from untorn.share.lowlevel import flatten
from untorn.train.optim.base import Optimizer
from untorn.train.run.parameter_layout import ABSENT
from untorn.train.run.weights import Weights
from untorn.train.settings import Settings

__all__ = ["ServerStepper"]

_Array = NDArray[Any]
#: the epsilon of torch.nn.utils.clip_grad_norm_, against a division by a norm of 0
_CLIP_EPSILON = 1e-6


class ServerStepper:
    """Makes the steps of one job. Each step reads the sum of the workers, and publishes the next weights.

    Args:
        optimizer: the optimizer, which begins with the newest weights and state.
        weights: the weights to read and publish.
        settings: the settings of the trainer.
        step: the board's step that the newest weights are those of.
    """

    def __init__(self, optimizer: Optimizer, weights: Weights, settings: Settings, step: int = 0) -> None:
        self._weights = weights
        self._reader = weights.target.subscriber()
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
        self._base_version = weights.version - step
        trained = dict(list(params.items())[untrained:]) if untrained else params
        self._session = optimizer.session(trained, state, threads=settings.threads_per_worker)

    @classmethod
    def of(cls, optimizer: Optimizer, weights: Weights, settings: Settings) -> ServerStepper | None:
        """Return a stepper for a job that begins now; None if the workers make the steps."""
        return cls(optimizer, weights, settings) if optimizer.server_steps else None

    @property
    def steps(self) -> int:
        """The number of steps made, since the board's step 0."""
        return self._weights.version - self._base_version

    def make(self, board: Board) -> None:
        """Make this step of the board, from the newest sum. Raises CapacityError if readers hold every slot."""
        gradients = self._read()
        present = [gradient for gradient in gradients if gradient is not None]
        norm = 0.0 if self._clip_norm is None else _clip(present, self._clip_norm)
        row = self.steps % board.steps
        if self._clip_norm is not None:
            board.log["grad_norm"][row] = norm
        self._session.step(gradients, float(board.rates[row, 0]))
        self._publish()

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


def _clip(gradients: list[_Array], clip_norm: float) -> float:
    """Scale the gradients in place, as torch.nn.utils.clip_grad_norm_ does. Return the norm before that, in float64."""
    norm = math.sqrt(sum(float(np.square(gradient, dtype=np.float64).sum()) for gradient in gradients))
    scale = clip_norm / (norm + _CLIP_EPSILON)
    if not scale > 1:  # a norm of NaN is applied too, so that every parameter becomes NaN
        for gradient in gradients:
            np.multiply(gradient, gradient.dtype.type(scale), out=gradient)
    return norm
