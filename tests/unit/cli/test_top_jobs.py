"""``untorn top NAME`` of a job that runs: paces from two answers, the picture, and what goes into a pipe."""

from __future__ import annotations

import contextlib
import io
import json
import math
import os
import pty
import select
import subprocess
import sys
import time

import pytest

pytest.importorskip("click")
pytest.importorskip("rich")
from click.testing import CliRunner, Result
from rich.console import Console

import helpers
import untorn
from untorn.cli import jobs
from untorn.cli.curve import curve
from untorn.cli.group import group
from untorn.cli.jobs import JobView, Look, NodePace, Pace, look, node_paces, paces
from untorn.control import Control

FAST = ("--interval", "0.01")


def run(*args: object) -> Result:
    return CliRunner().invoke(group, ["top", *map(str, args)])


def status(**changed: object) -> dict:
    """As a trainer gives it."""
    return {
        "name": "policy",
        "pid": 2243,
        "mode": "sync",
        "engine": "processes",
        "step": 1280,
        "epoch": 5,
        "epochs": 20,
        "step_in_epoch": 80,
        "steps_per_epoch": 240,
        "version": 1281,
        "workers": [
            {"index": 0, "pid": 2250, "state": "running", "gradients": 1290},
            {"index": 1, "pid": 2251, "state": "running", "gradients": 1270},
            {"index": 2, "pid": None, "state": "stopped", "gradients": 0},
        ],
        "nodes": [],
        "wanted_nodes": 0,
        "restarts": 0,
        "losses": [[step, 2.4 * math.exp(-step / 400) + 0.05] for step in range(1, 1281, 8)],
        "loss": 0.1478,
        "metrics": {"accuracy": 0.9512},
        "examples_per_s": 123456.7,
        "learning_rate": 0.1,
        "max_staleness": None,
        "staleness": None,
        "started_at": time.time() - 65.5,
    } | changed


def on_nodes(*, at: float = 5.0, sent: int = 0, waited_s: float = 0.0, **changed: object) -> dict:
    """As a trainer with three nodes gives it, the last of which joins; each has a worker of the same index and pid."""
    names = ["alpha", "beta.example.org", "gamma"]
    nodes = [
        {
            "number": number,
            "host": host,
            "pid": 4000,
            "state": "running" if number < 2 else "joining",
            "workers": [{"index": 0, "pid": 4001, "state": "running", "gradients": 10 * number}],
            "step": 1280 if number < 2 else None,
            "restarts": 0,
            "at": at + 1000 * number,
            "sent": sent if number < 2 else 0,
            "received": 2 * sent if number < 2 else 0,
            "waited_s": waited_s,
        }
        for number, host in enumerate(names)
    ]
    workers = [worker | {"node": node["number"]} for node in nodes for worker in node["workers"]]
    return status(engine="loopback", nodes=nodes, wanted_nodes=3, workers=workers) | changed


def look_at(document: dict, at: float = 0.0, problem: str = "") -> Look:
    return Look("policy", at, document, problem)


def drawn(view: JobView, width: int, height: int) -> list[str]:
    """The lines of the picture on a terminal of that size."""
    console = Console(file=io.StringIO(), width=width, height=height, highlight=False, legacy_windows=False)
    parts = view.picture(width, height)
    lines = ["".join(piece.text for piece in line) for part in parts for line in console.render_lines(part)]
    assert all(len(line) <= width for line in lines)
    return [line.rstrip() for line in lines]


def view_of(**changed: object) -> JobView:
    now = look_at(status(**changed))
    return JobView(now, paces(None, now))


class Job:
    """A job that answers with a status, one step further each time."""

    workers = 2

    def __init__(self, name: str) -> None:
        self.name = name
        self.step = 0

    def status(self) -> dict:
        self.step += 1
        worker = {"index": 0, "pid": os.getpid(), "state": "running", "gradients": 3 * self.step}
        return status(name=self.name, pid=os.getpid(), step=self.step, workers=[worker])

    def resize(self, workers: int) -> None:
        raise NotImplementedError

    nodes = 0

    def resize_nodes(self, nodes: int) -> None:
        raise NotImplementedError


def train(pipe, name: str) -> None:
    """A job that is told to be busy, and to continue."""
    job = Job(name)
    with contextlib.closing(Control(name)) as control:
        pipe.put()
        while True:
            control.poll(job)
            if pipe.has_message() and pipe.get() == "be busy":
                pipe.put("busy")
                pipe.get()


