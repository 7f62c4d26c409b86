"""A value as a tree: its structure, its leaves, and where each leaf's bytes lie.

``flatten`` takes a value apart into a *spec* (a hashable description of structure, types, dtypes and shapes: no
values) and the list of its leaves in order. Two values with equal specs have the same bytes layout, so a publisher
that publishes the same structure again only copies leaves. ``layout.py`` gives each leaf its place and writes the
structure down for readers.

What can be shared natively: dict, OrderedDict, list, tuple, named tuple and dataclass trees over NumPy arrays of every
dtype but object, NumPy scalars, int, float, complex, bool, str, bytes and None.
"""

from __future__ import annotations

import dataclasses
import sys
import warnings
from collections import OrderedDict
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from untorn.errors import UnsupportedTypeError

__all__ = ["CONTAINERS", "Spec", "array_spec", "flatten", "path_of"]

MAX_DEPTH = 200


class Spec(NamedTuple):
    """One node: its kind, what distinguishes it from others of its kind, and its children."""

    kind: str
    detail: Any = None
    children: tuple[Spec, ...] = ()


CONTAINERS = frozenset({"dict", "odict", "list", "tuple", "namedtuple", "dataclass"})

_INT64 = range(-(2**63), 2**63)
_KEY_TYPES = (str, int, float, bool, bytes, type(None))


def path_of(path: tuple[str, ...]) -> str:
    """The place of a node as people write it: ``head/w``; the root is ``(the value itself)``."""
    return "/".join(path) if path else "(the value itself)"


def flatten(value: Any) -> tuple[Spec, list[Any]]:
    """Take a value apart: its spec, and its leaves (arrays as they are, scalars as given) in depth-first order.

    Nothing is copied. Raises UnsupportedTypeError, naming the place, for a type that cannot be shared, a key that is
    not a plain value, a tree that contains itself, or one that is nested more than 200 deep.
    """
    leaves: list[Any] = []
    return _flatten(value, leaves, (), []), leaves


def _flatten(value: Any, leaves: list[Any], path: tuple[str, ...], above: list[int]) -> Spec:
    kind = _LEAF_KINDS.get(type(value))
    if kind is not None:
        leaves.append(value)
        return _scalar_spec(kind, value)
    if isinstance(value, np.ndarray):
        array = _plain_array(value, path)
        leaves.append(array)
        return array_spec(array, path)
    if isinstance(value, np.generic):
        leaves.append(value)
        return Spec("numpy", _checked_dtype(value.dtype, path))
    return _flatten_container(value, leaves, path, above)


def _flatten_container(value: Any, leaves: list[Any], path: tuple[str, ...], above: list[int]) -> Spec:
    kind, detail, members = _open_container(value, path)
    if id(value) in above:
        raise UnsupportedTypeError(
            f"{path_of(path)}: the tree contains itself here (a cycle of {type(value).__name__}); "
            "a shared value must be a finite tree"
        )
    if len(above) >= MAX_DEPTH:
        raise UnsupportedTypeError(f"{path_of(path[:8])}/...: nested more than {MAX_DEPTH} deep")
    above.append(id(value))
    children = tuple(_flatten(member, leaves, (*path, name), above) for name, member in members)
    above.pop()
    return Spec(kind, detail, children)


def _open_container(value: Any, path: tuple[str, ...]) -> tuple[str, Any, Iterator[tuple[str, Any]]]:
    cls = type(value)
    if cls is dict or cls is OrderedDict:
        for key in value:
            _check_key(key, path)
        # True == 1 == 1.0: the key's type is part of the structure
        keys = tuple((type(key).__name__, key) for key in value)
        return "dict" if cls is dict else "odict", keys, ((str(k), v) for k, v in value.items())
    if cls is list or cls is tuple:
        return cls.__name__, len(value), ((str(i), v) for i, v in enumerate(value))
    if issubclass(cls, tuple) and hasattr(cls, "_fields"):
        return "namedtuple", _class_detail(cls, cls._fields, path), zip(cls._fields, value, strict=True)
    if dataclasses.is_dataclass(cls):
        names = tuple(field.name for field in dataclasses.fields(cls))
        return "dataclass", _class_detail(cls, names, path), ((name, getattr(value, name)) for name in names)
    raise _unsupported(value, path)


