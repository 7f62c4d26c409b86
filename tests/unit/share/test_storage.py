"""The two files of a channel: names, garbage, takeover, and file systems and limits that are full."""

import errno
import gc
import os
import pickle
import re
import resource
import shutil
import stat
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import untorn
from helpers import WATCHDOG_S, start
from mounts import mount, own_mounts
from untorn import BusyError, CapacityError, ChannelNotFoundError, FormatError, _core
from untorn.share import places

ROWS = 4096  # offset of the reader rows, docs/format.md


@pytest.fixture
def folder(tmp_path):
    """A directory for channels, on a file system that has nameless files."""
    return tmp_path


def publish(folder, value, **options):
    return untorn.publish(value, name="channel", directory=folder, **options)


def names(folder):
    return sorted(path.name for path in Path(folder).iterdir())


def held_words(control: Path, max_readers=256) -> list[int]:
    """The held word of each reader row, as bytes in the file say."""
    raw = control.read_bytes()
    return [struct.unpack_from("<Q", raw, ROWS + 64 * row)[0] for row in range(1, max_readers + 1)]


# -- names


@pytest.mark.parametrize("name", ["a/b", "/a", "../a", "", ".", "..", ".a", "-a", "a b", "a\0b", "é", "a" * 201, "a\n"])
def test_what_cannot_be_a_name(name):
    with pytest.raises(ValueError, match="name"):
        untorn.publish(1, name=name)
    if "/" not in name:
        with pytest.raises(ValueError, match="name"):
            untorn.subscribe(name)


def test_a_slash_says_what_to_do():
    with pytest.raises(ValueError, match=r"'a/b' has a slash in it.*directory="):
        untorn.publish(1, name="a/b")


@pytest.mark.parametrize("stem", ["x", "A.b", "a+b", "user@host", "a-b_c", "9"])
def test_what_can_be_a_name(folder, stem):
    with untorn.publish(stem, name=stem, directory=folder) as publisher:
        assert untorn.subscribe(folder / stem).snapshot().value == stem
        assert publisher.name == str(folder / stem)
        assert names(folder) == sorted([f"{stem}.control", f"{stem}.data"])


def test_a_missing_channel(name, folder):
    for channel in (name, folder / name, f"{folder}/{name}"):
        with pytest.raises(ChannelNotFoundError, match=name) as caught:
            untorn.subscribe(channel)
        assert isinstance(caught.value, FileNotFoundError) and "timeout_s" in str(caught.value)
    with pytest.raises(ChannelNotFoundError):
        untorn.subscribe(name, timeout_s=0.05)


def test_a_missing_directory(folder):
    with pytest.raises(FileNotFoundError, match="make it first"):
        untorn.publish(1, name="x", directory=folder / "no")
    with pytest.raises(FileNotFoundError):
        untorn.subscribe(folder / "no" / "x")


def test_what_is_no_channel_at_all():
    for wrong in (3, None, b"x", object()):
        with pytest.raises(TypeError, match="expected a name"):
            untorn.subscribe(wrong)


def _publish_named(pipe, name, value):
    with untorn.publish(value, name=name) as publisher:
        pipe.put()
        pipe.get()
        publisher.unlink()


def test_subscribe_waits_for_a_channel_to_appear(name):
    with start(_publish_named, name, "here") as child:
        assert untorn.subscribe(name, timeout_s=WATCHDOG_S).snapshot().value == "here"
        child.get()
        child.put()
        assert child.join() == 0


# -- the files


def test_files_are_private_and_go_with_unlink(name):
    with untorn.publish(1, name=name) as publisher:
        directory = places.default_directory()
        assert stat.S_IMODE(directory.stat().st_mode) == 0o700
        for part in ("control", "data"):
            assert stat.S_IMODE((directory / f"{name}.{part}").stat().st_mode) == 0o600
        reader = untorn.subscribe(name)
        publisher.unlink()
        publisher.unlink()
        assert publisher.update(2) == 2 and reader.snapshot().value == 2
        with pytest.raises(ChannelNotFoundError):
            untorn.subscribe("no-" + name)


