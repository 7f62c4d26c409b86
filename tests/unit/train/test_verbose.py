"""fit(verbose=): who sees the progress of a training without asking for it."""

import io
import os
import pty
import subprocess
import sys
import threading

import numpy as np
import pytest

from untorn import SGD, ProgressBar, Trainer
from untorn.train.callbacks.progress import with_progress


class Terminal(io.StringIO):
    def isatty(self):
        return True


class Cell(io.StringIO):
    """Standard output in a notebook."""


Cell.__module__ = "ipykernel.iostream"


@pytest.fixture
def streams(monkeypatch):
    """Sets what standard output and error are."""

    def set_streams(out, err):
        monkeypatch.setattr(sys, "stdout", out)
        monkeypatch.setattr(sys, "stderr", err)
        return out, err

    return set_streams


def shows(verbose=None):
    return len(with_progress([], verbose)) == 1


def test_by_default_terminals_and_notebooks_show_progress(streams):
    streams(Terminal(), Terminal())
    assert shows()
    assert not shows(0)
    assert not shows(False)
    streams(Cell(), Cell())
    assert shows()
    assert not shows(0)


def test_a_pipe_or_a_file_shows_progress_if_asked(streams):
    for out, err in [(io.StringIO(), Terminal()), (Terminal(), io.StringIO()), (None, None)]:
        streams(out, err)
        assert not shows()
        assert shows(1)
        assert shows(True)
        assert shows(2)
    closed = io.StringIO()
    closed.close()
    streams(closed, closed)
    assert not shows()


def test_threads_do_not_draw_over_each_other(streams):
    streams(Terminal(), Terminal())
    shown = []
    thread = threading.Thread(target=lambda: shown.append((shows(), shows(1))))
    thread.start()
    thread.join()
    assert shown == [(False, True)]


def test_no_second_bar(streams):
    streams(Terminal(), Terminal())
    bar = ProgressBar()
    assert with_progress([bar], None) == with_progress([bar], 1) == [bar]


@pytest.mark.parametrize(
    ("verbose", "error"), [("yes", TypeError), (3, ValueError), (-1, ValueError), (1.0, TypeError)]
)
def test_errors(verbose, error):
    with pytest.raises(error, match="verbose: expected None, a bool, 0, 1 or 2, found"):
        with_progress([], verbose)


def loss_and_grad(params, batch):
    return float(params["w"] @ params["w"]), {"w": 2 * params["w"]}


def fit(**more):
    with Trainer(loss_and_grad, {"w": np.ones(1)}, optimizer=SGD(0.25), engine="serial", shards=1) as trainer:
        trainer.fit(np.zeros((4, 1)), epochs=2, batch_size=2, **more)


def test_a_notebook_gets_lines_on_standard_output(streams):
    out, err = streams(Cell(), Cell())
    fit()
    assert [line.split("  ")[0] for line in out.getvalue().splitlines()] == ["epoch 1/2", "epoch 2/2"]
    assert err.getvalue() == ""


def test_lines_without_bars_on_a_terminal(streams):
    out, err = streams(Terminal(), Terminal())
    fit(verbose=2)
    assert len(err.getvalue().splitlines()) == 2
    assert "\x1b" not in err.getvalue()
    assert out.getvalue() == ""


def test_a_program_on_a_terminal():
    """The streams of a real terminal; the same program in a pipe is silent."""
    program = "import sys; sys.path.insert(0, sys.argv[1]); import test_verbose; test_verbose.fit()"
    command = [sys.executable, "-c", program, os.path.dirname(__file__)]
    ours, theirs = pty.openpty()
    try:
        subprocess.run(command, stdout=theirs, stderr=theirs, check=True, timeout=60)
        os.close(theirs)
        theirs = -1
        shown = b""
        while b"epoch 2/2  loss" not in shown:
            shown += os.read(ours, 65536)  # raises EIO at the end
    finally:
        os.close(ours)
        if theirs >= 0:
            os.close(theirs)
    assert b"epoch 1/2  loss" in shown
    silent = subprocess.run(command, capture_output=True, check=True, timeout=60)
    assert (silent.stdout, silent.stderr) == (b"", b"")
