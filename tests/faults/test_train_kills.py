"""Faults during training: kills at any moment, models that fail, servers that vanish, readers that hold versions.

After each test the leak check of conftest.py finds no process, descriptor, mapping or file. Tests that kill the server
itself look for leaks of its orphans.
"""

from __future__ import annotations

import contextlib
import os
import random
import select
import signal
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

import helpers
import networks
import untorn
from untorn import SGD, CapacityError, NonFiniteLossError, Trainer, WorkerError
from untorn.share import lowlevel
from untorn.train import Callback, weights_sha256
from untorn.train.data.sampler import epoch_order
from untorn.train.run import weights

SHARDS = 4
CLASSES = networks.classes_of(256, 16, 4)
LINE = networks.data_of(60, 3)


def mlp_trainer(model=networks.slow_mlp, **arguments):
    optimizer = SGD(0.05, momentum=0.9, nesterov=True, weight_decay=0.001)
    given = {"optimizer": optimizer, "shards": SHARDS, "seed": 5, "max_restarts": 10_000} | arguments
    return Trainer(model, networks.mlp_params((16, 32, 4)), **given)


def line_trainer(model, **arguments):
    given = {"optimizer": SGD(0.05), "engine": "processes", "workers": 2, "shards": 3, "seed": 5} | arguments
    return Trainer(model, networks.line_params(3), **given)


def serial_sha256(epochs: int, batch_size: int) -> str:
    """Return the result of the same training without processes and without the extra work."""
    with mlp_trainer(networks.mlp, engine="serial") as trainer:
        trainer.fit(CLASSES, epochs=epochs, batch_size=batch_size)
        return weights_sha256(trainer.params)


# -- kills


class Killer(threading.Thread):
    """Kills random workers at random moments, a given number of times; training makes progress between two kills."""

    def __init__(self, trainer: Trainer, rng: random.Random, kills: int, at_once: int = 1) -> None:
        super().__init__()
        self._trainer = trainer
        self._rng = rng
        self._at_once = at_once
        self._over = threading.Event()
        self._wanted = kills

    def run(self) -> None:
        with self._trainer.subscriber() as weights:
            version = weights.version
            while self._trainer.restarts < self._wanted and not self._over.is_set():
                with contextlib.suppress(TimeoutError):
                    version = weights.wait(version, timeout_s=0.1)
                    self._over.wait(self._rng.random() * 0.02)  # a random pause, out of step with training
                    for pid in self._rng.sample(self._trainer.pids, self._at_once):
                        with contextlib.suppress(ProcessLookupError):
                            os.kill(pid, signal.SIGKILL)

    def __enter__(self) -> Killer:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self.join()


def train_under_fire(trainer: Trainer, killer: Killer, batch_size: int) -> int:
    """Fit until the killer has finished. Return the number of epochs."""
    with killer:
        trainer.fit(CLASSES, epochs=2, batch_size=batch_size)
        while killer.is_alive():
            trainer.fit(CLASSES, epochs=2, batch_size=batch_size)
    return trainer.epoch


@pytest.mark.parametrize(("workers", "at_once", "kills"), [(2, 1, 24), (3, 2, 16), (1, 1, 8)])
def test_the_weights_do_not_depend_on_who_is_killed(rng, workers, at_once, kills):
    with mlp_trainer(workers=workers) as trainer:
        trainer.fit(CLASSES, epochs=1, batch_size=32)
        epochs = train_under_fire(trainer, Killer(trainer, rng, kills, at_once), batch_size=32)
        assert trainer.restarts >= kills
        in_tasks = trainer._pool.supervisor.deaths_in_tasks
        print(f"{trainer.restarts} killed, {in_tasks} of them inside a gradient, in {epochs} epochs")
        assert in_tasks > 0
        got = weights_sha256(trainer.params)
    assert got == serial_sha256(epochs, 32)


