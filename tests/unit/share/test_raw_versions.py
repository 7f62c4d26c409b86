"""Versions as bytes: another channel gets the same versions with the same numbers, or nothing."""

import contextlib
import dataclasses
import json
import struct
import threading

import numpy as np
import pytest

import untorn
from untorn import BusyError, CapacityError, ClosedError, FormatError
from untorn.share.lowlevel import (
    attachment_of,
    continue_channel,
    ending_of,
    extra,
    has_name,
    publish_raw,
    publish_received,
    publish_with_extra,
    raw_version,
    receive_raw,
    update_leaves,
    update_raw,
    update_with_extra,
)

VALUE = {"w": np.arange(6.0).reshape(2, 3), "b": np.float32([1, 2]), "name": "first", "sizes": [1, 2.5, None, 2**70]}
STATE = {"momentum": {"w": np.ones((2, 3)), "b": np.zeros(2, np.float32)}, "steps": 3}
HEADER_NBYTES = 64


@dataclasses.dataclass
class Point:
    x: float
    y: np.ndarray


@pytest.fixture
def source():
    with publish_with_extra(VALUE, STATE) as publisher:
        yield publisher


@pytest.fixture
def target():
    with publish_with_extra(VALUE, STATE) as publisher:
        yield publisher


def raw_of(publisher):
    return raw_version(publisher.subscriber().snapshot())


def same(one, other):
    np.testing.assert_equal(one, other)
    return True


def test_the_bytes_are_a_read_only_view_that_pins_the_version(source):
    raw = raw_of(source)
    assert raw.readonly
    assert raw.nbytes == source.subscriber().snapshot().nbytes
    before = bytes(raw)
    for _ in range(8):
        source.update(VALUE)
    assert bytes(raw) == before
    assert [reader.versions for reader in source.readers()] == [(1,)]
    raw.release()
    assert not any(reader.versions for reader in source.readers())


def test_a_closed_snapshot_has_no_bytes(source):
    snapshot = source.subscriber().snapshot()
    snapshot.close()
    with pytest.raises(ClosedError, match="version 1 is closed"):
        raw_version(snapshot)


@pytest.mark.parametrize("named", [False, True])
def test_a_new_channel_has_the_value_what_lies_beside_it_and_the_number(source, named, name):
    name = name if named else None
    with publish_raw(raw_of(source), 41, name=name, sizes=(8, 4, 2)) as copy:
        reader = untorn.subscribe(name or copy)
        snapshot = reader.snapshot(newer_than=40, timeout_s=5)
        assert snapshot.version == copy.version == reader.version == 41
        assert same(snapshot.value, VALUE)
        assert same(extra(snapshot), STATE)
        assert copy.update({"w": np.zeros(1)}) == 42
        assert reader.snapshot(newer_than=41, timeout_s=5).value["w"].tolist() == [0]
        copy.unlink()


def test_the_next_version_has_the_given_number(source, target):
    reader = target.subscriber()
    update_with_extra(source, {**VALUE, "name": "second"}, {**STATE, "steps": 4})
    assert update_raw(target, raw_of(source), 17) == 17
    snapshot = reader.snapshot(newer_than=16, timeout_s=5)
    assert (snapshot.version, snapshot.value["name"], extra(snapshot)["steps"]) == (17, "second", 4)


def test_waiting_readers_are_woken_by_a_version_as_bytes(source, target):
    seen = []
    reader = target.subscriber()
    thread = threading.Thread(target=lambda: seen.append(reader.snapshot(newer_than=16, timeout_s=60).version))
    thread.start()
    update_raw(target, raw_of(source), 16)  # not new enough for that reader
    update_raw(target, raw_of(source), 17)
    thread.join()
    assert seen == [17]


def test_numbers_only_grow(source, target):
    update_raw(target, raw_of(source), 5)
    for version in (5, 4, 0, -1, 2**58):
        with pytest.raises(ValueError, match="expected a number greater than 5"):
            update_raw(target, raw_of(source), version)
    for version in (0, -3, 2**58):
        with pytest.raises(ValueError, match="expected a number greater than 0"):
            publish_raw(raw_of(source), version)
    assert target.version == 5
    assert target.update(VALUE) == 6


