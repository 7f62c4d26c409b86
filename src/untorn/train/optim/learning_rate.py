"""The learning rate of a training, which callbacks may set."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from untorn.train.optim.base import Optimizer
from untorn.train.optim.schedules import rate_at

__all__ = ["LearningRate"]


class LearningRate:
    """The learning rate: the optimizer's, until another is set.

    If the optimizer's is a function of the step, its values get a factor: the next step has the rate that was set, and
    all later ones keep their ratio to it. The rate of an optax.GradientTransformation is not known.

    Attributes:
        override: the rate that was set, or, for a function of the step, the factor; None for the optimizer's own rate.
    """

    def __init__(self, optimizer: Optimizer) -> None:
        self._optimizer = optimizer
        self._owner = type(optimizer).__name__
        self.override: float | None = None

    def at(self, step: int) -> float:
        """Return the rate of this step."""
        rate = rate_at(self._owner, self._optimizer.learning_rate, step)
        if self.override is None:
            return rate
        return self.override * rate if callable(self._optimizer.learning_rate) else self.override

    @contextmanager
    def as_it_was(self, override: float | None) -> Iterator[None]:
        """Use this override, from an earlier time, for the block."""
        now, self.override = self.override, override
        try:
            yield
        finally:
            self.override = now

    def set(self, rate: Any, *, step: int) -> None:
        """Set the rate of this step. Raises TypeError or ValueError."""
        if isinstance(rate, bool | str) or not hasattr(rate, "__float__"):
            raise TypeError(f"learning_rate: expected a number, found {type(rate).__name__}")
        rate = float(rate)
        if not 0 <= rate < math.inf:
            raise ValueError(f"learning_rate: expected a finite number of at least 0, found {rate}")
        if math.isnan(self.at(step)):
            raise AttributeError(
                "learning_rate: this optimizer has none that could be set; give it its rates as a schedule: a function "
                "of the step, which optax itself calls"
            )
        if rate == self.at(step):  # a factor would round
            return
        if not callable(self._optimizer.learning_rate):
            self.override = rate
            return
        scheduled = rate_at(self._owner, self._optimizer.learning_rate, step)
        if scheduled == 0:
            raise ValueError(
                f"learning_rate: the optimizer's is a function of the step and gives 0 at step {step}, which no factor "
                f"makes {rate}; set it at another step, or give the optimizer a number"
            )
        self.override = rate / scheduled

    def rates(self, first_step: int, steps: int) -> NDArray[np.float64]:
        """Return the numbers of these steps for a board, see Optimizer.rates."""
        return self._optimizer.rates(first_step, steps, self.at)
