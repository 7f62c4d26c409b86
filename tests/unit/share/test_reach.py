"""Channels in awkward places: file systems that lack something, full or read-only ones, other users, containers."""

import contextlib
import errno
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import untorn
from helpers import WATCHDOG_S, start
from untorn import CapacityError, ChannelNotFoundError
from untorn.share import opening, places, storage

NOBODY = 65534
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: it mounts a file system, or becomes another user")


def publish(folder, value, **options):
    return untorn.publish(value, name="channel", directory=folder, **options)


def names(folder):
    return sorted(path.name for path in Path(folder).iterdir())


@pytest.fixture
def mount(tmp_path):
    """Mount a tmpfs with these options; it goes after the test."""
    mounted = []

    def mount(name: str, options: str) -> Path:
        place = tmp_path / name
        place.mkdir(exist_ok=True)
        done = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", options, "tmpfs", place], check=False, capture_output=True, text=True
        )
        if done.returncode != 0:
            pytest.skip(f"no right to mount a tmpfs here: {done.stderr.strip()}")
        mounted.append(place)
        return place

    yield mount
    for place in mounted:
        subprocess.run(["umount", "--lazy", place], check=True)


# -- file systems that lack something


def refuse_nameless(monkeypatch, number):
    """Let O_TMPFILE fail with this error."""
    real = os.open

    def refusing(path, flags, *args, **kwargs):
        if flags & os.O_TMPFILE == os.O_TMPFILE:
            raise OSError(number, os.strerror(number), path)
        return real(path, flags, *args, **kwargs)

    monkeypatch.setattr(os, "open", refusing)


@pytest.fixture(params=[errno.EOPNOTSUPP, errno.EISDIR], ids=errno.errorcode.get)
def without_tmpfile(request, monkeypatch):
    """Simulate a file system or an old kernel without nameless files."""
    refuse_nameless(monkeypatch, request.param)


def without(monkeypatch, what, number):
    def refuse(*args, **kwargs):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(*what, refuse)


@pytest.mark.parametrize("durable", [False, True])
def test_without_nameless_files(without_tmpfile, tmp_path, durable):
    with publish(tmp_path, 1, durable=durable) as publisher:
        assert names(tmp_path) == ["channel.control", "channel.data"]
        assert publisher.update("two") == 2
        assert untorn.subscribe(tmp_path / "channel").snapshot().value == "two"
    with publish(tmp_path, 3) as publisher:
        assert publisher.version == 3
        publisher.unlink()
    assert names(tmp_path) == []


def test_without_nameless_files_and_renaming(without_tmpfile, tmp_path, monkeypatch):
    """Hard links then, and the names of before go."""
    monkeypatch.setattr(storage, "_rename", lambda old, new: False)
    with publish(tmp_path, 1) as publisher:
        assert names(tmp_path) == ["channel.control", "channel.data"]
        assert (tmp_path / "channel.control").stat().st_nlink == 1
        assert publisher.update(2) == 2


@pytest.mark.parametrize("number", [errno.EPERM, errno.EOPNOTSUPP])
def test_without_nameless_files_and_hard_links(without_tmpfile, tmp_path, monkeypatch, number):
    without(monkeypatch, (os, "link"), number)
    with publish(tmp_path, 1) as publisher:
        assert names(tmp_path) == ["channel.control", "channel.data"]
        assert untorn.subscribe(tmp_path / "channel").snapshot().value == 1
        assert publisher.update(2) == 2


@pytest.mark.parametrize("number", [errno.EPERM, errno.EOPNOTSUPP])
@pytest.mark.parametrize("nameless", [True, False])
def test_with_no_way_to_name_a_file(tmp_path, monkeypatch, number, nameless):
    if not nameless:
        monkeypatch.setattr(storage, "_rename", lambda old, new: False)
        refuse_nameless(monkeypatch, errno.EOPNOTSUPP)
    without(monkeypatch, (os, "link"), number)
    with pytest.raises(OSError, match=r"'.*channel' cannot be given its name in this directory.*choose another") as why:
        publish(tmp_path, 1)
    assert why.value.errno == number and why.value.filename == str(tmp_path)
    assert names(tmp_path) == []


def test_a_second_creator_without_nameless_files(without_tmpfile, tmp_path, monkeypatch):
    """Both made their files, and the name is taken when the slower one wants it."""
    first = publish(tmp_path, 1)
    files = places.named("channel", tmp_path)
    made = opening.attach(*storage.nameless(files, 4, 2, 2), untorn._core.PUBLISHER, "second")
    assert len(names(tmp_path)) == 4
    assert not storage.give_names(files, made, durable=False)
    assert names(tmp_path) == ["channel.control", "channel.data"]
    assert first.update(2) == 2
    first.close()


