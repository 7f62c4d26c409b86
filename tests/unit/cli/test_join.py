"""``untorn join`` and ``untorn leave``: their requests to a job, their output and their errors."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys

import pytest

pytest.importorskip("click")
pytest.importorskip("rich")
from click.testing import CliRunner, Result

import helpers
from untorn.cli.group import group
from untorn.control import Control


def run(*args: object) -> Result:
    return CliRunner().invoke(group, [str(arg) for arg in args])


class Job:
    """Two workers, of at most four, on each of this number of nodes."""

    workers = 2

    def __init__(self, nodes: int) -> None:
        self.nodes = nodes

    def status(self) -> dict:
        return {}

    def resize(self, workers: int) -> None:
        if workers > 4:
            raise ValueError(f"at most 4 workers, found {workers}")
        self.workers = workers

    def resize_nodes(self, nodes: int) -> None:
        self.nodes = nodes


def train(pipe, name: str, nodes: int = 0) -> None:
    job = Job(nodes)
    with contextlib.closing(Control(name)) as control:
        pipe.put()
        while not pipe.has_message():
            control.poll(job)


def be_busy(pipe, name: str) -> None:
    with contextlib.closing(Control(name)):
        pipe.put()
        pipe.get()


@pytest.fixture
def job(name):
    """The name of a job that runs."""
    with helpers.start(train, name) as child:
        child.get()
        yield name


@pytest.fixture
def job_on_nodes(name):
    """The name of a job that runs on two nodes."""
    with helpers.start(train, name, 2) as child:
        child.get()
        yield name


def test_nodes_join_and_leave(job_on_nodes):
    job = job_on_nodes
    for args, told in [
        (["join", job, "--nodes", 1], f"{job}: 3 nodes (was 2)"),
        (["leave", job, "--nodes", 2], f"{job}: 1 node (was 3)"),
        (["join", job], f"{job}: 3 workers on each node (was 2)"),
        (["leave", job, "--workers", 2], f"{job}: 1 worker on each node (was 3)"),
    ]:
        result = run(*args)
        assert (result.exit_code, result.stdout, result.stderr) == (0, f"{told}\n", "")
    answer = json.loads(run("join", job, "--nodes", 3, "--json").stdout)
    assert answer == {"name": job, "nodes": 4, "was": 1}
    answer = json.loads(run("join", job, "--json").stdout)
    assert answer == {"name": job, "workers": 2, "was": 1, "nodes": 4}
    result = run("leave", job, "--nodes", 4)
    assert result.exit_code == 1
    assert "has 4 nodes and keeps at least 1; found a request to remove 4" in result.stderr


@pytest.mark.parametrize("command", ["join", "leave"])
def test_a_job_of_one_machine_has_no_nodes(job, command):
    result = run(command, job, "--nodes", 1)
    assert (result.exit_code, result.stdout) == (1, "")
    assert f"error: job {job!r} runs on this machine alone and has no nodes; start it with" in result.stderr


def test_join_and_leave(job):
    for args, told in [
        (["join", job], f"{job}: 3 workers (was 2)"),
        (["join", job, "--workers", 1], f"{job}: 4 workers (was 3)"),
        (["leave", job, "--workers", 3], f"{job}: 1 worker (was 4)"),
        (["join", job, "--workers", 2], f"{job}: 3 workers (was 1)"),
        (["leave", job], f"{job}: 2 workers (was 3)"),
    ]:
        result = run(*args)
        assert (result.exit_code, result.stdout, result.stderr) == (0, f"{told}\n", "")


def test_json(job):
    for command, workers in (("join", 4), ("leave", 2)):
        result = run(command, job, "--workers", 2, "--json")
        assert result.exit_code == 0
        assert json.loads(result.stdout) == {"name": job, "workers": workers, "was": 6 - workers}
        assert result.stdout.count("\n") == 1


@pytest.mark.parametrize(
    ("args", "told"),
    [
        (["join", "--workers", 3], "at most 4 workers, found 5"),
        (["leave", "--workers", 2], "has 2 workers and keeps at least 1; found a request to remove 2"),
    ],
)
@pytest.mark.parametrize("more", [[], ["--json"]])
def test_what_cannot_be_is_status_1(job, args, told, more):
    result = run(*args, job, *more)
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr.startswith("error: ")
    assert told in result.stderr
    assert result.stderr.count("\n") == 1
    assert run("join", job).stdout == f"{job}: 3 workers (was 2)\n"  # nothing had changed


@pytest.mark.parametrize("command", ["join", "leave"])
def test_no_such_job(name, command):
    result = run(command, name)
    assert result.exit_code == 1
    assert f"error: no job named {name!r} is running here" in result.stderr
    assert "untorn top" in result.stderr
    assert "Trainer(name=...)" in result.stderr


def test_a_busy_job(name):
    with helpers.start(be_busy, name) as child:
        child.get()
        result = run("leave", name, "--timeout", 0.02)
    assert result.exit_code == 1
    assert "did not answer within 0.02 s" in result.stderr


@pytest.mark.parametrize("command", ["join", "leave"])
@pytest.mark.parametrize(
    "args",
    [
        [],
        ["a", "b"],
        ["a", "--workers", 0],
        ["a", "--workers", -1],
        ["a", "--timeout", 0],
        ["a", "--nodes", 0],
        ["a", "--nodes", 1, "--workers", 1],
    ],
)
def test_wrong_usage_is_status_2(command, args):
    assert run(command, *args).exit_code == 2


def test_ctrl_c_while_the_job_is_busy(name):
    with helpers.start(be_busy, name) as child:
        child.get()
        code = "import sys; from untorn.control import client; from untorn.cli.group import group\n"
        code += "real = client._received\n"
        code += "client._received = lambda *args: (print('waits', flush=True), real(*args))[1]\n"
        code += f"group(['join', {name!r}, '--timeout', '60'])"
        with subprocess.Popen(
            [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ
        ) as asking:
            assert asking.stdout is not None
            assert asking.stdout.readline() == "waits\n"
            asking.send_signal(signal.SIGINT)
            _, errors = asking.communicate(timeout=helpers.WATCHDOG_S)
    assert (asking.returncode, errors) == (130, "interrupted\n")