@pytest.fixture
def child(name):
    with helpers.start(train, name) as started:
        started.get()
        yield started


@pytest.fixture(autouse=True)
def patience(monkeypatch):
    """On a machine that does too much, no job is taken for a busy one."""
    monkeypatch.setattr(jobs, "_TIMEOUT_S", helpers.WATCHDOG_S)


# -- paces


def test_paces_are_what_changed_between_two_answers():
    workers = [{"index": 0, "pid": 10, "gradients": 100}, {"index": 1, "pid": 11, "gradients": 50}]
    first = look_at(status(workers=workers), at=10.0)
    assert paces(None, first) == [Pace(None, None)] * 2
    assert paces(first, look_at(status(workers=workers), at=12.0)) == [Pace(0.0, None)] * 2
    workers = [
        {"index": 0, "pid": 10, "gradients": 130},
        {"index": 1, "pid": 12, "gradients": 3},  # in the place of one that died
        {"index": 2, "pid": 13, "gradients": 5},
    ]
    assert paces(first, look_at(status(workers=workers), at=12.0)) == [
        Pace(15.0, 1.0),
        Pace(None, None),
        Pace(None, None),
    ]
    workers = [{"index": 0, "pid": 10, "gradients": 110}, {"index": 1, "pid": 11, "gradients": 80}]
    assert paces(first, look_at(status(workers=workers), at=12.0)) == [Pace(5.0, 0.25), Pace(15.0, 0.75)]
    workers = [{"index": 0, "pid": 10, "gradients": 0}]  # counted again
    assert paces(first, look_at(status(workers=workers), at=12.0)) == [Pace(0.0, None)]


def test_the_paces_of_nodes_follow_their_own_clocks():
    first = look_at(on_nodes(at=5.0, sent=1000, waited_s=1.0), at=10.0)
    shown = node_paces(None, first, [])
    assert shown == [NodePace()] * 3
    same = look_at(on_nodes(at=5.0, sent=1000, waited_s=1.0), at=11.0)  # no new report
    assert node_paces(first, same, [NodePace(7.0, 8.0, 0.5)] * 3) == [NodePace(7.0, 8.0, 0.5)] * 3
    second = look_at(on_nodes(at=7.0, sent=9000, waited_s=1.5), at=11.0)
    assert node_paces(same, second, shown) == [*[NodePace(4000.0, 8000.0, 0.25)] * 2, NodePace(0.0, 0.0, 0.25)]
    replaced = on_nodes(at=9.0, sent=10_000)
    replaced["nodes"][0]["pid"] = 4444
    replaced["nodes"][1]["at"] = None
    assert node_paces(second, look_at(replaced), shown)[:2] == [NodePace()] * 2
    assert paces(first, second) == [Pace(0.0, None)] * 3  # their workers have the same index and pid


# -- the curve


def test_a_straight_line():
    assert curve([(0, 1), (1, 0)], width=4, height=2) == ["⠑⢄  ", "  ⠑⢄"]
    assert curve([(0, 0), (1, 1)], width=4, height=2) == ["  ⡠⠊", "⡠⠊  "]


def test_steep_lines_are_joined_and_one_point_is_seen():
    rows = curve([(0, 0), (1, 1), (2, 0)], width=3, height=4)
    assert all(row.strip() for row in rows)
    assert sum(cell != " " for row in curve([(5, 0.3)], width=10, height=6) for cell in row) == 1
    flat = curve([(0, 2.0), (10, 2.0)], width=10, height=5)
    assert [row.strip() != "" for row in flat].count(True) == 1
    assert len(flat[2].strip()) == 10
    assert curve([(3, 1.0), (3, 2.0)], width=5, height=6)  # the same step twice


@pytest.mark.parametrize("count", [1, 2, 7, 200])
def test_a_curve_has_the_size_that_was_asked_for(rng, count):
    points = [(step, rng.uniform(0, 3)) for step in sorted(rng.sample(range(100_000), count))]
    for width, height in ((1, 1), (8, 6), (72, 10)):
        rows = curve(points, width=width, height=height)
        assert [len(row) for row in rows] == [width] * height


# -- the picture


