"""publish, update and edit."""

import gc
import logging
import os
import pickle
import threading
import time

import numpy as np
import pytest

import untorn
from helpers import descriptors, start, untorn_mappings
from untorn import BusyError, CapacityError, ClosedError, UnsupportedTypeError


@pytest.fixture
def weights():
    with untorn.publish({"w": np.zeros((2, 3)), "b": np.arange(3.0), "step": 0}) as publisher:
        yield publisher


def read(publisher):
    return publisher.subscriber().snapshot().value


def test_the_first_version_is_1_and_update_counts_on(weights):
    assert weights.version == 1
    assert [weights.update({"w": np.full(2, i)}) for i in range(5)] == [2, 3, 4, 5, 6]
    assert weights.version == 6
    assert read(weights)["w"].tolist() == [4, 4]


def test_update_copies():
    source = np.zeros(4)
    with untorn.publish(source) as publisher:
        source += 1
        assert read(publisher).tolist() == [0] * 4
        publisher.update(source)
        source += 1
        assert read(publisher).tolist() == [1] * 4


@pytest.mark.parametrize("value", [None, 0, "", b"", {}, [], (), np.zeros(0), np.array(3.5), "x" * 100_000, 2**70])
def test_small_and_empty_values(value):
    with untorn.publish(value) as publisher:
        assert type(read(publisher)) is type(value) and repr(read(publisher)) == repr(value)


def test_structure_and_size_may_change(weights):
    values = [np.zeros(10), {"a": [1, "x"]}, np.zeros(300_000), None, np.zeros((0, 5)), {"w": np.ones(1)}]
    kept = []
    for value in values * 3:
        weights.update(value)
        snapshot = weights.subscriber().snapshot()
        kept.append((snapshot, value))
    for snapshot, value in kept:
        assert repr(snapshot.value) == repr(value)


def test_a_refused_value_publishes_nothing(weights):
    for value in (object(), {"w": np.array([None])}, [[int]]):
        with pytest.raises(UnsupportedTypeError):
            weights.update(value)
    assert weights.version == 1
    assert weights.update(1) == 2


# -- edit


def test_edit_in_place(weights):
    with weights.edit() as params:
        assert params["w"].flags.writeable
        params["w"] += 1
        params["b"][1] = 9
        params["step"] = 7
        assert weights.version == 1 and read(weights)["step"] == 0
    assert weights.version == 2
    value = read(weights)
    assert value["w"].tolist() == [[1] * 3] * 2
    assert value["b"].tolist() == [0, 9, 2]
    assert value["step"] == 7


def test_edit_of_nothing_is_a_version_too(weights):
    with weights.edit():
        pass
    assert weights.version == 2
    assert read(weights)["b"].tolist() == [0, 1, 2]


def test_edit_with_replaced_leaves(weights):
    mine = np.full((2, 3), 5.0)
    with weights.edit() as params:
        params["w"] = mine
        params["b"] = params["b"] * 2
    mine += 1
    assert mine.flags.writeable
    value = read(weights)
    assert value["w"].tolist() == [[5] * 3] * 2
    assert value["b"].tolist() == [0, 2, 4]


def test_edit_with_swapped_leaves():
    with untorn.publish({"a": np.full(1000, 1.0), "b": np.full(1000, 2.0), "c": np.arange(1000.0)}) as publisher:
        with publisher.edit() as tree:
            tree["a"], tree["b"] = tree["b"], tree["a"]
            tree["c"] = tree["c"][::-1]
        value = read(publisher)
        assert (value["a"] == 2).all() and (value["b"] == 1).all()
        assert value["c"].tolist() == list(range(999, -1, -1))


def test_edit_where_two_leaves_become_one_array():
    with untorn.publish([np.zeros(10), np.ones(10)]) as publisher:
        with publisher.edit() as tree:
            tree[0] += 5
            tree[1] = tree[0]
        assert [part.tolist() for part in read(publisher)] == [[5] * 10, [5] * 10]


def test_edit_with_another_structure(weights):
    with weights.edit() as params:
        params["w"] += 3
        params["again"] = params["w"]
        params["big"] = np.arange(100_000.0)
        del params["b"]
    value = read(weights)
    assert list(value) == ["w", "step", "again", "big"]
    assert (value["w"] == 3).all() and (value["again"] == 3).all()
    assert value["big"][-1] == 99_999


