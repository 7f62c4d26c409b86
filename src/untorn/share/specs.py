"""Describe the values that can be shared, as trees of leaves.

``flatten`` takes a value apart into a *spec* (a hashable description of structure, types, dtypes and shapes: no
values) and the list of its leaves in order. Two values with equal specs have the same bytes layout, so a publisher
that publishes the same structure again only copies leaves. ``layout.py`` gives each leaf its place and writes the
structure down for readers.

These can be shared natively: trees (untorn/trees.py) of NumPy arrays of every dtype except object, NumPy scalars, int,
float, complex, bool, str, bytes and None. Values of other libraries, and FrozenDict, go through adapters
(untorn/adapter_registry.py), which make them a node with native children. Anything else is pickled, if that is
allowed.

A list, tuple or dict of many plain values can be *packed*: then it is one leaf, whose bytes the core writes and reads
in one pass, instead of a node and a place for each of its values.
"""

from __future__ import annotations

import pickle
import sys
from collections import OrderedDict
from collections.abc import Callable
from enum import EnumMeta
from functools import partial
from types import BuiltinFunctionType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from untorn import _core, trees
from untorn.adapter_registry import Adapter, adapter_for
from untorn.errors import UnsupportedTypeError
from untorn.share.described import check_key
from untorn.trees import Node, Path, Spec, path_of

__all__ = ["OPAQUE", "PACKED_LENGTH", "Deferred", "array_spec", "class_at", "flatten", "is_plain"]

#: nodes whose children only their reader knows
OPAQUE = frozenset({"adapter", "pickle"})

#: a container with fewer members is not packed, so that its parts keep their own places
PACKED_LENGTH = 256
_PACKABLE = frozenset({dict, list, tuple})

_INT64 = range(-(2**63), 2**63)


class Deferred:
    """A leaf, read as a uint8 array, whose bytes are written directly to their place, without a copy elsewhere.

    Attributes:
        nbytes: the exact number of bytes.
        write_into: a function that writes all of them into a writable uint8 array.
    """

    def __init__(self, nbytes: int, write_into: Callable[[NDArray[np.uint8]], None]) -> None:
        self.nbytes = nbytes
        self.write_into = write_into

    def array(self) -> NDArray[np.uint8]:
        """Return the bytes in new memory."""
        made = np.empty(self.nbytes, np.uint8)
        self.write_into(made)
        return made


def flatten(value: Any, *, allow_pickle: bool = False, at: str = "", pack: bool = False) -> tuple[Spec, list[Any]]:
    """Take a value apart. Returns its spec, and its leaves (arrays and scalars unchanged) in depth-first order.

    Nothing is copied except by adapters that need to, and by pickling. Raises UnsupportedTypeError, which names the
    place, for a type that cannot be shared, a key that is not a plain value, a tree that contains itself, or one that
    is nested more than 200 deep. ``at`` is the path of the value in a larger one. With ``pack``, containers of at least
    PACKED_LENGTH members are packed, if there are only plain values in them: str, bytes, numbers of Python, None, and
    dicts, lists and tuples of these.
    """
    take = partial(_take_packed if pack else _take, allow_pickle)
    return trees.flatten(value, take, at=(at,) if at else ())


def _take_packed(allow_pickle: bool, value: Any, path: Path, leaves: list[Any]) -> Spec | Node:
    cls = type(value)
    packed = _core.plain_pack(value) if cls in _PACKABLE and len(value) >= PACKED_LENGTH else None
    if packed is None:
        return _take(allow_pickle, value, path, leaves)
    leaves.append(packed)
    return Spec("packed", (memoryview(packed).nbytes, cls.__name__, len(value)))


def _take(allow_pickle: bool, value: Any, path: Path, leaves: list[Any]) -> Spec | Node:
    cls = type(value)
    kind = _LEAF_KINDS.get(cls)
    if kind is not None:
        leaves.append(value)
        return _scalar_spec(kind, value)
    if cls is np.ndarray:
        return _take_array(allow_pickle, value, path, leaves)
    if cls is np.memmap:
        return _take_array(allow_pickle, value.view(np.ndarray), path, leaves)
    if isinstance(value, np.generic) and cls.__module__ == "numpy":
        leaves.append(value)
        return Spec("numpy", _checked_dtype(value.dtype, path))
    if cls is Deferred:
        leaves.append(value)
        return Spec("array", (_BYTE, (value.nbytes,), None))
    try:
        node = _opened(value, path)
    except UnsupportedTypeError:
        if allow_pickle:  # such as a dict with unusual keys, or a class that cannot be imported by its name
            return _pickled(allow_pickle, value, path)
        raise
    return node or _adapted(allow_pickle, adapter_for(cls), value, path)