def test_unlink_after_close(folder):
    publisher = publish(folder, 1)
    publisher.close()
    assert names(folder) == ["channel.control", "channel.data"]
    publisher.unlink()
    publisher.unlink()
    assert names(folder) == []


def test_unlink_after_close_spares_another_publisher(folder):
    first = publish(folder, 1)
    first.close()
    first.unlink()
    with publish(folder, 2) as second:
        with pytest.raises(BusyError):
            first.unlink()
        assert untorn.subscribe(folder / "channel").snapshot().value == 2
        second.close()
        first.unlink()  # another channel of that name is not its own
        assert names(folder) == ["channel.control", "channel.data"]


def test_space_is_reserved_before_it_is_written(folder):
    with publish(folder, np.zeros(1_000_000)):
        status = (folder / "channel.data").stat()
        assert status.st_blocks * 512 >= 8_000_000


def test_anonymous_channels_cannot_be_shrunk():
    with untorn.publish(1) as publisher:
        for fd in (publisher._attachment.control_fd, publisher._attachment.data_fd):
            with pytest.raises(PermissionError):
                os.ftruncate(fd, 0)


@pytest.mark.parametrize("mode", [0o755, 0o777, 0o770, 0o701])
def test_an_unsafe_directory_is_refused(tmp_path, monkeypatch, mode):
    unsafe = tmp_path / "untorn"
    unsafe.mkdir()
    unsafe.chmod(mode)
    monkeypatch.setattr(places, "Path", lambda path: unsafe if str(path).startswith("/dev/shm") else Path(path))
    with pytest.raises(PermissionError, match="mode 0700"):
        untorn.publish(1, name="x")


def test_a_link_in_place_of_the_directory_is_refused(tmp_path, monkeypatch):
    (tmp_path / "real").mkdir(mode=0o700)
    (tmp_path / "link").symlink_to(tmp_path / "real")
    monkeypatch.setattr(
        places, "Path", lambda path: tmp_path / "link" if str(path).startswith("/dev/shm") else Path(path)
    )
    with pytest.raises(PermissionError, match="mode 0700"):
        untorn.publish(1, name="x")


@pytest.mark.parametrize("part", ["control", "data"])
def test_links_in_place_of_files_are_refused(folder, tmp_path_factory, part):
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    publish(elsewhere, 1).close()
    for other in ("control", "data"):
        if other == part:
            (folder / f"channel.{other}").symlink_to(elsewhere / f"channel.{other}")
        else:
            shutil.copy(elsewhere / f"channel.{other}", folder)
    with pytest.raises((FormatError, OSError)):
        untorn.subscribe(folder / "channel")
    with pytest.raises((FormatError, OSError)):
        publish(folder, 2)
    assert untorn.subscribe(elsewhere / "channel").snapshot().value == 1


# -- garbage


@pytest.fixture
def whole(tmp_path_factory):
    """The bytes of both files of a channel in good order."""
    folder = tmp_path_factory.mktemp("whole")
    publish(folder, {"w": np.arange(1000.0), "n": 5}).close()
    return (folder / "channel.control").read_bytes(), (folder / "channel.data").read_bytes()


def put(folder, control: bytes, data: bytes) -> Path:
    (folder / "channel.control").write_bytes(control)
    (folder / "channel.data").write_bytes(data)
    return folder / "channel"


def test_a_copy_of_both_files_is_a_channel(folder, whole):
    assert untorn.subscribe(put(folder, *whole)).snapshot().value["n"] == 5


@pytest.mark.parametrize("length", [0, 1, 7, 8, 63, 64, 1151, 1152, 4095, 4096, 4097, 20_000])
@pytest.mark.parametrize("fill", [b"\0", b"\xff", b"untorn\r\n", b"PNG"])
def test_garbage_under_a_channels_name(folder, fill, length):
    garbage = (fill * length)[:length]
    path = put(folder, garbage, garbage)
    with pytest.raises(FormatError, match="channel"):
        untorn.subscribe(path)
    with pytest.raises(FormatError, match="channel"):
        publish(folder, 1)
    assert (folder / "channel.control").read_bytes() == garbage, "it may be somebody's file"


