"""A FrozenDict that a channel holds changes by edit() and patch(), and every snapshot equals the dict of its moment."""

import copy
import errno
import gc
import os
import pickle
import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import date
from unittest import mock

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

import untorn
from untorn.cli.group import group
from untorn.errors import BusyError, CapacityError, ClosedError, FormatError, UnsupportedTypeError
from untorn.share import compaction, table_writer
from untorn.share.frozen_dict import Changes, FrozenDict, compacted
from untorn.share.inspect import ChannelView, files_of
from untorn.share.lowlevel import copy_value, private_value, publish_raw, raw_version, read_value, update_raw
from untorn.share.table_overlay import Overlay

COUNT = 2000


def plain(count: int = COUNT) -> dict:
    return {f"key-{i}": i for i in range(count)}


def assert_equals(table: FrozenDict, model: dict) -> None:
    """Look at a table in every way."""
    assert type(table) is FrozenDict and len(table) == len(model)
    items = list(table.items())
    assert len(items) == len(model) and dict(items) == model
    assert list(table) == [key for key, _ in items] and list(table.values()) == [value for _, value in items]
    assert table == model and all(key in table and table[key] == model[key] for key in model)


def is_whole(snapshot: untorn.Snapshot) -> bool:
    return snapshot._held().base_version == 0


@pytest.fixture
def channel():
    with untorn.publish(FrozenDict(plain())) as publisher:
        yield publisher


def test_keys_are_set_replaced_and_removed(channel):
    model = plain()
    with channel.edit() as table:
        table["key-1"] = "one"
        table["new"] = [1, {"two": 2}]
        del table["key-2"]
        assert (table["key-1"], table.get("key-2"), "new" in table, len(table)) == ("one", None, True, COUNT)
        assert table.pop("key-3") == 3 and table.setdefault("key-4", 0) == 4
    model |= {"key-1": "one", "new": [1, {"two": 2}]}
    del model["key-2"], model["key-3"]
    with channel.subscriber().snapshot() as snapshot:
        assert not is_whole(snapshot) and snapshot.version == 2
        assert_equals(snapshot.value, model)
        with pytest.raises(KeyError, match="key-2"):
            snapshot.value["key-2"]
        assert snapshot.value.get("key-2", "gone") == "gone" and snapshot.value.get("key-5") == 5


def test_a_version_costs_the_changes_only(channel):
    whole = channel.subscriber().snapshot().nbytes
    assert channel.patch({"key-7": "seven", "more": 1}) == 2
    with channel.subscriber().snapshot() as snapshot:
        assert snapshot.nbytes < whole / 20
        assert (snapshot.value["key-7"], snapshot.value["more"], len(snapshot.value)) == ("seven", 1, COUNT + 1)


def test_changed_keys_keep_their_place_and_new_ones_come_last(channel):
    channel.patch({"z": 1, "key-1": 2})
    channel.patch({"a": 3, "key-0": 4, "z": 5})
    expected = [*plain(), *("a", "z")]
    assert list(channel.subscriber().snapshot().value) == expected
    with channel.edit() as table:
        assert list(table) == expected
        table["last"] = 0
        assert list(table) == [*expected, "last"]


KEYS = st.one_of(
    st.integers(0, 60),
    st.sampled_from(["a", b"a", "\u00fc", "", b"", "\ud800", 2**70, -(2**64), np.int16(7)]),
    st.integers(-(2**63), 2**63 - 1),
)
VALUES = st.one_of(
    st.none(),
    st.integers(),
    st.text(max_size=40),
    st.lists(st.floats(allow_nan=False), max_size=3),
    st.dates(),
    st.integers(0, 40).map(lambda size: [np.full(size, size, "i4"), {"size": size}]),
)
OPERATIONS = st.lists(st.tuples(st.booleans(), KEYS, VALUES), max_size=25)
PROGRAMS = st.lists(
    st.tuples(st.sampled_from(["edit", "edit", "patch", "fail", "update", "hold"]), OPERATIONS), max_size=14
)


