"""Large containers of plain values are one leaf, which the core writes and reads in one pass; nobody else can tell."""

from __future__ import annotations

import json
import math
import random
from collections import OrderedDict, namedtuple

import numpy as np
import pytest

import untorn
from conftest import SEED
from untorn import _core
from untorn.errors import FormatError, UnsupportedTypeError
from untorn.share.decoder import Decoder
from untorn.share.layout import pack
from untorn.share.lowlevel import publish_raw, raw_version
from untorn.share.specs import PACKED_LENGTH

Point = namedtuple("Point", "x y")
N = PACKED_LENGTH

PLAIN = {
    "str to int": {f"key {i}": i for i in range(N)},
    "numbers": [0, -1, 2**63 - 1, -(2**63), 2**63, -(2**200), 0.0, -0.0, math.inf, 1e-320, 1j, -0j, True, False] * N,
    "texts": ["", "a", "ä", "𝄞", "\0", "\ud800", "x" * 1000, b"", b"\0\xff", None] * N,
    "keys": {key: None for i in range(N) for key in (i, float(i) + 0.5, str(i), b"%d" % i, (i, "t", None))}
    | {True: 1, None: 2, 2**70: 3},
    "nested": [{"a": [i, (i, {"b": None})], "b": {}} for i in range(N)],
    "tuple": tuple(range(N)),
}
MIXED = {
    "too short": list(range(N - 1)),
    "an array in it": [*range(N), np.zeros(2)],
    "a NumPy scalar in it": [*range(N), np.float32(1)],
    "a named tuple in it": [Point(i, i) for i in range(N)],
    "a set in it": [{i} for i in range(N)],
    "an OrderedDict": OrderedDict((i, i) for i in range(N)),
    "an array far down": [[[i, [np.zeros(1)]]] for i in range(N)],
}


def assert_same(found, expected):
    assert type(found) is type(expected)
    if isinstance(found, dict):
        assert_same(list(found), list(expected))
        assert_same(list(found.values()), list(expected.values()))
    elif isinstance(found, list | tuple):
        assert len(found) == len(expected)
        for one, other in zip(found, expected, strict=True):
            assert_same(one, other)
    elif isinstance(found, np.ndarray):
        assert found.tobytes() == expected.tobytes()
    else:
        assert repr(found) == repr(expected)


def kinds_in(reader) -> str:
    with reader.snapshot() as snapshot:
        return snapshot._held().schema().decode()


@pytest.mark.parametrize("value", PLAIN.values(), ids=PLAIN)
def test_plain_values_come_back(value):
    with untorn.publish({"w": np.ones(3), "table": value}) as publisher, publisher.subscriber() as reader:
        assert kinds_in(reader).count('"packed"') == 1
        for _ in range(4):
            assert_same(reader.snapshot().value["table"], value)
            publisher.update({"w": np.ones(3), "table": value})
    with untorn.queue(2) as queue:
        queue.put(value)
        assert_same(queue.get(), value)


@pytest.mark.parametrize("value", MIXED.values(), ids=MIXED)
def test_other_values_are_taken_apart(value):
    with untorn.publish(value) as publisher, publisher.subscriber() as reader:
        assert '["packed",' not in kinds_in(reader)
        assert_same(reader.snapshot().value, value)


def test_a_container_in_itself_and_one_nested_too_deep_are_refused():
    deep: list = list(range(N))
    for _ in range(210):
        deep = [deep]
    itself: list = list(range(N))
    itself.append(itself)
    with pytest.raises(UnsupportedTypeError, match="nested more than 200 deep"):
        untorn.publish(deep)
    with pytest.raises(UnsupportedTypeError, match="contains itself"):
        untorn.publish(itself)
    with pytest.raises(UnsupportedTypeError, match="a dict key of type Point"):
        untorn.publish({**dict.fromkeys(range(N)), Point(1, 2): 3})


def test_parts_of_it_have_paths():
    """The first patch of a part gives all parts their own places, and the later ones cost what they change."""
    table = {f"key {i}": [i, "text"] for i in range(N)}
    value = {"first": np.zeros(2), "table": table, "last": 5}
    with untorn.publish(value) as publisher, publisher.subscriber() as reader:
        publisher.patch({"last": 6})
        assert '["packed",' in kinds_in(reader)
        publisher.patch({"table/key 7/1": "other", "last": 7})
        assert '["packed",' not in kinds_in(reader)
        table["key 7"][1], value["last"] = "other", 7
        assert_same(reader.snapshot().value, value)
        publisher.patch({"table/key 8/0": -1})
        table["key 8"][0] = -1
        assert_same(reader.snapshot().value, value)
        assert publisher.version == 4
        publisher.update(value)
        assert '["packed",' not in kinds_in(reader)
        with pytest.raises(KeyError, match="no 'key x' in table"):
            publisher.patch({"table/key x": 1})


def test_a_part_is_replaced_by_what_is_packed():
    with untorn.publish({"a": list(range(N))}) as publisher, publisher.subscriber() as reader:
        publisher.patch({"a/3": tuple(range(N))})
        publisher.patch({"a/3/5": "five"})
        value = list(range(N))
        value[3] = (*range(5), "five", *range(6, N))
        assert_same(reader.snapshot().value, {"a": value})
        publisher.patch({"a": {"b": list(range(2 * N))}})
        assert_same(reader.snapshot().value, {"a": {"b": list(range(2 * N))}})


