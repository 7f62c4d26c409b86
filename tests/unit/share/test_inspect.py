"""Looking at a channel from outside: it is right, it changes nothing, and garbage is an error."""

from __future__ import annotations

import fcntl
import os
import socket
import struct

import numpy as np
import pytest

import helpers
import untorn
from untorn.errors import ChannelNotFoundError, FormatError
from untorn.share import inspect, places
from untorn.share.inspect import ChannelView, decode_control, decode_rows, decode_schema, decode_slot_header, files_of


@pytest.fixture
def folder(tmp_path):
    return str(tmp_path)


def look(folder: str, name: str = "c") -> inspect.ChannelState:
    with ChannelView.open(places.named(name, folder)) as view:
        return view.state()


def publish(pipe, folder: str, size: int, options: dict) -> None:
    with untorn.publish(np.zeros(size), name="c", directory=folder, **options) as publisher:
        pipe.put(os.getpid())
        while (message := pipe.get()) != "close":
            for _ in range(message):
                publisher.update(np.zeros(size))
            pipe.put(publisher.version)
    pipe.put("closed")
    pipe.get()


def read(pipe, folder: str) -> None:
    subscriber = untorn.subscribe(f"{folder}/c", timeout_s=helpers.WATCHDOG_S)
    held = []
    pipe.put()
    while (message := pipe.get()) != "end":
        held = [*held, subscriber.snapshot().value] if message == "hold" else []
        pipe.put()
    del held


# -- a channel at work


def test_a_channel_with_a_publisher(folder):
    with helpers.start(publish, folder, 1000, {"max_readers": 7}) as child:
        pid = child.get()
        child.put(4)
        assert child.get() == 5
        state = look(folder)
        assert (state.version, state.publisher, state.publisher_pid, state.used) == (5, "alive", pid, True)
        assert (state.readers, state.dead_rows, state.max_readers, state.max_slots) == ((), 0, 7, 64)
        assert state.label == f"{folder}/c"
        assert 8000 < state.nbytes < 8400
        assert state.reserved_nbytes == sum(slot.capacity for slot in state.slots) >= 2 * state.nbytes
        assert [slot.version for slot in state.slots if slot.latest] == [5]
        assert state.created_at <= state.published_at
        assert state.age_s >= 0


def test_closed_is_not_dead_and_a_takeover_goes_on(folder):
    with helpers.start(publish, folder, 10, {}) as child:
        child.get()
        child.put("close")
        assert child.get() == "closed"
        state = look(folder)
        assert (state.publisher, state.publisher_pid, state.used) == ("closed", None, False)
    with helpers.start(publish, folder, 10, {}) as child:
        pid = child.get()
        assert look(folder).publisher_pid == pid
        child.kill()
    state = look(folder)
    assert (state.publisher, state.publisher_pid, state.version, state.used) == ("dead", None, 2, False)


def test_readers_and_what_they_hold(folder):
    with (
        helpers.start(publish, folder, 10, {}) as publisher,
        helpers.start(read, folder) as idle,
        helpers.start(read, folder) as holder,
    ):
        publisher.get()
        for child in (idle, holder):
            child.get()
        holder.put("hold")
        holder.get()
        publisher.put(3)
        publisher.get()
        holder.put("hold")
        holder.get()
        publisher.put(2)
        publisher.get()
        readers = {reader.pid: reader for reader in look(folder).readers}
        assert readers.keys() == {idle.pid, holder.pid}
        assert readers[idle.pid].versions == ()
        assert (readers[idle.pid].behind, readers[idle.pid].age_s) == (None, 0.0)
        assert readers[holder.pid].versions == (1, 4)
        assert readers[holder.pid].behind == 2
        state = look(folder)
        held = {slot.version: slot.held_by for slot in state.slots if slot.held_by}
        assert held == {1: (readers[holder.pid].row,), 4: (readers[holder.pid].row,)}
        publisher.kill()
        assert look(folder).used  # by its readers
        holder.kill()
        state = look(folder)
        assert [reader.pid for reader in state.readers] == [idle.pid]
        assert state.dead_rows == 1


