"""Code of yours that runs between epochs and batches of ``fit``, in the process that called it."""

from __future__ import annotations

from untorn.train.callbacks.base import Callback, Logs, StoppableTrainer
from untorn.train.callbacks.early_stopping import EarlyStopping
from untorn.train.callbacks.progress_bar import ProgressBar

__all__ = ["Callback", "EarlyStopping", "Logs", "ProgressBar", "StoppableTrainer"]
