"""polars: frames and series of every dtype that Arrow knows, on the channel's own memory."""

import datetime
import decimal
import gc
import sys

import numpy as np
import pytest

import untorn
from helpers import start, untorn_mappings
from untorn.errors import UnsupportedTypeError

pytest.importorskip("pyarrow")
pl = pytest.importorskip("polars")

DAY = datetime.datetime(2024, 5, 17, 12, 30)
SERIES = {
    "Int64": pl.Series([1, None, 3]),
    "UInt8": pl.Series([1, 2, 3], dtype=pl.UInt8),
    "Float32": pl.Series([1.5, None, float("nan")], dtype=pl.Float32),
    "Boolean": pl.Series([True, None, False]),
    "String": pl.Series(["a", None, "long enough for a buffer of its own"]),
    "Binary": pl.Series([b"a", None, b"\xff" * 40]),
    "Null": pl.Series([None, None, None]),
    "Date": pl.Series([DAY.date(), None]),
    "Time": pl.Series([DAY.time(), None]),
    "Datetime": pl.Series([DAY, None]),
    "Datetime in Berlin": pl.Series([DAY, None], dtype=pl.Datetime("ms", "Europe/Berlin")),
    "Duration": pl.Series([datetime.timedelta(1), None]),
    "Decimal": pl.Series([decimal.Decimal("1.25"), None]),
    "List": pl.Series([[1, 2], None, []]),
    "List of String": pl.Series([["a", None], None, []]),
    "Array": pl.Series([[1, 2], None], dtype=pl.Array(pl.Int64, 2)),
    "Struct": pl.Series([{"a": 1, "b": "x"}, {"a": None, "b": "y"}]),
    "Struct with None": pl.Series([{"a": 1, "b": "x"}, None]),
    "Categorical": pl.Series(["a", "b", None, "a"], dtype=pl.Categorical),
    "Enum": pl.Series(["a", "b", None, "a"], dtype=pl.Enum(["b", "a", "c"])),
    "List of Enum": pl.Series([["a"], None], dtype=pl.List(pl.Enum(["b", "a"]))),
    "empty": pl.Series([], dtype=pl.Int16),
    "two chunks": pl.concat([pl.Series([1, 2]), pl.Series([3])], rechunk=False),
    "a slice": pl.Series(range(1000))[10:20],
}
#: each reader copies the codes of these; of a struct it combines the bitmaps of what is missing
COPIED = {"Categorical", "Enum", "List of Enum", "Struct with None"}


def read(publisher):
    return publisher.subscriber().snapshot().value["t"]


def addresses_of(series):
    chunks = series.to_frame("x").to_arrow(compat_level=pl.CompatLevel.newest())["x"].chunks
    return [buffer.address for chunk in chunks for buffer in chunk.buffers() if buffer is not None and buffer.size]


def is_shared(address):
    spans = ([int(end, 16) for end in line.split()[0].split("-")] for line in untorn_mappings())
    return any(first <= address < last for first, last in spans)


def assert_same(got, value):
    assert type(got) is type(value)
    assert got.shape == value.shape
    if isinstance(value, pl.Series):
        assert (got.name, got.dtype) == (value.name, value.dtype)
        assert got.equals(value, check_dtypes=True, check_names=True)
    else:
        assert got.schema == value.schema
        assert got.equals(value)
    assert got.n_chunks() == value.n_chunks()


@pytest.mark.parametrize("kind", SERIES)
def test_every_dtype(kind):
    value = SERIES[kind].alias(kind)
    with untorn.publish({"t": [value, value.to_frame()]}) as publisher:
        got, frame = read(publisher)
        assert_same(got, value)
        assert_same(frame, value.to_frame())
        if kind not in COPIED:
            assert all(is_shared(address) for address in addresses_of(got) + addresses_of(frame[kind]))
        del got, frame


@pytest.mark.parametrize(
    "value",
    [
        pl.DataFrame(),
        pl.DataFrame(height=5),
        pl.DataFrame({"a": [1], "b": ["x"]}).clear(),
        pl.DataFrame({"a": [1, 2], "": [3, 4]}),
        pl.concat([pl.DataFrame({"a": [1, 2]}), pl.DataFrame({"a": [3]})], rechunk=False),
        pl.Series(),
    ],
)
def test_odd_shapes(value):
    with untorn.publish({"t": value}) as publisher:
        assert_same(read(publisher), value)


@pytest.mark.parametrize("dtype", [pl.Int64, pl.String])
def test_a_slice_leaves_the_rest_behind(dtype):
    whole = pl.DataFrame({"x": pl.Series(range(10**15, 10**15 + 50_000)).cast(dtype)})
    with untorn.publish({"t": whole[100:105]}) as publisher:
        assert publisher.nbytes < 200_000
        assert_same(read(publisher), whole[100:105])


