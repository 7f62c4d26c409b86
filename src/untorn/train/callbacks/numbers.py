"""The base of callbacks that hand the numbers of training to another program: TensorBoard, WandB, MLflow."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Any, Literal

from untorn.train.callbacks.base import Callback, FittingTrainer, Logs
from untorn.train.callbacks.monitor import check_count

__all__ = ["NumbersCallback", "UpdateFreq", "settings_of"]

UpdateFreq = Literal["epoch", "batch"] | int

# Entries in the logs of a step that are not measurements.
_NO_NUMBERS = frozenset({"examples", "version"})
_SETTINGS = (
    "engine", "mode", "workers", "nodes", "shards", "seed", "learning_rate", "clip_norm", "accumulate", "max_staleness",
)  # fmt: skip


class NumbersCallback(Callback, ABC):
    """Passes on the numbers of epochs, and those of steps if it is asked to. NaN stands for a missing metric, and is
    left out. Abstract.

    Args:
        update_freq: "epoch" passes numbers on after each epoch. "batch" also those of each step, and a number those of
            every such number of steps.

    Raises ValueError if update_freq is something else.
    """

    def __init__(self, update_freq: UpdateFreq) -> None:
        name = type(self).__name__
        if isinstance(update_freq, str):
            if update_freq not in ("epoch", "batch"):
                raise ValueError(f"{name}: update_freq={update_freq!r}: expected 'epoch', 'batch' or a number of steps")
        else:
            check_count(name, "update_freq", update_freq, least=1)
        self.update_freq = update_freq
        self._every = update_freq if isinstance(update_freq, int) else int(update_freq == "batch")
        self._first_step: int | None = None

    @abstractmethod
    def write_step(self, numbers: dict[str, float], step: int) -> None:
        """Pass on the numbers of a step, counted since training began, from 0."""

    @abstractmethod
    def write_epoch(self, numbers: dict[str, float], epoch: int) -> None:
        """Pass on the numbers of an epoch, counted from 0."""

    def on_epoch_begin(self, epoch: int, logs: Logs) -> None:
        """Remember the step at which the epoch begins."""
        self._first_step = None
        self._begun_at = self.trainer.step

    def on_batch_end(self, batch: int, logs: Logs) -> None:
        """Write the step's numbers, if ``update_freq`` asks for this step."""
        if not self._every:
            return
        if self._first_step is None:  # the first batch is not 0 if training resumes in the middle of an epoch
            self._first_step = self._begun_at - batch
        step = self._first_step + batch
        if step % self._every == 0:
            self.write_step(_numbers({name: each for name, each in logs.items() if name not in _NO_NUMBERS}), step)

    def on_epoch_end(self, epoch: int, logs: Logs) -> None:
        """Write the epoch's numbers."""
        self.write_epoch(_numbers(logs), epoch)


def settings_of(trainer: FittingTrainer) -> dict[str, Any]:
    """Return the settings of a trainer, as numbers and strings, for the description of a run."""
    found = {name: getattr(trainer, name, None) for name in _SETTINGS}
    optimizer = getattr(trainer, "optimizer", None)
    return {
        **{name: value for name, value in found.items() if not (value is None or _is_nan(value))},
        "optimizer": getattr(optimizer, "__qualname__", None) or repr(optimizer),
        "first_step": int(trainer.step),
    }


def _is_nan(value: Any) -> bool:
    return isinstance(value, float) and math.isnan(value)


def _numbers(logs: Logs) -> dict[str, float]:
    numbers = {name: float(value) for name, value in logs.items()}
    return {name: value for name, value in numbers.items() if not math.isnan(value)}
