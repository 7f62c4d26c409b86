"""train: data-parallel mini-batch gradient descent on top of share.

trainer.py      what a user calls: fit, evaluate, predict, save, load
run/            one call of fit or evaluate: the loop, its workers, the weights, the board's contents
optim/          optimizers, fused or of another library; learning rates and schedules
models/         a user's function or a framework's object, and the check of what comes back
data/           whatever a user gives, behind take(indices) -> batch; which examples go into which shard
checkpoints/    checkpoint files, and going on from them
callbacks/      what is told of a training while it runs
arguments.py, history.py, digest.py
"""

from untorn.train.callbacks import (
    Callback,
    CSVLogger,
    EarlyStopping,
    LearningRateScheduler,
    ModelCheckpoint,
    ProgressBar,
    ReduceLROnPlateau,
    TensorBoard,
    TerminateOnNaN,
)
from untorn.train.data import Examples
from untorn.train.digest import weights_sha256 as weights_sha256  # public here, and not a name of untorn
from untorn.train.history import History
from untorn.train.optim.fused import SGD, Adagrad, Adam, AdamW, RMSprop
from untorn.train.optim.schedules import TorchSchedule
from untorn.train.trainer import Trainer

__all__ = [
    "SGD",
    "Adagrad",
    "Adam",
    "AdamW",
    "CSVLogger",
    "Callback",
    "EarlyStopping",
    "Examples",
    "History",
    "LearningRateScheduler",
    "ModelCheckpoint",
    "ProgressBar",
    "RMSprop",
    "ReduceLROnPlateau",
    "TensorBoard",
    "TerminateOnNaN",
    "TorchSchedule",
    "Trainer",
]
