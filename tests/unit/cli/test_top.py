"""``untorn top``: rates from two looks, and a terminal that is given back."""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import json
import os
import pty
import select
import signal
import struct
import subprocess
import sys
import termios
import time

import numpy as np
import pytest

pytest.importorskip("click")
pytest.importorskip("rich")
from click.testing import CliRunner, Result

import helpers
import untorn
from untorn.cli.group import group
from untorn.cli.top import Sample, look, rates

COMMAND = [sys.executable, "-m", "untorn.cli", "top"]
FAST = ("--interval", "0.01")


def run(*args: object) -> Result:
    return CliRunner().invoke(group, ["top", *map(str, args)])


def publish(pipe, directory) -> None:
    publisher = untorn.publish(np.zeros(1000), name="c", directory=directory)
    pipe.put()
    while pipe.get() == "update":
        pipe.put(publisher.update(np.zeros(1000)))
    publisher.close()


# -- rates


def test_rates_are_what_changed_between_two_looks(tmp_path):
    with untorn.publish(np.zeros(1000), name="c", directory=tmp_path) as publisher:
        channel = f"{tmp_path}/c"
        first = look([channel])
        for _ in range(10):
            publisher.update(np.zeros(1000))
        second = dataclasses.replace(look([channel]), at=first.at + 2)
        (line,) = rates(first, second)
        assert line.versions_per_s == 5
        assert line.bytes_per_s == 5 * line.state.nbytes
        assert rates(None, second)[0].versions_per_s is None
        assert rates(Sample(0, {}, {}), second)[0].versions_per_s is None
        publisher.unlink()
    untorn.publish(0, name="c", directory=tmp_path).close()
    (line,) = rates(second, look([channel]))  # another channel under the old name
    assert line.versions_per_s is None
    (tmp_path / "c.control").unlink()
    gone = look([channel])
    assert rates(second, gone) == []
    assert "no channel" in gone.problems[channel]


# -- into a pipe


def test_lines_of_json(tmp_path):
    with helpers.start(publish, tmp_path) as child:
        child.get()
        with untorn.subscribe(f"{tmp_path}/c") as reader, reader.snapshot():
            child.put("update")
            child.get()
            result = run(f"{tmp_path}/c", f"{tmp_path}/none", *FAST, "--count", 2, "--json")
        assert result.exit_code == 0, result.output
        documents = [json.loads(line) for line in result.stdout.splitlines()]
        assert len(documents) == 2
        (channel,) = documents[-1]["channels"]
        assert " ".join(channel) == (
            "name version versions_per_s bytes_per_s nbytes reserved_nbytes publisher publisher_pid age_s readers"
        )
        assert (channel["version"], channel["versions_per_s"], channel["publisher_pid"]) == (2, 0.0, child.pid)
        (reader,) = channel["readers"]
        assert (reader["pid"], reader["versions"], reader["behind"]) == (os.getpid(), [1], 1)
        assert list(documents[-1]["problems"]) == [f"{tmp_path}/none"]


def test_lines_for_people(tmp_path):
    with untorn.publish(1, name="c", directory=tmp_path) as publisher:
        with untorn.subscribe(f"{tmp_path}/c") as reader, reader.snapshot():
            result = run(f"{tmp_path}/c", *FAST, "--count", 2)
        publisher.unlink()
    assert result.exit_code == 0, result.output
    lines = [line.split() for line in result.stdout.splitlines()]
    assert " ".join(lines[0]) == "CHANNEL VERSION VERSIONS/S BYTES/S SIZE READERS PUBLISHER AGE"
    assert lines[1][:4] == [f"{tmp_path}/c", "1", "0.0", "0"]
    assert lines[2] == ["pid", str(os.getpid()), "0", "behind"]
    assert lines[3] == []
    assert len(lines) == 7


def test_all_channels_of_this_user(name):
    with untorn.publish(1, name=name) as publisher:
        assert name in run(*FAST, "--count", 1).stdout
        publisher.unlink()


