"""``untorn gc``: it removes unused channels, and keeps used channels and other files."""

from __future__ import annotations

import contextlib
import errno
import json
import os

import numpy as np
import pytest

pytest.importorskip("click")
pytest.importorskip("rich")
from click.testing import CliRunner, Result

import helpers
import untorn
from untorn.cli import gc as gc_module
from untorn.cli import listing, queues
from untorn.cli.gc import collect
from untorn.cli.group import group
from untorn.share import inspect, places, storage


def run(*args: object) -> Result:
    return CliRunner().invoke(group, ["gc", *map(str, args)])


def publish(pipe, directory, name: str) -> None:
    publisher = untorn.publish(np.arange(1000), name=name, directory=directory)
    pipe.put()
    while pipe.get() == "update":
        pipe.put(publisher.update(np.arange(1000)))
    publisher.close()


def read(pipe, channel) -> None:
    subscriber = untorn.subscribe(channel)
    value = subscriber.snapshot().value
    pipe.put()
    pipe.get()
    pipe.put((int(value.sum()), subscriber.version))
    pipe.get()


def leave(directory, *names: str) -> None:
    """Channels of publishers that are gone."""
    for name in names:
        untorn.publish(np.zeros(1000), name=name, directory=directory).close()


def removed(outcomes) -> set[str]:
    return {outcome.found.name for outcome in outcomes if outcome.removed}


def test_what_nobody_uses_goes_and_the_rest_stays(tmp_path):
    leave(tmp_path, "closed", "half", "headless", "mad", "read")
    (tmp_path / "half.data").unlink()
    (tmp_path / "headless.control").unlink()
    (tmp_path / "mad.control").write_bytes(b"garbage")
    others = {"notes.txt": b"mine", "weights.data": b"not a channel's", "table.control": b"x" * 5000, "empty.data": b""}
    for file, content in others.items():
        (tmp_path / file).write_bytes(content)
    with (
        helpers.start(publish, tmp_path, "live") as live,
        helpers.start(publish, tmp_path, "killed") as killed,
        helpers.start(read, f"{tmp_path}/read") as reader,
    ):
        for child in (live, killed, reader):
            child.get()
        killed.kill()
        result = run(tmp_path, "--yes", "--json")
        assert result.exit_code == 0, result.output
        document = json.loads(result.stdout)
        assert [entry["name"] for entry in document["removed"]] == ["closed", "half", "headless", "killed"]
        assert document["freed_nbytes"] == sum(entry["file_nbytes"] for entry in document["removed"]) > 3 * 8000
        kept = {entry["name"]: entry["reason"] for entry in document["kept"]}
        assert kept.keys() == {"empty", "live", "mad", "read", "table", "weights"}
        assert f"publisher pid {live.pid}" in kept["live"]
        assert f"reader pid {reader.pid}" in kept["read"]
        assert kept["weights"] == kept["empty"] == "not recognised as a channel's data"
        assert set(os.listdir(tmp_path)) == {
            *others,
            *(f"{name}.{part}" for name in ("live", "read", "mad") for part in ("control", "data")),
        }
        for file, content in others.items():
            assert (tmp_path / file).read_bytes() == content
        live.put("update")
        assert live.get() == 2
        reader.put()
        assert reader.get() == (0, 1)
        assert collect(tmp_path)
        assert removed(collect(tmp_path)) == set()


def publish_half(pipe, directory) -> None:
    """Publish where there are no files without a name, and stop before the channel gets its own."""
    opened = os.open

    def open_no_tmpfile(path, flags, *mode):
        if flags & os.O_TMPFILE == os.O_TMPFILE:
            raise OSError(errno.EOPNOTSUPP, "no such thing")
        return opened(path, flags, *mode)

    def wait(*_, **__):
        pipe.put()
        pipe.get()

    os.open, storage.give_names = open_no_tmpfile, wait
    untorn.publish(np.zeros(1000), name="c", directory=directory)


def test_temporary_files_go_with_their_maker(tmp_path):
    """The kernel says whether somebody has them open; another channel's publisher does not matter."""
    with helpers.start(publish_half, tmp_path) as child:
        child.get()
        assert {found.status for found in listing.list_channels(tmp_path)} == {"temporary"}
        assert removed(collect(tmp_path)) == set()
        assert len(os.listdir(tmp_path)) == 2
        child.kill()
        assert {found.status for found in listing.list_channels(tmp_path)} == {"stale temporary"}
        assert len(removed(collect(tmp_path))) == 2
    assert os.listdir(tmp_path) == []


def test_files_that_only_look_temporary_stay(tmp_path):
    for name in (
        ".c.12.control",
        ".c.12.0123456789abcdef.txt",
        ".c.0123456789abcdef.data",
        "c.1.0123456789abcdef.data",
    ):
        (tmp_path / name).write_bytes(b"mine")
    assert removed(collect(tmp_path)) == set()
    assert len(os.listdir(tmp_path)) == 4


def test_a_dry_run_removes_nothing(tmp_path):
    leave(tmp_path, "a", "b")
    (tmp_path / "b.control").unlink()
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    result = run(tmp_path, "--dry-run")
    assert result.exit_code == 0
    assert result.stdout.splitlines()[-1].startswith("would remove 2 channels, ")
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    document = json.loads(run(tmp_path, "--dry-run", "--json").stdout)
    assert document["dry_run"]
    assert [entry["name"] for entry in document["removed"]] == ["a", "b"]