@pytest.mark.soak
@pytest.mark.parametrize("workers", [2, 3, 4, 8])
@pytest.mark.parametrize("model", [networks.mlp, networks.slow_mlp], ids=["fast", "slow"])
def test_hundreds_of_kills(rng, workers, model):
    """With the fast model, most kills hit updates, phase changes and waits."""
    with mlp_trainer(model, workers=workers) as trainer:
        trainer.fit(CLASSES, epochs=1, batch_size=64)
        epochs = train_under_fire(trainer, Killer(trainer, rng, 400, min(workers, 3)), batch_size=64)
        got = weights_sha256(trainer.params)
    assert got == serial_sha256(epochs, 64)


def test_all_workers_killed_between_two_fits():
    with mlp_trainer(networks.mlp, workers=2) as trainer:
        trainer.fit(CLASSES, epochs=1, batch_size=64)
        killed = trainer.pids
        for pid in killed:
            os.kill(pid, signal.SIGKILL)
        trainer.fit(CLASSES, epochs=2, batch_size=64)
        assert not set(trainer.pids) & set(killed)
        assert trainer.restarts == 2
        got = weights_sha256(trainer.params)
    assert got == serial_sha256(3, 64)


def test_all_workers_killed_at_once_by_a_callback():
    class KillAll(Callback):
        def on_epoch_begin(self, epoch, logs):
            for pid in self.trainer.pids:
                os.kill(pid, signal.SIGKILL)

    with mlp_trainer(networks.mlp, workers=2) as trainer:
        trainer.fit(CLASSES, epochs=3, batch_size=64, callbacks=[KillAll()])
        assert trainer.restarts == 6
        got = weights_sha256(trainer.params)
    assert got == serial_sha256(3, 64)


def test_a_stopped_worker_loses_nothing():
    """SIGSTOP is no death: the others wait for the gradient of a stopped worker for any time, and it counts once."""

    class StopAWhile(Callback):
        def on_epoch_begin(self, epoch, logs):
            pid = self.trainer.pids[0]
            os.kill(pid, signal.SIGSTOP)
            self.timer = threading.Timer(0.3, os.kill, (pid, signal.SIGCONT))
            self.timer.start()

        def on_epoch_end(self, epoch, logs):
            self.timer.join()

    with mlp_trainer(workers=2) as trainer:
        trainer.fit(CLASSES, epochs=3, batch_size=64, callbacks=[StopAWhile()])
        assert trainer.restarts == 0
        got = weights_sha256(trainer.params)
    assert got == serial_sha256(3, 64)


# -- models that fail

MARK = 7e7


def marked(at: int):
    """Return LINE with a mark in one example."""
    x, y = (array.copy() for array in LINE)
    x[at, 0] = MARK
    return x, y


def place_of(at: int, *, batch_size: int, shards: int, seed: int = 5):
    """Return (step, shard) of this example in epoch 0."""
    position = epoch_order(seed, 0, len(LINE[0])).tolist().index(at)
    step, rest = divmod(position, batch_size)
    return step, next(s for s in range(shards) if batch_size * s // shards <= rest < batch_size * (s + 1) // shards)


def kills_itself(params, batch):
    if (batch[0] == MARK).any():
        os.kill(os.getpid(), signal.SIGKILL)
    return networks.line(params, batch)


def exits(params, batch):
    if (batch[0] == MARK).any():
        os._exit(3)
    return networks.line(params, batch)


def raises(params, batch):
    if (batch[0] == MARK).any():
        raise RuntimeError("boom ☃")
    return networks.line(params, batch)


def gives_nan(params, batch):
    loss, grads = networks.line(params, batch)
    return (float("nan") if (batch[0] == MARK).any() else loss), grads


def gives_another_tree(params, batch):
    loss, grads = networks.line(params, batch)
    return loss, {"w": grads["w"]}


def gives_another_shape(params, batch):
    loss, grads = networks.line(params, batch)
    return loss, {"w": grads["w"][:2], "b": grads["b"]}


def gives_complex(params, batch):
    loss, grads = networks.line(params, batch)
    return loss, {"w": grads["w"] + 1j, "b": grads["b"]}


def fit_again(trainer: Trainer) -> None:
    """Check that the trainer is usable: another fit runs, and changes the weights."""
    before, version = weights_sha256(trainer.params), trainer.snapshot().version
    trainer.fit(LINE, epochs=1, batch_size=12)
    assert trainer.snapshot().version == version + 5
    assert weights_sha256(trainer.params) != before


@pytest.mark.parametrize(("model", "how"), [(kills_itself, "was killed by SIGKILL"), (exits, "ended with exit code 3")])
def test_a_shard_that_kills_every_worker_is_named(rng, model, how):
    at = rng.randrange(60)
    step, shard = place_of(at, batch_size=12, shards=3)
    with line_trainer(model, max_restarts=2) as trainer:
        with pytest.raises(WorkerError) as caught:
            trainer.fit(marked(at), epochs=1, batch_size=12)
        where = f"in epoch 0, step {step}, shard {shard} (4 examples: "
        assert f"3 workers died one after the other {where}" in str(caught.value)
        assert f"; the last {how}" in str(caught.value)
        assert "max_restarts is 2" in str(caught.value)
        assert trainer.snapshot().version == 1 + step
        fit_again(trainer)


@pytest.mark.parametrize("engine", ["serial", "processes"])
def test_a_model_that_raises_shows_its_own_lines(rng, engine):
    at = rng.randrange(60)
    step, shard = place_of(at, batch_size=12, shards=3)
    with line_trainer(raises, engine=engine) as trainer:
        with pytest.raises(WorkerError) as caught:
            trainer.fit(marked(at), epochs=1, batch_size=12)
        assert f"epoch 0, step {step}, shard {shard} (4 examples: " in str(caught.value)
        assert "RuntimeError: boom ☃" in str(caught.value)
        lines = caught.value.worker_traceback
        assert lines in str(caught.value) + "\n"
        assert f'File "{__file__}"' in lines
        assert "in raises" in lines
        assert 'raise RuntimeError("boom ☃")' in lines
        assert str(Path(untorn.__file__).parent) not in lines
        assert trainer.snapshot().version == 1 + step
        fit_again(trainer)


@pytest.mark.parametrize("engine", ["serial", "processes"])
def test_a_nan_keeps_the_weights_of_the_step_before(rng, engine):
    at = rng.randrange(60)
    step, _ = place_of(at, batch_size=12, shards=1)
    data = marked(at)
    with line_trainer(gives_nan, engine=engine, shards=1) as trainer:
        with pytest.raises(NonFiniteLossError, match=f"the loss is nan in epoch 0, step {step}, shard 0"):
            trainer.fit(data, epochs=1, batch_size=12)
        assert trainer.snapshot().version == 1 + step
        kept = trainer.params
        fit_again(trainer)
    expected = networks.line_params(3)
    for batch in epoch_order(5, 0, 60).reshape(5, 12)[:step]:
        _, grads = networks.line(expected, (data[0][batch], data[1][batch]))
        expected = {key: np.asarray(expected[key] - 0.05 * grads[key]) for key in expected}
    assert weights_sha256(kept) == weights_sha256(expected)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (gives_another_tree, "expected dict of w, b, found dict of w"),
        (gives_another_shape, "the gradient of w has another shape: expected float64 array of shape (3,), "
         "found float64 array of shape (2,)"),
        (gives_complex, "the gradient of w has another dtype: expected float64 array of shape (3,), found complex128"),
    ],
)  # fmt: skip
def test_a_gradient_that_does_not_fit_is_named(model, message):
    with line_trainer(model) as trainer:
        with pytest.raises(WorkerError) as caught:
            trainer.fit(LINE, epochs=1, batch_size=12)
        assert message in str(caught.value)
        assert trainer.snapshot().version == 1


def test_a_model_that_cannot_be_sent_is_named():
    lock = threading.Lock()

    def model(params, batch):
        with lock:
            return networks.line(params, batch)

    with line_trainer(model) as trainer:
        with pytest.raises(TypeError, match="model: it cannot be sent to worker processes"):
            trainer.fit(LINE, epochs=1, batch_size=12)
        assert trainer.pids == []


