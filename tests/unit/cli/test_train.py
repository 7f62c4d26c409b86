"""``untorn train``: its output, its errors, and Ctrl-C."""

from __future__ import annotations

import io
import os
import re
import signal
import subprocess
import sys

import pytest

pytest.importorskip("click")
from click.testing import CliRunner, Result

import untorn
from untorn import cli
from untorn.cli.group import group
from untorn.train import History
from untorn.train.checkpoints import checkpoint

SOURCE = """
import numpy as np
from untorn.jobs import Job
from untorn.train.optim.fused import SGD

def model(params, batch):
    x, y = batch
    error = x @ params["w"] - y
    return float(np.mean(error**2)), {"w": 2 * x.T @ error / len(y)}, {"accuracy": float(np.mean(abs(error) < 0.5))}

def failing(params, batch):
    raise ArithmeticError("mine")

def start(seed):
    return {"w": np.zeros(3)}

x = np.random.default_rng(0).normal(size=(96, 3))
y = x @ np.ones(3)
job = Job("line", model, start, (x, y), SGD(0.1), validation_data=(x, y), epochs=3, batch_size=32)
endless = Job("endless", model, start, (x, y), SGD(0.1), epochs=10**6, batch_size=32)
untested = Job("untested", model, start, (x, y), SGD(0.1), epochs=1, batch_size=32)
broken = Job("broken", failing, start, (x, y), SGD(0.1), epochs=1, batch_size=32)
"""