@pytest.mark.parametrize("length", [0, 1, 8, 100, 1151, 1152, 4096, 4097, 8192])
def test_a_truncated_control_file(folder, whole, length):
    path = put(folder, whole[0][:length], whole[1])
    with pytest.raises(FormatError):
        untorn.subscribe(path)
    with pytest.raises(FormatError):
        publish(folder, 1)


@pytest.mark.parametrize("length", [0, 1, 63, 64, 4095, 4096, 8191])
def test_a_truncated_data_file(folder, whole, length):
    path = put(folder, whole[0], whole[1][:length])
    with pytest.raises(FormatError, match="damaged"):
        untorn.subscribe(path).snapshot()
    with publish(folder, "new") as publisher:  # a publisher makes it whole again
        assert publisher.version == 2
        assert untorn.subscribe(path).snapshot().value == "new"


@pytest.mark.parametrize("part", ["control", "data"])
def test_a_directory_under_a_channels_name(folder, whole, part):
    path = put(folder, *whole)
    os.unlink(f"{path}.{part}")
    os.mkdir(f"{path}.{part}")
    for use in (lambda: untorn.subscribe(path).snapshot(), lambda: publish(folder, 1)):
        with pytest.raises((FormatError, IsADirectoryError)):
            use()


def test_a_fifo_under_a_channels_name_does_not_block(folder):
    os.mkfifo(folder / "channel.control")
    os.mkfifo(folder / "channel.data")
    for use in (lambda: untorn.subscribe(folder / "channel"), lambda: publish(folder, 1)):
        with pytest.raises((FormatError, OSError)):
            use()


@pytest.mark.parametrize(
    ("offset", "form", "number"), [(8, "<I", 1), (8, "<I", 3), (8, "<I", 0), (12, "<I", 0x04030201)]
)
def test_another_layout(folder, whole, offset, form, number):
    control = bytearray(whole[0])
    struct.pack_into(form, control, offset, number)
    path = put(folder, bytes(control), whole[1])
    with pytest.raises(FormatError, match=f"another layout than version {_core.LAYOUT}"):
        untorn.subscribe(path)
    with pytest.raises(FormatError, match="another layout"):
        publish(folder, 1)


@pytest.mark.parametrize(
    ("offset", "form", "number"),
    [
        (32, "<I", 0),  # max_readers
        (32, "<I", 2**32 - 1),
        (32, "<I", 60_000),
        (36, "<I", 0),  # max_slots
        (36, "<I", 65),
        (40, "<Q", 0),  # rows_offset
        (40, "<Q", 4097),
        (40, "<Q", 2**63),
        (40, "<Q", 2**64 - 4096),
    ],
)
def test_numbers_that_cannot_be(folder, whole, offset, form, number):
    control = bytearray(whole[0])
    struct.pack_into(form, control, offset, number)
    path = put(folder, bytes(control), whole[1])
    with pytest.raises(FormatError):
        untorn.subscribe(path)
    with pytest.raises(FormatError):
        publish(folder, 1)


def test_random_damage_is_an_error_or_a_value_and_no_crash(folder, whole, rng):
    """In its own process, so that a crash would be seen as one."""
    with start(_read_damaged, folder, whole, rng.randrange(2**32)) as child:
        outcomes = child.get()
        assert child.join() == 0
    assert sum(outcomes.values()) == 400
    assert outcomes.get("FormatError", 0) + outcomes.get("MixedError", 0) > 50  # the latter is one of the former


