"""patch() and edit(leaves=): a new version at the cost of what changed."""

import numpy as np
import pytest

import untorn
from untorn.errors import BusyError, CapacityError, ClosedError, UnsupportedTypeError
from untorn.share import versions

LARGE = 200_000


@pytest.fixture
def channel():
    value = {"head": {"w": np.zeros(3), "b/c": 1}, "body": [np.zeros(LARGE), "text"], "step": 0}
    with untorn.publish(value) as publisher:
        yield publisher


def newest(publisher):
    return publisher.subscriber().snapshot().value


@pytest.fixture
def copied(monkeypatch):
    """Count the bytes that were copied from version to version, and those that were copied into leaves."""
    counts = {"carried": 0, "written": 0}
    copy, write_leaf = versions._core.copy, versions.Layout.write_leaf

    class Core:
        def __getattr__(self, name):
            return getattr(real, name)

        @staticmethod
        def copy(target, offset, source):
            counts["carried"] += memoryview(source).nbytes
            copy(target, offset, source)

    def counting(self, draft, index, leaf):
        start, end = self.leaf_range(index)
        counts["written"] += end - start
        write_leaf(self, draft, index, leaf)

    real = versions._core
    monkeypatch.setattr(versions, "_core", Core())
    monkeypatch.setattr(versions.Layout, "write_leaf", counting)
    return counts


def test_only_what_is_named_changes(channel):
    assert channel.patch({"head/w": np.ones(3)}) == 2
    assert channel.patch({"step": 7, "body/1": "next"}) == 3
    value = newest(channel)
    assert value["head"]["w"].tolist() == [1, 1, 1]
    assert (value["step"], value["body"][1], value["head"]["b/c"]) == (7, "next", 1)
    assert not value["body"][0].any()


def test_a_key_with_a_slash_is_found(channel):
    channel.patch({"head/b/c": 2})
    assert newest(channel)["head"]["b/c"] == 2


def test_the_longest_key_wins():
    with untorn.publish({"a": {"b": 1}, "a/b": 2}) as publisher:
        publisher.patch({"a/b": 3})
        assert newest(publisher) == {"a": {"b": 1}, "a/b": 3}


def test_a_subtree_and_the_root(channel):
    channel.patch({"head": {"w": np.full(3, 5.0), "b/c": 9}})
    assert newest(channel)["head"]["b/c"] == 9
    channel.patch({"": [1, 2]})
    assert newest(channel) == [1, 2]
    channel.patch({"1": 3})
    assert newest(channel) == [1, 3]


def test_fields_of_named_tuples_and_dataclasses_have_names():
    from untorn.share.versions import ReaderInfo

    with untorn.publish(ReaderInfo(1, (2, 3), 0.5)) as publisher:
        publisher.patch({"versions/1": 4, "age_s": 1.0})
        assert newest(publisher) == ReaderInfo(1, (2, 4), 1.0)


@pytest.mark.parametrize(
    "other", [np.ones(4), np.ones(3, np.float32), np.ones((3, 1)), "text", {"x": np.ones(2)}, None]
)
def test_another_structure_moves_the_rest(channel, other):
    channel.patch({"head/w": other, "step": 1})
    value = newest(channel)
    np.testing.assert_equal(value["head"]["w"], other)
    assert (value["step"], value["body"][1], value["body"][0].size, value["head"]["b/c"]) == (1, "text", LARGE, 1)
    channel.patch({"body/1": "a longer text"})
    np.testing.assert_equal(newest(channel)["head"]["w"], other)


def test_several_parts_change_their_structure_at_once():
    with untorn.publish({"a": 1, "b": [np.zeros(2), "x"], "c": 2.0}) as publisher:
        publisher.patch({"a": (1, 2, 3), "b/0": "gone", "c": {"d": np.ones(5)}})
        value = newest(publisher)
        assert (value["a"], value["b"], value["c"]["d"].sum()) == ((1, 2, 3), ["gone", "x"], 5)


def test_nothing_to_change_is_a_version(channel):
    assert channel.patch({}) == 2
    assert newest(channel)["step"] == 0


def test_it_costs_what_changed(channel, copied):
    nbytes = channel.nbytes
    for step in range(20):
        channel.patch({"step": step})
    # the second slot's first version is a copy; from then on a version is a few bytes
    assert copied["carried"] < 2 * nbytes
    assert copied["written"] == 20 * 8
    copied.update(carried=0, written=0)
    for step in range(20):
        with channel.edit(leaves=["head/w"]) as tree:
            tree["head"]["w"] += step
    assert copied["carried"] < 20 * 200


def test_a_slot_catches_up_with_what_it_missed(channel):
    """Readers that hold versions make slots lag by different numbers of versions."""
    reader = channel.subscriber()
    held = []
    model = {"w": np.zeros(3), "body": np.zeros(LARGE), "step": 0}
    for version in range(2, 40):
        change = ("w", "body", "step")[version % 3]
        model[change] = version if change == "step" else np.full_like(model[change], version)
        path = {"w": "head/w", "body": "body/0", "step": "step"}[change]
        assert channel.patch({path: model[change]}) == version
        if version % 4 == 0:
            held.append((reader.snapshot(), dict(model)))
        if version % 7 == 0:
            held.pop(0)
        for snapshot, expected in [(reader.snapshot(), model), *held]:
            value = snapshot.value
            assert (value["head"]["w"] == expected["w"]).all()
            assert (value["body"][0] == expected["body"]).all()
            assert value["step"] == expected["step"]