def test_parts_can_be_changed_after_a_version_of_the_same_structure(source, target):
    source.patch({"name": "other"})
    update_raw(target, raw_of(source), 9)
    assert update_leaves(target, {1: np.float32([8, 9])}) == 10
    assert target.patch({"w": np.full((2, 3), 7.0)}) == 11
    with target.edit() as value:
        value["w"][0, 0] = -1
    newest = target.subscriber().snapshot()
    assert (newest.version, newest.value["name"], newest.value["w"].sum()) == (12, "other", 34)
    assert same(extra(newest), STATE)


def test_parts_of_a_version_of_unknown_structure_cannot_be_changed(source):
    source.update({"other": np.zeros(3)})
    with publish_raw(raw_of(source), 3) as copy:
        for change in (lambda: copy.patch({"other": np.ones(3)}), lambda: copy.edit().__enter__()):
            with pytest.raises(ValueError, match="version 3 did not come"):
                change()
        copy.update({"other": np.ones(3)})
        assert copy.patch({"other": np.full(3, 2.0)}) == 5
        assert copy.subscriber().snapshot().value["other"].tolist() == [2, 2, 2]


def test_a_structure_keeps_its_decoder(source, target):
    """schema_id tells readers which versions have one schema; else each would read the schema anew."""
    reader = target.subscriber()
    for version in (10, 11, 12):
        update_raw(target, raw_of(source), version)
        assert reader.snapshot()._held().schema_id == 1
    source.update([1, 2])
    for version in (20, 21):
        update_raw(target, raw_of(source), version)
        assert reader.snapshot()._held().schema_id == 20
    assert reader.snapshot().value == [1, 2]


def test_a_version_is_received_in_place(source, target):
    raw = raw_of(source)
    with receive_raw(target, raw.nbytes, 9) as memory:
        assert memory.nbytes == raw.nbytes
        for at in range(0, raw.nbytes, 50):
            memory[at : at + 50] = raw[at : at + 50]
        assert target.version == 1
    assert target.version == 9
    with pytest.raises(ValueError, match="released"):
        memory[0] = 1


@pytest.mark.parametrize("keep", [lambda memory: memory[64:], lambda memory: np.frombuffer(memory, np.uint8)])
def test_memory_that_was_kept_reaches_no_reader(source, target, keep):
    raw = raw_of(source)
    with receive_raw(target, raw.nbytes, 9) as memory:
        memory[:] = raw
        kept = keep(memory)
    newest = target.subscriber().snapshot()
    before = bytes(raw_version(newest))
    kept[:] = type(kept)(bytearray(len(kept))) if isinstance(kept, memoryview) else 0
    assert bytes(raw_version(newest)) == before
    assert same(newest.value, VALUE)
    del kept
    assert target.update(VALUE) == 10


def test_an_error_in_the_block_publishes_nothing(source, target):
    raw = raw_of(source)
    with pytest.raises(ConnectionResetError), receive_raw(target, raw.nbytes, 9) as memory:
        memory[:100] = raw[:100]
        raise ConnectionResetError("half a version")
    assert target.version == 1
    assert target.update(VALUE) == 2


def test_one_version_at_a_time(source, target):
    with pytest.raises(BusyError, match="receive_raw"), receive_raw(target, 100, 9):
        update_raw(target, raw_of(source), 10)
    with pytest.raises(BusyError), receive_raw(target, 100, 9):
        target.update(VALUE)
    target.close()
    with pytest.raises(ClosedError):
        update_raw(target, raw_of(source), 10)


def test_a_version_that_does_not_fit_is_refused(target):
    for nbytes in (2**62, 2**70):
        with pytest.raises((CapacityError, OverflowError)), receive_raw(target, nbytes, 9):
            pytest.fail("there is no such memory")
    assert target.update(VALUE) == 2


def test_a_channel_that_is_not_received_to_its_end_does_not_exist(source, name):
    def fill(memory):
        memory[:100] = raw_of(source)[:100]
        raise ConnectionResetError("half a version")

    with pytest.raises(ConnectionResetError):
        publish_received(fill, raw_of(source).nbytes, 9, name=name)
    with pytest.raises(untorn.ChannelNotFoundError):
        untorn.subscribe(name)


