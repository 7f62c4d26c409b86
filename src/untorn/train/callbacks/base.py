"""The base class of callbacks, with the names that Keras taught people.

``fit`` calls, in the process that called it, never in a worker::

    on_train_begin
      on_epoch_begin          {"steps", "examples", "epochs"}
        on_batch_end          {"loss", metrics..., "examples", "version", "restarts"}
        on_batch_end          in bursts: the workers move on by themselves, and nobody waits for a callback
        ...
      on_epoch_end            {"loss", metrics..., "val_loss", "val_"metrics..., "examples_per_s", "seconds"}
      ...
    on_train_end

``self.trainer.stop_training = True`` in any of them ends training after the epoch.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

__all__ = ["Callback", "Logs", "StoppableTrainer"]

Logs = Mapping[str, Any]


class StoppableTrainer(Protocol):
    """The part of a Trainer that callbacks rely on."""

    stop_training: bool


class Callback:
    """Override what you need; every method here does nothing.

    Attributes:
        trainer: the Trainer that is fitting. ``trainer.params`` is a copy of the weights, and
            ``trainer.stop_training = True`` ends training after the epoch. AttributeError before ``fit``.

    Example:
        >>> class StopAtZero(Callback):
        ...     def on_epoch_end(self, epoch, logs):
        ...         if logs["loss"] < 1e-6:
        ...             self.trainer.stop_training = True

    """

    trainer: StoppableTrainer

    def set_trainer(self, trainer: StoppableTrainer) -> None:
        """Take the trainer that is about to fit; called by ``fit`` before everything else."""
        self.trainer = trainer

    def on_train_begin(self, logs: Logs) -> None:
        """Run once, before the first epoch. ``logs`` is empty."""

    def on_epoch_begin(self, epoch: int, logs: Logs) -> None:
        """Run before each epoch (from 0). ``logs``: steps and examples in it, and epochs in all."""

    def on_batch_end(self, batch: int, logs: Logs) -> None:
        """Run after each step; ``batch`` is the step in the epoch, from 0.

        ``logs``: the step's loss and metrics, its examples, the version of the weights that it made, and how often a
        worker was restarted up to now.
        """

    def on_epoch_end(self, epoch: int, logs: Logs) -> None:
        """Run after each epoch and its validation, with its means, ``val_`` ones, examples_per_s and seconds."""

    def on_train_end(self, logs: Logs) -> None:
        """Run once, after the last epoch, and after an error or Ctrl-C too. ``logs`` is empty."""
