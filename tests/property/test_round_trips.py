"""Generated values go through a channel and come back the same, bit by bit; generated damage is an error and no crash.

The model of patch and edit is the plain value, edited in Python. The examples follow from UNTORN_SEED.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import faulthandler
import json
import math
import mmap
from collections import OrderedDict
from typing import Any, NamedTuple

import hypothesis
import hypothesis.extra.numpy as hnp
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scipy import sparse

import untorn
from conftest import SEED
from helpers import WATCHDOG_S, Failure, start
from untorn.errors import FormatError, UnsupportedTypeError
from untorn.share.decoder import Decoder
from untorn.share.frozen_dict import FrozenDict
from untorn.share.layout import Layout
from untorn.share.specs import flatten

#: how many documents were read, and the newest, for the parent to see
LAST = mmap.mmap(-1, 2**16)
EXAMPLES, SOAK_EXAMPLES = 100, 5_000
TOUCHED = 100_000


@pytest.fixture(autouse=True, scope="module")
def _no_directory_here(tmp_path_factory):
    """Let hypothesis write its files to pytest's temporary directory."""
    hypothesis.configuration.set_hypothesis_home_dir(tmp_path_factory.mktemp("hypothesis"))
    yield
    hypothesis.configuration.set_hypothesis_home_dir(None)


def examples(count: int) -> settings:
    return settings(
        max_examples=count, deadline=None, database=None, print_blob=True, suppress_health_check=list(HealthCheck)
    )


def generated(*strategies, times=1, may_crash=False):
    """Make a test over generated values of a function of them; with many more of them it is a soak test.

    ``times`` as many where an example costs little; in a child process where a fault would be a crash.
    """

    def decorate(body):
        @pytest.mark.parametrize("count", [EXAMPLES, pytest.param(SOAK_EXAMPLES, marks=pytest.mark.soak)])
        def test(count):
            print(f"UNTORN_SEED={SEED}")
            run = hypothesis.seed(SEED)(examples(times * count)(given(*strategies)(body)))
            run_in_child(run) if may_crash else run()

        test.__doc__ = body.__doc__
        return test

    return decorate


def run_in_child(run) -> None:
    """A crash there is a failure here, that shows what was read. A minute without a new document is a hang."""
    LAST[:] = bytes(len(LAST))
    with start(_quietly, run) as child:
        try:
            seen = -1
            while not child.pipe.poll(WATCHDOG_S) and seen != int.from_bytes(LAST[:8], "little"):
                seen = int.from_bytes(LAST[:8], "little")
            child.get()
        except Failure as failure:
            last = LAST[8:].partition(b"\0")[0].decode(errors="replace")
            pytest.fail(f"{failure}\nthe last document that was read:\n{last}", pytrace=False)
        child.join()


def _quietly(pipe, run):
    faulthandler.disable()  # it would print pages
    pipe.put(run())


# -- values


class Pair(NamedTuple):
    left: Any
    right: Any


@dataclasses.dataclass
class Layer:
    w: Any
    b: Any = None


def plain_dtypes():
    return st.one_of(
        hnp.boolean_dtypes(),
        hnp.integer_dtypes(endianness="?"),
        hnp.unsigned_integer_dtypes(endianness="?"),
        hnp.floating_dtypes(endianness="?"),
        hnp.complex_number_dtypes(endianness="?"),
        hnp.byte_string_dtypes(endianness="?", min_len=1, max_len=9),
        hnp.unicode_string_dtypes(endianness="?", min_len=1, max_len=5),
        hnp.datetime64_dtypes(endianness="?"),
        hnp.timedelta64_dtypes(endianness="?"),
        st.integers(1, 9).map(lambda nbytes: np.dtype(f"V{nbytes}")),
    )


def dtypes():
    plain = plain_dtypes()
    return st.one_of(plain, hnp.array_dtypes(plain), hnp.nested_dtypes(plain, max_itemsize=200))


def raw_array(dtype: np.dtype, shape: tuple[int, ...], seed: int) -> np.ndarray:
    """Random bits (every kind of NaN among them), but for booleans and characters, which have forbidden ones."""
    rng = np.random.default_rng(seed)
    made = np.zeros(shape, dtype)
    if made.dtype.names is not None:
        for name in made.dtype.names:
            field = made[name]
            field[...] = raw_array(made.dtype[name].base, field.shape, seed + 1)
    elif made.dtype.kind == "b":
        made[...] = rng.integers(0, 2, made.shape)
    elif made.dtype.kind in "US":
        made[...] = rng.integers(0, 10**6, made.shape).astype(f"U{max(1, made.dtype.itemsize // 4)}")
    elif made.dtype.char in "gG":
        made[...] = rng.standard_normal(made.shape)  # some of its bits are padding
    else:
        made = np.frombuffer(rng.bytes(made.nbytes), made.dtype).reshape(made.shape).copy()
    return made