def test_the_picture_on_80_columns():
    before = look_at(status(workers=[each | {"gradients": each["gradients"] // 2} for each in status()["workers"]]))
    now = look_at(status(), at=10.0)
    lines = drawn(JobView(now, paces(before, now)), 80, 24)
    assert lines[0] == "policy  pid 2243  sync, processes  0:01:05"
    assert lines[1] == "epoch 6/20  80/240  ━━━━━━━━━━━──────────────────────  step 1,280  version 1,281"
    assert lines[2] == ""
    at = lines.index("loss 0.1478  accuracy 0.9512  learning rate 0.1  123,457 examples/s")
    plot, axis = lines[3 : at - 1], lines[at - 1]
    assert 6 <= len(plot) <= 10
    assert plot[0].startswith(" 2.444 ┤⠑⠤⡀")
    assert plot[-1].startswith("0.1496 ┤ ")
    assert plot[-1][-1] > "\u2800"
    assert [line[7] for line in plot].count("┤") == 3
    assert axis == f"{'loss':>6}  1{'step 1,273':>71}"
    assert lines[at + 1 :] == [
        "0 restarts",
        "",
        "WORKER   PID  STATE    GRADIENTS  GRADIENTS/S  SHARE",
        "     0  2250  running      1,290         64.5   50 %",
        "     1  2251  running      1,270         63.5   50 %",
        "     2     -  stopped          0          0.0    0 %",
    ]
    assert len(lines) <= 22


@pytest.mark.parametrize("width", [40, 80, 120, 200])
@pytest.mark.parametrize("height", [10, 22, 38])
@pytest.mark.parametrize("workers", [0, 1, 5, 64])
def test_it_fits(width, height, workers):
    each = [{"index": i, "pid": 100_000 + i, "state": "running", "gradients": 10**6 + i} for i in range(workers)]
    metrics = {f"metric_{i}": 1.5 * 10**i for i in range(20)}
    lines = drawn(view_of(workers=each, metrics=metrics, name="n" * 200, mode="async", max_staleness=8), width, height)
    assert lines[0].startswith("nnnnn")
    assert "…" in lines[0]
    measured = [line for line in lines if "metric_" in line]
    assert len(measured) <= 3
    assert width > 120 or measured[-1].endswith(" ...")
    assert sum("┤" in line or "│" in line for line in lines) in range(6, 11)
    assert len(lines) <= max(height, 6 + 10 + workers)


def view_on_nodes() -> JobView:
    before = look_at(on_nodes(at=5.0))
    now = look_at(on_nodes(at=7.0, sent=2_469_134, waited_s=0.5), at=2.0)
    return JobView(now, paces(before, now), node_paces(before, now, node_paces(None, before, [])))


def test_nodes_on_80_columns():
    lines = drawn(view_on_nodes(), 80, 30)
    assert lines[lines.index("0 restarts  2 of 3 nodes") :] == [
        "0 restarts  2 of 3 nodes",
        "",
        "NODE  HOST              STATE    WORKERS   STEP  SENT/S  RECEIVED/S  WAITS",
        "   0  alpha             running        1  1,280  1.2 MB      2.5 MB   25 %",
        "   1  beta.example.org  running        1  1,280  1.2 MB      2.5 MB   25 %",
        "   2  gamma             joining        1      -     0 B         0 B   25 %",
        "",
        "NODE  WORKER   PID  STATE    GRADIENTS  GRADIENTS/S  SHARE",
        "   0       0  4001  running          0          0.0      -",
        "   1       0  4001  running         10          0.0      -",
        "   2       0  4001  running         20          0.0      -",
    ]
    assert len(lines) <= 30
    assert view_on_nodes().printed(first=True)[0].endswith("  2 of 3 nodes  3 workers  0 restarts")


@pytest.mark.parametrize("width", [36, 40, 60, 80, 120])
@pytest.mark.parametrize("height", [12, 30])
def test_nodes_fit_a_narrow_terminal(width, height):
    lines = drawn(view_on_nodes(), width, height)
    words = " ".join(lines).split()
    for word in ("NODE", "SENT/S", "1.2", "MB", "joining", "WORKER", "GRADIENTS/S"):
        assert word in words
    assert ("beta.example.org" in words) == (width >= 80)


def test_the_nodes_of_a_document():
    job = view_on_nodes().document()["job"]
    assert job["wanted_nodes"] == 3
    assert " ".join(job["nodes"][0]) == (
        "number host pid state workers step restarts at sent received waited_s sent_per_s received_per_s waits"
    )
    assert [node["workers"] for node in job["nodes"]] == [1, 1, 1]
    assert [worker["node"] for worker in job["workers"]] == [0, 1, 2]
    assert (job["nodes"][1]["sent_per_s"], job["nodes"][1]["waits"]) == (1_234_567, 0.25)


def test_async_shows_the_staleness():
    assert "staleness 1.25 mean, 4 max of at most 8" in "\n".join(
        drawn(view_of(mode="async", staleness=[1.25, 4], max_staleness=8, restarts=2), 80, 24)
    )
    assert "2 restarts  staleness -" in drawn(view_of(mode="async", restarts=2), 80, 24)


def test_an_axis_for_losses_of_many_sizes():
    lines = drawn(view_of(losses=[[0, 100.0], [50, 1.0], [100, 0.01]]), 80, 24)
    (axis,) = [line for line in lines if "logarithmic" in line]
    assert axis.endswith("step 100")
    assert [line.split()[0] for line in lines if "┤" in line] == ["100", "1", "0.01"]


@pytest.mark.parametrize("losses", [[], None, [[5, None]]])
def test_before_the_first_loss(losses):
    view = view_of(losses=losses, loss=None, metrics={}, examples_per_s=None, learning_rate=None, staleness=None)
    assert "no losses yet" in drawn(view, 80, 24)


@pytest.mark.parametrize("losses", [[[7, 0.5]], [[7, 0.5], [9, 0.5]], [[1, -1.0], [2, 1e300], [3, None]]])
def test_odd_losses(losses):
    assert any("┤" in line for line in drawn(view_of(losses=losses), 80, 24))


def test_a_status_with_little_in_it():
    """Of another version of untorn, say."""
    view = JobView(look_at({}), [])
    assert "no losses yet" in drawn(view, 80, 24)
    assert len(view.printed(first=True)) == 1
    view = JobView(look_at({"workers": [{}]}), [Pace(None, None)])
    assert drawn(view, 80, 24)
    assert view.document()["job"] == {"workers": [{"gradients_per_s": None, "share": None}]}


def test_what_a_job_says_cannot_steer_the_terminal():
    view = view_of(name="a\x1b[31mb", mode="\x07", metrics={"x\x1b]0;y": 1.0}, workers=[{"state": "\x1b[2J"}])
    assert "\x1b" not in "".join(drawn(view, 80, 24)).replace("\\x1b", "")
    (line,) = view.printed(first=True)
    assert "\x1b" not in line


def test_a_busy_job_is_shown_as_it_was():
    now = look_at(status(), at=time.monotonic(), problem="busy: validation or a callback may be running")
    lines = drawn(JobView(now, paces(None, now)), 80, 24)
    assert lines[2].startswith("busy: validation or a callback may be running; last answer 0 s ago")
    assert "     0  2250  running      1,290            -      -" in lines
    never = JobView(Look("policy", 0.0, None, "busy: x"), [])
    assert drawn(never, 80, 24) == ["policy", "busy: x"]
    assert never.printed(first=True) == ["policy  busy: x"]
    assert never.document()["job"] is None


# -- a job in another process


def test_lines_of_json(child, name):
    result = run(name, *FAST, "--count", 2, "--json")
    assert result.exit_code == 0, result.output
    first, second = map(json.loads, result.stdout.splitlines())
    assert list(first) == ["at", "job", "problem"]
    assert (first["job"]["step"], second["job"]["step"]) == (2, 3)
    assert first["problem"] is None
    assert first["job"]["name"] == name
    (worker,) = second["job"]["workers"]
    assert (worker["pid"], worker["gradients"], worker["share"]) == (child.pid, 9, 1.0)
    assert 0 < worker["gradients_per_s"] <= 3 / 0.01
    assert list(status()) == list(second["job"])


def test_a_line_for_people(child, name):
    result = run(name, *FAST, "--count", 2)
    assert result.exit_code == 0, result.output
    assert result.stdout.splitlines() == [
        f"{name}  epoch 6/20  step {step}  version 1,281  loss 0.1478  accuracy 0.9512  learning rate 0.1  "
        "123,457 examples/s  1 worker  0 restarts"
        for step in (2, 3)
    ]


def test_a_job_becomes_busy_and_ends(child, name, monkeypatch):
    first = look(name)
    assert (first.status["step"], first.problem) == (1, "")
    child.put("be busy")
    assert child.get() == "busy"
    monkeypatch.setattr(jobs, "_TIMEOUT_S", 0.02)
    busy = look(name, first)
    monkeypatch.setattr(jobs, "_TIMEOUT_S", helpers.WATCHDOG_S)
    assert busy == Look(name, first.at, first.status, "busy: validation or a callback may be running")
    child.put("go on")
    again = look(name, busy)
    assert (again.status["step"], again.problem) == (2, "")  # a request during the busy time is not answered later
    child.kill()
    ended = look(name, again)
    assert (ended.status, ended.problem) == (again.status, "it has ended")
    assert "no job" in look(name).problem


def test_a_name_is_a_job_or_a_channel(child, name):
    """If no job answers, a name is that of a channel, and so is one of several names, or a path."""
    with untorn.publish(1, name=name) as publisher:
        both = json.loads(run(name, name, *FAST, "--count", 1, "--json").stdout)
        assert [channel["name"] for channel in both["channels"]] == [name]
        assert "job" in json.loads(run(name, *FAST, "--count", 1, "--json").stdout)
        child.kill()
        alone = json.loads(run(name, *FAST, "--count", 1, "--json").stdout)
        assert [channel["name"] for channel in alone["channels"]] == [name]
        assert alone["jobs"] == []
        publisher.unlink()


def test_all_channels_with_the_jobs_that_run(child, name):
    assert name in json.loads(run(*FAST, "--count", 1, "--json").stdout)["jobs"]
    (line,) = [line for line in run(*FAST, "--count", 1).stdout.splitlines() if name in line]
    assert line.startswith("running jobs: ")
    assert line.endswith("(untorn top NAME shows one)")


@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_on_a_terminal(child, name, encoding):
    master, slave = pty.openpty()
    with contextlib.ExitStack() as stack:
        stack.callback(os.close, slave)
        stack.callback(os.close, master)
        process = subprocess.Popen(
            [sys.executable, "-m", "untorn.cli", "top", name, *FAST],
            stdin=slave,
            stdout=slave,
            stderr=slave,
            env=os.environ | {"TERM": "xterm", "COLUMNS": "100", "LINES": "30", "PYTHONIOENCODING": encoding},
        )
        stack.callback(process.wait)
        stack.callback(process.kill)
        output = b""

        def read_until(word: str) -> None:
            nonlocal output
            deadline = time.monotonic() + helpers.WATCHDOG_S
            while word.encode() not in output:
                assert time.monotonic() < deadline, output[-2000:]
                if select.select([master], [], [], 1)[0]:
                    output += os.read(master, 65536)

        read_until("GRADIENTS/S")
        read_until("q quits")
        assert ("⠉" in output.decode()) == (encoding == "utf-8")
        child.put("be busy")
        child.get()
        read_until("busy: ")
        child.kill()
        read_until("it has ended")
        os.write(master, b"q")
        while process.poll() is None:
            if select.select([master], [], [], 0.01)[0]:
                output += os.read(master, 65536)
        assert process.returncode == 0
        assert b"Traceback" not in output


def test_started_before_the_job_it_becomes_the_jobs_view(name):
    """top of a name with nothing behind it waits, shows a channel of that name, and the job as soon as there is one."""
    command = [sys.executable, "-m", "untorn.cli", "top", name, *FAST, "--json", "--wait", str(helpers.WATCHDOG_S)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as watching:
        assert watching.stdout is not None
        try:
            seen = (json.loads(line) for line in watching.stdout)
            first = next(seen)
            assert first["channels"] == [] and "a job of this name runs" in first["problems"][name]
            with untorn.publish(1, name=name, keep=False):
                next(document for document in seen if document.get("channels"))
                with helpers.start(train, name) as child:
                    found = next(document for document in seen if document.get("job"))
                    assert found["job"]["pid"] == child.pid
        finally:
            watching.kill()
        watching.communicate()


@pytest.mark.parametrize("width", [36, 40, 60, 80])
def test_a_narrow_picture_cuts_no_number(width):
    lines = drawn(view_of(started_at=time.time() - 65.5, metrics={}), width, 30)
    words = " ".join(lines).split()
    for word in ("policy", "2243", "processes", "80/240", "1,280", "1,281", "123,457"):
        assert word in words
    assert any(word in words for word in ("0:01:05", "0:01:06"))
