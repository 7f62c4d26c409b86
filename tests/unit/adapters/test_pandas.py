"""pandas: frames, series and indexes of every dtype, exactly, on the channel's own memory."""

import contextlib
import datetime
import gc
import sys
import warnings

import numpy as np
import pytest

import untorn
from helpers import start, untorn_mappings
from untorn.errors import FormatError, UnsupportedTypeError
from untorn.share.decoder import Decoder
from untorn.share.layout import pack
from untorn.share.specs import Deferred, flatten

pd = pytest.importorskip("pandas")
pa = pytest.importorskip("pyarrow")

N = 6
TEXTS = ["a", None, "üß"] * 2
COLUMNS = {
    "int": np.arange(N),
    "int8": np.arange(N, dtype=np.int8),
    "float": np.arange(N) * 1.5,
    "float32": np.arange(N, dtype=np.float32),
    "complex": np.arange(N) * 1j,
    "bool": np.arange(N) > 2,
    "datetime": pd.date_range("2024", periods=N),
    "datetime in s": pd.array(np.arange(N).astype("M8[s]")),
    "datetime in Berlin": pd.date_range("2024-03-30", periods=N, tz="Europe/Berlin", unit="ms"),
    "datetime in UTC": pd.DatetimeIndex(["2024-01-01", None] * 3, tz="UTC"),
    "datetime at an offset": pd.date_range("2024", periods=N, tz=datetime.timezone(datetime.timedelta(hours=2))),
    "timedelta": pd.to_timedelta(np.arange(N), unit="s"),
    "period": pd.period_range("2024", periods=N, freq="M"),
    "period Q-NOV": pd.PeriodIndex(["2024Q1", None] * 3, freq="Q-NOV"),
    "interval": pd.interval_range(0, N),
    "interval of float": pd.IntervalIndex.from_breaks(np.arange(N + 1) * 1.5, closed="left"),
    "interval of dates": pd.IntervalIndex.from_breaks(pd.date_range("2024", periods=N + 1), closed="both"),
    "interval of UTC": pd.IntervalIndex.from_breaks(pd.date_range("2024", periods=N + 1, tz="UTC")),
    "categorical": pd.Categorical(["x", "y", None] * 2),
    "ordered": pd.Categorical([3, 1, 2] * 2, categories=[3, 2, 1], ordered=True),
    "Int64": pd.array([1, None] * 3, dtype="Int64"),
    "UInt8": pd.array([1, None] * 3, dtype="UInt8"),
    "Float64": pd.array([1.5, None] * 3, dtype="Float64"),
    "boolean": pd.array([True, None] * 3, dtype="boolean"),
    "str": pd.array(TEXTS, dtype=pd.StringDtype("pyarrow", na_value=np.nan)),
    "string": pd.array(TEXTS, dtype="string[pyarrow]"),
    "string in Python": pd.array(TEXTS, dtype="string[python]"),
    "str in Python": pd.array(TEXTS, dtype=pd.StringDtype("python", na_value=np.nan)),
    "Arrow int": pd.array([1, None] * 3, dtype="int32[pyarrow]"),
    "Arrow list": pd.array([[1, 2], None] * 3, dtype=pd.ArrowDtype(pa.list_(pa.int64()))),
    "Arrow date": pd.array([datetime.date(2024, 1, 1), None] * 3, dtype=pd.ArrowDtype(pa.date32())),
    "Arrow chunks": pd.arrays.ArrowExtensionArray(pa.chunked_array([[1, 2], [], [3, 4, 5, 6]], pa.int64())),
    "sparse": pd.arrays.SparseArray([0.0, 0, 1, 0, 2, 0], fill_value=0.0),
    "sparse around NaN": pd.arrays.SparseArray([np.nan, 1, np.nan, 2, np.nan, 3]),
    "sparse bool": pd.arrays.SparseArray([True, False] * 3, fill_value=False),
    "sparse blocks": pd.arrays.SparseArray([0, 0, 1, 1, 0, 2], kind="block"),
    "object": np.array(["a", None, np.nan, pd.NA, pd.NaT, "\ud800"], object),
    "object of numbers": np.array([1, -(2**80), True, 1e300, b"\xff\x00", "5"], object),
}
#: columns that a reader copies: Python objects
COPIED = {"string in Python", "str in Python", "object", "object of numbers"}
#: columns that a reader may write to, in a private copy, because pandas writes to them while it computes
PRIVATE = {"Int64", "UInt8", "Float64", "boolean", "sparse", "sparse around NaN", "sparse bool", "sparse blocks"}
INDEXES = {
    "labels": pd.Index(list("abcd")),
    "named": pd.Index([1, 2, 3, 4], dtype="i2", name="n"),
    "twice the same": pd.Index(["a", "b", "a", "a"]),
    "mixed": pd.Index(["a", 1, None, np.nan], dtype=object, name=("t", 1)),
    "float": pd.Index([1.5, np.nan, 3, 4]),
    "bool": pd.Index([True, False, True, True]),
    "Int64": pd.Index([1, None, 2, 3], dtype="Int64"),
    "range": pd.RangeIndex(8, 0, -2, name="r"),
    "days": pd.date_range("2024", periods=4, freq="D"),
    "months": pd.date_range("2024", periods=4, freq="ME", tz="America/New_York", name="m"),
    "two hours": pd.date_range("2024", periods=4, freq="2h", unit="s"),
    "weeks": pd.date_range("2024", periods=4, freq="W-TUE"),
    "no frequency": pd.DatetimeIndex(["2024-01-01", "2025-01-01", None, "2026-01-02"]),
    "timedelta": pd.timedelta_range("1h", periods=4),
    "period": pd.period_range("2024", periods=4, freq="2D"),
    "interval": pd.interval_range(0, 4, closed="neither"),
    "categorical": pd.CategoricalIndex(list("abca"), ordered=True, name="c"),
    "multi": pd.MultiIndex.from_product([["a", "b"], pd.date_range("2024", periods=2)], names=["x", None]),
    "multi with holes": pd.MultiIndex.from_tuples([("a", 1.5), ("a", None), (None, 1.5), ("a", 1.5)]),
}