@st.composite
def arrays(draw):
    """Arrays of any dtype, shape, order and strides."""
    shape = draw(hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4))
    array = raw_array(draw(dtypes()), shape, draw(st.integers(0, 2**32)))
    for how in draw(st.lists(st.sampled_from(["order", "slice", "transpose", "broadcast"]), max_size=3)):
        if how == "order":
            array = np.array(array, order="F", copy=True)
        elif how == "transpose":
            array = array.transpose(draw(st.permutations(range(array.ndim))))
        elif how == "broadcast" and array.ndim < 4:
            array = np.broadcast_to(array, (draw(st.integers(0, 3)), *array.shape))
        elif how == "slice" and 0 not in array.shape:
            array = np.asarray(array[draw(hnp.basic_indices(array.shape, allow_newaxis=True, max_dims=4))])
    return array


def scalars():
    return st.one_of(
        st.none(),
        st.booleans(),
        st.integers(),
        st.integers(-(2**200), 2**200),
        st.sampled_from([2**63 - 1, 2**63, -(2**63), -(2**63) - 1, 2**64, 0, -1]),
        st.floats(),
        st.complex_numbers(),
        st.text(st.characters()),  # lone surrogates too
        st.binary(),
        st.builds(lambda dtype, seed: raw_array(dtype, (1,), seed)[0], plain_dtypes(), st.integers(0, 2**32)),
    )


def keys():
    return st.one_of(
        st.text(),
        st.integers(),
        st.floats(allow_nan=False),
        st.booleans(),
        st.binary(),
        st.none(),
        st.tuples(st.text(), st.integers(), st.none(), st.booleans()),
    )


def containers(inner, key):
    dicts = st.dictionaries(key, inner, max_size=3)
    return st.one_of(
        st.lists(inner, max_size=3),
        st.lists(inner, max_size=3).map(tuple),
        dicts,
        dicts.map(OrderedDict),
        st.builds(Pair, inner, inner),
        st.builds(Layer, inner, inner),
    )


def trees(key=None):
    key = keys() if key is None else key
    return st.recursive(st.one_of(arrays(), scalars()), lambda inner: containers(inner, key), max_leaves=8)


def trees_with_paths():
    """Trees in which every place has one path."""
    key = keys().filter(lambda key: str(key).strip("/") == str(key) != "" and "/" not in str(key))
    unique = containers(st.one_of(arrays(), scalars(), trees(key)), key)
    return unique.filter(_has_unique_paths)


def _has_unique_paths(tree) -> bool:
    names = [str(name) for name, _ in members(tree)]
    return len(set(names)) == len(names) and all(_has_unique_paths(child) for _, child in members(tree))


# -- the model


def members(tree) -> list[tuple[Any, Any]]:
    """The children of a container by name; none for a leaf."""
    if isinstance(tree, dict):
        return list(tree.items())
    if isinstance(tree, Pair):
        return list(zip(tree._fields, tree, strict=True))
    if isinstance(tree, Layer):
        return [("w", tree.w), ("b", tree.b)]
    return list(enumerate(tree)) if isinstance(tree, list | tuple) else []


def rebuilt(tree, children: list) -> Any:
    """The same container around other children."""
    if isinstance(tree, dict):
        return type(tree)(zip(tree, children, strict=True))
    return type(tree)(*children) if isinstance(tree, Pair | Layer) else type(tree)(children)


def places(tree, trail=()) -> list[tuple]:
    """The trail to every node."""
    return [trail] + [place for name, child in members(tree) for place in places(child, (*trail, name))]


def at(tree, trail):
    """The node at the end of a trail."""
    for name in trail:
        tree = dict(members(tree))[name]
    return tree


def replaced(tree, trail, value):
    """The tree with another node at the end of a trail."""
    if not trail:
        return value
    return rebuilt(
        tree, [replaced(child, trail[1:], value) if name == trail[0] else child for name, child in members(tree)]
    )


def path_of(trail) -> str:
    return "/".join(map(str, trail))


def apart(trails: list[tuple]) -> list[tuple]:
    """Return the trails of which none leads into another."""
    chosen: list[tuple] = []
    for trail in trails:
        if not any(trail[: len(other)] == other or other[: len(trail)] == trail for other in chosen):
            chosen.append(trail)
    return chosen