@pytest.mark.parametrize("ending", ["control", "data"])
def test_a_creation_that_fails_leaves_no_temporary_names(without_tmpfile, tmp_path, monkeypatch, ending):
    real = storage.give_name

    def failing(files, fd, path):
        if path.endswith(ending):
            raise OSError(errno.EIO, "as if the disk were broken")
        real(files, fd, path)

    monkeypatch.setattr(storage, "give_name", failing)
    with pytest.raises(OSError, match="broken"):
        publish(tmp_path, 1)
    assert names(tmp_path) == []


def test_a_value_that_fails_leaves_no_temporary_names(without_tmpfile, tmp_path, monkeypatch):
    without(monkeypatch, (untorn.share.layout.Layout, "write_leaf"), errno.EIO)
    with pytest.raises(OSError, match=os.strerror(errno.EIO)):
        publish(tmp_path, 1)
    assert names(tmp_path) == []


def _stop_before_naming(pipe, folder):
    storage.give_names = lambda *args, **kwargs: (pipe.put(names(folder)), pipe.get())
    publish(folder, 1)


def test_what_a_kill_leaves_is_no_channel(without_tmpfile, tmp_path):
    with start(_stop_before_naming, tmp_path) as child:
        assert len(child.get()) == 2
        pid = child.pid
        child.kill()
    left = names(tmp_path)
    assert sorted(name.rpartition(".")[2] for name in left) == ["control", "data"]
    assert all(name.startswith(f".channel.{pid}.") for name in left)
    for name in left:
        with pytest.raises(ValueError, match="name"):
            untorn.subscribe(tmp_path / name.rpartition(".")[0])
    with publish(tmp_path, 2) as publisher:
        assert publisher.version == 1 and untorn.subscribe(tmp_path / "channel").snapshot().value == 2


def test_a_child_forked_meanwhile_leaves_the_temporary_names(without_tmpfile, tmp_path):
    files = places.named("channel", tmp_path)
    fds = storage.nameless(files, 4, 2, 2)
    before = names(tmp_path)
    pid = os.fork()
    if pid == 0:
        storage.forget_temporary(files)
        os._exit(0)
    os.waitpid(pid, 0)
    assert names(tmp_path) == before and len(before) == 2
    for fd in fds:
        os.close(fd)
    del files  # and the processes that had them


# -- where nothing may be written, or there is no room


@as_root
def test_a_read_only_file_system(mount):
    folder = mount("place", "size=4m")
    publish(folder, "before").close()
    subprocess.run(["mount", "-o", "remount,ro", folder], check=True)
    with pytest.raises(
        OSError, match=r"channel.*both of its files must be writable.*read-only; mount it writable"
    ) as why:
        publish(folder, 1)
    assert why.value.errno == errno.EROFS and str(folder) in str(why.value)
    with pytest.raises(
        OSError, match=r"new.*cannot be made in this directory.*read-only.*choose another directory="
    ) as why:
        untorn.publish(1, name="new", directory=folder)
    assert why.value.errno == errno.EROFS and why.value.filename == str(folder)
    with pytest.raises(OSError, match=r"readers note in its control file what they hold.*read-only.*copy") as why:
        untorn.subscribe(folder / "channel", timeout_s=WATCHDOG_S)
    assert why.value.errno == errno.EROFS


def _as_nobody(pipe, folder):
    os.setgroups([])
    os.setresgid(NOBODY, NOBODY, NOBODY)
    os.setresuid(NOBODY, NOBODY, NOBODY)
    errors = []
    for use in (
        lambda: publish(folder, 1),
        lambda: untorn.publish(1, name="new", directory=folder),
        lambda: untorn.subscribe(f"{folder}/channel", timeout_s=WATCHDOG_S),
    ):
        try:
            use().close()
            errors.append("")
        except OSError as error:
            errors.append(f"{type(error).__name__}: {error}")
    pipe.put(errors)


@pytest.fixture
def open_folder():
    """A directory that other users reach, as they do not reach pytest's own."""
    folder = Path(f"/tmp/untorn-test-{os.getpid()}-{os.urandom(4).hex()}")
    folder.mkdir()
    yield folder
    folder.chmod(0o700)
    shutil.rmtree(folder)


@as_root
def test_another_users_files(open_folder):
    open_folder.chmod(0o755)
    publish(open_folder, 1).close()
    with start(_as_nobody, open_folder) as child:
        taken, made, read = child.get()
    assert taken.startswith("PermissionError") and "cannot be taken over" in taken and "run as the user" in taken
    assert made.startswith("PermissionError") and "cannot be made in this directory" in made
    assert read.startswith("PermissionError") and "readers note in its control file" in read and "run as" in read