def test_channels_come_die_and_go(tmp_path):
    """One top sees a channel appear, its publisher killed, and its files gone."""
    with subprocess.Popen(
        [*COMMAND, f"{tmp_path}/c", *FAST, "--json"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as watching:
        assert watching.stdout is not None
        try:
            seen = (json.loads(line) for line in watching.stdout)
            next(document for document in seen if document["problems"])
            with helpers.start(publish, tmp_path) as child:
                next(d for d in seen if d["channels"] and d["channels"][0]["publisher_pid"] == child.pid)
                child.kill()
            next(d for d in seen if d["channels"] and d["channels"][0]["publisher"] == "dead")
            for part in ("data", "control"):
                (tmp_path / f"c.{part}").unlink()
            next(document for document in seen if not document["channels"])
        finally:
            watching.send_signal(signal.SIGINT)
        _, errors = watching.communicate(timeout=helpers.WATCHDOG_S)
    assert watching.returncode == 130
    assert "Traceback" not in errors


# -- on a terminal


class Terminal:
    """untorn top on a pseudo-terminal."""

    def __init__(self, *args: str, columns: int = 100, rows: int = 24) -> None:
        self._master, self._slave = pty.openpty()
        fcntl.ioctl(self._slave, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
        self.settings = termios.tcgetattr(self._slave)
        self.output = b""
        self.process = subprocess.Popen(
            [*COMMAND, *FAST, *args],
            stdin=self._slave,
            stdout=self._slave,
            stderr=self._slave,
            env=os.environ | {"TERM": "xterm-256color"},
        )

    def read_until(self, word: str, start: int = 0) -> int:
        """Reads until the word was written behind ``start``; returns where it ends."""
        deadline = time.monotonic() + helpers.WATCHDOG_S
        while (at := self.output.find(word.encode(), start)) < 0:
            assert time.monotonic() < deadline, self.output[-2000:]
            if select.select([self._master], [], [], 1)[0]:
                self.output += os.read(self._master, 65536)
        return at + len(word)

    def type(self, text: str) -> None:
        os.write(self._master, text.encode())

    def settings_now(self) -> list:
        return termios.tcgetattr(self._slave)

    def end(self) -> int:
        """Wait for the exit status, and read the output until then."""
        code = None
        while code is None:
            if select.select([self._master], [], [], 0.01)[0]:
                self.output += os.read(self._master, 65536)
            code = self.process.poll()
        while select.select([self._master], [], [], 0)[0]:
            self.output += os.read(self._master, 65536)
        return code

    def __enter__(self) -> Terminal:
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(ProcessLookupError):
            self.process.kill()
        self.process.wait()
        os.close(self._master)
        os.close(self._slave)


ALTERNATE, BACK = "\x1b[?1049h", "\x1b[?1049l"


def assert_given_back(terminal: Terminal) -> None:
    assert terminal.settings_now() == terminal.settings
    output = terminal.output.decode()
    assert output.count(ALTERNATE) == output.count(BACK) == 1
    assert output.rindex("\x1b[?25h") > output.rindex("\x1b[?25l")  # the cursor is visible
    assert "Traceback" not in output


def test_q_ends_it_with_0(tmp_path):
    with helpers.start(publish, tmp_path) as child, Terminal(f"{tmp_path}/c") as terminal:
        child.get()
        terminal.read_until("q quits", terminal.read_until(str(child.pid)))
        assert not terminal.settings_now()[3] & termios.ICANON
        child.kill()
        terminal.read_until("q quits", terminal.read_until("dead"))
        terminal.type("xyQ")
        assert terminal.end() == 0
        assert_given_back(terminal)


@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 128 + 15), (signal.SIGHUP, 128 + 1)]
)
def test_a_signal_gives_the_terminal_back(tmp_path, number, status):
    with Terminal(f"{tmp_path}/c") as terminal:
        terminal.read_until("q quits")
        terminal.process.send_signal(number)
        assert terminal.end() == status
        assert_given_back(terminal)


def test_count_ends_it_on_a_terminal_too(tmp_path):
    with Terminal(f"{tmp_path}/c", "--count", "3") as terminal:
        assert terminal.end() == 0
        assert_given_back(terminal)


@pytest.mark.parametrize(("columns", "rows"), [(40, 24), (10, 5), (200, 3)])
def test_small_terminals(tmp_path, columns, rows):
    with untorn.publish(1, name="c", directory=tmp_path) as publisher:
        with Terminal(f"{tmp_path}/c", columns=columns, rows=rows) as terminal:
            terminal.read_until("\x1b[H", terminal.read_until("\x1b[H"))  # a second picture
            terminal.type("q")
            assert terminal.end() == 0
            assert_given_back(terminal)
        publisher.unlink()


@pytest.mark.parametrize("args", [["--count", "0"], ["--interval", "0"], ["--nonsense"]])
def test_wrong_usage_is_status_2(args):
    assert run(*args).exit_code == 2


def test_a_missing_name_is_status_1(name, tmp_path):
    for names in ([name], [f"{tmp_path}/c"], [name, f"{name}-b"]):
        result = run(*names, *FAST, "--count", 2)
        assert result.exit_code == 1
        assert f"no job and no channel {names[0]!r}" in result.stderr
    assert run(name, *FAST, "--wait", 0).exit_code == 1
    with untorn.publish(1, name=name, keep=False):
        assert run(name, *FAST, "--count", 1).exit_code == 0
        result = run(name, f"{name}-b", *FAST, "--count", 1)
        assert result.exit_code == 0 and f"{name}-b: no channel" in result.stdout
