"""Log the numbers of training to Weights & Biases, with its own library."""

from __future__ import annotations

import importlib
from typing import Any

from untorn.train.callbacks.base import Logs
from untorn.train.callbacks.numbers import NumbersCallback, UpdateFreq, settings_of

__all__ = ["WandB"]


class WandB(NumbersCallback):
    """Log losses, metrics and the learning rate to a run of Weights & Biases.

    The names are those of its callback for Keras: ``epoch/loss``, ``epoch/val_loss``, ``batch/loss``. Each is logged at
    the number of steps since training began. The settings of the Trainer are in the run's config. A run that the
    program has begun with ``wandb.init()`` is used, and stays open; otherwise one begins with each ``fit``, and ends
    with it. Needs wandb: ``pip install 'untorn[wandb]'``; it then uses the network, or, with ``mode="offline"``, files.

    Args:
        update_freq: "epoch" logs after each epoch. "batch" also logs each step, and a number every such number of
            steps.
        init: arguments of ``wandb.init()``, such as ``project`` and ``mode``.

    Raises:
        ImportError: when training begins, if wandb is not installed.
        ValueError: update_freq is something else.

    Example:
        >>> log = WandB(project="digits", mode="offline", update_freq=100)
    """

    def __init__(self, *, update_freq: UpdateFreq = "epoch", **init: Any) -> None:
        super().__init__(update_freq)
        self.init = init
        self._run: Any = None
        self._is_ours = False

    def on_train_begin(self, logs: Logs) -> None:
        """Begin a run, or use the one that is open."""
        try:
            wandb: Any = importlib.import_module("wandb")
        except ImportError as error:
            raise ImportError(
                f"WandB needs wandb, which cannot be imported ({error}); pip install 'untorn[wandb]'"
            ) from None
        self._is_ours = wandb.run is None
        self._run = wandb.init(**self.init) if self._is_ours else wandb.run
        self._run.config.update(settings_of(self.trainer), allow_val_change=True)

    def write_step(self, numbers: dict[str, float], step: int) -> None:
        """Log the numbers of a step."""
        self._run.log({f"batch/{name}": value for name, value in numbers.items()}, step=step + 1)

    def write_epoch(self, numbers: dict[str, float], epoch: int) -> None:
        """Log the numbers of an epoch, at the number of steps that are made."""
        named = {f"epoch/{name}": value for name, value in numbers.items()}
        self._run.log({"epoch/epoch": epoch, **named}, step=int(self.trainer.step))

    def on_train_end(self, logs: Logs) -> None:
        """End the run that on_train_begin began, as failed after an error."""
        run, self._run = self._run, None
        if self._is_ours:
            run.finish(exit_code=int("error" in logs))
