"""Deaths are detected even if other code reaps the dead: if SIGCHLD is ignored, or code waits for any child."""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

import helpers
from untorn import SGD, Trainer, WorkerError
from untorn.engines.child import ChildProcess
from untorn.engines.fork_servers import end_fork_servers
from untorn.train import weights_sha256

X = np.random.default_rng(0).normal(size=(240, 4))
DATA = (X, X.sum(axis=1))


class Deadly:
    """A linear model that kills the first ``deaths`` worker processes that reach one of these examples."""

    def __init__(self, folder: Path, deaths: int, examples: range) -> None:
        self.folder, self.deaths, self.examples = folder, deaths, examples
        self.server = os.getpid()

    def loss_and_grad(self, params, batch):
        x, y = batch
        if (y[:, None] == DATA[1][self.examples]).any():
            self._die()
        error = x @ params["w"] - y
        return (error**2).mean(), {"w": 2 * x.T @ error / len(x)}

    def predict(self, params, x):
        self._die()
        return x @ params["w"]

    def _die(self) -> None:
        if os.getpid() == self.server:
            return
        for death in range(self.deaths):
            with contextlib.suppress(FileExistsError):
                (self.folder / str(death)).touch(exist_ok=False)
                os.kill(os.getpid(), signal.SIGKILL)


def ignored() -> None:
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)


def by_a_handler() -> None:
    def reap(*_: object) -> None:
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass

    signal.signal(signal.SIGCHLD, reap)


def by_a_thread() -> None:
    def reap() -> None:
        while True:
            try:
                os.wait()
            except ChildProcessError:
                signal.sigtimedwait([], 0.001)

    threading.Thread(target=reap, daemon=True).start()


def by_nobody_else() -> None:
    pass


REAPERS = [ignored, by_a_handler, by_a_thread, by_nobody_else]


def trainer_of(model, **arguments) -> Trainer:
    return Trainer(model, {"w": np.zeros(4)}, optimizer=SGD(0.01), seed=3, **arguments)


def fit(pipe, reaped, folder, arguments) -> None:
    reaped()
    with trainer_of(Deadly(folder, 2, range(240)), workers=2, max_restarts=100, **arguments) as trainer:
        history = trainer.fit(DATA, epochs=2, batch_size=24)
        pipe.put((trainer.restarts, len(history), weights_sha256(trainer.params)))
        trainer.resize(1)
    end_fork_servers()
    pipe.put(len(Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()))


@pytest.mark.parametrize("reaped", REAPERS, ids=lambda each: each.__name__)
def test_the_weights_are_the_same(reaped, tmp_path):
    with trainer_of(Deadly(tmp_path, 0, range(0)), engine="serial", shards=3) as trainer:
        trainer.fit(DATA, epochs=2, batch_size=24)
        expected = weights_sha256(trainer.params)
    with helpers.start(fit, reaped, tmp_path, {"shards": 3}) as child:
        assert child.get() == (2, 2, expected)
        assert child.get() == 0
        assert child.join() == 0


def test_async_training_goes_on(tmp_path):
    with helpers.start(fit, ignored, tmp_path, {"mode": "async"}) as child:
        assert child.get()[:2] == (2, 2)
        assert child.get() == 0
        assert child.join() == 0


def predict(pipe, reaped, folder) -> None:
    reaped()
    x = np.tile(X, (50, 1))
    with trainer_of(Deadly(folder, 2, range(0)), workers=2, max_restarts=2) as trainer:
        trainer.fit(DATA, epochs=1, batch_size=240)
        measuring_takes_long()
        outputs = trainer.predict(x, batch_size=100)
        pipe.put((trainer.restarts, bool((outputs == x @ trainer.params["w"]).all())))


def measuring_takes_long() -> None:
    """Make this process, and no other, send evaluations to the workers, however small they are."""
    from untorn.train.run import evaluation

    evaluation._WORTH_S = 0.0


def test_evaluation_goes_on(tmp_path):
    with helpers.start(predict, ignored, tmp_path) as child:
        assert child.get() == (2, True)
        assert child.join() == 0


def fail(pipe, reaped, folder) -> None:
    reaped()
    trainer = trainer_of(Deadly(folder, 100, range(240)), workers=1, shards=1, max_restarts=1)
    with trainer, pytest.raises(WorkerError) as caught:
        trainer.fit(DATA, epochs=1, batch_size=240)
    pipe.put(str(caught.value))


@pytest.mark.parametrize(
    ("reaped", "cause"),
    [(by_nobody_else, "was killed by SIGKILL, and not by the kernel"), (ignored, "SIGCHLD is ignored in this process")],
)
def test_a_worker_that_dies_again_and_again_is_an_error(reaped, cause, tmp_path):
    with helpers.start(fail, reaped, tmp_path) as child:
        message = child.get()
        assert message.startswith("2 workers died one after the other in epoch 0, step 0, shard 0"), message
        assert cause in message
        assert child.join() == 0


# -- one process


def started() -> tuple[ChildProcess, int]:
    """Start a process that ends when the descriptor returned with it is closed."""
    theirs, ours = os.pipe()
    process = subprocess.Popen([sys.executable, "-ISc", "import os; os.read(0, 1); os._exit(7)"], stdin=theirs)
    os.close(theirs)
    return ChildProcess.of(process), ours


@pytest.fixture(params=["pidfd", "refused"])
def kernel(request, monkeypatch):
    """Run with a kernel with pidfds, and with one that refuses them, as old kernels and some filters do."""
    if request.param == "refused":

        def refuse(_pid: int) -> int:
            raise PermissionError("the filter says no")

        monkeypatch.setattr(os, "pidfd_open", refuse)


@pytest.mark.usefixtures("kernel")
def test_it_ends_by_itself():
    process, gate = started()
    assert not process.ended
    assert not process.join(0.0)
    assert process.exitcode is None
    os.close(gate)
    assert process.join(helpers.WATCHDOG_S)
    assert process.exitcode == 7
    process.close()


@pytest.mark.usefixtures("kernel")
def test_it_is_killed():
    process, gate = started()
    process.end()
    assert process.exitcode == -signal.SIGKILL
    process.kill()  # does nothing
    os.close(gate)


@pytest.mark.usefixtures("kernel")
def test_somebody_else_reaps_it():
    process, gate = started()
    os.close(gate)
    os.waitpid(process.pid, 0)
    assert process.ended
    assert process.exitcode is None
    process.kill()  # does nothing
    process.close()


@pytest.mark.usefixtures("kernel")
def test_subprocess_reaps_it():
    process, gate = started()
    os.close(gate)
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    process._process.poll()
    assert process.ended
    assert process.exitcode == 7
    process.close()


@pytest.mark.usefixtures("kernel")
def test_a_stopped_process_is_alive():
    process, gate = started()
    os.kill(process.pid, signal.SIGSTOP)
    os.waitid(os.P_PID, process.pid, os.WSTOPPED | os.WNOWAIT)
    assert process.stopped
    assert not process.ended
    process.end()
    assert not process.stopped
    os.close(gate)


def test_a_process_is_ended_when_no_descriptor_is_left(kernel):
    process, ours = started()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
        stopped = process.stopped
        process.end()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        os.close(ours)
    assert not stopped
    assert process.ended
