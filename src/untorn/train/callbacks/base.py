"""The base class of callbacks, with the names that Keras taught people.

``fit`` calls, in the process that called it, never in a worker, and in the order of the list::

    on_train_begin
      on_epoch_begin          {"steps", "examples", "epochs"}
        on_batch_end          {"loss", metrics..., "examples", "version", "restarts", "learning_rate"}
        on_batch_end          in bursts: the workers move on by themselves, and nobody waits for a callback
        ...
      on_epoch_end            {"loss", metrics..., "val_loss", "val_"metrics..., "learning_rate", "examples_per_s",
      ...                      "seconds"}
    on_error                  only if an error, or Ctrl-C, ends training
    on_train_end

There is no on_batch_begin: when this process learns of a step, workers are already at the next.

``self.trainer.stop_training = True`` in any of them ends training after the epoch. An error in one of them ends
training as well, and is what ``fit`` raises. What ``state_dict`` returns goes into checkpoints; after
``on_train_begin`` of a run that resumes, ``load_state_dict`` gets it back.
"""

from __future__ import annotations

from collections.abc import Mapping
from os import PathLike
from typing import Any, Protocol

__all__ = ["Callback", "FittingTrainer", "Logs"]

Logs = Mapping[str, Any]


class FittingTrainer(Protocol):
    """The part of a Trainer that callbacks rely on."""

    stop_training: bool
    step: int

    @property
    def learning_rate(self) -> float:
        """The learning rate of the next step; can be set."""

    @learning_rate.setter
    def learning_rate(self, rate: float, /) -> None: ...

    @property
    def params(self) -> Any:
        """A copy of the weights; can be set in on_train_end."""

    @params.setter
    def params(self, value: Any, /) -> None: ...

    def save(self, path: str | PathLike[str]) -> None:
        """Write a checkpoint."""


class Callback:
    """Override what you need; every method here does nothing.

    Attributes:
        trainer: the Trainer that is fitting. ``trainer.params`` is a copy of the weights, ``trainer.learning_rate``
            can be read and set (from the next epoch on), ``trainer.save(path)`` writes a checkpoint, and
            ``trainer.stop_training = True`` ends training after the epoch. AttributeError before ``fit``.

    Example:
        >>> class StopAtZero(Callback):
        ...     def on_epoch_end(self, epoch, logs):
        ...         if logs["loss"] < 1e-6:
        ...             self.trainer.stop_training = True

    """

    trainer: FittingTrainer

    def set_trainer(self, trainer: FittingTrainer) -> None:
        """Take the trainer that is about to fit; called by ``fit`` before everything else."""
        self.trainer = trainer

    def on_train_begin(self, logs: Logs) -> None:
        """Run once, before the first epoch. ``logs`` is empty."""

    def on_epoch_begin(self, epoch: int, logs: Logs) -> None:
        """Run before each epoch (from 0). ``logs``: steps and examples in it, and epochs in all."""

    def on_batch_end(self, batch: int, logs: Logs) -> None:
        """Run after each step; ``batch`` is the step in the epoch, from 0.

        ``logs``: the step's loss and metrics, its examples and learning rate, the version of the weights that is the
        newest now, and how often a worker was restarted up to now.
        """

    def on_epoch_end(self, epoch: int, logs: Logs) -> None:
        """Run after each epoch and its validation. ``logs``: its means, the ``val_`` ones, the learning rate of its
        last step, examples_per_s and seconds."""

    def on_error(self, error: BaseException) -> bool:
        """Run when an error ends training, in a callback or elsewhere; Ctrl-C is one. True ends it quietly: ``fit``
        returns the epochs that are over."""
        return False

    def on_train_end(self, logs: Logs) -> None:
        """Run once, after the last epoch, and after an error too: then ``logs`` has it as "error", else it is empty.

        The workers stand still by then, so ``trainer.params`` can be set.
        """

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps of this callback: numbers, str, lists and dicts. Nothing, unless overridden."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what ``state_dict`` returned when the checkpoint was made. Called only if that was something."""
