"""``untorn show``: structure, slots and readers without touching the channel; values when asked for."""

from __future__ import annotations

import contextlib
import json
import re
from collections import OrderedDict, namedtuple

import numpy as np
import pytest

pytest.importorskip("click")
pytest.importorskip("rich")
from click.testing import CliRunner, Result

import helpers
import untorn
from untorn.cli.group import group
from untorn.cli.outline import outline, walk
from untorn.cli.values import member
from untorn.errors import FormatError
from untorn.share.inspect import ChannelView

Point = namedtuple("Point", ["x", "y"])
VALUE = {
    "head": {"w": np.arange(2000, dtype="f4").reshape(4, 500), "b": np.zeros((), "i8")},
    "layers": [np.zeros((0, 3)), Point(1, 2.5)],
    "rows": np.zeros(3, [("a", "<i4"), ("b", "<f8", (2,))]),
    "od": OrderedDict(z=1j),
    ("a", 1): True,
    3: "text",
    "raw": b"abc",
    "none": None,
    "big": 2**70,
    "one": np.float16(1),
    "esc\x1b[31m": 0,
}


def run(*args: object) -> Result:
    return CliRunner().invoke(group, ["show", *map(str, args)])


@pytest.fixture
def channel(tmp_path):
    with untorn.publish(VALUE, name="c", directory=tmp_path) as publisher:
        yield f"{tmp_path}/c"
        publisher.unlink()


def test_the_structure(channel):
    result = run(channel)
    assert result.exit_code == 0, result.output
    lines = [line.split() for line in result.stdout.splitlines() if line]
    assert ["head/w", "float32", "4", "x", "500", "8.0", "kB"] in lines
    assert ["head/b", "int64", "()", "8", "B"] in lines
    assert ["layers/0", "float64", "0", "x", "3", "0", "B"] in lines
    assert ["layers/1", f"{__name__}.Point", "16", "B"] in lines
    assert ["layers/1/y", "float", "8", "B"] in lines
    assert ["od/z", "complex", "16", "B"] in lines
    assert ["big", "int", "9", "B"] in lines
    assert ["esc\\x1b[31m", "int", "8", "B"] in lines
    assert ["('a',", "1)", "bool", "1", "B"] in lines
    assert "{a: int32, b: ('<f8', (2,))}" in result.stdout
    assert "\x1b" not in result.stdout


def test_the_structure_as_json(channel):
    document = json.loads(run(channel, "--json").stdout)
    assert (document["version"], document["structure_version"], document["structure_problem"]) == (1, 1, None)
    nodes = {node["path"]: node for node in document["value"]}
    assert list(nodes[""]) == ["path", "kind", "type", "shape", "dtype", "nbytes"]
    assert nodes["head/w"] == {
        "path": "head/w",
        "kind": "array",
        "type": "float32",
        "shape": [4, 500],
        "dtype": "float32",
        "nbytes": 8000,
    }
    assert nodes[""]["nbytes"] == sum(node["nbytes"] for node in document["value"] if node["kind"] not in CONTAINERS)
    assert document["slots"][0].keys() == {"slot", "offset", "capacity", "version", "latest", "held_by"}
    assert document["readers"] == []
    assert len(document["id"]) == 32


CONTAINERS = ("dict", "odict", "list", "tuple", "namedtuple", "dataclass")


def test_a_large_plain_container_is_one_line_with_advice(tmp_path):
    table = {f"key {i}": i for i in range(30_000)}
    value = {"table": table, "small": list(range(300))}
    with untorn.publish(value, name="c", directory=tmp_path, keep=False):
        shown = " ".join(run(f"{tmp_path}/c").stdout.split())
        as_json = json.loads(run(f"{tmp_path}/c", "--json").stdout)
        one = run(f"{tmp_path}/c", "--value", "table/key 7").stdout
    assert "table dict of 30,000 plain values" in shown
    assert "small list of 300 plain values" in shown
    assert shown.count("as an untorn.FrozenDict") == 1
    assert [node["kind"] for node in as_json["value"]] == ["dict", "packed", "packed"]
    assert one.split()[-1] == "7"


def hold(pipe, channel) -> None:
    snapshot = untorn.subscribe(channel).snapshot()
    pipe.put(snapshot.version)
    pipe.get()


def test_who_holds_what(tmp_path):
    channel = f"{tmp_path}/c"
    with untorn.publish(1, name="c", directory=tmp_path) as publisher, helpers.start(hold, channel) as child:
        assert child.get() == 1
        publisher.update(2)
        publisher.update(3)
        lines = [line.split() for line in run(channel).stdout.splitlines() if line]
        slots = {line[1]: line[4:] for line in lines if len(line) >= 4 and line[0].isdecimal()}
        assert slots["1"] == ["pid", str(child.pid)]
        assert slots["3"] == ["newest"]
        (reader,) = [line for line in lines if line[:2] == ["pid", str(child.pid)]]
        assert reader[2:4] == ["1", "2"]
        (reader,) = json.loads(run(channel, "--json").stdout)["readers"]
        assert (reader["pid"], reader["versions"], reader["behind"]) == (child.pid, [1], 2)
        child.kill()
        assert "1 died holding a version" in run(channel).stdout
        publisher.unlink()


def test_looking_needs_no_reader_row_and_a_value_does(tmp_path):
    channel = f"{tmp_path}/c"
    with (
        untorn.publish(1, name="c", directory=tmp_path, max_readers=1) as publisher,
        helpers.start(hold, channel) as child,
    ):
        child.get()
        assert run(channel).exit_code == 0
        result = run(channel, "--value", "")
        assert result.exit_code == 1
        assert "no reader row left" in result.stderr
        publisher.unlink()