def assert_same(found, expected) -> None:
    """The same type, structure and bits; arrays are read-only and lie where they should."""
    assert type(found) is type(expected), (found, expected)
    if isinstance(found, np.ndarray):
        assert_same_bits(found, expected)
        assert not found.flags.writeable
        assert not found.flags.owndata
        if expected.flags.f_contiguous and not expected.flags.c_contiguous:
            assert found.flags.f_contiguous
    elif isinstance(found, np.generic):
        assert_same_bits(found, expected)
    elif members(found) or members(expected):
        assert [(type(name), name) for name, _ in members(found)] == [
            (type(name), name) for name, _ in members(expected)
        ]
        for (_, one), (_, other) in zip(members(found), members(expected), strict=True):
            assert_same(one, other)
    elif isinstance(found, float):
        assert math.copysign(1, found) == math.copysign(1, expected)
        assert found == expected or math.isnan(found) == math.isnan(expected) is True
    elif isinstance(found, complex):
        assert repr(found) == repr(expected)
    else:
        assert found == expected


def assert_same_bits(found, expected) -> None:
    assert found.dtype == expected.dtype
    assert found.shape == expected.shape
    if found.dtype.names is not None:
        for name in found.dtype.names:  # gaps between fields have no value
            assert_same_bits(found[name], expected[name])
    elif found.dtype.char in "gG":
        assert np.array_equal(found, expected, equal_nan=True)
    else:
        assert np.ascontiguousarray(found).tobytes() == np.ascontiguousarray(expected).tobytes()


# -- round trips


@generated(arrays(), arrays())
def test_arrays(first, second):
    with untorn.publish(first) as publisher:
        reader = publisher.subscriber()
        found = reader.snapshot().value
        assert_same(found, first)
        assert found.size == 0 or found.ctypes.data % 64 == 0
        publisher.update(second)
        assert_same(reader.snapshot().value, second)
        assert_same(found, first)


@generated(scalars())
def test_scalars(value):
    with untorn.publish(value) as publisher:
        assert_same(publisher.subscriber().snapshot().value, value)


@generated(trees(), trees(), st.lists(st.tuples(st.booleans(), st.integers(1, 4)), max_size=5))
def test_trees(first, second, steps):
    """Updates between two structures, several times each, any of which may be held."""
    with untorn.publish(first) as publisher:
        reader = publisher.subscriber()
        held = [(reader.snapshot().value, first)]
        for step, times in steps:
            value = second if step else first
            for _ in range(times):
                publisher.update(value)
                held.append((reader.snapshot().value, value))
        for found, value in held:
            assert_same(found, value)


# -- patch and edit


@generated(trees_with_paths(), st.data())
def test_patches(tree, data):
    """Values of any structure, at any places that lie apart."""
    with untorn.publish(tree) as publisher:
        reader = publisher.subscriber()
        held = [(reader.snapshot().value, tree)]
        for _ in range(data.draw(st.integers(1, 3))):
            trails = apart(data.draw(st.lists(st.sampled_from(places(tree)), max_size=3)))
            changes = {}
            for trail in trails:
                value = data.draw(st.one_of(arrays(), scalars(), st.just(at(tree, trail))))
                changes[path_of(trail)] = value
                tree = replaced(tree, trail, value)
            publisher.patch(changes)
            held.append((reader.snapshot().value, tree))
        for found, value in held:
            assert_same(found, value)


@generated(trees_with_paths(), st.data())
def test_edits_of_some_leaves(tree, data):
    """Leaves get other values of the same structure, in place or by assignment; edits of the whole tree in between."""
    with untorn.publish(tree) as publisher:
        reader = publisher.subscriber()
        held = [(reader.snapshot().value, tree)]
        for _ in range(data.draw(st.integers(1, 3))):
            leaves = [trail for trail in places(tree) if not members(at(tree, trail))]
            trails = apart(data.draw(st.lists(st.sampled_from(leaves), max_size=3)))
            named = data.draw(st.sampled_from([list(map(path_of, trails)), None]))
            with publisher.edit(leaves=named) as edited:
                for trail in trails:
                    value = varied(at(tree, trail), data.draw(st.integers(0, 2**32)))
                    if _assign(edited, trail, value):
                        tree = replaced(tree, trail, value)
            held.append((reader.snapshot().value, tree))
        for found, value in held:
            assert_same(found, value)