def dtype_of(kind):
    """pandas would guess another one for objects."""
    return object if kind.startswith("object") else None


def read(publisher):
    return publisher.subscriber().snapshot().value["t"]


def is_shared(array):
    address = array.ctypes.data
    spans = ([int(end, 16) for end in line.split()[0].split("-")] for line in untorn_mappings())
    return any(first <= address < last for first, last in spans)


def leaves_of(value):
    """The memory that a value refers to, as it would be shared again."""
    return [leaf for leaf in flatten(value)[1] if isinstance(leaf, np.ndarray) and leaf.size]


def assert_same(got, value):
    assert type(got) is type(value)
    if isinstance(value, pd.DataFrame):
        pd.testing.assert_frame_equal(got, value, check_freq=True, check_flags=True)
        assert list(map(repr, got.dtypes)) == list(map(repr, value.dtypes))
        assert_same(got.columns, value.columns)
    elif isinstance(value, pd.Series):
        pd.testing.assert_series_equal(got, value, check_freq=True, check_flags=True)
        assert type(got.array) is type(value.array)
    else:
        pd.testing.assert_index_equal(got, value, exact=True)
        assert got.names == value.names
        assert getattr(got, "freq", None) == getattr(value, "freq", None)
        return
    assert_same(got.index, value.index)
    assert got.attrs == value.attrs


def objects_of(column):
    """Return the kind of each missing value, since assert_frame_equal treats all kinds as equal."""
    return [(type(element), repr(element)) for element in column]


