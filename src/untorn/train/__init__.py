"""train: data-parallel mini-batch gradient descent on top of share.

trainer.py      what a user calls: fit, evaluate, predict, save, load
fitting.py      one call of fit: epochs, steps, supervision
driving.py      how steps come about: by the workers alone, one by one, or asynchronously
running.py      what a trainer holds while it is open: the weights' channel, the engine
team.py         how many workers there are, and are to be
worker.py       one worker: take a shard, compute its gradient, commit it
payload.py      how a worker gets to know what to do
measuring.py    evaluate and predict, by the workers too
control.py, status.py    what others may ask of a running job, and what it says
model.py        models: the user's function, or a framework's; the check of what comes back
plan.py         how parameters, state and gradients lie in memory
sampler.py      which examples go into which shard: pure functions
records.py      what the board has recorded: losses, metrics, failures
data/           whatever a user gives, behind take(indices) -> batch
optimizers.py, schedules.py    what a step does; learning rates
server_optimizer.py, server_steps.py    optimizers of torch.optim and optax, which the server steps
settable.py     what can be set on a trainer that was made: learning rate, weights
checkpoint.py, saver.py, resuming.py    checkpoints, and going on from them
history.py, callbacks/, digest.py, cpus.py
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
from untorn.train.digest import weights_sha256
from untorn.train.history import History
from untorn.train.optimizers import SGD, Adagrad, Adam, AdamW, RMSprop
from untorn.train.schedules import TorchSchedule
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
    "weights_sha256",
]
