"""FrozenDict: a large dictionary that is looked up in place, in shared memory too.

::

    FrozenDict ──> _core.FrozenTable ──> index, entries, blob      flat arrays: private, or views of a channel
                          └──> documents                           JSON: the descriptions that entries refer to

It is built once, in one pass. Its parts are a few arrays that are valid in every process (csrc/frozen.h describes their
bytes), so a publisher copies them and a reader looks up in them at once: nothing is rebuilt or unpickled, and each
additional process needs almost no memory. A lookup makes a new object of the value, except that arrays are views.

A version of a channel may consist of the changes of an older version, its *base*: a table of the keys that were set
or removed since. Both are looked up in place, the changes first::

    FrozenDict ──> _core.FrozenTable of the changes ──base──> FrozenDict in the older version's slot
"""

from __future__ import annotations

import json
import reprlib
import secrets
from collections.abc import ItemsView, Iterable, Iterator, KeysView, Mapping, ValuesView
from itertools import islice
from typing import TYPE_CHECKING, Any, NoReturn, Self, TypeVar

import numpy as np
from numpy.typing import NDArray

from untorn import _core, html
from untorn.adapter_registry import Adapter, Parts, register_library
from untorn.errors import FormatError, UnsupportedTypeError
from untorn.share.decoder import Decoder
from untorn.share.described import MALFORMED, items_of, read_dtype
from untorn.share.layout import pack
from untorn.share.slot_format import FROZEN_DICT
from untorn.share.specs import array_spec
from untorn.trees import Spec

__all__ = [
    "ADAPTERS",
    "REMOVED",
    "STOP_NBYTES",
    "Changes",
    "FrozenDict",
    "Packing",
    "base_of",
    "compacted",
    "is_table",
    "merged",
    "parts_of",
]

K = TypeVar("K")
V = TypeVar("V")

_FORMAT, _FORMAT_OF_CHANGES = 1, 2
_FORMATS = (_FORMAT, _FORMAT_OF_CHANGES)
#: the value of a key that is removed
REMOVED: Any = object()
#: the size of the word that stops merged()
STOP_NBYTES = 4
#: the first bytes of the documents of changes
_BEGINNING_OF_CHANGES = b'{"format":2,'
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
        source = data if type(data) is dict or not isinstance(data, Mapping) else data.items()
        return cls.of_parts(_built(source, allow_pickle), allow_pickle=allow_pickle)

    @classmethod
    def of_parts(cls, parts: Mapping[str, Any], *, allow_pickle: bool = False) -> Self:
        """Return a FrozenDict over the parts() of another one. Copies nothing, and keeps the arrays alive.

        The arrays must not change any more. Raises FormatError if they do not fit together; other damage in their bytes
        is a FormatError of the lookup that finds it.
        """
        return cls._over(None, parts, allow_pickle)

    @classmethod
    def _over(cls, base: FrozenDict[K, V] | None, parts: Mapping[str, Any], allow_pickle: bool) -> Self:
        """Return a FrozenDict over its own parts, or over those of the changes of a base."""
        missing = {"index", "entries", "blob", "documents"} - parts.keys()
        if missing:
            raise FormatError(f"parts of a FrozenDict: {', '.join(sorted(missing))} missing")
        index, entries, blob = (_flat(name, parts[name]) for name in ("index", "entries", "blob"))
        documents = _documents_of(parts)
        count, length, seed, dtypes, schemas = _read_documents(
            documents, _FORMAT if base is None else _FORMAT_OF_CHANGES
        )
        if base is not None and length > len(base) + count:
            raise FormatError(
                f"changes of a FrozenDict: {length} entries are more than those of both; they are damaged"
            )
        sized = tuple((dtype, dtype.itemsize) for dtype in dtypes)
        kept = (index, entries, blob, documents, base, allow_pickle)
        others = _Others(schemas, allow_pickle)
        # passes NumPy's type of arrays, since the core does not import NumPy
        return _core.FrozenTable.__new__(cls, kept, count, seed, sized, np.ndarray, others, base, length)

    def parts(self) -> dict[str, Any]:
        """Return the parts as read-only views: ``index`` (uint64), ``entries`` and ``blob`` (uint8), and the bytes
        ``documents``. of_parts() takes them, or copies of them, in any process.

        Those of a version that consists of changes are built first, as those of one table."""
        index, entries, blob, documents, base, _ = self._parts
        if base is not None:
            return compacted(self).parts()
        return {"index": index.view(np.uint64), "entries": entries, "blob": blob, "documents": documents}

    @property
    def nbytes(self) -> int:
        """The size of all parts, in bytes."""
        *parts, base, _ = self._parts
        return sum(memoryview(part).nbytes for part in parts) + (0 if base is None else base.nbytes)

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

    if not TYPE_CHECKING:  # a type checker would take it for one that can be changed

        def __setitem__(self, key: object, value: object) -> NoReturn:
            """Raise the error for a change."""
            raise _read_only(self)

        def __delitem__(self, key: object) -> NoReturn:
            """Raise the error for a change."""
            raise _read_only(self)

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