def test_a_directory_needs_a_yes(tmp_path):
    leave(tmp_path, "a")
    result = run(tmp_path)
    assert result.exit_code == 2
    assert "may be meant to outlive" in result.stderr
    assert "--dry-run" in result.stderr
    assert len(os.listdir(tmp_path)) == 2


@pytest.fixture
def own_directory(tmp_path, monkeypatch):
    """gc without an argument, but not in the directory that other runs use as well."""
    tmp_path.chmod(0o700)
    for module in (inspect, listing, gc_module, queues):
        monkeypatch.setattr(module, "default_path", lambda: str(tmp_path))
    for module in (places, listing):
        monkeypatch.setattr(module, "default_directory", lambda: tmp_path)
    return tmp_path


def test_without_a_directory_no_yes_is_needed(own_directory):
    leave(None, "a")
    (own_directory / "orphan.data").write_bytes(b"\0" * 4096)  # in a channel directory it can be nothing else
    result = run()
    assert result.exit_code == 0, result.output
    assert result.stdout.splitlines()[-1].startswith("removed 2 channels, ")
    assert os.listdir(own_directory) == []
    assert run().stdout == f"nothing to remove in {own_directory}\n"


# -- races: the state has changed since it was seen


def seen_before(directory):
    """Return the state that gc saw, before something else happens."""
    return listing.list_channels(directory)


def collect_stale(monkeypatch, directory, found) -> dict[str, str]:
    monkeypatch.setattr(gc_module, "list_channels", lambda _: found)
    return {outcome.found.name: "" if outcome.removed else outcome.reason for outcome in collect(directory)}


def test_a_publisher_that_came_since_stays(tmp_path, monkeypatch):
    leave(tmp_path, "c")
    found = seen_before(tmp_path)
    with helpers.start(publish, tmp_path, "c") as child:
        child.get()
        assert "living publisher" in collect_stale(monkeypatch, tmp_path, found)["c"]
        child.put("update")
        assert child.get() == 3
        with untorn.subscribe(f"{tmp_path}/c") as reader:
            assert reader.publisher_alive()


@pytest.mark.parametrize("closed", [True, False])
def test_a_reader_that_came_since_stays_and_learns_nothing_wrong(tmp_path, monkeypatch, closed):
    with helpers.start(publish, tmp_path, "c") as child:
        child.get()
        if closed:
            child.put("close")
            child.join()
        else:
            child.kill()
    found = seen_before(tmp_path)
    with helpers.start(read, f"{tmp_path}/c") as reader:
        reader.get()
        assert f"reader pid {reader.pid}" in collect_stale(monkeypatch, tmp_path, found)["c"]
        (entry,) = listing.list_channels(tmp_path)
        assert entry.state.publisher == ("closed" if closed else "dead")
        with helpers.start(publish, tmp_path, "c") as child:  # its next publisher finds it as it was
            child.get()
            reader.put()
            assert reader.get() == (499500, 2)


def test_a_channel_that_went_since_is_no_error(tmp_path, monkeypatch):
    leave(tmp_path, "c")
    found = seen_before(tmp_path)
    assert removed(collect(tmp_path)) == {"c"}
    assert collect_stale(monkeypatch, tmp_path, found) == {"c": ""}


@pytest.mark.parametrize("gone", ["control", "data"])
def test_a_half_that_became_whole_since_stays(tmp_path, monkeypatch, gone):
    leave(tmp_path, "c")
    (tmp_path / f"c.{gone}").unlink()
    found = seen_before(tmp_path)
    with helpers.start(publish, tmp_path, "c") as child:
        child.get()
        reason = collect_stale(monkeypatch, tmp_path, found)["c"]
        assert "living publisher" in reason or reason == "created again just now"
        child.put("update")
        assert child.get() == 2
        with untorn.subscribe(f"{tmp_path}/c") as reader:
            assert reader.version == 2


def collect_all_the_time(pipe, directory) -> None:
    while not pipe.has_message():
        collect(directory)
    pipe.put()


def test_publishers_and_readers_are_not_harmed_while_gc_runs(tmp_path):
    """A publisher that lives keeps its files and its readers, however often gc runs."""
    with helpers.start(publish, tmp_path, "c") as child, helpers.start(collect_all_the_time, tmp_path) as collector:
        child.get()
        with untorn.subscribe(f"{tmp_path}/c") as reader:
            for version in range(2, 200):
                child.put("update")
                assert child.get() == version
                assert reader.snapshot().version == version
                with untorn.subscribe(f"{tmp_path}/c") as late:
                    assert late.version == version
        collector.put()
        collector.get()


def test_a_publisher_that_starts_while_gc_runs_keeps_its_files(tmp_path):
    """It may be told that somebody else is there, for a moment; once it publishes, others find it."""
    with helpers.start(collect_all_the_time, tmp_path) as collector:
        for round in range(300):
            publisher = None
            while publisher is None:
                with contextlib.suppress(untorn.BusyError):
                    publisher = untorn.publish(round, name="c", directory=tmp_path)
            with publisher, untorn.subscribe(f"{tmp_path}/c") as reader:
                assert reader.snapshot().value == round
        collector.put()
        collector.get()
