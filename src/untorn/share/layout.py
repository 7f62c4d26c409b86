"""Where each leaf of a tree lies in a slot, and how the structure is written down for readers.

::

    slot:  header (64 bytes) | schema: JSON in UTF-8 | pad to 64 | payload: leaves, arrays aligned to 64

The schema is JSON and nothing else: no pickle, no code. docs/format.md describes it. ``Layout`` is the publisher's
side (built from a spec, writes leaves); ``Decoder`` is the reader's (built from schema bytes, makes views).
"""

from __future__ import annotations

import json
import pickle
import struct
import sys
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import fields, is_dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from untorn import _core
from untorn.errors import FormatError, UnsupportedTypeError
from untorn.share.foreign import adapter_named
from untorn.share.tree import CONTAINERS, OPAQUE, Deferred, Spec, flatten, path_of
from untorn.share.views import array_over, private_memory

__all__ = ["Decoder", "Layout", "pack", "read_dtype"]

ALIGNMENT = 64
_STRUCTS = {
    "int": struct.Struct("<q"),
    "float": struct.Struct("<d"),
    "complex": struct.Struct("<dd"),
    "bool": struct.Struct("<?"),
}


def _align(nbytes: int, to: int = ALIGNMENT) -> int:
    return (nbytes + to - 1) // to * to


class Layout:
    """The bytes of one spec.

    Attributes:
        spec: the structure that this lays out.
        schema: the structure as readers get it.
        payload: offset of the payload from the start of the slot.
        nbytes: of the whole slot.
        leaves: (spec, offset from the start of the slot) of each leaf, in order.
        has_foreign: are there values of other libraries among them?
        arrays: the indices of the leaves that are arrays to the user, and not a part of such a value.
    """

    def __init__(self, spec: Spec, extra: Spec | None = None, *, payload: int | None = None) -> None:
        self.spec = spec
        self.extra = extra
        self.has_foreign = False
        self.arrays: list[int] = []
        self._decoder: Decoder | None = None
        self._end = 0
        places: list[tuple[Spec, int]] = []
        document = {"value": self._describe(spec, places)}
        if extra is not None:
            document["extra"] = self._describe(extra, places)
        self.schema = json.dumps(document, separators=(",", ":")).encode()
        self.payload = _align(_core.HEADER_NBYTES + len(self.schema)) if payload is None else payload
        self.nbytes = self.payload + _align(self._end)
        self.leaves = [(leaf, self.payload + offset) for leaf, offset in places]

    def _place(self, nbytes: int, alignment: int) -> int:
        offset = _align(self._end, alignment)
        self._end = offset + nbytes
        return offset

    def _describe(self, spec: Spec, places: list[tuple[Spec, int]], foreign: bool = False) -> list[Any]:
        if spec.kind in CONTAINERS or spec.kind in OPAQUE:
            foreign = foreign or spec.kind in OPAQUE
            self.has_foreign |= foreign
            return [
                spec.kind,
                _describe_detail(spec),
                [self._describe(child, places, foreign) for child in spec.children],
            ]
        if spec.kind == "array" and not foreign:
            self.arrays.append(len(places))
        nbytes, alignment = _leaf_size(spec)
        offset = self._place(nbytes, alignment)
        places.append((spec, offset))
        return [spec.kind, offset, *_describe_leaf(spec)]

    def decoder(self, *, allow_pickle: bool) -> Decoder:
        """The reader's side of this layout."""
        if self._decoder is None or self._decoder.allow_pickle != allow_pickle:
            self._decoder = Decoder(self.schema, self.nbytes, allow_pickle=allow_pickle)
        return self._decoder

    def write_schema(self, draft: _core.Draft) -> None:
        """Write the schema behind the header."""
        _core.copy(draft, _core.HEADER_NBYTES, self.schema)

    def write_leaf(self, draft: _core.Draft | bytearray, index: int, leaf: Any) -> None:
        """Copy one leaf into its place; arrays without the GIL."""
        spec, offset = self.leaves[index]
        if spec.kind == "array":
            target = self.array(draft, index)
            if type(leaf) is Deferred:
                leaf.write_into(target)
            elif target.size:
                np.copyto(target, leaf)
        else:
            _core.copy(draft, offset, _leaf_bytes(spec, leaf))

    def leaf_range(self, index: int) -> tuple[int, int]:
        """Where a leaf begins and ends, from the start of the slot."""
        spec, offset = self.leaves[index]
        return offset, offset + _leaf_size(spec)[0]

    def ranges(self, indices: Iterable[int]) -> Iterator[tuple[int, int]]:
        """The bytes of these leaves (in order), with neighbours in one piece."""
        start = end = before = -1
        for index in indices:
            first, last = self.leaf_range(index)
            if before >= 0 and index != before + 1:
                yield start, end
                start = first
            elif before < 0:
                start = first
            before, end = index, last
        if before >= 0:
            yield start, end

    def array(self, draft: _core.Draft | bytearray, index: int) -> NDArray[Any]:
        """A writable view of the array leaf in a slot that is being written."""
        spec, offset = self.leaves[index]
        dtype, shape, strides = spec.detail
        return array_over(draft, dtype, shape, offset, strides)


