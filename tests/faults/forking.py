"""A program that forks while it trains: ``forking.py FOLDER ENGINE PLACE ENDING``.

It prints its results as JSON. PLACE names the place of the fork, and ENDING the end of the child: see PLACES and
ENDINGS. The parent waits for the child before it continues, so any harm by the child is done by then.
"""

from __future__ import annotations

import gc
import json
import multiprocessing
import os
import sys
from pathlib import Path

import numpy as np
import pytest

from untorn import SGD, ClosedError, Trainer
from untorn.train import Callback, weights_sha256

PLACES = ("batch_end", "epoch_begin", "epoch_end", "train_begin", "with", "model")
ENDINGS = ("exit", "raise", "go_on", "close", "collect", "multiprocessing")

X = np.random.default_rng(0).normal(size=(120, 4))
DATA = (X, X.sum(axis=1))
SERVER = os.getpid()
trainer: Trainer | None = None


def fork(ending: str) -> None:
    """Fork a child with this ending, and wait for it."""
    if ending == "multiprocessing":
        process = multiprocessing.get_context("fork").Process(target=gc.collect)
        process.start()
        process.join()
        return
    child = os.fork()
    if child != 0:
        os.waitpid(child, 0)
        return
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # its traceback is not the parent's
    if ending == "exit":
        sys.exit(0)  # with blocks, finally blocks, finalizers and atexit
    if ending == "raise":
        raise ValueError("the child's own error")
    if ending == "close":
        try:
            trainer.close()
        finally:
            os._exit(0)
    if ending == "collect":
        globals().pop("trainer", None)
        gc.collect()
        sys.exit(0)
    # go_on: the child returns to the loop of its parent


class Model:
    """A linear model. If the place is "model", the first worker forks in the middle of its gradient."""

    def __init__(self, ending: str | None, folder: str) -> None:
        self.ending, self.folder = ending, folder

    def loss_and_grad(self, params, batch):
        x, y = batch
        if self.ending is not None and self._first():
            fork(self.ending)
        error = x @ params["w"] - y
        return (error**2).mean(), {"w": 2 * x.T @ error / len(x)}

    def _first(self) -> bool:
        try:
            os.mkdir(os.path.join(self.folder, "forked"))
        except FileExistsError:
            return False
        return True


class Fork(Callback):
    """Forks once, at the given place."""

    def __init__(self, place: str, ending: str) -> None:
        self.place, self.ending = place, ending
        self.children = 0

    def _come_by(self, place: str) -> None:
        if place == self.place and self.children == 0:
            self.children = 1
            fork(self.ending)

    def on_train_begin(self, logs):
        self._come_by("train_begin")

    def on_epoch_begin(self, epoch, logs):
        self._come_by("epoch_begin")

    def on_batch_end(self, batch, logs):
        self._come_by("batch_end")

    def on_epoch_end(self, epoch, logs):
        self._come_by("epoch_end")


class Count(Callback):
    """Counts epochs, and records for each end of training whether it is in the process that trains."""

    def __init__(self, folder: str) -> None:
        self.file = os.path.join(folder, "told")
        self.epochs = 0

    def on_epoch_end(self, epoch, logs):
        self.epochs += 1

    def on_train_end(self, logs):
        with open(self.file, "a") as file:
            print(os.getpid() == SERVER, file=file)


def main(folder: str, engine: str, place: str, ending: str) -> None:
    global trainer
    arguments = {
        "serial": {"engine": "serial", "shards": 2},
        "processes": {"workers": 1, "shards": 2},
        "async": {"workers": 1, "mode": "async", "max_staleness": 0},
    }[engine]
    model = Model(ending if place == "model" else None, folder)
    with Trainer(model, {"w": np.zeros(4)}, optimizer=SGD(0.01), seed=3, **arguments) as trainer:
        counted = Count(folder)
        callbacks = [Fork(place, ending), counted]
        trainer.fit(DATA, epochs=1, batch_size=12, callbacks=callbacks, checkpoint_dir=f"{folder}/checkpoints")
        if place == "with":
            fork(ending)
            if os.getpid() != SERVER:
                child_may_look(trainer)
        trainer.fit(DATA, epochs=1, batch_size=12, callbacks=[counted])
        told = Path(counted.file).read_text().split()
        result = [weights_sha256(trainer.params), trainer.step, trainer.restarts, counted.epochs, told]
    if os.getpid() == SERVER:
        print(json.dumps(result))


def child_may_look(trainer: Trainer) -> None:
    """Check that a forked copy can read the weights, and that all other calls raise ClosedError."""
    assert trainer.params["w"].shape == (4,)
    for refused in (
        lambda: trainer.fit(DATA, epochs=1, batch_size=12),
        lambda: trainer.resize(1),
        lambda: setattr(trainer, "params", {"w": np.zeros(4)}),
    ):
        with pytest.raises(ClosedError, match="forked"):
            refused()
    os._exit(0)


if __name__ == "__main__":
    main(*sys.argv[1:])