def _read_only(table: FrozenDict[Any, Any]) -> TypeError:
    return TypeError(
        f"a {type(table).__name__} is read-only; if it is the value of a channel, its publisher changes keys with "
        "edit() or patch(), otherwise make a dict of it, change that, and build it again"
    )


def is_table(spec: Spec) -> bool:
    """Return whether a version of this structure is a FrozenDict."""
    return spec.kind == "adapter" and bool(spec.detail[0] == FROZEN_DICT)


def base_of(table: FrozenDict[K, V]) -> FrozenDict[K, V] | None:
    """Return the table that this one consists of changes of; None for a whole one."""
    base: FrozenDict[K, V] | None = table._parts[-2]  # noqa: SLF001 (of this module)
    return base


def compacted(table: FrozenDict[K, V]) -> FrozenDict[K, V]:
    """Return the same as one table without a base, in private memory; the table itself if it has none."""
    made = merged(table, bytearray(STOP_NBYTES))
    assert made is not None
    return made


def merged(table: FrozenDict[K, V], stop: bytearray) -> FrozenDict[K, V] | None:
    """Do the same, without the GIL, unless another thread sets a byte of ``stop``: then return None soon."""
    base, allow_pickle = base_of(table), table._parts[-1]  # noqa: SLF001 (of this module)
    if base is None:
        return table
    packing = Packing(allow_pickle)
    of_base, of_changes = (packing.join(each._parts[3]) for each in (base, table))  # noqa: SLF001 (of this module)
    made = _core.frozen_merge(table, secrets.randbits(64), of_base, of_changes, packing.counts(), stop)
    if made is None:
        return None
    memory, dtypes, schemas = made
    packing.keep(dtypes, schemas)
    return FrozenDict.of_parts(parts_of(memory, packing), allow_pickle=allow_pickle)


class Changes:
    """The changes of a FrozenDict that is an older version: what lies in a slot with a base.

    Args:
        parts: as FrozenDict.parts() returns them.
        allow_pickle: as for FrozenDict.
    """

    def __init__(self, parts: dict[str, Any], allow_pickle: bool) -> None:
        self.parts = parts
        self._allow_pickle = allow_pickle

    @property
    def nbytes(self) -> int:
        """The size of all parts, in bytes."""
        return sum(memoryview(part).nbytes for part in self.parts.values())

    def over(self, base: object) -> FrozenDict[Any, Any]:
        """Return the FrozenDict with these changes. Raises FormatError unless ``base`` is one without a base."""
        if type(base) is not FrozenDict:
            raise FormatError(f"a version has changes of a FrozenDict, but its base is a {type(base).__name__}")
        return FrozenDict._over(base, self.parts, self._allow_pickle)  # noqa: SLF001 (of this module)


def parts_of(memory: tuple[Any, Any, Any, int, int], packing: Packing, length: int | None = None) -> dict[str, Any]:
    """Return the parts of a table that the core built. With ``length`` it is a table of changes."""
    *flat, entries, seed = memory
    index, *rest = map(_flat, ("index", "entries", "blob"), flat)
    parts = dict(zip(("index", "entries", "blob"), (index.view(np.uint64), *rest), strict=True))
    return {**parts, "documents": packing.documents(entries, seed, length)}


def _built(source: Any, allow_pickle: bool) -> dict[str, Any]:
    """Return the parts of a table with these entries."""
    packing = Packing(allow_pickle)
    return parts_of(_core.frozen_build(source, secrets.randbits(64), packing.pack, packing.refuse), packing)


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