WRITES = {
    "an item": lambda frame: frame.__setitem__((0, "a"), 99),
    "a column": lambda frame: frame.replace_column(0, pl.Series("a", [99.0, 99.0])),
    "extend": lambda frame: frame.extend(frame.clone()),
    "vstack": lambda frame: frame.vstack(frame.clone(), in_place=True),
    "insert": lambda frame: frame.insert_column(0, pl.Series("z", [1, 2])),
    "shrink": lambda frame: frame.shrink_to_fit(in_place=True),
    "series item": lambda frame: frame["a"].__setitem__(0, 99),
    "scatter": lambda frame: frame["a"].scatter([0, 1], [98, 99]),
    "sort": lambda frame: frame["a"].sort(descending=True, in_place=True),
    "append": lambda frame: frame["a"].append(frame["a"].clone()),
    "series extend": lambda frame: frame["a"].extend(frame["a"].clone()),
    "set_sorted": lambda frame: frame["a"].set_sorted(),
    "to_numpy": lambda frame: frame["a"].to_numpy(writable=True).__setitem__(0, 99),
    "frame to_numpy": lambda frame: frame.to_numpy(writable=True).__setitem__((0, 0), 99),
    "with_columns": lambda frame: frame.with_columns(pl.col("a") + 1),
}


@pytest.mark.parametrize("write", WRITES.values(), ids=WRITES)
def test_a_readers_write_lands_in_a_copy(write):
    value = pl.DataFrame({"a": [1.0, 2.0], "s": ["x", "y"]})
    with untorn.publish({"t": value}) as publisher:
        mine, theirs = read(publisher), read(publisher)
        write(mine)
        assert_same(theirs, value)
        assert_same(read(publisher), value)
        del mine, theirs


def test_arrays_of_it_are_read_only():
    with untorn.publish({"t": pl.Series([1.0, 2.0])}) as publisher:
        array = read(publisher).to_numpy(allow_copy=False)
        assert is_shared(array.ctypes.data)
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 9
        del array


def child_sends_it_back(pipe, subscriber):
    with subscriber.snapshot() as snapshot:
        pipe.put(snapshot.value["t"])


def test_another_process():
    """Spawned: polars' threads do not survive a fork."""
    value = pl.DataFrame({"i": [1, None], "s": ["a", "b"], "c": pl.Series(["x", "y"], dtype=pl.Categorical)})
    with (
        untorn.publish({"t": value}) as publisher,
        start(child_sends_it_back, publisher.subscriber(), method="spawn") as child,
    ):
        assert_same(child.get(), value)
        assert child.join() == 0


def test_a_column_outlives_frame_snapshot_and_publisher():
    with untorn.publish({"t": pl.DataFrame({"a": [1, 2], "s": ["x", "y" * 30]})}) as publisher:
        snapshot = publisher.subscriber().snapshot()
        numbers, texts = snapshot.value["t"]
        snapshot.close()
        del snapshot
        for number in range(20):
            publisher.update({"t": pl.DataFrame({"a": [number] * 9, "s": ["z" * 30] * 9})})
    gc.collect()
    assert (numbers.to_list(), texts.to_list()) == ([1, 2], ["x", "y" * 30])
    assert untorn_mappings()
    del numbers, texts


def test_patch_edit_and_another_structure():
    first, second = pl.DataFrame({"a": [1, 2]}), pl.DataFrame({"a": ["x"], "b": [1.5]})
    with untorn.publish({"t": first, "w": np.zeros(2)}) as publisher:
        publisher.patch({"t": second})
        assert_same(read(publisher), second)
        publisher.update({"t": first["a"], "w": np.zeros(2)})
        assert_same(read(publisher), first["a"])
        publisher.update({"t": first, "w": np.zeros(2)})
        with publisher.edit() as params:
            params["w"] += 1
        assert_same(read(publisher), first)
        with publisher.edit() as params:
            params["t"] = params["t"].with_columns(pl.col("a") * 10)
        assert_same(read(publisher), first.with_columns(pl.col("a") * 10))
        with publisher.edit() as params:
            params["t"][0, "a"] = 5
        assert read(publisher)["a"].to_list() == [5, 20]
        del params


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (pl.Series("o", [object()], dtype=pl.Object), r"t: column 'o' has dtype Object: it holds Python objects"),
        (pl.Series("i", [1], dtype=pl.Int128), r"t: column 'i' has dtype Int128: .* cast it to Int64 or Decimal"),
        (pl.DataFrame({"s": pl.Series([[{"q": 1}]], dtype=pl.List(pl.Struct({"q": pl.UInt128})))}), r"t: column 's'"),
        (pl.LazyFrame({"a": [1]}), r"t: a polars\.LazyFrame has no data yet; share the result of its collect\(\)"),
    ],
)
def test_what_cannot_be_shared(value, message):
    with pytest.raises(UnsupportedTypeError, match=message):
        untorn.publish({"t": value})


def test_what_cannot_be_shared_can_be_pickled():
    value = pl.Series("i", [1, 2**100], dtype=pl.Int128)
    with untorn.publish({"t": value}, allow_pickle=True) as publisher:
        got = publisher.subscriber(allow_pickle=True).snapshot().value["t"]
        assert_same(got, value)
        del got


def test_without_pyarrow(monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ImportError, match="sharing polars needs pyarrow"):
        untorn.publish({"t": pl.DataFrame({"a": [1]})})


def test_an_edit_of_another_leaf():
    frame = pl.DataFrame({"a": [1, 2, 3], "b": ["x", "y", None]})
    with untorn.publish({"t": frame, "n": 0}) as publisher:
        with publisher.edit(leaves=["n"]) as tree:
            tree["n"] = 1
        value = publisher.subscriber().snapshot().value
        assert value["n"] == 1
        assert value["t"].equals(frame)
        with pytest.raises(ValueError, match="'t' was changed"), publisher.edit(leaves=["n"]) as tree:
            tree["t"] = frame.with_columns(a=pl.Series([4, 5, 6]))
