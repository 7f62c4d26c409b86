"""Values go into bytes and come back equal, and damaged bytes are an error and no crash."""

import contextlib
import json
import math
from collections import OrderedDict
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import hypothesis.extra.numpy as hnp
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import untorn
from untorn import _core
from untorn.errors import FormatError
from untorn.share.decoder import Decoder
from untorn.share.layout import Layout
from untorn.share.specs import flatten

QUICK = settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))


class Pair(NamedTuple):
    left: Any
    right: Any


class Outer:
    class Inner(NamedTuple):
        x: Any


@dataclass(frozen=True)
class Layer:
    w: Any
    b: Any = None
    made: list = field(default_factory=list, compare=False)

    def __post_init__(self):
        self.made.append("by __init__")


def write(value, extra=None):
    """A slot with this value, as the publisher writes it: (layout, bytes)."""
    (spec, leaves), more = flatten(value), None
    if extra is not None:
        more, extra_leaves = flatten(extra)
        leaves += extra_leaves
    layout = Layout(spec, more)
    slot = bytearray(b"\xa5" * layout.nbytes)
    for index, leaf in enumerate(leaves):
        layout.write_leaf(slot, index, leaf)
    layout.write_schema(slot)
    return layout, slot


def round_trip(value):
    layout, slot = write(value)
    return Decoder(layout.schema, layout.nbytes).value(bytes(slot))


def assert_same(one, other):
    """Equal in value, type and structure; NaN equals itself."""
    assert type(one) is type(other), (one, other)
    if isinstance(one, np.ndarray):
        assert one.dtype == other.dtype and one.shape == other.shape
        for a, b in zip(_fields(one), _fields(other), strict=True):  # gaps between fields have no value
            assert np.ascontiguousarray(a).tobytes() == np.ascontiguousarray(b).tobytes()
    elif isinstance(one, np.generic):
        assert one.dtype == other.dtype and one.tobytes() == other.tobytes()
    elif isinstance(one, dict):
        assert [(type(key), key) for key in one] == [(type(key), key) for key in other]
        for key in one:
            assert_same(one[key], other[key])
    elif isinstance(one, list | tuple):
        assert len(one) == len(other)
        for a, b in zip(one, other, strict=True):
            assert_same(a, b)
    elif isinstance(one, Layer):
        assert_same((one.w, one.b, one.made), (other.w, other.b, other.made))
    elif isinstance(one, complex):
        assert repr(one) == repr(other)
    elif isinstance(one, float):
        assert one == other or (math.isnan(one) and math.isnan(other))
        assert math.copysign(1, one) == math.copysign(1, other)
    else:
        assert one == other


def _fields(array):
    if array.dtype.fields is None:
        return [array]
    return [part for name in array.dtype.names for part in _fields(array[name])]


plain_dtypes = st.one_of(
    hnp.boolean_dtypes(),
    hnp.integer_dtypes(endianness="?"),
    hnp.unsigned_integer_dtypes(endianness="?"),
    hnp.floating_dtypes(endianness="?"),
    hnp.complex_number_dtypes(endianness="?"),
    hnp.byte_string_dtypes(endianness="?", min_len=1, max_len=9),
    hnp.unicode_string_dtypes(endianness="?", min_len=1, max_len=5),
    hnp.datetime64_dtypes(endianness="?"),
    hnp.timedelta64_dtypes(endianness="?"),
)
dtypes = st.one_of(plain_dtypes, hnp.array_dtypes(plain_dtypes), hnp.nested_dtypes(plain_dtypes, max_itemsize=200))


@st.composite
def arrays(draw):
    """Arrays of any dtype and layout; the bytes are random."""
    dtype = draw(dtypes)
    shape = draw(hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=5))
    nbytes = dtype.itemsize * math.prod(shape)
    raw = np.random.default_rng(draw(st.integers(0, 2**32))).integers(0, 256, nbytes, np.uint8)
    if dtype.kind in "bU" or dtype.fields or dtype.subdtype:
        raw[:] = 0  # random bytes are no booleans and no characters
    array = np.ndarray(shape, dtype, raw)
    how = draw(st.sampled_from(["C", "F", "reversed", "stepped", "transposed", "broadcast"]))
    if how == "F":
        return np.asfortranarray(array) if array.ndim else array
    if how == "reversed":
        return array[(slice(None, None, -1),) * array.ndim] if array.ndim else array
    if how == "stepped":
        return array[..., ::2] if array.ndim else array
    if how == "transposed":
        return array.transpose(draw(st.permutations(range(array.ndim))))
    if how == "broadcast":
        return np.broadcast_to(array, (2, *array.shape))
    return array


scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.integers(-(2**200), 2**200),
    st.sampled_from([2**63 - 1, 2**63, -(2**63), -(2**63) - 1, 2**64, 0, -1]),
    st.floats(),
    st.complex_numbers(),
    st.text(st.characters()),  # lone surrogates too
    st.binary(),
    hnp.arrays(st.one_of(hnp.scalar_dtypes()), ()).map(lambda array: array[()]),
)
keys = st.one_of(
    st.text(),
    st.integers(),
    st.floats(allow_nan=False),
    st.booleans(),
    st.binary(),
    st.none(),
    st.tuples(st.text(), st.integers(), st.none(), st.booleans()),
)
trees = st.recursive(
    st.one_of(scalars, arrays()),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.lists(inner, max_size=3).map(tuple),
        st.dictionaries(keys, inner, max_size=3),
        st.dictionaries(keys, inner, max_size=3).map(OrderedDict),
        st.tuples(inner, inner).map(lambda pair: Pair(*pair)),
        st.tuples(inner, inner).map(lambda pair: Layer(*pair)),
    ),
    max_leaves=8,
)


@QUICK
@given(arrays())
def test_arrays_of_every_dtype_and_layout(array):
    assert_same(round_trip(array), array)


@QUICK
@given(scalars)
def test_every_scalar(value):
    assert_same(round_trip(value), value)


@pytest.mark.parametrize("text", [np.bytes_(b"a\0"), np.bytes_(b"\0b\0\0"), np.str_("\xfc\0"), np.str_("\ud800\0")])
def test_texts_of_numpy_keep_zeros_at_their_end(text):
    frozen = untorn.FrozenDict({"a": text, "b": [text]})
    found = [round_trip(text), *round_trip([text]), *round_trip({text}), frozen["a"], *frozen["b"]]
    if isinstance(text, str):
        found += round_trip({text: 1})
    assert [(type(one), len(one), one.tobytes()) for one in found] == [(type(text), len(text), text.tobytes())] * len(
        found
    )


@pytest.mark.skipif(not hasattr(np.dtypes, "StringDType"), reason="NumPy 1 has no such dtype")
def test_texts_that_lie_outside_their_array_are_refused():
    with pytest.raises(untorn.UnsupportedTypeError, match=r"a: an array of dtype StringDType.*\.astype\(np\.str_\)"):
        write({"a": np.array(["text"], np.dtypes.StringDType())})


@QUICK
@given(trees)
def test_trees(value):
    assert_same(round_trip(value), value)


@pytest.mark.parametrize(
    "dtype",
    [
        *np.typecodes["AllInteger"],
        *np.typecodes["Float"],
        *np.typecodes["Complex"],
        *("?", "S3", "U2", "V5", "M8[ns]", "M8[3D]", "m8[us]", "M8"),
        [("a", "<i4"), ("b", ">f8", (2, 3))],
        [(("title", "name"), "i2")],
        {"names": ["x", "y"], "formats": ["i1", "f8"], "offsets": [0, 16], "itemsize": 32},
    ],
)
def test_each_dtype_by_name(dtype):
    array = np.zeros(3, dtype)
    back = round_trip({"a": array, "s": array[0]})
    assert back["a"].dtype == array.dtype
    assert_same(back["a"], array)
    assert back["s"] == array[0] or np.isnat(array[0])


def test_metadata_of_a_dtype_is_left_behind_without_a_warning():
    array = np.zeros(3, np.dtype("f8", metadata={"unit": "m"}))
    back = round_trip({"a": array, "s": array[0], "f": untorn.FrozenDict({"a": array})})
    assert back["a"].dtype == back["f"]["a"].dtype == "f8" and back["a"].dtype.metadata is None


def test_arrays_are_aligned_views_without_a_copy():
    layout, slot = write({"pad": "x", "a": np.arange(5, dtype="i1"), "b": np.arange(6.0).reshape(2, 3)})
    value = Decoder(layout.schema, layout.nbytes).value(slot)
    whole = np.frombuffer(slot, np.uint8)
    assert np.may_share_memory(value["a"], whole) and np.may_share_memory(value["b"], whole)
    assert [offset % 64 for spec, offset in layout.leaves if spec.kind == "array"] == [0, 0]
    assert layout.payload % 64 == 0 and layout.nbytes % 64 == 0


def test_layout_of_arrays_keeps_fortran_order():
    back = round_trip(np.asfortranarray(np.arange(12.0).reshape(3, 4)))
    assert back.flags.f_contiguous and not back.flags.c_contiguous


@pytest.mark.parametrize(
    "change",
    [
        lambda a: a,
        lambda a: a[::-1],
        np.asfortranarray,
        lambda a: a.astype(">f4"),
        lambda a: a.view(np.uint32),
        lambda a: a.view("M8[s]")[:, ::2],
        lambda a: a.view([("x", "f4"), ("y", "f4")]),
    ],
)
def test_large_arrays_of_each_layout(change):
    array = change(np.arange(300 * 200, dtype=np.float32).reshape(300, 200))
    assert array.nbytes >= 100_000
    layout = Layout(flatten(array)[0])
    slot = bytearray(layout.nbytes)
    layout.write_leaf(slot, 0, array)
    written = layout.array(slot, 0)
    assert written.dtype == array.dtype
    assert written.tobytes() == array.tobytes()