def _read_damaged(pipe, folder, whole, seed):
    import random

    rng = random.Random(seed)
    outcomes = {}
    used = (0, 1152 + 64), (0, 64 + 200)
    for _ in range(400):
        parts = [bytearray(part) for part in whole]
        for _ in range(rng.randrange(1, 6)):
            which = rng.randrange(2)
            parts[which][rng.randrange(*used[which])] = rng.randrange(256)
        try:
            value = untorn.subscribe(put(folder, *map(bytes, parts))).snapshot().value
            value.get("w", np.zeros(1)).ravel()[:2000].tolist()
            outcome = "value"
        except untorn.UntornError as error:
            outcome = type(error).__name__
        except (AttributeError, TypeError, ValueError):
            outcome = "another value"  # the damage was in a name or a number
        outcomes[outcome] = outcomes.get(outcome, 0) + 1
        value = None
    pipe.put(outcomes)


# -- one publisher


def test_a_second_publisher_is_busy(folder):
    with publish(folder, 1) as publisher:
        with pytest.raises(BusyError, match="living publisher"):
            publish(folder, 2)
        with start(_try_to_publish, folder) as child:
            assert child.get() == "BusyError"
        assert publisher.update(3) == 2


def _try_to_publish(pipe, folder):
    try:
        publish(folder, 2)
    except untorn.UntornError as error:
        pipe.put(type(error).__name__)


def test_takeover_after_close_counts_on_and_readers_notice_nothing(folder):
    first = publish(folder, 0)
    reader = untorn.subscribe(folder / "channel")
    kept = reader.snapshot()
    first.update(1)
    first.close()
    with publish(folder, 2) as second:
        assert second.version == 3
        assert reader.snapshot(newer_than=2).value == 2
        assert second.update(3) == 4
        assert kept.value == 0 and kept.version == 1


def _publish_in(pipe, folder, value):
    with publish(folder, value) as publisher:
        pipe.put(publisher.version)
        pipe.get()


def test_takeover_of_a_killed_publisher(folder):
    reader = None
    for turn in range(1, 6):
        with start(_publish_in, folder, turn) as child:
            assert child.get() == turn
            reader = reader or untorn.subscribe(folder / "channel")
            assert reader.snapshot(newer_than=turn - 1, timeout_s=WATCHDOG_S).value == turn
            child.kill()
    with publish(folder, "last") as publisher:
        assert publisher.version == 6 and reader.snapshot().value == "last"
        assert len(publisher.readers()) == 1


def test_a_reader_waits_across_a_takeover(folder):
    first = publish(folder, 0)
    reader = untorn.subscribe(folder / "channel")
    first.close()
    with start(_publish_in, folder, "next"):
        assert reader.snapshot(newer_than=1, timeout_s=WATCHDOG_S).value == "next"


def test_a_creation_that_was_killed_half_way_is_cleared_away(folder):
    publish(folder, 1).close()
    os.unlink(folder / "channel.data")
    with pytest.raises(ChannelNotFoundError):
        untorn.subscribe(folder / "channel")
    with publish(folder, 2) as publisher:
        assert publisher.version == 1
        assert untorn.subscribe(folder / "channel").snapshot().value == 2


def test_data_without_control_is_nobodys(folder):
    (folder / "channel.data").write_bytes(b"x")
    with publish(folder, 2):
        assert untorn.subscribe(folder / "channel").snapshot().value == 2


# -- rows


def test_more_readers_than_rows(folder):
    with (
        publish(folder, 1, max_readers=2) as publisher,
        start(_read_named, folder) as one,
        start(_read_named, folder) as two,
    ):
        assert [one.get(), two.get()] == [1, 1]
        with pytest.raises(CapacityError, match="no reader row left"):
            untorn.subscribe(folder / "channel")
        assert publisher.update(2) == 2
        one.kill()
        assert untorn.subscribe(folder / "channel").snapshot().value == 2
        assert [info.pid for info in publisher.readers()] == [two.pid]
        two.put()
        assert two.get() == 2


def _read_named(pipe, folder):
    reader = untorn.subscribe(folder / "channel")
    pipe.put(reader.snapshot().version)
    pipe.get()
    pipe.put(reader.snapshot().version)