@as_root
def test_a_directory_that_others_may_not_enter(open_folder):
    publish(open_folder, 1).close()
    open_folder.chmod(0o700)
    with start(_as_nobody, open_folder) as child:
        taken, made, read = child.get()
    for error in (taken, made):
        assert error.startswith("PermissionError") and str(open_folder) in error and "choose another" in error
    assert read.startswith("PermissionError") and "no right to" in read


@as_root
def test_another_user_who_was_given_the_files(open_folder):
    open_folder.chmod(0o755)
    with publish(open_folder, "shared") as publisher:
        (open_folder / "channel.control").chmod(0o666)
        with start(_as_nobody, open_folder) as child:
            assert "to read the data file" in child.get()[2], "the data file is still closed to it"
        (open_folder / "channel.data").chmod(0o644)
        with start(_as_nobody, open_folder) as child:
            assert child.get()[2] == ""
        assert publisher.update(2) == 2


@as_root
def test_a_full_disk(mount):
    folder = mount("small", "size=256k")
    for value in (np.zeros(100_000), {"a": 1, "b": np.zeros(1 << 20)}):
        with pytest.raises(CapacityError, match=r"needs [\d,]+ bytes, and its file system has [\d,]+ free of 262,144"):
            publish(folder, value)
        assert names(folder) == []
    with pytest.raises(CapacityError, match="a new channel's control file"):
        publish(folder, 1, max_readers=65535)
    assert names(folder) == []
    with publish(folder, np.zeros(2000), max_readers=4) as publisher:
        assert publisher.version == 1


@as_root
@pytest.mark.parametrize("inodes", [1, 2])
def test_a_disk_without_room_for_another_file(mount, inodes):
    folder = mount("small", f"size=1m,nr_inodes={inodes}")
    with pytest.raises(CapacityError, match=r"cannot be made in this directory.*no room for another file"):
        publish(folder, 1)
    assert names(folder) == []


@as_root
def test_a_full_disk_without_nameless_files(mount, without_tmpfile):
    folder = mount("small", "size=256k")
    with pytest.raises(CapacityError):
        publish(folder, np.zeros(100_000))
    assert names(folder) == []


# -- paths