def varied(leaf, seed: int):
    """Another leaf of the same structure."""
    if isinstance(leaf, np.ndarray):
        in_fortran_order = leaf.flags.f_contiguous and not leaf.flags.c_contiguous  # published arrays keep them
        return np.asarray(raw_array(leaf.dtype, leaf.shape, seed), order="F" if in_fortran_order else "C")
    if isinstance(leaf, np.generic):
        made = raw_array(leaf.dtype, (1,), seed)[0]
        return made if made.dtype == leaf.dtype else leaf  # text that ends in zeros is shorter, so another structure
    if isinstance(leaf, str | bytes):
        return leaf[::-1]
    if isinstance(leaf, bool):
        return not leaf
    if isinstance(leaf, int):
        return -leaf if leaf not in (-(2**63), 2**63) else leaf
    return -leaf if isinstance(leaf, float | complex) else leaf


def _assign(edited, trail, value) -> bool:
    """Give one leaf of an edited tree another value; False if its place allows none."""
    if isinstance(value, np.ndarray):
        at(edited, trail)[...] = value
        return True
    parent = at(edited, trail[:-1]) if trail else None
    if isinstance(parent, Layer):
        setattr(parent, trail[-1], value)
    elif isinstance(parent, dict | list):
        parent[trail[-1]] = value
    else:
        return False
    return True


# -- damage


TOKENS = [
    *(None, True, False, 0, 1, -1, 7, 64, 2**31, 2**62, 2**63, 2**64, 10**30, 0.5, -1e300, math.inf, math.nan),
    *("", "x", "value", "dict", "odict", "list", "tuple", "namedtuple", "dataclass", "array", "numpy", "int", "float"),
    *("complex", "bool", "str", "bytes", "bigint", "none", "adapter", "pickle", "frozendict", "tests", "os"),
    *("<f8", "|O", "O", "<U9999999", "|V0", "|S0", "<M8[ns]", "<M8[25s/9]", "V", "<f16", ">i8", "|b1", "system"),
    *("scipy.sparse.csr_array", "scipy.sparse.coo_matrix", "numpy.ma.MaskedArray", "numpy.recarray", "torch.Tensor"),
    *([], [[]], {}, [0], [-1], ["int", 0], ["array", 0, "<f8", [2], None], ["str", 0, 3], ["none", 0], [["a", "<i4"]]),
    *(["array", 0, "|O", [1], None], ["numpy", 0, "|O"], ["bytes", 0, 9], ["array", 0, "|u1", [64], None]),
]


def damageable():
    """A value with every kind of node in it."""
    rng = np.random.default_rng(3)
    return {
        "array": rng.random((2, 3)),
        "fortran": np.asfortranarray(rng.random((2, 3))),
        "structured": np.zeros(2, [("a", "<i4"), ("b", "<f8", (2,))]),
        "nested": [1, 2.0, 3j, True, None, "text", b"raw", 2**70, np.float32(1), (Pair(1, Layer(2, 3)),)],
        "keys": OrderedDict({7: 1, 1.5: 2, None: 3, True: 4, b"k": 5, ("a", 1): 6}),
        "masked": np.ma.masked_array([1.0, 2.0], [0, 1]),
        "record": np.rec.array([(1, 2.0)], names="a,b"),
        "matrix": np.zeros((2, 2)).view(np.matrix),
        **{kind: getattr(sparse, f"{kind}_array")(np.eye(3)) for kind in ("csr", "bsr", "coo", "dia", "lil", "dok")},
        "frozen": FrozenDict({"a": 1, 2: np.ones(3), b"c": [1, {"x": None}]}),
        "pickled": {1, 2, 3},
    }


@st.composite
def documents(draw, document):
    """The document with some of its parts deleted, doubled, swapped or replaced."""
    document = json.loads(document)
    for _ in range(draw(st.integers(1, 3))):
        inner = [document] if document else []
        spot: Any = None
        while inner:
            spot = draw(st.sampled_from(inner))
            children = spot if isinstance(spot, list) else list(spot.values())
            inner = [child for child in children if isinstance(child, list | dict) and child]
            if draw(st.integers(0, 3)) == 0:
                break
        if spot:
            _damage(draw, spot)
    return json.dumps(document).encode()


def _damage(draw, spot) -> None:
    place = draw(st.sampled_from(range(len(spot)) if isinstance(spot, list) else list(spot)))
    how = draw(st.sampled_from(["token", "token", "delete", "double", "swap", "number"]))
    if how == "delete":
        del spot[place]
    elif how == "number":
        spot[place] = draw(st.integers(-(2**65), 2**65) | st.integers(-9, 4000))
    elif how == "double" and isinstance(spot, list):
        spot.insert(place, spot[place])
    elif how == "swap" and isinstance(spot, list):
        spot[place], spot[0] = spot[0], spot[place]
    else:
        spot[place] = copy.deepcopy(draw(st.sampled_from(TOKENS)))