def test_a_dead_readers_slots_come_back(folder):
    with publish(folder, 0, max_slots=3) as publisher:
        children = []
        for _ in range(2):
            child = start(_hold, folder)
            assert child.get() == publisher.version
            children.append(child)
            publisher.update(0)
        reader = untorn.subscribe(folder / "channel")
        snap = reader.snapshot()
        with pytest.raises(CapacityError, match=f"pid {children[0].pid} holds version 1"):
            publisher.update(1, timeout_s=0)
        for child in children:
            child.kill()
        assert publisher.update(1, timeout_s=0) == 4
        assert snap.value == 0
        assert sum(word != 0 for word in held_words(folder / "channel.control")) == 1


def _hold(pipe, folder):
    snap = untorn.subscribe(folder / "channel").snapshot()
    pipe.put(snap.version)
    pipe.get()


# -- no room


@pytest.fixture
def small(tmp_path):
    """A file system of half a megabyte."""
    place = tmp_path / "small"
    place.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=512k,mode=0700", "tmpfs", place],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        pytest.skip(f"mounting a small tmpfs needs root in this container: {done.stderr.strip()}")
    yield place
    gc.collect()
    subprocess.run(["umount", "--lazy", place], check=True)


def used(place):
    status = os.statvfs(place)
    return (status.f_blocks - status.f_bfree) * status.f_frsize


def test_a_full_file_system_is_a_capacity_error_and_nothing_is_lost(small):
    with publish(small, [np.zeros(20_000)]) as publisher:
        reader = untorn.subscribe(small / "channel")
        snap = reader.snapshot()
        before = used(small)
        with pytest.raises(
            CapacityError, match=r"needs 8,0\d\d,\d\d\d bytes, and its file system has .* free of 524,288"
        ):
            publisher.update(np.zeros(1_000_000))
        with pytest.raises(CapacityError), publisher.edit() as value:
            value[0] += 1
            value.append(np.zeros(1_000_000))
        assert publisher.version == 1 and (snap.value[0] == 0).all()
        assert used(small) <= before + 170_000  # the edit's slot
        for version in range(2, 50):
            assert publisher.update([np.full(20_000, version)]) == version
            assert (reader.snapshot().value[0] == version).all()
        held = [snap, reader.snapshot()]
        publisher.update([np.zeros(20_000)])
        held.append(reader.snapshot())
        with pytest.raises(CapacityError, match="free of"):
            publisher.update([np.ones(20_000)])
        held.pop(0)
        del snap
        assert publisher.update([np.ones(20_000)]) == 51
        assert (held[0].value[0] == 49).all() and (held[1].value[0] == 0).all()
        publisher.unlink()
    assert names(small) == []


def test_a_channel_that_does_not_fit_leaves_nothing(small):
    with pytest.raises(CapacityError, match="free of"):
        publish(small, np.zeros(1_000_000))
    with pytest.raises(CapacityError, match="control file"):
        publish(small, 1, max_readers=60_000)
    assert names(small) == []
    gc.collect()
    assert used(small) == 0
    publish(small, 1).close()


def _publish_more_than_there_is(pipe, name):
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 30, 1 << 30))  # should the check fail, let not the machine suffer
    huge = np.broadcast_to(np.zeros(1), (1 << 43,))
    with untorn.publish(1, name=name) as publisher:
        for attempt in (lambda: publisher.update(huge), lambda: untorn.publish(huge)):
            try:
                attempt()
            except CapacityError as error:
                pipe.put(str(error))
        pipe.put(publisher.update(2))
        publisher.unlink()


def test_more_than_the_machine_has_is_a_capacity_error(name):
    """And not the end of some process, which is what the kernel would choose."""
    with start(_publish_more_than_there_is, name) as child:
        for _ in range(2):
            assert re.search(
                r"needs 70,368,744,[\d,]+ bytes of memory, and this machine has less available", child.get()
            )
        assert child.get() == 2
        assert child.join() == 0