@pytest.mark.parametrize("kind", COLUMNS)
@pytest.mark.parametrize("make", [pd.Series, pd.Index, lambda values: pd.DataFrame({"x": values, "y": 1.5})])
def test_every_dtype(kind, make):
    values = COLUMNS[kind]
    value = make(pd.Series(values, dtype=dtype_of(kind)))
    with untorn.publish({"t": value}) as publisher:
        got = read(publisher)
        assert_same(got, value)
        column, expected = (v["x"] if isinstance(v, pd.DataFrame) else v for v in (got, value))
        assert column.dtype == expected.dtype
        assert objects_of(column) == objects_of(expected)
        if kind not in COPIED:
            assert leaves_of(column.array if isinstance(column, pd.Series) else column)
        assert all(is_shared(leaf) for leaf in leaves_of(got))
        assert kind in PRIVATE or not any(leaf.flags.writeable for leaf in leaves_of(got))
        del got, column


@pytest.mark.parametrize("kind", INDEXES)
def test_every_index(kind):
    index = INDEXES[kind]
    across = pd.DataFrame(np.arange(8.0).reshape(2, 4), columns=index)
    down = pd.DataFrame({"a": range(4), "b": [1.5] * 4}, index=index)
    with untorn.publish({"t": [index, across, down]}) as publisher:
        for got, value in zip(read(publisher), [index, across, down], strict=True):
            assert_same(got, value)
        assert all(is_shared(leaf) for leaf in leaves_of(read(publisher)))
        del got


@pytest.mark.parametrize("order", ["C", "F"])
def test_one_dtype_is_one_block(order):
    value = pd.DataFrame(np.asarray(np.arange(12.0).reshape(4, 3), order=order), columns=list("abc"), copy=False)
    with untorn.publish({"t": value}) as publisher:
        got = read(publisher)
        assert_same(got, value)
        assert is_shared(got.to_numpy())
        assert np.shares_memory(got.to_numpy(), got["b"].to_numpy())
        assert got.to_numpy().strides == value.to_numpy().strides
        value["b"] = 5.0  # its own memory from here on
        spec = publisher._versions.layout.spec
        publisher.update({"t": value})
        assert_same(read(publisher), value)
        assert publisher._versions.layout.spec[2][0].detail[1] == spec[2][0].detail[1]
        assert is_shared(read(publisher).to_numpy())
        del got


def test_publishing_copies_no_column():
    """Nothing is consolidated: the frame is taken apart as it is."""
    frame = pd.DataFrame({"i": range(N), "f": np.arange(N) * 1.5, "j": range(N), "c": COLUMNS["categorical"]})
    leaves = leaves_of(frame)
    for name in "ifj":
        assert any(np.shares_memory(leaf, frame[name].to_numpy()) for leaf in leaves)
    assert any(np.shares_memory(leaf, frame["c"].array.codes) for leaf in leaves)


@pytest.mark.parametrize(
    "value",
    [
        pd.DataFrame(),
        pd.DataFrame(index=[1, 2, 3]),
        pd.DataFrame(columns=["a", "b"]),
        pd.DataFrame(columns=pd.DatetimeIndex([])),
        pd.DataFrame({"a": pd.Series([], dtype="i4")}),
        pd.DataFrame(
            {"a": pd.Series([], dtype="i4"), "b": pd.Series([], dtype="str"), "c": pd.Series([], dtype=object)}
        ),
        pd.DataFrame([[1, 2.5, "x"]], columns=["a", "a", "b"]),
        pd.DataFrame([[1, 2.5]], columns=["0:x", "attrs"]),
        pd.Series([], dtype=object),
        pd.Series([1], name=("a", 2)),
        pd.DataFrame([[1, 2]], index=pd.date_range("2024", periods=1, tz="UTC")).iloc[0],
        pd.Index([]),
        pd.DatetimeIndex([], tz="UTC"),
        pd.MultiIndex.from_arrays([[], []]),
    ],
)
def test_empty_and_odd(value):
    with untorn.publish({"t": value}) as publisher:
        assert_same(read(publisher), value)


