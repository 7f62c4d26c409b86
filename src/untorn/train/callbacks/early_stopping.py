"""Stop when a metric no longer gets better."""

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

#: the best weights go into checkpoints up to this size; these hold a callback's state as text, which has a limit
_STORED_NBYTES = 32 * 2**20


class EarlyStopping(Callback):
    """End training when ``monitor`` has not got better for ``patience`` epochs, as Keras counts them.

    Args:
        monitor: a name in the logs of an epoch, such as ``val_loss`` or ``accuracy``.
        min_delta: how much counts as better, in the metric's unit; at least 0.
        patience: after how many epochs in a row without getting better training ends. 0, like 1, ends it at the
            first.
        verbose: 1 says on stderr when it ends training, and which weights it restores.
        mode: whether less ("min") or more ("max") is better; "auto" tells it from the name: more of accuracy, AUC,
            precision, recall, F1, score, R2, IoU and BLEU, less of everything else.
        baseline: an epoch counts towards patience, even if it is the best so far, until one is better than this.
        restore_best_weights: when training is over, without an error, go back to the weights of the best epoch. The
            optimizer's state stays. Costs a copy of the weights in memory.
        start_from_epoch: epochs before this one are not looked at.

    Attributes:
        best: the best value so far; NaN before the first number.
        best_epoch: its epoch; -1 before the first.
        best_weights: a copy of the weights after it; None before the first, and without restore_best_weights.
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
        """Forget the run before, so that one object serves several calls of ``fit``."""
        self._forget()

    def on_epoch_end(self, epoch: int, logs: Logs) -> None:
        """Compare with the best so far, and end training when patience is used up."""
        value = self._monitor.value(logs)
        if epoch < self.start_from_epoch:
            return
        self._waited += 1
        better = self._monitor.is_better(value, self.best)
        if better or self.best_epoch < 0:  # the first may be NaN: it is the best there is
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
        """Go back to the best weights, unless training ended with an error."""
        if self.stopped_epoch is not None:
            self._say(f"epoch {self.stopped_epoch + 1}: early stopping")
        if not self.restore_best_weights or "error" in logs:
            return
        if self.best_weights is not None:
            self._say(f"the weights are those of the best epoch, {self.best_epoch + 1}")
            self.trainer.params = self.best_weights
        elif self.best_epoch >= 0:
            warnings.warn(
                f"EarlyStopping: the weights of the best epoch, {self.best_epoch + 1}, are larger than what a "
                "checkpoint keeps for a callback, so after resuming they are not there; the newest weights stay. "
                "checkpoint_dir keeps the checkpoint with the lowest val_loss",
                RuntimeWarning,
                stacklevel=2,
            )

    def _say(self, text: str) -> None:
        if self.verbose:
            print(text, file=sys.stderr)

    def state_dict(self) -> dict[str, Any]:
        """The best value so far, its weights, and for how long there was none better."""
        return {
            "best": self.best,
            "best_epoch": self.best_epoch,
            "best_weights": None if self.best_weights is None else _packed(self.best_weights),
            "stopped_epoch": self.stopped_epoch,
            "waited": self._waited,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on waiting; a training that this had ended does not begin again, unless patience is greater now."""
        self.best, self.best_epoch = float(state["best"]), int(state["best_epoch"])
        self._waited = int(state["waited"])
        if self.restore_best_weights and state["best_weights"] is not None:
            self.best_weights = _unpacked(state["best_weights"], self.trainer.params)
        if state["stopped_epoch"] is not None and self._waited >= self.patience:
            self.stopped_epoch = int(state["stopped_epoch"])
            self.trainer.stop_training = True


def _packed(weights: Any) -> list[str] | None:
    """The arrays as text; None if they are too large for that."""
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
    """What _packed took, in a writable tree of that structure."""
    for leaf, text in zip(flatten(weights)[1], texts, strict=True):
        np.copyto(leaf, np.load(io.BytesIO(base64.b64decode(text)), allow_pickle=False))
    return weights
