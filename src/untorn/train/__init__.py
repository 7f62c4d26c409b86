"""train: data-parallel mini-batch gradient descent on top of share.

trainer.py      the server: fit, evaluate, supervision
worker.py       one worker: take a shard, compute its gradient, commit it
model.py        the user's function, and the check of what it returns
plan.py         how parameters, state and gradients lie in memory
sampler.py      which examples go into which shard: pure functions
optimizers.py, history.py, callbacks/, digest.py, data.py, cpus.py
"""

from untorn.train.callbacks import Callback, EarlyStopping, ProgressBar
from untorn.train.digest import weights_sha256
from untorn.train.history import History
from untorn.train.optimizers import SGD
from untorn.train.trainer import Trainer

__all__ = ["SGD", "Callback", "EarlyStopping", "History", "ProgressBar", "Trainer", "weights_sha256"]