def test_a_file_in_place_of_the_directory(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(NotADirectoryError, match=r"not a directory; choose another directory="):
        publish(tmp_path / "file", 1)
    with pytest.raises(ChannelNotFoundError, match="no such directory"):
        untorn.subscribe(tmp_path / "file" / "channel")


def test_a_missing_directory(tmp_path):
    with pytest.raises(FileNotFoundError, match="the directory does not exist; make it first"):
        publish(tmp_path / "no", 1)
    with pytest.raises(ChannelNotFoundError, match="there is no such directory"):
        untorn.subscribe(tmp_path / "no" / "channel", timeout_s=0.05)


def _publish_later(pipe, folder):
    pipe.get()
    folder.mkdir(parents=True)
    with publish(folder, "late"):
        pipe.get()


def test_subscribe_waits_for_the_directory_too(tmp_path):
    with start(_publish_later, tmp_path / "a" / "b") as child:
        with pytest.raises(ChannelNotFoundError):
            untorn.subscribe(tmp_path / "a" / "b" / "channel")
        child.put()
        assert untorn.subscribe(tmp_path / "a" / "b" / "channel", timeout_s=WATCHDOG_S).snapshot().value == "late"
        child.put()
        assert child.join() == 0


def test_a_relative_path_means_the_same_after_a_change_of_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    os.mkdir("here")
    publisher = publish("here", 1)
    reader = untorn.subscribe("here/channel")
    assert publisher.name == "here/channel"
    monkeypatch.chdir("/")
    assert reader.snapshot().value == 1
    reader.close()
    with pytest.raises(ChannelNotFoundError):
        untorn.subscribe("here/channel")
    publisher.unlink()
    publisher.close()
    assert names(tmp_path / "here") == []
    monkeypatch.chdir(tmp_path / "here")
    with untorn.publish(2, name="channel", directory=".") as publisher:
        assert untorn.subscribe("./channel").snapshot().value == 2


@pytest.mark.parametrize("odd", ["with spaces", "Größe-数据", "a'b\"c", "new\nline", "%s{}", "-rf"])
def test_odd_directories(tmp_path, odd):
    folder = tmp_path / odd
    folder.mkdir()
    with publish(folder, odd) as publisher:
        assert untorn.subscribe(folder / "channel").snapshot().value == odd
        assert untorn.subscribe(f"{folder}/channel").snapshot().value == odd
        publisher.unlink()
        assert names(folder) == []


def test_one_channel_by_two_paths_is_one_attachment(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    with publish(tmp_path / "link", 1) as publisher:
        readers = [untorn.subscribe(tmp_path / place / "channel") for place in ("real", "link", "real/../link")]
        assert [reader.snapshot().value for reader in readers] == [1, 1, 1]
        assert len(publisher.readers()) == 1
        with pytest.raises(untorn.BusyError):
            publish(tmp_path / "real", 2)


# -- containers: processes that do not see one another's pids


def _in_a_container(code: str, *args: str) -> subprocess.Popen:
    """Run Python in pid and mount namespaces of its own; its lines are JSON. Its pid there is 1."""
    command = [
        "unshare",
        "--pid",
        "--mount",
        "--fork",
        "--kill-child",
        "--mount-proc",
        sys.executable,
        "-c",
        code,
        *args,
    ]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1)


@pytest.fixture
def container():
    """Start containers; they end with the test."""
    probe = subprocess.run(
        ["unshare", "--pid", "--mount", "--fork", "--mount-proc", "true"], check=False, capture_output=True
    )
    if probe.returncode != 0:
        pytest.skip(f"no right to make namespaces here: {probe.stderr.decode().strip()}")
    with contextlib.ExitStack() as stack:

        def run(code: str, *args: str) -> subprocess.Popen:
            process = stack.enter_context(_in_a_container(code, *args))
            stack.callback(process.kill)
            return process

        yield run


def ask(process: subprocess.Popen, message=None):
    """The next line of a process in a container, after a message to it."""
    if message is not None:
        process.stdin.write(json.dumps(message) + "\n")
    return json.loads(process.stdout.readline())


def kill(process: subprocess.Popen) -> None:
    """SIGKILL; with --kill-child the process inside goes the same way. Its pipe ends when it is gone."""
    process.kill()
    assert process.stdout.read() == ""
    process.wait()


PUBLISHER = """
import json, os, sys, untorn
publisher = untorn.publish("1", name="channel", directory=sys.argv[1], max_slots=4)
print(json.dumps([os.getpid(), publisher.version]), flush=True)
for line in sys.stdin:
    version = publisher.update(json.loads(line), timeout_s=0)
    print(json.dumps([version, [info.pid for info in publisher.readers()]]), flush=True)
"""
READER = """
import json, os, sys, untorn
reader = untorn.subscribe(sys.argv[1] + "/channel", timeout_s=60)
held = [reader.snapshot()]
print(json.dumps([os.getpid(), held[0].value]), flush=True)
for line in sys.stdin:
    held.append(reader.snapshot())
    print(json.dumps([held[0].value, held[-1].value, reader.publisher_alive()]), flush=True)
"""


def test_containers_that_share_a_directory(container, tmp_path):
    publisher = container(PUBLISHER, str(tmp_path))
    assert ask(publisher) == [1, 1]
    readers = [container(READER, str(tmp_path)) for _ in range(2)]
    assert [ask(reader) for reader in readers] == [[1, "1"], [1, "1"]], "all of them have the same pid"
    assert ask(publisher, "two") == [2, [1, 1]]
    assert [ask(reader, "") for reader in readers] == [["1", "two", True]] * 2
    assert ask(publisher, "three")[0] == 3
    assert ask(readers[0], "") == ["1", "three", True]
    # its holds come back, and those of the other, which has the same pid, stay
    kill(readers[0])
    for version in range(4, 12):
        assert ask(publisher, str(version)) == [version, [1]]
    assert ask(readers[1], "") == ["1", "11", True]
    # the publisher is dead, and the other process of pid 1 is not taken for it
    kill(publisher)
    assert ask(readers[1], "") == ["1", "11", False]
    with publish(tmp_path, "taken over") as mine:
        assert mine.version == 12
        assert ask(readers[1], "") == ["1", "taken over", True]
        assert [info.pid for info in mine.readers()] == [1] and mine.readers()[0].versions == (1, 2, 11, 12)
        kill(readers[1])
        assert mine.update("last") == 13 and mine.readers() == []


def test_a_copy_of_a_channel_is_another_channel(tmp_path):
    with untorn.publish("first", name="original", directory=tmp_path) as publisher:
        reader = untorn.subscribe(tmp_path / "original")
        for part in ("control", "data"):
            (tmp_path / f"copy.{part}").write_bytes((tmp_path / f"original.{part}").read_bytes())
        publisher.update("second")
        assert untorn.subscribe(tmp_path / "copy").snapshot().value == "first"
        assert reader.snapshot().value == "second"
        assert untorn.subscribe(tmp_path / "original").snapshot().value == "second"