def pack(value: Any, *, allow_pickle: bool = False) -> tuple[bytes, bytearray]:
    """A value in private memory: its schema, and its payload. ``Decoder(schema, len(payload), payload=0)`` reads it."""
    spec, leaves = flatten(value, allow_pickle=allow_pickle)
    layout = Layout(spec, payload=0)
    payload = bytearray(layout.nbytes)
    for index, leaf in enumerate(leaves):
        layout.write_leaf(payload, index, leaf)
    return layout.schema, payload


def _leaf_size(spec: Spec) -> tuple[int, int]:
    """Bytes and alignment of a leaf."""
    if spec.kind == "array":
        dtype, shape, _ = spec.detail
        return dtype.itemsize * int(np.prod(shape, dtype=object)), ALIGNMENT
    if spec.kind == "numpy":
        return spec.detail.itemsize, 16
    if spec.kind in _STRUCTS:
        return _STRUCTS[spec.kind].size, 8
    return spec.detail or 0, 8


def _leaf_bytes(spec: Spec, leaf: Any) -> Any:
    kind = spec.kind
    if kind == "numpy":
        return leaf.tobytes()
    if kind == "complex":
        return _STRUCTS[kind].pack(leaf.real, leaf.imag)
    if kind in _STRUCTS:
        return _STRUCTS[kind].pack(leaf)
    if kind == "str":
        return leaf.encode("utf-8", "surrogatepass")
    if kind == "bigint":
        return leaf.to_bytes(spec.detail, "little", signed=True)
    return b"" if leaf is None else leaf


def _describe_leaf(spec: Spec) -> tuple[Any, ...]:
    if spec.kind == "array":
        dtype, shape, strides = spec.detail
        return np.lib.format.dtype_to_descr(dtype), list(shape), strides and list(strides)
    if spec.kind == "numpy":
        return (np.lib.format.dtype_to_descr(spec.detail),)
    return () if spec.detail is None else (spec.detail,)


def _describe_detail(spec: Spec) -> Any:
    if spec.kind in ("dict", "odict"):
        return [_describe_key(key) for _, key in spec.detail]
    return spec.detail


def _describe_key(key: Any) -> Any:
    """A key as JSON: a str as itself, all else as a pair of type and text."""
    if isinstance(key, str):
        return key
    if isinstance(key, bytes):
        return ["bytes", key.hex()]
    if isinstance(key, tuple):
        return ["tuple", [_describe_key(part) for part in key]]
    if isinstance(key, float):
        return ["float", key.hex()]
    return [type(key).__name__, str(key)]