def _take_array(allow_pickle: bool, array: NDArray[Any], path: Path, leaves: list[Any]) -> Spec | Node:
    if array.dtype.type.__module__ != "numpy":  # a dtype of another library, such as bfloat16
        adapter = adapter_for(array.dtype.type)
        if adapter is not None:
            return _adapted(allow_pickle, adapter, array, path)
    if array.dtype.hasobject and allow_pickle:
        return _pickled(allow_pickle, array, path)
    spec = array_spec(array, path)
    leaves.append(array)
    return spec


def _opened(value: Any, path: Path) -> Node | None:
    """Take a container apart. Returns None for anything else, and for a subclass, which readers would lose."""
    cls = type(value)
    if cls is dict or cls is OrderedDict:
        for key in value:
            if type(key) is not str:
                try:
                    check_key(key)
                except UnsupportedTypeError as error:
                    raise UnsupportedTypeError(f"{path_of(path)}: {error}") from error
    elif isinstance(cls, EnumMeta):  # its members may be named tuples or dataclasses, too
        return None
    elif trees.is_record(cls):
        _check_class(cls, path)
    elif cls is not list and cls is not tuple:
        return None
    return trees.opened(value)


def _adapted(allow_pickle: bool, adapter: Adapter | None, value: Any, path: Path) -> Node:
    if adapter is None:
        return _pickled(allow_pickle, value, path)
    try:
        meta, children = adapter.take_apart(value)
    except UnsupportedTypeError as error:
        if allow_pickle:
            return _pickled(allow_pickle, value, path)
        raise UnsupportedTypeError(f"{path_of(path)}: {error}") from error
    names = tuple(children)
    return Node("adapter", (adapter.name, meta, names), list(children.values()), names)


def _pickled(allow_pickle: bool, value: Any, path: Path) -> Node:
    """Return the pickle and its out-of-band buffers as arrays of bytes."""
    if not allow_pickle:
        raise _unsupported(value, path)
    buffers: list[NDArray[np.uint8]] = []

    def keep(buffer: pickle.PickleBuffer) -> bool:
        try:
            buffers.append(np.frombuffer(buffer.raw(), np.uint8))
        except BufferError:
            return True  # not contiguous, so it goes into the pickle
        return False

    try:
        stream = pickle.dumps(value, protocol=5, buffer_callback=keep)
    except Exception as error:  # the object's own methods may raise any error
        raise UnsupportedTypeError(
            f"{path_of(path)}: a {_type_name(value)} that cannot be pickled ({type(error).__name__}: {error})"
        ) from error
    return Node("pickle", _type_name(value), [np.frombuffer(stream, np.uint8), *buffers])


def _check_class(cls: type, path: Path) -> None:
    """Raise UnsupportedTypeError unless readers can make instances. They find the class by its module and name, and run
    none of its code."""
    if class_at(cls.__module__, cls.__qualname__) is not cls:
        raise UnsupportedTypeError(
            f"{path_of(path)}: the class {cls.__module__}.{cls.__qualname__} cannot be imported by that name; "
            "define it at the top of a module that readers can import, or share a dict"
        )
    if not is_plain(cls):
        raise UnsupportedTypeError(
            f"{path_of(path)}: {_type_name_of(cls)} has a base that is not written in Python, which only its own code "
            "can make again; share a dict of its fields"
        )


def class_at(module: str, qualname: str) -> type | None:
    """Return the class of that name in a module that was imported; None if there is none. Runs no code of the module,
    whose __getattr__ could import something."""
    found: Any = sys.modules.get(module)
    for part in qualname.split("."):
        found = getattr(found, "__dict__", {}).get(part)
    return found if isinstance(found, type) else None


def is_plain(cls: type) -> bool:
    """Return whether ``object.__new__``, or that of tuple, can make an instance. It cannot if a base is an exception, a
    dict or os.stat_result, which have their own ``__new__`` in C and contents that only it knows."""
    makers = (vars(base).get("__new__") for base in cls.__mro__ if base not in (object, tuple))
    return not any(isinstance(maker, BuiltinFunctionType) for maker in makers)


