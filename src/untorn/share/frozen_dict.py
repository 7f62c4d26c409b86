"""FrozenDict: a large dictionary that is looked up in place, in shared memory too.

::

    FrozenDict ──> _core.FrozenTable ──> index, entries, blob      flat arrays: private, or views of a channel
                          └──> documents                           JSON: the descriptions that entries refer to

It is built once, in one pass. Its parts are a few arrays that are valid in every process (csrc/frozen.h describes their
bytes), so a publisher copies them and a reader looks up in them at once: nothing is rebuilt or unpickled, and each
additional process needs almost no memory. A lookup makes a new object of the value, except that arrays are views.
"""

from __future__ import annotations

import json
import reprlib
import secrets
from collections.abc import ItemsView, Iterable, Iterator, KeysView, Mapping, ValuesView
from itertools import islice
from typing import Any, NoReturn, Self, TypeVar

import numpy as np
from numpy.typing import NDArray

from untorn import _core, html
from untorn.adapter_registry import Adapter, Parts, register_library
from untorn.errors import FormatError, UnsupportedTypeError
from untorn.share.described import items_of, read_dtype
from untorn.share.layout import FROZEN_DICT, MALFORMED, Decoder, pack
from untorn.share.specs import array_spec

__all__ = ["ADAPTERS", "FrozenDict"]

K = TypeVar("K")
V = TypeVar("V")

_FORMAT = 1
_SHOWN_ENTRIES = 5
_SHOWN_STEPS = 8
_OTHER_ALIGNMENT = 64
_ROOT = "(the value itself): "


class FrozenDict(_core.FrozenTable[K, V], Mapping[K, V]):
    """A read-only dictionary for millions of entries, designed to be shared.

    Keys are str, bytes and int (1, "1" and b"1" are three keys; a bool or a whole float finds the int that it equals,
    as in a dict). Values can be anything that can be shared: None, numbers, str, bytes; lists, tuples and dicts of
    these; NumPy arrays and scalars; named tuples, dataclasses and values of other libraries. A lookup returns arrays as
    read-only views that keep the memory alive, and all other values as new objects, which may be changed.

    A lookup never blocks, and several threads may look up at the same time.

    Args:
        data: a mapping, or an iterable of (key, value). Of equal keys the last value counts, at the position of the
            first.
        allow_pickle: pickle values that cannot be shared otherwise, and unpickle them at every lookup.

    Raises:
        UnsupportedTypeError: a key or a value has a type that cannot be stored; the message names the key.

    Example:
        >>> from untorn import FrozenDict
        >>> ages = FrozenDict({"ada": 36, "alan": 41})
        >>> ages["ada"], ages.get("grace"), len(ages)
        (36, None, 2)
        >>> ages
        FrozenDict({'ada': 36, 'alan': 41})
    """

    __slots__ = ()

    def __new__(  # noqa: D102 (as a constructor, it is described by its class)
        cls, data: Mapping[K, V] | Iterable[tuple[K, V]] = (), /, *, allow_pickle: bool = False
    ) -> Self:
        packing = _Packing(allow_pickle)
        source = data if type(data) is dict or not isinstance(data, Mapping) else data.items()
        *memory, entries, seed = _core.frozen_build(source, secrets.randbits(64), packing.pack, packing.refuse)
        parts = dict(zip(("index", "entries", "blob"), memory, strict=True))
        return cls.of_parts({**parts, "documents": packing.documents(entries, seed)}, allow_pickle=allow_pickle)

    @classmethod
    def of_parts(cls, parts: Mapping[str, Any], *, allow_pickle: bool = False) -> Self:
        """Return a FrozenDict over the parts() of another one. Copies nothing, and keeps the arrays alive.

        The arrays must not change any more. Raises FormatError if they do not fit together; other damage in their bytes
        is a FormatError of the lookup that finds it.
        """
        missing = {"index", "entries", "blob", "documents"} - parts.keys()
        if missing:
            raise FormatError(f"parts of a FrozenDict: {', '.join(sorted(missing))} missing")
        index, entries, blob = (_flat(name, parts[name]) for name in ("index", "entries", "blob"))
        try:
            documents = bytes(memoryview(parts["documents"]))
        except (TypeError, ValueError):
            found = type(parts["documents"]).__name__
            raise FormatError(f"parts of a FrozenDict: documents: expected bytes, found {found}") from None
        count, seed, dtypes, schemas = _read_documents(documents)
        sized = tuple((dtype, dtype.itemsize) for dtype in dtypes)
        kept = (index, entries, blob, documents, allow_pickle)
        # passes NumPy's type of arrays, since the core does not import NumPy
        return _core.FrozenTable.__new__(cls, kept, count, seed, sized, np.ndarray, _Others(schemas, allow_pickle))

    def parts(self) -> dict[str, Any]:
        """Return the parts as read-only views: ``index`` (uint64), ``entries`` and ``blob`` (uint8), and the bytes
        ``documents``. of_parts() takes them, or copies of them, in any process."""
        index, entries, blob, documents, _ = self._parts
        return {"index": index.view(np.uint64), "entries": entries, "blob": blob, "documents": documents}

    @property
    def nbytes(self) -> int:
        """The size of all parts, in bytes."""
        return sum(memoryview(part).nbytes for part in self.parts().values())

    def __iter__(self) -> Iterator[K]:
        keys: Iterator[K] = self._iterate(0)
        return keys

    def keys(self) -> KeysView[K]:
        """Return a view of the keys, in the order of insertion."""
        return _Keys(self)

    def values(self) -> ValuesView[V]:
        """Return a view of the values, in the order of insertion."""
        return _Values(self)

    def items(self) -> ItemsView[K, V]:
        """Return a view of (key, value) pairs, in the order of insertion."""
        return _Items(self)

    def __copy__(self) -> Self:
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        return _unpickle, (type(self), self.parts(), self._parts[-1])

    def _repr_html_(self) -> str:
        title = f"{type(self).__name__} of {len(self):,} entries, {html.size_text(self.nbytes)}"
        return html.facts(title, {}) + html.outline(self)

    def __repr__(self) -> str:
        shown = [f"{key!r}: {value!r}" for key, value in islice(self.items(), _SHOWN_ENTRIES)]
        more = len(self) - len(shown)
        if more:
            shown.append(f"... {more:,} more")
        return f"{type(self).__name__}({{{', '.join(shown)}}})"


