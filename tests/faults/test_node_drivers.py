"""A driver of nodes that is killed, or that closes at any moment, leaves no process behind. Resumed with any engine, it
has the same bits in the end."""

from __future__ import annotations

import contextlib
import os
import random
import select
import signal
import threading
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("safetensors")

import helpers
import networks
import node_faults
from untorn.engines.nodes.loopback import LoopbackCluster
from untorn.train import SGD, Callback, Trainer, weights_sha256

DATA = networks.classes_of(152, 12, 3, seed=6)
BATCH = 16
ENGINES: list[dict[str, Any]] = [
    {"engine": "loopback", "nodes": 1, "workers": 1},
    {"engine": "loopback", "nodes": 2, "workers": 1},
    {"engine": "loopback", "nodes": 3, "workers": 1},
    {"engine": "processes", "workers": 2},
    {"engine": "serial"},
]


def trainer_of(**engine: Any) -> Trainer:
    params = networks.mlp_params((12, 16, 3))
    return Trainer(node_faults.napping_loss, params, optimizer=SGD(0.05, momentum=0.9), shards=4, seed=4, **engine)


def pids_of(trainer: Trainer) -> list[int]:
    """Return all processes of a trainer: nodes and workers."""
    nodes = trainer._pool.nodes()
    return [each["pid"] for each in nodes] + [each["pid"] for node in nodes for each in node["workers"]] + trainer.pids


class Tell(Callback):
    """Tells the test which processes there are, at the first step."""

    def __init__(self, put) -> None:
        self._put = put
        self._losses: list[float] = []

    def on_batch_end(self, step, logs):
        if self._put is not None:
            self._put(("running", pids_of(self.trainer)))
            self._put = None


def drive(pipe, directory, epochs, engine) -> None:
    os.environ[node_faults.NAP] = "0.01"
    with trainer_of(**engine) as trainer:
        history = trainer.fit(
            DATA, epochs=epochs, batch_size=BATCH, callbacks=[Tell(pipe.put)], checkpoint_dir=directory, resume=True,
            checkpoint_every_s=0.0,
        )  # fmt: skip
        pipe.put(("done", (weights_sha256(trainer.params), history.history)))


def check_ended(pids: list[int]) -> None:
    """Check that these processes end."""
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            pidfd = os.pidfd_open(pid)
            readable, _, _ = select.select([pidfd], [], [], helpers.WATCHDOG_S)
            os.close(pidfd)
            assert readable, f"process {pid} outlives its driver"


def kill_until_done(directory: Path, rng: random.Random, *, kills: int, epochs: int) -> None:
    killed = 0
    while True:
        # the killed drivers have nodes; the last one has any engine
        engine = rng.choice(ENGINES[1:3] if killed < kills else ENGINES)
        with helpers.start(drive, str(directory), epochs, engine) as driver:
            kind, content = driver.get()
            if kind == "running":
                if killed < kills and not driver.pipe.poll(rng.random() * 0.5):
                    driver.kill()
                    killed += 1
                    check_ended(content)
                    continue
                kind, content = driver.get()
            driver.join()
            assert kind == "done"
            break
    print(f"{killed} drivers killed; the last one had {engine}")
    with trainer_of(engine="serial") as trainer:
        history = trainer.fit(DATA, epochs=epochs, batch_size=BATCH)
        assert content == (weights_sha256(trainer.params), history.history)


def test_killed_drivers(rng, tmp_path):
    kill_until_done(tmp_path, rng, kills=2, epochs=6)


@pytest.mark.soak
def test_twenty_killed_drivers(rng, tmp_path):
    kill_until_done(tmp_path, rng, kills=20, epochs=40)


@pytest.mark.parametrize("moment", ["starting", "training"])
def test_closed_at_any_moment(moment, monkeypatch):
    monkeypatch.setenv(node_faults.NAP, "0.01")
    begun = threading.Event()

    class Started(LoopbackCluster):
        def start(self, invitation):
            started = super().start(invitation)
            if moment == "starting":
                begun.set()
            return started

    class Step(Callback):
        def on_batch_end(self, step, logs):
            begun.set()

    with trainer_of(engine=Started(), nodes=2, workers=1) as trainer:
        closing = threading.Thread(target=lambda: begun.wait(helpers.WATCHDOG_S) and trainer.close())
        closing.start()
        with pytest.raises(Exception, match="closed while it trained"):
            trainer.fit(DATA, epochs=1000, batch_size=BATCH, callbacks=[Step()])
        closing.join()


def test_ctrl_c_and_on(monkeypatch):
    monkeypatch.setenv(node_faults.NAP, "0.005")

    class Interrupt(Callback):
        def on_batch_end(self, step, logs):
            if self.trainer.step >= 3 and self.armed:
                self.armed = False
                signal.raise_signal(signal.SIGINT)

        armed = True

    with trainer_of(engine="loopback", nodes=2, workers=1) as trainer:
        with pytest.raises(KeyboardInterrupt):
            trainer.fit(DATA, epochs=2, batch_size=BATCH, callbacks=[Interrupt()])
        trainer.fit(DATA, epochs=2, batch_size=BATCH)
        found, epochs = weights_sha256(trainer.params), trainer.epoch
    monkeypatch.delenv(node_faults.NAP)
    with trainer_of(engine="serial") as trainer:
        trainer.fit(DATA, epochs=epochs, batch_size=BATCH)
        assert found == weights_sha256(trainer.params)


def test_fits_and_evaluations_between_which_nodes_die(monkeypatch):
    from untorn.train.run import evaluation

    monkeypatch.setattr(evaluation, "_WORTH_S", 0.0)
    results = []
    for engine in ({"engine": "serial"}, {"engine": "loopback", "nodes": 2, "workers": 1}):
        with trainer_of(**engine) as trainer:
            trainer.fit(DATA, epochs=1, batch_size=BATCH)
            first = trainer.evaluate(DATA, batch_size=20)
            for node in trainer._pool.nodes()[:1]:
                os.kill(node["pid"], signal.SIGKILL)
            second = trainer.evaluate(DATA, batch_size=20)
            trainer.fit(DATA, epochs=1, batch_size=BATCH)
            results.append((first, second, trainer.evaluate(DATA, batch_size=20), weights_sha256(trainer.params)))
    assert results[0] == results[1]
