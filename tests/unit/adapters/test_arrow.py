"""pyarrow's values: every type, exactly, on the channel's own memory."""

import contextlib
import datetime
import decimal
import gc

import numpy as np
import pytest

import untorn
from helpers import start, untorn_mappings
from untorn.errors import FormatError, UnsupportedTypeError
from untorn.share import specs

pa = pytest.importorskip("pyarrow")
arrow = pytest.importorskip("untorn.adapters.arrow")

DAY = datetime.datetime(2024, 5, 17, 12, 30)
ARRAYS = {
    "int64": pa.array([1, None, 3]),
    "uint8": pa.array([1, 2, 3], pa.uint8()),
    "float16": pa.array(np.array([1, 2], np.float16)),
    "bool": pa.array([True, None, False]),
    "null": pa.nulls(3),
    "string": pa.array(["a", None, "üß"]),
    "large_string": pa.array(["a", None], pa.large_string()),
    "string_view": pa.array(["a", None, "x" * 50], pa.string_view()),
    "binary_view": pa.array([b"a", None, b"x" * 50], pa.binary_view()),
    "fixed_size_binary": pa.array([b"ab", b"cd"], pa.binary(2)),
    "decimal128": pa.array([decimal.Decimal("1.25"), None], pa.decimal128(30, 2)),
    "decimal256": pa.array([decimal.Decimal("1.25"), None], pa.decimal256(60, 2)),
    "timestamp": pa.array([DAY, None], pa.timestamp("us", "Europe/Berlin")),
    "date": pa.array([DAY.date(), None]),
    "time": pa.array([DAY.time(), None]),
    "duration": pa.array([datetime.timedelta(1), None]),
    "interval": pa.array([(1, 2, 3), None], pa.month_day_nano_interval()),
    "list": pa.array([[1, 2], None, []]),
    "list_view": pa.array([[1, 2], None, []], pa.list_view(pa.int64())),
    "fixed_size_list": pa.array([[1, 2], None], pa.list_(pa.int64(), 2)),
    "struct": pa.array([{"a": 1, "b": "x"}, None]),
    "map": pa.array([[("k", 1)], None], pa.map_(pa.string(), pa.int64())),
    "dictionary": pa.array(["a", "b", None, "a"]).dictionary_encode(),
    "nested dictionary": pa.array([["a"], ["b", "a"]], pa.list_(pa.dictionary(pa.int8(), pa.string()))),
    "run_end_encoded": pa.RunEndEncodedArray.from_arrays([2, 5], ["a", "b"]),
    "sparse union": pa.UnionArray.from_sparse(pa.array([0, 1], pa.int8()), [pa.array([1, 2]), pa.array(["a", "b"])]),
    "dense union": pa.UnionArray.from_dense(
        pa.array([0, 1], pa.int8()), pa.array([0, 0], pa.int32()), [pa.array([1]), pa.array(["b"])]
    ),
    "uuid": pa.array([b"0123456789abcdef"], pa.uuid()),
    "tensor": pa.FixedShapeTensorArray.from_numpy_ndarray(np.arange(12.0).reshape(3, 2, 2)),
    "empty": pa.array([], pa.int32()),
}
TABLE = pa.table({"a": [1, 2, 3], "s": ["x", None, "z"]})


def read(publisher):
    return publisher.subscriber().snapshot().value["t"]


def buffers_of(array):
    found = [buffer for buffer in array.buffers() if buffer is not None and buffer.size]
    if pa.types.is_dictionary(array.type):
        found += buffers_of(array.dictionary)
    return found


def is_shared(address):
    spans = ([int(end, 16) for end in line.split()[0].split("-")] for line in untorn_mappings())
    return any(first <= address < last for first, last in spans)


@pytest.mark.parametrize("name", ARRAYS)
def test_arrays_of_every_type_come_back_without_a_copy(name):
    value = ARRAYS[name]
    with untorn.publish({"t": value}) as publisher:
        got = read(publisher)
        got.validate(full=True)
        assert type(got) is type(value)
        assert got.type == value.type
        assert got.equals(value)
        buffers = buffers_of(got)
        assert all(is_shared(buffer.address) for buffer in buffers)
        assert not any(buffer.is_mutable for buffer in buffers)
        del got, buffers


@pytest.mark.parametrize("name", ARRAYS)
def test_a_slice_comes_back_as_it_was_cut(name):
    value = ARRAYS[name][1:]
    with untorn.publish({"t": value}) as publisher:
        assert read(publisher).to_pylist() == value.to_pylist()


