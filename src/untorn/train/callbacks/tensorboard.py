"""Write the numbers of training for TensorBoard, with its own writer; neither TensorFlow nor PyTorch is needed."""

from __future__ import annotations

import importlib
import math
import os
import time
from typing import Any, Literal

from untorn.train.callbacks.base import Callback, Logs
from untorn.train.callbacks.monitor import check_count

__all__ = ["TensorBoard"]

# Entries in the logs of a step that are not measurements.
_NO_SCALARS = frozenset({"examples", "version"})


class TensorBoard(Callback):
    """Write losses, metrics and the learning rate for ``tensorboard --logdir logs``, under the names that Keras uses.

    Training goes to ``log_dir/train`` and validation to ``log_dir/validation``, so that one chart shows ``epoch_loss``
    of both. The x axis is the number of the epoch, from 0, or, for ``batch_loss`` and the like, of the step since
    training began. Needs tensorboard: ``pip install 'untorn[tensorboard]'``.

    Args:
        log_dir: the directory, made if it does not exist. Give each training a directory of its own.
        update_freq: "epoch" writes after each epoch. "batch" also writes each step, and a number every such number of
            steps.

    Raises:
        ImportError: when training begins, if tensorboard is not installed.
        ValueError: update_freq is something else.

    Example:
        >>> board = TensorBoard("logs/first", update_freq=100)

    """

    def __init__(
        self, log_dir: str | os.PathLike[str] = "logs", *, update_freq: Literal["epoch", "batch"] | int = "epoch"
    ) -> None:
        if isinstance(update_freq, str):
            if update_freq not in ("epoch", "batch"):
                raise ValueError(
                    f"TensorBoard: update_freq={update_freq!r}: expected 'epoch', 'batch' or a number of steps"
                )
        else:
            check_count("TensorBoard", "update_freq", update_freq, least=1)
        self.log_dir: str = os.fspath(log_dir)
        self.update_freq = update_freq
        self._every = update_freq if isinstance(update_freq, int) else int(update_freq == "batch")
        self._writers: dict[str, _Writer] = {}
        self._first_step: int | None = None

    def on_train_begin(self, logs: Logs) -> None:
        """Open the file for training; that for validation is opened with its first number."""
        self._close()
        self._writer("train")

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
            scalars = {f"batch_{name}": value for name, value in logs.items() if name not in _NO_SCALARS}
            self._writer("train").write(scalars, step)

    def on_epoch_end(self, epoch: int, logs: Logs) -> None:
        """Write the epoch's numbers, and flush the files."""
        trained = {f"epoch_{name}": value for name, value in logs.items() if not name.startswith("val_")}
        validated = {f"epoch_{name[4:]}": value for name, value in logs.items() if name.startswith("val_")}
        self._writer("train").write(trained, epoch)
        if validated:
            self._writer("validation").write(validated, epoch)
        for writer in self._writers.values():
            writer.flush()

    def on_train_end(self, logs: Logs) -> None:
        """Close the files."""
        self._close()

    def _writer(self, name: str) -> _Writer:
        if name not in self._writers:
            self._writers[name] = _Writer(os.path.join(self.log_dir, name))
        return self._writers[name]

    def _close(self) -> None:
        while self._writers:
            self._writers.popitem()[1].close()


class _Writer:
    """An event file of scalars."""

    def __init__(self, directory: str) -> None:
        try:
            files: Any = importlib.import_module("tensorboard.summary.writer.event_file_writer")
            self._events: Any = importlib.import_module("tensorboard.compat.proto.event_pb2")
            self._summaries: Any = importlib.import_module("tensorboard.compat.proto.summary_pb2")
        except ImportError as error:
            raise ImportError(
                f"TensorBoard needs tensorboard, which cannot be imported ({error}); pip install 'untorn[tensorboard]'"
            ) from None
        self._file = files.EventFileWriter(directory)

    def write(self, scalars: dict[str, Any], step: int) -> None:
        """Write one event with these numbers, except NaN, which stands for a missing metric."""
        values = [
            self._summaries.Summary.Value(tag=tag, simple_value=float(value))
            for tag, value in scalars.items()
            if not math.isnan(float(value))
        ]
        summary = self._summaries.Summary(value=values)
        self._file.add_event(self._events.Event(wall_time=time.time(), step=step, summary=summary))

    def flush(self) -> None:
        self._file.flush()

    def close(self) -> None:
        self._file.close()