@settings(max_examples=40, deadline=None, database=None)
@given(program=PROGRAMS, count=st.sampled_from([0, 1, 400]), in_threads=st.booleans())
def test_it_equals_a_dict_through_edits_and_compactions(program, count, in_threads):
    """With threads, small tables are compacted as large ones are."""
    model = {i: i * 3 for i in range(count)}
    with (
        mock.patch.object(table_writer, "_SMALL_NBYTES", 0 if in_threads else 1 << 20),
        untorn.publish(FrozenDict(model)) as publisher,
        publisher.subscriber() as reader,
    ):
        held = [(reader.snapshot(), dict(model))]
        for what, operations in program:
            _run(publisher, model, what, operations)
            found = publisher.subscriber().snapshot()
            assert len(found.value) == len(model)
            if what == "hold":
                held.append((found, dict(model)))
        held.append((reader.snapshot(), dict(model)))
        for snapshot, then in held:
            assert_same(snapshot.value, then)


def _run(publisher: untorn.Publisher, model: dict, what: str, operations: list) -> None:
    """Do the same to a channel and to a dict."""
    if what == "update":
        publisher.update(FrozenDict(model))
    elif what == "patch":
        model |= (changes := {key: value for is_set, key, value in operations if is_set and key != ""})
        publisher.patch(changes)
    elif what == "fail":
        with pytest.raises(UnsupportedTypeError):
            publisher.patch({key: value for _, key, value in operations if key != ""} | {"key": object()})
    else:
        with publisher.edit() as table:
            for is_set, key, value in operations:
                if is_set:
                    table[key] = model[key] = value
                else:
                    assert_equal(table.pop(key, "no"), model.pop(key, "no"))
            assert len(table) == len(model) and set(table) == set(model)


def assert_equal(found: object, expected: object) -> None:
    """Compare values that may contain an array."""
    if isinstance(expected, list) and expected and isinstance(expected[0], np.ndarray):
        assert np.array_equal(found[0], expected[0]) and found[1] == expected[1]
    else:
        assert found == expected


def assert_same(table: FrozenDict, model: dict) -> None:
    assert len(table) == len(model) and list(table) == [key for key, _ in table.items()]
    assert set(table) == set(model)
    for key, value in table.items():
        assert_equal(value, model[key])
        assert_equal(table[key], model[key])


LARGE = 40_000


def changes_of_round(round_: int, count: int = 1000) -> dict:
    return {f"key-{(round_ * 7919 + i * 31) % (LARGE + 500)}": round_ for i in range(count)}


def test_a_large_table_is_compacted_beside_the_changes():
    """No version is whole, and each equals the dict of its moment, held from before or read after."""
    model, bases, held = plain(LARGE), set(), []
    with untorn.publish(FrozenDict(model)) as publisher, publisher.subscriber() as reader:
        for round_ in range(60):
            changes = changes_of_round(round_)
            publisher.patch(changes)
            model |= changes
            snapshot = reader.snapshot()
            assert not is_whole(snapshot)
            bases.add(snapshot._held().base_version)
            if round_ % 7 == 0:
                held.append((snapshot, dict(model)))
            assert snapshot.value["key-31"] == model["key-31"] and len(snapshot.value) == len(model)
        assert len(bases) > 2, "it was compacted"
        for snapshot, then in held:
            assert snapshot.value == then
        snapshot.close()
        held.clear()
        model |= (changes := changes_of_round(60))
        with publisher.edit() as table:
            del table["key-5"], model["key-5"]
            table.update(changes)
        assert_equals(reader.snapshot().value, model)