@pytest.mark.parametrize("kind", [pa.int64(), pa.string(), pa.string_view(), pa.binary_view(), pa.list_(pa.int64())])
def test_a_slice_leaves_the_rest_behind(kind):
    texts = {pa.string(): str, pa.string_view(): str, pa.binary_view(): lambda i: str(i).encode()}
    element = texts.get(kind, (lambda i: [i]) if kind == pa.list_(pa.int64()) else int)
    whole = pa.array([element(10**20 + i) if kind in texts else element(i) for i in range(50_000)], kind)
    with untorn.publish({"t": pa.table({"x": whole[100:105]})}) as publisher:
        assert publisher.nbytes < 100_000
        assert read(publisher)["x"].to_pylist() == whole[100:105].to_pylist()


def test_chunks_metadata_and_field_order_are_kept():
    schema = pa.schema(
        [pa.field("a", pa.int64(), nullable=False, metadata={"unit": "m"}), pa.field("b", pa.string())],
        metadata={"made by": "us"},
    )
    rows = [[[1], []], [[], []], [[2, 3], ["x", None]]]
    rows[0][1] = ["y"]
    batches = [
        pa.RecordBatch.from_arrays([pa.array(a, pa.int64()), pa.array(b, pa.string())], schema=schema) for a, b in rows
    ]
    value = pa.Table.from_batches(batches, schema)
    with untorn.publish({"t": value}) as publisher:
        got = read(publisher)
        assert got.schema.equals(schema, check_metadata=True)
        assert [len(chunk) for chunk in got["a"].chunks] == [1, 0, 2]
        assert got.equals(value, check_metadata=True)
        del got


def test_columns_that_are_cut_in_different_places():
    value = pa.table({"a": pa.chunked_array([[1, 2, 3]]), "b": pa.chunked_array([[1], [2, 3]])})
    with untorn.publish({"t": value}) as publisher:
        assert read(publisher).equals(value)


@pytest.mark.parametrize(
    "value",
    [
        pa.table({}),
        TABLE.select([]),
        TABLE.schema.empty_table(),
        TABLE.slice(3),
        pa.table({"a": pa.chunked_array([], pa.int8())}),
        pa.Table.from_arrays([pa.array([1]), pa.array([2])], names=["same", "same"]),
    ],
)
def test_odd_shapes(value):
    with untorn.publish({"t": value}) as publisher:
        got = read(publisher)
        assert got.shape == value.shape
        assert got.equals(value)
        assert [column.num_chunks for column in got.columns] == [column.num_chunks for column in value.columns]
        del got


@pytest.mark.parametrize(
    "value",
    [
        TABLE.to_batches()[0],
        TABLE.to_batches()[0].slice(1, 1),
        TABLE.to_batches()[0].select([]),
        TABLE["s"],
        pa.chunked_array([[1], [], [2, 3]], pa.int64()),
        pa.chunked_array([], pa.string()),
        pa.chunked_array([pa.array(["a", "b"]).dictionary_encode(), pa.array(["c"]).dictionary_encode()]),
    ],
)
def test_batches_and_chunked_arrays(value):
    with untorn.publish({"t": value}) as publisher:
        got = read(publisher)
        assert type(got) is type(value)
        assert got.equals(value)
        assert getattr(got, "num_chunks", 0) == getattr(value, "num_chunks", 0)
        assert len(got) == len(value)
        del got


def test_a_schema():
    value = TABLE.schema.with_metadata({"k": "v"})
    with untorn.publish({"t": value}) as publisher:
        assert read(publisher).equals(value, check_metadata=True)


def test_what_a_reader_makes_of_it_is_read_only():
    with untorn.publish({"t": pa.table({"x": np.arange(4.0)})}) as publisher:
        got = read(publisher)
        array = got["x"].chunk(0).to_numpy()
        assert is_shared(array.ctypes.data)
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 9
        with pytest.raises(ValueError, match="WRITEABLE"):
            array.flags.writeable = True
        assert not np.frombuffer(got["x"].chunk(0).buffers()[1]).flags.writeable
        assert got.equals(read(publisher))
        del array, got


