"""FrozenDict is a dict that lies flat: same answers, same errors, and damaged bytes are a FormatError and no crash."""

import contextlib
import copy
import gc
import json
import pickle
import random
import re
import threading
import weakref
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date
from enum import IntEnum
from typing import Any, NamedTuple

import numpy as np
import pytest

from untorn import _core
from untorn.adapter_registry import adapter_for, adapter_named
from untorn.errors import FormatError, UnsupportedTypeError, UntornError
from untorn.share.decoder import Decoder
from untorn.share.frozen_dict import FrozenDict
from untorn.share.layout import pack

MISSING = object()


class Point(NamedTuple):
    x: Any
    y: Any


@dataclass
class Layer:
    w: Any


class Color(IntEnum):
    RED = 1


class Text(str):
    pass


KEYS = [
    *("", "a", "1", "key", "ü", "日本語", "🙂", "\ud800", "a\0b", "x" * 1000),
    *(b"", b"1", b"\xff\0", b"x" * 100),
    *(0, 1, -1, 2**63 - 1, -(2**63), 2**63, -(2**63) - 1, 2**64, 10**40, -(10**40)),
]

VALUES = [
    *(None, True, False, 0, 1, -1, 2**63 - 1, -(2**63), 2**63, -(2**200)),
    *(0.0, -0.0, 1.5, float("inf"), 5e-324, 1j, complex(-0.0, float("inf"))),
    *("", "text", "ü🙂", "\ud800 alone", "x" * 5000, b"", b"bytes\0", b"y" * 5000),
    *([], (), {}, [1, [2, (3, {"four": 4.0})]], ("a", b"b", None), {"k": [True], 2: {}, (1, "x"): 3, None: 4, 0.5: 5}),
    *([2**70, -1], [[[[[]]]]]),
]


def assert_same(found, expected):
    """Equal in value and in type, all the way down."""
    assert type(found) is type(expected)
    if isinstance(expected, np.ndarray):
        assert found.dtype == expected.dtype and found.shape == expected.shape
        assert found.tobytes() == expected.tobytes()
    elif isinstance(expected, np.generic):
        assert found.dtype == expected.dtype and found.tobytes() == expected.tobytes()
    elif isinstance(expected, dict):
        assert list(map(repr, found)) == list(map(repr, expected))
        for one, other in zip(found.values(), expected.values(), strict=True):
            assert_same(one, other)
    elif isinstance(expected, list | tuple):
        assert len(found) == len(expected)
        for one, other in zip(found, expected, strict=True):
            assert_same(one, other)
    else:
        assert repr(found) == repr(expected)


# -- what goes in comes out --------------------------------------------------------------------------------------


def test_every_kind_of_key():
    frozen = FrozenDict({key: number for number, key in enumerate(KEYS)})
    assert len(frozen) == len(KEYS)
    for number, key in enumerate(KEYS):
        assert frozen[key] == number
        assert key in frozen
        assert frozen.get(key) == number
    for found, key in zip(frozen, KEYS, strict=True):
        assert_same(found, key)


def test_every_kind_of_value():
    frozen = FrozenDict(enumerate(VALUES))
    for number, value in enumerate(VALUES):
        assert_same(frozen[number], value)
    for found, value in zip(frozen.values(), VALUES, strict=True):
        assert_same(found, value)


def test_nan():
    assert np.isnan(FrozenDict({"nan": float("nan")})["nan"])


