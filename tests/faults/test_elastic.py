"""Workers that join, leave, stop and are killed at random during training do not change a bit of the weights."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time

import numpy as np
import pytest

import helpers
import networks
from fault_injector import FaultInjector
from untorn.control import ask
from untorn.engines.child import is_stopped
from untorn.train import SGD, Callback, Trainer, weights_sha256

DATA = networks.classes_of(256, 16, 4)


def trainer_of(model=networks.slow_mlp, **arguments):
    given = {"optimizer": SGD(0.05, momentum=0.9), "shards": 4, "seed": 5, "max_restarts": 10_000} | arguments
    return Trainer(model, networks.mlp_params((16, 32, 4)), **given)


def serial_sha256(epochs: int) -> str:
    with trainer_of(networks.mlp, engine="serial") as trainer:
        trainer.fit(DATA, epochs=epochs, batch_size=32)
        return weights_sha256(trainer.params)


def train_in(faults: FaultInjector, trainer: Trainer) -> int:
    with faults:
        trainer.fit(DATA, epochs=1, batch_size=32)
        while faults.is_alive():
            trainer.fit(DATA, epochs=1, batch_size=32)
    return trainer.epoch


@pytest.mark.parametrize("what", [("resize",), ("stop", "wake"), ("resize", "kill", "stop", "wake")], ids="+".join)
def test_the_weights_do_not_depend_on_who_comes_and_goes(rng, what):
    with trainer_of(workers=3) as trainer:
        epochs = train_in(FaultInjector(trainer, rng, 6, what), trainer)
        got = weights_sha256(trainer.params)
    print(f"{epochs} epochs, {trainer.restarts} restarts")
    assert got == serial_sha256(epochs)


@pytest.mark.soak
@pytest.mark.parametrize("model", [networks.mlp, networks.slow_mlp], ids=["fast", "slow"])
def test_many_faults(rng, model):
    with trainer_of(model, workers=3) as trainer:
        epochs = train_in(FaultInjector(trainer, rng, 100, ("resize", "kill", "stop", "wake")), trainer)
        got = weights_sha256(trainer.params)
    print(f"{epochs} epochs")
    assert got == serial_sha256(epochs)


# -- one that is stopped


class StopOne(Callback):
    """Stops a worker in the first step, and resumes it after training has continued without it for a while."""

    def __init__(self, wake_at: int) -> None:
        self.wake_at = wake_at
        self.pid = 0
        self.was_stopped_at: list[int] = []

    def on_batch_end(self, batch, logs):
        if not self.pid:
            self.pid = self.trainer.pids[0]
            os.kill(self.pid, signal.SIGSTOP)
        self.was_stopped_at += [self.trainer.step] if is_stopped(self.pid) else []
        if self.trainer.step >= self.wake_at:
            os.kill(self.pid, signal.SIGCONT)


def test_a_stopped_worker_stops_nobody_else():
    stop = StopOne(wake_at=60)
    with trainer_of(workers=2) as trainer:
        trainer.fit(DATA, epochs=10, batch_size=32, callbacks=[stop])
        assert len(stop.was_stopped_at) > 40 or trainer.restarts  # a worker that stops in an update must be replaced
        trainer.fit(DATA, epochs=2, batch_size=32)  # it takes part again
        got = weights_sha256(trainer.params)
    assert got == serial_sha256(12)


def test_a_stopped_worker_does_not_keep_the_trainer_open():
    with trainer_of(workers=2) as trainer:
        trainer.fit(DATA, epochs=1, batch_size=32)
        pid = trainer.pids[1]
        os.kill(pid, signal.SIGSTOP)
        began = time.monotonic()
    assert time.monotonic() - began < helpers.WATCHDOG_S
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


# -- join and leave, from another process


class Wait(Callback):
    """Continues training until another process has done its part of the test."""

    def __init__(self, over: threading.Event) -> None:
        self.over = over

    def on_epoch_end(self, epoch, logs):
        if self.over.is_set():
            self.trainer.stop_training = True


def test_workers_join_and_leave_from_outside(name):
    over, answers = threading.Event(), []

    def outside() -> None:
        try:
            for by in (2, -3, 1):
                answers.append(ask(name, {"do": "resize", "by": by}, timeout_s=helpers.WATCHDOG_S))
            with contextlib.suppress(ValueError):
                ask(name, {"do": "resize", "by": -5}, timeout_s=helpers.WATCHDOG_S)
                answers.append("it had fewer than one worker")
        finally:
            over.set()

    thread = threading.Thread(target=outside)
    with trainer_of(workers=2, name=name) as trainer:
        thread.start()
        trainer.fit(DATA, epochs=10_000, batch_size=32, callbacks=[Wait(over)])
        thread.join()
        assert answers == [{"workers": 4, "was": 2}, {"workers": 1, "was": 4}, {"workers": 2, "was": 1}]
        trainer.fit(DATA, epochs=1, batch_size=32)
        assert len(trainer.pids) == 2
        epochs, got = trainer.epoch, weights_sha256(trainer.params)
    assert got == serial_sha256(epochs)


def test_memory_for_more_workers_is_reserved_when_they_come():
    with Trainer(networks.line, networks.line_params(300_000), optimizer=SGD(1e-9), workers=1, shards=1) as trainer:

        class Look(Callback):
            def __init__(self):
                self.blocks = []

            def on_epoch_end(self, epoch, logs):
                fd = next(
                    int(each)
                    for each in os.listdir("/proc/self/fd")
                    if "untorn-board" in os.readlink(f"/proc/self/fd/{each}")
                )
                self.blocks.append(os.fstat(fd).st_blocks * 512)
                self.trainer.resize(3)

        look = Look()
        x = np.zeros((2, 300_000))
        trainer.fit((x, np.zeros(2)), epochs=2, batch_size=1, callbacks=[look])
    buffer = 8 * 300_000
    assert look.blocks[0] < 3 * buffer
    assert 4 * buffer <= look.blocks[1] < 6 * buffer