@pytest.mark.parametrize("options", [{}, {"split_blocks": True}, {"split_blocks": True, "self_destruct": True}])
def test_frames_made_from_it_change_nothing(options):
    pytest.importorskip("pandas")
    with untorn.publish({"t": pa.table({"x": np.arange(4.0), "y": np.arange(4)})}) as publisher:
        frame = read(publisher).to_pandas(**options)
        with contextlib.suppress(ValueError):
            frame.iloc[0, 0] = 9
        assert read(publisher)["x"][0].as_py() == 0
        del frame


def child_sends_it_back(pipe, subscriber):
    with subscriber.snapshot() as snapshot:
        pipe.put(snapshot.value["t"])


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_another_process(method):
    value = pa.table({"s": ["a", None], "d": pa.array(["x", "y"]).dictionary_encode()})
    with (
        untorn.publish({"t": value}) as publisher,
        start(child_sends_it_back, publisher.subscriber(), method=method) as child,
    ):
        assert child.get().equals(value)
        assert child.join() == 0


def test_a_column_outlives_snapshot_table_and_publisher():
    with untorn.publish({"t": TABLE}) as publisher:
        snapshot = publisher.subscriber().snapshot()
        column = snapshot.value["t"]["s"]
        snapshot.close()
        del snapshot
        for number in range(20):
            publisher.update({"t": pa.table({"s": [str(number)] * 10})})
    gc.collect()
    assert column.to_pylist() == ["x", None, "z"]
    assert untorn_mappings()
    del column


def test_another_structure_with_every_version():
    values = [TABLE, pa.table({"z": [1.5]}), TABLE["s"], pa.table({}), TABLE]
    with untorn.publish({"t": 0}) as publisher:
        for value in values:
            publisher.update({"t": value})
            got = read(publisher)
            assert type(got) is type(value)
            assert got.equals(value)
            del got


def test_patch_and_edit_replace_it():
    longer = pa.concat_tables([TABLE, TABLE])
    with untorn.publish({"t": TABLE, "w": np.zeros(2)}) as publisher:
        publisher.patch({"t": longer})
        assert read(publisher).equals(longer)
        with publisher.edit() as params:
            params["w"] += 1
            params["t"] = params["t"].slice(1, 2)
        assert read(publisher).equals(longer.slice(1, 2))
        with publisher.edit() as params:
            params["w"] += 1
        with publisher.edit(leaves=["w"]) as params:
            params["w"] += params["t"].num_rows
        del params
        assert read(publisher).equals(longer.slice(1, 2))
        assert (publisher.subscriber().snapshot().value["w"] == 4).all()


def test_sharing_what_was_read_needs_no_new_stream():
    with untorn.publish({"t": TABLE}) as publisher:
        got = read(publisher)
        _, leaves = specs.flatten({"t": got})
        assert type(leaves[0]) is np.ndarray
        assert type(specs.flatten({"t": got.select(["a"])})[1][0]) is specs.Deferred
        with untorn.publish({"t": got}) as other:
            assert read(other).equals(TABLE)
        del got, leaves


def test_its_size_is_no_part_of_the_type():
    """Values alone change: readers keep what they parsed."""
    with untorn.publish({"t": pa.table({"x": [1, 2]})}) as publisher:
        before = publisher._versions.layout
        publisher.update({"t": pa.table({"x": [7, 8]})})
        assert publisher._versions.layout is before


def test_what_arrow_cannot_write(monkeypatch):
    def refuse(*_, **__):
        raise pa.ArrowNotImplementedError("no such type here")

    monkeypatch.setattr(pa.ipc, "new_stream", refuse)
    with pytest.raises(UnsupportedTypeError, match=r"t: Arrow cannot write it as an IPC stream.*no such type"):
        untorn.publish({"t": TABLE})


def test_a_damaged_stream_is_an_error_and_no_crash():
    stream = specs.flatten(TABLE)[1][0].array()
    refused = 0
    for position in range(len(stream)):
        damaged = stream.copy()
        damaged[position] ^= 0xFF
        try:
            arrow._read_table(damaged).validate(full=True)
        except Exception:  # Arrow has many kinds; decoder.py makes a FormatError of each
            refused += 1
    assert refused
    with untorn.publish({"t": TABLE}) as publisher:
        first, last = publisher._versions.layout.leaf_range(0)
        newest = publisher._attachment.draft(publisher._attachment.latest_slot)
        memoryview(newest)[first:last] = bytes(last - first)
        with pytest.raises(FormatError, match=r"t: a pyarrow\.Table cannot be put together"):
            read(publisher)
        del newest
