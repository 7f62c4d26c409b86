"""pandas: frames, series, indexes and the arrays that they consist of.

::

    DataFrame ──> index, columns, and values: one 2-D array if all columns have the same NumPy dtype,
       │          otherwise one array per column
    Series ─────> index, and values
    Index ──────> values; a MultiIndex has levels and codes instead, a RangeIndex three numbers
       └──> extension arrays (categorical, masked, dates with a time zone, ...) ──> the NumPy arrays inside,
            or Arrow's (arrow.py), which pandas also needs for these

A reader's frame lies in shared memory and is read-only: operations that write in place raise ValueError, all others
work as usual and make new columns. Masked and sparse arrays differ: writes to them go to a private copy. Python objects
cannot lie in shared memory: object columns may hold str, bytes, None, NaN, numbers and bool, and both sides copy them.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import accumulate
from types import NoneType
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from pandas import arrays
from pandas.api.extensions import ExtensionArray
from pandas.api.types import pandas_dtype
from pandas.tseries.frequencies import to_offset

from untorn.adapter_registry import Adapter, Parts
from untorn.errors import UnsupportedTypeError

__all__ = ["ADAPTERS"]


# -- object arrays, as text

#: type of an element -> (to text, from text); an element's type is sent as its position in this table
_ELEMENTS: dict[type, tuple[Callable[[Any], str], Callable[[str], Any]]] = {
    str: (str, str),
    NoneType: (lambda _: "", lambda _: None),
    float: (float.hex, float.fromhex),
    type(pd.NA): (lambda _: "", lambda _: pd.NA),
    type(pd.NaT): (lambda _: "", lambda _: pd.NaT),
    int: (hex, lambda text: int(text, 16)),
    bool: (lambda value: "x" * value, bool),
    bytes: (lambda value: value.decode("latin-1"), lambda text: text.encode("latin-1")),
}
_ENCODERS = [to_text for to_text, _ in _ELEMENTS.values()]
_DECODERS = [from_text for _, from_text in _ELEMENTS.values()]
_NUMBERS = {cls: number for number, cls in enumerate(_ELEMENTS)}
_STR = _NUMBERS[str]


def _pack_objects(array: NDArray[Any]) -> tuple[bytes, bytes, bytes]:
    """Return the elements' types, their lengths in characters, and all their characters, each as bytes."""
    elements = array.tolist()
    try:
        kinds = bytes([_NUMBERS[type(element)] for element in elements])
    except KeyError as error:
        raise UnsupportedTypeError(
            f"an object array that contains a {error.args[0].__module__}.{error.args[0].__qualname__}; expected str, "
            "bytes, None, NaN, numbers and bool; convert it to a dtype for such values (datetime64, category, ...) if "
            "there is one"
        ) from None
    texts = [
        element if kind == _STR else _ENCODERS[kind](element) for kind, element in zip(kinds, elements, strict=True)
    ]
    lengths = np.fromiter(map(len, texts), "<i8", len(texts))
    return kinds, lengths.tobytes(), "".join(texts).encode("utf-8", "surrogatepass")


def _unpack_objects(kinds: bytes, lengths: bytes, characters: bytes) -> NDArray[Any]:
    text = characters.decode("utf-8", "surrogatepass")
    sizes = np.frombuffer(lengths, "<i8").tolist()
    if sum(sizes) != len(text) or min(sizes, default=0) < 0:  # otherwise a few bytes could expand to any amount of text
        raise ValueError(f"elements have {sum(sizes)} characters, found {len(text)}")
    ends = list(accumulate(sizes))
    made = np.empty(len(kinds), object)
    start = 0
    for index, (kind, end) in enumerate(zip(kinds, ends, strict=True)):
        made[index] = text[start:end] if kind == _STR else _DECODERS[kind](text[start:end])
        start = end
    return made


# -- the values of a series or an index


def _values_of(holder: Any) -> Any:
    """Return the values as a NumPy array, an extension array, or packed objects."""
    values = holder.array
    if type(values) is not arrays.NumpyExtensionArray:
        return values
    array = values.to_numpy()
    return _pack_objects(array) if array.dtype.hasobject else array


def _unpacked(values: Any) -> Any:
    return _unpack_objects(*values) if isinstance(values, tuple) else values


def _attributes(value: Any) -> dict[str, Any]:
    """Return the attrs of a frame or series, if it has any."""
    return {"attrs": dict(value.attrs)} if value.attrs else {}


def _with_attributes(made: Any, allows_duplicate_labels: bool, parts: dict[str, Any]) -> Any:
    if "attrs" in parts:
        made.attrs = parts["attrs"]
    if not allows_duplicate_labels:
        made.flags.allows_duplicate_labels = False
    return made


# -- frames and series


