"""``untorn demo``, and commands that are not there."""

import importlib.util
import re
import subprocess
import sys

import pytest
from click.testing import CliRunner

from untorn.cli.group import _GUESSES, group

demo_module = sys.modules["untorn.cli.demo"]


def test_no_read_of_untorn_is_torn():
    done = subprocess.run(
        [sys.executable, "-m", "untorn", "demo", "--seconds", "0.3", "--no-train"],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    rows = dict(re.findall(r"^(plain shared memory|untorn) +([\d, ]+)$", done.stdout, re.MULTILINE))
    assert list(rows) == ["plain shared memory", "untorn"]
    for row in rows.values():
        reads, torn, writes = (int(number.replace(",", "")) for number in row.split())
        assert reads > 0
        assert writes > 0
    assert torn == 0  # of the last row, untorn's
    assert done.stderr == ""


def test_without_scikit_learn_it_says_what_is_missing(monkeypatch):
    monkeypatch.setattr(demo_module, "_measure", lambda *_: (5, 0, 7))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    done = CliRunner().invoke(group, ["demo"])
    assert done.exit_code == 0, done.output
    assert "pip install 'untorn[cli,train,digits]'" in done.output


@pytest.mark.parametrize("guess", _GUESSES)
def test_a_guess_that_is_no_command(guess):
    done = CliRunner().invoke(group, [guess])
    assert done.exit_code == 2
    assert f"No such command '{guess}': " in done.output
    assert guess not in group.commands
    for name in re.findall(r"untorn ([a-z]+)", _GUESSES[guess]):
        assert name in group.commands
