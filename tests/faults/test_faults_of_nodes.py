"""Training on nodes that are killed, stopped, cut off, added and taken away gives the weights of the serial engine."""

from __future__ import annotations

import contextlib
import os
import re
import signal
from typing import Any

import pytest

import networks
import node_faults
from node_faults import LoopbackWithFaults, NodeFaults, StepWatch
from untorn.train import SGD, Callback, Trainer, weights_sha256
from untorn.train.nodes import coordinator, driver_copy

DATA = networks.classes_of(152, 12, 3, seed=6)
BATCH = 16  # 10 steps an epoch, the last of 8 examples
SILENCE_S = 1.5
ALL = (
    "kill_worker", "kill_node", "kill_all", "stop_node", "nap_node", "break_link", "break_wire", "join", "leave",
    "workers",
)  # fmt: skip


@pytest.fixture(autouse=True)
def short_silence(monkeypatch):
    """Give nodes up sooner than in real life; a wrong verdict must do no harm."""
    monkeypatch.setattr(coordinator, "_SILENCE_S", SILENCE_S)


def numpy_model() -> tuple[Any, Any]:
    return node_faults.napping_loss, networks.mlp_params((12, 16, 3))


def trainer_of(model: Any, **engine: Any) -> Trainer:
    made, params = model()
    return Trainer(made, params, optimizer=SGD(0.05, momentum=0.9), shards=4, seed=4, max_restarts=10_000, **engine)


def serial(model: Any, epochs: int) -> tuple[str, Any]:
    with trainer_of(model, engine="serial") as trainer:
        history = trainer.fit(DATA, epochs=epochs, batch_size=BATCH)
        return weights_sha256(trainer.params), history.history


def with_faults(model: Any, rng: Any, kinds: dict[str, int], monkeypatch: Any, nodes: int = 3) -> None:
    """Train with faults until all are injected, and compare with the serial engine."""
    monkeypatch.setenv(node_faults.NAP, "0.02")
    watch, cluster = StepWatch(), LoopbackWithFaults()
    with trainer_of(model, engine=cluster, nodes=nodes, workers=1) as trainer:
        faults = NodeFaults(trainer, cluster, watch, rng, kinds, silence_s=SILENCE_S)
        faults.start()
        try:
            history = trainer.fit(DATA, epochs=100_000, batch_size=BATCH, callbacks=[watch])
        finally:
            faults.join()
        assert faults.error is None, faults.error
        epochs, found = trainer.epoch, (weights_sha256(trainer.params), history.history)
        print(f"{sum(kinds.values())} faults in {trainer.step} steps; {trainer.restarts} nodes and workers replaced")
    monkeypatch.delenv(node_faults.NAP)
    assert found == serial(model, epochs)


def test_eight_faults(rng, monkeypatch):
    kinds = {"kill_worker": 1, "kill_node": 2, "kill_all": 1, "stop_node": 1, "break_link": 1, "join": 1, "leave": 1}
    with_faults(numpy_model, rng, kinds, monkeypatch)


@pytest.mark.soak
@pytest.mark.parametrize("kind", ALL)
def test_one_kind(rng, monkeypatch, kind):
    with_faults(numpy_model, rng, {kind: 1}, monkeypatch, nodes=2)


@pytest.mark.soak
def test_fifty_faults(rng, monkeypatch):
    with_faults(numpy_model, rng, dict.fromkeys(ALL, 5), monkeypatch)


class KillAll(Callback):
    """Kills every node at the end of these epochs, when their steps are known to be made."""

    def __init__(self, cluster: LoopbackWithFaults, epochs: set[int]) -> None:
        self._cluster, self._epochs = cluster, epochs

    def on_epoch_end(self, epoch, logs):
        if epoch in self._epochs:
            for node in self.trainer._pool.nodes():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(node["pid"], signal.SIGKILL)


@pytest.mark.parametrize("epochs", [{2}, {0, 2}])
def test_steps_are_made_again_when_every_node_is_lost(epochs):
    """The last steps too: their weights were nowhere else."""
    cluster = LoopbackWithFaults()
    with trainer_of(numpy_model, engine=cluster, nodes=2, workers=1) as trainer:
        history = trainer.fit(DATA, epochs=3, batch_size=BATCH, callbacks=[KillAll(cluster, epochs)])
        assert trainer.step == 30
        found = weights_sha256(trainer.params), history.history
    assert found == serial(numpy_model, 3)


def test_the_driver_copies_the_weights_now_and_then(monkeypatch, caplog):
    monkeypatch.setattr(driver_copy, "_EVERY_S", 0.1)
    monkeypatch.setattr(driver_copy, "_SHARE", 1)
    monkeypatch.setenv(node_faults.NAP, "0.02")
    cluster = LoopbackWithFaults()
    with trainer_of(numpy_model, engine=cluster, nodes=2, workers=1) as trainer:
        trainer.fit(DATA, epochs=8, batch_size=BATCH, callbacks=[KillAll(cluster, {5})])
        found = weights_sha256(trainer.params)
    back = re.search(r"training goes back from step (\d+) to (\d+)", caplog.text)
    if back is not None:  # otherwise the copy was that of the last step
        print(back.group())
        assert int(back[2]) > 0
    monkeypatch.delenv(node_faults.NAP)
    assert found == serial(numpy_model, 8)[0]
