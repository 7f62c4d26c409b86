"""Keys of dicts and dtypes of arrays as the JSON of a schema describes them, and checks of what JSON contains.

A key is a str, or a pair of its type and its content. One that is a plain value of Python's library, such as a date or
a member of an Enum, is described by the adapter of that value (untorn/adapters/python.py)::

    "w"   7 ──> ["int", "7"]   date(2026, 1, 2) ──> ["python.date", [[], {"day": ["int", "739618"]}]]

docs/format.md describes all of them. Reading trusts nothing: what describes no key or dtype raises TypeError,
ValueError, ArithmeticError or LookupError, which the caller turns into a FormatError that names the place.
"""

from __future__ import annotations

import re
import reprlib
from collections.abc import Callable
from typing import Any

import numpy as np

from untorn.adapter_registry import Adapter, adapter_for, adapter_named
from untorn.errors import FormatError, UnsupportedTypeError
from untorn.trees import MAX_DEPTH

__all__ = [
    "MALFORMED",
    "check_key",
    "count_of",
    "describe_key",
    "items_of",
    "name_of",
    "read_dtype",
    "read_key",
    "shown",
]

#: the errors of taking apart a document that does not have the expected form
MALFORMED = (TypeError, ValueError, LookupError, AttributeError, ArithmeticError, RecursionError)
_MAX_NBYTES = 2**63 - 1

# -- keys of dicts

#: the adapters whose values can be keys: they never change, and their parts are plain keys
_ADAPTED = frozenset(
    f"python.{name}"
    for name in (
        *("Enum", "datetime", "date", "time", "timedelta", "timezone", "ZoneInfo", "Decimal", "Fraction", "UUID"),
        *("PosixPath", "PurePosixPath", "PureWindowsPath"),
    )
)
_PLAIN = frozenset({str, int, float, bool, bytes, type(None)})
#: the kinds of NumPy's scalars that can be keys, apart from its str
_NUMBERS = "biufmM"
_MAX_NUMBER_NBYTES = 8  # a longer one has bits without a meaning


def check_key(key: Any) -> None:
    """Raise UnsupportedTypeError, without the place, for a key that cannot be described."""
    if type(key) is tuple:
        for part in key:
            if type(part) is tuple:
                raise UnsupportedTypeError(f"a dict key that is a tuple in a tuple, {shown(key)}; {_TO_DO}")
            check_key(part)
    elif type(key) not in _PLAIN and not _is_numpy(key):
        adapter = _adapter_of(key)
        if adapter is None:
            raise UnsupportedTypeError(f"a dict key of type {type(key).__qualname__}; {_TO_DO}")
        adapter.take_apart(key)  # it refuses, for example, an Enum that readers could not find


_TO_DO = (
    "expected str, int, float, bool, bytes, None, a number or str of NumPy, a date, time, Decimal, Fraction, UUID, "
    "path or member of an Enum, or a tuple of these; with allow_pickle=True on both sides the dict is pickled"
)


def _adapter_of(key: Any) -> Adapter | None:
    adapter = adapter_for(type(key))
    return adapter if adapter is not None and adapter.name in _ADAPTED else None


def _is_numpy(key: Any) -> bool:
    if not isinstance(key, np.generic) or type(key).__module__ != "numpy":
        return False
    return type(key) is np.str_ or (key.dtype.kind in _NUMBERS and key.dtype.itemsize <= _MAX_NUMBER_NBYTES)


def describe_key(key: Any) -> Any:
    """Return a key as JSON: a str unchanged, any other key as a pair of type and content. check_key() has accepted
    it."""
    cls = type(key)
    if cls is str:
        return key
    if cls is bytes:
        return ["bytes", key.hex()]
    if cls is tuple:
        return ["tuple", [describe_key(part) for part in key]]
    if cls is float:
        return ["float", key.hex()]
    if cls is np.str_:
        return ["numpy.str_", str.__str__(key)]  # str(key) drops zeros at the end
    if isinstance(key, np.generic):
        return ["numpy", [np.lib.format.dtype_to_descr(key.dtype), key.tobytes().hex()]]
    adapter = _adapter_of(key) if cls not in _PLAIN else None
    if adapter is not None:
        meta, parts = adapter.take_apart(key)
        return [adapter.name, [meta, {name: describe_key(part) for name, part in parts.items()}]]
    return [cls.__name__, str(key)]