def _take_series(value: Any) -> Parts:
    children = {"index": value.index, "name": value.name, "values": _values_of(value), **_attributes(value)}
    return Parts((value.flags.allows_duplicate_labels,), children)


def _put_series(meta: Any, parts: dict[str, Any]) -> Any:
    made = _series(_unpacked(parts["values"]), parts["index"], parts["name"])
    return _with_attributes(made, meta[0], parts)


def _series(values: Any, index: Any, name: Any = None) -> Any:
    return pd.Series(values, index=index, name=name, dtype=values.dtype, copy=False)


def _take_frame(value: Any) -> Parts:
    children = {"index": value.index, "columns": value.columns, **_attributes(value)}
    block = _is_one_block(value)
    if block:
        # readers need one array, so a frame that consists of several is copied once here
        children["values"] = value.to_numpy()
    else:
        children.update(_columns(value))
    return Parts((value.flags.allows_duplicate_labels, block), children)


def _is_one_block(frame: Any) -> bool:
    dtypes = set(frame.dtypes)
    return len(dtypes) == 1 and all(isinstance(dtype, np.dtype) and not dtype.hasobject for dtype in dtypes)


def _columns(frame: Any) -> dict[str, Any]:
    columns = {}
    for position, (label, column) in enumerate(frame.items()):
        try:
            values = _values_of(column)
        except UnsupportedTypeError as error:
            raise UnsupportedTypeError(f"column {label!r}: {error}") from error
        # this name appears in the error if a child cannot be shared
        columns[f"{position}:{label}" if isinstance(label, str) else str(position)] = values
    return columns


def _put_frame(meta: Any, parts: dict[str, Any]) -> Any:
    allows_duplicate_labels, block = meta
    index, columns = parts["index"], parts["columns"]
    if block:
        made = pd.DataFrame(parts["values"], index=index, columns=columns, copy=False)
    else:
        columns_of = [values for name, values in parts.items() if name[0].isdigit()]
        made = pd.DataFrame({at: _column(values, index) for at, values in enumerate(columns_of)}, index, copy=False)
        made.columns = columns
    return _with_attributes(made, allows_duplicate_labels, parts)


def _column(values: Any, index: Any) -> Any:
    """Return a column; packed objects as a series, since pandas would infer another dtype for a bare array of them."""
    return _series(_unpacked(values), index) if isinstance(values, tuple) else values


# -- indexes


def _take_index(value: Any) -> Parts:
    freq = value.freq if isinstance(value, _WITH_FREQ) else None
    if freq is not None and to_offset(freq.freqstr) != freq:
        raise UnsupportedTypeError(f"the frequency {freq!r} has no name; set .freq = None on the index")
    return Parts((freq and freq.freqstr,), {"values": _values_of(value), "name": value.name})


def _put_index(meta: Any, parts: dict[str, Any]) -> Any:
    values, name, freq = _unpacked(parts["values"]), parts["name"], meta[0]
    if freq is not None:
        return (pd.DatetimeIndex if values.dtype.kind == "M" else pd.TimedeltaIndex)(
            values, freq=freq, name=name, copy=False
        )
    return pd.Index(values, dtype=object if values.dtype == object else None, name=name, copy=False)


def _take_multi_index(value: Any) -> Parts:
    children = {"levels": list(value.levels), "codes": list(value.codes), "names": list(value.names)}
    return Parts((value.sortorder,), children)


def _put_multi_index(meta: Any, parts: dict[str, Any]) -> Any:
    levels, codes, names = parts["levels"], parts["codes"], parts["names"]
    _check_codes(*codes)
    if not len(levels) == len(codes) == len(names) or len({code.shape for code in codes}) > 1:
        raise ValueError(f"an index with {len(levels)} levels, {len(codes)} codes and {len(names)} names")
    return pd.MultiIndex(**parts, sortorder=meta[0], verify_integrity=False, copy=False)


# -- extension arrays


def _dtype_text(dtype: Any) -> str:
    """Return the text from which pandas makes this dtype again."""
    text = str(dtype)
    try:
        known = pandas_dtype(text) == dtype
    except (TypeError, ValueError, LookupError):
        known = False
    if not known:
        raise UnsupportedTypeError(
            f"dtype {dtype!r} has no name from which pandas could make it in another process; convert it (for a time "
            "zone, to one with an IANA name)"
        )
    return text


def _on_its_own(array: NDArray[Any]) -> NDArray[Any]:
    """Return an array over the same memory with another owner. If two bounds have the same owner, pandas copies one of
    them, because they might overlap."""
    return np.asarray(array.data)


def _take_dates(value: Any) -> Parts:
    return Parts((_dtype_text(value.dtype),), {"values": value.asi8})


def _put_dates(meta: Any, parts: dict[str, Any]) -> Any:
    dtype = pandas_dtype(meta[0])
    values = _on_its_own(parts["values"])
    values = values.view(dtype) if isinstance(dtype, np.dtype) else values
    return pd.array(values, dtype=dtype, copy=False)