@pytest.mark.parametrize(
    "array",
    [
        np.arange(6.0).reshape(2, 3),
        np.asfortranarray(np.arange(6).reshape(2, 3)),
        np.arange(20)[::3],
        np.array(5, np.uint8),
        np.zeros((0, 4), np.float32),
        np.array(["a", "büx"]),
        np.array([b"a", b""]),
        np.array(["2020-01-01", "NaT"], "M8[D]"),
        np.array([(1, 2.5)], [("i", "<i4"), ("f", ">f8", (2,))]),
        np.arange(1000, dtype=">i2"),
        np.zeros(3, "V5"),
    ],
    ids=lambda array: f"{array.dtype.str}{array.shape}",
)
def test_arrays_are_readonly_views(array):
    frozen = FrozenDict({"before": "x", "array": array, "list": [array]})
    for found in (frozen["array"], frozen["list"][0]):
        assert_same(found, np.ascontiguousarray(array).reshape(array.shape))
        assert not found.flags.writeable
        with pytest.raises(ValueError, match="WRITEABLE"):
            found.flags.writeable = True
    assert frozen["array"].ctypes.data == frozen["array"].ctypes.data
    blob = frozen.parts()["blob"]
    assert blob.ctypes.data % 64 == 0
    if array.size:
        assert np.shares_memory(frozen["array"], blob)
        alignment = 64 if array.nbytes >= _core.FROZEN_LARGE else 16
        assert frozen["array"].ctypes.data % alignment == 0


@pytest.mark.parametrize(
    "scalar",
    [
        *(np.float32(1.5), np.float64(2), np.int8(-3), np.bool_(True), np.str_("ü"), np.bytes_(b"x"), np.complex64(1j)),
        *(np.datetime64("2020-01-01"), np.timedelta64(3, "s"), np.array([(1, 2)], "i4,i4")[0]),
    ],
    ids=lambda scalar: type(scalar).__name__,
)
def test_numpy_scalars(scalar):
    assert_same(FrozenDict({"s": scalar, "t": (scalar,)})["s"], scalar)
    assert_same(FrozenDict({"s": scalar, "t": (scalar,)})["t"], (scalar,))


def test_values_that_share_knows():
    values = {
        "point": Point(1, np.arange(3)),
        "layer": Layer({"w": np.ones(2)}),
        "ordered": OrderedDict(a=1),
        "inside": [Point(1, 2), Point("x", None)],
        "same": Point(4, np.arange(3)),
    }
    frozen = FrozenDict(values)
    point = frozen["point"]
    assert type(point) is Point and point.x == 1 and point.y.tolist() == [0, 1, 2]
    assert not point.y.flags.writeable and np.shares_memory(point.y, frozen.parts()["blob"])
    assert type(frozen["layer"]) is Layer and frozen["layer"].w["w"].tolist() == [1, 1]
    assert type(frozen["ordered"]) is OrderedDict
    assert frozen["inside"] == [Point(1, 2), Point("x", None)]
    assert frozen["same"].x == 4
    assert frozen.parts()["documents"].count(b"namedtuple") == 3  # one description for equal ones


def test_a_frozen_dict_in_a_frozen_dict():
    outer = FrozenDict({"inner": FrozenDict({"a": np.arange(3)})})
    inner = outer["inner"]
    assert type(inner) is FrozenDict
    array = inner["a"]
    del outer, inner
    assert array.tolist() == [0, 1, 2]


def test_pickle_on_request():
    value = re.compile("a+")
    with pytest.raises(UnsupportedTypeError, match=r"^\['pattern'\]"):
        FrozenDict({"pattern": value})
    frozen = FrozenDict({"pattern": value, "objects": np.array([None, "x"])}, allow_pickle=True)
    assert frozen["pattern"] == value
    assert frozen["objects"].tolist() == [None, "x"]
    assert copy.deepcopy(frozen)["pattern"] == value
    assert pickle.loads(pickle.dumps(frozen))["pattern"] == value
    with pytest.raises(UnsupportedTypeError, match="allow_pickle"):
        FrozenDict.of_parts(frozen.parts())["pattern"]


def test_a_value_is_new_at_every_lookup():
    frozen = FrozenDict({"list": [1, 2]})
    frozen["list"].append(3)
    assert frozen["list"] == [1, 2]


# -- as a dict ---------------------------------------------------------------------------------------------------


