"""Queues in ``untorn ls``, ``show``, ``top``, ``rm`` and ``gc``."""

from __future__ import annotations

import gc
import io
import json
import os

import numpy as np
import pytest
from click.testing import CliRunner
from rich.console import Console

import untorn
from helpers import start
from untorn.cli.group import group
from untorn.cli.queues import find_queue, process_table, queue_rates, rate_tables


def run(*arguments: str) -> str:
    result = CliRunner().invoke(group, arguments)
    assert result.exit_code == 0, result.output
    return result.output


@pytest.fixture
def folder(tmp_path):
    return str(tmp_path)


def _left(pipe, folder):
    """Put two items, take one of them, and be killed."""
    queue = untorn.queue(5, name="left", directory=folder)
    queue.put("one")
    queue.put(np.zeros(2000))
    item = queue.take()
    pipe.put()
    pipe.get()
    del item


def test_ls_and_show_say_what_waits_and_who_has_what(folder):
    with untorn.queue(5, name="tasks", directory=folder) as queue:
        queue.put(np.zeros(2000))
        queue.put(1)
        held = queue.get()
        line = next(line for line in run("ls", folder).splitlines() if "tasks" in line)
        assert line.split()[:3] == ["tasks", "1", "5"]
        document = json.loads(run("ls", folder, "--json"))["queues"][0]
        assert (document["name"], document["status"]) == ("tasks", "used")
        shown = run("show", f"{folder}/tasks")
        assert "1 of at most 5" in shown
        assert "2, of which 1 were taken" in shown
        refused = CliRunner().invoke(group, ["show", f"{folder}/tasks", "--value", "w"])
        assert "is a queue; --value prints values of a channel" in refused.output
        state = json.loads(run("show", f"{folder}/tasks", "--json"))
        assert (state["waiting"], state["put_count"], state["taken_count"], state["closed"]) == (1, 2, 1, False)
        assert [(each["taken"], each["held"], each["writing"]) for each in state["processes"]] == [(0, 1, 0)]
        assert state["processes"][0]["nbytes"] >= 16_000
        del held
    state = json.loads(run("show", f"{folder}/tasks", "--json"))
    assert (state["closed"], state["processes"]) == (True, [])


def test_ls_says_which_are_unused_and_how_to_remove_them(folder):
    untorn.queue(5, name="old", directory=folder).leave()
    gc.collect()
    shown = run("ls", folder)
    assert "1 unused queue" in shown
    assert f"to remove: untorn gc {folder} --yes" in " ".join(shown.split())
    assert f"to remove: untorn rm {folder}/old" in " ".join(run("ls", f"{folder}/old").split())


def test_show_fits_a_narrow_terminal(folder):
    with untorn.queue(5, name="tasks", directory=folder):
        state = find_queue(f"{folder}/tasks").state
        for width in (50, 40):
            console = Console(width=width, file=io.StringIO())
            console.print(process_table(state, width=width))
            head, row = console.file.getvalue().splitlines()  # no line is wrapped
            assert head.split()[:5] == ["PID", "WAITS", "FOR", "TAKEN", "HELD"]
            assert row.split()[:4] == [str(os.getpid()), "-", "0", "0"]


def test_top_shows_rates(folder):
    with untorn.queue(5, name="tasks", directory=folder) as queue:
        queue.put(1)
        held = queue.take()
        document = json.loads(run("top", f"{folder}/tasks", "--count", "1", "--interval", "0.01", "--json"))
        (line,) = document["queues"]
        assert (line["waiting"], line["put_per_s"], line["taken_per_s"]) == (0, 0, 0)
        text = run("top", f"{folder}/tasks", "--count", "1", "--interval", "0.01")
        head, row = text.splitlines()[-2:]
        assert head.split() == ["PID", "QUEUE", "WAITS", "FOR", "TAKEN", "HELD", "WRITING"]
        assert row.split() == [str(os.getpid()), f"{folder}/tasks", "-", "1", "0", "0"]
        held.finish()


@pytest.mark.parametrize("width", [40, 50, 80, 120])
def test_top_fits_the_terminal(folder, width):
    with untorn.queue(5, name="tasks", directory=folder) as queue:
        queue.put(1)
        held = queue.take()
        lines = queue_rates({}, {"tasks": find_queue(f"{folder}/tasks").state}, 1.0)
        console = Console(width=width, file=io.StringIO())
        console.print(*rate_tables(lines, width), sep="\n")
        head, row, empty, busy_head, busy = console.file.getvalue().splitlines()  # no line is wrapped
        assert head.split()[:4] == ["QUEUE", "ITEMS", "PUT/S", "TAKEN/S"]
        assert row.split()[:2] == ["tasks", "0/5"]
        assert (empty, busy_head.split()[:2]) == ("", ["PID", "QUEUE"])
        assert busy.split()[:2] == [str(os.getpid()), "tasks"]
        del held


def test_gc_removes_what_no_living_process_has(folder):
    with start(_left, folder) as child:
        child.get()
        assert "in use by pid" in run("gc", folder, "--yes")
        assert child.kill() == -9
    state = json.loads(run("show", f"{folder}/left", "--json"))
    assert (state["waiting"], state["dead_slots"], state["processes"]) == (1, 1, [])
    assert "would remove" in run("gc", folder, "--dry-run")
    assert "removed 1 channel" in run("gc", folder, "--yes")
    assert "no channels" in run("ls", folder)


def test_rm_removes_a_queue_that_nobody_has_with_its_items(folder):
    with start(_left, folder) as child:
        child.get()
        refused = CliRunner().invoke(group, ["rm", f"{folder}/left"])
        assert refused.exit_code == 1
        assert f"is not removed: open in pid {child.pid}; end these processes" in refused.output
        child.kill()
    document = json.loads(run("rm", f"{folder}/left", "--json"))
    (removed,) = document["removed"]
    assert (removed["name"], removed["items"], removed["readers"]) == (f"{folder}/left", 2, [])
    assert removed["file_nbytes"] > 16_000
    assert not os.listdir(folder)


def test_a_channel_and_a_queue_of_one_name(folder):
    path = f"{folder}/both"
    with untorn.publish(1, name="both", directory=folder) as publisher:
        untorn.queue(5, name="both", directory=folder).leave()
        assert "version" in run("show", path)
        assert "0 of at most 5" in run("show", f"{path}.queue")
        assert "0/5" in run("top", f"{path}.queue", "--count", "1", "--interval", "0.01")
        assert f"removed {path}" in run("rm", f"{path}.queue")
        assert sorted(os.listdir(folder)) == ["both.control", "both.data"]
        publisher.unlink()


def test_gc_says_that_it_takes_a_queue_for_a_directory(folder, monkeypatch):
    monkeypatch.chdir(folder)
    untorn.queue(5, name="tasks", directory=folder).leave()
    refused = CliRunner().invoke(group, ["gc", f"{folder}/tasks"])
    assert f"is a queue: `untorn rm {folder}/tasks` removes one queue" in " ".join(refused.output.split())


def test_a_file_that_is_no_queue_is_said_to_be_unreadable(tmp_path):
    (tmp_path / "bad.queue").write_bytes(b"something else" * 100)
    assert "unreadable" in run("ls", str(tmp_path))
    assert "not an untorn queue" in run("gc", str(tmp_path), "--yes")
    assert (tmp_path / "bad.queue").exists()
    gc.collect()