@pytest.fixture
def endless(monkeypatch):
    """Compactions that do not end unless they are stopped; set it and they end."""
    release = threading.Event()

    def merged(table, stop):
        while not stop[0] and not release.wait(0.001):
            pass
        return really(table, stop)

    really = compaction.merged
    monkeypatch.setattr(compaction, "merged", merged)
    return release


def compacting(publisher: untorn.Publisher, model: dict) -> None:
    """Change the table until it is being written again."""
    for round_ in range(20):
        model |= (changes := changes_of_round(round_))
        publisher.patch(changes)
        if publisher._tables._compaction is not None:
            return
    raise AssertionError("no compaction has begun")


@pytest.mark.parametrize("end", ["close", "drop", "update", "receive", "fork"])
def test_a_compaction_ends_with_whatever_comes_in_between(end, endless):
    model = plain(LARGE)
    publisher = untorn.publish(FrozenDict(model))
    reader = publisher.subscriber()
    compacting(publisher, model)
    running = publisher._tables._compaction
    if end == "close":
        publisher.close()
    elif end == "drop":
        del publisher
        gc.collect()
    elif end == "update":
        publisher.update([1, 2])
        assert reader.snapshot().value == [1, 2]
    elif end == "receive":
        with reader.snapshot() as snapshot:
            raw = raw_version(snapshot)
        publish_raw(raw, 9).close()
        update_raw(publisher, raw, 99)
        assert reader.snapshot().version == 99
    else:
        child = os.fork()
        if child == 0:
            os._exit(threading.active_count() != 1)
        assert os.waitpid(child, 0)[1] == 0
        endless.set()
        for round_ in range(20, 60):
            model |= (changes := changes_of_round(round_))
            publisher.patch(changes)
        with reader.snapshot() as snapshot:
            assert snapshot._held().base_version > 1
            assert_equals(snapshot.value, model)
        publisher.close()
    assert running.is_over
    if end in ("update", "receive"):
        assert not publisher._tables._compaction
        publisher.close()


def test_without_room_for_a_second_table_changes_go_on(monkeypatch, caplog):
    model = plain(LARGE)
    with untorn.publish(FrozenDict(model), name=None) as publisher, publisher.subscriber() as reader:
        with mock.patch.object(compaction.Compaction, "_place", side_effect=OSError(errno.ENOSPC, "full")):
            for round_ in range(60):
                model |= (changes := changes_of_round(round_))
                publisher.patch(changes)
                assert reader.snapshot()._held().base_version == 1
        assert_equals(reader.snapshot().value, model)
        assert [record.message for record in caplog.records].count(caplog.records[0].message) == 1
        assert "could not be written again" in caplog.text and "full" in caplog.text
        for round_ in range(60, 90):
            model |= (changes := changes_of_round(round_, 9000))
            publisher.patch(changes)
        with reader.snapshot() as snapshot:
            assert snapshot._held().base_version > 1
            assert_equals(snapshot.value, model)


def test_compactions_come_by_themselves_and_keep_the_space_small(channel):
    model, wholes = plain(), 0
    # a version more of the whole while it is written, and the small slots
    limit = 3 * channel.nbytes + (4 << 20)
    for round_ in range(120):
        changes = {f"key-{(round_ * 37 + i) % (COUNT + 50)}": round_ for i in range(20)}
        channel.patch(changes)
        model |= changes
        with channel.subscriber().snapshot() as snapshot:
            wholes += is_whole(snapshot)
            assert snapshot.value["key-5"] == model["key-5"] and len(snapshot.value) == len(model)
        assert channel.nbytes <= limit
    assert 3 < wholes < 60
    assert_equals(channel.subscriber().snapshot().value, model)


def test_old_snapshots_and_their_values_outlive_compactions(channel):
    reader = channel.subscriber()
    channel.patch({"key-1": np.arange(100)})
    old = reader.snapshot()
    table, array = old.value, old.value["key-1"]
    old.close()
    for round_ in range(40):
        channel.patch({f"key-{i}": [round_] * 5 for i in range(round_ * 10, round_ * 10 + 60)})
    channel.update({"something": "else"})
    channel.update(FrozenDict({}))
    assert table["key-500"] == 500 and len(table) == COUNT
    del table
    channel.update(FrozenDict(plain(10)))
    assert np.array_equal(array, np.arange(100)) and not array.flags.writeable


