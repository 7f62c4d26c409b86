"""Plain values of Python's standard library: dates, exact numbers, enums, paths, sets and other containers.

Each is taken apart into numbers, text and arrays, so that no pickle is needed, also in files that are read years later.
All of them are copies. Only instances of exactly these classes are taken: what a subclass adds would be lost.

The texts or numbers of a set, or of the keys of a Counter, become a few arrays, so that a million of them do not make a
schema of a million lines::

    {"b", "cd"}  ──>  meta ["text"], text = b"bcd", ends = [1, 3]
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from datetime import UTC
from typing import Any

import numpy as np

from untorn.adapter_registry import Adapter, Parts
from untorn.errors import FormatError, UnsupportedTypeError
from untorn.share.lowlevel import class_at

__all__ = ["ADAPTERS"]

# -- sequences of keys or elements


def _pack(items: list[Any]) -> tuple[str, dict[str, Any]]:
    """Return the kind of the items, and their parts."""
    kinds = set(map(type, items))
    if kinds == {str}:
        return "text", _joined([item.encode("utf-8", "surrogatepass") for item in items])
    if kinds == {bytes}:
        return "bytes", _joined(items)
    if kinds == {float}:
        return "float", {"numbers": np.array(items, np.float64)}
    if kinds == {int} and all(-(2**63) <= item < 2**63 for item in items):
        return "int", {"numbers": np.array(items, np.int64)}
    return "any", {"items": items}


def _joined(texts: list[bytes]) -> dict[str, Any]:
    ends = np.cumsum([len(text) for text in texts], dtype=np.int64)
    return {"text": np.frombuffer(b"".join(texts), np.uint8), "ends": ends}


def _unpack(kind: str, parts: dict[str, Any]) -> list[Any]:
    if kind == "any":
        return list(parts["items"])
    if kind in ("int", "float"):
        numbers: list[Any] = parts["numbers"].tolist()
        return numbers
    text, ends = bytes(parts["text"]), parts["ends"].tolist()
    starts = [0, *ends[:-1]]
    if any(start > end for start, end in zip(starts, ends, strict=True)) or ends[-1:] not in ([], [len(text)]):
        raise FormatError("the lengths of the texts do not fit")
    pieces = [text[start:end] for start, end in zip(starts, ends, strict=True)]
    return pieces if kind == "bytes" else [piece.decode("utf-8", "surrogatepass") for piece in pieces]


def _take_items(value: Iterable[Any]) -> Parts:
    kind, parts = _pack(list(value))
    return Parts((kind,), parts)


def _take_set(value: Any) -> Parts:
    """Take the elements in an order that does not depend on their hashes, so that equal sets have equal structures."""
    items = list(value)
    one_type = len(set(map(type, items))) == 1
    items.sort(key=None if one_type and type(items[0]) in (int, str, bytes, float) else _order_of)
    return _take_items(items)


def _order_of(item: Any) -> tuple[str, Any]:
    """Return a key that sorts elements of any types."""
    inner = sorted(map(_order_of, item)) if isinstance(item, frozenset) else repr(item)
    return type(item).__qualname__, inner


def _take_deque(value: Any) -> Parts:
    return Parts((value.maxlen,), {"items": list(value)})


def _put_deque(meta: Any, parts: dict[str, Any]) -> Any:
    from collections import deque

    return deque(parts["items"], meta[0])


def _take_counter(value: Any) -> Parts:
    keys, key_parts = _pack(list(value))
    counts, count_parts = _pack(list(value.values()))
    if keys == "any":
        return Parts(("any", "any"), {"items": dict(value)})
    return Parts((keys, counts), {**key_parts, **{f"count_{name}": part for name, part in count_parts.items()}})


def _put_counter(meta: Any, parts: dict[str, Any]) -> Any:
    from collections import Counter

    if meta[0] == "any":
        return Counter(parts["items"])
    counts = _unpack(meta[1], {name.removeprefix("count_"): parts[name] for name in parts if name[:6] == "count_"})
    return Counter(dict(zip(_unpack(meta[0], parts), counts, strict=True)))


#: what a defaultdict may make; anything else is code that only its own program has
_FACTORIES: dict[str, Callable[[], Any]] = {
    made.__name__: made
    for made in (list, dict, set, frozenset, tuple, int, float, complex, bool, str, bytes, bytearray)
}


def _take_defaultdict(value: Any) -> Parts:
    factory = value.default_factory
    name = getattr(factory, "__name__", "")
    if factory is not None and _FACTORIES.get(name) is not factory:
        raise UnsupportedTypeError(
            f"a defaultdict whose default_factory is {factory!r}; expected None or one of {', '.join(_FACTORIES)}. "
            "Share dict(value)"
        )
    return Parts((name if factory is not None else None,), {"items": dict(value)})


def _put_defaultdict(meta: Any, parts: dict[str, Any]) -> Any:
    from collections import defaultdict

    return defaultdict(None if meta[0] is None else _FACTORIES[meta[0]], parts["items"])


def _put_namespace(meta: Any, parts: dict[str, Any]) -> Any:
    if meta[0] == "argparse":
        from argparse import Namespace

        return Namespace(**parts["items"])
    from types import SimpleNamespace

    return SimpleNamespace(**parts["items"])


def _take_namespace(value: Any) -> Parts:
    return Parts((type(value).__module__,), {"items": dict(vars(value))})


def _put_array(meta: Any, parts: dict[str, Any]) -> Any:
    from array import array

    return array(meta[0], bytes(parts["data"]))


def _take_array(value: Any) -> Parts:
    if value.typecode not in "bBhHiIlLqQfd":
        raise UnsupportedTypeError(f"an array.array of typecode {value.typecode!r}; share a str")
    return Parts((value.typecode,), {"data": np.frombuffer(value, value.typecode)})


# -- dates and times


def _take_datetime(value: Any) -> Parts:
    from datetime import datetime, timedelta

    plain = value.replace(tzinfo=None, fold=0)
    parts = {"microseconds": (plain - datetime.min) // timedelta(microseconds=1), "fold": value.fold}
    return Parts(_take_zone(value.tzinfo), parts)


def _put_datetime(meta: Any, parts: dict[str, Any]) -> Any:
    from datetime import datetime, timedelta

    plain = datetime.min + timedelta(microseconds=parts["microseconds"])
    return plain.replace(tzinfo=_put_zone(meta), fold=parts["fold"])


def _take_time(value: Any) -> Parts:
    seconds = (value.hour * 60 + value.minute) * 60 + value.second
    return Parts(
        _take_zone(value.tzinfo), {"microseconds": seconds * 1_000_000 + value.microsecond, "fold": value.fold}
    )


def _put_time(meta: Any, parts: dict[str, Any]) -> Any:
    from datetime import datetime, timedelta

    plain = datetime.min + timedelta(microseconds=parts["microseconds"])
    return plain.time().replace(tzinfo=_put_zone(meta), fold=parts["fold"])


def _take_zone(zone: Any) -> tuple[Any, ...]:
    from datetime import timedelta, timezone

    if zone is None:
        return ()
    if type(zone) is timezone:
        offset = zone.utcoffset(None)
        name = zone.tzname(None)
        named = name if name != timezone(offset).tzname(None) else None
        return ("offset", offset // timedelta(microseconds=1), named)
    key = getattr(zone, "key", None)
    if f"{type(zone).__module__}.{type(zone).__name__}" == "zoneinfo.ZoneInfo" and isinstance(key, str):
        return ("zone", key)
    raise UnsupportedTypeError(
        f"a time in a {type(zone).__module__}.{type(zone).__qualname__}; expected a zoneinfo.ZoneInfo with a key, a "
        "datetime.timezone, or a time without a zone"
    )


def _put_zone(meta: Any) -> Any:
    from datetime import timedelta, timezone

    if not meta:
        return None
    if meta[0] == "zone":
        from zoneinfo import ZoneInfo

        return ZoneInfo(meta[1])
    offset = timedelta(microseconds=meta[1])
    if meta[2] is not None:
        return timezone(offset, meta[2])
    return UTC if not offset else timezone(offset)


def _put_date(_: Any, parts: dict[str, Any]) -> Any:
    from datetime import date

    return date.fromordinal(parts["day"])


def _put_timedelta(_: Any, parts: dict[str, Any]) -> Any:
    from datetime import timedelta

    return timedelta(parts["days"], parts["seconds"], parts["microseconds"])


# -- numbers and names


def _put_decimal(_: Any, parts: dict[str, Any]) -> Any:
    from decimal import Decimal

    return Decimal(parts["text"])


def _put_fraction(_: Any, parts: dict[str, Any]) -> Any:
    from fractions import Fraction

    return Fraction(parts["numerator"], parts["denominator"])


def _put_uuid(_: Any, parts: dict[str, Any]) -> Any:
    from uuid import UUID

    return UUID(bytes=bytes(parts["data"]))


def _put_path(meta: Any, parts: dict[str, Any]) -> Any:
    import pathlib

    if meta[0] not in ("PosixPath", "PurePosixPath", "PureWindowsPath"):
        raise FormatError(f"a path of the kind {meta[0]!r}")
    return getattr(pathlib, meta[0])(parts["text"])


def _take_enum(value: Any) -> Parts:
    from enum import Flag

    cls = type(value)
    if class_at(cls.__module__, cls.__qualname__) is not cls:
        raise UnsupportedTypeError(
            f"the enum {cls.__module__}.{cls.__qualname__} cannot be imported by that name; define it at the top of a "
            "module that readers can import"
        )
    meta = (cls.__module__, cls.__qualname__)
    if isinstance(value, Flag):  # a combination of members has no name of its own
        return Parts(meta, {"bits": value.value})
    return Parts(meta, {"member": value.name})


def _put_enum(meta: Any, parts: dict[str, Any]) -> Any:
    from enum import Enum, Flag

    module, name = meta
    # a child process may know the main module under its second name
    places = ("__main__", "__mp_main__") if module in ("__main__", "__mp_main__") else (module,)
    cls = next(filter(None, (class_at(place, name) for place in places)), None)
    if cls is None:
        raise FormatError(
            f"the value contains a {module}.{name}, and this process has not imported that enum; import {module} "
            "before reading"
        )
    if not issubclass(cls, Enum):
        raise FormatError(f"{module}.{name} is no enum here")
    if "bits" in parts:
        if not issubclass(cls, Flag):
            raise FormatError(f"{module}.{name} is no Flag here")
        return cls(parts["bits"])
    if parts["member"] not in cls.__members__:
        raise FormatError(f"{module}.{name} has no member {parts['member']!r} here")
    return cls.__members__[parts["member"]]


def _is(place: str) -> Callable[[type], bool]:
    """Return a function that recognises exactly this class, without importing its module."""
    module, name = place.rsplit(".", 1)
    # since Python 3.13 the classes of pathlib are in a module of that package
    return lambda cls: cls.__name__ == name and cls.__module__ in (module, f"{module}._local") and _is_there(cls)


def _is_there(cls: type) -> bool:
    """Return whether a class is the one of its name, and not a local class that claims it."""
    return class_at(cls.__module__, cls.__name__) is cls


def _is_enum(cls: type) -> bool:
    enum = sys.modules.get("enum")
    return enum is not None and issubclass(cls, enum.Enum)


def _adapter(
    place: str, take: Callable[[Any], Parts], put: Callable[[Any, dict[str, Any]], Any], *, name: str = ""
) -> Adapter:
    return Adapter(f"python.{name or place.rsplit('.', 1)[1]}", _is(place), take, put)


ADAPTERS = (
    Adapter("python.Enum", _is_enum, _take_enum, _put_enum),
    _adapter("datetime.datetime", _take_datetime, _put_datetime),
    _adapter("datetime.date", lambda value: Parts((), {"day": value.toordinal()}), _put_date),
    _adapter("datetime.time", _take_time, _put_time),
    _adapter(
        "datetime.timedelta",
        lambda value: Parts((), {"days": value.days, "seconds": value.seconds, "microseconds": value.microseconds}),
        _put_timedelta,
    ),
    _adapter("datetime.timezone", lambda value: Parts(_take_zone(value), {}), lambda meta, _: _put_zone(meta)),
    _adapter("zoneinfo.ZoneInfo", lambda value: Parts(_take_zone(value), {}), lambda meta, _: _put_zone(meta)),
    _adapter("decimal.Decimal", lambda value: Parts((), {"text": str(value)}), _put_decimal),
    _adapter(
        "fractions.Fraction",
        lambda value: Parts((), {"numerator": value.numerator, "denominator": value.denominator}),
        _put_fraction,
    ),
    _adapter("uuid.UUID", lambda value: Parts((), {"data": value.bytes}), _put_uuid),
    *(
        _adapter(
            f"pathlib.{kind}", lambda value: Parts((type(value).__name__,), {"text": str(value)}), _put_path, name=kind
        )
        for kind in ("PosixPath", "PurePosixPath", "PureWindowsPath")
    ),
    _adapter("builtins.set", _take_set, lambda meta, parts: set(_unpack(meta[0], parts))),
    _adapter("builtins.frozenset", _take_set, lambda meta, parts: frozenset(_unpack(meta[0], parts))),
    _adapter(
        "builtins.range",
        lambda value: Parts((), {"start": value.start, "stop": value.stop, "step": value.step}),
        lambda _, parts: range(parts["start"], parts["stop"], parts["step"]),
    ),
    _adapter(
        "builtins.slice",
        lambda value: Parts((), {"start": value.start, "stop": value.stop, "step": value.step}),
        lambda _, parts: slice(parts["start"], parts["stop"], parts["step"]),
    ),
    _adapter(
        "builtins.bytearray",
        lambda value: Parts((), {"data": np.frombuffer(value, np.uint8)}),
        lambda _, parts: bytearray(parts["data"]),
    ),
    _adapter("array.array", _take_array, _put_array),
    _adapter("collections.deque", _take_deque, _put_deque),
    _adapter("collections.defaultdict", _take_defaultdict, _put_defaultdict),
    _adapter("collections.Counter", _take_counter, _put_counter),
    _adapter("types.SimpleNamespace", _take_namespace, _put_namespace),
    _adapter("argparse.Namespace", _take_namespace, _put_namespace, name="Namespace"),
)
