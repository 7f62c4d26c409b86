"""Save a checkpoint after each epoch, or after the best ones, under a name of your choice."""

from __future__ import annotations

import contextlib
import math
import os
import sys
from pathlib import Path
from typing import Any, Literal

import numpy as np

from untorn.train.callbacks.base import Callback, Logs
from untorn.train.callbacks.monitor import Mode, Monitor, check_count
from untorn.train.checkpoints import checkpoint

__all__ = ["ModelCheckpoint"]


class ModelCheckpoint(Callback):
    """Save with ``trainer.save`` at the end of epochs; ``trainer.load`` continues from such a file.

    To resume after a crash, use ``fit(checkpoint_dir=...)``, which also saves during epochs, does not hold up training,
    and removes old checkpoints. This callback is for the best weights under a name, or for one file per epoch. The
    states of callbacks after this one in the list are saved as they were before the epoch's end, so put it last.

    Args:
        filepath: the file, in which ``{epoch}`` (from 1, as in Keras) and any name in the logs are replaced by their
            values: "best.safetensors", "runs/{epoch:03d}-{val_loss:.4f}.safetensors". Missing folders are made.
        monitor: a name in the logs of an epoch, used with save_best_only.
        verbose: 1 prints on stderr what was saved.
        save_best_only: save only if ``monitor`` is better than in all epochs before.
        save_weights_only: write a safetensors file with the weights by their paths, without the optimizer's state;
            ``safetensors.numpy.load_file`` reads it, but ``trainer.load`` does not.
        mode: "min", "max" or "auto", as in EarlyStopping.
        save_freq: "epoch", or a number of steps, to save at the end of the first epoch in which that many are done.
        initial_value_threshold: with save_best_only, the value that the first one has to improve on.

    Attributes:
        best: the best value so far; NaN before the first.
        last_path: the newest file; None before the first.

    Raises:
        TypeError, ValueError: an argument is wrong; or, at the end of an epoch, ``monitor`` or a name in ``filepath``
            is not among the logs.
        ImportError: when training begins, if safetensors is not installed: ``pip install 'untorn[checkpoint]'``.
        OSError: the file could not be written.

    Example:
        >>> best = ModelCheckpoint("best.safetensors", "val_accuracy", save_best_only=True)
        >>> best.mode
        'max'

    """

    def __init__(
        self,
        filepath: str | os.PathLike[str],
        monitor: str = "val_loss",
        *,
        verbose: int = 0,
        save_best_only: bool = False,
        save_weights_only: bool = False,
        mode: Mode = "auto",
        save_freq: Literal["epoch"] | int = "epoch",
        initial_value_threshold: float | None = None,
    ) -> None:
        self._monitor = Monitor("ModelCheckpoint", monitor, mode=mode)
        if isinstance(save_freq, str):
            if save_freq != "epoch":
                raise ValueError(f"ModelCheckpoint: save_freq={save_freq!r}: expected 'epoch' or a number of steps")
        else:
            check_count("ModelCheckpoint", "save_freq", save_freq, least=1)
        self.filepath: str = os.fspath(filepath)
        self.monitor = monitor
        self.mode = self._monitor.mode
        self.verbose = verbose
        self.save_best_only = save_best_only
        self.save_weights_only = save_weights_only
        self.save_freq = save_freq
        self.best: float = math.nan if initial_value_threshold is None else float(initial_value_threshold)
        self.last_path: str | None = None
        self._saved_at = 0

    def on_train_begin(self, logs: Logs) -> None:
        """Check that safetensors is installed. Keeps the best value so far, as the files are kept."""
        checkpoint.check_installed()
        self._saved_at = self.trainer.step

    def on_epoch_end(self, epoch: int, logs: Logs) -> None:
        """Save if it is time, and if the value is better."""
        if self.save_freq != "epoch" and self.trainer.step - self._saved_at < self.save_freq:
            return
        value = self._monitor.value(logs) if self.save_best_only else math.nan
        if self.save_best_only and not self._monitor.is_better(value, self.best):
            return
        path = Path(self._path(epoch, logs))
        path.parent.mkdir(parents=True, exist_ok=True)
        before = self.best, self.last_path, self._saved_at
        self.best, self.last_path, self._saved_at = value, str(path), self.trainer.step  # first: the file has them too
        try:
            if self.save_weights_only:
                _write_weights(path, self.trainer.params)
            else:
                self.trainer.save(path)
        except BaseException:
            self.best, self.last_path, self._saved_at = before
            raise
        if self.verbose:
            why = f": {self.monitor} {value:.6g} is the best so far" if self.save_best_only else ""
            print(f"epoch {epoch + 1}: saved {path}{why}", file=sys.stderr)

    def _path(self, epoch: int, logs: Logs) -> str:
        try:
            return self.filepath.format(**{**logs, "epoch": epoch + 1})
        except (KeyError, IndexError) as error:
            raise ValueError(
                f"ModelCheckpoint: filepath={self.filepath!r}: {error.args[0]!r} is not in the logs; expected one of "
                f"epoch, {', '.join(logs)}"
            ) from None

    def state_dict(self) -> dict[str, Any]:
        """Return the best value, the newest file, and its step."""
        return {"best": self.best, "last_path": self.last_path, "saved_at": self._saved_at}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue with that best value."""
        self.best, self.last_path = float(state["best"]), state["last_path"]
        self._saved_at = int(state["saved_at"])


def _write_weights(path: Path, params: Any) -> None:
    """Write the weights to a safetensors file, which appears at once and complete."""
    from safetensors.numpy import save_file

    arrays = {
        name.removeprefix("params/"): np.asarray(array, order="C")
        for name, array in checkpoint.named_arrays("params", params).items()
    }
    scratch = path.with_name(f".{path.name}.writing")
    try:
        save_file(arrays, scratch)
        os.replace(scratch, path)
    finally:
        with contextlib.suppress(FileNotFoundError):
            scratch.unlink()
