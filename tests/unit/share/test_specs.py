"""flatten: the structure of a value, and the places of refused parts."""

from collections import OrderedDict
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal
from enum import IntEnum
from typing import Any, NamedTuple

import numpy as np
import pytest

from untorn.errors import UnsupportedTypeError
from untorn.share.specs import array_spec, flatten
from untorn.trees import Spec, path_of


class Pair(NamedTuple):
    left: Any
    right: Any


@dataclass
class Layer:
    w: Any
    b: Any = None


@dataclass
class MyInt:
    pass


class Sub(np.ndarray):
    pass


class Number(int):
    pass


class One(IntEnum):
    A = 1


class Two(IntEnum):
    A = 1


def test_leaves_come_depth_first_and_uncopied():
    w, b = np.zeros((2, 3)), np.ones(3)
    spec, leaves = flatten({"layers": [Layer(w, b), Pair(1, "x")], "none": None})
    assert leaves[0] is w and leaves[1] is b
    assert leaves[2:] == [1, "x", None]
    assert spec.kind == "dict"
    assert [child.kind for child in spec.children] == ["list", "none"]
    assert [child.kind for child in spec.children[0].children] == ["dataclass", "namedtuple"]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ([1.0], (1.0,)),
        ({"a": 1}, {"b": 1}),
        ({"a": 1, "b": 2}, {"b": 2, "a": 1}),
        ({"a": 1}, OrderedDict(a=1)),
        ({1: 0}, {True: 0}),
        ({1: 0}, {1.0: 0}),
        ({(1,): 0}, {(True,): 0}),
        ({0.0: 0}, {-0.0: 0}),
        ({1: 0}, {np.int64(1): 0}),
        ({Decimal("1.0"): 0}, {Decimal("1.00"): 0}),
        ({datetime(2026, 1, 1, 12, tzinfo=UTC): 0}, {datetime(2026, 1, 1, 13, tzinfo=timezone(timedelta(hours=1))): 0}),
        ({(One.A,): 0}, {(Two.A,): 0}),
        (1, 1.0),
        (1, True),
        (1, 2**63),
        ("a", b"a"),
        ("a", "ab"),
        (np.zeros(2), np.zeros(3)),
        (np.zeros(2), np.zeros(2, "f4")),
        (np.zeros(2), np.zeros(2, ">f8")),
        (np.zeros((2, 3)), np.zeros((2, 3), order="F")),
        (np.float64(1), 1.0),
        (np.array(1.0), np.float64(1.0)),
        (None, ()),
        (Pair(1, 2), (1, 2)),
    ],
)
def test_what_differs_in_structure_differs_in_spec(one, other):
    assert flatten(one)[0] != flatten(other)[0]


def test_equal_structures_have_equal_specs():
    def make(number):
        return {"w": np.full((3, 2), number), "t": (number, f"{number}"), "p": Pair(np.float32(number), None)}

    assert flatten(make(1.0))[0] == flatten(make(2.0))[0]
    assert hash(flatten(make(1.0))[0]) == hash(flatten(make(2.0))[0])


@pytest.mark.parametrize(
    ("value", "place"),
    [
        (object(), "(the value itself)"),
        ({"a": [1, int]}, "a/1"),
        ({"head": {"w": np.array([object()])}}, "head/w"),
        ({"s": np.zeros(2, [("x", "O")])}, "s"),
        (Pair(1, lambda: 0), "right"),
        ([Layer(w=memoryview(b"ab"))], "0/w"),
        ({"m": np.zeros(2).view(Sub)}, "m"),
        ({"n": Number(1)}, "n"),
        (np.array("x", dtype=object)[()].__class__, "(the value itself)"),
        ({"c": {object(): 1}}, "c"),
        ({"c": {(1, (2,)): 1}}, "c"),
    ],
)
def test_refusals_name_the_place(value, place):
    with pytest.raises(UnsupportedTypeError) as caught:
        flatten(value)
    assert str(caught.value).startswith(f"{place}: ")
    assert isinstance(caught.value, TypeError)


def test_a_cycle_is_refused():
    tree = {"a": [1]}
    tree["a"].append(tree)
    with pytest.raises(UnsupportedTypeError, match=r"a/1: the tree contains itself"):
        flatten(tree)


def test_the_same_part_twice_is_no_cycle():
    part = [np.zeros(2)]
    assert len(flatten([part, part])[1]) == 2


def test_depth_has_a_limit_and_not_a_crash():
    value = 1
    for _ in range(5000):
        value = [value]
    with pytest.raises(UnsupportedTypeError, match="nested more than 200 deep"):
        flatten(value)


def test_a_class_that_nobody_can_import_is_refused():
    class Local(NamedTuple):
        x: int

    with pytest.raises(UnsupportedTypeError, match="cannot be imported by that name"):
        flatten([Local(1)])


def test_a_memmap_is_an_array(tmp_path):
    mapped = np.memmap(tmp_path / "m", dtype="i4", mode="w+", shape=(3,))
    spec, leaves = flatten(mapped)
    assert spec.kind == "array" and type(leaves[0]) is np.ndarray
    del mapped, leaves


def test_array_spec_keeps_the_axis_order_and_drops_the_gaps():
    array = np.zeros((4, 6), order="F")[::2]
    assert array_spec(array).detail == (np.dtype("f8"), (2, 6), (8, 16))
    assert array_spec(np.zeros((0, 3), order="F")).detail[2] is None


def test_path_and_spec_read_well():
    assert path_of(()) == "(the value itself)"
    assert path_of(("a", "0")) == "a/0"
    assert Spec("int") == Spec("int", None, ())
