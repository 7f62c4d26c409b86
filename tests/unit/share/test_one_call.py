"""Versions with the structure of the one before are published, read and edited in one call of the core each.

Whatever does not fit goes the long way, and readers cannot tell which way a version came.
"""

from __future__ import annotations

from collections import OrderedDict

import numpy as np
import pytest

import untorn
from untorn import _core
from untorn.errors import UnsupportedTypeError
from untorn.share import publisher as publisher_module
from untorn.share import tree_plans
from untorn.share.decoder import Decoder
from untorn.share.layout import Layout
from untorn.share.specs import flatten
from untorn.share.versions import Versions


class Named(np.ndarray):
    """A subclass of an array."""


def value_of(number: int):
    return {
        "w": np.full((3, 4), number, np.float32),
        "rest": [np.arange(5) + number, (np.float64(number), number, float(number), number % 2 == 0)],
        "text": f"{number:05}",
        "raw": b"%03d" % number,
        "none": None,
        "empty": np.zeros((0, 3)),
        "scalar": np.array(number, np.int16),
    }


def assert_same(found, expected):
    assert type(found) is type(expected)
    if isinstance(found, dict):
        assert list(found) == list(expected)
        found, expected = list(found.values()), list(expected.values())
    if isinstance(found, list | tuple):
        assert len(found) == len(expected)
        for one, other in zip(found, expected, strict=True):
            assert_same(one, other)
    elif isinstance(found, np.ndarray):
        assert found.dtype == expected.dtype
        assert found.shape == expected.shape
        assert found.tobytes() == expected.tobytes()
        assert not found.flags.writeable
        assert found.flags.aligned
    else:
        assert found == expected


@pytest.fixture
def repeated():
    """A publisher whose structure is known on both sides, and its subscriber."""
    with untorn.publish(value_of(1)) as publisher, publisher.subscriber() as reader:
        for number in (2, 3, 4):
            publisher.update(value_of(number))
            assert_same(reader.snapshot().value, value_of(number))
        yield publisher, reader


def test_the_same_structure_takes_one_call(repeated, monkeypatch):
    publisher, reader = repeated
    monkeypatch.setattr(publisher_module, "Tree", None)
    monkeypatch.setattr(Decoder, "value", None)
    monkeypatch.setattr(Versions, "publish", None)
    for number in range(5, 15):
        publisher.update(value_of(number))
        assert_same(reader.snapshot().value, value_of(number))
        with publisher.edit() as tree:
            tree["w"] += 1
            tree["text"] = "other"
        assert_same(reader.snapshot().value, value_of(number) | {"w": value_of(number + 1)["w"], "text": "other"})
    assert publisher.version == 4 + 2 * 10


OTHERS = {
    "keys in another order": lambda value: dict(reversed(value.items())),
    "a key more": lambda value: value | {"more": 1},
    "a key less": lambda value: {key: value[key] for key in value if key != "none"},
    "another key": lambda value: {("v" if key == "w" else key): value[key] for key in value},
    "another dict": OrderedDict,
    "a list for a tuple": lambda value: value | {"rest": [value["rest"][0], list(value["rest"][1])]},
    "another length": lambda value: value | {"rest": value["rest"][:1]},
    "another dtype": lambda value: value | {"w": value["w"].astype(np.float64)},
    "another byte order": lambda value: value | {"w": value["w"].astype(">f4")},
    "the same size, another dtype": lambda value: value | {"w": value["w"].view(np.int32)},
    "another shape": lambda value: value | {"w": value["w"].reshape(4, 3)},
    "another number of axes": lambda value: value | {"w": value["w"].reshape(12)},
    "a scalar for an array": lambda value: value | {"scalar": np.int16(3)},
    "an array for an int": lambda value: value | {"none": np.zeros(2)},
    "a bool for an int": lambda value: value | {"rest": [value["rest"][0], (np.float64(1), True, 1.0, True)]},
    "a large int": lambda value: value | {"rest": [value["rest"][0], (np.float64(1), 2**64, 1.0, True)]},
    "a float for a float64": lambda value: value | {"rest": [value["rest"][0], (1.0, 1, 1.0, True)]},
    "a longer text": lambda value: value | {"text": "longer than before"},
    "a text of as many characters": lambda value: value | {"text": "ä0000"},
    "a lone surrogate": lambda value: value | {"text": "\ud800"},
    "shorter bytes": lambda value: value | {"raw": b""},
    "something for None": lambda value: value | {"none": 0},
    "None for something": lambda value: value | {"text": None},
}


@pytest.mark.parametrize("change", OTHERS.values(), ids=OTHERS)
def test_another_structure_goes_the_long_way(repeated, change):
    publisher, reader = repeated
    for number in (5, 6, 7):
        for value in (change(value_of(number)), value_of(number)):
            publisher.update(value)
            assert_same(reader.snapshot().value, value)


def test_arrays_of_other_layouts_and_classes(repeated):
    publisher, reader = repeated
    w = np.arange(24, dtype=np.float32)
    for other in (
        w.reshape(4, 6)[::-1, ::2].T,
        np.asfortranarray(w[:12].reshape(3, 4)),
        np.broadcast_to(w[:4], (3, 4)),
    ):
        publisher.update(value_of(1) | {"w": other})
        assert (reader.snapshot().value["w"] == other).all()
        publisher.update(value_of(2))
        assert_same(reader.snapshot().value, value_of(2))
    with pytest.raises(UnsupportedTypeError, match="Named"):
        publisher.update(value_of(1) | {"w": w[:12].reshape(3, 4).view(Named)})
    assert_same(reader.snapshot().value, value_of(2))