@pytest.mark.parametrize(
    "value",
    [
        pd.Timestamp("2024-02-29 12:00:00.123456789", tz="Europe/Paris"),
        pd.Timestamp("2024").as_unit("s"),
        pd.Timedelta("-1D").as_unit("ms"),
        pd.Period("2024-02", freq="M"),
        pd.Interval(0.5, 2.5, closed="both"),
        pd.Interval(pd.Timestamp("2024"), pd.Timestamp("2025")),
        pd.NaT,
        pd.NA,
    ],
    ids=repr,
)
def test_single_values(value):
    with untorn.publish({"t": value}) as publisher:
        got = read(publisher)
    assert type(got) is type(value) and repr(got) == repr(value)
    assert getattr(got, "unit", None) == getattr(value, "unit", None)


def test_attrs_and_flags():
    frame = pd.DataFrame({"a": [1]}).set_flags(allows_duplicate_labels=False)
    series = pd.Series([1], name="s").set_flags(allows_duplicate_labels=False)
    frame.attrs = series.attrs = {"unit": "m", "more": {"x": np.arange(3)}}
    with untorn.publish({"t": [frame, series]}) as publisher:
        for got, value in zip(read(publisher), (frame, series), strict=True):
            assert not got.flags.allows_duplicate_labels
            assert (got.attrs.pop("more")["x"] == [0, 1, 2]).all()
            assert got.attrs == {"unit": "m"}
            assert (got == value).all(axis=None)
        del got


def test_extension_arrays_alone():
    values = [pd.array(COLUMNS[kind]) for kind in COLUMNS if dtype_of(kind) is None]
    values.append(pd.arrays.NumpyExtensionArray(COLUMNS["object"]))
    with untorn.publish({"t": values}) as publisher:
        for got, value in zip(read(publisher), values, strict=True):
            assert type(got) is type(value)
            pd.testing.assert_extension_array_equal(got, value)
        del got


WRITES = {
    "iloc": lambda frame: frame.iloc.__setitem__((0, 0), 99),
    "loc": lambda frame: frame.loc.__setitem__(0, 99),
    "at": lambda frame: frame.at.__setitem__((0, "a"), 99),
    "iat": lambda frame: frame.iat.__setitem__((0, 0), 99),
    "a mask": lambda frame: frame.__setitem__(frame > 0, 99),
    "an item": lambda frame: frame.__setitem__("a", 99),
    "values": lambda frame: frame.values.__setitem__((0, 0), 99),
    "to_numpy": lambda frame: frame.to_numpy().__setitem__((0, 0), 99),
    "asarray": lambda frame: np.asarray(frame).__setitem__((0, 0), 99),
    "iadd": lambda frame: frame.__iadd__(1),
    "iadd of a column": lambda frame: frame.__setitem__("a", frame["a"].__iadd__(1)),
    "a column's array": lambda frame: frame["a"].array.__setitem__(0, 99),
    "a column's values": lambda frame: frame["a"].values.__setitem__(0, 99),
    "a column's iloc": lambda frame: frame["a"].iloc.__setitem__(0, 99),
    "fillna": lambda frame: frame.fillna(99, inplace=True),
    "replace": lambda frame: frame.replace(1, 99, inplace=True),
    "clip": lambda frame: frame.clip(2, 3, inplace=True),
    "where": lambda frame: frame.where(frame > 2, 99, inplace=True),
    "mask": lambda frame: frame.mask(frame > 2, 99, inplace=True),
    "ffill": lambda frame: frame.ffill(inplace=True),
    "interpolate": lambda frame: frame.interpolate(inplace=True),
    "update": lambda frame: frame.update(frame + 1),
    "sort_values": lambda frame: frame.sort_values("a", ascending=False, inplace=True),
    "eval": lambda frame: frame.eval("a = a + 1", inplace=True),
    "insert": lambda frame: frame.insert(0, "z", 1),
    "pop": lambda frame: frame.pop("a"),
}