def test_a_trainers_extra_is_shown_beside_the_value(channel, monkeypatch):
    document = {"value": ["dict", ["w"], [["int", 0]]], "extra": ["dict", ["momentum"], [["float", 8]]]}
    monkeypatch.setattr(ChannelView, "schema", lambda self: (1, document))
    assert "EXTRA" in run(channel).stdout
    assert [node["path"] for node in json.loads(run(channel, "--json").stdout)["extra"]] == ["", "momentum"]


def test_a_damaged_structure_hides_nothing_else(channel, monkeypatch):
    monkeypatch.setattr(ChannelView, "schema", lambda self: (1, {"value": ["dict"]}))
    result = run(channel)
    assert result.exit_code == 0
    assert "structure: the schema is damaged" in result.stdout
    assert "SLOT" in result.stdout
    document = json.loads(run(channel, "--json").stdout)
    assert "damaged" in document["structure_problem"]
    assert document["structure_version"] is None


# -- values


def test_values(channel):
    result = run(channel, "--value", "head/w", "--value", "layers/1/y", "--value", "('a', 1)", "--value", "3")
    assert result.exit_code == 0, result.output
    assert "head/w of version 1: float32 (4, 500)\n[[0.000e+00" in result.stdout
    assert "..." in result.stdout
    assert "layers/1/y of version 1: float\n2.5\n" in result.stdout
    assert "of version 1: bool\nTrue\n" in result.stdout
    assert result.stdout.endswith("3 of version 1: str\n'text'\n")
    document = json.loads(run(channel, "--json", "--value", "od/z").stdout)
    assert document["values"] == {"od/z": "od/z of version 1: complex\n1j"}


def test_a_pickle_is_loaded_only_when_asked_for(tmp_path):
    channel, value = f"{tmp_path}/c", {"a": re.compile("x+"), "b": 2}
    with untorn.publish(value, name="c", directory=tmp_path, allow_pickle=True) as publisher:
        assert "pickle re.Pattern" in run(channel).stdout
        refused = run(channel, "--value", "a")
        assert (refused.exit_code, "unpickle" in refused.stderr) == (1, True)
        assert "re.compile('x+')" in run(channel, "--value", "a", "--allow-pickle").stdout
        publisher.unlink()


def test_a_wrong_path_names_the_near_ones(channel):
    result = run(channel, "--value", "head/W")
    assert (result.exit_code, result.stdout) == (1, "")
    assert "no value at 'head/W'" in result.stderr
    assert "'head/w'" in result.stderr
    assert "Traceback" not in result.stderr


def test_paths_go_through_keys_with_slashes_and_stop_at_leaves():
    tree = {"a": 1, "a/b": {"c": 2}, "d": [5, (6, 7)]}
    assert member(tree, "a/b/c") == 2
    assert member(tree, "d/1/0") == 6
    assert member(tree, "") is tree
    for path in ("a/c", "d/9", "d/-1", "x", "/"):
        with pytest.raises(ValueError, match="no value at"):
            member(tree, path)
    with pytest.raises(ValueError, match="no parts"):
        member(1, "x")


def test_what_is_not_there(tmp_path):
    result = run(f"{tmp_path}/c")
    assert (result.exit_code, result.stdout) == (1, "")
    assert "no channel" in result.stderr
    assert run("a b").exit_code == 1


# -- schemas of others


OPAQUE = {
    "scipy.csr_array": (
        ["adapter", ["scipy.csr_array", [3, 3], ["data"]], [["array", 0, "<f8", [5], None]]],
        40,
    ),
    "adapter torch": (["adapter", {"of": "torch"}, {"x": ["int", 0]}], 8),
    "FrozenDict": (["frozendict", 2, [["bytes", 0, 30], ["array", 64, "|u1", [10], None]]], 40),
    "pickle mod.Class": (["pickle", "mod.Class", [["array", 0, "|u1", [7], None]]], 7),
    "later": (["later", {"anything": [1, None, "x"]}], 0),
}


@pytest.mark.parametrize("name", list(OPAQUE))
def test_kinds_of_others_are_one_line(name):
    schema, nbytes = OPAQUE[name]
    found = outline(["dict", ["k"], [schema]]).children[0]
    assert (found.path, found.nbytes, found.children) == ("k", nbytes, ())
    assert found.type in (name, name.split()[0])


def test_a_dtype_of_others_is_shown_as_it_is():
    found = outline(["array", 0, "<q99", [2], None])
    assert (found.type, found.nbytes) == ("<q99", 0)


@pytest.mark.parametrize("schema", [[], None, 3, ["dict"], ["dict", ["a"], []], ["list", 1, 5], ["namedtuple", [], []]])
def test_a_damaged_schema_is_an_error(schema):
    with pytest.raises(FormatError, match="damaged"):
        outline(schema)


def test_random_schemas_never_crash(rng):
    """Trees of anything that JSON can have, many of them nearly right."""
    kinds = ["dict", "list", "array", "int", "str", "dataclass", "adapter", "numpy", "x"]

    def anything(depth: int):
        choice = rng.randrange(7 if depth else 4)
        if choice == 0:
            return rng.choice([None, True, -1, 0.5, 10**30, "<f4", ""])
        if choice <= 3:
            return [rng.choice(kinds), rng.randrange(5), "<f4", [2], None][: rng.randrange(6)]
        if choice == 4:
            return {"k": anything(depth - 1)}
        return [rng.choice(kinds), anything(depth - 1), [anything(depth - 1)]]

    for _ in range(3000):
        schema = anything(5)
        with contextlib.suppress(FormatError):
            assert all(isinstance(node.nbytes, int) for node in walk(outline(schema)))