def test_edit_that_grows_again_and_again_leaks_nothing():
    with untorn.publish({"w": np.zeros(10)}) as publisher:
        before = len(untorn_mappings())
        for size in range(1, 200):
            with publisher.edit() as tree:
                tree["w"] = np.full(size * 1000, float(size))
        del tree
        gc.collect()
        assert (read(publisher)["w"] == 199).all()
        assert len(untorn_mappings()) < before + 20


def test_arrays_of_an_edit_stay_whole_when_their_slot_moved():
    with untorn.publish({"w": np.zeros(10)}) as publisher:
        kept = []
        for size in range(1, 50):
            with publisher.edit() as tree:
                kept.append(tree["w"])
                tree["w"] = np.full(size * 1000, float(size))
        for array in kept:
            array.sum()  # its memory is still there, whatever it holds
            assert not array.flags.writeable


def test_an_exception_drops_the_edit(weights):
    with pytest.raises(KeyError), weights.edit() as params:
        params["w"] += 1
        kept = params["w"]
        raise KeyError
    assert weights.version == 1
    assert (read(weights)["w"] == 0).all()
    assert not kept.flags.writeable, "the slot will be another version's"
    assert weights.update(3) == 2


def test_an_edit_to_something_unsharable_drops_it(weights):
    with pytest.raises(UnsupportedTypeError, match=r"^w: "), weights.edit() as params:
        kept = params["b"]
        params["w"] = object()
    assert weights.version == 1
    assert not kept.flags.writeable
    with weights.edit() as params:
        params["w"] += 1
    assert (read(weights)["w"] == 1).all()


def test_edit_without_copy_keeps_all_but_the_arrays(weights):
    weights.update({"w": np.ones(1000), "name": "x" * 50, "step": 4, "big": 2**80, "z": 1j, "n": np.float32(2)})
    for _ in range(10):
        with weights.edit(copy=False) as params:
            assert params["name"] == "x" * 50 and params["step"] == 4 and params["big"] == 2**80
            assert params["z"] == 1j and params["n"] == np.float32(2)
            params["w"][...] = 7
    assert (read(weights)["w"] == 7).all()


def test_arrays_are_read_only_after_the_edit(weights):
    with weights.edit() as params:
        arrays = [params["w"], params["b"]]
        mine = params["w"] = np.zeros((2, 3))
    for array in arrays:
        with pytest.raises(ValueError, match="read-only"):
            array[...] = 1
    mine[...] = 1


def test_update_inside_edit_is_busy(weights):
    with weights.edit() as params:
        with pytest.raises(BusyError, match="inside edit"):
            weights.update(1)
        with pytest.raises(BusyError, match="inside edit"), weights.edit():
            pass
        params["step"] = 1
    assert weights.version == 2 and read(weights)["step"] == 1


def test_another_thread_waits_for_the_edit(weights):
    versions = []
    entered = threading.Event()

    def other():
        entered.set()
        versions.append(weights.update("other"))

    thread = threading.Thread(target=other)
    with weights.edit() as params:
        thread.start()
        entered.wait()
        params["step"] = 1
        assert weights.version == 1
    thread.join()
    assert versions == [3]
    assert read(weights) == "other"


def test_threads_take_turns():
    with untorn.publish(np.zeros(500)) as publisher:

        def work():
            for _ in range(200):
                with publisher.edit() as array:
                    array[...] += 1

        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert publisher.version == 801
        assert (read(publisher) == 800).all()


# -- what it says of itself


def test_readers_and_nbytes(weights):
    assert weights.readers() == []
    reader = weights.subscriber()
    assert weights.readers() == []
    old = reader.snapshot()
    weights.update(1)
    new = reader.snapshot()
    (info,) = weights.readers()
    assert info.pid == os.getpid() and info.versions == (1, 2)
    assert 0 <= info.age_s <= time.time() - old.published_at
    old.close()
    assert weights.readers()[0].versions == (2,)
    new.close()
    assert weights.readers()[0].versions == () and weights.readers()[0].age_s == 0.0
    assert weights.nbytes >= 2 * 64