@pytest.mark.parametrize("write", WRITES.values(), ids=WRITES)
@pytest.mark.parametrize("one_block", [True, False])
def test_a_readers_write_changes_only_its_own(write, one_block):
    """It raises, or the reader has new columns; no other process sees it, and nobody dies of it."""
    value = pd.DataFrame({"a": [1.0, np.nan, 3.0], "b": [4.0, 5.0, 6.0]})
    if not one_block:
        value["b"] = value["b"].astype("f4")
    with untorn.publish({"t": value}) as publisher:
        mine, theirs = read(publisher), read(publisher)
        attempt(write, mine)
        assert_same(theirs, value)
        assert_same(read(publisher), value)
        del mine, theirs


SERIES_WRITES = (
    lambda series: series.array.__setitem__(0, series.array[2]),
    lambda series: series.iloc.__setitem__(0, series.iloc[2]),
    lambda series: series.__setitem__(slice(0, 2), series.iloc[2]),
    lambda series: series.fillna(series.iloc[2], inplace=True),
    lambda series: series.sort_values(ascending=False, inplace=True),
)


@pytest.mark.parametrize("kind", COLUMNS)
def test_writes_to_extension_arrays(kind):
    value = pd.Series(COLUMNS[kind], name="x", dtype=dtype_of(kind))
    with untorn.publish({"t": value}) as publisher:
        mine = read(publisher)
        for write in SERIES_WRITES:
            attempt(write, mine)
        attempt(lambda series: series.array.sp_values.__setitem__(0, 99), mine)
        assert_same(read(publisher), value)
        del mine


NUMBERS = ["int", "int8", "float", "float32", "bool", "Int64", "UInt8", "Float64", "Arrow int"]
OPERATIONS = {
    "sums": lambda frame: frame[NUMBERS].sum(),
    "describe": lambda frame: frame[NUMBERS].describe(),
    "quantile": lambda frame: frame["float"].quantile([0.1, 0.9]),
    "cumsum": lambda frame: frame["Int64"].cumsum(),
    "rank": lambda frame: frame[NUMBERS].rank(),
    "diff": lambda frame: frame["float"].diff(),
    "sort": lambda frame: frame.sort_values(["boolean", "float"], ascending=False),
    "group": lambda frame: frame.groupby("categorical", observed=True)[["float", "Int64"]].agg(
        ["mean", "max", "first"]
    ),
    "group by text": lambda frame: frame.groupby("string")["float"].transform("cumsum"),
    "group by mask": lambda frame: frame.groupby("Int64")["float"].rank(),
    "rolling": lambda frame: frame["float"].rolling(2).mean(),
    "ewm": lambda frame: frame["float"].ewm(2).mean(),
    "resample": lambda frame: frame.set_index("datetime")["float"].resample("2D").sum(),
    "in another zone": lambda frame: frame["datetime in Berlin"].dt.tz_convert("UTC").dt.hour,
    "merge": lambda frame: frame.merge(frame, on="string")["float_x"],
    "merge_asof": lambda frame: pd.merge_asof(frame[["float", "int"]], frame[["float", "bool"]], on="float"),
    "join": lambda frame: frame[["float"]].join(frame[["int"]]),
    "concat": lambda frame: pd.concat([frame, frame]),
    "pivot": lambda frame: frame.pivot_table(index="categorical", values="float", observed=True),
    "melt": lambda frame: frame[["int", "float"]].melt(),
    "take": lambda frame: frame.iloc[[3, 1]],
    "loc": lambda frame: frame.loc[frame["float"] > 1, ["int", "string"]],
    "query": lambda frame: frame.query("float > 1"),
    "reindex": lambda frame: frame[NUMBERS].reindex([1, 9]),
    "factorize": lambda frame: pd.Series(frame["string"].factorize()[0]),
    "unique": lambda frame: pd.Series(frame["int8"].unique()),
    "value_counts": lambda frame: frame["categorical"].value_counts(),
    "isin": lambda frame: frame["int"].isin(frame["int8"]),
    "duplicated": lambda frame: frame.duplicated(["string", "boolean"]),
    "searchsorted": lambda frame: pd.Series(frame["float"].searchsorted([1.0, 2.0])),
    "cut": lambda frame: pd.cut(frame["float"], 3),
    "intervals": lambda frame: frame["interval"].array.contains(2),
    "sparse": lambda frame: frame["sparse"] + frame["sparse"],
    "sparse or": lambda frame: frame["sparse bool"] | frame["sparse bool"],
    "interpolate": lambda frame: frame["Float64"].astype("float64").interpolate(),
    "fillna": lambda frame: frame["Float64"].fillna(1),
    "upper": lambda frame: frame["string"].str.upper(),
    "corr": lambda frame: frame[["int", "float"]].corr(),
    "unstack": lambda frame: frame.set_index(["int", "bool"])["float"].unstack(),
}