def test_a_dataclass_comes_back_without_its_init():
    layer = Layer(1, 2)
    back = round_trip(layer)
    assert back == layer and back.made == ["by __init__"]


def test_a_nested_class_is_found_again():
    assert round_trip(Outer.Inner(3)) == Outer.Inner(3)


def test_extra_lies_beside_the_value():
    layout, slot = write({"w": np.ones(3)}, {"momentum": np.full(3, 2.0), "step": 7})
    decoder = Decoder(layout.schema, layout.nbytes)
    assert decoder.extra(slot)["step"] == 7
    assert decoder.extra(slot)["momentum"].tolist() == [2, 2, 2]
    assert Decoder(*[write(1)[0].schema, 4096]).extra(bytes(4096)) is None


def test_ranges_join_neighbours():
    layout, _ = write([np.zeros(3), 1, np.zeros(()), "ab"])
    start, end = layout.leaf_range(3)
    assert end - start == 2
    first = layout.leaf_range(0)[0]
    assert list(layout.ranges([0, 1, 3])) == [(first, layout.leaf_range(1)[1]), (start, end)]
    assert list(layout.ranges([])) == []
    assert list(layout.ranges(range(4))) == [(first, end)]


@pytest.mark.parametrize(
    "document",
    [
        b"",
        b"\xff\xfe",
        b"[]",
        b"{}",
        b"null",
        b'{"value":[]}',
        b'{"value":["array"]}',
        b'{"value":["unheard-of",0]}',
        b'{"value":["array",0,"|O",[1],null]}',
        b'{"value":["array",0,"<f8",[1000],null]}',
        b'{"value":["array",-64,"<f8",[1],null]}',
        b'{"value":["array",0,"<f8",[-1],null]}',
        b'{"value":["array",0,"<f8",[2,2],[8]]}',
        b'{"value":["array",0,"<f8",[2],[-8]]}',
        b'{"value":["array",0,"<f8",[2],[100000]]}',
        b'{"value":["array",0,"<f8",[4611686018427387904,4611686018427387904],null]}',
        b'{"value":["str",0,100000]}',
        b'{"value":["bytes",0,-8]}',
        b'{"value":["int",1000000]}',
        b'{"value":["dict",["a"],[]]}',
        b'{"value":["dict",[["eval","1"]],[["none",0]]]}',
        b'{"value":["namedtuple",["os","system",["x"]],[["none",0]]]}',
        b'{"value":["namedtuple",["builtins","tuple",["x"]],[["none",0]]]}',
        b'{"value":["dataclass",["collections","OrderedDict",[]],[]]}',
        b'{"value":["dataclass",["no.such.module","X",[]],[]]}',
        b'{"value":' + b'["list",1,[' * 5000 + b"]]" * 5000 + b"}",
    ],
)
def test_a_schema_that_is_none_is_a_format_error(document):
    with pytest.raises(FormatError):
        Decoder(document, 512).value(bytes(512))


@pytest.mark.parametrize(
    "document",
    [
        b'{"value":["array",0,"<f8",[0,9223372036854775807,9223372036854775807],null]}',
        b'{"value":["array",0,"<f8",[0,99999999999999999999999],null]}',
        b'{"value":["array",0,"<f8",[' + b"1," * 70 + b"1],null]}",
        b'{"value":["array",0,"<f8",[0],[99999999999999999999999]]}',
        b'{"value":["str",0,4]}',
    ],
)
def test_a_shape_that_no_array_can_have_is_a_format_error(document):
    with pytest.raises(FormatError):
        Decoder(document, 512).value(b"\xff" * 512)


@QUICK
@given(trees, st.data())
def test_flipped_bytes_in_a_schema_give_a_value_or_a_format_error(value, data):
    layout, slot = write(value)
    damaged = bytearray(layout.schema)
    for _ in range(data.draw(st.integers(1, 3))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    with contextlib.suppress(FormatError):
        Decoder(bytes(damaged), layout.nbytes).value(bytes(slot))


def test_a_schema_is_json_and_names_its_parts():
    layout, _ = write({"w": np.zeros((2, 3), "f4"), "n": 1})
    assert json.loads(layout.schema) == {
        "value": ["dict", ["w", "n"], [["array", 0, "<f4", [2, 3], None], ["int", 24]]]
    }


def test_copy_refuses_what_does_not_fit():
    target = bytearray(4)
    for offset, source in ((-1, b"x"), (4, b"x"), (0, b"12345"), (2**62, b"x")):
        with pytest.raises(ValueError, match="does not fit"):
            _core.copy(target, offset, source)
    _core.copy(target, 4, b"")
    _core.copy(target, 1, b"ab")
    assert target == b"\0ab\0"


def test_copy_of_one_part_of_much():
    source = np.random.default_rng(0).bytes(3000)
    for offset, first in ((0, 0), (1, 0), (64, 5), (77, 1000)):
        target = bytearray(4000)
        _core.copy(target, offset, source[first:], 2**62)
        assert target == bytes(offset) + source[first:] + bytes(4000 - offset - len(source) + first)