def random_key(rng):
    return rng.choice(
        [
            lambda: rng.randrange(50),
            lambda: rng.randrange(-(2**70), 2**70),
            lambda: rng.randrange(64) << rng.randrange(64),
            lambda: str(rng.randrange(50)),
            lambda: "".join(chr(rng.choice([65, 228, 0x65E5, 0x1F642, 0xD800])) for _ in range(rng.randrange(20))),
            lambda: rng.randbytes(rng.randrange(3)),
            lambda: rng.randbytes(rng.randrange(40)),
        ]
    )()


def random_value(rng, depth=0):
    makers = [lambda: rng.choice(VALUES), rng.random, lambda: random_key(rng)]
    if depth < 3:
        makers.append(lambda: [random_value(rng, depth + 1) for _ in range(rng.randrange(4))])
        makers.append(lambda: {random_key(rng): random_value(rng, depth + 1) for _ in range(rng.randrange(4))})
    return rng.choice(makers)()


@pytest.mark.parametrize("size", [0, 1, 5, 6, 100, 3000])
def test_random_against_a_dict(rng, size):
    pairs = [(random_key(rng), random_value(rng)) for _ in range(size)]
    for source in (pairs, iter(pairs), dict(pairs)):
        frozen, plain = FrozenDict(source), dict(pairs)
        assert len(frozen) == len(plain)
        assert_same(dict(frozen.items()), plain)
        assert list(frozen) == list(plain) == list(frozen.keys())
        assert frozen == plain
        for key in [*plain, *(random_key(rng) for _ in range(2000))]:
            assert (key in frozen) == (key in plain)
            assert_same(frozen.get(key, MISSING), plain.get(key, MISSING))


def test_many_entries(rng):
    plain = {f"key {i}": i for i in range(100_000)} | {i << 20: str(i) for i in range(1000)}
    frozen = FrozenDict(plain)
    assert frozen == plain
    keys = list(plain)
    rng.shuffle(keys)
    assert all(frozen[key] == plain[key] for key in keys)
    assert not any(f"no key {i}" in frozen for i in range(100_000))


def test_later_values_win_at_the_place_of_the_first():
    pairs = [("a", 1), ("b", [2]), ("a", "three"), ("c", 4), ("a", 5), ("b", 6)]
    assert list(FrozenDict(pairs).items()) == list(dict(pairs).items()) == [("a", 5), ("b", 6), ("c", 4)]
    assert list(FrozenDict(("same", i) for i in range(10_000)).items()) == [("same", 9999)]


def test_equal_data_has_equal_bytes():
    one, other = FrozenDict({"a": [1], 2: np.arange(3)}).parts(), FrozenDict([("a", [1]), (2, np.arange(3))]).parts()
    assert all(bytes(one[name]) == bytes(other[name]) for name in one)


def test_str_bytes_and_int_are_three_keys():
    assert dict(FrozenDict({"1": "str", b"1": "bytes", 1: "int"})) == {"1": "str", b"1": "bytes", 1: "int"}


@pytest.mark.parametrize(
    "key",
    [1, True, 1.0, Color.RED, np.int8(1), np.uint64(1), np.float64(1.0), np.True_],
    ids=lambda key: type(key).__name__,
)
def test_whatever_equals_one_finds_it(key):
    assert FrozenDict({1: "one"})[key] == {1: "one"}[key] == "one"


def test_subclasses_of_key_types():
    frozen = FrozenDict([(Text("t"), 1), (np.str_("n"), 2), (np.int64(3), 3), (Color.RED, 4), (np.bytes_(b"b"), 5)])
    assert_same(list(frozen), ["t", "n", 3, 1, b"b"])
    assert [frozen[key] for key in ("t", "n", 3, 1, b"b")] == [1, 2, 3, 4, 5]
    assert frozen[Text("t")] == frozen[np.str_("t")] == 1
    assert FrozenDict({2**80: "big"})[float(2**80)] == "big"


@pytest.mark.parametrize("key", [None, 1.5, float("nan"), float("inf"), (1,), frozenset(), 1j, object(), int])
def test_other_hashable_keys_are_absent(key):
    frozen = FrozenDict({1: "one", "a": 2})
    assert key not in frozen
    assert frozen.get(key) is None
    assert frozen.get(key, 7) == 7
    assert frozen.get(key, default=8) == 8
    with pytest.raises(KeyError) as caught:
        frozen[key]
    assert caught.value.args[0] is key and len(caught.value.args) == 1