def test_the_bytes_come_once_even_if_the_name_is_taken_meanwhile(source, name):
    """The channel that took the name is closed by then, so that it is taken over; what was received is still there."""
    calls = []

    def fill(memory):
        calls.append(len(memory))
        memory[:] = raw_of(source)
        untorn.publish("in between", name=name).close()

    with publish_received(fill, raw_of(source).nbytes, 9, name=name) as copy:
        snapshot = untorn.subscribe(name).snapshot()
        assert snapshot.version == 9
        assert same(snapshot.value, VALUE)
        assert len(calls) == 1
        copy.unlink()


def broken(memory):
    raise ConnectionResetError("nothing comes")


def test_a_channel_is_continued_as_it_is(source, name):
    assert continue_channel(name) is None
    first = untorn.publish(VALUE, name=name)
    reader = untorn.subscribe(name)
    with pytest.raises(BusyError):
        continue_channel(name)
    assert ending_of(reader) == ""
    first.close()
    assert ending_of(reader) == "closed"
    with continue_channel(name) as second:
        assert (second.version, ending_of(reader)) == (1, "")
        assert same(reader.snapshot().value, VALUE)
        with pytest.raises(ValueError, match="version 1 did not come"):
            second.patch({"name": "other"})
        update_raw(second, raw_of(source), 5)
        assert reader.snapshot(newer_than=1, timeout_s=5).version == 5
        attachment_of(second).abandon()
        assert ending_of(reader) == "dead"
        assert has_name(reader)
    with continue_channel(name) as third:
        assert third.update(VALUE) == 6
        third.unlink()
    assert not has_name(reader)


def test_a_channel_is_taken_over_with_a_greater_number_only(source, name):
    first = untorn.publish("old", name=name)
    reader = untorn.subscribe(name)
    first.update("newer")
    first.close()
    with pytest.raises(ValueError, match="greater than 2"):
        publish_raw(raw_of(source), 2, name=name)
    assert reader.snapshot().value == "newer"
    with pytest.raises(ConnectionResetError) as kept:  # its traceback keeps the frames, and nothing else
        publish_received(broken, 1000, 3, name=name)
    assert kept
    with publish_raw(raw_of(source), 3, name=name) as second:
        assert reader.snapshot(newer_than=2, timeout_s=5).version == 3
        second.unlink()


def test_classes_and_libraries_are_not_needed_to_pass_a_version_on(monkeypatch):
    """The process in between has imported neither; its readers have."""
    sparse = pytest.importorskip("scipy.sparse")

    value = [Point(1.0, np.arange(3)), sparse.eye(3, format="csr"), {"b": (1, "two")}]
    with untorn.publish(value) as source:
        raw = bytes(raw_of(source))
    with monkeypatch.context() as patched:
        patched.delattr(f"{__name__}.Point")
        patched.setattr("untorn.share.decoder.adapter_named", None)
        copy = publish_raw(raw, 5)
    with copy:
        point, matrix, rest = copy.subscriber().snapshot().value
        assert (point.x, point.y.tolist(), rest) == (1.0, [0, 1, 2], {"b": (1, "two")})
        assert matrix.toarray().tolist() == np.eye(3).tolist()


def test_a_pickled_value_passes_and_is_not_unpickled():
    class Loud:
        def __reduce__(self):
            return pytest.fail, ("it was unpickled",)

    with untorn.publish({"it": Loud()}, allow_pickle=True) as source, publish_raw(raw_of(source), 2) as copy:
        with pytest.raises(untorn.UnsupportedTypeError, match="pickled"):
            _ = copy.subscriber().snapshot().value
        with pytest.raises(pytest.fail.Exception, match="it was unpickled"):
            _ = copy.subscriber(allow_pickle=True).snapshot().value


# -- bytes that are no version


def refused(target, raw, match=None):
    version = target.version
    with pytest.raises(FormatError, match=match):
        update_raw(target, raw, version + 1)
    assert target.version == version
    with pytest.raises(FormatError, match=match):
        publish_raw(raw, 7)


def with_header(raw, nbytes, schema_nbytes):
    return bytes(raw[:16]) + struct.pack("<QQ", nbytes, schema_nbytes) + bytes(raw[32:])


