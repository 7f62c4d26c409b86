"""Workers that cannot map more memory: others do their work, and if none can, it is an error and never a hang."""

from __future__ import annotations

import contextlib
import os
import resource
from pathlib import Path

import numpy as np
import pytest

import helpers
from untorn import SGD, CapacityError, Trainer
from untorn.train import weights_sha256

SIZE = 1 << 20
PARAMS = {"w": np.zeros(SIZE)}
DATA = (np.arange(64.0).reshape(64, 1),)
ROOM = 6 << 20  # enough for small objects, but for no version of the weights


class Limited:
    """A model that limits the memory of the first ``processes`` processes that call it to almost nothing more."""

    def __init__(self, folder: Path, processes: int) -> None:
        self.folder, self.processes = folder, processes
        self._grad: np.ndarray | None = None

    def loss_and_grad(self, params, batch):
        if self._grad is None:
            self._grad = np.ones(SIZE)
            self._limit()
        self._grad[:8] = batch[0].mean()
        return 1.0, {"w": self._grad}

    def _limit(self) -> None:
        for process in range(self.processes):
            with contextlib.suppress(FileExistsError):
                (self.folder / str(process)).touch(exist_ok=False)
                pages = int(Path("/proc/self/statm").read_text().split()[0])
                resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + ROOM, resource.RLIM_INFINITY))
                return


def trainer_of(model, **arguments) -> Trainer:
    return Trainer(model, PARAMS, optimizer=SGD(0.1), **({"shards": 2} | arguments))


class LimitedFromTheStart(Limited):
    """A model that limits the memory of a process when it is unpickled there."""

    def __setstate__(self, state):
        self.__dict__ = state
        np.random.Philox(key=0)  # NumPy loads it when it is used
        self._limit()


@pytest.mark.parametrize(
    ("kind", "arguments"),
    [
        (Limited, {"workers": 1}),
        (Limited, {"workers": 1, "clip_norm": 1.0}),
        (LimitedFromTheStart, {"workers": 2}),
        (LimitedFromTheStart, {"workers": 2, "mode": "async", "shards": None}),
    ],
    ids=["update", "clipped update", "gradient", "async gradient"],
)
def test_nobody_can(kind, arguments, tmp_path):
    workers = arguments["workers"]
    with trainer_of(kind(tmp_path, workers), **arguments) as trainer:
        with pytest.raises(CapacityError, match=rf"no worker of {workers} can map a version of 8,\d+,\d+ bytes"):
            trainer.fit(DATA, epochs=50, batch_size=16)
        if trainer.mode == "sync":  # its workers were ended in the middle of a step; the new ones are not limited
            trainer.fit(DATA, epochs=1, batch_size=16)


def in_this_process(pipe, folder) -> None:
    with trainer_of(Limited(folder, 1), engine="serial") as trainer:
        with pytest.raises(CapacityError, match="Cannot allocate memory") as caught:
            trainer.fit(DATA, epochs=50, batch_size=16)
        pipe.put(str(caught.value))


def test_the_serial_engine_cannot(tmp_path):
    with helpers.start(in_this_process, tmp_path) as child:
        assert child.get().startswith("the weights: no")
        assert child.join() == 0


def test_another_worker_can(tmp_path):
    with trainer_of(Limited(tmp_path, 0), engine="serial") as trainer:
        trainer.fit(DATA, epochs=2, batch_size=16)
        expected = weights_sha256(trainer.params)
    with trainer_of(Limited(tmp_path, 1), workers=2) as trainer:
        trainer.fit(DATA, epochs=2, batch_size=16)
        assert weights_sha256(trainer.params) == expected
        assert trainer.restarts == 0
        assert os.listdir(tmp_path) == ["0"]


def test_a_worker_that_cannot_map_the_next_job_is_replaced(tmp_path, capfd):
    with trainer_of(Limited(tmp_path, 1), workers=2) as trainer:
        trainer.fit(DATA, epochs=1, batch_size=16)
        trainer.fit(DATA, epochs=1, batch_size=16)
        assert trainer.step == 8
        assert trainer.restarts <= 1
    told = capfd.readouterr().err
    assert trainer.restarts == 0 or "cannot map the board of its job" in told