def test_looking_changes_nothing(folder):
    """No byte, no row, no lock; and this process's own locks outlive the look."""
    with untorn.publish([1, 2], name="c", directory=folder, max_readers=1) as publisher:
        files = places.named("c", folder)
        before = [open_and_read(path) for path in (files.control, files.data)]
        with ChannelView.open(files) as view:
            assert view.state().publisher_pid == os.getpid()
            assert view.schema()[0] == 1
            assert [open_and_read(path) for path in (files.control, files.data)] == before
            with untorn.subscribe(f"{folder}/c") as reader:  # the one row there is, is free
                assert reader.snapshot().value == [1, 2]
        assert look(folder).publisher == "alive"
        with pytest.raises(untorn.BusyError):
            untorn.publish(0, name="c", directory=folder)
        publisher.unlink()
    assert not os.listdir(folder)


def open_and_read(path: str) -> bytes:
    with open(path, "rb") as file:
        return file.read()


def alternate(pipe, folder: str) -> None:
    """Structures that differ from version to version: odd ones are dicts, even ones lists."""
    values = ([0] * 40, {f"key{i}": i for i in range(40)})
    with untorn.publish(values[1], name="c", directory=folder) as publisher:
        pipe.put()
        while not pipe.has_message():
            publisher.update(values[(publisher.version + 1) % 2])


def test_the_schema_is_of_one_version_whatever_the_publisher_does(folder):
    with helpers.start(alternate, folder) as child:
        child.get()
        with ChannelView.open(places.named("c", folder)) as view:
            seen = [view.schema() for _ in range(500)]
        child.put()
        child.join()
    assert all(document["value"][0] == ("dict" if version % 2 else "list") for version, document in seen)
    assert [version for version, _ in seen] == sorted(version for version, _ in seen)


def test_living_bytes_are_those_that_are_locked(folder, rng):
    """Against locks of several descriptors, in any order, side by side or not."""
    path = f"{folder}/locks"
    with open(path, "wb+") as looker:
        owners = [os.open(path, os.O_RDWR) for _ in range(5)]
        try:
            for _ in range(20):
                expected = set()
                for owner in owners:
                    fcntl.fcntl(owner, fcntl.F_OFD_SETLK, lock(fcntl.F_UNLCK, 0, 0))
                for byte in rng.sample(range(60), rng.randrange(40)):
                    fcntl.fcntl(rng.choice(owners), fcntl.F_OFD_SETLK, lock(fcntl.F_WRLCK, byte, 1))
                    expected.add(byte)
                found = list(inspect.living_bytes(looker.fileno(), 0, 50))
                assert sorted(found) == sorted(byte for byte in expected if byte <= 50)
        finally:
            for owner in owners:
                os.close(owner)


def lock(kind: int, start: int, length: int) -> bytes:
    return struct.pack("hhqqi4x", kind, os.SEEK_SET, start, length, 0)


# -- names


def test_a_channel_is_named_as_subscribe_names_it(folder, monkeypatch):
    with untorn.publish(1, name="c", directory=folder) as publisher:
        expected = places.named("c", folder)
        for text in (f"{folder}/c", f"{folder}/c.control", f"{folder}/c.data"):
            assert files_of(text) == expected
        monkeypatch.chdir(folder)
        assert os.path.samefile(files_of("./c").control, expected.control)
        publisher.unlink()
    with pytest.raises(ChannelNotFoundError, match="no directory"):
        files_of(f"{folder}/nothing/c")
    with pytest.raises(ValueError, match="letters"):
        files_of(f"{folder}/a b")


def test_a_name_alone_makes_no_directory(monkeypatch, tmp_path):
    monkeypatch.setattr(inspect, "default_path", lambda: str(tmp_path / "none"))
    with pytest.raises(ChannelNotFoundError, match="does not exist"):
        files_of("policy")
    assert not os.listdir(tmp_path)