@pytest.mark.parametrize("key", [[], {}, bytearray(b"a"), np.array(1)], ids=lambda key: type(key).__name__)
def test_unhashable_keys_raise(key):
    frozen = FrozenDict({1: "one"})
    for look in (frozen.__getitem__, frozen.__contains__, frozen.get):
        with pytest.raises(TypeError, match="unhashable"):
            look(key)


def test_get_takes_a_key_and_a_default():
    frozen = FrozenDict({1: "one"})
    for arguments, named in [((), {}), ((1, 2, 3), {}), ((1,), {"other": 2}), ((1, 2), {"default": 3})]:
        with pytest.raises(TypeError, match="get: expected"):
            frozen.get(*arguments, **named)


@pytest.mark.parametrize("data", [{}, [], (), iter([]), FrozenDict()])
def test_empty(data):
    frozen = FrozenDict(data)
    assert len(frozen) == 0 and not frozen and list(frozen) == [] and frozen == {}
    assert "a" not in frozen and repr(frozen) == "FrozenDict({})"
    assert FrozenDict.of_parts(frozen.parts()) == {}


def test_any_mapping_is_a_source():
    plain = {"a": 1, "b": 2}
    for source in (OrderedDict(plain), FrozenDict(plain), type("Other", (dict,), {})(plain)):
        assert FrozenDict(source) == plain


def test_views():
    frozen = FrozenDict({"a": 1, "b": [2], "c": None})
    assert isinstance(frozen, Mapping)
    assert len(frozen.keys()) == len(frozen.values()) == len(frozen.items()) == 3
    assert list(frozen.keys()) == ["a", "b", "c"]
    assert list(frozen.values()) == [1, [2], None]
    assert list(frozen.items()) == [("a", 1), ("b", [2]), ("c", None)]
    assert "a" in frozen.keys() and "d" not in frozen.keys()  # noqa: SIM118 (the view is what is tested)
    assert [2] in frozen.values() and 3 not in frozen.values()
    assert ("b", [2]) in frozen.items() and ("b", 2) not in frozen.items() and ("d", 1) not in frozen.items()
    assert frozen.keys() & {"a", "z"} == {"a"}
    assert frozen.keys() == {"a", "b", "c"}
    iterator = iter(frozen)
    assert iterator.__length_hint__() == 3
    assert list(iterator) == ["a", "b", "c"] and list(iterator) == []


def test_equality():
    assert FrozenDict({"a": 1, "b": 2}) == {"b": 2, "a": 1} == FrozenDict({"b": 2, "a": 1})
    assert FrozenDict({"a": 1}) != {"a": 2}
    assert FrozenDict({"a": 1}) != {"a": 1, "b": 2}
    assert FrozenDict() != []


def test_repr():
    assert repr(FrozenDict({"a": 1, b"b": [None]})) == "FrozenDict({'a': 1, b'b': [None]})"
    assert repr(FrozenDict((i, i) for i in range(2005))) == "FrozenDict({0: 0, 1: 1, 2: 2, 3: 3, 4: 4, ... 2,000 more})"


def test_it_is_immutable():
    frozen = FrozenDict({"a": 1})
    with pytest.raises(TypeError):
        frozen["a"] = 2
    with pytest.raises(TypeError):
        del frozen["a"]
    for name in ("anything", "nbytes", "_parts"):
        with pytest.raises(AttributeError):
            setattr(frozen, name, 1)
    with pytest.raises(TypeError, match="unhashable"):
        hash(frozen)
    for part in ("index", "entries", "blob"):
        assert not frozen.parts()[part].flags.writeable


# -- parts -------------------------------------------------------------------------------------------------------