def _publish_under_a_limit(pipe, folder):
    with publish(folder, np.zeros(1000)) as publisher:
        resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))
        for attempt in (lambda: publisher.update(np.zeros(100_000)), lambda: untorn.publish(np.zeros(100_000))):
            try:
                attempt()
            except CapacityError as error:
                pipe.put(str(error))
        pipe.put(publisher.update(np.ones(1000)))


def test_a_limit_on_file_sizes_is_a_capacity_error(folder):
    with start(_publish_under_a_limit, folder) as child:
        assert "needs 80" in child.get()
        assert "needs 80" in child.get()
        assert child.get() == 2
        assert child.join() == 0


def _open_too_many(pipe, folder):
    resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
    publishers = []
    with pytest.raises(OSError, match=os.strerror(errno.EMFILE)):
        while len(publishers) < 100:
            publishers.append(untorn.publish(len(publishers)))
    assert [publisher.subscriber()._address.label for publisher in publishers[:2]] == ["anonymous"] * 2
    publishers.pop()
    untorn.publish(1)
    pipe.put(len(publishers))


def test_no_descriptors_left_is_an_os_error_and_nothing_is_lost(folder):
    with start(_open_too_many, folder) as child:
        assert child.get() > 10
        assert child.join() == 0


def test_the_size_of_a_control_file_is_as_written(folder):
    with publish(folder, 1, max_readers=100):
        assert (folder / "channel.control").stat().st_size == _core.control_nbytes(100) == 4096 + 8192
    assert sys.byteorder == "little"


def _without_proc(pipe, folder):
    own_mounts()
    mount("tmpfs", "/proc")
    publisher = untorn.publish({"x": np.arange(3)}, name="n", directory=folder)
    publisher.update({"x": np.arange(300_000)})
    reader = untorn.subscribe(folder / "n")
    again = pickle.loads(pickle.dumps(reader))
    pipe.put((sorted(os.listdir(folder)), int(again.snapshot().value["x"].sum())))
    view = again.snapshot().value["x"]
    child = os.fork()
    if child == 0:
        with pytest.raises(CapacityError, match="/proc is not mounted"):
            again.snapshot()
        whole = view.sum() == untorn.subscribe(folder / "n").snapshot().value["x"].sum()
        os._exit(0 if whole else 1)
    pipe.put(os.waitpid(child, 0)[1])
    publisher.close()
    publisher = untorn.publish({"x": np.arange(4)}, name="n", directory=folder)
    pipe.put(publisher.version)
    publisher.close()
    for call in (
        lambda: pickle.loads(pickle.dumps(untorn.publish(1).subscriber())).snapshot(),
        lambda: untorn.publish(1, name="n", directory=folder, durable=True),
    ):
        try:
            pipe.put(str(call()))
        except OSError as error:
            pipe.put(str(error))


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs root")
def test_named_channels_work_where_proc_is_not_mounted(folder):
    with start(_without_proc, folder) as child:
        assert child.get() == (["n.control", "n.data"], 299_999 * 150_000)
        assert child.get() == 0
        assert child.get() == 3
        assert "/proc is not mounted here" in child.get()
        assert "/proc is not mounted here" in child.get()
        assert child.join() == 0
    assert sorted(os.listdir(folder)) == ["n.control", "n.data"]


def _in_a_removed_directory(pipe, folder):
    os.mkdir(folder / "gone")
    os.chdir(folder / "gone")
    os.rmdir(folder / "gone")
    for call in (lambda: untorn.publish(1, name="n", directory="."), lambda: untorn.subscribe("./n")):
        try:
            call()
        except FileNotFoundError as error:
            pipe.put(str(error))
    publisher = untorn.publish(1)  # needs no directory
    pipe.put(publisher.subscriber().snapshot().value)


def test_a_relative_path_in_a_directory_that_was_removed(folder):
    with start(_in_a_removed_directory, folder) as child:
        assert "the current directory was removed" in child.get()
        assert "the current directory was removed" in child.get()
        assert child.get() == 1
        assert child.join() == 0