# -- what is no channel


def garbage_files(folder: str) -> dict[str, tuple[str, type[Exception]]]:
    """A way to damage a channel's control file, and the error for it."""
    return {
        "empty": ("control", FormatError),
        "noise": ("control", FormatError),
        "short": ("control", FormatError),
        "without rows": ("control", FormatError),
        "a link": ("control", FormatError),
        "a pipe": ("data", FormatError),
        "a socket": ("control", FormatError),
        "a directory": ("data", FormatError),
        "no data": ("data", FormatError),
        "nothing": ("control", ChannelNotFoundError),
    }


def spoil(path: str, how: str) -> None:
    content = open_and_read(path)
    os.unlink(path)
    if how == "a link":
        os.symlink("/etc/passwd", path)
    elif how == "a pipe":
        os.mkfifo(path)
    elif how == "a socket":
        with socket.socket(socket.AF_UNIX) as made:
            made.bind(path)
    elif how == "a directory":
        os.mkdir(path)
    elif how not in ("nothing", "no data"):
        with open(path, "wb") as file:
            file.write({"empty": b"", "noise": os.urandom(5000)}.get(how, content[: 1152 if "rows" in how else 500]))


@pytest.mark.parametrize("how", list(garbage_files("")))
def test_garbage_is_an_error_and_never_hangs(folder, monkeypatch, how):
    part, error = garbage_files(folder)[how]
    untorn.publish(1, name="c", directory=folder).close()
    monkeypatch.chdir(folder)  # a socket's path must be short
    spoil(f"c.{part}", how)
    with pytest.raises(error, match="c"):
        look(folder)


def test_files_of_another_user_are_refused(folder, monkeypatch):
    untorn.publish(1, name="c", directory=folder).close()
    own = os.geteuid()
    monkeypatch.setattr(inspect.os, "geteuid", lambda: own + 1)
    with pytest.raises(PermissionError, match=f"belongs to user {own}"):
        look(folder)


def test_each_field_that_is_wrong_is_named(folder):
    untorn.publish(1, name="c", directory=folder).close()
    page = open_and_read(f"{folder}/c.control")
    sound = decode_control(page[:1152], file_nbytes=len(page))
    assert sound.version == 1
    wrong = {8: "layout", 12: "byte order", 32: "max_readers", 36: "max_slots", 40: "rows"}
    for at, word in wrong.items():
        damaged = page[:at] + b"\xff\xff\xff\x7f" + page[at + 4 : 1152]
        with pytest.raises(FormatError, match=word):
            decode_control(damaged, file_nbytes=len(page))
    assert len(decode_rows(page[sound.rows_offset :])) >= 257
    assert decode_slot_header(b"").version == decode_slot_header(b"").base == 0


@pytest.mark.parametrize("text", [b"", b"{", b"[]", b"{}", b"\xff", b"[" * 100_000, b'{"valu": 1}'])
def test_a_damaged_schema_is_an_error(text):
    with pytest.raises(FormatError, match="damaged"):
        decode_schema(text)


def test_random_damage_never_crashes(folder, rng):
    """Every byte may be anything: there is an answer or an error of ours."""
    untorn.publish({"a": [1, 2], "b": np.zeros(3)}, name="c", directory=folder).close()
    sound = {part: open_and_read(f"{folder}/c.{part}") for part in ("control", "data")}
    for _ in range(500):
        for part, content in sound.items():
            damaged = bytearray(content)
            for _ in range(rng.randrange(6)):
                damaged[rng.randrange(rng.choice([80, 200, 1300]))] = rng.choice([0, 1, 63, 127, 255])
            with open(f"{folder}/c.{part}", "wb") as file:
                file.write(damaged[: rng.choice([len(damaged), rng.randrange(len(damaged))])])
        try:
            with ChannelView.open(places.named("c", folder)) as view:
                view.state()
                view.schema()
        except untorn.UntornError:
            pass
