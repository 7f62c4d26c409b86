"""Make values from a slot, by the schema that layout.py has written.

A reader does not trust what it reads. Every number is checked to be an int in its range before it is used; every leaf
lies inside its version and after the previous leaf, so that no more is copied than the version has; every array has
exactly as many bytes as its shape says, counted in integers that cannot overflow. Otherwise the reader raises
FormatError, which names the place.
"""

from __future__ import annotations

import json
import math
import pickle
from collections.abc import Callable
from dataclasses import fields, is_dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from untorn import _core
from untorn.adapter_registry import adapter_named
from untorn.errors import FormatError, UnsupportedTypeError
from untorn.share.described import MALFORMED, count_of, items_of, name_of, read_dtype, read_key, shown
from untorn.share.slot_format import FROZEN_DICT, STRUCTS, payload_of
from untorn.share.specs import OPAQUE, class_at, is_plain
from untorn.share.views import private_memory
from untorn.trees import CONTAINERS, MAX_DEPTH, Path, builder, keys_detail, member_names, path_of

__all__ = ["UNREADABLE", "Decoder", "unreadable"]

_MAX_NBYTES = 2**63 - 1
#: the errors of reading a leaf: too many axes, no text; the last is NumPy's
UNREADABLE = (ValueError, OverflowError, SystemError)

_Build = Callable[[Any], Any]


def unreadable(error: Exception) -> FormatError:
    """Return the error for a leaf that could not be read."""
    return FormatError(f"a leaf of this version cannot be read ({error}); the channel's file is damaged")