def test_a_path_to_nothing_changes_nothing():
    with untorn.publish({"a": list(range(N))}) as publisher, publisher.subscriber() as reader:
        with pytest.raises(KeyError, match="no 'x' in a"):
            publisher.patch({"a/x": 1})
        assert publisher.version == 1
        publisher.update({"a": list(range(N))})
        assert '["packed",' in kinds_in(reader)


def test_edits():
    table = {f"key {i}": i for i in range(N)}
    with untorn.publish({"w": np.zeros(2), "table": table}) as publisher, publisher.subscriber() as reader:
        with publisher.edit() as tree:
            tree["w"] += 1
            tree["table"]["key 5"] = -5
            tree["table"]["more"] = "text"
        value = reader.snapshot().value
        assert value["table"] == table | {"key 5": -5, "more": "text"}
        assert value["w"].tolist() == [1, 1]
        with publisher.edit(leaves=["w"]) as tree:
            tree["w"] += 1
        with (
            pytest.raises(ValueError, match="'table' was changed, but was not named"),
            publisher.edit(leaves=["w"]) as tree,
        ):
            tree["table"]["key 5"] = 5
        with publisher.edit(copy=False) as tree:
            tree["w"][:] = 3
        assert reader.snapshot().value["table"]["key 5"] == -5
        with pytest.raises(RuntimeError, match="stop"), publisher.edit() as tree:
            tree["table"].clear()
            raise RuntimeError("stop")
        assert publisher.version == 4


def test_edits_of_a_part():
    table = {f"key {i}": i for i in range(N)}
    with untorn.publish({"w": np.zeros(2), "table": table}) as publisher, publisher.subscriber() as reader:
        with pytest.raises(RuntimeError, match="stop"), publisher.edit(leaves=["table/key 5"]) as tree:
            tree["table"]["key 5"] = 7
            raise RuntimeError("stop")
        with publisher.edit(leaves=["w"]) as tree:
            tree["w"] += 1
        error = "'table/key 6' was changed, but was not named"
        with pytest.raises(ValueError, match=error), publisher.edit(leaves=["table/key 5"]) as tree:
            tree["table"]["key 6"] = 7
        assert publisher.version == 2
        with publisher.edit(leaves=["table/key 5"]) as tree:
            tree["table"]["key 5"] = 7
        assert publisher.version == 3
        assert reader.snapshot().value["table"] == table | {"key 5": 7}
        assert reader.snapshot().value["w"].tolist() == [1, 1]
        with publisher.edit(leaves=["table/key 6"]) as tree:
            tree["table"]["key 6"] = 8
        assert reader.snapshot().value["table"] == table | {"key 5": 7, "key 6": 8}


def test_a_fixed_channel_keeps_the_types_of_all_values():
    table = {f"key {i}": i for i in range(N)}
    with untorn.publish(table, fixed=True) as publisher, publisher.subscriber() as reader:
        publisher.update(table | {"key 0": 2**80})
        assert '["packed",' not in kinds_in(reader)
        for other in (table | {"key 0": "text"}, table | {"more": 1}):
            with pytest.raises(ValueError, match="fixed=True"):
                publisher.update(other)
            with pytest.raises(ValueError, match="fixed=True"), publisher.edit() as tree:
                tree.clear()
                tree.update(other)


def test_versions_as_bytes():
    table = {f"key {i}": i for i in range(N)}
    with untorn.publish(table) as source:
        copy = publish_raw(raw_version(source.subscriber().snapshot()), 7)
    with copy, copy.subscriber() as other:
        assert other.snapshot().value == table
        copy.update(table | {"more": 1})
        assert other.snapshot().value == table | {"more": 1}


# -- damage


def test_damaged_bytes_are_an_error_or_another_value():
    print(f"UNTORN_SEED={SEED}")
    rng = random.Random(SEED)
    for value in (PLAIN["nested"][:1] * N, PLAIN["keys"], PLAIN["texts"][:N], PLAIN["numbers"][:N]):
        schema, payload = pack(value, plain=True)
        decoder, errors = Decoder(schema, len(payload), payload=0), 0
        for _ in range(300):
            damaged = bytearray(payload)
            for _ in range(rng.choice((1, 3))):
                damaged[rng.randrange(len(damaged)) & rng.choice((-1, ~7))] = rng.choice((0, 1, 9, 11, 14, 127, 255))
            try:
                decoder.value(bytes(damaged))
            except FormatError:
                errors += 1
        assert errors


@pytest.mark.parametrize(
    ("node", "message"),
    [
        (["packed", 0, 64], "cannot be read"),
        (["packed", 0, 64, 3, 4], "expected a string"),
        (["packed", 0, 64, "dict", "many"], "expected a number"),
        (["packed", 0, -1, "dict", 3], "no number of bytes"),
        (["packed", 0, 1 << 40, "dict", 3], "outside its version"),
        (["packed", 0, 0, "dict", 3], "ends outside its place"),
        (["packed", 0, 8, "dict", 3], "ends outside its place"),
        (["packed", 0, 64, "dict", 3], "unknown kind"),
    ],
)
def test_damaged_nodes(node, message):
    with pytest.raises(FormatError, match=message):
        Decoder(json.dumps({"value": node}).encode(), 64, payload=0).value(bytes(64))


def test_arrays_and_other_memory_are_no_plain_values():
    for kind in (12, 13, 14):
        content = (0).to_bytes(8, "little") * 3
        node = bytes([0, kind, *[0] * 6]) + len(content).to_bytes(8, "little") + content
        with pytest.raises(FormatError, match="an array among plain values"):
            _core.plain_unpack(node, 0, len(node))
    with pytest.raises(ValueError, match="outside the memory"):
        _core.plain_unpack(b"short", 3, 8)