def test_a_base_is_kept_while_a_version_of_its_changes_is_held():
    """With three slots, there is none for a fourth version as long as a reader holds changes and so their base."""
    with untorn.publish(FrozenDict(plain()), max_slots=3) as publisher:
        reader = publisher.subscriber()
        publisher.patch({"key-1": "one"})
        with reader.snapshot() as held:
            publisher.update(FrozenDict({}))
            with pytest.raises(CapacityError, match="no free slot"):
                publisher.update(FrozenDict({}), timeout_s=0)
            assert held.value["key-1"] == "one" and held.value["key-2"] == 2
        for round_ in range(100):
            publisher.patch({"key-1": round_})
        assert reader.snapshot().value == {"key-1": 99}


def test_with_two_slots_every_version_is_whole():
    with untorn.publish(FrozenDict(plain()), max_slots=2) as publisher:
        for round_ in range(3):
            publisher.patch({"key-1": round_})
        with publisher.subscriber().snapshot() as snapshot:
            assert is_whole(snapshot)
            assert_equals(snapshot.value, plain() | {"key-1": 2})


def test_values_of_every_kind_are_changed_and_compacted():
    values = {
        "array": np.arange(6.0).reshape(2, 3),
        "large": np.arange(5000),
        "scalar": np.float32(1.5),
        "date": date(2026, 1, 2),
        "nested": [np.arange(3), {"a": (1, b"x")}],
        "none": None,
    }
    with untorn.publish(FrozenDict(plain() | {"array": np.zeros(2), "date": date(2000, 1, 1)})) as publisher:
        reader = publisher.subscriber()
        for _ in range(3):
            publisher.patch(values)
            publisher.patch({f"day-{i}": date(2000 + i, 1, 1) for i in range(5)})
        for target in (1, 5000):  # the second time it is compacted
            publisher.patch({i: np.arange(i % 5) for i in range(target)})
            found = reader.snapshot().value
            assert found["date"] == date(2026, 1, 2) and found["day-3"] == date(2003, 1, 1) and found["none"] is None
            assert np.array_equal(found["array"], values["array"]) and np.array_equal(found["large"], values["large"])
            assert np.array_equal(found["nested"][0], np.arange(3)) and found["nested"][1] == {"a": (1, b"x")}
            assert found["scalar"] == np.float32(1.5) and found["key-9"] == 9
        assert is_whole(reader.snapshot())


def test_pickled_values_are_changed_too():
    with untorn.publish(FrozenDict(plain()), allow_pickle=True) as publisher:
        publisher.patch({"key-1": {1: object}, "key-2": complex})
        table = publisher.subscriber(allow_pickle=True).snapshot().value
        assert table["key-1"] == {1: object} and table["key-2"] is complex
        with pytest.raises(UnsupportedTypeError, match="allow_pickle"):
            publisher.subscriber().snapshot().value["key-2"]


def test_what_cannot_be_stored_changes_nothing(channel):
    for key, value in (((1, 2), 3), (True, 1), ("key-1", object())):
        with pytest.raises(UnsupportedTypeError), channel.edit() as table:
            table[key] = value
    with pytest.raises(ZeroDivisionError), channel.edit() as table:
        table["key-1"] = 2
        raise ZeroDivisionError
    with pytest.raises(KeyError, match="missing"), channel.edit() as table:
        del table["missing"]
    assert channel.version == 1 and channel.subscriber().snapshot().value == plain()
    with pytest.raises(ClosedError, match="has ended"):
        table["key-1"]


