"""A fork server that is killed or stopped, at any moment, costs no worker, no bit and no process."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import helpers
import networks
from untorn import SGD, Callback, Trainer, _core
from untorn.engines import fork_servers, forked_worker
from untorn.engines.child import WorkerHandle
from untorn.engines.fork_servers import end_fork_servers, fork_server_resources, launch_worker
from untorn.engines.forked_worker import Request
from untorn.engines.processes import worker_variables
from untorn.engines.worker_logs import LogReceiver
from untorn.train import weights_sha256

DATA = networks.data_of(240, 3)

pytestmark = pytest.mark.usefixtures("no_fork_servers")


def launched(logs: LogReceiver, function, *arguments, modules=()) -> WorkerHandle:
    given = {"environment": worker_variables(1), "logs": logs.fd, "modules": [__name__, *modules]}
    return launch_worker("untorn-worker-0", (function, arguments), **given)


def ended_with(worker: WorkerHandle) -> int | None:
    assert worker.join(helpers.WATCHDOG_S)
    code = worker.exitcode
    worker.end()
    return code


def the_server() -> int:
    (pid,) = fork_server_resources()[0]
    return pid


def seven(problem: Exception | None) -> None:
    sys.exit(7)


def warm_up(logs: LogReceiver) -> int:
    assert ended_with(launched(logs, seven)) == 7
    return the_server()


def kill(pid: int) -> None:
    """Kill a process, and wait until it has ended."""
    pidfd = os.pidfd_open(pid)
    os.kill(pid, signal.SIGKILL)
    assert select.select([pidfd], [], [], helpers.WATCHDOG_S)[0]
    os.close(pidfd)


# -- one worker


def test_killed_between_two_workers(logs):
    server = warm_up(logs)
    kill(server)
    assert warm_up(logs) != server


def test_killed_while_it_imports_is_the_death_of_the_worker(logs):
    worker = launched(logs, seven)
    assert worker.pid == the_server()
    os.kill(worker.pid, signal.SIGKILL)
    assert ended_with(worker) == -signal.SIGKILL
    assert warm_up(logs)


def test_killed_with_a_request_that_it_has_not_read(logs):
    server = warm_up(logs)
    os.kill(server, signal.SIGSTOP)
    os.waitid(os.P_PID, server, os.WSTOPPED | os.WNOWAIT)
    worker = launched(logs, seven)
    kill(server)
    assert ended_with(worker) == 7
    assert the_server() != server


MOMENTS = """
import os, signal
from untorn import _core

fork, die = _core.fork_sibling, lambda: os.kill(os.getpid(), signal.SIGKILL)

def before(memory):
    die()

def after(memory):
    if (pid := fork(memory)):
        die()
    return pid

def in_the_worker(memory):
    if not (pid := fork(memory)):
        die()
    return pid

def in_both(memory):
    fork(memory)
    die()

def refused(memory):
    raise BlockingIOError(11, "the number of processes is limited")

_core.fork_sibling = {moment}
"""


@pytest.mark.parametrize(
    ("moment", "expected"), [("before", 7), ("after", 7), ("in_the_worker", -9), ("in_both", -9), ("refused", 7)]
)
def test_killed_at_a_moment_of_the_fork(logs, tmp_path, monkeypatch, moment, expected):
    (tmp_path / f"killed_{moment}.py").write_text(MOMENTS.replace("{moment}", moment))
    monkeypatch.syspath_prepend(tmp_path)
    assert ended_with(launched(logs, seven, modules=[f"killed_{moment}"])) == expected


def test_a_kernel_that_does_not_know_the_place_of_the_thread_id():
    with pytest.raises(ValueError, match="expected 4 aligned bytes"):
        _core.fork_sibling(bytearray(2))


# -- a worker that is not wanted any more


def never(problem: Exception | None) -> None:
    signal.pause()


@pytest.mark.parametrize("state", ["importing", "ready", "stopped"])
def test_a_worker_is_ended_whatever_its_server_does(logs, state):
    before = set() if state == "importing" else {warm_up(logs)}
    if state == "stopped":
        os.kill(the_server(), signal.SIGSTOP)
        os.waitid(os.P_PID, the_server(), os.WSTOPPED | os.WNOWAIT)
    worker = launched(logs, never)
    worker.end()
    assert worker.ended
    assert fork_server_resources()[0] == (before if state == "ready" else set())


def test_a_worker_that_begins_before_it_can_see_that_it_is_cancelled_is_killed(logs, monkeypatch):
    cancel = Request.cancel

    def too_late(request):
        assert request.wait(helpers.WATCHDOG_S)
        cancel(request)

    monkeypatch.setattr(Request, "cancel", too_late)
    monkeypatch.setattr(forked_worker, "_LONG_S", 1e6)  # end() must not need another try
    warm_up(logs)
    worker = launched(logs, never)
    worker.end()
    assert worker.exitcode == -signal.SIGKILL


def test_two_trainers_wait_for_one_server_and_the_first_gives_up(logs):
    one, other = launched(logs, never), launched(logs, seven)
    one.end()
    assert ended_with(other) == 7


# -- a training


def slow_line(params, batch):
    networks.work(60)  # so that an epoch outlasts the time until a death is noticed
    return networks.line(params, batch)


class KillBetweenEpochs(Callback):
    """Kills the fork server, a worker, or both between two epochs."""

    def __init__(self, trainer: Trainer) -> None:
        self.trainer = trainer

    def on_epoch_end(self, epoch: int, logs: dict) -> None:
        for pid in fork_server_resources()[0] if epoch in (0, 2) else ():
            kill(pid)
        if epoch < 2:
            kill(self.trainer.pids[0])
        elif epoch == 2:
            self.trainer.resize(3)


def test_a_training_whose_servers_and_workers_are_killed_has_the_same_bits():
    given = {"optimizer": SGD(0.01), "shards": 3}
    with Trainer(slow_line, networks.line_params(3), engine="serial", **given) as trainer:
        trainer.fit(DATA, epochs=4, batch_size=24)
        expected = weights_sha256(trainer.params)
    with Trainer(slow_line, networks.line_params(3), workers=2, start_method="forkserver", **given) as trainer:
        trainer.fit(DATA, epochs=4, batch_size=24, callbacks=[KillBetweenEpochs(trainer)])
        assert weights_sha256(trainer.params) == expected
        assert trainer.restarts >= 2
        assert len(trainer.pids) == 3


# -- the end of the program

PROGRAM = """
import os, signal, sys
import numpy as np
from untorn import SGD, Trainer
from untorn.engines.fork_servers import fork_server_resources

