"""Stop when a metric no longer gets better."""

from __future__ import annotations

import math
from typing import Literal

from untorn.train.callbacks.base import Callback, Logs

__all__ = ["EarlyStopping"]

# Names of which more is better; of everything else (losses, errors, perplexities) less is.
_MORE_IS_BETTER = ("acc", "auc", "precision", "recall", "f1", "score", "r2", "iou", "bleu")


class EarlyStopping(Callback):
    """End training when ``monitor`` has not got better for ``patience`` epochs, as Keras counts them.

    Args:
        monitor: a name in the logs of an epoch, such as ``val_loss`` or ``accuracy``.
        min_delta: how much counts as better, in the metric's unit; at least 0.
        patience: after how many epochs in a row without getting better training ends. 0, like 1, ends it at the
            first.
        mode: whether less ("min") or more ("max") is better; "auto" tells it from the name: more of accuracy, AUC,
            precision, recall, F1, score, R2, IoU and BLEU, less of everything else.

    Attributes:
        best: the best value so far; NaN before the first.
        best_epoch: its epoch; -1 before the first.
        stopped_epoch: the epoch at which it ended training; None when it did not.

    Raises:
        ValueError: an argument is wrong, or, at the end of an epoch, ``monitor`` is not among the logs.

    Example:
        >>> stop = EarlyStopping("val_accuracy", min_delta=0.001, patience=3)
        >>> stop.mode
        'max'

    """

    def __init__(
        self,
        monitor: str = "val_loss",
        *,
        min_delta: float = 0.0,
        patience: int = 0,
        mode: Literal["auto", "min", "max"] = "auto",
    ) -> None:
        if mode not in ("auto", "min", "max"):
            raise ValueError(f"mode={mode!r}: expected 'auto', 'min' or 'max'")
        if not 0 <= min_delta < math.inf:
            raise ValueError(f"min_delta={min_delta!r}: expected a finite number of at least 0")
        if patience < 0:
            raise ValueError(f"patience={patience!r}: expected a number of epochs of at least 0")
        self.monitor = monitor
        self.min_delta = min_delta
        self.patience = patience
        self.mode: Literal["min", "max"] = _mode_of(monitor) if mode == "auto" else mode
        self._forget()

    def _forget(self) -> None:
        self.best = math.nan
        self.best_epoch = -1
        self.stopped_epoch: int | None = None
        self._waited = 0

    def on_train_begin(self, logs: Logs) -> None:
        """Forget the run before, so that one object serves several calls of ``fit``."""
        self._forget()

    def on_epoch_end(self, epoch: int, logs: Logs) -> None:
        """Compare with the best so far, and end training when patience is used up."""
        if self.monitor not in logs:
            hint = "; give fit validation_data" if self.monitor.startswith("val_") else ""
            raise ValueError(
                f"EarlyStopping(monitor={self.monitor!r}): the epoch has no such metric; "
                f"there are {', '.join(logs) or 'none'}{hint}"
            )
        value = float(logs[self.monitor])
        if self._is_better(value):
            self.best, self.best_epoch, self._waited = value, epoch, 0
            return
        self._waited += 1
        if self._waited >= self.patience:
            self.stopped_epoch = epoch
            self.trainer.stop_training = True

    def _is_better(self, value: float) -> bool:
        if math.isnan(value):
            return False
        if math.isnan(self.best):
            return True
        gain = self.best - value if self.mode == "min" else value - self.best
        return gain > self.min_delta


def _mode_of(monitor: str) -> Literal["min", "max"]:
    name = monitor.removeprefix("val_").lower()
    return "max" if any(part.startswith(_MORE_IS_BETTER) for part in name.split("_")) else "min"
