"""The base class of callbacks, whose methods have the names they have in Keras.

``fit`` calls these methods in the process that called it, never in a worker, and in the order of the list::

    on_train_begin
      on_epoch_begin          {"steps", "examples", "epochs"}
        on_batch_end          {"loss", metrics..., "examples", "version", "restarts", "learning_rate"}
        on_batch_end          in bursts, since workers do not wait for callbacks
        ...
      on_epoch_end            {"loss", metrics..., "val_loss", "val_"metrics..., "learning_rate", "examples_per_s",
      ...                      "seconds"}
    on_error                  only if an error or Ctrl-C ends training
    on_train_end

There is no on_batch_begin, because workers have begun the next step when this process learns of a step.

Any of them can end training after the epoch with ``self.trainer.stop_training = True``. An error in one of them ends
training too, and ``fit`` raises it. Checkpoints contain the result of ``state_dict``; when training resumes,
``load_state_dict`` receives it after ``on_train_begin``.
"""

from __future__ import annotations

from collections.abc import Mapping
from difflib import get_close_matches
from os import PathLike
from typing import Any, Protocol

from untorn.first_guesses import words

__all__ = ["Callback", "FittingTrainer", "Logs"]

_GUESSES = words(
    ("on_epoch_start", "write on_epoch_begin"),
    ("on_train_start on_fit_start on_fit_begin on_training_begin on_training_start", "write on_train_begin"),
    ("on_fit_end on_training_end", "write on_train_end"),
    ("on_step_end on_train_batch_end on_train_step_end on_after_step", "write on_batch_end"),
    ("on_train_epoch_begin on_train_epoch_start", "write on_epoch_begin"),
    (
        "on_train_epoch_end on_validation_end on_validation_epoch_end on_val_end on_evaluate_end on_test_end",
        "write on_epoch_end, whose logs have the validation's numbers",
    ),
    (
        "on_batch_begin on_batch_start on_step_begin on_step_start on_train_batch_begin on_train_batch_start",
        "a step has begun before this process learns of it; on_batch_end follows each step",
    ),
    ("on_exception on_interrupt on_keyboard_interrupt on_train_error", "write on_error"),
)

Logs = Mapping[str, Any]


class FittingTrainer(Protocol):
    """The part of a Trainer that callbacks rely on."""

    @property
    def step(self) -> int:
        """The number of steps since training began."""

    @property
    def stop_training(self) -> bool:
        """Whether training ends after the epoch; can be set."""

    @stop_training.setter
    def stop_training(self, stop: bool, /) -> None: ...

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
    """Base class of callbacks: override the methods that you need. Every method here does nothing.

    Attributes:
        trainer: the Trainer that is fitting. ``trainer.params`` is a copy of the weights, ``trainer.learning_rate``
            can be read, and set for the next epoch, ``trainer.save(path)`` writes a checkpoint, and
            ``trainer.stop_training = True`` ends training after the epoch. Raises AttributeError before ``fit``.

    Example:
        >>> class StopAtZero(Callback):
        ...     def on_epoch_end(self, epoch, logs):
        ...         if logs["loss"] < 1e-6:
        ...             self.trainer.stop_training = True

    """

    trainer: FittingTrainer

    def __init_subclass__(cls, **more: Any) -> None:
        """Raise TypeError for a method ``on_...`` that no part of a training calls, which is a misspelled one."""
        super().__init_subclass__(**more)
        known = [name for name in vars(Callback) if name.startswith("on_")]
        for name, member in vars(cls).items():
            if name.startswith("on_") and callable(member) and name not in known:
                raise TypeError(f"{cls.__qualname__}.{name} is never called: {_instead_of(name, known)}")

    def set_trainer(self, trainer: FittingTrainer) -> None:
        """Store the trainer that is about to fit. ``fit`` calls this first."""
        self.trainer = trainer

    def on_train_begin(self, logs: Logs) -> None:
        """Run once, before the first epoch. ``logs`` is empty."""

    def on_epoch_begin(self, epoch: int, logs: Logs) -> None:
        """Run before each epoch, counted from 0.

        ``logs``: its number of steps and of examples, and the number of epochs since training began when fit ends."""

    def on_batch_end(self, batch: int, logs: Logs) -> None:
        """Run after each step; ``batch`` is the step in the epoch, from 0.

        ``logs``: the step's loss and metrics, its number of examples and its learning rate, the newest version of the
        weights, and the number of workers restarted so far.
        """

    def on_epoch_end(self, epoch: int, logs: Logs) -> None:
        """Run after each epoch and its validation. ``logs``: its mean loss and metrics, those of the validation with
        ``val_``, the learning rate of its last step, examples_per_s and seconds."""

    def on_error(self, error: BaseException) -> bool:
        """Run when an error ends training, in a callback or elsewhere, including KeyboardInterrupt. Return True to have
        ``fit`` return the completed epochs instead of raising the error."""
        return False

    def on_train_end(self, logs: Logs) -> None:
        """Run once, after the last epoch or an error. ``logs`` has the error as "error", and is empty without one.

        The workers have stopped by then, so ``trainer.params`` can be set.
        """

    def state_dict(self) -> dict[str, Any]:
        """Return the state that a checkpoint keeps of this callback, of numbers, str, lists and dicts; empty by
        default."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what ``state_dict`` returned when the checkpoint was made. Not called if that was empty."""


def _instead_of(name: str, known: list[str]) -> str:
    near = get_close_matches(name, known, 1)
    if name in _GUESSES or not near:
        return _GUESSES.get(name, f"callbacks have {', '.join(known)}; a method of your own has another name")
    return f"write {near[0]}"