def line(params, batch):
    return 0.0, {"w": np.zeros(1)}

def end():
    if sys.argv[1] == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    elif sys.argv[1] == "at_once":
        os._exit(0)
    elif sys.argv[1] == "replaced":
        os.execv(sys.executable, [sys.executable, "-ISc", "input()"])

if __name__ == "__main__":
    given = {"workers": 2, "shards": 2, "start_method": "forkserver"}
    trainer = Trainer(line, {"w": np.zeros(1)}, optimizer=SGD(0.1), **given)
    trainer.fit(np.zeros((4, 1)), epochs=1, batch_size=4)
    print(*trainer.pids, *fork_server_resources()[0], flush=True)
    input()
    end()
"""


@pytest.mark.parametrize("way", ["killed", "at_once", "replaced", "normally"])
def test_no_process_survives_the_program(tmp_path, way):
    (tmp_path / "program.py").write_text(PROGRAM)
    command = [sys.executable, tmp_path / "program.py", way]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as program:
        assert program.stdin is not None
        assert program.stdout is not None
        pids = [int(each) for each in program.stdout.readline().split()]
        assert len(pids) == 3
        pidfds = [os.pidfd_open(pid) for pid in pids]
        program.stdin.write("\n")
        program.stdin.flush()
        for pidfd in pidfds:
            assert select.select([pidfd], [], [], helpers.WATCHDOG_S)[0]
            os.close(pidfd)


BUSY_PROGRAM = """
import os, sys, time
import numpy as np
from untorn import SGD, Trainer

STARTING, METHOD = sys.argv[1] == "starting", sys.argv[2]

def wait():
    print(os.getpid(), flush=True)
    while True:
        pass

def line(params, batch):
    wait()

if __name__ == "__main__":
    with Trainer(line, {"w": np.zeros(1)}, optimizer=SGD(0.1), workers=1, shards=1, start_method=METHOD) as trainer:
        trainer.fit(np.zeros((4, 1)), epochs=1, batch_size=4)
elif STARTING:
    wait()
"""


@pytest.mark.parametrize("method", ["forkserver", "spawn"])
@pytest.mark.parametrize("place", ["starting", "computing"])
def test_a_worker_that_never_comes_back_ends_with_the_program(tmp_path, place, method):
    (tmp_path / "program.py").write_text(BUSY_PROGRAM)
    command = [sys.executable, tmp_path / "program.py", place, method]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as program:
        assert program.stdout is not None
        worker = os.pidfd_open(int(program.stdout.readline()))
        program.kill()
        assert select.select([worker], [], [], helpers.WATCHDOG_S)[0]
        os.close(worker)


def test_a_forked_copy_of_the_program_leaves_the_server_alone(logs):
    server = warm_up(logs)
    pid = os.fork()
    if pid == 0:
        end_fork_servers()
        os._exit(len(fork_server_resources()[0]))
    assert os.waitpid(pid, 0)[1] == 0
    assert warm_up(logs) == server
    assert Path(f"/proc/{server}").exists()


def test_a_program_in_which_the_kernel_refuses_pidfds_spawns(logs, monkeypatch):
    def refuse(_pid: int) -> int:
        raise PermissionError("the filter says no")

    monkeypatch.setattr(fork_servers.os, "pidfd_open", refuse)
    assert ended_with(launched(logs, seven)) == 7
    assert not fork_server_resources()[0]
