"""Where a training stands: its step and epoch, what it has measured, and an epoch that is left half done."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from untorn.train.callbacks import Callback
from untorn.train.checkpoints.checkpoint import Checkpoint, Progress
from untorn.train.checkpoints.resuming import PartialEpoch, callback_states
from untorn.train.history import History
from untorn.train.optim.learning_rate import LearningRate
from untorn.train.settings import Settings

__all__ = ["TrainingState"]

#: settings of a checkpoint that say how the data was cut into batches
_CUT = ("batch_size", "examples", "shuffle")


class TrainingState:
    """Everything of a training that changes from step to step, beside the weights and the optimizer's state.

    Attributes:
        step: steps made since training began.
        epoch: the epoch that runs now, or comes next.
        history: of all epochs since training began.
        learning_rate: the optimizer's, until another is set.
        partial: an epoch that was left half done, or loaded so.
        cut: how the data is cut into batches, as a checkpoint stores it.
        stop: whether to stop after the epoch.
    """

    def __init__(self, settings: Settings, learning_rate: LearningRate, optimizer: Any) -> None:
        self.step = 0
        self.epoch = 0
        self.history = History()
        self.learning_rate = learning_rate
        self.partial: PartialEpoch | None = None
        self.cut: dict[str, Any] = {}
        self.stop = False
        self._settings = settings
        self._optimizer = optimizer

    def settings(self) -> dict[str, Any]:
        """The settings that the bits of a result depend on, beside the data and the model."""
        return self._settings.for_checkpoint() | {"optimizer": self._optimizer}

    def progress(self, callbacks: Iterable[Callback] = (), **more: Any) -> Progress:
        """Return what a checkpoint stores beside the arrays."""
        return Progress(
            step=self.step,
            epoch=self.epoch,
            settings=self.settings() | self.cut | {"learning_rate": self.learning_rate.override},
            history=self.history.to_dict(),
            callbacks=callback_states(callbacks),
            **more,
        )

    def restore(self, found: Checkpoint) -> None:
        """Go on from a checkpoint, whose arrays are in the weights."""
        progress = found.progress
        self.step, self.epoch = progress.step, progress.epoch
        self.learning_rate.override = progress.settings.get("learning_rate")
        self.history = History.from_dict(progress.history)
        self.cut = {name: progress.settings[name] for name in _CUT if name in progress.settings}
        self.partial = PartialEpoch(progress, found.records) if progress.step_in_epoch else None