def test_parts():
    frozen = FrozenDict({"a": 1, "b": np.arange(3)})
    parts = frozen.parts()
    assert list(parts) == ["index", "entries", "blob", "documents"]
    assert [parts[name].dtype for name in ("index", "entries", "blob")] == [np.uint64, np.uint8, np.uint8]
    assert type(parts["documents"]) is bytes
    assert frozen.nbytes == sum(memoryview(part).nbytes for part in parts.values())
    again = FrozenDict.of_parts(parts)
    assert again["a"] == 1 and list(again) == ["a", "b"]
    assert again["b"].ctypes.data == frozen["b"].ctypes.data  # nothing was copied


def test_parts_at_odd_addresses():
    frozen = FrozenDict({"a": 1, "b": np.arange(3), 2**70: [1, "x"]})
    moved = {}
    for name, part in frozen.parts().items():
        moved[name] = np.frombuffer(b"?" + bytes(part), np.uint8)[1:]
    moved["documents"] = frozen.parts()["documents"]
    again = FrozenDict.of_parts(moved)
    assert again["a"] == 1 and again["b"].tolist() == [0, 1, 2] and again[2**70] == [1, "x"]


def test_views_keep_the_memory_alive():
    frozen = FrozenDict({"array": np.arange(1000), "point": Point(1, np.arange(5)), "scalar": np.float32(2)})
    memory = {name: np.array(part) for name, part in frozen.parts().items() if name != "documents"}
    watched = weakref.ref(memory["blob"])
    again = FrozenDict.of_parts({**memory, "documents": frozen.parts()["documents"]})
    array, point, scalar = again["array"], again["point"], again["scalar"]
    assert not array.flags.writeable
    del memory, again
    gc.collect()
    assert watched() is not None
    assert array.sum() == 499500 and point.y.tolist() == [0, 1, 2, 3, 4]
    del array
    assert watched() is not None
    del point
    gc.collect()
    assert watched() is None
    assert scalar == 2


def test_iterators_keep_the_table_alive():
    iterator = iter(FrozenDict({"a": 1}).items())
    gc.collect()
    assert list(iterator) == [("a", 1)]


def test_cycles_are_collected():
    class Array(np.ndarray):
        pass

    frozen = FrozenDict({"a": 1})
    blob = np.zeros(8, np.uint8).view(Array)
    blob.owner = FrozenDict.of_parts({**frozen.parts(), "blob": blob})
    watched = weakref.ref(blob)
    del blob
    gc.collect()
    assert watched() is None


def test_subclasses_are_collected_too():
    class Named(FrozenDict):
        pass

    named = Named({"a": 1})
    named.itself = named
    watched = weakref.ref(named)
    assert named["a"] == 1 and repr(named) == "Named({'a': 1})"
    del named
    gc.collect()
    assert watched() is None


@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
def test_pickling(protocol):
    frozen = FrozenDict({"a": 1, "b": np.arange(3), 5: "five"})
    again = pickle.loads(pickle.dumps(frozen, protocol))
    assert type(again) is FrozenDict
    assert again["a"] == 1 and again["b"].tolist() == [0, 1, 2] and not again["b"].flags.writeable


def test_copies():
    frozen = FrozenDict({"a": 1})
    assert copy.copy(frozen) is frozen
    assert copy.deepcopy(frozen) is frozen