def _unpickle(cls: type[FrozenDict[Any, Any]], parts: dict[str, Any], allow_pickle: bool) -> FrozenDict[Any, Any]:
    return cls.of_parts(parts, allow_pickle=allow_pickle)


class _Keys(KeysView[Any]):
    __slots__ = ()
    _mapping: FrozenDict[Any, Any]


class _Values(ValuesView[Any]):
    __slots__ = ()
    _mapping: FrozenDict[Any, Any]

    def __iter__(self) -> Iterator[Any]:
        return self._mapping._iterate(1)  # noqa: SLF001 (the core's, for these views only)

    def __contains__(self, value: object) -> bool:
        return any(found is value or found == value for found in self)


class _Items(ItemsView[Any, Any]):
    __slots__ = ()
    _mapping: FrozenDict[Any, Any]

    def __iter__(self) -> Iterator[tuple[Any, Any]]:
        return self._mapping._iterate(2)  # noqa: SLF001 (likewise)


class _Packing:
    """Builds the entries that the core cannot build: arrays, and values that share supports but C does not."""

    def __init__(self, allow_pickle: bool) -> None:
        self._allow_pickle = allow_pickle
        self._dtypes: dict[np.dtype[Any], int] = {}
        self._schemas: dict[bytes, int] = {}

    def pack(self, value: Any) -> tuple[int, int, int, Any, tuple[int, ...]]:
        """Return (kind, number of the description, alignment, bytes, shape) of a value."""
        kind = _core.FROZEN_ARRAY if type(value) in (np.ndarray, np.memmap) else _core.FROZEN_SCALAR
        if kind == _core.FROZEN_SCALAR and not isinstance(value, np.generic):
            return self._pack_other(value)
        if value.dtype.hasobject and self._allow_pickle:
            return self._pack_other(value)
        array = np.asarray(value)
        number = self._dtypes.get(array.dtype)
        if number is None:  # array_spec raises an error if no other process could read that dtype
            number = self._dtypes[array_spec(array).detail[0]] = len(self._dtypes)
        alignment = 64 if array.nbytes >= _core.FROZEN_LARGE else 16
        return kind, number, alignment, _bytes_of(array), array.shape

    def _pack_other(self, value: Any) -> tuple[int, int, int, Any, tuple[int, ...]]:
        schema, payload = pack(value, allow_pickle=self._allow_pickle)
        number = self._schemas.setdefault(schema, len(self._schemas))
        return _core.FROZEN_OTHER, number, _OTHER_ALIGNMENT, payload, ()

    def refuse(self, path: list[Any], problem: str | Exception) -> NoReturn:
        """Return the error with its place; `path` is the key and the steps below it."""
        if isinstance(problem, Exception) and not isinstance(problem, UnsupportedTypeError):
            raise problem
        steps = [f"[{reprlib.repr(path[0])}]", *map(str, path[1:_SHOWN_STEPS])]
        where = "/".join([*steps, "..."] if len(path) > _SHOWN_STEPS else steps)
        text = str(problem)
        inside = isinstance(problem, Exception) and not text.startswith(_ROOT)
        error = UnsupportedTypeError(f"{where}{'/' if inside else ': '}{text.removeprefix(_ROOT)}")
        raise error from (problem if isinstance(problem, Exception) else None)

    def documents(self, entries: int, seed: int) -> bytes:
        """Return the descriptions that entries refer to by number, and what else the core needs."""
        document = {
            "format": _FORMAT,
            "entries": entries,
            "seed": f"{seed:016x}",
            "dtypes": [np.lib.format.dtype_to_descr(dtype) for dtype in self._dtypes],
            "schemas": [schema.decode() for schema in self._schemas],
        }
        return json.dumps(document, separators=(",", ":")).encode()