def test_after_a_dropped_edit_a_slot_is_not_trusted(channel):
    for _ in range(4):
        channel.patch({"step": 1})  # every slot has a version
    for _ in range(6):
        with pytest.raises(ZeroDivisionError), channel.edit() as tree:
            tree["body"][0][:] = -1
            raise ZeroDivisionError
        channel.patch({"step": 2})
        assert not newest(channel)["body"][0].any()


def test_a_refused_value_does_not_spoil_a_slot(channel):
    before = newest(channel)["head"]["w"].copy()
    with pytest.raises(UnsupportedTypeError, match=r"^head/w: cannot share builtins\.object"):
        channel.patch({"head/w": object()})
    with pytest.raises(UnsupportedTypeError, match=r"^head/w/1/x: cannot share builtins\.object"):
        channel.patch({"/head/w": [1, {"x": object()}]})
    assert channel.version == 1
    channel.patch({"step": 5})
    assert (newest(channel)["head"]["w"] == before).all()


def test_the_next_publisher_begins_with_a_copy(name):
    value = {"a": np.zeros(1000), "n": 0}
    with untorn.publish(value, name=name) as first:
        for n in range(5):
            first.patch({"n": n})
    with untorn.publish(value | {"n": 10}, name=name) as second:
        for n in range(11, 15):
            second.patch({"n": n})
            assert newest(second)["n"] == n
            assert not newest(second)["a"].any()
        second.unlink()


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("heat/w", "no 'heat' in .the value itself.; there is 'head'"),
        ("head/x", "no 'x' in head; there is 'w', 'b/c'"),
        ("body/2", "no '2' in body; there is '0', '1'"),
        ("step/x", "step is a int, which has no parts"),
        ("body/0/0", "body/0 is a array, which has no parts"),
    ],
)
def test_a_wrong_path_names_what_is_near(channel, path, message):
    with pytest.raises(KeyError, match=message):
        channel.patch({path: 1})
    with pytest.raises(KeyError, match=message), channel.edit(leaves=[path]):
        pytest.fail("the block ran")
    assert channel.version == 1


def test_wrong_arguments(channel):
    with pytest.raises(TypeError, match="changes: expected a dict of path to value, found list"):
        channel.patch([("head/w", 1)])
    with pytest.raises(TypeError, match="path: expected a str such as 'head/w', found tuple"):
        channel.patch({("head", "w"): 1})
    with pytest.raises(ValueError, match="'head/w' lies in 'head', which is replaced as a whole"):
        channel.patch({"head/w": np.ones(3), "head": {}})
    with pytest.raises(TypeError, match=r"found the str 'head/w'; write \['head/w'\]"), channel.edit(leaves="head/w"):
        pytest.fail("the block ran")


def test_patch_inside_edit_and_after_close(channel):
    with pytest.raises(BusyError, match=r"patch\(\) inside edit"), channel.edit():
        channel.patch({"step": 1})
    channel.close()
    with pytest.raises(ClosedError):
        channel.patch({"step": 1})


def test_all_slots_held():
    with untorn.publish({"a": 0, "b": 0}, slots=2, max_slots=2) as publisher:
        reader = publisher.subscriber()
        held = [reader.snapshot()]
        publisher.patch({"a": 1})
        held.append(reader.snapshot())
        with pytest.raises(CapacityError, match="no free slot"):
            publisher.patch({"a": 2}, timeout_s=0)
        del held[0]
        publisher.patch({"a": 3})
        assert newest(publisher) == {"a": 3, "b": 0}


# -- edit(leaves=...)


def test_an_edit_of_some_leaves(channel):
    with channel.edit(leaves=["head", "step"]) as tree:
        tree["head"]["w"] += 1
        tree["head"]["b/c"] = 5
        tree["step"] += 3
        assert tree["body"][1] == "text"
    value = newest(channel)
    assert (value["head"]["w"].tolist(), value["head"]["b/c"], value["step"]) == ([1, 1, 1], 5, 3)


def test_other_arrays_cannot_be_written(channel):
    with pytest.raises(ValueError, match="read-only"), channel.edit(leaves=["step"]) as tree:
        tree["head"]["w"] += 1
    assert channel.version == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda tree: tree["head"].update(w=np.ones(3)), "'head/w' was changed, but was not named"),
        (lambda tree: tree["body"].__setitem__(1, "tent"), "'body/1' was changed, but was not named"),
        (lambda tree: tree.update(more=1), "changed the structure of the tree"),
        (lambda tree: tree.update(step="x"), "changed the structure of the tree"),
    ],
)
def test_a_change_of_what_was_not_named_publishes_nothing(channel, change, message):
    with pytest.raises(ValueError, match=message), channel.edit(leaves=["step"]) as tree:
        change(tree)
    assert channel.version == 1
    channel.patch({"step": 1})
    assert not newest(channel)["head"]["w"].any()


def test_an_array_that_was_put_back_is_no_change(channel):
    with channel.edit(leaves=["step"]) as tree:
        tree["head"]["w"] = tree["head"]["w"][:]
        tree["step"] = 1
    assert newest(channel)["step"] == 1


def test_an_edit_without_a_copy_keeps_what_was_not_named(channel):
    for n in range(6):
        with channel.edit(copy=False, leaves=["head/w"]) as tree:
            tree["head"]["w"][:] = n
        value = newest(channel)
        assert (value["head"]["w"] == n).all()
        assert not value["body"][0].any()
        assert value["body"][1] == "text"