@pytest.fixture
def file(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", list(sys.path))
    path = tmp_path / "cli_job_of_mine.py"
    path.write_text(SOURCE)
    yield path
    sys.modules.pop(path.stem, None)


@pytest.fixture(scope="module")
def fonts() -> None:
    """matplotlib keeps the font files that it draws with open: it opens them before a test counts descriptors."""
    pytest.importorskip("matplotlib")
    history = History()
    history.append(0, {"loss": 1.0}, seconds=1, examples_per_s=1)
    history.plot(io.BytesIO())


def run(*args: object) -> Result:
    return CliRunner().invoke(group, [str(arg) for arg in args])


def values(result: Result) -> dict[str, str]:
    return dict(line.split("  ") for line in result.stdout.splitlines())


def test_help_and_version():
    for args in (["--help"], ["train", "--help"], ["train", "-h"]):
        result = run(*args)
        assert result.exit_code == 0
        assert "rain" in result.stdout
    options = "workers engine nodes address epochs batch-size shards seed plot name checkpoint-dir resume debug"
    for option in options.split(" "):
        assert f"--{option}" in run("train", "--help").stdout
    assert re.fullmatch(r"untorn \d+\.\d+\.\d+\n", run("--version").stdout)


def test_it_trains_and_prints_lines_to_grep(file, tmp_path):
    result = run("train", f"{file}:job", "--engine", "serial", "--shards", 2)
    assert result.exit_code == 0, result.output
    found = values(result)
    assert list(found) == ["test accuracy", "test loss", "examples/s", "seconds", "sha256"]
    assert re.fullmatch(r"[01]\.\d{4}", found["test accuracy"])
    assert re.fullmatch(r"[\d,]+", found["examples/s"])
    assert re.fullmatch(r"[0-9a-f]{64}", found["sha256"])
    assert len(re.findall(r"^epoch [123]/3 ", result.stderr, re.MULTILINE)) == 3
    again = run("train", f"{file}:job", "--engine", "serial", "--shards", 2, "--workers", 3)
    assert values(again)["sha256"] == found["sha256"]
    other = run("train", f"{file}:job", "--engine", "serial", "--shards", 2, "--seed", 1)
    assert values(other)["sha256"] != found["sha256"]


def test_save(file, tmp_path):
    saved = tmp_path / "weights.safetensors"
    result = run("train", f"{file}:job", "--engine", "serial", "--shards", 2, "--save", saved)
    assert result.exit_code == 0, result.output
    assert values(result)["saved"] == str(saved)
    assert checkpoint.read(saved).progress.step == 9
    missing = run("train", f"{file}:job", "--save", tmp_path / "none" / "w")
    assert (missing.exit_code, "there is no folder" in missing.stderr) == (1, True)


def test_worker_processes_give_the_same_weights(file):
    serial = run("train", f"{file}:job", "--engine", "serial", "--shards", 2)
    processes = run("train", f"{file}:job", "--workers", 2)
    assert processes.exit_code == 0, processes.output
    assert values(processes)["sha256"] == values(serial)["sha256"]


def test_nodes_give_the_same_weights(file):
    serial = run("train", f"{file}:job", "--engine", "serial", "--shards", 2)
    nodes = run("train", f"{file}:job", "--engine", "loopback", "--nodes", 2, "--workers", 1)
    assert nodes.exit_code == 0, nodes.output
    assert list(values(nodes)) == ["test accuracy", "test loss", "examples/s", "seconds", "sha256"]
    assert values(nodes)["sha256"] == values(serial)["sha256"]
    assert len(re.findall(r"^epoch [123]/3 ", nodes.stderr, re.MULTILINE)) == 3


@pytest.mark.parametrize(
    ("args", "status", "words"),
    [
        (["--nodes", 2], 2, "--nodes needs --engine ray or loopback: processes has this machine alone"),
        (["--engine", "serial", "--nodes", 2], 2, "--nodes needs --engine ray or loopback: serial"),
        (["--engine", "loopback", "--address", "h:1"], 2, "--address needs --engine ray"),
        (["--engine", "loopback", "--nodes", 0], 2, "0 is not in the range x>=1"),
        (["--engine", "loopback", "--nodes", 65], 1, "error: nodes: expected 1 to 64 on one machine, found 65"),
        (["--engine", "loopback", "--mode", "async"], 1, "error: mode: async training runs on one machine"),
        (["--engine", "loopback", "--workers", "auto"], 1, "error: workers: 'auto' works on one machine"),
    ],
)
def test_wrong_nodes_are_an_error(file, args, status, words):
    result = run("train", f"{file}:job", *args)
    assert (result.exit_code, result.stdout) == (status, "")
    assert words in result.stderr
    assert "Traceback" not in result.stderr


def test_without_validation_data_there_is_no_test(file):
    result = run("train", f"{file}:untested", "--engine", "serial", "--shards", 1)
    assert result.exit_code == 0, result.output
    assert list(values(result)) == ["examples/s", "seconds", "sha256"]


def test_resuming_gives_the_same_weights(file, tmp_path):
    pytest.importorskip("safetensors")
    folder = tmp_path / "checkpoints"
    whole = run("train", f"{file}:job", "--engine", "serial", "--shards", 2)
    options = ["--shards", 2, "--checkpoint-dir", folder, "--resume"]
    first = run("train", f"{file}:job", "--engine", "serial", "--epochs", 1, *options)
    assert first.exit_code == 0, first.output
    assert f"no checkpoint in {folder} yet; training begins" in first.stderr
    second = run("train", f"{file}:job", "--workers", 1, *options)
    assert "resuming at step 3\n" in second.stderr
    assert len(re.findall(r"^epoch [23]/3 ", second.stderr, re.MULTILINE)) == 2
    again = run("train", f"{file}:job", "--engine", "serial", *options)
    assert "resuming at step 9\n" in again.stderr
    for result in (second, again):
        assert result.exit_code == 0, result.output
        for key in ("test accuracy", "test loss", "sha256"):
            assert values(result)[key] == values(whole)[key]
    other = run("train", f"{file}:job", "--engine", "serial", *options, "--seed", 1)
    assert other.exit_code == 1
    assert re.search("^error: checkpoint .* was made with seed=0; found seed=1", other.stderr, re.MULTILINE)
    mixed = run("train", f"{file}:job", "--engine", "serial", "--checkpoint-dir", folder)
    assert mixed.exit_code == 1
    assert re.search("^error: .*has a checkpoint of step 9, but this training is at step 0", mixed.stderr, re.MULTILINE)


@pytest.mark.usefixtures("fonts")
def test_plot_and_name(file, tmp_path, name):
    picture = tmp_path / "curve.png"
    result = run(
        "train", f"{file}:job", "--engine", "serial", "--shards", 1, "--epochs", 2, "--plot", picture, "--name", name
    )
    assert result.exit_code == 0, result.output
    assert values(result)["plot"] == str(picture)
    assert picture.stat().st_size > 1000
    assert f'untorn.subscribe("{name}")' in result.stderr


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["nothing"], "no recipe is named 'nothing'"),
        (["missing.py:job"], "no file 'missing.py'"),
        (["FILE:other"], "no 'other'"),
        (["FILE:model"], "missing|should|positional"),
        (["FILE:job", "--name", "a/b"], "a/b"),
        (["FILE:job", "--plot", "/nowhere/curve.png"], "/nowhere"),
        (["FILE:job", "--plot", "curve.xyz"], "xyz"),
        (["FILE:broken"], "mine"),
    ],
)
def test_bad_input_is_one_error_and_status_1(file, args, words):
    args = [arg.replace("FILE", str(file)) for arg in args]
    result = run("train", *args, "--engine", "serial", "--shards", 1)
    assert result.exit_code == 1
    assert result.stdout == ""
    assert re.search(rf"^error: .*({words})", result.stderr, re.MULTILINE)


