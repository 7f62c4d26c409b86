"""``untorn rm``: it removes the channels that are named, and no living publisher's."""

from __future__ import annotations

import json
import os

import numpy as np
import pytest

pytest.importorskip("click")
pytest.importorskip("rich")
from click.testing import CliRunner, Result

import untorn
from helpers import start
from untorn.cli.group import group
from untorn.errors import ChannelNotFoundError


def run(*args: object) -> Result:
    return CliRunner().invoke(group, ["rm", *map(str, args)])


def test_removes_by_name_and_by_path(name, tmp_path):
    untorn.publish(np.zeros(1000), name=name).close()
    untorn.publish(np.zeros(1000), name="stored", directory=tmp_path).close()
    result = run(name, tmp_path / "stored")
    assert result.exit_code == 0, result.output
    assert result.stdout.splitlines()[0].startswith(f"removed {name}, ")
    assert os.listdir(tmp_path) == []
    with pytest.raises(ChannelNotFoundError):
        untorn.subscribe(name)


def test_a_living_publisher_keeps_its_channel(name):
    untorn.publish(1, name=f"{name}-b").close()
    with untorn.publish(np.zeros(3), name=name, keep=False):
        result = run(name, f"{name}-b")
        assert result.exit_code == 1
        assert f"its publisher lives (pid {os.getpid()}); end that process" in result.stderr
        assert f"removed {name}-b" in result.stdout  # the others go
        assert untorn.subscribe(name).snapshot().version == 1


def test_readers_keep_what_they_have(name):
    publisher = untorn.publish(np.arange(5), name=name)
    with start(_read, name) as child:
        child.get()
        publisher.close()
        result = run(name)
        assert result.exit_code == 0 and f"still read by pid {child.pid}" in result.stdout
        child.put()
        assert child.get() == 10


def _read(pipe, name):
    snap = untorn.subscribe(name).snapshot()
    pipe.put()
    pipe.get()
    pipe.put(int(snap.value.sum()))
    pipe.get()


def test_what_is_not_there(name, tmp_path):
    result = run(name, "a/b/c", "bad name")
    assert result.exit_code == 1 and result.stderr.count("error: ") == 3
    assert f"no channel {name!r}" in result.stderr
    assert run().exit_code == 2


def test_halves_and_other_files(tmp_path):
    for ending in ("control", "data"):
        untorn.publish(np.zeros(10), name=ending, directory=tmp_path).close()
        (tmp_path / f"{ending}.{ending}").unlink()
        assert run(tmp_path / ending).exit_code == 0
    assert os.listdir(tmp_path) == []
    (tmp_path / "mine.control").write_text("not a channel")
    assert run(tmp_path / "mine").exit_code == 1
    assert os.listdir(tmp_path) == ["mine.control"]


def test_json(name):
    untorn.publish(1, name=name).close()
    result = run("--json", name, "no-such-channel")
    document = json.loads(result.stdout)
    assert [each["name"] for each in document["removed"]] == [name]
    assert list(document["problems"]) == ["no-such-channel"] and result.exit_code == 1


def test_gc_says_what_it_takes_a_name_for(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    untorn.publish(1, name=name).close()
    result = CliRunner().invoke(group, ["gc", name])
    assert result.exit_code == 2
    assert f"`untorn rm {name}` removes one channel" in " ".join(result.stderr.split())
    assert untorn.subscribe(name).version == 1
    assert "gc takes a directory" in CliRunner().invoke(group, ["gc", "no-such-thing"]).stderr
    (tmp_path / name).mkdir()
    assert "is taken for a directory" in " ".join(CliRunner().invoke(group, ["gc", name]).stderr.split())
    assert run(name).exit_code == 0


def test_ls_of_one_channel(name, tmp_path):
    untorn.publish(np.zeros(10), name=name).close()
    untorn.publish(np.zeros(10), name=f"{name}-b").close()
    result = CliRunner().invoke(group, ["ls", name])
    assert result.exit_code == 0 and f"{name}-b" not in result.stdout and f"untorn rm {name}" in result.stdout
    document = json.loads(CliRunner().invoke(group, ["ls", "--json", name]).stdout)
    assert [each["name"] for each in document["channels"]] == [name]
    untorn.publish(1, name="stored", directory=tmp_path).close()
    assert "stored" in CliRunner().invoke(group, ["ls", str(tmp_path / "stored")]).stdout
    result = CliRunner().invoke(group, ["ls", "no-such-channel"])
    assert result.exit_code == 1 and "neither a directory nor a channel" in result.stderr
    assert run(name, f"{name}-b").exit_code == 0