def test_nbytes_stays_when_versions_go_by_and_falls_when_they_shrink():
    with untorn.publish(np.zeros(100_000), slots=2) as publisher:
        reader = publisher.subscriber()
        held = []
        for _ in range(10):
            publisher.update(np.zeros(100_000))
            held.append(reader.snapshot())
        peak = publisher.nbytes
        assert peak >= 10 * 800_000
        held.clear()
        for _ in range(10):
            publisher.update(np.zeros(100_000))
        assert publisher.nbytes <= 3 * 810_000
        assert os.fstat(publisher._attachment.data_fd).st_blocks * 512 <= 4 * 810_000
        for _ in range(5):
            publisher.update(np.zeros(200_000))
        assert publisher.nbytes <= 3 * 1_610_000


def test_all_slots_held_is_a_capacity_error_that_names_the_holders():
    with untorn.publish(0, max_slots=3) as publisher:
        reader = publisher.subscriber()
        held = [reader.snapshot()]
        held += [reader.snapshot() for _ in range(2) if publisher.update(1)]
        with pytest.raises(CapacityError, match=f"pid {os.getpid()} holds versions 1, 2, 3") as caught:
            publisher.update(2, timeout_s=0.01)
        assert "max_slots" in str(caught.value)
        with pytest.raises(CapacityError), publisher.edit(timeout_s=0):
            pass
        assert publisher.version == 3 and [snap.value for snap in held] == [0, 1, 1]
        held.pop(0)
        assert publisher.update(2, timeout_s=0) == 4


def test_a_writer_that_waits_gets_the_slot_that_comes_free():
    with untorn.publish(0, max_slots=2) as publisher:
        reader = publisher.subscriber()
        held = [reader.snapshot()]
        publisher.update(1)
        held.append(reader.snapshot())
        thread = threading.Thread(target=held.clear)
        thread.start()
        assert publisher.update(2, timeout_s=60) == 3
        thread.join()


# -- the end


def test_close_twice_and_then_nothing_works(weights):
    weights.close()
    weights.close()
    for use in (lambda: weights.update(1), lambda: weights.version, weights.readers, weights.subscriber):
        with pytest.raises(ClosedError):
            use()
    with pytest.raises(ClosedError), weights.edit():
        pass


def test_close_inside_edit_is_an_error_and_tears_nothing(weights):
    reader = weights.subscriber()
    before = reader.snapshot()
    with pytest.raises(ClosedError), weights.edit() as params:
        params["w"] += 1
        weights.close()
    assert (before.value["w"] == 0).all() and reader.version == 1


def test_a_publisher_cannot_be_pickled(weights):
    with pytest.raises(TypeError, match="subscriber"):
        pickle.dumps(weights)


def test_repr(weights):
    assert repr(weights) == "<untorn.Publisher of 'anonymous', version 1>"
    weights.close()
    assert "closed" in repr(weights)


