"""The kinds of values that can be shared, for test_values.py, which runs one suite over all of them.

A new kind needs a function that makes a value and one that compares two values; the rest has defaults. A library is
imported inside the functions of its kinds, so that a child process loads only the library of its kind.
"""

from __future__ import annotations

import argparse
import array
import contextlib
import dataclasses
import datetime as dt
import decimal
import enum
import fractions
import importlib.util
import math
import pathlib
import types
import uuid
import zoneinfo
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

SMALL, LARGE = 12, 500
#: these start threads when they are loaded, so they stay out of processes that fork
THREADED = frozenset({"pandas", "polars", "pyarrow", "torch", "jax"})


def nothing(_: Any) -> list[int]:
    """Return the views of a value that is a copy: none."""
    return []


def whole(value: Any) -> Any:
    """Return the part of a value that has no parts: None."""
    return value


@dataclasses.dataclass(frozen=True)
class Kind:
    """One kind of value.

    Attributes:
        name: the name of the kind in test ids.
        build: (rng, n) -> a value whose structure depends only on n, and whose data depends on ``rng``.
        equal: returns whether two values have the same type, structure and data.
        views: returns the addresses of the non-empty memory that must not be a copy.
        write: tries to change the value in place.
        refuses: whether ``write`` must raise; otherwise it may change this reader's own copy.
        part: returns a part of the value that shares its memory and outlives it.
        same_part: returns whether two parts are equal.
        larger: (rng) -> a value of another structure; by default a larger one.
        needs: the libraries that the kind needs.
        allow_pickle: whether values of the kind are pickled.
    """

    name: str
    build: Callable[[np.random.Generator, int], Any]
    equal: Callable[[Any, Any], bool]
    views: Callable[[Any], list[int]] = nothing
    write: Callable[[Any], None] | None = None
    refuses: bool = True
    part: Callable[[Any], Any] = whole
    same_part: Callable[[Any, Any], bool] | None = None
    larger: Callable[[np.random.Generator], Any] | None = None
    needs: tuple[str, ...] = ()
    allow_pickle: bool = False

    @property
    def threaded(self) -> bool:
        """Whether a process that forks must not load it."""
        return bool(THREADED.intersection(self.needs))

    def missing(self) -> str:
        """The first of its libraries that is not installed."""
        return next((name for name in self.needs if importlib.util.find_spec(name) is None), "")

    def make(self, rng: np.random.Generator) -> Any:
        """Return a value."""
        return self.build(rng, SMALL)

    other = make  # the generator has advanced, so this is another value of the same structure

    def bigger(self, rng: np.random.Generator) -> Any:
        """Return a value of another structure."""
        return self.larger(rng) if self.larger else self.build(rng, LARGE)

    def parts_equal(self, one: Any, other: Any) -> bool:
        """Return whether these parts are equal."""
        return (self.same_part or self.equal)(one, other)


# -- native values


class Pair(NamedTuple):
    """A named tuple."""

    left: Any
    right: Any


@dataclasses.dataclass
class Box:
    """A dataclass."""

    content: Any
    label: str = "box"


@dataclasses.dataclass(frozen=True, slots=True)
class Sealed:
    """A dataclass that is frozen and has slots."""

    content: Any


class Model:
    """An object of a type that cannot be shared."""

    def __init__(self, weights: Any, names: set[str]) -> None:
        self.weights = weights
        self.names = names


def same(one: Any, other: Any) -> bool:
    """Return whether two native values have exactly the same type, and the same bits or contents."""
    if type(one) is not type(other):
        return False
    if isinstance(one, np.ndarray | np.generic):
        return same_array(one, other)
    if isinstance(one, dict):
        return [(type(key), key) for key in one] == [(type(key), key) for key in other] and all_same(
            one.values(), other.values()
        )
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all_same(one, other)
    if dataclasses.is_dataclass(one):
        return all_same(members(one), members(other))
    if isinstance(one, Model):
        return same(one.weights, other.weights) and one.names == other.names
    if isinstance(one, float):
        return one.hex() == other.hex()
    return one == other and repr(one) == repr(other)


def all_same(some: Iterable[Any], others: Iterable[Any]) -> bool:
    """Return whether the values of two containers are equal, one by one."""
    return all(same(one, other) for one, other in zip(some, others, strict=True))


def members(box: Any) -> list[Any]:
    """Return the values of the fields of a dataclass."""
    return [getattr(box, field.name) for field in dataclasses.fields(box)]


def same_array(one: Any, other: Any) -> bool:
    """Compare dtype, shape and bits, without the gaps between fields."""
    if one.dtype != other.dtype or one.shape != other.shape:
        return False
    return all(map(same_bits, plain_fields(one), plain_fields(other)))


def same_bits(one: Any, other: Any) -> bool:
    """Compare all bits, except those of a long double that are padding."""
    if one.dtype.char in "gG":
        return np.array_equal(one, other, equal_nan=True) and bool(
            (np.signbit(one.real) == np.signbit(other.real)).all()
        )
    return np.ascontiguousarray(one).tobytes() == np.ascontiguousarray(other).tobytes()


def plain_fields(array: Any) -> list[Any]:
    """Yield the arrays of an array's fields, and of their fields."""
    if array.dtype.names is None:
        return [array]
    return [part for name in array.dtype.names for part in plain_fields(array[name])]


def array_views(*arrays: Any) -> list[int]:
    """Return the addresses of arrays with elements."""
    return [array.__array_interface__["data"][0] for array in arrays if array.size]