def _bytes_of(array: NDArray[Any]) -> Any:
    if array.nbytes < _core.FROZEN_LARGE:
        return array.tobytes()
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8)


def _read_documents(documents: bytes) -> tuple[int, int, tuple[np.dtype[Any], ...], list[bytes]]:
    try:
        document = json.loads(documents)
        found = document["format"]
        if found == _FORMAT:
            count, seed = document["entries"], int(document["seed"], 16)
            if type(count) is not int or count not in range(2**63) or seed not in range(2**64):
                raise ValueError("a number out of its range")
            dtypes = tuple(map(read_dtype, items_of(document["dtypes"])))
            return count, seed, dtypes, [schema.encode() for schema in items_of(document["schemas"])]
    except MALFORMED as error:
        raise FormatError(
            f"the documents of a FrozenDict cannot be read ({type(error).__name__}: {error}); they are damaged"
        ) from error
    raise FormatError(f"a FrozenDict of format {found!r}; this version of untorn reads format {_FORMAT}")


def _flat(name: str, part: Any) -> NDArray[np.uint8]:
    """Return the bytes of a part, read-only."""
    try:
        view = memoryview(part)
        flat = np.ndarray((view.nbytes,), np.uint8, part)
    except (TypeError, ValueError, BufferError) as error:
        raise FormatError(f"{name} of a FrozenDict: expected a contiguous array ({error})") from error
    flat.flags.writeable = False
    return flat


class _Others:
    """Reads the records that only share can read, with a decoder for each description, made at its first use.

    Threads may make the same decoder twice; either one is used.
    """

    __slots__ = ("_allow_pickle", "_decoders", "_schemas")

    def __init__(self, schemas: list[bytes], allow_pickle: bool) -> None:
        self._schemas = schemas
        self._allow_pickle = allow_pickle
        self._decoders: dict[int, Decoder] = {}

    def __call__(self, number: int, blob: NDArray[np.uint8], offset: int, nbytes: int) -> Any:
        decoder = self._decoders.get(number)
        if decoder is None or decoder.slot_nbytes != nbytes:
            if number >= len(self._schemas):
                raise FormatError(f"a FrozenDict is damaged (it has no schema {number}); build it again")
            decoder = Decoder(self._schemas[number], nbytes, payload=0, allow_pickle=self._allow_pickle)
            self._decoders[number] = decoder
        return decoder.value(blob[offset : offset + nbytes])


ADAPTERS = (
    Adapter(
        FROZEN_DICT,
        lambda cls: cls is FrozenDict,
        lambda value: Parts(None, value.parts()),
        lambda _, parts, allow_pickle: FrozenDict.of_parts(parts, allow_pickle=allow_pickle),
        unpickles=True,
    ),
)
register_library("untorn", __name__)
