"""Log the numbers of training to MLflow, with its own library."""

from __future__ import annotations

import importlib
from typing import Any

from untorn.train.callbacks.base import Logs
from untorn.train.callbacks.numbers import NumbersCallback, UpdateFreq, settings_of

__all__ = ["MLflow"]


class MLflow(NumbersCallback):
    """Log losses, metrics and the learning rate to a run of MLflow.

    The names are ``loss``, ``val_loss`` and so on, at the number of the epoch; and ``batch_loss`` and so on at the
    number of the step since training began. The settings of the Trainer are parameters of the run. A run that the
    program has begun with ``mlflow.start_run()`` is used, and stays open; otherwise one begins with each ``fit``, and
    ends with it. Needs mlflow (or mlflow-skinny): ``pip install 'untorn[mlflow]'``.

    Args:
        update_freq: "epoch" logs after each epoch. "batch" also logs each step, and a number every such number of
            steps.
        start_run: arguments of ``mlflow.start_run()``, such as ``run_name``. Its store is that of
            ``MLFLOW_TRACKING_URI`` or ``mlflow.set_tracking_uri()``.

    Raises:
        ImportError: when training begins, if mlflow is not installed.
        ValueError: update_freq is something else.

    Example:
        >>> log = MLflow(run_name="digits", update_freq="batch")
    """

    def __init__(self, *, update_freq: UpdateFreq = "epoch", **start_run: Any) -> None:
        super().__init__(update_freq)
        self.start_run = start_run
        self._mlflow: Any = None
        self._run_id = ""
        self._is_ours = False

    def on_train_begin(self, logs: Logs) -> None:
        """Begin a run, or use the one that is active."""
        try:
            self._mlflow = importlib.import_module("mlflow")
        except ImportError as error:
            raise ImportError(
                f"MLflow needs mlflow, which cannot be imported ({error}); pip install 'untorn[mlflow]'"
            ) from None
        active = self._mlflow.active_run()
        self._is_ours = active is None
        self._run_id = (active or self._mlflow.start_run(**self.start_run)).info.run_id
        if self._is_ours:  # parameters of a run cannot change, and the program may log them for several calls of fit
            self._mlflow.log_params(settings_of(self.trainer))

    def write_step(self, numbers: dict[str, float], step: int) -> None:
        """Log the numbers of a step."""
        named = {f"batch_{name}": value for name, value in numbers.items()}
        self._mlflow.log_metrics(named, step=step, run_id=self._run_id)

    def write_epoch(self, numbers: dict[str, float], epoch: int) -> None:
        """Log the numbers of an epoch."""
        self._mlflow.log_metrics(numbers, step=epoch, run_id=self._run_id)

    def on_train_end(self, logs: Logs) -> None:
        """End the run that on_train_begin began, as failed after an error."""
        if self._is_ours:
            self._mlflow.end_run("FAILED" if "error" in logs else "FINISHED")
