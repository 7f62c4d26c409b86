"""The state of a training: its step and epoch, its history, its learning rate, and an epoch that is half done.

The weights and the optimizer's state are not here but in the channel of the weights. Together the two make a
checkpoint::

    TrainingState ─ progress() ─> Progress ─┬─> checkpoint file
    Weights ───────── snapshot() ─> arrays ─┘
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from untorn.train.callbacks import Callback
from untorn.train.checkpoints.checkpoint import Checkpoint, Progress
from untorn.train.checkpoints.resuming import PartialEpoch, callback_states
from untorn.train.history import History
from untorn.train.optim.learning_rate import LearningRate
from untorn.train.settings import Settings

__all__ = ["TrainingState"]

#: the settings in a checkpoint that describe how the data was cut into batches
_BATCHING = ("batch_size", "examples", "shuffle")


class TrainingState:
    """The state of a training, without the weights and the optimizer's state.

    Attributes:
        step: the number of steps since training began.
        single_steps: the number of those that were made by themselves, and not in an epoch.
        epoch: the number of the epoch that runs now, or of the next one.
        history: the history of all epochs since training began.
        learning_rate: the learning rate: the optimizer's, or an override.
        partial: the epoch that was interrupted or loaded half done; None if there is none.
        batching: how the data is cut into batches, as a checkpoint stores it.
        stop: whether training stops after this epoch.
    """

    def __init__(
        self, settings: Settings, learning_rate: LearningRate, optimizer: Any, turns: tuple[str, ...] = ()
    ) -> None:
        self.step = self.single_steps = 0
        self.epoch = 0
        self.history = History()
        self.learning_rate = learning_rate
        self.partial: PartialEpoch | None = None
        self.batching: dict[str, Any] = {}
        self.stop = False
        self._settings = settings
        self._optimizer = optimizer
        self._turns = turns

    def loss_of_turn(self, step: int, loss: float) -> dict[str, float]:
        """Return the loss of a step under the name of its turn; nothing if the model has one loss."""
        return {f"{self._turns[step % len(self._turns)]}_loss": loss} if self._turns else {}

    def losses_of_turns(self, rows: NDArray[np.float64]) -> dict[str, float]:
        """Return the mean loss over the examples of the steps of each turn, from the step log of the steps before this
        one; nothing if the model has one loss."""
        first = self.step - len(rows)
        turns = [self._turns[(first + row) % len(self._turns)] for row in range(len(rows))] if self._turns else []
        found = {}
        for name in dict.fromkeys(sorted(turns)):
            own = rows[[turn == name for turn in turns]]
            found[f"{name}_loss"] = float((own[:, 0] * own[:, 1]).sum() / own[:, 0].sum())
        return found

    def count(self, steps: int, *, single: bool) -> None:
        """Count these steps, of an epoch or single ones."""
        self.step += steps
        self.single_steps += steps if single else 0

    def settings(self) -> dict[str, Any]:
        """Return the settings that the bits of a result depend on, without the data and the model."""
        return self._settings.for_checkpoint() | {"optimizer": self._optimizer}

    def progress(self, callbacks: Iterable[Callback] = (), **more: Any) -> Progress:
        """Return the progress that a checkpoint stores beside its arrays."""
        return Progress(
            step=self.step,
            epoch=self.epoch,
            single_steps=self.single_steps,
            settings=self.settings() | self.batching | {"learning_rate": self.learning_rate.override},
            history=self.history.to_dict(),
            callbacks=callback_states(callbacks),
            **more,
        )

    def restore(self, found: Checkpoint) -> None:
        """Take over the progress of a checkpoint. The caller restores its arrays."""
        progress = found.progress
        self.step, self.epoch, self.single_steps = progress.step, progress.epoch, progress.single_steps
        self.learning_rate.override = progress.settings.get("learning_rate")
        self.history = History.from_dict(progress.history)
        self.batching = {name: progress.settings[name] for name in _BATCHING if name in progress.settings}
        self.partial = PartialEpoch(progress, found.records) if progress.step_in_epoch else None