class Packing:
    """Builds the entries that the core cannot build: arrays, and values that share supports but C does not."""

    def __init__(self, allow_pickle: bool) -> None:
        self._allow_pickle = allow_pickle
        self._dtypes: dict[np.dtype[Any], int] = {}
        self._schemas: dict[bytes, int] = {}

    def begin(self, table: FrozenDict[Any, Any]) -> None:
        """Take over the descriptions to which the entries of a table refer, with their numbers."""
        *_, dtypes, schemas = _read_documents(table._parts[3], *_FORMATS)  # noqa: SLF001 (of this module)
        self._dtypes = {dtype: number for number, dtype in enumerate(dtypes)}
        self._schemas = {schema: number for number, schema in enumerate(schemas)}

    def join(self, documents: bytes) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Add the descriptions of another table, each once; return their numbers here, of dtypes and of schemas."""
        *_, dtypes, schemas = _read_documents(documents, *_FORMATS)
        return (
            tuple(self._dtypes.setdefault(dtype, len(self._dtypes)) for dtype in dtypes),
            tuple(self._schemas.setdefault(schema, len(self._schemas)) for schema in schemas),
        )

    def counts(self) -> tuple[int, int]:
        """Return the numbers of dtypes and of schemas."""
        return len(self._dtypes), len(self._schemas)

    def keep(self, dtypes: list[int], schemas: list[int]) -> None:
        """Keep the descriptions with these numbers only, in this order."""
        known, known_schemas = list(self._dtypes), list(self._schemas)
        self._dtypes = {known[number]: place for place, number in enumerate(dtypes)}
        self._schemas = {known_schemas[number]: place for place, number in enumerate(schemas)}

    def pack(self, value: Any) -> tuple[int, int, int, Any, tuple[int, ...]]:
        """Return (kind, number of the description, alignment, bytes, shape) of a value."""
        kind = _core.FROZEN_ARRAY if type(value) in (np.ndarray, np.memmap) else _core.FROZEN_SCALAR
        if kind == _core.FROZEN_SCALAR and not isinstance(value, np.generic):
            return self._pack_other(value)
        if value.dtype.hasobject and self._allow_pickle:
            return self._pack_other(value)
        if isinstance(value, np.bytes_ | np.str_) and value[-1:] in (b"\0", "\0"):
            return self._pack_other(value)  # an array would drop zeros at the end
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

    def documents(self, entries: int, seed: int, length: int | None = None) -> bytes:
        """Return the descriptions that entries refer to by number, and what else the core needs."""
        changes = {} if length is None else {"length": length}
        document = {
            "format": _FORMAT if length is None else _FORMAT_OF_CHANGES,
            "entries": entries,
            **changes,
            "seed": f"{seed:016x}",
            "dtypes": [np.lib.format.dtype_to_descr(dtype) for dtype in self._dtypes],
            "schemas": [schema.decode() for schema in self._schemas],
        }
        return json.dumps(document, separators=(",", ":")).encode()


def _bytes_of(array: NDArray[Any]) -> Any:
    if array.nbytes < _core.FROZEN_LARGE:
        return array.tobytes()
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8)


def _documents_of(parts: Mapping[str, Any]) -> bytes:
    try:
        return bytes(memoryview(parts["documents"]))
    except (TypeError, ValueError):
        found = type(parts["documents"]).__name__
        raise FormatError(f"parts of a FrozenDict: documents: expected bytes, found {found}") from None


def _read_documents(documents: bytes, *formats: int) -> tuple[int, int, int, tuple[np.dtype[Any], ...], list[bytes]]:
    """Return the number of entries, the length with a base, the seed, and the descriptions."""
    try:
        document = json.loads(documents)
        found = document["format"]
        if found in formats:
            count, seed = document["entries"], int(document["seed"], 16)
            length = document["length"] if found == _FORMAT_OF_CHANGES else count
            if not _is_count(count) or not _is_count(length) or seed not in range(2**64):
                raise ValueError("a number out of its range")
            dtypes = tuple(map(read_dtype, items_of(document["dtypes"])))
            return count, length, seed, dtypes, [schema.encode() for schema in items_of(document["schemas"])]
    except MALFORMED as error:
        raise FormatError(
            f"the documents of a FrozenDict cannot be read ({type(error).__name__}: {error}); they are damaged"
        ) from error
    if found in _FORMATS:
        what = "the changes of another version" if found == _FORMAT_OF_CHANGES else "a whole FrozenDict"
        raise FormatError(f"found {what} where {'it' if found == _FORMAT_OF_CHANGES else 'changes'} cannot be")
    raise FormatError(f"a FrozenDict of format {found!r}; this version of untorn reads format {_FORMAT}")


def _is_count(found: Any) -> bool:
    return type(found) is int and found in range(2**63)


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


def _take_apart(value: FrozenDict[Any, Any] | Changes) -> Parts:
    return Parts(None, value.parts if isinstance(value, Changes) else value.parts())


def _put_together(_: Any, parts: dict[str, Any], allow_pickle: bool) -> FrozenDict[Any, Any] | Changes:
    """Return a FrozenDict, or the changes of one that is another version."""
    if _documents_of(parts).startswith(_BEGINNING_OF_CHANGES):
        return Changes(parts, allow_pickle)
    return FrozenDict.of_parts(parts, allow_pickle=allow_pickle)


ADAPTERS = (Adapter(FROZEN_DICT, lambda cls: cls in (FrozenDict, Changes), _take_apart, _put_together, unpickles=True),)
register_library("untorn", __name__)
