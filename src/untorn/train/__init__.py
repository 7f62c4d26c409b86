"""train: data-parallel mini-batch gradient descent on top of share.

trainer.py      the Trainer: fit, evaluate, predict, save, load
settings.py     the checked arguments of a Trainer
state.py        the state of a training: step, epoch, history, learning rate
nodes/          training on several nodes: the pool in the driver, and what a node does
run/            one call of fit or evaluate: the loop, the workers, the weights, the contents of the board
optim/          optimizers, fused or of another library; learning rates and schedules
models/         the model, a function or a framework's object, and the checks of its answers
data/           the data of every kind, behind take(indices) -> batch; the sampler of batches and shards
checkpoints/    checkpoint files, and resuming from them
callbacks/      callbacks, which a training calls while it runs
arguments.py    checks of arguments
history.py      the History that fit returns
digest.py       a fingerprint of the weights
interfaces.py   the types of a Trainer's arguments
"""

from untorn.train.callbacks import (
    Callback,
    CSVLogger,
    EarlyStopping,
    LearningRateScheduler,
    MLflow,
    ModelCheckpoint,
    ProgressBar,
    ReduceLROnPlateau,
    TensorBoard,
    TerminateOnNaN,
    WandB,
)
from untorn.train.data import Examples
from untorn.train.digest import weights_sha256 as weights_sha256  # public here, and not a name of untorn
from untorn.train.history import History
from untorn.train.optim.fused import SGD, Adagrad, Adam, AdamW, RMSprop
from untorn.train.optim.local_steps import LocalSteps
from untorn.train.optim.schedules import TorchSchedule
from untorn.train.optim.turns import Turns
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
    "LocalSteps",
    "MLflow",
    "ModelCheckpoint",
    "ProgressBar",
    "RMSprop",
    "ReduceLROnPlateau",
    "TensorBoard",
    "TerminateOnNaN",
    "TorchSchedule",
    "Trainer",
    "Turns",
    "WandB",
]