class Decoder:
    """Makes values from slots that have one schema. Arrays are views into the exporting object, and so are values of
    other libraries if these allow it; everything else is copied.

    Args:
        schema: as Layout wrote it.
        slot_nbytes: the size of the memory that will be read.
        payload: the offset of the payload in it; by default after a slot's header and schema.
        allow_pickle: unpickle pickled values.
        arrays: make the array itself of a value of another library that is one array, such as a tensor.

    Raises FormatError if the schema is damaged or points outside the slot; UnsupportedTypeError, which names the place,
    for a pickle that is not allowed; ImportError if the library of a value is missing.
    """

    def __init__(
        self,
        schema: bytes,
        slot_nbytes: int,
        *,
        payload: int | None = None,
        allow_pickle: bool = False,
        arrays: bool = False,
    ) -> None:
        self.schema = schema
        self.payload: int = payload_of(schema) if payload is None else payload
        self.slot_nbytes = slot_nbytes
        self.allow_pickle = allow_pickle
        self._as_arrays = arrays
        #: the form of every array leaf: (offset, dtype, shape, strides), in order
        self.arrays: list[tuple[int, np.dtype[Any], tuple[int, ...], tuple[int, ...] | None]] = []
        self._at: tuple[str, ...] = ()  # the node that is being compiled
        self._end = self.payload  # of the leaves so far
        #: id of an exporter that is being read -> its private memory, which all values of a version share
        self._private: dict[int, Any] = {}
        try:
            document = json.loads(schema)
            self._build = self._compile(document["value"], ())
            self._build_extra = self._compile(document["extra"], ()) if "extra" in document else None
        except (FormatError, UnsupportedTypeError):
            raise
        except MALFORMED as error:
            raise FormatError(
                f"{path_of(self._at)}: the schema of a version cannot be read here ({type(error).__name__}: {error}); "
                "the channel's file is damaged, or was not written by untorn"
            ) from error

    def value(self, exporter: Any) -> Any:
        """Return the value in a slot: a new tree around views of ``exporter``."""
        return self._built(self._build, exporter)

    def extra(self, exporter: Any) -> Any:
        """Return what the publisher stored beside the value, or None."""
        return self._built(self._build_extra, exporter) if self._build_extra is not None else None

    def _built(self, build: _Build, exporter: Any) -> Any:
        try:
            return build(exporter)
        except UNREADABLE as error:
            raise unreadable(error) from error
        finally:
            self._private.pop(id(exporter), None)

    def _private_memory(self, exporter: Any) -> Any:
        """Return the private copy of a version, shared by all its values. If threads make two, either is used."""
        made = self._private.get(id(exporter))
        if made is None:
            made = self._private[id(exporter)] = private_memory(exporter)
        return made

    def _compile(self, node: Any, path: Path, depth: int = 0) -> _Build:
        self._at = path
        kind, detail, *rest = items_of(node)
        if depth > MAX_DEPTH:
            raise ValueError(f"nested more than {MAX_DEPTH} deep")
        if kind in CONTAINERS:
            (nodes,) = rest
            kind, detail = self._read_container(kind, detail, len(items_of(nodes)))
            names = member_names(kind, detail, len(nodes))
            children = [
                self._compile(child, (*path, name), depth + 1) for name, child in zip(names, nodes, strict=True)
            ]
            self._at = path
            return _container_builder(kind, detail, children)
        if kind == "frozendict":
            kind, detail = "adapter", [FROZEN_DICT, None, detail]
        if kind in OPAQUE:
            (nodes,) = rest
            return self._compile_opaque(kind, detail, items_of(nodes), path, depth + 1)
        if kind == "none":
            return lambda _: None
        return self._compile_leaf(kind, self.payload + count_of(detail), rest)

    def _read_container(self, kind: str, detail: Any, count: int) -> tuple[str, Any]:
        """Return the kind of a container and its detail, as a Spec has it."""
        try:
            return kind, _read_detail(kind, detail, count)
        except FormatError as error:
            raise FormatError(f"{path_of(self._at)}: {error}") from error

    def _compile_opaque(self, kind: str, detail: Any, nodes: list[Any], path: Path, depth: int) -> _Build:
        if kind == "pickle" and not self.allow_pickle:
            raise UnsupportedTypeError(
                f"{path_of(path)}: a pickled {detail}, and this reader does not unpickle; pass allow_pickle=True to "
                "subscribe() or queue() if you trust the publisher: a pickle can run any code"
            )
        if kind == "adapter":
            name, meta, names = items_of(detail)
            parts = dict(zip(map(name_of, items_of(names)), nodes, strict=True))
            if self._as_arrays and parts.keys() == {"data"}:
                return self._compile(parts["data"], path, depth)
            return self._compile_adapter(name_of(name), meta, parts, path, depth)
        children = [self._compile(node, path, depth) for node in nodes]
        return lambda exporter: _unpickle([build(exporter) for build in children])

    def _compile_adapter(self, name: str, meta: Any, nodes: dict[str, Any], path: Path, depth: int) -> _Build:
        adapter = adapter_named(name)
        as_arrays, self._as_arrays = self._as_arrays, False  # the adapter expects its own parts
        children = {part: self._compile(node, (*path, part), depth) for part, node in nodes.items()}
        self._as_arrays = as_arrays
        more = (self.allow_pickle,) if adapter.unpickles else ()

        def build(exporter: Any) -> Any:
            memory = self._private_memory(exporter) if adapter.private else exporter
            parts = {part: child(memory) for part, child in children.items()}
            try:
                return adapter.put_together(meta, parts, *more)
            except Exception as error:  # the library may raise any error for parts that do not fit together
                raise FormatError(
                    f"{path_of(path)}: a {name} cannot be put together ({type(error).__name__}: {error}); "
                    "is it written by another version of that library, or damaged?"
                ) from error

        return build

    def _take(self, offset: int, nbytes: int) -> None:
        """Check that the next leaf may lie there. Leaves lie in the order of the tree, so that none overlap."""
        if offset < self._end or nbytes > self.slot_nbytes - offset:
            raise FormatError(
                f"{path_of(self._at)}: a leaf at bytes {offset} to {offset + nbytes} lies outside its version of "
                f"{self.slot_nbytes} bytes, or not behind the leaf before it, which ends at {self._end}; the channel's "
                "file is damaged"
            )
        self._end = offset + nbytes

    def _compile_leaf(self, kind: Any, offset: int, rest: list[Any]) -> _Build:
        if kind == "array":
            return self._compile_array(offset, *rest)
        if kind == "numpy":
            (described,) = rest
            return self._compile_scalar(offset, read_dtype(described))
        if kind in STRUCTS:
            unpack = STRUCTS[kind].unpack_from
            self._take(offset, STRUCTS[kind].size)
            if kind == "complex":
                return lambda exporter: complex(*unpack(exporter, offset))
            return lambda exporter: unpack(exporter, offset)[0]
        if kind == "packed":
            return self._compile_packed(offset, *rest)
        if kind not in ("str", "bytes", "bigint"):
            raise FormatError(
                f"{path_of(self._at)}: a leaf of unknown kind {shown(kind)}; a newer untorn may have written this "
                "channel"
            )
        (nbytes,) = rest
        end = offset + count_of(nbytes)
        self._take(offset, end - offset)
        if kind == "str":
            return lambda exporter: bytes(memoryview(exporter)[offset:end]).decode("utf-8", "surrogatepass")
        if kind == "bytes":
            return lambda exporter: bytes(memoryview(exporter)[offset:end])
        return lambda exporter: int.from_bytes(memoryview(exporter)[offset:end], "little", signed=True)

    def _compile_packed(self, offset: int, nbytes: Any, type_name: Any, length: Any) -> _Build:
        size, place = count_of(nbytes), path_of(self._at)
        self._take(offset, size)
        what = f"a {name_of(type_name)} of {count_of(length):,} plain values"

        def build(exporter: Any) -> Any:
            try:
                return _core.plain_unpack(exporter, offset, size)
            except FormatError as error:
                raise FormatError(f"{place}: {what}: {error}") from None

        return build

    def _compile_scalar(self, offset: int, dtype: np.dtype[Any]) -> _Build:
        self._take(offset, dtype.itemsize)
        if dtype.kind in "SU":  # an array would drop zeros at the end
            return partial(_read_text, dtype, offset)
        if dtype.kind == "V":  # the only scalars of NumPy that are views
            return lambda exporter: np.ndarray((), dtype, exporter, offset).copy()[()]
        return lambda exporter: np.ndarray((), dtype, exporter, offset)[()]

    def _compile_array(self, offset: int, described: Any, shape: Any, strides: Any) -> _Build:
        dtype, extent = read_dtype(described), tuple(map(count_of, items_of(shape)))
        steps = None if strides is None else tuple(map(count_of, items_of(strides)))
        nbytes = _nbytes_of(dtype, extent, steps)
        self._take(offset, nbytes)
        self.arrays.append((offset, dtype, extent, steps))
        ndarray = np.ndarray
        if steps is None:
            return lambda exporter: ndarray(extent, dtype, exporter, offset)
        return lambda exporter: ndarray(extent, dtype, exporter, offset, steps)