@pytest.mark.parametrize("compute", OPERATIONS.values(), ids=OPERATIONS)
def test_computing_with_read_only_columns(compute):
    value = pd.DataFrame({kind: pd.Series(values) for kind, values in COLUMNS.items() if dtype_of(kind) is None})
    with untorn.publish({"t": value}) as publisher:
        got, expected = compute(read(publisher)), compute(value)
        assert repr(got) == repr(expected)
        assert_same(read(publisher), value)
        del got


def test_a_copy_is_writeable():
    with untorn.publish({"t": pd.DataFrame({"a": [1.0, 2.0]})}) as publisher:
        mine = read(publisher).copy()
        mine.iloc[0, 0] = 99
        assert mine.iloc[0, 0] == 99


def attempt(write, value):
    """It may be an error; for dates with a time zone it is pandas' AssertionError. pandas also warns of ways of writing
    that it is going to drop. All of them must be harmless."""
    with contextlib.suppress(Exception), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        write(value)


def child_sends_it_back(pipe, subscriber):
    with subscriber.snapshot() as snapshot:
        pipe.put(snapshot.value["t"].copy())


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_another_process(method):
    frame = pd.DataFrame({kind: pd.Series(values, dtype=dtype_of(kind)) for kind, values in COLUMNS.items()})
    with (
        untorn.publish({"t": frame}) as publisher,
        start(child_sends_it_back, publisher.subscriber(), method=method) as child,
    ):
        assert_same(child.get(), frame)
        assert child.join() == 0


def test_a_column_outlives_frame_snapshot_and_publisher():
    with untorn.publish({"t": pd.DataFrame({"a": [1, 2], "s": ["x", "y"]})}) as publisher:
        snapshot = publisher.subscriber().snapshot()
        numbers, texts = snapshot.value["t"]["a"], snapshot.value["t"]["s"]
        snapshot.close()
        del snapshot
        for number in range(20):
            publisher.update({"t": pd.DataFrame({"a": [number] * 9, "s": ["z"] * 9})})
    gc.collect()
    assert (list(numbers), list(texts)) == ([1, 2], ["x", "y"])
    assert untorn_mappings()
    del numbers, texts


def test_another_structure_with_every_version():
    values = [pd.DataFrame({"a": [1.5]}), pd.Series(["x"]), pd.Index([1]), pd.DataFrame({"a": ["x"], "b": [1]})]
    with untorn.publish({"t": 0}) as publisher:
        for value in values * 2:
            publisher.update({"t": value})
            assert_same(read(publisher), value)


def test_other_values_are_no_other_structure():
    first = pd.DataFrame({"a": [1, 2], "s": ["x", "y"], "c": pd.Categorical(["p", "q"])})
    second = pd.DataFrame({"a": [3, 4], "s": ["u", "v"], "c": pd.Categorical(["q", "q"], categories=["p", "q"])})
    with untorn.publish({"t": first}) as publisher:
        layout = publisher._versions.layout
        publisher.update({"t": second})
        assert publisher._versions.layout is layout
        assert_same(read(publisher), second)


