"""Every program under examples/ runs as a newcomer would run it, and says what it promises to say."""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"
WATCHDOG_S = 120

SMALL_SETTINGS = {
    "queues.py": ["--clients", "2", "--epochs", "4"],
    "torn.py": ["--seconds", "1", "--elements", "500", "--readers", "2"],
}


def start(name, *arguments):
    return subprocess.Popen(
        [sys.executable, EXAMPLES / name, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def run_small(name):
    process = start(name, *SMALL_SETTINGS[name])
    out, err = process.communicate(timeout=WATCHDOG_S)
    assert process.returncode == 0, err
    assert err == ""
    return out


def test_every_example_is_run_here():
    assert {path.name for path in EXAMPLES.glob("*.py")} == set(SMALL_SETTINGS)


def test_queues_checks_every_gradient_and_learns():
    *epochs, last = run_small("queues.py").splitlines()
    losses = [float(re.search(r"loss ([\d.]+)", line)[1]) for line in epochs]
    assert len(losses) == 4
    assert losses[-1] < losses[0]
    assert re.fullmatch(r"(\d+) gradients checked: each was computed on the weights of its epoch", last)
    assert int(last.split()[0]) == 4 * 12


def test_torn_shows_torn_reads_with_array_and_none_with_untorn():
    _, array, untorn = run_small("torn.py").splitlines()
    reads, torn = (int(cell.replace(",", "")) for cell in array.split()[1:3])
    assert 0 < torn <= reads
    reads, torn = (int(cell.replace(",", "")) for cell in untorn.split()[1:3])
    assert torn == 0
    assert reads > 0


@pytest.mark.parametrize(
    ("name", "arguments", "first"),
    [("queues.py", ["--epochs", "1000000"], "epoch   1"), ("torn.py", ["--seconds", "60"], "reads")],
)
def test_ctrl_c_ends_it_cleanly(name, arguments, first):
    process = start(name, *arguments)
    assert first in process.stdout.readline()
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: every process of the group gets it
    out, err = process.communicate(timeout=WATCHDOG_S)  # ends when the last child has closed the pipes
    assert process.returncode == 0, err
    assert "interrupted" in out
    assert err == ""