def _read_text(dtype: np.dtype[Any], offset: int, exporter: Any) -> np.bytes_ | np.str_:
    data = bytes(memoryview(exporter)[offset : offset + dtype.itemsize])
    if dtype.kind == "S":
        return np.bytes_(data)
    order = "be" if dtype.byteorder == ">" else "le"
    return np.str_(data.decode(f"utf-32-{order}", "surrogatepass"))


def _nbytes_of(dtype: np.dtype[Any], extent: tuple[int, ...], steps: tuple[int, ...] | None) -> int:
    """Return the size of an array without gaps and repeated elements. Raises ValueError if there is no such array."""
    if max(1, dtype.itemsize) * math.prod(filter(None, extent)) > _MAX_NBYTES:
        raise ValueError(
            f"no array has the shape {shown(extent)}"
        )  # compiled code also multiplies the lengths beside a 0
    nbytes = dtype.itemsize * math.prod(extent)
    if steps is None:
        return nbytes
    span = dtype.itemsize + sum((n - 1) * step for n, step in zip(extent, steps, strict=True))
    if span != nbytes or not nbytes:
        raise ValueError(f"shape {shown(extent)} and strides {shown(steps)} do not fit together")
    return nbytes


def _unpickle(parts: list[NDArray[np.uint8]]) -> Any:
    stream, *buffers = parts
    try:
        return pickle.loads(stream.data, buffers=buffers)
    except Exception as error:  # a pickle runs the code of its classes
        raise FormatError(f"a pickled value cannot be read here ({type(error).__name__}: {error})") from error


def _read_detail(kind: str, detail: Any, count: int) -> Any:
    """Return the detail of a Spec of this container. Raises FormatError if a class cannot be found or instantiated."""
    if kind in ("dict", "odict"):
        return keys_detail(map(read_key, items_of(detail)))
    if kind in ("list", "tuple"):
        return count
    module, qualname, names = items_of(detail)
    cls, names = _find_class(module, qualname), [name_of(name) for name in items_of(names)]
    if not is_plain(cls) or names != _fields_of(kind, cls):
        what = "named tuple" if kind == "namedtuple" else kind
        raise FormatError(f"{module}.{qualname} is not a {what} of the fields {shown(names)} here")
    return cls, names


def _fields_of(kind: str, cls: type) -> list[str] | None:
    if kind == "dataclass":
        return [field.name for field in fields(cls)] if is_dataclass(cls) else None
    return list(cls._fields) if issubclass(cls, tuple) and hasattr(cls, "_fields") else None


def _container_builder(kind: str, detail: Any, children: list[_Build]) -> _Build:
    if kind not in ("namedtuple", "dataclass"):
        return builder(kind, detail, children)
    make = builder(kind, detail, [next] * len(children))

    def build(exporter: Any) -> Any:
        members = [child(exporter) for child in children]
        try:
            return make(iter(members))
        except (
            TypeError,
            AttributeError,
        ) as error:  # an instance can only be made in C, the class is abstract, or it lacks that field
            cls = detail[0]
            raise FormatError(f"{cls.__module__}.{cls.__qualname__} cannot be made here ({error})") from error

    return build


def _find_class(module: Any, qualname: Any) -> type:
    """Return the class of that name in a module that this process has imported. Reading a channel imports nothing, so
    that it runs no code. A child process may know the main module under its second name."""
    candidates = ["__main__", "__mp_main__"] if module in ("__main__", "__mp_main__") else [name_of(module)]
    for candidate in candidates:
        found = class_at(candidate, name_of(qualname))
        if found is not None:
            return found
    raise FormatError(
        f"the value contains a {module}.{qualname}, and this process has not imported that class; "
        f"import {module} before reading, or share a dict"
    )