def _not_here():
    raise ImportError("no such library in the worker")


class CannotBeLoaded:
    def loss_and_grad(self, params, batch):
        return networks.line(params, batch)

    def __reduce__(self):
        return _not_here, ()


def test_a_model_that_cannot_be_loaded_is_named():
    with line_trainer(CannotBeLoaded()) as trainer, pytest.raises(WorkerError, match="no such library in the worker"):
        trainer.fit(LINE, epochs=1, batch_size=12)


# -- readers that hold on


def level_params():
    return {"w": np.zeros(200_000, np.float32), "v": np.zeros(50_001)}


def level(params, batch):
    """Check that all numbers of a version are equal in both dtypes: one minus the version."""
    return 0.0, {"w": np.ones(200_000, np.float32), "v": np.ones(50_001)}


def check_level(snapshot) -> None:
    for leaf in snapshot.value.values():
        assert leaf.min() == leaf.max() == 1 - snapshot.version


class Hold(Callback):
    """Takes a snapshot of each new version, and keeps it."""

    def __init__(self, most):
        self.kept = []
        self._most = most

    def on_batch_end(self, batch, logs):
        snapshot = self.trainer.snapshot()
        if len(self.kept) < self._most and (not self.kept or self.kept[-1].version != snapshot.version):
            self.kept.append(snapshot)


def hold_versions(pipe, weights, count):
    """Run a reader in another process, which keeps versions while training continues, and checks them at the end."""
    kept = []
    pipe.put("ready")
    with weights:
        while len(kept) < count:
            kept.append(weights.snapshot(newer_than=kept[-1].version if kept else 1, timeout_s=60))
        pipe.put([snapshot.version for snapshot in kept])
        pipe.get()
        for snapshot in kept:
            check_level(snapshot)
        pipe.put("whole")
        del kept, snapshot


def test_readers_that_hold_old_versions_keep_them_whole():
    data = (np.zeros((60, 1)),)
    with Trainer(level, level_params(), optimizer=SGD(1.0), workers=2, shards=2) as trainer:
        hold = Hold(20)
        with helpers.start(hold_versions, trainer.subscriber(), 20, method="spawn") as reader:
            assert reader.get() == "ready"
            while len(hold.kept) < 20 or not reader.pipe.poll(0):
                trainer.fit(data, epochs=1, batch_size=5, callbacks=[hold])
            versions = reader.get()
            trainer.fit(data, epochs=10, batch_size=5)  # many more versions go by
            reader.put("check")
            assert reader.get() == "whole"
            reader.join()
        assert len(set(versions)) == 20
        assert len({snapshot.version for snapshot in hold.kept}) == 20
        for snapshot in hold.kept:
            check_level(snapshot)
        assert len(lowlevel.attachment_of(trainer._open().weights.channel).slots()) > 20
        with trainer.snapshot() as newest:
            assert newest.version == 1 + trainer.step
            check_level(newest)
        for snapshot in hold.kept:
            snapshot.close()


def test_when_every_slot_is_held_it_says_who_holds_them(monkeypatch):
    monkeypatch.setattr(weights, "FREE_SLOT_TIMEOUT_S", 0.05)
    monkeypatch.setattr(weights, "_RESERVED_SLOTS", 0)  # otherwise this reader would get the error
    data = (np.zeros((1, 1)),)
    kept = []
    with Trainer(level, level_params(), optimizer=SGD(1.0), engine="serial") as trainer:
        for _ in range(63):
            kept.append(trainer.snapshot())
            trainer.fit(data, epochs=1, batch_size=1)
        kept.append(trainer.snapshot())
        with pytest.raises(CapacityError, match=f"all 64 are held .*pid {os.getpid()} holds versions 1, 2, 3, "):
            trainer.fit(data, epochs=1, batch_size=1)
        for snapshot in kept:
            check_level(snapshot)
            snapshot.close()
        del snapshot
        kept.clear()
        version = trainer.snapshot().version
        trainer.fit(data, epochs=1, batch_size=1)
        assert trainer.snapshot().version == version + 1


