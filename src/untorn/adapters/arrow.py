"""pyarrow: tables, record batches, arrays, chunked arrays and schemas, as Arrow's own IPC stream.

::

    take_apart:    value -> record batches -> size of the stream;  the stream is written directly into shared memory
    put_together:  the stream's bytes, in shared memory -> record batches whose buffers lie in it

The stream supports every Arrow type. A reader gets the chunks as they were published and copies nothing; a slice is
sent without the rest of its array. If an extension type is not registered in the reader, its storage type arrives.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from untorn.adapter_registry import Adapter, Parts
from untorn.errors import UnsupportedTypeError
from untorn.share.lowlevel import Deferred

__all__ = ["ADAPTERS"]

#: the id of a value that was read -> the value, and the stream that holds it
_streams: dict[int, tuple[weakref.ref[Any], NDArray[np.uint8]]] = {}


def _remember(value: Any, stream: NDArray[np.uint8]) -> Any:
    """Remember the stream of a value that was read. Arrow's values are immutable, so sharing it again can reuse the
    stream."""
    key = id(value)

    def forget(_: object, streams: dict[int, Any] = _streams) -> None:
        streams.pop(key, None)

    _streams[key] = (weakref.ref(value, forget), stream)
    return value


def _known_stream(value: Any) -> NDArray[np.uint8] | None:
    known = _streams.get(id(value))
    return known[1] if known is not None and known[0]() is value else None


def _write(sink: Any, schema: Any, batches: list[Any]) -> None:
    options = pa.ipc.IpcWriteOptions(use_threads=False)  # threads only help with compression
    with pa.ipc.new_stream(sink, schema, options=options) as writer:
        for batch in batches:
            writer.write_batch(batch)


def _stream(schema: Any, batches: list[Any]) -> Deferred:
    """Return the stream of these batches, which is written when its place in shared memory is known."""
    size = pa.MockOutputStream()
    try:
        _write(size, schema, batches)
    except pa.ArrowException as error:
        raise UnsupportedTypeError(
            f"Arrow cannot write it as an IPC stream ({error}); convert the columns of that type"
        ) from error

    def write_into(target: NDArray[np.uint8]) -> None:
        with pa.FixedSizeBufferWriter(pa.py_buffer(target)) as sink:
            _write(sink, schema, batches)

    return Deferred(size.size(), write_into)


def _open(stream: NDArray[np.uint8]) -> Any:
    return pa.ipc.open_stream(pa.py_buffer(stream), options=pa.ipc.IpcReadOptions(use_threads=False))


def _read_table(stream: NDArray[np.uint8]) -> Any:
    with _open(stream) as reader:
        table = reader.read_all()
    table.validate()  # checks sizes only, which in a damaged file could make Arrow read beyond the end
    return table


def _compact(array: Any) -> Any:
    """Copy an array of string or binary views that refers to far more text than it uses: a slice keeps the text of its
    whole column."""
    if pa.types.is_string_view(array.type):
        plain = pa.large_string()
    elif pa.types.is_binary_view(array.type):
        plain = pa.large_binary()
    else:
        return array
    _, views, *texts = array.buffers()
    held = sum(text.size for text in texts)
    if held <= _SMALL:
        return array
    lengths = np.frombuffer(views, np.int32)[::4][array.offset : array.offset + len(array)]
    used = lengths[lengths > _INLINE].sum(dtype=np.int64)
    return array.cast(plain).cast(array.type) if held > 2 * used else array


#: up to this size in bytes, a slice is sent with its whole column's text
_SMALL = 64 * 1024
#: texts up to this size in bytes lie in the view itself
_INLINE = 12


def _batch(arrays: list[Any], schema: Any) -> Any:
    return pa.RecordBatch.from_arrays([_compact(array) for array in arrays], schema=schema)


def _column_schema(kind: Any) -> Any:
    return pa.schema([pa.field("", kind)])


def _table_batches(table: Any) -> list[Any]:
    chunks = [column.chunks for column in table.columns]
    lengths = [[len(chunk) for chunk in column] for column in chunks]
    if chunks and all(other == lengths[0] for other in lengths):
        return [_batch(list(row), table.schema) for row in zip(*chunks, strict=True)]
    # no columns, only a length; or columns with different chunks, which are all split at every boundary
    return [_batch(batch.columns, table.schema) if chunks else batch for batch in table.to_batches()]


def _take_table(value: Any) -> Deferred:
    return _stream(value.schema, _table_batches(value))


def _take_batch(value: Any) -> Deferred:
    return _stream(value.schema, [_batch(value.columns, value.schema) if value.num_columns else value])


def _put_batch(stream: NDArray[np.uint8]) -> Any:
    with _open(stream) as reader:
        batch = reader.read_next_batch()
    batch.validate()
    return batch


def _take_array(value: Any) -> Deferred:
    schema = _column_schema(value.type)
    return _stream(schema, [_batch([value], schema)])


def _take_chunked(value: Any) -> Deferred:
    schema = _column_schema(value.type)
    return _stream(schema, [_batch([chunk], schema) for chunk in value.chunks])


def _streamed(
    name: str,
    matches: Callable[[type], bool],
    take: Callable[[Any], Deferred],
    put: Callable[[NDArray[np.uint8]], Any],
) -> Adapter:
    """Return an adapter for values that are sent as one stream."""

    def take_apart(value: Any) -> Parts:
        stream = _known_stream(value)
        return Parts((), {"stream": take(value) if stream is None else stream})

    def put_together(_: Any, parts: dict[str, Any]) -> Any:
        stream = parts["stream"]
        return _remember(put(stream), stream)

    return Adapter(name, matches, take_apart, put_together)


ADAPTERS = (
    _streamed("pyarrow.Table", lambda cls: cls is pa.Table, _take_table, _read_table),
    _streamed("pyarrow.RecordBatch", lambda cls: cls is pa.RecordBatch, _take_batch, _put_batch),
    _streamed(
        "pyarrow.ChunkedArray",
        lambda cls: cls is pa.ChunkedArray,
        _take_chunked,
        lambda stream: _read_table(stream).column(0),
    ),
    _streamed(
        "pyarrow.Array",
        lambda cls: issubclass(cls, pa.Array),
        _take_array,
        lambda stream: _put_batch(stream).column(0),
    ),
    Adapter(
        "pyarrow.Schema",
        lambda cls: cls is pa.Schema,
        lambda value: Parts((), {"message": value.serialize().to_pybytes()}),
        lambda _, parts: pa.ipc.read_schema(pa.py_buffer(parts["message"])),
    ),
)