def test_threads_look_up_at_once():
    frozen = FrozenDict({i: Point(i, np.full(3, i)) for i in range(200)})
    failed = []

    def look(seed):
        order = random.Random(seed).sample(range(200), 200)
        failed.extend(i for i in order if frozen[i].x != i or frozen[i].y.tolist() != [i] * 3)

    threads = [threading.Thread(target=look, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed


# -- what cannot be stored ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "text"),
    [
        (True, r"^\[True\]: a key of type <class 'bool'>; expected str, bytes or int"),
        (1.0, r"^\[1.0\]: a key of type <class 'float'>"),
        (None, r"^\[None\]: a key of type"),
        ((1, 2), r"^\[\(1, 2\)\]: a key of type <class 'tuple'>"),
        (np.bool_(True), r"a key of type"),
        (date(2026, 1, 2), r"key of type <class 'datetime.date'>; expected str, bytes or int; .* key.isoformat\(\)"),
    ],
)
def test_keys_that_are_refused(key, text):
    with pytest.raises(UnsupportedTypeError, match=text):
        FrozenDict({key: 1})


def test_dicts_inside_have_keys_of_all_kinds():
    value = {date(2026, 1, 2): [1, {np.int64(3): np.arange(3)}], (date.max, "a"): None}
    table = FrozenDict({"k": value, "in": [{"x": value}], "plain": {1: 2}})
    for found in (table["k"], table["in"][0]["x"]):
        assert list(map(repr, found)) == list(map(repr, value))
        assert found[date(2026, 1, 2)][1][3].tolist() == [0, 1, 2]
    assert table["plain"] == {1: 2}


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (object(), r"^\['k'\]: cannot share builtins.object"),
        ([1, {"x": int}], r"^\['k'\]/1/x: cannot share builtins.type"),
        (Point(1, [object()]), r"^\['k'\]/y/0: cannot share builtins.object"),
        ([Layer(int)], r"^\['k'\]/0/w: cannot share"),
        ({(1, (2,)): 3}, r"^\['k'\]: a dict key that is a tuple in a tuple"),
        ({frozenset(): 3}, r"^\['k'\]: a dict key of type frozenset; expected str, .* or an? .*tuple of these"),
        (np.array([None]), r"^\['k'\]: an array of dtype object"),
        ([lambda: 1], r"^\['k'\]/0: "),
    ],
)
def test_values_that_are_refused(value, text):
    with pytest.raises(UnsupportedTypeError, match=text):
        FrozenDict({"first": 1, "k": value})


def test_nesting_ends():
    deep = value = []
    for _ in range(199):
        value.append([])
        value = value[0]
    assert FrozenDict({"deep": deep})["deep"] == deep
    value.append([])
    with pytest.raises(UnsupportedTypeError, match=r"^\['deep'\]/0/0/0/0/0/0/0/\.\.\.: nested too deep"):
        FrozenDict({"deep": deep})
    itself = []
    itself.append({"again": (itself,)})
    with pytest.raises(UnsupportedTypeError, match="contains itself"):
        FrozenDict({"itself": itself})


@pytest.mark.parametrize(
    ("data", "error", "text"),
    [
        (5, TypeError, "not iterable"),
        ([5], TypeError, "item 0: expected a pair"),
        ([(1, 2), (1,)], ValueError, "item 1: .* length 1"),
        (["abc"], ValueError, "item 0: .* length 3"),
    ],
)
def test_data_that_is_none(data, error, text):
    with pytest.raises(error, match=text):
        FrozenDict(data)


def test_pairs_may_be_any_sequence():
    assert FrozenDict(["ab", [1, 2], np.array([3, 4])]) == {"a": "b", 1: 2, 3: 4}


def test_errors_of_the_source_pass():
    def pairs():
        yield "a", 1
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        FrozenDict(pairs())


def test_a_dict_that_changes_while_it_is_built_from():
    class Changing:
        def __reduce__(self):
            data["new"] = 1
            return int, (5,)

    data = {"changing": Changing()}
    with pytest.raises(RuntimeError, match="changed its size"):
        FrozenDict(data, allow_pickle=True)


# -- damage ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("index", np.zeros(7, np.uint64)),
        ("index", np.zeros(12, np.uint64)),
        ("index", np.zeros(0, np.uint64)),
        ("index", np.zeros(30, np.uint64)),
        ("index", np.zeros(65, np.uint8)),
        ("index", 5),
        ("index", np.zeros((16, 2), np.uint64)[:, 0]),
        ("entries", np.zeros(0, np.uint8)),
        ("entries", np.zeros(1001, np.uint8)),
        ("documents", b""),
        ("documents", b"[]"),
        ("documents", b"{}"),
        ("documents", b'{"format":2}'),
        ("documents", b'{"format":1,"entries":-1,"seed":"0","dtypes":[],"schemas":[]}'),
        ("documents", b'{"format":1,"entries":7,"seed":"0","dtypes":["|O"],"schemas":[]}'),
        ("documents", b'{"format":1,"entries":99,"seed":"0","dtypes":[],"schemas":[]}'),
    ],
)
def test_parts_that_do_not_fit(name, part):
    parts = FrozenDict({"a": 1, "b": 2}).parts()
    with pytest.raises(FormatError):
        FrozenDict.of_parts({**parts, name: part})