# -- the server vanishes


def memory_of(pid: int) -> set[tuple[str, int]]:
    """Return the anonymous channels and boards that this process holds, as (name, inode)."""
    found = set()
    with contextlib.suppress(OSError):
        for entry in os.scandir(f"/proc/{pid}/fd"):
            with contextlib.suppress(OSError):
                if "/memfd:untorn" in (target := os.readlink(entry.path)):
                    found.add((target.split()[0], os.stat(entry.path).st_ino))
        for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
            if "/memfd:untorn" in line:
                found.add((line.split()[5], int(line.split()[4])))
    return found


def held_by_anybody() -> set[tuple[str, int]]:
    return set().union(*(memory_of(int(pid)) for pid in os.listdir("/proc") if pid.isdigit()))


def wait_for_the_end(pidfds: list[int]) -> None:
    for pidfd in pidfds:
        readable, _, _ = select.select([pidfd], [], [], helpers.WATCHDOG_S)
        os.close(pidfd)
        assert readable, "a worker outlives its server"


class Announce(Callback):
    """Tells the test the workers' pids as soon as training runs."""

    def __init__(self, put):
        self.put = put
        self.done = False

    def on_batch_end(self, batch, logs):
        if not self.done:
            self.done = True
            self.put(self.trainer.pids)


def serve(pipe):
    with mlp_trainer(workers=2) as trainer:
        trainer.fit(CLASSES, epochs=1_000_000, batch_size=32, callbacks=[Announce(pipe.put)])


def test_a_killed_server_leaves_nothing():
    with helpers.start(serve) as server:
        workers = server.get()
        assert len(workers) == 2
        pidfds = [os.pidfd_open(pid) for pid in workers]
        memory = memory_of(server.pid)
        assert memory
        assert server.kill() == -signal.SIGKILL
        wait_for_the_end(pidfds)
    assert not memory & held_by_anybody()


def test_a_server_and_a_worker_killed_together_leave_nothing():
    with helpers.start(serve) as server:
        workers = server.get()
        pidfds = [os.pidfd_open(pid) for pid in workers]
        memory = memory_of(server.pid)
        os.kill(workers[0], signal.SIGKILL)
        server.kill()
        wait_for_the_end(pidfds)
    assert not memory & held_by_anybody()


SCRIPT = """
import sys
sys.path.insert(0, {tests!r})
sys.path.insert(0, {faults!r})
from test_train_kills import Announce, CLASSES, mlp_trainer

if __name__ == "__main__":
    with mlp_trainer(workers=2) as trainer:
        announce = Announce(lambda pids: print(*pids, flush=True))
        trainer.fit(CLASSES, epochs=1_000_000, batch_size=32, callbacks=[announce])
"""


@pytest.mark.parametrize("whole_terminal", [False, True], ids=["server", "terminal"])
def test_ctrl_c_ends_it_all(tmp_path, whole_terminal):
    """A terminal sends SIGINT to the workers too, which ignore it; the server handles it."""
    script = tmp_path / "script.py"
    here = Path(__file__).parent
    script.write_text(SCRIPT.format(tests=str(here.parent), faults=str(here)))
    with subprocess.Popen(
        [sys.executable, script],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as server:
        assert server.stdout is not None
        line = server.stdout.readline()
        if not line:
            pytest.fail(server.communicate()[1])
        pidfds = [os.pidfd_open(int(pid)) for pid in line.split()]
        memory = memory_of(server.pid)
        assert len(pidfds) == 2
        assert memory
        (os.killpg if whole_terminal else os.kill)(server.pid, signal.SIGINT)
        _, errors = server.communicate(timeout=helpers.WATCHDOG_S)
        wait_for_the_end(pidfds)
    assert server.returncode == -signal.SIGINT
    assert errors.count("Traceback") == 1
    assert errors.rstrip().endswith("KeyboardInterrupt")
    assert not memory & held_by_anybody()