def test_it_is_used_as_a_dict(channel):
    model = plain()
    with channel.edit() as table:
        for each in (table, model):
            each.update(a=1)
            each.update({"b": 2})
            each.update([("c", 3)])
            each |= {"d": 4}
            assert each.pop("a") == 1 and each.pop("a", None) is None and each.setdefault("e", 5) == 5
            with pytest.raises(KeyError):
                each.pop("a")
        assert table == model and dict(table) == model and bool(table) and list(table.keys()) == list(model)
        assert table.popitem() == ("key-0", 0) and table.popitem() == ("key-1", 1)
        table["key-0"] = 7
        del model["key-1"]
        model["key-0"] = 7
    assert channel.subscriber().snapshot().value == model
    with channel.edit() as table:
        while table:
            table.popitem()
        with pytest.raises(KeyError, match="empty"):
            table.popitem()
    assert channel.subscriber().snapshot().value == {}


def test_clear_replaces_the_table(channel):
    channel.patch({"key-1": 1.5})
    with channel.edit() as table:
        table["lost"] = 1
        table.clear()
        assert not table and list(table) == [] and "key-1" not in table and table.get("key-1") is None
        table["new"] = [1]
        table |= {"key-2": 2}
        del table["new"]
        table["last"] = 3
        assert dict(table) == {"key-2": 2, "last": 3}
    with channel.subscriber().snapshot() as snapshot:
        assert is_whole(snapshot)
        assert_equals(snapshot.value, {"key-2": 2, "last": 3})
    channel.patch({"more": 1})
    assert channel.subscriber().snapshot().value == {"key-2": 2, "last": 3, "more": 1}


def test_keys_that_equal_an_int_remove_it():
    with untorn.publish(FrozenDict({0: "a", 1: "b", 2: "c", 3: "d"})) as publisher:
        with publisher.edit() as table:
            del table[True], table[2.0]
            assert table.pop(np.False_) == "a" and len(table) == 1
        assert publisher.subscriber().snapshot().value == {3: "d"}


def test_errors_say_how_a_table_is_changed(channel):
    with pytest.raises(ValueError, match="keys are no paths; write edit"), channel.edit(leaves=["key-1"]):
        pass
    found = channel.subscriber().snapshot().value
    with pytest.raises(TypeError, match=r"read-only.*edit\(\)"):
        found["key-1"] = 2
    with pytest.raises(TypeError, match="read-only"):
        del found["key-1"]
    for again in (channel.edit, lambda: channel.patch({"a": 1})):
        with pytest.raises(BusyError, match="inside edit"), channel.edit():
            again().__enter__()
    assert channel.version == 1


def test_the_value_itself_is_replaced_by_the_empty_path_and_by_update(channel):
    channel.patch({"key-1": 1.5})
    channel.patch({"": FrozenDict({"a": 1})})
    assert channel.subscriber().snapshot().value == {"a": 1}
    channel.update(FrozenDict(plain(3)))
    channel.update([1, 2])
    assert channel.subscriber().snapshot().value == [1, 2]


def test_changes_are_copied_pickled_and_published_as_one_table(channel):
    channel.patch({"key-1": 1.5, "new": np.arange(3)})
    with channel.edit() as table:
        del table["key-2"]
    with channel.subscriber().snapshot() as snapshot:
        found = [
            pickle.loads(pickle.dumps(snapshot.value)),
            copy.deepcopy(snapshot.value),
            FrozenDict.of_parts(snapshot.value.parts()),
            copy_value(snapshot),
            private_value(snapshot),
            read_value(snapshot, arrays=True),
        ]
        raw = raw_version(snapshot)
    with publish_raw(raw, 9) as other, untorn.publish({"inside": found[0]}) as third:
        found += [other.subscriber().snapshot().value, third.subscriber().snapshot().value["inside"]]
        for table in found:
            assert len(table) == COUNT and table["key-1"] == 1.5 and "key-2" not in table
            assert np.array_equal(table["new"], np.arange(3)) and table["key-3"] == 3


