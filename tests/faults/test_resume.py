"""A server that is killed repeatedly, at any moment, and resumed until it is done has the weights of a run that was
never killed, bit for bit. Also tests a full disk."""

from __future__ import annotations

import contextlib
import errno
import functools
import os
import random
import re
import select
import signal
import subprocess
from pathlib import Path

import pytest

pytest.importorskip("safetensors")

import helpers
import networks
from untorn.errors import FormatError
from untorn.train import SGD, Callback, Trainer, weights_sha256
from untorn.train.checkpoints import checkpoint

DATA = networks.classes_of(150, 8, 3, seed=6)
HELD_OUT = networks.classes_of(40, 8, 3, seed=7)
BATCH = 16  # 10 steps an epoch, the last of 6 examples
NAME = re.compile(r"step-\d{12}\.safetensors")
SCRATCH = re.compile(r"\.step-\d{12}\.safetensors\.writing")


def model(params, batch, rng):
    """A model with random numbers, and enough work for a step to take a moment."""
    networks.work(3)
    return networks.mlp_with_dropout(params, batch, rng)


def make(engine: str = "serial", workers: int = 2, layers: tuple[int, ...] = (8, 16, 3)) -> Trainer:
    return Trainer(
        model,
        networks.mlp_params(layers),
        optimizer=SGD(0.05, momentum=0.9),
        engine=engine,
        workers=workers,
        shards=3,
        seed=12,
    )


class Record(Callback):
    """Tells the test the process ids, and keeps the log of every step across kills."""

    def __init__(self, put) -> None:
        self._put = put
        self.steps: list[float] = []

    def on_epoch_begin(self, epoch, logs):
        if self._put is not None:
            self._put(("running", self.trainer.pids))
            self._put = None

    def on_batch_end(self, batch, logs):
        self.steps.append(logs["loss"])

    def state_dict(self):
        return {"steps": self.steps}

    def load_state_dict(self, state):
        self.steps = state["steps"]


def train(trainer: Trainer, directory, epochs: int, record: Record, every_s: float | None = 0.0):
    """Train until done, and return (digest, history, losses of all steps)."""
    history = trainer.fit(
        DATA,
        epochs=epochs,
        batch_size=BATCH,
        validation_data=HELD_OUT,
        callbacks=[record],
        checkpoint_dir=directory,
        resume=directory is not None,
        checkpoint_every_s=every_s,
    )
    return weights_sha256(trainer.params), history.history, record.steps


@functools.cache
def never_stopped(epochs: int):
    with make() as trainer:
        return train(trainer, None, epochs, Record(None))


def serve(pipe, directory, epochs, engine, workers):
    with make(engine, workers) as trainer:
        pipe.put(("done", train(trainer, directory, epochs, Record(pipe.put))))


def wait_for(pidfds: list[int]) -> None:
    """Check that the workers of a dead server end."""
    for pidfd in pidfds:
        readable, _, _ = select.select([pidfd], [], [], helpers.WATCHDOG_S)
        os.close(pidfd)
        assert readable, "a worker outlives its server"


def pidfds_of(workers: list[int]) -> list[int]:
    found = []
    for pid in workers:
        with contextlib.suppress(ProcessLookupError):
            found.append(os.pidfd_open(pid))
    return found


def check_directory(directory: Path) -> None:
    """Check that the directory has only intact checkpoints, and files that the next run removes."""
    for path in directory.iterdir():
        if NAME.fullmatch(path.name):
            checkpoint.read(path)
        else:
            assert SCRATCH.fullmatch(path.name), path


def kill_until_done(directory: Path, rng: random.Random, *, epochs: int, kills: int, within_s: float):
    """Run servers on this directory, one after another, and kill each at a random moment while kills are left. Return
    the results of the last one, and the number of killed ones."""
    killed = 0
    while True:
        engine, workers = rng.choice([("serial", 1), ("processes", 1), ("processes", 2), ("processes", 3)])
        with helpers.start(serve, directory, epochs, engine, workers) as server:
            kind, content = server.get()
            pidfds = []
            if kind == "running":
                pidfds = pidfds_of(content)
                moment = rng.random() * within_s if killed < kills else helpers.WATCHDOG_S
                if not server.pipe.poll(moment):  # a random moment to be killed at
                    server.kill()
                    killed += 1
                    wait_for(pidfds)
                    check_directory(directory)
                    continue
                kind, content = server.get()
            assert kind == "done"
            server.join()
            wait_for(pidfds)
            return content, killed


def check_the_same(got, epochs: int) -> None:
    digest, history, steps = got
    expected_digest, expected_history, expected_steps = never_stopped(epochs)
    assert steps == expected_steps
    assert history == expected_history
    assert digest == expected_digest


def test_killed_again_and_again_the_weights_are_the_same(rng, tmp_path):
    got, killed = kill_until_done(tmp_path, rng, epochs=24, kills=15, within_s=0.15)
    print(f"{killed} killed")
    assert killed >= 8
    check_the_same(got, 24)
    assert all(NAME.fullmatch(path.name) for path in tmp_path.iterdir())