def _take_categorical(value: Any) -> Parts:
    return Parts((bool(value.ordered),), {"codes": value.codes, "categories": value.categories})


def _check_codes(*found: Any) -> None:
    """Check the type and shape of codes that pandas is told not to check. Their values stay unchecked."""
    for codes in found:
        if not (isinstance(codes, np.ndarray) and codes.ndim == 1 and codes.dtype.kind == "i"):
            raise ValueError("expected codes as an array of integers with one axis")


def _put_categorical(meta: Any, parts: dict[str, Any]) -> Any:
    _check_codes(parts["codes"])
    dtype = pd.CategoricalDtype(parts["categories"], ordered=meta[0])
    return pd.Categorical.from_codes(parts["codes"], dtype=dtype, validate=False)


def _take_interval(value: Any) -> Parts:
    return Parts((value.closed,), {"left": _values_of(value.left), "right": _values_of(value.right)})


def _put_interval(meta: Any, parts: dict[str, Any]) -> Any:
    left, right = parts["left"], parts["right"]
    right = _on_its_own(right) if isinstance(right, np.ndarray) else right
    return arrays.IntervalArray.from_arrays(left, right, closed=meta[0], copy=False)


def _take_masked(value: Any) -> Parts:
    return Parts((), {"values": value._data, "mask": value._mask})  # noqa: SLF001 (the public accessors copy)


def _take_sparse(value: Any) -> Parts:
    index = value.sp_index
    indices = index.to_int_index().indices
    children = {
        "values": value.sp_values,
        # each reader makes an index of blocks again, so it needs no view
        "indices": indices if value.kind == "integer" else indices.tobytes(),
        "length": int(index.length),
        "fill_value": value.fill_value,
    }
    return Parts((value.kind,), children)


def _put_sparse(meta: Any, parts: dict[str, Any]) -> Any:
    values, indices, length, fill_value = (parts[name] for name in ("values", "indices", "length", "fill_value"))
    indices = np.frombuffer(indices, np.int32) if isinstance(indices, bytes) else indices
    if hasattr(arrays.SparseArray, "from_indices"):
        return arrays.SparseArray.from_indices(values, indices, length, fill_value, meta[0])
    # before pandas 3.1, from_indices() does not exist and the index must be made first
    from pandas.core.arrays.sparse import make_sparse_index

    index, dtype = make_sparse_index(length, indices, meta[0]), pd.SparseDtype(values.dtype, fill_value)
    return arrays.SparseArray(values, sparse_index=index, fill_value=fill_value, dtype=dtype, copy=False)


def _take_string(value: Any) -> Parts:
    dtype = value.dtype
    values = value.__arrow_array__() if dtype.storage != "python" else _pack_objects(value.to_numpy(object))
    return Parts((dtype.storage, dtype == pd.StringDtype(dtype.storage)), {"values": values})


def _put_string(meta: Any, parts: dict[str, Any]) -> Any:
    storage, is_default = meta  # always True in pandas 2.2; later versions have two dtypes for each storage
    dtype = pd.StringDtype(storage) if is_default else pd.StringDtype(storage, na_value=np.nan)
    values = _unpacked(parts["values"])
    return pd.array(values, dtype=dtype, copy=False) if storage == "python" else dtype.__from_arrow__(values)


def _take_through_arrow(value: Any) -> Parts:
    """Take an extension array of another library through its conversion to Arrow."""
    dtype = value.dtype
    if not (hasattr(value, "__arrow_array__") and hasattr(dtype, "__from_arrow__")):
        raise UnsupportedTypeError(
            f"an extension array of dtype {dtype!r} that does not support Arrow (__arrow_array__ and __from_arrow__); "
            "convert it with .astype()"
        )
    try:
        import pyarrow as pa
    except ImportError as error:
        raise ImportError(f"sharing dtype {dtype!r} needs pyarrow, which cannot be imported ({error})") from error
    return Parts((_dtype_text(dtype),), {"values": pa.array(value)})


def _put_through_arrow(meta: Any, parts: dict[str, Any]) -> Any:
    try:
        dtype = pandas_dtype(meta[0])
    except TypeError as error:
        raise TypeError(f"pandas knows no dtype {meta[0]!r} here; import the library that it comes from") from error
    return dtype.__from_arrow__(parts["values"])


# -- single values, which names, labels and fill values often are


def _take_scalar(value: Any) -> Parts:
    return Parts((), {"values": pd.array([value])})


def _put_scalar(_: Any, parts: dict[str, Any]) -> Any:
    return parts["values"][0]


#: types that have exactly one value
_SINGLETONS = {type(pd.NA): ("NA", pd.NA), type(pd.NaT): ("NaT", pd.NaT)}