@pytest.mark.parametrize("value", [pd.DataFrame({"a": [1.0, 2.0], "b": [3.0, 4.0]}), pd.DataFrame(COLUMNS["int"])])
def test_edit_in_place(value):
    label = value.columns[0]
    with untorn.publish({"t": value, "w": np.zeros(2)}) as publisher:
        with publisher.edit() as params:
            params["t"].iloc[0, 0] = 42
            kept = params["t"]
        assert read(publisher).iloc[0, 0] == 42
        assert read(publisher).iloc[1, 0] == value.iloc[1, 0]
        with contextlib.suppress(ValueError):
            kept.iloc[0, 0] = 7
        assert read(publisher).iloc[0, 0] == 42
        with publisher.edit() as params:
            params["t"][label] += 1
            params["t"]["new"] = "text"
        expected = value.copy()
        expected.iloc[0, 0] = 42
        expected[label] += 1
        assert_same(read(publisher), expected.assign(new="text"))
        del kept, params


@pytest.mark.parametrize("kind", COLUMNS)
def test_edit_leaves_others_alone(kind):
    """A part that was not named and not changed is not taken for changed."""
    value = pd.DataFrame({"x": pd.Series(COLUMNS[kind], dtype=dtype_of(kind)), "y": 1})
    with untorn.publish({"t": value, "w": np.zeros(2)}) as publisher:
        with publisher.edit() as params:
            params["w"] += 1
        with publisher.edit(leaves=["w"]) as params:
            params["w"] += 1
        assert_same(read(publisher), value)
        del params


def test_patch():
    with untorn.publish({"t": pd.DataFrame({"a": [1]}), "w": 1}) as publisher:
        for value in (pd.DataFrame({"a": [2]}), pd.DataFrame({"a": ["x", "y"], "b": [1, 2]}), pd.Series([1])):
            publisher.patch({"t": value})
            assert_same(read(publisher), value)


class Opaque:
    def __eq__(self, other):
        return isinstance(other, Opaque)

    __hash__ = None


def test_other_objects_are_named_and_can_be_pickled():
    frame = pd.DataFrame({"n": [1.5], "when": pd.Series([datetime.date(2024, 1, 1)], dtype=object)})
    with pytest.raises(UnsupportedTypeError, match=r"t: column 'when': an object array that contains a datetime\.date"):
        untorn.publish({"t": frame})
    with pytest.raises(UnsupportedTypeError, match=r"t: an object array that contains a test_pandas\.Opaque"):
        untorn.publish({"t": pd.Series([Opaque()])})
    with untorn.publish({"t": frame}, allow_pickle=True) as publisher:
        got = publisher.subscriber(allow_pickle=True).snapshot().value["t"]
        assert_same(got, frame)
        del got


def test_what_has_no_name():
    dates = pd.DatetimeIndex(["2024-01-01"]).tz_localize(Nowhere())
    with pytest.raises(UnsupportedTypeError, match=r"t: .*has no name from which pandas could make it"):
        untorn.publish({"t": dates.array})
    holidays = pd.offsets.CustomBusinessDay(holidays=["2024-01-02"])
    with pytest.raises(UnsupportedTypeError, match=r"t/index: the frequency .* set \.freq = None"):
        untorn.publish({"t": pd.Series(range(3), index=pd.date_range("2024", periods=3, freq=holidays))})


class Nowhere(datetime.tzinfo):
    def utcoffset(self, when):
        return datetime.timedelta(hours=1)

    dst = utcoffset

    def tzname(self, when):
        return "nowhere"


def test_subclasses_are_refused():
    class Frame(pd.DataFrame):
        pass

    with pytest.raises(UnsupportedTypeError, match=r"cannot share .*Frame"):
        untorn.publish({"t": Frame({"a": [1]})})


class MoneyType(pd.api.extensions.ExtensionDtype):
    name, type, na_value = "money", int, 0

    @classmethod
    def construct_array_type(cls):
        return Money

    def __from_arrow__(self, array):
        return Money(array.to_numpy())