_KEY_READERS: dict[str, Callable[[Any], Any]] = {
    "bytes": bytes.fromhex,
    "tuple": lambda parts: tuple(_read_key(part) for part in parts),
    "float": float.fromhex,
    "int": int,
    "bool": lambda text: text == "True",
    "NoneType": lambda _: None,
}


def _read_key(described: Any) -> Any:
    if isinstance(described, str):
        return described
    kind, text = described
    return _KEY_READERS[kind](text)


_Build = Callable[[Any], Any]


class Decoder:
    """Makes values from slots that have one schema. Arrays are views into the exporting object; so are values of other
    libraries, where these allow it; all else is copied.

    Args:
        schema: as Layout wrote it.
        slot_nbytes: of the memory that will be read.
        payload: where the payload begins in it; by default behind a slot's header and schema.
        allow_pickle: unpickle what was pickled.

    Raises FormatError if the schema is not one, or points outside the slot; UnsupportedTypeError, naming the place, for
    a pickle that is not allowed; ImportError if the library of a value is missing.
    """

    def __init__(
        self, schema: bytes, slot_nbytes: int, *, payload: int | None = None, allow_pickle: bool = False
    ) -> None:
        self.payload = _align(_core.HEADER_NBYTES + len(schema)) if payload is None else payload
        self.slot_nbytes = slot_nbytes
        self.allow_pickle = allow_pickle
        #: what every array leaf looks like: (offset, dtype, shape, strides), in order
        self.arrays: list[tuple[int, np.dtype[Any], tuple[int, ...], tuple[int, ...] | None]] = []
        try:
            document = json.loads(schema)
            self._build = self._compile(document["value"], ())
            self._build_extra = self._compile(document["extra"], ()) if "extra" in document else None
        except (FormatError, UnsupportedTypeError, ImportError):
            raise
        except Exception as error:
            raise FormatError(
                f"the schema of a version cannot be read ({type(error).__name__}: {error}); "
                "the channel's file is damaged, or was not written by untorn"
            ) from error

    def value(self, exporter: Any) -> Any:
        """The value in a slot: a new tree around views of ``exporter``."""
        try:
            return self._build(exporter)
        except (ValueError, OverflowError, SystemError) as error:  # no shape of an array, no text; the last is NumPy's
            raise FormatError(
                f"a leaf of this version cannot be read ({error}); the channel's file is damaged"
            ) from error

    def extra(self, exporter: Any) -> Any:
        """What the publisher stored beside the value, or None."""
        return self._build_extra(exporter) if self._build_extra is not None else None

    def _compile(self, node: Any, path: tuple[str, ...]) -> _Build:
        kind, detail, *rest = node
        if kind in CONTAINERS:
            names = _child_names(kind, detail, rest[0])
            children = [self._compile(child, (*path, name)) for name, child in zip(names, rest[0], strict=True)]
            return _CONTAINER_COMPILERS[kind](detail, children)
        if kind in OPAQUE:
            return self._compile_opaque(kind, detail, rest[0], path)
        if kind == "none":
            return lambda _: None
        return self._compile_leaf(kind, self.payload + int(detail), rest)

    def _compile_opaque(self, kind: str, detail: Any, nodes: list[Any], path: tuple[str, ...]) -> _Build:
        if kind == "pickle" and not self.allow_pickle:
            raise UnsupportedTypeError(
                f"{path_of(path)}: a pickled {detail}, and this reader does not unpickle; pass allow_pickle=True to "
                "subscribe() if you trust the publisher: a pickle can run any code"
            )
        if kind == "adapter":
            name, meta, names = detail
            return self._compile_adapter(name, meta, dict(zip(names, nodes, strict=True)), path)
        children = [self._compile(node, path) for node in nodes]
        if kind == "pickle":
            return lambda exporter: _unpickle([build(exporter) for build in children])
        return self._compile_frozen_dict(dict(zip(detail, children, strict=True)))

    def _compile_frozen_dict(self, children: dict[str, _Build]) -> _Build:
        from untorn.share.frozen_dict import FrozenDict

        of_parts, allow_pickle = FrozenDict.of_parts, self.allow_pickle
        return lambda exporter: of_parts(
            {name: build(exporter) for name, build in children.items()}, allow_pickle=allow_pickle
        )

    def _compile_adapter(self, name: str, meta: Any, nodes: dict[str, Any], path: tuple[str, ...]) -> _Build:
        adapter = adapter_named(name)
        children = {part: self._compile(node, (*path, part)) for part, node in nodes.items()}

        def build(exporter: Any) -> Any:
            memory = private_memory(exporter) if adapter.private else exporter
            parts = {part: child(memory) for part, child in children.items()}
            try:
                return adapter.put_together(meta, parts)
            except Exception as error:  # whatever that library raises for parts that do not fit together
                raise FormatError(
                    f"{path_of(path)}: a {name} cannot be put together ({type(error).__name__}: {error}); "
                    "is it written by another version of that library, or damaged?"
                ) from error

        return build

    def _inside(self, offset: int, nbytes: int) -> None:
        if offset < self.payload or nbytes < 0 or offset + nbytes > self.slot_nbytes:
            raise FormatError(
                f"a leaf at bytes {offset} to {offset + nbytes} lies outside its version of {self.slot_nbytes} bytes; "
                "the channel's file is damaged"
            )

    def _compile_leaf(self, kind: str, offset: int, rest: list[Any]) -> _Build:
        if kind == "array":
            return self._compile_array(offset, *rest)
        if kind == "numpy":
            return self._compile_scalar(offset, read_dtype(rest[0]))
        if kind in _STRUCTS:
            unpack = _STRUCTS[kind].unpack_from
            self._inside(offset, _STRUCTS[kind].size)
            if kind == "complex":
                return lambda exporter: complex(*unpack(exporter, offset))
            return lambda exporter: unpack(exporter, offset)[0]
        end = offset + int(rest[0])
        self._inside(offset, end - offset)
        if kind == "str":
            return lambda exporter: bytes(memoryview(exporter)[offset:end]).decode("utf-8", "surrogatepass")
        if kind == "bytes":
            return lambda exporter: bytes(memoryview(exporter)[offset:end])
        if kind == "bigint":
            return lambda exporter: int.from_bytes(memoryview(exporter)[offset:end], "little", signed=True)
        raise FormatError(f"a leaf of unknown kind {kind!r}; a newer untorn may have written this channel")

    def _compile_scalar(self, offset: int, dtype: np.dtype[Any]) -> _Build:
        if dtype.hasobject:
            raise FormatError(f"a scalar of dtype {dtype} cannot be read")
        self._inside(offset, dtype.itemsize)
        if dtype.kind == "V":  # NumPy's only scalars that are views
            return lambda exporter: np.ndarray((), dtype, exporter, offset).copy()[()]
        return lambda exporter: np.ndarray((), dtype, exporter, offset)[()]

    def _compile_array(self, offset: int, descr: Any, shape: list[int], strides: list[int] | None) -> _Build:
        dtype = read_dtype(descr)
        extent, steps = tuple(map(int, shape)), strides and tuple(map(int, strides))
        if dtype.hasobject or any(n < 0 for n in extent) or (steps and (len(steps) != len(extent) or min(steps) < 0)):
            raise FormatError(f"an array of dtype {dtype}, shape {extent} and strides {steps} cannot be read")
        nbytes = dtype.itemsize * int(np.prod(extent, dtype=object))
        if steps and nbytes:
            nbytes = dtype.itemsize + sum((n - 1) * step for n, step in zip(extent, steps, strict=True))
        self._inside(offset, nbytes)
        self.arrays.append((offset, dtype, extent, steps or None))
        ndarray = np.ndarray
        if not steps:
            return lambda exporter: ndarray(extent, dtype, exporter, offset)
        return lambda exporter: ndarray(extent, dtype, exporter, offset, steps)


def _unpickle(parts: list[NDArray[np.uint8]]) -> Any:
    stream, *buffers = parts
    try:
        return pickle.loads(stream.data, buffers=buffers)
    except Exception as error:  # a pickle runs the code of its classes
        raise FormatError(f"a pickled value cannot be read here ({type(error).__name__}: {error})") from error


def _child_names(kind: str, detail: Any, nodes: list[Any]) -> list[str]:
    if kind in ("dict", "odict"):
        return [str(_read_key(key)) for key in detail]
    if kind in ("namedtuple", "dataclass"):
        return list(detail[2])
    return [str(index) for index in range(len(nodes))]


def read_dtype(descr: Any) -> np.dtype[Any]:
    """The dtype that a schema describes."""
    return np.lib.format.descr_to_dtype(_as_descr(descr))


def _as_descr(described: Any) -> Any:
    """JSON made lists of NumPy's tuples; give them back."""
    if isinstance(described, str):
        return described
    if described and isinstance(described[0], list):
        return [_as_field(field) for field in described]
    return tuple(_as_descr(part) if isinstance(part, list) else part for part in described)


def _as_field(field: list[Any]) -> tuple[Any, ...]:
    name, descr, *shape = field
    name = tuple(name) if isinstance(name, list) else name
    return (name, _as_descr(descr), *(tuple(part) for part in shape))