def _exactly(cls: type) -> Callable[[type], bool]:
    return lambda other: other is cls


def _of(base: type) -> Callable[[type], bool]:
    return lambda other: issubclass(other, base)


_Take = Callable[[Any], Parts]
_Put = Callable[[Any, dict[str, Any]], Any]

_BY_TYPE: dict[str, tuple[type, _Take, _Put]] = {
    "DataFrame": (pd.DataFrame, _take_frame, _put_frame),
    "Series": (pd.Series, _take_series, _put_series),
    "MultiIndex": (pd.MultiIndex, _take_multi_index, _put_multi_index),
    "RangeIndex": (
        pd.RangeIndex,
        lambda value: Parts((), {part: getattr(value, part) for part in ("start", "stop", "step", "name")}),
        lambda _, parts: pd.RangeIndex(**parts),
    ),
    "Categorical": (pd.Categorical, _take_categorical, _put_categorical),
    "DatetimeArray": (arrays.DatetimeArray, _take_dates, _put_dates),
    "TimedeltaArray": (arrays.TimedeltaArray, _take_dates, _put_dates),
    "PeriodArray": (
        arrays.PeriodArray,
        lambda value: Parts((_dtype_text(value.dtype),), {"values": value.asi8}),
        lambda meta, parts: arrays.PeriodArray(parts["values"], dtype=pandas_dtype(meta[0]), copy=False),
    ),
    "IntervalArray": (arrays.IntervalArray, _take_interval, _put_interval),
    "IntegerArray": (arrays.IntegerArray, _take_masked, lambda _, parts: arrays.IntegerArray(**parts)),
    "FloatingArray": (arrays.FloatingArray, _take_masked, lambda _, parts: arrays.FloatingArray(**parts)),
    "BooleanArray": (arrays.BooleanArray, _take_masked, lambda _, parts: arrays.BooleanArray(**parts)),
    "SparseArray": (arrays.SparseArray, _take_sparse, _put_sparse),
    "ArrowExtensionArray": (
        arrays.ArrowExtensionArray,
        lambda value: Parts((), {"values": value.__arrow_array__()}),
        lambda _, parts: arrays.ArrowExtensionArray(parts["values"]),
    ),
    "NumpyExtensionArray": (
        arrays.NumpyExtensionArray,
        lambda value: Parts((), {"values": _values_of(pd.Series(value, copy=False))}),
        lambda _, parts: arrays.NumpyExtensionArray(_unpacked(parts["values"])),
    ),
}


def _along_one_axis(put: _Put) -> _Put:
    """Check that arrays have one axis: pandas's compiled code assumes it, and otherwise reads out of bounds."""

    def checked(meta: Any, parts: dict[str, Any]) -> Any:
        for name, part in parts.items():
            if isinstance(part, np.ndarray | ExtensionArray) and part.ndim != 1:
                raise ValueError(f"{name}: expected an array with one axis, found {part.ndim}")
        return put(meta, parts)

    return checked


_WITH_FREQ = (pd.DatetimeIndex, pd.TimedeltaIndex)
_INDEXES = (pd.Index, pd.DatetimeIndex, pd.TimedeltaIndex, pd.PeriodIndex, pd.IntervalIndex, pd.CategoricalIndex)
_STRINGS = (arrays.StringArray, arrays.ArrowStringArray)

#: pandas writes to these while it computes, such as cumsum to the values below missing ones; before 3.1 it also could
#: not compare sparse arrays in read-only memory
_PRIVATE = {"IntegerArray", "FloatingArray", "BooleanArray", "SparseArray"}

ADAPTERS = (
    *(
        Adapter(
            f"pandas.{name}",
            _exactly(cls),
            take,
            put if cls is pd.DataFrame else _along_one_axis(put),  # a frame's values may have two axes; pandas checks
            private=name in _PRIVATE,
        )
        for name, (cls, take, put) in _BY_TYPE.items()
    ),
    Adapter("pandas.Index", lambda cls: cls in _INDEXES, _take_index, _along_one_axis(_put_index)),
    Adapter(
        "pandas.scalar",
        lambda cls: cls in (pd.Timestamp, pd.Timedelta, pd.Period, pd.Interval),
        _take_scalar,
        _along_one_axis(_put_scalar),
    ),
    Adapter(
        "pandas.missing",
        lambda cls: cls in _SINGLETONS,
        lambda value: Parts((_SINGLETONS[type(value)][0],), {}),
        lambda meta, _: dict(_SINGLETONS.values())[meta[0]],
    ),
    Adapter("pandas.StringArray", lambda cls: issubclass(cls, _STRINGS), _take_string, _along_one_axis(_put_string)),
    Adapter("pandas.ExtensionArray", _of(ExtensionArray), _take_through_arrow, _put_through_arrow),
)