def test_arguments_are_checked():
    for wrong in ({"slots": 0}, {"slots": 65}, {"max_slots": 1}, {"max_slots": 65}, {"max_readers": 0}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            untorn.publish(1, **wrong)
    for wrong in ({"slots": 1.5}, {"max_readers": "3"}, {"max_slots": True}):
        with pytest.raises(TypeError, match=next(iter(wrong))):
            untorn.publish(1, **wrong)
    with pytest.raises(ValueError, match="name="):
        untorn.publish(1, directory="/tmp")
    with pytest.raises(TypeError):
        untorn.publish(1, name=3)


def test_publishing_and_closing_leaves_no_descriptor():
    before = len(descriptors())
    for _ in range(50):
        untorn.publish(np.zeros(1000)).close()
    publisher = untorn.publish(1)
    del publisher
    gc.collect()
    assert len(descriptors()) == before


def _publish_in_child(pipe, publisher):
    for use in (lambda: publisher.update(1), lambda: publisher.edit().__enter__(), publisher.unlink):
        try:
            use()
        except ClosedError as error:
            pipe.put(str(error))
        else:
            pipe.put("no error")
    pipe.put(publisher.subscriber().snapshot().value)
    publisher.close()


def test_a_forked_child_never_publishes(name):
    with untorn.publish("mine", name=name) as publisher:
        with start(_publish_in_child, publisher) as child:
            for _ in range(3):
                assert "forked from its publisher" in child.get()
            assert child.get() == "mine"
            assert child.join() == 0
        assert publisher.update(2) == 2  # and its close() there closed nothing here
        assert publisher.subscriber().snapshot(newer_than=1).value == 2
        publisher.unlink()


def test_a_child_forked_inside_an_edit_does_not_hang():
    with untorn.publish("mine") as publisher, publisher.edit():
        locked = threading.Thread(target=lambda: None)
        locked.start()
        locked.join()
        with start(_publish_in_child, publisher) as child:
            assert child.get()


def test_a_child_forked_while_another_thread_writes_gets_an_error_and_does_not_hang():
    entered, leave = threading.Event(), threading.Event()
    with untorn.publish("mine") as publisher:

        def edit():
            with publisher.edit():
                entered.set()
                leave.wait()

        thread = threading.Thread(target=edit)
        thread.start()
        entered.wait()
        with start(_publish_in_child, publisher) as child:
            assert "forked from its publisher" in child.get()
        leave.set()
        thread.join()


def test_a_slice_kept_from_an_edit_changes_nothing_that_others_see():
    with untorn.publish({"w": np.zeros(1000), "b": np.zeros(3)}) as publisher:
        with publisher.edit() as tree:
            kept = tree["w"][10:20]
            tree["w"] += 1
        kept[:] = 99
        assert (read(publisher)["w"] == 1).all()
        for version in (2.0, 3.0, 4.0):
            publisher.update({"w": np.full(1000, version), "b": np.zeros(3)})
            kept[:] = 98
            assert (read(publisher)["w"] == version).all()


def test_a_slice_kept_from_an_edit_that_raised_changes_nothing_that_others_see():
    with untorn.publish({"w": np.zeros(1000)}) as publisher:
        kept = []
        with pytest.raises(RuntimeError), publisher.edit() as tree:
            kept.append(tree["w"][10:20])
            raise RuntimeError
        for version in (2.0, 3.0, 4.0):
            publisher.update({"w": np.full(1000, version)})
            kept[0][:] = 99
            assert (read(publisher)["w"] == version).all()


def test_a_slice_kept_from_an_edit_of_a_single_array():
    with untorn.publish(np.zeros(1000)) as publisher:
        with publisher.edit() as array:
            kept = array[5:]
            array[:] += 1
        kept[:] = 99
        assert (read(publisher) == 1).all()


@pytest.mark.parametrize(
    "values", [np.arange(1000.0), np.arange(1000).astype("M8[s]")], ids=["planned", "step by step"]
)
def test_a_slice_kept_from_an_edit_of_a_single_array_whose_name_is_gone(values):
    with untorn.publish(values) as publisher:
        with publisher.edit() as array:
            kept = array[5:]
            array[:] = values[::-1]
            del array
        kept[:] = kept[::-1].copy()
        assert (read(publisher) == values[::-1]).all()


@pytest.mark.parametrize("value", [np.zeros(1000), {"w": np.zeros(1000)}], ids=["one array", "a dict"])
def test_an_edit_of_which_nothing_is_kept_replaces_no_memory(value):
    def private():
        with open("/proc/self/maps") as maps:
            return sum("memfd:untorn" in line and line.split()[1][3] == "p" for line in maps)

    before = private()
    with untorn.publish(value) as publisher:
        with publisher.edit() as tree:
            kept = tree["w"][1:] if isinstance(tree, dict) else tree[1:]
        assert private() == before + 1  # so it can be seen
        del kept, tree
        for copy in (True, False) * 3:
            with publisher.edit(copy=copy) as tree:
                (tree["w"] if isinstance(tree, dict) else tree)[:] = 1
            assert private() == before
            del tree


def test_edit_without_copy_copies_no_array():
    with untorn.publish({"w": np.ones(1000), "step": 3}) as publisher:
        with publisher.edit(copy=False) as tree:
            assert not tree["w"].any() and tree["step"] == 3  # the memory of a new slot
            tree["w"][:] = 2
        assert read(publisher)["w"].tolist() == [2] * 1000


def test_a_takeover_is_a_log_record(tmp_path, caplog):
    caplog.set_level(logging.INFO, "untorn")
    for _ in range(2):
        with untorn.publish(1.0, name="c", directory=tmp_path) as publisher:
            publisher.update(2.0)
    (record,) = caplog.records
    assert record.levelno == logging.INFO
    assert record.getMessage() == f"channel '{tmp_path}/c': taken over at version 2, as its publisher is gone"