def tree_views(value: Any) -> list[int]:
    """Return the addresses of the arrays of a tree."""
    if isinstance(value, np.ndarray):
        return array_views(value)
    if isinstance(value, dict):
        value = value.values()
    elif dataclasses.is_dataclass(value):
        value = members(value)
    elif not isinstance(value, list | tuple):
        return []
    return [address for member in value for address in tree_views(member)]


def filled(rng: np.random.Generator, dtype: Any, shape: Sequence[int]) -> np.ndarray:
    """Return an array of this dtype with random elements."""
    made = np.zeros(shape, dtype)
    if made.dtype.names is not None:
        for name in made.dtype.names:
            made[name] = filled(rng, made.dtype[name].base, made[name].shape)
        return made
    if made.dtype.kind == "V":
        return np.frombuffer(rng.bytes(made.nbytes), made.dtype).reshape(shape).copy()
    numbers = rng.integers(0, 100, made.shape)
    if made.dtype.kind in "fc":
        made[...] = rng.standard_normal(made.shape) + (1j * numbers if made.dtype.kind == "c" else 0)
    elif made.dtype.kind == "m":
        made[...] = numbers.astype(made.dtype)
    elif made.dtype.kind == "M":
        made[...] = numbers.astype("i8").view("M8[D]").astype(made.dtype)
    elif made.dtype.kind == "b":
        made[...] = numbers % 2 == 0
    else:
        made[...] = numbers.astype(made.dtype)
    return made


def array_kind(name: str, dtype: Any, shape: Callable[[int], tuple[int, ...]], layout: Callable = whole) -> Kind:
    """Return a kind of array, from its dtype, its shape for n, and a function that changes its layout."""
    return Kind(
        f"array {name}",
        lambda rng, n: layout(filled(rng, dtype, shape(n))),
        same,
        array_views,
        lambda array: array.__setitem__(..., np.zeros((), array.dtype)),
        part=lambda array: array[1:3] if array.ndim else array,
    )


