"""Stop training when a metric no longer improves."""

from __future__ import annotations

import base64
import io
import math
import sys
import warnings
from typing import Any

import numpy as np

from untorn.share.lowlevel import flatten
from untorn.train.callbacks.base import Callback, Logs
from untorn.train.callbacks.monitor import Mode, Monitor, check_count

__all__ = ["EarlyStopping"]

#: checkpoints contain the best weights up to this size, since the text that holds a callback's state is limited
_STORED_NBYTES = 32 * 2**20


class EarlyStopping(Callback):
    """End training when ``monitor`` has not improved for ``patience`` epochs, counted as in Keras.

    Args:
        monitor: a name in the logs of an epoch, such as ``val_loss`` or ``accuracy``.
        min_delta: the smallest change that counts as an improvement, in the metric's unit; at least 0.
        patience: the number of epochs in a row without improvement after which training ends. 0, like 1, ends it at the
            first.
        verbose: 1 prints on stderr when training ends early, and which weights are restored.
        mode: whether less ("min") or more ("max") is better. "auto" decides by the name: more of accuracy, AUC,
            precision, recall, F1, score, R2, IoU and BLEU, less of everything else.
        baseline: epochs count towards patience, even if they improve, until one is better than this.
        restore_best_weights: restore the weights of the best epoch when training ends without an error. The optimizer's
            state stays. Needs memory for a copy of the weights.
        start_from_epoch: ignore epochs before this one.

    Attributes:
        best: the best value so far; NaN before the first number.
        best_epoch: its epoch; -1 before the first.
        best_weights: a copy of the weights after that epoch; None before the first, and without restore_best_weights.
        stopped_epoch: the epoch at which training was stopped; None if it was not.

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
        verbose: int = 0,
        mode: Mode = "auto",
        baseline: float | None = None,
        restore_best_weights: bool = False,
        start_from_epoch: int = 0,
    ) -> None:
        self._monitor = Monitor("EarlyStopping", monitor, mode=mode, min_delta=min_delta)
        self.monitor = monitor
        self.min_delta = min_delta
        self.mode = self._monitor.mode
        self.patience: int = check_count("EarlyStopping", "patience", patience, least=0)
        self.verbose = verbose
        self.baseline = baseline
        self.restore_best_weights = restore_best_weights
        self.start_from_epoch: int = check_count("EarlyStopping", "start_from_epoch", start_from_epoch, least=0)
        self._forget()

    def _forget(self) -> None:
        self.best: float = math.nan
        self.best_epoch: int = -1
        self.best_weights: Any = None
        self.stopped_epoch: int | None = None
        self._waited = 0

    def on_train_begin(self, logs: Logs) -> None:
        """Reset, so that one object can be used for several calls of ``fit``."""
        self._forget()

    def on_epoch_end(self, epoch: int, logs: Logs) -> None:
        """Compare with the best so far, and end training when patience is used up."""
        value = self._monitor.value(logs)
        if epoch < self.start_from_epoch:
            return
        self._waited += 1
        better = self._monitor.is_better(value, self.best)
        if better or self.best_epoch < 0:  # the first is the best so far, even if it is NaN
            self.best_epoch = epoch
            if self.restore_best_weights:
                self.best_weights = self.trainer.params
        if better:
            self.best = value
            if self.baseline is None or self._monitor.is_better(value, self.baseline):
                self._waited = 0
        elif self._waited >= self.patience:
            self.stopped_epoch = epoch
            self.trainer.stop_training = True

    def on_train_end(self, logs: Logs) -> None:
        """Restore the best weights, unless training ended with an error."""
        if self.stopped_epoch is not None:
            self._say(f"epoch {self.stopped_epoch + 1}: early stopping")
        if not self.restore_best_weights or "error" in logs:
            return
        if self.best_weights is not None:
            self._say(f"restored the weights of the best epoch, {self.best_epoch + 1}")
            self.trainer.params = self.best_weights
        elif self.best_epoch >= 0:
            warnings.warn(
                f"EarlyStopping: the weights of the best epoch, {self.best_epoch + 1}, are too large for a callback's "
                "state in a checkpoint, so they are lost after resuming and the newest weights stay; checkpoint_dir "
                "keeps the checkpoint with the lowest val_loss",
                RuntimeWarning,
                stacklevel=2,
            )

    def _say(self, text: str) -> None:
        if self.verbose:
            print(text, file=sys.stderr)

    def state_dict(self) -> dict[str, Any]:
        """Return the best value so far, its weights, and the number of epochs since."""
        return {
            "best": self.best,
            "best_epoch": self.best_epoch,
            "best_weights": None if self.best_weights is None else _packed(self.best_weights),
            "stopped_epoch": self.stopped_epoch,
            "waited": self._waited,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue to count. If this had ended training, it ends it again, unless patience is greater now."""
        self.best, self.best_epoch = float(state["best"]), int(state["best_epoch"])
        self._waited = int(state["waited"])
        if self.restore_best_weights and state["best_weights"] is not None:
            self.best_weights = _unpacked(state["best_weights"], self.trainer.params)
        if state["stopped_epoch"] is not None and self._waited >= self.patience:
            self.stopped_epoch = int(state["stopped_epoch"])
            self.trainer.stop_training = True


def _packed(weights: Any) -> list[str] | None:
    """Return the arrays as text; None if they are too large for that."""
    arrays = [np.asarray(leaf) for leaf in flatten(weights)[1]]
    if sum(array.nbytes for array in arrays) > _STORED_NBYTES:
        return None
    texts = []
    for array in arrays:
        file = io.BytesIO()
        np.save(file, array, allow_pickle=False)
        texts.append(base64.b64encode(file.getvalue()).decode())
    return texts


def _unpacked(texts: list[str], weights: Any) -> Any:
    """Copy the arrays that _packed() stored into the leaves of ``weights``, and return it."""
    for leaf, text in zip(flatten(weights)[1], texts, strict=True):
        np.copyto(leaf, np.load(io.BytesIO(base64.b64decode(text)), allow_pickle=False))
    return weights