def test_what_a_refused_update_wrote_is_in_no_version():
    """It may have been written to a slot whose contents were known."""
    first, other = {"a": np.zeros(4), "b": 1}, {"a": np.ones(4), "b": object()}
    with untorn.publish(first) as publisher:
        reader = publisher.subscriber()
        for _ in range(6):
            publisher.update(first)
        for number in range(8):
            with pytest.raises(UnsupportedTypeError):
                publisher.update(other)
            publisher.patch({"b": number})
            found = reader.snapshot().value
            assert found["b"] == number
            assert not found["a"].any()


def test_updates_and_patches_in_turns():
    value = {"a": np.zeros(4), "b": np.zeros(4)}
    with untorn.publish(value) as publisher:
        reader = publisher.subscriber()
        for number in range(1, 20):
            if number % 3:
                publisher.patch({"b": np.full(4, float(number))})
                assert reader.snapshot().value["a"][0] == number // 3 * 3
            else:
                publisher.update({"a": np.full(4, float(number)), "b": np.zeros(4)})
                assert reader.snapshot().value["b"][0] == 0


def test_large_arrays_are_copied_as_well():
    value = {"large": np.zeros(300_000), "small": np.zeros(3)}
    with untorn.publish(value) as publisher:
        for number in range(6):
            publisher.update({"large": np.full(300_000, number, float), "small": np.full(3, number, float)})
            found = publisher.subscriber().snapshot().value
            assert (found["large"] == number).all()
            assert (found["small"] == number).all()


EDITS = {
    "in place": lambda tree: tree["w"].fill(9),
    "another array": lambda tree: tree.update(w=np.full((3, 4), 9, np.float32)),
    "arrays exchanged": lambda tree: tree["rest"].__setitem__(0, tree["rest"][0][::-1]),
    "another shape of the same array": lambda tree: setattr(tree["w"], "shape", (4, 3)),
    "another dtype of the same array": lambda tree: setattr(tree["w"], "dtype", np.int32),
    "one array in two places": lambda tree: tree.update(empty=tree["w"]),
    "plain values": lambda tree: tree.update(
        text="12345", raw=b"abc", rest=[np.arange(5), (np.float64(3), 2, 1.0, True)]
    ),
    "another structure": lambda tree: tree.update(more=[1], none=tree.pop("text")),
}


@pytest.mark.filterwarnings("ignore:Setting the (shape|dtype) on a NumPy array:DeprecationWarning")  # since 2.5
@pytest.mark.parametrize("change", EDITS.values(), ids=EDITS)
def test_edits(repeated, change):
    publisher, reader = repeated
    expected = value_of(4)
    change(expected)
    held = reader.snapshot().value
    with publisher.edit() as tree:
        change(tree)
    assert_same(reader.snapshot().value, expected)
    publisher.update(value_of(7))
    assert_same(reader.snapshot().value, value_of(7))
    assert_same(held, value_of(4))


def test_a_view_that_an_edit_left_behind_changes_nothing(repeated):
    publisher, reader = repeated
    with publisher.edit() as tree:
        kept, row = tree["w"], tree["w"][0]
        kept.fill(5)
    assert not kept.flags.writeable
    row.fill(6)
    assert (reader.snapshot().value["w"] == 5).all()


def test_an_edit_that_fails_publishes_nothing(repeated):
    publisher, reader = repeated
    with pytest.raises(RuntimeError, match="stop"), publisher.edit() as tree:
        tree["w"].fill(5)
        raise RuntimeError("stop")
    assert publisher.version == 4
    publisher.patch({"none": None})
    assert_same(reader.snapshot().value, value_of(4))


def test_without_numpys_table_of_functions(monkeypatch):
    """As with a NumPy that has another one."""
    monkeypatch.setattr(tree_plans, "_array_api", lambda: None)
    with untorn.publish(value_of(1)) as publisher:
        reader = publisher.subscriber()
        for number in (2, 3, 4, 5):
            publisher.update(value_of(number))
            assert_same(reader.snapshot().value, value_of(number))
        with publisher.edit() as tree:
            tree["w"] += 1
        assert (reader.snapshot().value["w"] == 6).all()


def test_a_leaf_that_is_not_aligned_is_read():
    spec, leaves = flatten({"w": np.arange(3.0)})
    layout = Layout(spec, payload=0)
    payload = bytearray(layout.nbytes + 64)
    layout.write_leaf(payload, 0, leaves[0])
    schema = layout.schema.replace(b'"array",0,', b'"array",1,')
    plan = tree_plans.tree_plan_of(schema, 0, len(payload))
    found = plan.read(bytes(1) + bytes(payload[:-1]))["w"]
    assert found.tolist() == [0, 1, 2]
    assert not found.flags.aligned
    assert plan.read(b"short") is NotImplemented
    with pytest.raises(ValueError, match="smaller"):
        plan.open(bytearray(3))


def test_a_plan_must_get_numpys_table():
    with pytest.raises((TypeError, ValueError)):
        _core.TreePlan([("none", 0, 0, 0, None, None, None, (), b"")], b"{}", 64, np.ndarray, "no capsule")