class Money(pd.api.extensions.ExtensionArray):
    """As another library would bring it."""

    dtype = MoneyType()

    def __init__(self, cents):
        self.cents = cents

    def __len__(self):
        return len(self.cents)

    def __getitem__(self, item):
        return Money(self.cents[item]) if isinstance(item, slice | np.ndarray) else int(self.cents[item])

    def __arrow_array__(self, type=None):
        return pa.array(self.cents)

    def isna(self):
        return np.zeros(len(self), bool)

    def copy(self):
        return Money(self.cents.copy())

    def take(self, indices, **_):
        return Money(self.cents[indices])

    @classmethod
    def _from_sequence(cls, values, **_):
        return cls(np.asarray(values))


def test_extension_types_of_others_go_through_arrow(monkeypatch):
    series = pd.Series(Money(np.arange(3)), name="m")
    with pytest.raises(UnsupportedTypeError, match="has no name from which pandas could make it"):
        untorn.publish({"t": series})
    pd.api.extensions.register_extension_dtype(MoneyType)
    with untorn.publish({"t": series}) as publisher:
        got = read(publisher)
        assert type(got.array) is Money
        assert is_shared(got.array.cents)
        assert list(got) == [0, 1, 2]
        del got
    monkeypatch.delattr(MoneyType, "__from_arrow__")
    with pytest.raises(UnsupportedTypeError, match=r"t/values: .* does not support Arrow"):
        untorn.publish({"t": series})


def test_without_pyarrow(monkeypatch):
    frame = pd.DataFrame({"s": pd.Series(["x"], dtype=object), "n": [1.5]}, index=["i"])
    frame.columns, frame.index = (axis.astype(object) for axis in (frame.columns, frame.index))
    text = pd.Series(["x"], dtype="string[pyarrow]")
    with untorn.publish({"t": frame}) as plain, untorn.publish({"t": text}) as with_arrow:
        monkeypatch.setitem(sys.modules, "pyarrow", None)
        monkeypatch.delitem(sys.modules, "untorn.adapters.arrow", raising=False)
        assert read(plain).iloc[0, 1] == 1.5
        with pytest.raises(ImportError, match=r"contains a pyarrow\.ChunkedArray, and pyarrow cannot be imported"):
            read(with_arrow)


def test_arrow_columns_are_written_in_place():
    series = pd.Series(["x"] * 1000, dtype="string[pyarrow]")
    assert any(isinstance(leaf, Deferred) for leaf in flatten(series)[1])


EXTENSION_ARRAYS = {
    "period": lambda: pd.period_range("2020", periods=1, freq="D").array,
    "datetime": lambda: pd.date_range("2020", periods=1).array,
    "timedelta": lambda: pd.timedelta_range("1 day", periods=1).array,
    "interval": lambda: pd.interval_range(0.0, 1.0, periods=1).array,
    "integer": lambda: pd.array([1], dtype="Int64"),
    "boolean": lambda: pd.array([True], dtype="boolean"),
    "sparse": lambda: pd.arrays.SparseArray([1.0]),
    "categorical": lambda: pd.Categorical([1.5]),
}


def _read_with_other_axes(pipe, kind, holder, shape):
    value = EXTENSION_ARRAYS[kind]()
    schema, payload = pack(value if holder is None else holder(value))
    damaged = schema.replace(b"[1],null", shape + b",null")
    assert damaged != schema
    try:
        repr(Decoder(damaged, len(payload), payload=0).value(payload))
    except FormatError as error:
        pipe.put(str(error))


@pytest.mark.parametrize("holder", [None, pd.Index, pd.Series], ids=["array", "index", "series"])
@pytest.mark.parametrize("shape", [b"[]", b"[1,1]"], ids=["no axis", "two axes"])
@pytest.mark.parametrize("kind", EXTENSION_ARRAYS)
def test_arrays_that_have_not_one_axis_are_a_format_error(kind, holder, shape):
    """Runs in its own process: pandas would read outside the array."""
    with start(_read_with_other_axes, kind, holder, shape) as child:
        assert "cannot be put together" in child.get()
        assert child.join() == 0
