"""A FrozenDict that a channel holds changes by edit() and patch(), and every snapshot equals the dict of its moment."""

import copy
import pickle
from concurrent.futures import ThreadPoolExecutor
from datetime import date

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

import untorn
from untorn.cli.group import group
from untorn.errors import CapacityError, ClosedError, FormatError, UnsupportedTypeError
from untorn.share.frozen_dict import Changes, FrozenDict, changes_of
from untorn.share.inspect import ChannelView, files_of
from untorn.share.lowlevel import copy_value, private_value, publish_raw, raw_version, read_value

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


OPERATIONS = st.lists(
    st.tuples(
        st.booleans(),
        st.one_of(st.integers(0, 60), st.sampled_from(["a", b"a", "ü", "", 2**70]), st.integers(-(2**63), 2**63 - 1)),
        st.one_of(st.none(), st.integers(), st.text(max_size=40), st.lists(st.floats(allow_nan=False), max_size=3)),
    ),
    max_size=25,
)


@settings(max_examples=25, deadline=None, database=None)
@given(edits=st.lists(OPERATIONS, max_size=12), count=st.sampled_from([0, 1, 400]))
def test_it_equals_a_dict_through_edits_and_compactions(edits, count):
    model = {i: i * 3 for i in range(count)}
    with untorn.publish(FrozenDict(model)) as publisher, publisher.subscriber() as reader:
        held = [(reader.snapshot(), dict(model))]
        for operations in edits:
            with publisher.edit() as table:
                for is_set, key, value in operations:
                    if is_set:
                        table[key] = model[key] = value
                    else:
                        assert table.pop(key, "no") == model.pop(key, "no")
                assert len(table) == len(model) and dict(table.items()) == model
            held.append((reader.snapshot(), dict(model)))
        for snapshot, then in held:
            assert_equals(snapshot.value, then)


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
    """With two slots, there is none for a third version as long as a reader holds changes and so their base."""
    with untorn.publish(FrozenDict(plain()), max_slots=2) as publisher:
        reader = publisher.subscriber()
        publisher.patch({"key-1": "one"})
        with reader.snapshot() as held:
            with pytest.raises(CapacityError, match="no free slot"):
                publisher.update(FrozenDict({}), timeout_s=0)
            assert held.value["key-1"] == "one" and held.value["key-2"] == 2


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
    made = changes_of(base, {"key-1": 2}, 50)
    with pytest.raises(FormatError, match="changes of another version"):
        FrozenDict.of_parts(made.parts)
    with pytest.raises(FormatError, match="its base is a list"):
        made.over([])
    with pytest.raises(FormatError, match="a whole FrozenDict"):
        Changes(base.parts(), False).over(base)
    longer = {**made.parts, "documents": made.parts["documents"].replace(b'"length":50', b'"length":51')}
    with pytest.raises(FormatError, match="damaged"):
        list(Changes(longer, False).over(base))
    entries = np.frombuffer(bytes(made.parts["entries"]), np.uint8).copy()
    entries[4:8] = 255  # the size of the key
    table = Changes({**made.parts, "entries": entries}, False).over(base)
    for use in (lambda: changes_of(table, {"key-1": 3}, 50), lambda: list(table), lambda: table["key-1"]):
        with pytest.raises(FormatError, match="damaged"):
            use()