def _scalar_spec(kind: str, value: Any) -> Spec:
    if kind == "int" and value not in _INT64:
        return Spec("bigint", (value.bit_length() + 8) // 8)
    if kind == "str":
        return Spec("str", len(value.encode("utf-8", "surrogatepass")))
    if kind == "bytes":
        return Spec("bytes", len(value))
    return _FIXED[kind]


def array_spec(array: NDArray[Any], path: Path = ()) -> Spec:
    """Return the spec of an array: dtype, shape, and the strides of a compact copy that keeps its axis order."""
    dtype = _checked_dtype(array.dtype, path)
    strides = None if array.flags.c_contiguous or array.size == 0 else _compact_strides(array)
    return Spec("array", (dtype, array.shape, strides))


def _compact_strides(array: NDArray[Any]) -> tuple[int, ...] | None:
    """Return the strides of a compact copy with the axes in the same order in memory; None for C order. For a copy with
    these strides it returns them again."""
    axes = [axis for axis, length in enumerate(array.shape) if length != 1]
    if any(array.strides[axis] == 0 for axis in axes):
        return None  # an axis of repeated elements has no place in the order
    order = sorted(axes, key=lambda axis: -abs(array.strides[axis]))
    if order == axes:
        return None
    strides, step = [array.itemsize] * array.ndim, array.itemsize
    for axis in reversed(order):
        strides[axis] = step
        step *= array.shape[axis]
    return tuple(strides)


def _checked_dtype(dtype: np.dtype[Any], path: Path) -> np.dtype[Any]:
    """Return the dtype as readers get it, without metadata."""
    known = _KNOWN_DTYPES.get(dtype)
    if known is None:
        known = _KNOWN_DTYPES[dtype] = _described_dtype(dtype, path)
    return known


def _described_dtype(dtype: np.dtype[Any], path: Path) -> np.dtype[Any]:
    if dtype.kind == "T":
        raise UnsupportedTypeError(
            f"{path_of(path)}: an array of dtype {dtype} keeps its texts outside its own memory, where another process "
            "cannot read them; convert it with .astype(np.str_), or share its .tolist()"
        )
    if dtype.hasobject:
        raise UnsupportedTypeError(
            f"{path_of(path)}: an array of dtype {dtype} holds references to Python objects, which mean nothing in "
            "another process; convert it to a numeric, string or structured dtype"
        )
    try:
        # NumPy warns about what it cannot describe: metadata, and new kinds of dtypes. Silencing the warning here would
        # silence it for all threads
        legacy = getattr(type(dtype), "_legacy", True)
        plain = np.lib.format.drop_metadata(dtype)
        again = np.lib.format.descr_to_dtype(np.lib.format.dtype_to_descr(plain)) if legacy else None
    except (TypeError, ValueError):
        again = None
    if again != dtype:
        raise UnsupportedTypeError(
            f"{path_of(path)}: dtype {dtype!r} has no plain description that another process could read; "
            "convert the array with .astype() or .view()"
        )
    return again


def _type_name(value: Any) -> str:
    return _type_name_of(type(value))


def _type_name_of(cls: type) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"


def _unsupported(value: Any, path: Path) -> UnsupportedTypeError:
    hint = "share np.asarray(...) of it" if isinstance(value, np.ndarray) else _door(type(value))
    return UnsupportedTypeError(
        f"{path_of(path)}: cannot share {_type_name(value)}; expected a dict, list, tuple, named tuple or dataclass of "
        "NumPy arrays, numbers, str, bytes and None, a plain value of Python such as a date, a set or an Enum, or a "
        f"value of a library that untorn knows ({hint}); with allow_pickle=True on both sides anything that pickles "
        "can be shared"
    )


def _door(cls: type) -> str:
    """Return how to share an object whose class contains code that its readers need."""
    bases = {f"{base.__module__}.{base.__qualname__}" for base in cls.__mro__}
    if "torch.nn.modules.module.Module" in bases:
        return "publish module.state_dict(); readers call subscriber.cached(untorn.torch.loader(make_module))"
    if "sklearn.base.BaseEstimator" in bases:
        return "publish untorn.sklearn.state_of(estimator); readers call subscriber.cached(untorn.sklearn.estimator_of)"
    return "see docs/values.md"


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
_BYTE = np.dtype(np.uint8)
_KNOWN_DTYPES: dict[np.dtype[Any], np.dtype[Any]] = {}