def test_a_part_that_is_missing():
    parts = FrozenDict().parts()
    del parts["blob"]
    with pytest.raises(FormatError, match="blob missing"):
        FrozenDict.of_parts(parts)


def test_parts_of_another_dict():
    big, small = FrozenDict({i: [i] for i in range(100)}).parts(), FrozenDict({i: [i] for i in range(90)}).parts()
    mixed = FrozenDict.of_parts({**big, "entries": small["entries"]})
    with pytest.raises(FormatError, match="is damaged"):
        mixed[99]
    with pytest.raises(FormatError, match="is damaged"):
        list(mixed)


def test_text_that_is_none():
    parts = FrozenDict({"a": "text"}).parts()
    with pytest.raises(FormatError, match="no UTF-8"):
        FrozenDict.of_parts({**parts, "entries": damaged(parts["entries"], b"text", b"t\xffxt")})["a"]


def damaged(part, old, new):
    return np.frombuffer(bytes(part).replace(old, new), np.uint8)


def everything():
    data = dict(zip(KEYS, VALUES, strict=False)) | {f"v{i}": value for i, value in enumerate(VALUES)}
    data |= {"array": np.arange(6.0).reshape(2, 3), "text": np.array(["a", "b"]), "scalar": np.float32(1)}
    return data | {"point": Point(1, np.arange(4)), "list": [np.str_("x"), Point(2**70, "y")]}


@pytest.mark.parametrize("name", ["index", "entries", "blob", "documents"])
def test_any_damage_is_an_answer_or_an_error(rng, name):
    data = everything()
    whole = FrozenDict(data).parts()
    for variant in range(300):
        part = bytearray(bytes(whole[name]))
        for _ in range(1 + variant % 5):
            part[rng.randrange(len(part))] = rng.choice([0, 1, 2, 15, 16, 127, 128, 255, rng.randrange(256)])
        changed = bytes(part) if name == "documents" else np.frombuffer(bytes(part), np.uint8)
        look_at_all(data, {**whole, name: changed})


def look_at_all(data, parts):
    try:
        frozen = FrozenDict.of_parts(parts)
    except FormatError:
        return
    for key in [*data, "none", 77]:
        for look in (frozen.__getitem__, frozen.get, frozen.__contains__):
            with contextlib.suppress(KeyError, UntornError, ImportError):
                look(key)
    for items in (frozen, frozen.values(), frozen.items()):
        iterator = iter(items)
        for _ in range(len(frozen) + 1):
            with contextlib.suppress(StopIteration, UntornError, ImportError):
                next(iterator)


@pytest.mark.parametrize("documents", [0.5, 10**18, None, "text", [1]], ids=repr)
def test_documents_that_are_no_bytes_are_a_format_error(documents):
    parts = FrozenDict({"a": 1}).parts() | {"documents": documents}
    with pytest.raises(FormatError, match="documents: expected bytes, found "):
        FrozenDict.of_parts(parts)


def test_it_is_registered_as_other_values_are_and_keeps_its_kind_in_the_schema():
    frozen = FrozenDict({"a": 1})
    assert adapter_for(FrozenDict) is adapter_named("untorn.FrozenDict")
    assert adapter_for(type("Sub", (FrozenDict,), {})) is None
    schema, payload = pack({"f": frozen})
    kind, parts, nodes = json.loads(schema)["value"][2][0]
    assert (kind, parts, len(nodes)) == ("frozendict", ["index", "entries", "blob", "documents"], 4)
    assert Decoder(schema, len(payload), payload=0).value(payload)["f"] == frozen
