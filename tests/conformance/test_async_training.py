"""Async mode: the bound on the staleness holds, every batch counts exactly once, and weights are whole versions.

With max_staleness=0 nothing is asynchronous any more, so the result is that of sync mode with one shard.
"""

from __future__ import annotations

import functools

import numpy as np
import pytest

import networks
from fault_injector import FaultInjector
from untorn.train import SGD, AdamW, Callback, Trainer, weights_sha256

DATA = networks.classes_of(150, 8, 3)
ENGINES = [{"engine": "serial"}, {"workers": 1}, {"workers": 2}, {"workers": 4, "max_staleness": 3}]


def count(params, batch):
    """Count each example in its own element of the weights. The loss tells which weights were read, and that they
    are whole."""
    seen = params["seen"]
    assert (params["left"] == params["right"]).all()
    grad = np.zeros_like(seen)
    np.add.at(grad, batch, -1.0)
    networks.work(1)
    ones = -np.ones_like(params["left"])
    return float(params["left"][0]), {"seen": grad, "left": ones, "right": ones}


def counting(**arguments):
    params = {"seen": np.zeros(200), "left": np.zeros(5000), "right": np.zeros(5000)}
    return Trainer(count, params, optimizer=SGD(1.0), mode="async", **arguments)


class Steps(Callback):
    """Records the logs of each step."""

    def __init__(self) -> None:
        self.logs: list[dict] = []

    def on_batch_end(self, batch, logs):
        self.logs.append(dict(logs))


@pytest.mark.parametrize("engine", ENGINES, ids=str)
def test_every_batch_counts_once_and_staleness_is_what_it_says(engine):
    steps = Steps()
    with counting(**engine) as trainer:
        history = trainer.fit(np.arange(200), epochs=3, batch_size=16, callbacks=[steps])
        assert (trainer.params["seen"] == 3).all()
        assert trainer.snapshot().version == 1 + 39
        bound = trainer.max_staleness
    assert len(steps.logs) == 39
    for step, logs in enumerate(steps.logs):
        # the loss is the number of steps in the weights that were read
        assert logs["staleness"] == step - logs["loss"]
        assert 0 <= logs["staleness"] <= bound
    if engine.get("engine") == "serial":
        assert history.history["staleness"] == [0.0] * 3


@pytest.mark.parametrize("bound", [0, 1, 4])
def test_the_bound_holds_whoever_is_killed_or_stopped(rng, bound):
    steps, workers = Steps(), min(3, bound + 1)
    with counting(workers=workers, max_staleness=bound, max_restarts=10_000) as trainer:
        trainer.fit(np.arange(200), epochs=1, batch_size=8, callbacks=[steps])
        with FaultInjector(trainer, rng, 5, ("kill", "stop", "wake", "resize"), max_workers=workers) as faults:
            while faults.is_alive():
                trainer.fit(np.arange(200), epochs=1, batch_size=8, callbacks=[steps])
        assert (trainer.params["seen"] == trainer.epoch).all()
        print(f"{trainer.restarts} killed in {trainer.epoch} epochs")
    staleness = [logs["staleness"] for logs in steps.logs]
    assert [logs["loss"] for logs in steps.logs] == [step - old for step, old in enumerate(staleness)]
    assert max(staleness) <= bound


@pytest.mark.parametrize("engine", [{"engine": "serial"}, {"workers": 1}], ids=str)
@pytest.mark.parametrize("clip_norm", [None, 0.1])
def test_without_staleness_it_is_sync_training_with_one_shard(engine, clip_norm):
    digests = []
    for arguments in ({"shards": 1, "engine": "serial"}, {"mode": "async", "max_staleness": 0} | engine):
        params = networks.mlp_params((8, 16, 3))
        with Trainer(
            networks.mlp_with_dropout, params, optimizer=AdamW(0.01), seed=3, clip_norm=clip_norm, **arguments
        ) as trainer:
            history = trainer.fit(DATA, epochs=3, batch_size=16).history
            digests.append((weights_sha256(trainer.params), history["loss"], history.get("grad_norm")))
    assert digests[0] == digests[1]


