"""Set the learning rate of each epoch by a function."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from typing import Any

from untorn.train.callbacks.base import Callback, Logs

__all__ = ["LearningRateScheduler"]


class LearningRateScheduler(Callback):
    """Set the learning rate before each epoch to the return value of ``schedule``.

    If the rate of each step is known before training begins, give the optimizer a function of the step instead. This
    callback is for rates that depend on the training itself.

    Args:
        schedule: ``schedule(epoch, learning_rate) -> learning_rate``, with the epoch from 0 and the current rate.
        verbose: 1 prints the rate of each epoch on stderr.

    Raises:
        TypeError, ValueError: before an epoch, if the schedule returns no number, or a negative or infinite one.

    Example:
        >>> def halve_every_ten(epoch, learning_rate):
        ...     return learning_rate / 2 if epoch and epoch % 10 == 0 else learning_rate
        >>> scheduler = LearningRateScheduler(halve_every_ten)

    """

    def __init__(self, schedule: Callable[[int, float], float], *, verbose: int = 0) -> None:
        if not callable(schedule):
            raise TypeError(
                "LearningRateScheduler: schedule: expected a function (epoch, learning_rate) -> learning_rate, found "
                f"{schedule!r}"
            )
        self.schedule = schedule
        self.verbose = verbose
        self._epoch = -1

    def on_train_begin(self, logs: Logs) -> None:
        """Reset, so that one object can be used for several calls of ``fit``."""
        self._epoch = -1

    def on_epoch_begin(self, epoch: int, logs: Logs) -> None:
        """Set the rate that the schedule returns. An epoch that is resumed in its middle has its rate already."""
        if epoch == self._epoch:
            return
        rate = self.schedule(epoch, self.trainer.learning_rate)
        if isinstance(rate, bool) or not hasattr(rate, "__float__"):
            raise TypeError(
                f"LearningRateScheduler: schedule({epoch}, ...) must return a number, found {type(rate).__name__}"
            )
        rate = float(rate)
        if not 0 <= rate < math.inf:
            raise ValueError(f"LearningRateScheduler: schedule({epoch}, ...) must be finite, at least 0, found {rate}")
        self.trainer.learning_rate = rate
        self._epoch = epoch
        if self.verbose:
            print(f"epoch {epoch + 1}: learning rate {rate:.6g}", file=sys.stderr)

    def state_dict(self) -> dict[str, Any]:
        """Return the newest epoch whose rate was set. The checkpoint itself has the rate."""
        return {"epoch": self._epoch}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue in that epoch, or after it."""
        self._epoch = int(state["epoch"])