def test_fixed_channels_and_durable_ones_change(tmp_path):
    with untorn.publish(FrozenDict(plain()), name="t", directory=tmp_path, durable=True, fixed=True) as publisher:
        for round_ in range(30):
            publisher.patch({f"key-{i}": round_ for i in range(round_ * 9, round_ * 9 + 30)})
        publisher.update(FrozenDict(plain(5)))
        publisher.patch({"key-1": 0})
        assert untorn.subscribe("t", directory=tmp_path).snapshot().value["key-1"] == 0


def test_the_next_publisher_keeps_the_base_that_readers_use(tmp_path):
    first = untorn.publish(FrozenDict(plain()), name="t", directory=tmp_path)
    first.patch({"key-1": "one"})
    held = untorn.subscribe("t", directory=tmp_path).snapshot()
    first.close()
    with untorn.publish(FrozenDict({"other": 1}), name="t", directory=tmp_path) as second:
        for round_ in range(10):
            second.update(FrozenDict(dict.fromkeys(range(3000), round_)))
            second.patch({0: "zero"})
        assert_equals(held.value, plain() | {"key-1": "one"})
        assert second.subscriber().snapshot().value[0] == "zero"


def test_show_tells_changes_from_a_whole_table(tmp_path):
    with untorn.publish(FrozenDict(plain()), name="t", directory=tmp_path) as publisher:
        states = [_state(tmp_path)]
        publisher.patch({"key-1": 5})
        states.append(_state(tmp_path))
        whole, changed = states
        assert (whole.base_version, whole.base_nbytes) == (None, 0)
        assert (changed.base_version, changed.base_nbytes) == (1, whole.nbytes) and changed.nbytes < whole.nbytes / 20
        shown = CliRunner().invoke(group, ["show", f"{tmp_path}/t"]).output
        assert "of changes, of version 1 with" in shown, shown


def _state(folder):
    with ChannelView.open(files_of(f"{folder}/t")) as view:
        return view.state()


def test_threads_edit_in_turn(channel):
    def work(thread: int) -> None:
        for i in range(20):
            with channel.edit() as table:
                table["count"] = table.get("count", 0) + 1
                table[f"{thread}-{i}"] = i

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(4)))
    found = channel.subscriber().snapshot().value
    assert found["count"] == 80 and len(found) == COUNT + 81


def test_damaged_changes_are_an_error():
    base = FrozenDict(plain(50))
    overlay = Overlay.of(base, allow_pickle=False)
    overlay.add({"key-1": 2}, base)
    made = overlay.changes()
    with pytest.raises(FormatError, match="changes of another version"):
        FrozenDict.of_parts(made.parts)
    with pytest.raises(FormatError, match="its base is a list"):
        made.over([])
    with pytest.raises(FormatError, match="a whole FrozenDict"):
        Changes(base.parts(), False).over(base)
    longer = {**made.parts, "documents": made.parts["documents"].replace(b'"length":50', b'"length":51')}
    with pytest.raises(FormatError, match="damaged"):
        list(Changes(longer, False).over(base))
    longest = {**made.parts, "documents": made.parts["documents"].replace(b'"length":50', b'"length":1099511627776')}
    with pytest.raises(FormatError, match="1099511627776 entries are more than those of both; they are damaged"):
        Changes(longest, False).over(base)  # list() would reserve memory for as many
    entries = np.frombuffer(bytes(made.parts["entries"]), np.uint8).copy()
    entries[4:8] = 255  # the size of the key
    table = Changes({**made.parts, "entries": entries}, False).over(base)
    uses = (
        lambda: Overlay.of(table, allow_pickle=False),
        lambda: compacted(table),
        lambda: list(table),
        lambda: table["key-1"],
    )
    for use in uses:
        with pytest.raises(FormatError, match="damaged"):
            use()