@pytest.mark.parametrize(
    "args",
    [
        ["--workers", "0"],
        ["--workers", "many"],
        ["--epochs", "x"],
        ["--engine", "gpu"],
        ["--nonsense"],
        ["--resume"],
        ["--max-staleness", "2"],
        ["--mode", "async", "--shards", "2"],
    ],
)
def test_wrong_usage_is_status_2(args):
    assert run("train", "digits", *args).exit_code == 2


def test_async_mode(file):
    given = ["--mode", "async", "--max-staleness", 0, "--epochs", 2]
    result = run("train", f"{file}:job", "--engine", "serial", *given)
    assert result.exit_code == 0, result.output
    assert re.search(r"^epoch +2/2 .*staleness 0", result.stderr, re.MULTILINE)
    alone = run("train", f"{file}:job", "--engine", "serial", "--epochs", 2, "--shards", 1)
    assert values(result)["sha256"] == values(alone)["sha256"]


def test_workers_auto_says_what_it_found(file, monkeypatch):
    monkeypatch.setattr("untorn.train.settings.available_cpus", lambda: 1)
    result = run("train", f"{file}:job", "--workers", "auto", "--epochs", 2)
    assert result.exit_code == 0, result.output
    assert "--workers auto: 1 worker" in result.stderr


def test_tensorboard(file, tmp_path):
    pytest.importorskip("tensorboard")
    result = run("train", f"{file}:job", "--engine", "serial", "--shards", 1, "--tensorboard", tmp_path / "board")
    assert result.exit_code == 0, result.output
    assert list((tmp_path / "board" / "train").iterdir())


def test_debug_lets_the_error_through():
    assert isinstance(run("train", "nothing", "--debug").exception, ValueError)


def test_without_click_one_line_names_the_extra(monkeypatch):
    monkeypatch.delitem(sys.modules, "untorn.cli.group")
    monkeypatch.setitem(sys.modules, "click", None)
    with pytest.raises(SystemExit, match=r"^error: .*pip install 'untorn\[cli\]'$"):
        cli.main()


def train_endlessly(file, *options, prefix=()) -> subprocess.Popen:
    """A process group in the middle of training, as a terminal has one in its foreground."""
    command = [sys.executable, "-c", "from untorn.cli import main; main()", "train", f"{file}:endless", *options]
    process = subprocess.Popen(
        [*prefix, *command], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    assert process.stderr is not None
    for line in process.stderr:
        if line.startswith("epoch"):
            break
    return process


@pytest.mark.parametrize("engine", ["serial", "processes"])
def test_ctrl_c_says_where_it_stopped(file, engine):
    """The whole foreground group gets SIGINT; nothing prints a traceback."""
    process = train_endlessly(file, "--workers", "2", "--engine", engine)
    os.killpg(process.pid, signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert re.search(r"^interrupted in epoch \d+ of 1000000$", err, re.MULTILINE)
    assert "Traceback" not in err
    assert out == ""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.usefixtures("fonts")
def test_the_files_are_written_after_a_signal_too(file, tmp_path, number):
    plot, saved = tmp_path / "curve.png", tmp_path / "weights.safetensors"
    process = train_endlessly(file, "--workers", "1", "--plot", str(plot), "--save", str(saved))
    os.killpg(process.pid, number)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 128 + number, err
    assert "Traceback" not in err
    assert plot.stat().st_size > 1000
    assert checkpoint.read(saved).progress.step > 0


@pytest.mark.parametrize(("number", "whole_group"), [(signal.SIGTERM, False), (signal.SIGHUP, True)])
def test_other_signals_leave_nothing_behind(file, name, number, whole_group):
    """A terminal that closes tells the workers too; `kill` tells the one process alone."""
    process = train_endlessly(file, "--workers", "2", "--name", name)
    (os.killpg if whole_group else os.kill)(process.pid, number)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 128 + number, err
    assert re.search(rf"^ended by {number.name} in epoch \d+ of 1000000$", err, re.MULTILINE)
    assert "Traceback" not in err
    with pytest.raises(untorn.ChannelNotFoundError):
        untorn.subscribe(name)


def test_nohup_is_respected(file):
    process = train_endlessly(file, "--workers", "1", prefix=["nohup"])
    os.kill(process.pid, signal.SIGHUP)
    assert process.stderr.readline().startswith("epoch")
    process.terminate()
    process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM
