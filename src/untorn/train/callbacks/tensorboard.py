"""Write the numbers of training for TensorBoard, with its own writer; neither TensorFlow nor PyTorch is needed."""

from __future__ import annotations

import importlib
import os
import time
from typing import Any

from untorn.train.callbacks.base import Logs
from untorn.train.callbacks.numbers import NumbersCallback, UpdateFreq

__all__ = ["TensorBoard"]


class TensorBoard(NumbersCallback):
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

    def __init__(self, log_dir: str | os.PathLike[str] = "logs", *, update_freq: UpdateFreq = "epoch") -> None:
        super().__init__(update_freq)
        self.log_dir: str = os.fspath(log_dir)
        self._writers: dict[str, _Writer] = {}

    def on_train_begin(self, logs: Logs) -> None:
        """Open the file for training; that for validation is opened with its first number."""
        self._close()
        self._writer("train")

    def write_step(self, numbers: dict[str, float], step: int) -> None:
        """Write the numbers of a step."""
        self._writer("train").write({f"batch_{name}": value for name, value in numbers.items()}, step)

    def write_epoch(self, numbers: dict[str, float], epoch: int) -> None:
        """Write the numbers of an epoch, and flush the files."""
        trained = {f"epoch_{name}": value for name, value in numbers.items() if not name.startswith("val_")}
        validated = {f"epoch_{name[4:]}": value for name, value in numbers.items() if name.startswith("val_")}
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

    def write(self, scalars: dict[str, float], step: int) -> None:
        """Write one event with these numbers."""
        values = [self._summaries.Summary.Value(tag=tag, simple_value=value) for tag, value in scalars.items()]
        summary = self._summaries.Summary(value=values)
        self._file.add_event(self._events.Event(wall_time=time.time(), step=step, summary=summary))

    def flush(self) -> None:
        self._file.flush()

    def close(self) -> None:
        self._file.close()