def test_another_library_s_optimizer_takes_the_steps():
    torch = pytest.importorskip("torch")
    make = functools.partial(torch.optim.SGD, lr=0.1, momentum=0.9)
    digests = []
    for arguments in ({"shards": 1, "engine": "serial"}, {"mode": "async", "max_staleness": 0, "workers": 1}):
        with Trainer(
            networks.mlp, networks.mlp_params((8, 16, 3)), optimizer=make, clip_norm=1.0, **arguments
        ) as trainer:
            history = trainer.fit(DATA, epochs=2, batch_size=16).history
            digests.append((weights_sha256(trainer.params), history["loss"], history["grad_norm"]))
    assert digests[0] == digests[1]
    steps = Steps()
    with Trainer(networks.mlp, networks.mlp_params((8, 16, 3)), optimizer=make, mode="async", workers=3) as trainer:
        trainer.fit(DATA, epochs=3, batch_size=16, callbacks=[steps])
        assert trainer.snapshot().version == 1 + 30
    assert max(logs["staleness"] for logs in steps.logs) <= 3


def test_it_learns():
    with Trainer(
        networks.mlp, networks.mlp_params((8, 16, 3)), optimizer=SGD(0.1, momentum=0.5), mode="async", workers=2
    ) as trainer:
        history = trainer.fit(DATA, epochs=30, batch_size=16).history
    assert history["accuracy"][-1] > 0.95


class StopAt(Callback):
    def __init__(self, step: int) -> None:
        self.step = step

    def on_batch_end(self, batch, logs):
        if self.trainer.step >= self.step:
            raise KeyboardInterrupt


def test_checkpoints_inside_an_epoch_are_of_whole_steps(tmp_path):
    """A checkpoint inside an epoch has all batches before it and none after it, so resuming counts each batch once."""
    pytest.importorskip("safetensors")
    arguments = {"epochs": 2, "batch_size": 8, "checkpoint_dir": tmp_path, "checkpoint_every_s": 0.0}
    with counting(workers=2, max_staleness=3) as trainer, pytest.raises(KeyboardInterrupt):
        trainer.fit(np.arange(200), callbacks=[StopAt(37)], **arguments)
    for engine in ({"workers": 3, "max_staleness": 3}, {"engine": "serial"}):
        with counting(**engine) as trainer:
            steps = Steps()
            trainer.fit(np.arange(200), resume=True, callbacks=[steps], **arguments)
            assert trainer.step == 50
            assert (trainer.params["seen"] == 2).all()
            assert (trainer.params["left"] == 50).all()


def test_the_checkpoint_of_one_mode_is_not_the_other_s(tmp_path):
    pytest.importorskip("safetensors")
    with counting(workers=1) as trainer:
        trainer.fit(np.arange(200), epochs=1, batch_size=50, checkpoint_dir=tmp_path)
    params = {"seen": np.zeros(200), "left": np.zeros(5000), "right": np.zeros(5000)}
    with (
        Trainer(count, params, optimizer=SGD(1.0), engine="serial", shards=1) as trainer,
        pytest.raises(ValueError, match="was made with mode=async; found mode=sync"),
    ):
        trainer.fit(np.arange(200), epochs=2, batch_size=50, checkpoint_dir=tmp_path, resume=True)


def broken(params, batch):
    if 77 in batch:
        raise RuntimeError("this one")
    return count(params, batch)


def test_a_failure_names_the_batch():
    from untorn import WorkerError

    params = {"seen": np.zeros(200), "left": np.zeros(5000), "right": np.zeros(5000)}
    with Trainer(broken, params, optimizer=SGD(1.0), mode="async", workers=2) as trainer:
        with pytest.raises(WorkerError, match=r"step \d+, shard 0 \(8 examples: .*RuntimeError: this one"):
            trainer.fit(np.arange(200), epochs=1, batch_size=8)
        before = trainer.params["left"][0]
        trainer.fit(np.arange(70), epochs=1, batch_size=8)
        assert trainer.params["left"][0] == before + 9