_KEY_READERS: dict[str, Callable[[Any], Any]] = {
    "bytes": bytes.fromhex,
    "float": float.fromhex,
    "int": int,
    "bool": lambda text: text == "True",
    "NoneType": lambda _: None,
    "numpy.str_": np.str_,
}


def read_key(described: Any) -> Any:
    """Return the key that a schema describes."""
    if isinstance(described, str):
        return described
    kind, content = items_of(described)
    if kind == "tuple":
        return tuple(_read_part(part) for part in items_of(content))
    return _read_part(described)


def _read_part(described: Any) -> Any:
    """Return a key that is no tuple, or a part of one."""
    if isinstance(described, str):
        return described
    kind, content = items_of(described)
    if kind == "numpy":
        return _read_number(*items_of(content))
    if kind not in _ADAPTED:
        return _KEY_READERS[kind](name_of(content))
    meta, parts = items_of(content)
    if not isinstance(parts, dict):
        raise TypeError(f"expected the parts of a {kind}, found {shown(parts)}")
    # the parts are texts and numbers, so there is no third level
    plain = {name: part if isinstance(part, str) else _read_plain(*items_of(part)) for name, part in parts.items()}
    try:
        key = adapter_named(kind).put_together(meta, plain)
        hash(key)
    except Exception as error:  # the class of an Enum may raise any error
        if isinstance(error, FormatError):  # it says what to do
            raise
        raise ValueError(f"a {kind} cannot be put together ({type(error).__name__}: {error})") from error
    return key


def _read_plain(kind: Any, text: Any) -> Any:
    return _KEY_READERS[kind](name_of(text))


def _read_number(described: Any, digits: Any) -> Any:
    dtype, content = read_dtype(described), bytes.fromhex(name_of(digits))
    if dtype.kind not in _NUMBERS or len(content) != dtype.itemsize:
        raise ValueError(f"{shown(digits)} is no number of {shown(described)}")
    return np.ndarray((), dtype, content)[()]


# -- dtypes of arrays

#: the dtypes that NumPy describes by a text, in the only form that NumPy writes
_PLAIN_DTYPE = re.compile(r"[<>|=]?(?:b1|[iu][1248]|f\d\d?|c\d\d?|([SUV])(\d{1,10})|[mM]8(?:\[\d*[a-zA-Z]+\])?)")

#: NumPy's limit, in bytes; NumPy 1 gives larger items a size that is wrong
_MAX_ITEMSIZE = 2**31 - 1


def read_dtype(described: Any) -> np.dtype[Any]:
    """Return the dtype that a schema describes; it has no objects. Raises TypeError or ValueError if there is none."""
    return np.lib.format.descr_to_dtype(_as_descr(described))


def _as_descr(described: Any, depth: int = 0) -> Any:
    """Restore NumPy's tuples, which are lists in JSON."""
    if depth > MAX_DEPTH:
        raise ValueError(f"a dtype nested more than {MAX_DEPTH} deep")
    if isinstance(described, str):
        found = _PLAIN_DTYPE.fullmatch(described)
        if found is None or (found[1] and int(found[2]) * (4 if found[1] == "U" else 1) > _MAX_ITEMSIZE):
            raise ValueError(f"{shown(described)} describes no dtype")
        return described
    return [_as_field(items_of(field), depth + 1) for field in items_of(described)]


def _as_field(field: list[Any], depth: int) -> tuple[Any, ...]:
    name, described, *shapes = field
    titled = name if isinstance(name, str) else tuple(map(name_of, items_of(name)))
    return (titled, _as_descr(described, depth), *(tuple(map(count_of, items_of(shape))) for shape in shapes))


# -- checks of JSON values


def items_of(found: Any) -> list[Any]:
    """Return a list unchanged. Raises TypeError for anything else."""
    if not isinstance(found, list):
        raise TypeError(f"expected a list, found {shown(found)}")
    return found


def name_of(found: Any) -> str:
    """Return a str unchanged. Raises TypeError for anything else."""
    if not isinstance(found, str):
        raise TypeError(f"expected a string, found {shown(found)}")
    return found


def count_of(found: Any) -> int:
    """Return an int from 0 on unchanged. Raises TypeError or ValueError for anything else."""
    if type(found) is not int:  # excludes bool
        raise TypeError(f"expected a number of bytes or elements, found {shown(found)}")
    if not 0 <= found <= _MAX_NBYTES:
        raise ValueError(f"{shown(found)} is no number of bytes or elements")
    return found


def shown(found: Any) -> str:
    """Return a value as messages show it, shortened."""
    return reprlib.repr(found)