def _written() -> tuple[Layout, bytes]:
    spec, leaves = flatten(damageable(), allow_pickle=True)
    layout = Layout(spec)
    slot = bytearray(layout.nbytes)
    for index, leaf in enumerate(leaves):
        layout.write_leaf(slot, index, leaf)
    layout.write_schema(slot)
    return layout, bytes(slot)


LAYOUT, SLOT = _written()


def read_damaged(schema: bytes) -> None:
    """Read it, and look at what was read: a value, or one of three errors."""
    LAST[: 9 + len(schema)] = (int.from_bytes(LAST[:8], "little") + 1).to_bytes(8, "little") + schema + b"\0"
    with contextlib.suppress(FormatError, UnsupportedTypeError, ImportError):
        touch(Decoder(schema, LAYOUT.nbytes, payload=LAYOUT.payload).value(SLOT))


def touch(value) -> None:
    """Read all of a value's memory, unless that is very much."""
    if isinstance(value, FrozenDict):
        with contextlib.suppress(FormatError, UnsupportedTypeError, ImportError):
            for key in value:
                touch(value[key])
    elif isinstance(value, np.ndarray) and value.size:
        np.asarray(value).flat[0].tobytes()
        np.asarray(value).flat[value.size - 1].tobytes()
        if value.nbytes <= TOUCHED:
            np.asarray(value).tobytes()
    for _, child in members(value) if not isinstance(value, FrozenDict) else ():
        touch(child)


@generated(documents(LAYOUT.schema.decode()), times=10, may_crash=True)
def test_a_damaged_document_gives_a_value_or_an_error(document):
    read_damaged(document)


@generated(st.data(), times=20, may_crash=True)
def test_damaged_nodes_of_each_kind_give_a_value_or_an_error(data):
    """As above, but every example damages one small node, so that each of them is damaged in many ways."""
    document = json.loads(LAYOUT.schema)
    index = data.draw(st.integers(0, len(document["value"][2]) - 1))
    key, node = document["value"][1][index], document["value"][2][index]
    small = {"value": ["dict", [key], [node]]}
    if key == "pickled" or data.draw(st.booleans()):
        small = {"value": node}
    read_damaged(data.draw(documents(json.dumps(small))))


@generated(
    st.lists(st.tuples(st.integers(0, len(LAYOUT.schema) - 1), st.integers(0, 255)), min_size=1, max_size=4), times=10
)
def test_flipped_bytes_give_a_value_or_an_error(flips):
    damaged = bytearray(LAYOUT.schema)
    for place, byte in flips:
        damaged[place] = byte
    read_damaged(bytes(damaged))


# -- what was found, as plain tests


def test_patches_beside_an_empty_container():
    """An empty one begins at the same leaf as what comes after it."""
    with untorn.publish({"empty": [], "n": 1, "m": 2}) as publisher:
        publisher.patch({"empty": [7], "n": 8})
        assert publisher.subscriber().snapshot().value == {"empty": [7], "n": 8, "m": 2}


@pytest.mark.parametrize(
    "array",
    [np.zeros(10)[::2], np.zeros(3)[::-1], np.zeros((3, 1, 2))[:, ::-1, ::-1], np.broadcast_to([1.0, 2], (2, 1, 1, 2))],
)
def test_an_edit_beside_an_array_that_was_not_contiguous(array):
    with untorn.publish({"a": array, "n": 1}) as publisher:
        with publisher.edit(leaves=["n"]) as tree:
            tree["n"] = 2
        assert publisher.subscriber().snapshot().value["n"] == 2


def test_a_structured_scalar_of_an_edit_is_not_the_slot():
    scalar = np.zeros(1, [("a", "i8"), ("b", "f8")])[0]
    with untorn.publish({"s": scalar, "n": 1}) as publisher:
        with publisher.edit() as tree:
            kept = tree["s"]
        with contextlib.suppress(ValueError):
            kept["a"] = 99
        assert publisher.subscriber().snapshot().value["s"] == scalar
        with publisher.edit() as tree:
            tree["moved"] = [1.0, tree.pop("s")]
        assert publisher.subscriber().snapshot().value["moved"][1] == scalar


def test_a_scalar_that_would_be_an_object_is_a_format_error():
    def read():
        with pytest.raises(FormatError):
            Decoder(b'{"value":["numpy",0,"|O"]}', 512).value(b"A" * 512)

    run_in_child(read)
