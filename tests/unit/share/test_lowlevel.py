"""The door into share: its names are what the other packages build on, and each keeps its promise."""

import inspect
import re

import numpy as np
import pytest

import untorn
from untorn import CapacityError, ClosedError, UnsupportedTypeError
from untorn.share import lowlevel
from untorn.share.lowlevel import (
    attach_writer,
    attachment_of,
    copy_value,
    copy_with_extra,
    decoder_of,
    extra,
    newest_nbytes,
    no_slot_error,
    private_value,
    publish_with_extra,
    update_leaves,
    update_with_extra,
)

VALUE = {"w": np.arange(6.0).reshape(2, 3), "b": np.float32([1, 2])}
EXTRA = {"momentum": {"w": np.zeros((2, 3)), "b": np.zeros(2, np.float32)}, "steps": 3}


@pytest.fixture
def channel():
    with publish_with_extra(VALUE, EXTRA, sizes=(8, 4, 2)) as publisher:
        yield publisher


def newest(channel):
    return channel.subscriber().snapshot()


@pytest.mark.parametrize("name", lowlevel.__all__)
def test_every_name_is_there_and_documented(name):
    found = getattr(lowlevel, name)
    assert not callable(found) or inspect.getdoc(found)


def test_what_lies_beside_the_value_is_read_only_and_shared(channel):
    snapshot = newest(channel)
    assert snapshot.value["w"].tolist() == VALUE["w"].tolist()
    beside = extra(snapshot)
    assert beside["steps"] == 3
    assert not beside["momentum"]["w"].flags.writeable
    assert np.shares_memory(beside["momentum"]["w"], extra(snapshot)["momentum"]["w"])
    with untorn.publish(1) as other:
        assert extra(other.subscriber().snapshot()) is None


def test_a_copy_is_writable_and_nobody_elses(channel):
    snapshot = newest(channel)
    value, beside = copy_with_extra(snapshot)
    for copy in (value, copy_value(snapshot)):
        copy["w"] += 1
        assert copy["w"].tolist() == (VALUE["w"] + 1).tolist()
    beside["momentum"]["b"] += 1
    assert snapshot.value["w"].tolist() == VALUE["w"].tolist()
    assert extra(snapshot)["momentum"]["b"].tolist() == [0, 0]


def test_a_copy_outlives_the_snapshot_and_does_not_pin_it(channel):
    snapshot = newest(channel)
    copy = copy_value(snapshot)
    snapshot.close()
    del snapshot
    assert all(not reader.versions for reader in channel.readers())
    assert copy["b"].tolist() == [1, 2]


def test_a_private_value_is_written_to_for_its_owner_alone(channel):
    snapshot = newest(channel)
    value = private_value(snapshot)
    value["w"][0, 0] = 9
    assert snapshot.value["w"][0, 0] == newest(channel).value["w"][0, 0] == 0


@pytest.mark.parametrize("read", [extra, copy_value, copy_with_extra, private_value])
def test_a_closed_snapshot_is_refused(read, channel):
    snapshot = newest(channel)
    snapshot.close()
    with pytest.raises(ClosedError, match="this snapshot of version 1 is closed"):
        read(snapshot)


@pytest.mark.parametrize("read", [extra, copy_value, copy_with_extra, private_value])
def test_nothing_is_unpickled_unasked(read):
    with untorn.publish(re.compile("pickled"), allow_pickle=True) as publisher:
        with pytest.raises(UnsupportedTypeError, match="pass allow_pickle=True"):
            read(publisher.subscriber().snapshot())
        read(publisher.subscriber(allow_pickle=True).snapshot())


def test_both_are_updated_together(channel):
    reader = channel.subscriber()
    assert update_with_extra(channel, {"w": np.ones(2)}, EXTRA | {"steps": 4}) == 2
    assert reader.snapshot().value["w"].tolist() == [1, 1]
    assert extra(reader.snapshot())["steps"] == 4
    assert update_with_extra(channel, 5, None) == 3
    assert extra(reader.snapshot()) is None


def test_some_leaves_are_updated_and_the_others_stay(channel):
    reader = channel.subscriber()
    for steps in (4, 5, 6):  # into slots that have different versions
        assert update_leaves(channel, {1: np.float32([steps, 0]), 4: steps}) == steps - 2
        assert reader.snapshot().value["w"].tolist() == VALUE["w"].tolist()
        assert reader.snapshot().value["b"].tolist() == [steps, 0]
        assert extra(reader.snapshot())["steps"] == steps


def test_a_writer_attaches_beside_the_publisher(channel):
    attachment = attach_writer(channel.subscriber().address)
    hold = attachment.pin()
    decoder = decoder_of(hold)
    assert decoder.value(hold)["b"].tolist() == [1, 2]
    assert decoder.extra(hold)["steps"] == 3
    assert attachment.version == attachment_of(channel).version == 1


def test_the_room_of_a_version(channel):
    snapshot = newest(channel)
    assert newest_nbytes(channel) >= snapshot.nbytes


def test_the_holders_of_all_slots_are_named(channel):
    error = no_slot_error(channel, 2.5)
    assert isinstance(error, CapacityError)
    assert "no free slot for version 2 within 2.5 s" in str(error)


def test_a_closed_publisher_is_refused(channel):
    channel.close()
    for use in (attachment_of, newest_nbytes, lowlevel.look_after_name, lambda _: update_leaves(channel, {})):
        with pytest.raises(ClosedError, match="is closed"):
            use(channel)


def test_a_name_is_looked_after(tmp_path):
    with untorn.publish(1, name="channel", directory=tmp_path) as publisher:
        lowlevel.look_after_name(publisher)
        publisher.unlink()
