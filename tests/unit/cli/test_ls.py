"""``untorn ls``, and what a directory has of channels."""

from __future__ import annotations

import io
import json
import os
import re
import subprocess
import sys

import numpy as np
import pytest

pytest.importorskip("click")
pytest.importorskip("rich")
from click.testing import CliRunner, Result

import helpers
import untorn
from untorn.cli import listing, tables
from untorn.cli.group import group
from untorn.cli.listing import list_channels
from untorn.share import inspect


def run(*args: object) -> Result:
    return CliRunner().invoke(group, ["ls", *map(str, args)])


def entries(*args: object) -> dict[str, dict]:
    result = run(*args, "--json")
    assert result.exit_code == 0, result.output
    return {entry["name"]: entry for entry in json.loads(result.stdout)["channels"]}


def publish(pipe, directory, names) -> None:
    publishers = [untorn.publish(np.zeros(1000), name=name, directory=directory) for name in names]
    pipe.put()
    pipe.get()
    del publishers


@pytest.fixture
def zoo(tmp_path):
    """A directory with a channel of every status, and files that are nobody's; the live one's child."""
    for name in ("closed", "half", "headless", "mad"):
        untorn.publish(name, name=name, directory=tmp_path).close()
    (tmp_path / "half.data").unlink()
    (tmp_path / "headless.control").unlink()
    (tmp_path / "mad.control").write_bytes(b"garbage")
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "bad\x1bname.control").write_bytes(b"")
    with helpers.start(publish, tmp_path, ["dead"]) as child:
        child.get()
        child.kill()
    with helpers.start(publish, tmp_path, ["live"]) as child:
        child.get()
        yield tmp_path, child


def test_every_status(zoo):
    directory, child = zoo
    found = {entry.name: entry for entry in list_channels(directory)}
    assert {name: entry.status for name, entry in found.items()} == {
        "closed": "unused",
        "dead": "unused",
        "half": "control without data",
        "headless": "data without control",
        "live": "used",
        "mad": "unreadable",
    }
    assert found["live"].state.publisher_pid == child.pid
    assert (found["closed"].state.publisher, found["dead"].state.publisher) == ("closed", "dead")
    assert "not an untorn channel" in found["mad"].problem
    assert all(entry.file_nbytes > 0 for entry in found.values())


def test_the_table(zoo):
    directory, child = zoo
    result = run(directory)
    assert result.exit_code == 0, result.output
    lines = {line.split()[0]: line for line in result.stdout.splitlines() if line}
    assert " ".join(lines["CHANNEL"].split()) == "CHANNEL VERSION SIZE MEMORY READERS PUBLISHER AGE NOTE"
    assert f" {child.pid} " in lines["live"]
    assert lines["live"].split()[1:4] == ["1", "8.1", "kB"]
    assert " dead " in lines["dead"]
    assert lines["dead"].endswith("unused")
    assert lines["half"].endswith("control without data")
    assert lines["mad"].endswith("unreadable")
    assert "not an untorn channel" in lines["mad:"]
    assert result.stdout.splitlines()[-1].startswith("4 unused channels")
    assert not any(line.endswith(" ") for line in result.stdout.splitlines())


def test_json_has_raw_numbers_under_stable_keys(zoo):
    directory, child = zoo
    found = entries(directory)
    assert " ".join(found["live"]) == (
        "name path status problem file_nbytes id version nbytes reserved_nbytes readers publisher publisher_pid "
        "created_at published_at age_s"
    )
    live = found["live"]
    assert (live["path"], live["version"], live["readers"]) == (f"{directory}/live", 1, 0)
    assert (live["publisher"], live["publisher_pid"]) == ("alive", child.pid)
    assert live["reserved_nbytes"] >= live["nbytes"] > 8000
    assert live["age_s"] >= 0
    assert found["half"]["version"] is None
    assert found["mad"]["problem"]


def test_the_users_own_directory(name):
    """Other runs have channels there too."""
    with untorn.publish([1], name=name) as publisher:
        found = entries()[name]
        assert (found["status"], found["publisher_pid"]) == ("used", os.getpid())
        assert name in run().stdout
        publisher.unlink()
    assert name not in entries()


def test_nothing_there(tmp_path, monkeypatch):
    result = run(tmp_path)
    assert (result.exit_code, result.stdout) == (0, f"no channels in {tmp_path}\n")
    assert entries(tmp_path) == {}
    for module in (listing, inspect):
        monkeypatch.setattr(module, "default_path", lambda: str(tmp_path / "never-made"))
    assert list_channels() == []
    assert not os.listdir(tmp_path)