def _compile_dict(detail: Any, children: list[_Build], make: Callable[[Any], Any] | None = None) -> _Build:
    items = list(zip(map(_read_key, detail), children, strict=True))
    if make is not None:
        return lambda exporter: make((key, build(exporter)) for key, build in items)
    return lambda exporter: {key: build(exporter) for key, build in items}


def _compile_namedtuple(detail: Any, children: list[_Build]) -> _Build:
    cls = _find_class(*detail)
    if not (issubclass(cls, tuple) and list(getattr(cls, "_fields", ())) == detail[2]):
        raise FormatError(f"{detail[0]}.{detail[1]} is not a named tuple of the fields {detail[2]} here")
    make: Any = tuple.__new__
    return lambda exporter: make(cls, [build(exporter) for build in children])


def _compile_dataclass(detail: Any, children: list[_Build]) -> _Build:
    cls = _find_class(*detail)
    if not is_dataclass(cls) or [field.name for field in fields(cls)] != detail[2]:
        raise FormatError(f"{detail[0]}.{detail[1]} is not a dataclass of the fields {detail[2]} here")
    names = detail[2]

    def build(exporter: Any) -> Any:
        made = object.__new__(cls)  # as copy and pickle do: no __init__, no __post_init__
        for name, child in zip(names, children, strict=True):
            object.__setattr__(made, name, child(exporter))
        return made

    return build


def _find_class(module: str, qualname: str, _: list[str]) -> type:
    """The class of that name in a module that this process has imported: reading a channel imports nothing, so that it
    runs no code. A child process may know the main module under its second name."""
    candidates = ["__main__", "__mp_main__"] if module in ("__main__", "__mp_main__") else [module]
    for candidate in candidates:
        found: Any = sys.modules.get(candidate)
        for part in qualname.split("."):
            found = getattr(found, part, None)
        if isinstance(found, type):
            return found
    raise FormatError(
        f"the value contains a {module}.{qualname}, and this process has not imported that class; "
        f"import {module} before reading, or share a dict"
    )


_CONTAINER_COMPILERS: dict[str, Callable[[Any, list[_Build]], _Build]] = {
    "dict": _compile_dict,
    "odict": lambda detail, children: _compile_dict(detail, children, OrderedDict),
    "list": lambda _, children: lambda exporter: [build(exporter) for build in children],
    "tuple": lambda _, children: lambda exporter: tuple([build(exporter) for build in children]),
    "namedtuple": _compile_namedtuple,
    "dataclass": _compile_dataclass,
}