PADDED = {"names": ["x", "y"], "formats": ["i1", "f8"], "offsets": [0, 16], "itemsize": 32}
RECORD = [("a", "<i4"), ("b", ">f8", (2,)), ("text", "U3"), ("at", "M8[s]"), ("inner", [("c", "c8"), ("d", "?")])]
DTYPES = (
    *("?", "i1", "<u2", ">i4", "<i8", "u8", "f2", "<f4", ">f8", "f8", "g", "F", ">D", "G"),
    *("S5", "<U4", ">U3", "M8[ns]", "M8[D]", "<m8[us]", "V6"),
)
LAYOUTS = {
    "Fortran": (lambda n: (n, 3), np.asfortranarray),
    "transposed": (lambda n: (2, n, 3), lambda array: array.transpose(1, 2, 0)),
    "without axes": (lambda n: (), whole),
    "one element": (lambda n: (1, 1, n // n), whole),
    "empty": (lambda n: (n, 0), whole),
    "backwards": (lambda n: (n, 3), lambda array: array[::-1, ::-1]),
    "every third": (lambda n: (3 * n,), lambda array: array[::3]),
    "broadcast": (lambda n: (n,), lambda array: np.broadcast_to(array, (4, *array.shape))),
    "four axes": (lambda n: (2, n, 1, 3), whole),
    "large": (lambda n: (n, 10_000), whole),
}


def arrays() -> list[Kind]:
    """Return the kinds of NumPy's arrays, for each dtype and each layout."""
    kinds = [array_kind(dtype, dtype, lambda n: (n, 2)) for dtype in DTYPES]
    kinds += [array_kind("structured", RECORD, lambda n: (n,)), array_kind("padded", PADDED, lambda n: (n,))]
    kinds += [array_kind(name, "f8", shape, layout) for name, (shape, layout) in LAYOUTS.items()]
    return [dataclasses.replace(kind, larger=twice(kind)) if "axes" in kind.name else kind for kind in kinds]


def twice(kind: Kind) -> Callable[[np.random.Generator], Any]:
    """Return a value of another structure, for a kind with a single structure."""
    return lambda rng: [kind.build(rng, SMALL), kind.build(rng, SMALL)]


def scalar(name: str, build: Callable[[np.random.Generator, int], Any]) -> Kind:
    """Return a kind of value that is copied."""
    kind = Kind(name, build, same)
    return dataclasses.replace(kind, larger=twice(kind))


def numpy_scalar(dtype: Any) -> Kind:
    """Return a NumPy scalar of this dtype."""
    if not isinstance(dtype, list):
        return scalar(f"scalar {dtype}", lambda rng, n: filled(rng, dtype, (1,))[0])
    kind = scalar("scalar structured", lambda rng, n: filled(rng, dtype, (1,))[0])
    return dataclasses.replace(kind, write=lambda value: value.__setitem__("a", 101), refuses=False)


def scalars() -> list[Kind]:
    """Return the kinds of numbers, text and None, of NumPy and of Python."""
    return [
        *map(numpy_scalar, ("?", "i1", "<u4", "f2", "f8", "g", "F", "G", "S4", "U3", "M8[ms]", "m8[D]", "V6", RECORD)),
        scalar("int", lambda rng, n: int(rng.integers(-(2**62), 2**62))),
        scalar("bigint", lambda rng, n: -int(rng.integers(2**40, 2**62)) << 200),
        scalar("float", lambda rng, n: float(rng.standard_normal())),
        scalar("nan", lambda rng, n: math.nan),
        scalar("complex", lambda rng, n: complex(*rng.standard_normal(2))),
        scalar("bool", lambda rng, n: bool(rng.integers(2))),
        Kind("str", lambda rng, n: "".join(map(chr, rng.integers(0xE0, 0x17F, n))) + "\0\udc80", same),
        Kind("bytes", lambda rng, n: rng.bytes(n), same),
        scalar("None", lambda rng, n: None),
    ]


def tree(name: str, build: Callable[..., Any], write: Callable[[Any], None], part: Callable[[Any], Any]) -> Kind:
    """Return a kind of container with two arrays and a number."""
    return Kind(
        name,
        lambda rng, n: build(filled(rng, "f4", (n, 3)), filled(rng, "i8", (n,)), float(rng.standard_normal())),
        same,
        tree_views,
        write,
        part=part,
    )


KEYS = ("text", 7, 1.5, True, b"raw", None, ("a", 2, None))


def unusual_keys() -> tuple[Any, ...]:
    """Return keys that are plain values of Python's library or scalars of NumPy, and a tuple of such."""
    date, zone = dt.date(2026, 1, 2), zoneinfo.ZoneInfo("Europe/Paris")
    return (
        *(date, dt.datetime(2026, 10, 25, 2, 30, tzinfo=zone, fold=1), dt.time(3, 4, 5, 6), dt.timedelta(-1, 2, 3)),
        *(dt.timezone(dt.timedelta(hours=-3), "here"), zone, decimal.Decimal("1.00"), fractions.Fraction(1, 3)),
        *(uuid.UUID(int=2**100 + 1), pathlib.Path("/a/b"), pathlib.PureWindowsPath("c:/d")),
        *(Colour.AZURE, Level.HIGH, Access.READ | Access.WRITE),
        *(np.int64(3), np.float32(2.5), np.bool_(False), np.datetime64("2026-01-01", "ms"), np.str_("")),
        (Colour.RED, date, "a", np.uint8(3), None),
    )


def trees() -> list[Kind]:
    """Return the kinds of containers, and of nested containers."""
    return [
        tree(
            "dict",
            lambda w, b, x: {"w": w, "b": b, "x": x},
            lambda value: value["w"].fill(0),
            lambda value: value["b"],
        ),
        tree(
            "OrderedDict",
            lambda w, b, x: OrderedDict(x=x, w=w, b=b),
            lambda value: value["w"].fill(0),
            lambda value: value["w"][1:],
        ),
        tree(
            "keys of all kinds",
            lambda w, b, x: dict.fromkeys(KEYS, w) | {None: b, 7: x},
            lambda value: value[None].fill(0),
            lambda value: value["a", 2, None],
        ),
        tree(
            "keys that are plain values",
            lambda w, b, x: dict.fromkeys(unusual_keys(), b) | {Colour.RED: w, "x": OrderedDict({dt.date.max: x})},
            lambda value: value[Colour.RED].fill(0),
            lambda value: value[np.str_("")],
        ),
        tree("list", lambda w, b, x: [w, x, b, []], lambda value: value[0].fill(0), lambda value: value[2]),
        tree("tuple", lambda w, b, x: (w, x, b, ()), lambda value: value[0].fill(0), lambda value: value[2]),
        tree("named tuple", lambda w, b, x: Pair(w, (b, x)), lambda value: value.left.fill(0), lambda v: v.right[0]),
        tree("dataclass", lambda w, b, x: Box([w, b, x]), lambda v: v.content[0].fill(0), lambda v: v.content[1]),
        tree("frozen dataclass", lambda w, b, x: Sealed({"w": w, "b": b}), lambda v: v.content["w"].fill(0), whole),
        tree(
            "everything in everything",
            lambda w, b, x: {"a": [(w, {"b": Box(Pair(b, None))})], "c": Sealed([OrderedDict({3: (x, {}, "c")})])},
            lambda value: value["a"][0][0].fill(0),
            lambda value: value["a"][0][1]["b"].content.left,
        ),
    ]


# -- Python's plain values


class Colour(enum.Enum):
    """An enum, two of whose members are one."""

    RED = 1
    BLUE = "blue"
    AZURE = "blue"  # noqa: PIE796 (an alias)


class Level(enum.IntEnum):
    """An enum of ints."""

    LOW = 1
    HIGH = 2**40


class Access(enum.Flag):
    """A flag, whose combinations have no members."""

    READ = 1
    WRITE = 2


class Planet(Box, enum.Enum):
    """An enum of dataclasses."""

    EARTH = "a"
    MARS = "b"


def same_plain(one: Any, other: Any) -> bool:
    """Compare the types and the contents; the order of a set means nothing."""
    if type(one) is not type(other):
        return False
    if isinstance(one, set | frozenset):
        return one == other and {type(item) for item in one} == {type(item) for item in other}
    extra = ("default_factory", "maxlen", "fold", "typecode")
    return repr(one) == repr(other) and all(getattr(one, name, 0) == getattr(other, name, 0) for name in extra)


def plain() -> list[Kind]:
    """Return the kinds of plain values of Python's library."""
    zones = (None, dt.UTC, dt.timezone(dt.timedelta(hours=-3, minutes=-30), "here"), zoneinfo.ZoneInfo("Europe/Paris"))

    def moment(zone: dt.tzinfo | None) -> Callable[[np.random.Generator, int], Any]:
        return lambda rng, n: (
            dt.datetime(1, 1, 2, tzinfo=zone, fold=1) + dt.timedelta(microseconds=int(rng.integers(3 * 10**17)))
        )

    def ints(rng: np.random.Generator, n: int) -> list[int]:
        return rng.choice(10**6, n, replace=False).tolist()

    def words(rng: np.random.Generator, n: int) -> list[str]:
        return [f"word {number:06}\udc80" for number in ints(rng, n)]

    def kind(name: str, build: Callable[..., Any], write: Callable[[Any], None] | None = None) -> Kind:
        made = Kind(name, build, same_plain, write=write, refuses=False)
        return dataclasses.replace(made, larger=twice(made))

    return [
        *(kind(f"datetime {zone}", moment(zone)) for zone in zones),
        kind("date", lambda rng, n: dt.date.fromordinal(int(rng.integers(1, 3 * 10**6)))),
        kind("time", lambda rng, n: moment(None)(rng, n).timetz().replace(tzinfo=dt.UTC, fold=1)),
        kind("timedelta", lambda rng, n: dt.timedelta(int(rng.integers(-(10**9), 10**9) // 2), 7, 8)),
        kind("timezone", lambda rng, n: zones[1 + int(rng.integers(3))]),
        kind("Decimal", lambda rng, n: decimal.Decimal(int(rng.integers(2**40))) / 7),
        kind("Decimal sNaN", lambda rng, n: decimal.Decimal("-sNaN123")),
        kind("Fraction", lambda rng, n: fractions.Fraction(-int(rng.integers(2**40)), 2**90)),
        kind("UUID", lambda rng, n: uuid.UUID(bytes=rng.bytes(16))),
        kind("Enum", lambda rng, n: (Colour.RED, Colour.AZURE)[int(rng.integers(2))]),
        kind("IntEnum", lambda rng, n: Level.HIGH),
        kind("Flag", lambda rng, n: (Access.READ | Access.WRITE, Access(0), Access.READ)[int(rng.integers(3))]),
        kind("Enum of dataclasses", lambda rng, n: Planet.MARS),
        kind("Path", lambda rng, n: pathlib.Path("/a") / words(rng, 1)[0]),
        kind("PureWindowsPath", lambda rng, n: pathlib.PureWindowsPath("c:/a") / words(rng, 1)[0]),
        kind("range", lambda rng, n: range(int(rng.integers(100)), 2**70, 3)),
        kind("slice", lambda rng, n: slice(None, int(rng.integers(100)), None)),
        kind("set of ints", lambda rng, n: set(ints(rng, n)), lambda value: value.clear()),
        kind("set of texts", lambda rng, n: set(words(rng, n)), lambda value: value.clear()),
        kind("set of many types", lambda rng, n: {*ints(rng, n), "a", b"a", None, 2.5, ("a", 2), Colour.RED, 2**70}),
        kind("frozenset of bytes", lambda rng, n: frozenset({rng.bytes(3), rng.bytes(4), b""})),
        kind("frozenset of floats", lambda rng, n: frozenset(rng.standard_normal(n).tolist())),
        kind("empty set", lambda rng, n: set()),
        kind("set of sets", lambda rng, n: {frozenset(ints(rng, 2)), frozenset()}),
        kind("bytearray", lambda rng, n: bytearray(rng.bytes(n)), lambda value: value.clear()),
        kind("array.array", lambda rng, n: array.array("d", rng.standard_normal(n)), lambda value: value.pop()),
        kind("deque", lambda rng, n: deque([*words(rng, n), [1.5]], maxlen=n + 3), lambda value: value.clear()),
        kind("defaultdict", lambda rng, n: defaultdict(list, a=ints(rng, n)), lambda value: value["b"].append(1)),
        kind("Counter", lambda rng, n: Counter(words(rng, n)), lambda value: value.update(["x"])),
        kind("Counter of tuples", lambda rng, n: Counter([("a", number) for number in ints(rng, n)])),
        kind("Counter of large numbers", lambda rng, n: Counter({"a": 2**70, "b": int(rng.integers(9))})),
        kind("SimpleNamespace", lambda rng, n: types.SimpleNamespace(lr=float(rng.random()), names=["a"])),
        kind("Namespace", lambda rng, n: argparse.Namespace(lr=float(rng.random()), names=["a"])),
        Kind(
            "deque of arrays",
            lambda rng, n: deque([filled(rng, "f4", (n,))]),
            lambda one, other: type(one) is type(other) is deque and all_same(one, other),
            lambda value: array_views(*value),
            lambda value: value[0].fill(0),
            part=lambda value: value[0],
            same_part=same,
        ),
    ]


# -- NumPy's subclasses


def masked(rng: np.random.Generator, n: int) -> Any:
    """Return a masked array with its own fill value."""
    return np.ma.masked_array(filled(rng, "f8", (n, 2)), filled(rng, "?", (n, 2)), fill_value=-1.0)


def same_masked(one: Any, other: Any) -> bool:
    """Compare the data, also under the mask, the mask and the fill value."""
    return (
        type(one) is type(other) is np.ma.MaskedArray
        and same_array(one.data, other.data)
        and (one.mask is np.ma.nomask) == (other.mask is np.ma.nomask)
        and same_array(np.ma.getmaskarray(one), np.ma.getmaskarray(other))
        and same(one.fill_value, other.fill_value)
        and one.hardmask == other.hardmask
    )


def masked_views(value: Any) -> list[int]:
    """Return the addresses of data and mask."""
    return array_views(value.data, *(() if value.mask is np.ma.nomask else (value.mask,)))


def subclasses() -> list[Kind]:
    """Return the kinds of masked arrays, record arrays and matrices."""
    return [
        Kind(
            "masked array",
            masked,
            same_masked,
            masked_views,
            lambda value: value.__setitem__(slice(None), 0),
            part=lambda value: value[1:3],
        ),
        Kind(
            "masked array without a mask",
            lambda rng, n: np.ma.masked_array(filled(rng, "i4", (n,))),
            same_masked,
            masked_views,
            lambda value: value.data.fill(0),
            part=lambda value: value[1:3],
        ),
        Kind(
            "recarray",
            lambda rng, n: np.rec.array(filled(rng, RECORD, (n,))),
            same,
            array_views,
            lambda value: value.a.fill(0),
            part=lambda value: value.b,
        ),
        Kind(
            "matrix",
            lambda rng, n: filled(rng, "f8", (n, 2)).view(np.matrix),
            same,
            array_views,
            lambda value: value.fill(0),
            part=lambda value: value[1:3],
        ),
    ]


# -- scipy

FORMATS = ("csr", "csc", "bsr", "coo", "dia", "lil", "dok")


def sparse_kind(kind: str, container: str) -> Kind:
    """Return the kind of one format of sparse matrix. LIL and DOK consist of Python objects, and are copies."""
    name = f"{kind}_{container}"

    def build(rng: np.random.Generator, n: int) -> Any:
        from scipy import sparse

        dense = np.zeros((n, 6))
        dense[np.arange(n), np.arange(n) * 5 % 6] = rng.standard_normal(n)
        return getattr(sparse, name)(dense)

    def equal(one: Any, other: Any) -> bool:
        if type(one) is not type(other) or one.shape != other.shape or one.nnz != other.nnz:
            return False
        return same(one.toarray(), other.toarray()) and all_same(sparse_parts(one), sparse_parts(other))

    return Kind(
        f"scipy {name}",
        build,
        equal,
        lambda value: array_views(*sparse_parts(value)),
        lambda value: value.__setitem__((0, 0), 9.0) if kind in ("lil", "dok") else value.data.fill(0),
        refuses=kind not in ("lil", "dok"),
        part=lambda value: value.data if sparse_parts(value) else value,
        same_part=same if kind not in ("lil", "dok") else equal,
        larger=lambda rng: build(rng, 2 * SMALL),
        needs=("scipy",),
    )


def sparse_parts(value: Any) -> list[Any]:
    """Return the arrays of a sparse matrix."""
    names = {"csr": ("data", "indices", "indptr"), "coo": ("data",), "dia": ("data", "offsets"), "lil": (), "dok": ()}
    found = [getattr(value, name) for name in names.get(value.format, names["csr"])]
    return found + list(value.coords) if value.format == "coo" else found


def sparse() -> list[Kind]:
    """Return the kinds of every format of scipy.sparse, as array and as matrix."""
    return [sparse_kind(kind, container) for kind in FORMATS for container in ("array", "matrix")]


# -- FrozenDict


def frozen_kind() -> Kind:
    """Return the kind of FrozenDict, a dictionary whose lookups read shared memory."""

    def build(rng: np.random.Generator, n: int) -> Any:
        from untorn.share.frozen_dict import FrozenDict

        numbers = {f"key {index}": int(rng.integers(2**40)) for index in range(n)}
        return FrozenDict({"array": filled(rng, "f4", (n, 2)), **numbers, 7: b"raw", b"tree": [None, {"x": 1.5}]})

    return Kind(
        "FrozenDict",
        build,
        lambda one, other: same(dict(one.items()), dict(other.items())),
        lambda value: array_views(value["array"]),
        lambda value: value["array"].fill(0),
        part=lambda value: value["array"],
        same_part=same,
    )


# -- Arrow


def arrow_columns(rng: np.random.Generator, n: int) -> dict[str, Any]:
    """Return columns of many types, some with nulls."""
    import pyarrow as pa

    numbers, hole = rng.integers(0, 100, n), np.arange(n) % 3 == 1
    words = [f"word number {number:03}" for number in numbers]
    return {
        "float": pa.array(rng.standard_normal(n)),
        "int": pa.array(numbers.astype("i4"), mask=hole),
        "bool": pa.array(numbers % 2 == 0),
        "text": pa.array(words, mask=hole),
        "large text": pa.array(words, pa.large_string()),
        "view": pa.array(words, pa.string_view()),
        "time": pa.array(numbers.astype("M8[us]")),
        "list": pa.array([[number, 1] for number in numbers.tolist()]),
        "struct": pa.array([{"a": number, "b": str(number % 10)} for number in numbers.tolist()]),
        "category": pa.array([str(index % 4) for index in range(n)]).dictionary_encode(),
        "null": pa.nulls(n),
    }


def arrow_views(value: Any) -> list[int]:
    """Return the buffers of an array, a chunked array, a batch or a table, without those of dictionaries."""
    if hasattr(value, "columns"):
        return [address for column in value.columns for address in arrow_views(column)]
    if hasattr(value, "chunks"):
        return [address for chunk in value.chunks for address in arrow_views(chunk)]
    return [buffer.address for buffer in value.buffers() if buffer is not None and buffer.size]


def arrow_kind(name: str, build: Callable[[np.random.Generator, int], Any], part: Callable[[Any], Any]) -> Kind:
    """Return a kind of Arrow value, which is immutable."""
    return Kind(
        f"pyarrow {name}",
        build,
        lambda one, other: one.equals(other) and str(schema_of(one)) == str(schema_of(other)),
        arrow_views,
        part=part,
        needs=("pyarrow",),
    )


def schema_of(value: Any) -> Any:
    """Return the schema of a table or batch with its metadata, or the type of an array."""
    return value.schema.to_string(show_schema_metadata=True) if hasattr(value, "schema") else value.type


def arrow() -> list[Kind]:
    """Return the kinds of tables, record batches, arrays and chunked arrays, and slices of them."""

    def module() -> Any:
        import pyarrow

        return pyarrow

    def table(rng: np.random.Generator, n: int) -> Any:
        return module().table(arrow_columns(rng, n)).replace_schema_metadata({"made": "here"})

    return [
        arrow_kind("Table", table, lambda value: value.column("text")),
        arrow_kind(
            "Table of several chunks",
            lambda rng, n: module().concat_tables([table(rng, n), table(rng, 2 * n)]),
            lambda value: value.slice(5, 20),
        ),
        arrow_kind("Table without rows", lambda rng, n: table(rng, n).slice(0, 0), whole),
        arrow_kind("slice of a Table", lambda rng, n: table(rng, 4 * n).slice(n + 1, n), lambda value: value["int"]),
        arrow_kind(
            "RecordBatch",
            lambda rng, n: module().RecordBatch.from_pydict(arrow_columns(rng, n)),
            lambda value: value.column(3),
        ),
        arrow_kind("Array of numbers", lambda rng, n: arrow_columns(rng, n)["int"], lambda value: value.slice(2, 3)),
        arrow_kind("Array of text", lambda rng, n: arrow_columns(rng, n)["text"], lambda value: value.slice(2, 3)),
        arrow_kind(
            "DictionaryArray", lambda rng, n: arrow_columns(rng, n)["category"], lambda value: value.slice(2, 3)
        ),
        arrow_kind(
            "ChunkedArray",
            lambda rng, n: module().chunked_array([arrow_columns(rng, n)["list"] for _ in range(3)]),
            lambda value: value.slice(2, 20),
        ),
    ]


# -- pandas


def pandas_columns(rng: np.random.Generator, n: int) -> dict[str, Any]:
    """Return columns of many dtypes."""
    import pandas as pd

    numbers, hole = rng.integers(0, 100, n), np.arange(n) % 3 == 1
    words = [f"word number {number:03}" for number in numbers]
    return {
        "float": rng.standard_normal(n),
        "int": numbers.astype("i2"),
        "bool": numbers % 2 == 0,
        "text": pd.array(words, dtype="str"),
        "string": pd.array(np.where(hole, None, words), dtype="string"),
        "objects": np.where(hole, None, np.array(words, object)),
        "time": pd.array(numbers.astype("M8[us]")),
        "zone": pd.array(numbers.astype("M8[ns]")).tz_localize("Europe/Paris"),
        "duration": pd.array(numbers.astype("m8[s]")),
        "period": pd.array(pd.PeriodIndex.from_ordinals(numbers, freq="M")),
        "category": pd.Categorical.from_codes(numbers % 4, list("abcd"), ordered=True),
        "nullable": pd.arrays.IntegerArray(numbers.astype("i8"), hole),
        "sparse": pd.arrays.SparseArray(np.arange(n) % 5 == 0),
        "interval": pd.arrays.IntervalArray.from_breaks(np.arange(n + 1.0)),
    }


def same_pandas(one: Any, other: Any) -> bool:
    """Compare dtypes, labels, names, frequencies and values exactly."""
    from pandas import testing

    kind = "frame" if hasattr(one, "columns") else "series" if hasattr(one, "index") else "index"
    exact = {"exact": True} if kind == "index" else {"check_exact": True, "check_freq": True}
    try:
        getattr(testing, f"assert_{kind}_equal")(one, other, **exact)
    except AssertionError:
        return False
    return kind == "index" or (one.attrs == other.attrs and one.flags == other.flags)


def write_frame(frame: Any) -> None:
    """Write in place, and by assignment as in pandas."""
    frame.loc[frame.index[0], "float"] = 9.0
    frame.insert(0, "more", 1)


def numbers_views(frame: Any) -> list[int]:
    """Return the addresses of the columns of plain numbers."""
    names = [name for name in ("float", "int", "bool", "time", "duration") if name in frame.columns]
    return array_views(*(frame[name].to_numpy(copy=False) for name in names))


def pandas() -> list[Kind]:
    """Return the kinds of frames of one dtype and of many, series and indexes."""

    def module() -> Any:
        import pandas

        return pandas

    def kind(name: str, build: Callable[..., Any], views: Callable = nothing, **more: Any) -> Kind:
        return Kind(f"pandas {name}", build, same_pandas, views, refuses=False, needs=("pandas",), **more)

    def mixed(rng: np.random.Generator, n: int) -> Any:
        made = module().DataFrame(
            pandas_columns(rng, n), index=module().Index([f"row {i}" for i in range(n)], name="i")
        )
        made.attrs["unit"] = "m"
        return made

    def column(name: str) -> Callable[[np.random.Generator, int], Any]:
        return lambda rng, n: module().Series(pandas_columns(rng, n)[name], name=name)

    def plain(value: Any) -> list[int]:
        return array_views(value.to_numpy(copy=False))

    series = [
        kind(
            f"Series of {name}",
            column(name),
            plain if name in ("float", "int", "bool", "time", "duration") else nothing,
            write=lambda value: value.__setitem__(0, value[1]),
            part=lambda value: value.iloc[1:3],
        )
        for name in ("float", "int", "bool", "text", "string", "objects", "time", "zone", "duration", "period")
    ]
    series += [
        kind(f"Series of {name}", column(name), write=lambda value: value.__setitem__(0, value[1]))
        for name in ("category", "nullable", "sparse", "interval")
    ]
    return [
        kind(
            "DataFrame of one dtype",
            lambda rng, n: module().DataFrame(rng.standard_normal((n, 3)), columns=["float", "b", "c"]),
            lambda value: array_views(value.to_numpy(copy=False)),
            write=write_frame,
            part=lambda value: value["b"],
        ),
        kind("DataFrame of many dtypes", mixed, numbers_views, write=write_frame, part=lambda value: value["text"]),
        kind("DataFrame without rows", lambda rng, n: mixed(rng, n).iloc[:0], larger=lambda rng: mixed(rng, 3)),
        *series,
        kind(
            "Index",
            lambda rng, n: module().Index(rng.standard_normal(n), name="x"),
            lambda value: array_views(value.to_numpy(copy=False)),
            write=lambda value: value.to_numpy(copy=False).fill(0),
        ),
        kind("RangeIndex", lambda rng, n: module().RangeIndex(0, 2 * n, 2, name="r")),
        kind("DatetimeIndex", lambda rng, n: module().date_range("2020-01-01", periods=n, freq="D", tz="UTC")),
        kind(
            "MultiIndex",
            lambda rng, n: module().MultiIndex.from_product([["a", "b"], rng.permutation(n)], names=["k", None]),
        ),
    ]


# -- polars


def polars() -> list[Kind]:
    """Return the kinds of polars' frames and series."""

    def frame(rng: np.random.Generator, n: int) -> Any:
        import polars as pl

        columns = arrow_columns(rng, n)
        made = pl.from_arrow(columns.pop("view"), rechunk=False).alias("view")
        return pl.DataFrame([pl.Series(name, column) for name, column in columns.items()]).with_columns(made)

    def views(value: Any) -> list[int]:
        if hasattr(value, "columns"):
            return [address for name in ("float", "int", "time") for address in views(value[name])]
        return [value.to_physical().to_arrow().buffers()[1].address] if len(value) else []

    def equal(one: Any, other: Any) -> bool:
        same_type = getattr(one, "schema", None) == getattr(other, "schema", None)
        if not hasattr(one, "columns"):
            same_type = one.dtype == other.dtype and one.name == other.name
        return bool(same_type and one.equals(other))

    def kind(name: str, build: Callable[..., Any], views: Callable = nothing, **more: Any) -> Kind:
        return Kind(f"polars {name}", build, equal, views, refuses=False, needs=("polars", "pyarrow"), **more)

    return [
        kind(
            "DataFrame",
            frame,
            views,
            write=lambda value: value.__setitem__((0, "float"), 9.0),
            part=lambda value: value["text"],
        ),
        kind(
            "DataFrame without rows", lambda rng, n: frame(rng, n).clear(), nothing, larger=lambda rng: frame(rng, 40)
        ),
        kind(
            "Series of numbers",
            lambda rng, n: frame(rng, n)["float"],
            views,
            write=lambda value: value.__setitem__(0, 9.0),
            part=lambda value: value[1:3],
        ),
        kind("Series of text", lambda rng, n: frame(rng, n)["text"], part=lambda value: value[1:3]),
        kind("Series of categories", lambda rng, n: frame(rng, n)["category"], part=lambda value: value[1:3]),
        kind("Series of lists", lambda rng, n: frame(rng, n)["list"], part=lambda value: value[1:3]),
    ]


# -- torch


def same_tensor(one: Any, other: Any) -> bool:
    """Compare dtype, shape, layout, requires_grad and bits."""
    import torch

    if isinstance(one, dict):
        return list(one) == list(other) and all(map(same_tensor, one.values(), other.values()))
    attributes = ("dtype", "shape", "layout", "requires_grad")
    if type(one) is not type(other) or any(getattr(one, name) != getattr(other, name) for name in attributes):
        return False
    one, other = one.detach(), other.detach()
    if one.layout != torch.strided:
        one, other = one.to_dense(), other.to_dense()
    elif one.is_contiguous(memory_format=torch.preserve_format) != other.is_contiguous(
        memory_format=torch.preserve_format
    ):
        return False
    one, other = (tensor.contiguous().reshape(-1).view(torch.uint8) for tensor in (one, other))
    return torch.equal(one, other)


def tensor_views(value: Any) -> list[int]:
    """Return the addresses of the data of tensors."""
    if isinstance(value, dict):
        return [address for tensor in value.values() for address in tensor_views(tensor)]
    parts = [value.detach()] if str(value.layout) == "torch.strided" else [value.detach().values()]
    return [part.data_ptr() for part in parts if part.numel()]


def write_tensor(value: Any) -> None:
    """Write to a tensor. torch has no read-only memory, so this changes the reader's own copy."""
    for tensor in value.values() if isinstance(value, dict) else [value]:
        (tensor.detach() if str(tensor.layout) == "torch.strided" else tensor.detach().values()).zero_()


def torch() -> list[Kind]:
    """Return the kinds of tensors, of all dtypes and several layouts, of parameters, and of a module's state."""

    def tensor(rng: np.random.Generator, shape: tuple[int, ...], dtype: str) -> Any:
        import torch

        return torch.from_numpy(rng.integers(0, 100, shape)).to(getattr(torch, dtype))

    def kind(name: str, build: Callable[..., Any], part: Callable = lambda value: value[1:3]) -> Kind:
        made = Kind(
            f"torch {name}",
            build,
            same_tensor,
            tensor_views,
            write_tensor,
            refuses=False,
            part=part,
            needs=("torch",),
        )
        return dataclasses.replace(made, larger=twice(made)) if "axes" in name else made

    def parameter(rng: np.random.Generator, n: int) -> Any:
        import torch

        return torch.nn.Parameter(tensor(rng, (n, 2), "float32"))

    def state(rng: np.random.Generator, n: int) -> Any:
        import torch

        module = torch.nn.Sequential(torch.nn.Linear(n, 3), torch.nn.BatchNorm1d(3))
        return OrderedDict(
            (name, tensor(rng, tuple(t.shape), str(t.dtype)[6:])) for name, t in module.state_dict().items()
        )

    def detached(tensor: Any) -> Any:
        return tensor.detach()[1:3]

    return [
        *(
            kind(dtype, lambda rng, n, dtype=dtype: tensor(rng, (n, 2), dtype))
            for dtype in ("float32", "float64", "float16", "bfloat16", "int64", "uint8", "bool", "complex64")
        ),
        kind("without axes", lambda rng, n: tensor(rng, (), "float32"), whole),
        kind("empty", lambda rng, n: tensor(rng, (n, 0), "float32"), whole),
        kind("transposed", lambda rng, n: tensor(rng, (3, n), "float32").T),
        kind("with gradient", lambda rng, n: tensor(rng, (n, 2), "float32").requires_grad_(), detached),
        kind("sparse", lambda rng, n: tensor(rng, (n, 4), "float32").to_sparse_coo().coalesce(), whole),
        kind("Parameter", parameter, detached),
        kind("state_dict", state, lambda value: value["0.weight"]),
    ]


# -- JAX


def jax() -> list[Kind]:
    """Return the kinds of JAX's arrays of several dtypes, and of random keys."""

    def array(rng: np.random.Generator, shape: tuple[int, ...], dtype: str) -> Any:
        import jax.numpy as jnp

        return jnp.asarray(rng.integers(0, 100, shape), dtype=dtype)

    def key(rng: np.random.Generator, n: int) -> Any:
        import jax

        return jax.random.split(jax.random.key(int(rng.integers(2**31))), n)

    def equal(one: Any, other: Any) -> bool:
        import jax

        if type(one) is not type(other) or one.dtype != other.dtype or one.shape != other.shape:
            return False
        if jax.dtypes.issubdtype(one.dtype, jax.dtypes.prng_key):
            one, other = jax.random.key_data(one), jax.random.key_data(other)
        elif one.weak_type != other.weak_type:
            return False
        return np.asarray(one).tobytes() == np.asarray(other).tobytes()

    def kind(name: str, build: Callable[..., Any], views: Callable = nothing, part: Callable = whole) -> Kind:
        made = Kind(f"jax {name}", build, equal, views, lambda v: np.asarray(v).fill(0), part=part, needs=("jax",))
        return dataclasses.replace(made, larger=twice(made)) if "axes" in name else made

    def pointer(value: Any) -> list[int]:
        return [value.unsafe_buffer_pointer()] if value.size else []

    return [
        *(
            kind(
                dtype,
                lambda rng, n, dtype=dtype: array(rng, (n, 2), dtype),
                pointer,
            )
            for dtype in ("float32", "float16", "bfloat16", "int32", "uint8", "bool", "complex64")
        ),
        kind("without axes", lambda rng, n: array(rng, (), "float32"), pointer),
        kind("empty", lambda rng, n: array(rng, (n, 0), "float32"), pointer),
        kind("keys", key),
    ]


# -- pickled objects


def pickled() -> list[Kind]:
    """Return the kinds of objects that are pickled if both sides allow it. Large buffers in them are not copied."""
    return [
        Kind(
            "pickled object",
            lambda rng, n: Model(filled(rng, "f8", (n,)), {f"name {n}"}),
            same,
            lambda value: array_views(value.weights),
            lambda value: value.weights.fill(0),
            part=lambda value: value.weights[1:],
            allow_pickle=True,
        ),
        Kind(
            "pickled set",
            lambda rng, n: set(rng.integers(0, 2**40, n).tolist()),
            lambda one, other: type(other) is set and one == other,
            allow_pickle=True,
        ),
        Kind(
            "pickled array of objects",
            lambda rng, n: np.array([None, "x", *rng.integers(0, 99, n).tolist()], object),
            lambda one, other: one.dtype == other.dtype == object and one.tolist() == other.tolist(),
            write=lambda value: value.fill(0),
            refuses=False,
            allow_pickle=True,
        ),
    ]


KINDS: dict[str, Kind] = {
    kind.name: kind
    for kind in (
        *arrays(),
        *scalars(),
        *trees(),
        *plain(),
        *subclasses(),
        *sparse(),
        frozen_kind(),
        *arrow(),
        *pandas(),
        *polars(),
        *torch(),
        *jax(),
        *pickled(),
    )
}


# -- all kinds of a library together


def together(library: str) -> Kind:
    """Return a kind with a value of each kind of a library, for tests that start a process, which loads the library."""
    kinds = {name: kind for name, kind in KINDS.items() if kind.needs[:1] == (library,)}

    def write(value: dict[str, Any]) -> None:
        for name, kind in kinds.items():
            with contextlib.suppress(Exception):  # any error of the library
                if kind.write is not None:
                    kind.write(value[name])

    return Kind(
        f"all kinds of {library}",
        lambda rng, n: {name: kind.build(rng, n) for name, kind in kinds.items()},
        lambda one, other: list(one) == list(other) and all(k.equal(one[n], other[n]) for n, k in kinds.items()),
        lambda value: [address for name, kind in kinds.items() for address in kind.views(value[name])],
        write,
        refuses=False,
        larger=lambda rng: {name: kind.bigger(rng) for name, kind in kinds.items()},
        needs=tuple(dict.fromkeys(name for kind in kinds.values() for name in kind.needs)),
    )


TOGETHER: dict[str, Kind] = {kind.name: kind for kind in map(together, sorted(THREADED))}