def test_a_directory_that_is_none_is_an_error(tmp_path):
    for path in (tmp_path / "nothing", "/etc/passwd"):
        result = run(path)
        assert (result.exit_code, result.stdout) == (1, "")
        assert result.stderr.startswith("error: ")
        assert str(path) in result.stderr


def test_files_of_others_are_not_looked_at(tmp_path, monkeypatch):
    untorn.publish(1, name="c", directory=tmp_path).close()
    own = os.geteuid()
    monkeypatch.setattr(inspect.os, "geteuid", lambda: own + 1)
    (found,) = list_channels(tmp_path)
    assert found.status == "unreadable"
    assert f"belongs to user {own}" in found.problem


def test_nobody_reads_to_the_end(tmp_path):
    """As in ``untorn ls | head -1``: no traceback, whatever was written."""
    untorn.publish(1, name="c", directory=tmp_path).close()
    reading, writing = os.pipe()
    os.close(reading)
    try:
        command = [sys.executable, "-m", "untorn.cli", "ls", str(tmp_path)]
        done = subprocess.run(command, stdout=writing, stderr=subprocess.PIPE, text=True, check=False)
    finally:
        os.close(writing)
    assert (done.returncode, done.stderr) == (141, "")


def test_a_closed_stdout_is_an_error_in_one_line(tmp_path):
    command = [f'exec "{sys.executable}" -m untorn.cli ls "{tmp_path}" >&-']
    done = subprocess.run(command, shell=True, stderr=subprocess.PIPE, text=True, check=False)
    assert (done.returncode, done.stderr) == (1, "error: [Errno 9] stdout is closed\n")


@pytest.mark.parametrize(
    ("nbytes", "text"),
    [(0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (40_000_000, "40.0 MB"), (999_960, "1.0 MB"), (3e15, "3,000.0 TB")],
)
def test_sizes(nbytes, text):
    assert tables.size(nbytes) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(None, "-"), (0, "0 s"), (3.4, "3 s"), (119, "119 s"), (300, "5 min"), (7200, "2 h"), (4 * 86400, "4 d")],
)
def test_ages(seconds, text):
    assert tables.age(seconds) == text


def test_a_narrow_table_drops_what_matters_least():
    columns, rows = ("NAME", "A", "B"), [("x" * 10, "1" * 10, "2" * 10)]
    assert [
        [column.header for column in tables.grid(columns, rows, optional=("A", "B"), width=width).columns]
        for width in (34, 33, 21, 3)
    ] == [["NAME", "A", "B"], ["NAME", "B"], ["NAME"], ["NAME"]]


@pytest.mark.parametrize("width", [40, 60, 80, 120])
def test_narrow_terminals_break_no_word(width):
    from rich.console import Console

    from untorn.cli.tables import grid

    name = "a-rather-long-channel-name_of.an/experiment-17"
    rows = [
        (name, "1547", "50.1 MB", "1", "in use by publisher pid 2243 and reader pid 2263"),
        ("table", "1", "0 B", "1", ""),
    ]
    console = Console(file=io.StringIO(), width=width, color_system=None)
    table = grid(
        ("CHANNEL", "VERSION", "BYTES/S", "READERS", "WHY"),
        rows,
        right=("VERSION",),
        optional=("BYTES/S",),
        width=width,
    )
    console.print(table)
    lines = console.file.getvalue().splitlines()
    assert all(len(line.rstrip()) <= width for line in lines)
    whole = re.sub(r"\s+", " ", console.file.getvalue())
    for word in re.findall(r"[^\s\-_./]+", " ".join(cell for row in rows for cell in row if "B" not in cell)):
        assert word in whole
    assert ("50.1 MB" in whole) == (width > 40)


def test_texts_that_the_locale_does_not_have_are_escaped_and_a_full_disk_is_an_error(tmp_path):
    command = [sys.executable, "-m", "untorn"]
    with untorn.publish({"n\xfc": 1, "\ud800": 2}, name="texts", directory=tmp_path):
        shown = subprocess.run(
            [*command, "show", f"{tmp_path}/texts"],
            env=os.environ | {"PYTHONIOENCODING": "ascii"},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
    assert r"n\xfc" in shown
    assert r"\ud800" in shown
    with open("/dev/full", "w") as full:
        done = subprocess.run([*command, "--help"], stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr == "error: [Errno 28] No space left on device\n"