def test_bytes_that_are_no_version_are_refused(source, target):
    raw, nbytes = bytes(raw_of(source)), raw_of(source).nbytes
    refused(target, b"", "0 bytes")
    refused(target, bytes(63), "63 bytes")
    refused(target, bytes(64), "its header says 0")
    refused(target, bytes(4096), "its header says 0")
    refused(target, raw[:-1], "its header says")
    refused(target, raw + bytes(64), "its header says")
    refused(target, with_header(raw, nbytes, nbytes - 63), "its header says")
    refused(target, with_header(raw, nbytes, 2**64 - 1), "its header says")
    refused(target, with_header(raw, nbytes, 0), "schema")
    refused(target, with_header(raw, nbytes, 10), "schema")
    refused(target, with_header(raw, nbytes, nbytes - 64), "schema")
    assert target.update(VALUE) == 2


def test_bytes_of_a_machine_of_the_other_byte_order_are_refused(source, target):
    header = b"".join(field.to_bytes(8, "big") for field in struct.unpack_from("<8Q", raw_of(source)))
    refused(target, header + bytes(raw_of(source)[64:]), "another byte order")


def forged(document, payload_nbytes=0):
    schema = json.dumps(document, separators=(",", ":")).encode() if isinstance(document, dict) else document
    start = (HEADER_NBYTES + len(schema) + 63) // 64 * 64
    header = struct.pack("<QqQQQ3Q", 1, 0, start + payload_nbytes, len(schema), 1, 0, 0, 0)
    return (header + schema).ljust(start + payload_nbytes, b"\0")


@pytest.mark.parametrize(
    "document",
    [
        b"",
        b"\0" * 8,
        b"not JSON",
        b"{}",
        b"[" * 100_000,
        b"\xff\xfe{}",
        {"value": ["array", 0, "<f8", [3], None]},
        {"value": ["array", 0, "|O", [1], None]},
        {"value": ["array", -64, "<f8", [1], None]},
        {"value": ["array", 0, "<f8", [2**40, 2**40], None]},
        {"value": ["array", 0, "<f8", [0, 2**63], None]},
        {"value": ["array", 0, "<f8", [True], None]},
        {"value": ["list", 2, [["array", 0, "<u1", [8], None], ["array", 4, "<u1", [8], None]]]},
        {"value": ["none"], "extra": ["bytes", 0, 1000]},
        {"value": ["dict", ["a"], []]},
        {"value": ["dataclass", ["module", "Name", ["a"]], []]},
        {"value": ["dataclass", ["module", 1, []], []]},
        {"value": ["adapter", ["scipy.csr", None, ["data"]], []]},
        {"value": ["adapter", ["scipy.csr", None, ["data"]], [["bytes", 0, 1000]]]},
        {"value": ["unknown", 0]},
    ],
    ids=str,
)
def test_a_forged_schema_is_refused(target, document):
    refused(target, forged(document, 8 if isinstance(document, dict) else 0))


def test_the_forger_forges_what_is_accepted_when_it_is_right(target):
    raw = forged({"value": ["array", 0, "<u1", [8], None]}, 64)
    assert update_raw(target, raw, 5) == 5
    assert target.subscriber().snapshot().value.tolist() == [0] * 8


def test_no_damage_crashes_or_publishes_what_cannot_be_looked_at(source, rng):
    """Whatever the bytes are: they are refused, or readers get a value or a FormatError."""
    raw = bytes(raw_of(source))
    _, _, _, schema_nbytes = struct.unpack_from("<4Q", raw)
    accepted = 0
    with publish_raw(raw, 1) as target:
        reader = target.subscriber()
        for version in range(2, 3000):
            damaged = bytearray(raw)
            for _ in range(rng.choice((1, 1, 2, 8))):
                at = rng.randrange(16, HEADER_NBYTES + schema_nbytes)
                damaged[at] = rng.choice((rng.randrange(256), 48 + rng.randrange(10), damaged[at] ^ 1))
            newest = target.version
            try:
                update_raw(target, damaged, version)
            except FormatError:
                assert target.version == newest
                continue
            accepted += 1
            snapshot = reader.snapshot()
            assert snapshot.version == version
            for read in (lambda: snapshot.value, lambda: extra(snapshot)):  # noqa: B023
                with contextlib.suppress(FormatError):
                    read()
        assert accepted