def _check_key(key: Any, path: tuple[str, ...]) -> None:
    if type(key) not in _KEY_TYPES and not (type(key) is tuple and all(type(part) in _KEY_TYPES for part in key)):
        raise UnsupportedTypeError(
            f"{path_of(path)}: a dict key of type {type(key).__qualname__}; "
            "expected str, int, float, bool, bytes, None or a tuple of these"
        )


def _class_detail(cls: type, names: tuple[str, ...], path: tuple[str, ...]) -> tuple[str, str, tuple[str, ...]]:
    """A reader finds the class again by module and name, so it must be there under that name."""
    found: Any = sys.modules.get(cls.__module__)
    for part in cls.__qualname__.split("."):
        found = getattr(found, part, None)
    if found is not cls:
        raise UnsupportedTypeError(
            f"{path_of(path)}: the class {cls.__module__}.{cls.__qualname__} cannot be imported by that name; "
            "define it at the top of a module that readers can import, or share a dict"
        )
    return cls.__module__, cls.__qualname__, names


def _scalar_spec(kind: str, value: Any) -> Spec:
    if kind == "int" and value not in _INT64:
        return Spec("bigint", (value.bit_length() + 8) // 8)
    if kind == "str":
        return Spec("str", len(value.encode("utf-8", "surrogatepass")))
    if kind == "bytes":
        return Spec("bytes", len(value))
    return _FIXED[kind]


def _plain_array(value: NDArray[Any], path: tuple[str, ...]) -> NDArray[Any]:
    if type(value) is np.ndarray:
        return value
    if type(value) is np.memmap:
        return value.view(np.ndarray)
    raise _unsupported(value, path, hint="; share np.asarray(...) of it")


def array_spec(array: NDArray[Any], path: tuple[str, ...] = ()) -> Spec:
    """The spec of an array: dtype, shape, and the strides of a compact copy that keeps its axis order."""
    dtype = _checked_dtype(array.dtype, path)
    if array.flags.c_contiguous:
        strides = None  # the usual case, and every empty array
    elif array.size == 0:
        strides = None
    else:
        strides = np.empty_like(array, order="K", subok=False).strides
    return Spec("array", (dtype, array.shape, strides))


def _checked_dtype(dtype: np.dtype[Any], path: tuple[str, ...]) -> np.dtype[Any]:
    if dtype not in _KNOWN_DTYPES:
        _check_dtype(dtype, path)
        _KNOWN_DTYPES.add(dtype)
    return dtype


def _check_dtype(dtype: np.dtype[Any], path: tuple[str, ...]) -> None:
    if dtype.hasobject:
        raise UnsupportedTypeError(
            f"{path_of(path)}: an array of dtype {dtype} holds references to Python objects, which mean nothing in "
            "another process; convert it to a numeric, string or structured dtype"
        )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of metadata that the description drops
            again = np.lib.format.descr_to_dtype(np.lib.format.dtype_to_descr(dtype))
    except (TypeError, ValueError):
        again = None
    if again != dtype:
        raise UnsupportedTypeError(
            f"{path_of(path)}: dtype {dtype!r} has no plain description that another process could read; "
            "convert the array with .astype() or .view()"
        )


def _unsupported(value: Any, path: tuple[str, ...], hint: str = "") -> UnsupportedTypeError:
    cls = type(value)
    return UnsupportedTypeError(
        f"{path_of(path)}: cannot share {cls.__module__}.{cls.__qualname__}; expected a dict, list, tuple, named tuple "
        f"or dataclass of NumPy arrays, numbers, str, bytes and None{hint}"
    )


_LEAF_KINDS: dict[type, str] = {
    int: "int",
    float: "float",
    complex: "complex",
    bool: "bool",
    str: "str",
    bytes: "bytes",
    type(None): "none",
}
_FIXED = {kind: Spec(kind) for kind in ("int", "float", "complex", "bool", "none")}
_KNOWN_DTYPES: set[np.dtype[Any]] = set()
