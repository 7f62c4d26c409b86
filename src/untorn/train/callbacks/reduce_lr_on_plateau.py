"""Lower the learning rate when a metric no longer improves."""

from __future__ import annotations

import math
import sys
from typing import Any

from untorn.train.callbacks.base import Callback, Logs
from untorn.train.callbacks.monitor import Mode, Monitor, check_count

__all__ = ["ReduceLROnPlateau"]


class ReduceLROnPlateau(Callback):
    """Multiply the learning rate by ``factor`` when ``monitor`` has not improved for ``patience`` epochs, as in Keras.

    Args:
        monitor: a name in the logs of an epoch, such as ``val_loss`` or ``accuracy``.
        factor: a number between 0 and 1.
        patience: the number of epochs in a row without improvement; 0, like 1, lowers the rate at the first.
        verbose: 1 prints on stderr when the rate is lowered.
        mode: "min", "max" or "auto", as in EarlyStopping.
        min_delta: the smallest change that counts as an improvement, in the metric's unit; at least 0.
        cooldown: the number of epochs that are not counted after the rate was lowered.
        min_lr: the lowest rate.

    Attributes:
        best: the best value so far; NaN before the first.

    Raises:
        TypeError, ValueError: an argument is wrong, or, at the end of an epoch, ``monitor`` is not among the logs.

    Example:
        >>> lower = ReduceLROnPlateau("val_accuracy", factor=0.2, patience=5, min_lr=1e-4)
        >>> lower.mode
        'max'

    """

    def __init__(
        self,
        monitor: str = "val_loss",
        *,
        factor: float = 0.1,
        patience: int = 10,
        verbose: int = 0,
        mode: Mode = "auto",
        min_delta: float = 1e-4,
        cooldown: int = 0,
        min_lr: float = 0.0,
    ) -> None:
        if not 0 < factor < 1:
            raise ValueError(f"ReduceLROnPlateau: factor={factor!r}: expected a number between 0 and 1")
        if not 0 <= min_lr < math.inf:
            raise ValueError(f"ReduceLROnPlateau: min_lr={min_lr!r}: expected a finite number of at least 0")
        self._monitor = Monitor("ReduceLROnPlateau", monitor, mode=mode, min_delta=min_delta)
        self.monitor = monitor
        self.min_delta = min_delta
        self.mode = self._monitor.mode
        self.factor = factor
        self.patience: int = check_count("ReduceLROnPlateau", "patience", patience, least=0)
        self.verbose = verbose
        self.cooldown: int = check_count("ReduceLROnPlateau", "cooldown", cooldown, least=0)
        self.min_lr = min_lr
        self._forget()

    def _forget(self) -> None:
        self.best: float = math.nan
        self._waited = 0
        self._cooling = 0

    def on_train_begin(self, logs: Logs) -> None:
        """Reset, so that one object can be used for several calls of ``fit``. Keeps the learning rate."""
        self._forget()

    def on_epoch_end(self, epoch: int, logs: Logs) -> None:
        """Compare with the best so far, and lower the rate when patience is used up."""
        value = self._monitor.value(logs)
        if self._cooling:
            self._cooling -= 1
            self._waited = 0
        if self._monitor.is_better(value, self.best):
            self.best, self._waited = value, 0
        elif not self._cooling:
            self._waited += 1
            if self._waited >= self.patience:
                self._reduce(epoch)

    def _reduce(self, epoch: int) -> None:
        old = self.trainer.learning_rate
        if old <= self.min_lr:
            return
        self.trainer.learning_rate = new = max(old * self.factor, self.min_lr)
        self._waited, self._cooling = 0, self.cooldown
        if self.verbose:
            print(f"epoch {epoch + 1}: learning rate lowered from {old:.6g} to {new:.6g}", file=sys.stderr)

    def state_dict(self) -> dict[str, Any]:
        """Return the best value and the counts. The checkpoint itself has the rate."""
        return {"best": self.best, "waited": self._waited, "cooling": self._cooling}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue to count."""
        self.best = float(state["best"])
        self._waited, self._cooling = int(state["waited"]), int(state["cooling"])
