"""Callbacks: code that ``fit`` calls between epochs and batches, in the process that called it."""

from __future__ import annotations

from untorn.train.callbacks.base import Callback, FittingTrainer, Logs
from untorn.train.callbacks.csv_logger import CSVLogger
from untorn.train.callbacks.early_stopping import EarlyStopping
from untorn.train.callbacks.learning_rate_scheduler import LearningRateScheduler
from untorn.train.callbacks.mlflow import MLflow
from untorn.train.callbacks.model_checkpoint import ModelCheckpoint
from untorn.train.callbacks.progress_bar import ProgressBar
from untorn.train.callbacks.reduce_lr_on_plateau import ReduceLROnPlateau
from untorn.train.callbacks.tensorboard import TensorBoard
from untorn.train.callbacks.terminate_on_nan import TerminateOnNaN
from untorn.train.callbacks.wandb import WandB

__all__ = [
    "CSVLogger",
    "Callback",
    "EarlyStopping",
    "FittingTrainer",
    "LearningRateScheduler",
    "Logs",
    "MLflow",
    "ModelCheckpoint",
    "ProgressBar",
    "ReduceLROnPlateau",
    "TensorBoard",
    "TerminateOnNaN",
    "WandB",
]
