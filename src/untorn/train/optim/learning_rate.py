"""What can be set on a trainer that was made: the learning rate, and the weights."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from untorn.train.checkpoints import checkpoint
from untorn.train.optim.fused import FusedOptimizer
from untorn.train.optim.schedules import rate_at
from untorn.train.optim.server import ServerOptimizer

__all__ = ["Rate", "copy_weights"]


class Rate:
    """The learning rate: the optimizer's, until another is set.

    Where the optimizer's is a function of the step, what is set is a factor: the rate of the next step is what was
    asked for, and all later ones keep their ratio to it. Of an optax.GradientTransformation it is not known.
    """

    def __init__(self, optimizer: FusedOptimizer | ServerOptimizer) -> None:
        self._optimizer = optimizer
        self._owner = type(optimizer).__name__
        #: None: as the optimizer has it. Else the rate, or for a function of the step the factor
        self.changed: float | None = None

    def at(self, step: int) -> float:
        """The rate of this step."""
        rate = rate_at(self._owner, self._optimizer.learning_rate, step)
        if self.changed is None:
            return rate
        return self.changed * rate if callable(self._optimizer.learning_rate) else self.changed

    @contextmanager
    def as_it_was(self, changed: float | None) -> Iterator[None]:
        """Inside, what was set is this, as ``changed`` was at some time."""
        now, self.changed = self.changed, changed
        try:
            yield
        finally:
            self.changed = now

    def set(self, rate: Any, *, step: int) -> None:
        """Let this step have this rate. Raises TypeError or ValueError."""
        if isinstance(rate, bool | str) or not hasattr(rate, "__float__"):
            raise TypeError(f"learning_rate: expected a number, found {type(rate).__name__}")
        rate = float(rate)
        if not 0 <= rate < math.inf:
            raise ValueError(f"learning_rate: expected a finite number of at least 0, found {rate}")
        if math.isnan(self.at(step)):
            raise AttributeError(
                "learning_rate: this optimizer has none that could be set; give it its rates as a schedule: a function "
                "of the step, which optax calls by itself"
            )
        if rate == self.at(step):  # a factor would round
            return
        if not callable(self._optimizer.learning_rate):
            self.changed = rate
            return
        scheduled = rate_at(self._owner, self._optimizer.learning_rate, step)
        if scheduled == 0:
            raise ValueError(
                f"learning_rate: the optimizer's is a function of the step and gives 0 at step {step}, which no factor "
                f"makes {rate}; set it at another step, or give the optimizer a number"
            )
        self.changed = rate / scheduled

    def rates(self, first_step: int, steps: int) -> Any:
        """FusedOptimizer.rates with these rates."""
        if isinstance(self._optimizer, ServerOptimizer):
            return np.array([[self.at(first_step), 1.0, 1.0]] * steps)
        if self.changed is None:
            return self._optimizer.rates(first_step, steps)
        return dataclasses.replace(self._optimizer, learning_rate=self.at).rates(first_step, steps)


def copy_weights(target: Any, value: Any) -> None:
    """Copy a tree of arrays into a writable one. Raises ValueError, naming the place, where they differ in structure,
    shape or dtype; then nothing is changed."""
    targets, values = checkpoint.named_arrays("params", target), checkpoint.named_arrays("params", value)
    for name in sorted(targets.keys() ^ values.keys()):
        there, here = ("no", "one") if name in targets else ("one", "none")
        raise ValueError(f"params: what is set has {there} {_short(name)}, and this trainer has {here}")
    arrays = {name: np.asarray(leaf) for name, leaf in values.items()}
    for name, array in arrays.items():
        wanted = targets[name]
        if (array.dtype, array.shape) != (wanted.dtype, wanted.shape):
            raise ValueError(
                f"params: {_short(name)}: expected {wanted.dtype} of shape {wanted.shape}, "
                f"found {array.dtype} of shape {array.shape}"
            )
    for name, array in arrays.items():
        np.copyto(targets[name], array)


def _short(name: str) -> str:
    return name.removeprefix("params/")