@pytest.mark.soak
@pytest.mark.parametrize("within_s", [0.05, 0.2, 0.5])
def test_hundreds_of_kills_of_the_server(rng, tmp_path, within_s):
    epochs = int(300 * within_s) + 150
    got, killed = kill_until_done(tmp_path, rng, epochs=epochs, kills=100, within_s=within_s)
    print(f"{killed} killed")
    assert killed >= 50
    check_the_same(got, epochs)


# -- killed while a checkpoint is written


def write_and_die(pipe, directory, moment):
    """Train one epoch with a checkpoint. Then get killed right before or after one of the calls for the next one."""
    import safetensors.numpy

    armed = False
    folder = Path(directory)

    def watched(name, call):
        def instead(*args, **kwargs):
            if armed and moment == f"before {name}":
                os.kill(os.getpid(), signal.SIGKILL)
            answer = call(*args, **kwargs)
            if armed and moment == f"after {name}":
                os.kill(os.getpid(), signal.SIGKILL)
            return answer

        return instead

    safetensors.numpy.save_file = watched("save_file", safetensors.numpy.save_file)
    os.chmod = watched("chmod", os.chmod)
    os.fsync = watched("fsync", os.fsync)
    os.replace = watched("replace", os.replace)
    Path.mkdir = watched("mkdir", Path.mkdir)
    Path.unlink = watched("unlink", Path.unlink)
    Path.rmdir = watched("rmdir", Path.rmdir)
    with make() as trainer:
        train(trainer, folder, 2, Record(None), every_s=None)
        pipe.put("armed")
        armed = True
        trainer.fit(DATA, epochs=1, batch_size=BATCH, validation_data=HELD_OUT, checkpoint_dir=folder, keep=1)
        pipe.put("survived")


MOMENTS = [f"{when} {call}" for call in ("mkdir", "save_file", "chmod", "fsync", "replace", "unlink", "rmdir")
           for when in ("before", "after")]  # fmt: skip


@pytest.mark.parametrize("moment", MOMENTS)
def test_killed_at_each_step_of_writing(moment, tmp_path):
    with helpers.start(write_and_die, str(tmp_path), moment) as server:
        assert server.get() == "armed"
        with pytest.raises(helpers.Failure, match="ended with -9"):
            server.get()
    check_directory(tmp_path)
    assert len([path for path in tmp_path.iterdir() if NAME.fullmatch(path.name)]) >= 1
    with make() as trainer:
        got = train(trainer, tmp_path, 4, Record(None), every_s=None)
    assert got[:2] == never_stopped(4)[:2]
    assert all(NAME.fullmatch(path.name) for path in tmp_path.iterdir())


# -- a full disk


@pytest.fixture
def small_disk(tmp_path):
    """Mount a file system of 1 MB; skip the test without the right to mount."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(command, check=False, capture_output=True).returncode:
        pytest.skip("a file system cannot be mounted here")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.parametrize("engine", ["serial", "processes"])
def test_a_full_disk(engine, small_disk):
    layers = (8, 2500, 3)  # 0.25 MB a checkpoint
    with make(engine, layers=layers) as trainer:
        trainer.fit(DATA, epochs=2, batch_size=BATCH, checkpoint_dir=small_disk, checkpoint_every_s=None)
        at_two = weights_sha256(trainer.params)
        with open(small_disk / "others", "wb") as others, contextlib.suppress(OSError):
            others.write(bytes(600_000))
        with pytest.raises(
            OSError, match=r"could not be written: No space left on device; earlier checkpoints"
        ) as caught:
            trainer.fit(DATA, epochs=1, batch_size=BATCH, checkpoint_dir=small_disk, checkpoint_every_s=None)
        assert caught.value.errno == errno.ENOSPC
        assert trainer.step == 30
        at_three = weights_sha256(trainer.params)
        check_directory_but(small_disk, "others")
        assert checkpoint.read(small_disk / "step-000000000020.safetensors").progress.sha256 == at_two
        (small_disk / "others").unlink()
        trainer.fit(DATA, epochs=0, batch_size=BATCH, checkpoint_dir=small_disk)
        assert weights_sha256(trainer.params) == at_three
    with make(engine, layers=layers) as trainer:
        trainer.fit(DATA, epochs=3, batch_size=BATCH, checkpoint_dir=small_disk, resume=True, checkpoint_every_s=None)
        assert weights_sha256(trainer.params) == at_three
    del caught


def check_directory_but(directory: Path, name: str) -> None:
    """Check that there are only intact checkpoints and one other file."""
    names = {path.name for path in directory.iterdir()} - {name}
    for each in names:
        assert NAME.fullmatch(each)
        with contextlib.suppress(FormatError):
            checkpoint.read(directory / each)
            continue
        pytest.fail(f"{each} is damaged")
