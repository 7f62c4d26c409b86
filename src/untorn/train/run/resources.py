"""The resources that a trainer holds while it is open."""

from __future__ import annotations

import os

from untorn.control import Control
from untorn.train.run.pool import Pool
from untorn.train.run.stepping import Stepping
from untorn.train.run.weights import Weights

__all__ = ["Resources"]


class Resources:
    """The resources of a trainer, from its first use to its end.

    Args:
        weights: the channel of the weights.
        pool: the workers.
        name: the name under which other processes find the job, or None.

    Attributes:
        stepping: makes single steps; None before the first.
    """

    def __init__(self, weights: Weights, pool: Pool, name: str | None) -> None:
        self.weights = weights
        self.stepping: Stepping | None = None
        self.control = Control(name) if name is not None else None
        self._pool = pool
        self._owner = os.getpid()

    def end_steps(self) -> None:
        """End the job of single steps, if there is one."""
        if self.stepping is not None and os.getpid() == self._owner:
            self.stepping.close()

    def close(self) -> None:
        """End the workers and close the channel of the weights. Does nothing in a forked copy of the process."""
        if os.getpid() != self._owner:
            return
        self.end_steps()
        if self.control is not None:
            self.control.close()
        self._pool.close()
        self.weights.close()
