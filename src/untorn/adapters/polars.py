"""polars: frames and series, through Arrow (arrow.py), to which polars converts without a copy.

A reader's columns lie in shared memory, in the chunks in which they were published. polars writes in place only to its
own memory, so a reader that changes a column gets a private copy. Each reader copies Categorical and Enum codes.

polars starts threads: read in a spawned child process, not in one that was forked after polars was used.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NoReturn

import polars as pl

from untorn.adapter_registry import Adapter, Parts
from untorn.errors import UnsupportedTypeError

__all__ = ["ADAPTERS"]

#: name of a dtype that Arrow does not have -> what to do; names, because older versions of polars lack some of them
_UNKNOWN_TO_ARROW = {
    "Object": "it holds Python objects; convert it to another dtype",
    "Int128": "Arrow has no such integers; cast it to Int64 or Decimal",
    "UInt128": "Arrow has no such integers; cast it to UInt64 or Decimal",
}


def _inner_types(dtype: Any) -> list[Any]:
    """Return the types that a nested type consists of."""
    if isinstance(dtype, pl.Struct):
        return [field.dtype for field in dtype.fields]
    return [dtype.inner] if isinstance(dtype, pl.List | pl.Array) else []


def _check(column: str, dtype: Any) -> None:
    advice = _UNKNOWN_TO_ARROW.get(dtype.base_type().__name__)
    if advice is not None:
        raise UnsupportedTypeError(f"column {column!r} has dtype {dtype}: {advice}")
    for inner in _inner_types(dtype):
        _check(column, inner)


def _take_frame(value: Any) -> Parts:
    for column, dtype in value.schema.items():
        _check(column, dtype)
    try:
        import pyarrow  # noqa: F401  # polars' own message does not say why it is needed
    except ImportError as error:
        raise ImportError(f"sharing polars needs pyarrow, which cannot be imported ({error}); install it") from error
    return Parts((), {"table": value.to_arrow(compat_level=pl.CompatLevel.newest())})


def _put_frame(_: Any, parts: dict[str, Any]) -> Any:
    table = parts["table"]
    made: Any = pl.from_arrow(table, rechunk=False)
    if made.columns != table.column_names:
        made.columns = table.column_names  # polars gives names to columns without one
    return made


def _take_lazy(value: Any) -> NoReturn:
    raise UnsupportedTypeError("a polars.LazyFrame has no data yet; share the result of its collect()")


def _put_lazy(_: Any, __: dict[str, Any]) -> NoReturn:
    raise ValueError("a polars.LazyFrame cannot be shared, so this is not a value that untorn has written")


def _exactly(cls: type) -> Callable[[type], bool]:
    return lambda other: other is cls


ADAPTERS = (
    Adapter("polars.DataFrame", _exactly(pl.DataFrame), _take_frame, _put_frame),
    Adapter(
        "polars.Series",
        _exactly(pl.Series),
        lambda value: _take_frame(value.to_frame()),
        lambda meta, parts: _put_frame(meta, parts).to_series(),
    ),
    Adapter("polars.LazyFrame", _exactly(pl.LazyFrame), _take_lazy, _put_lazy),
)
