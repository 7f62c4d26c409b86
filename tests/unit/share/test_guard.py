"""Files under a channel's names must be regular files of this user. Others are an error for every opener, which names
the file and says what to do; nothing hangs, and no file of another user is read, written or removed."""

import os
import shutil
import socket
import stat
import time
from pathlib import Path

import pytest

import untorn
from helpers import WATCHDOG_S, start
from untorn import FormatError, _core
from untorn.cli.gc import collect
from untorn.cli.listing import list_channels
from untorn.share import opening, places
from untorn.share.inspect import ChannelView

NOBODY, OTHER = 65534, 65533
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: it becomes other users")


def publish(folder, value=1, **options):
    return untorn.publish(value, name="c", directory=folder, **options)


def write_as_a_worker(folder):
    files = places.named("c", folder)
    return opening.open_channel(((files.control, files.data),), files.label, _core.WRITER)


OPENERS = {
    "subscribe": lambda folder: untorn.subscribe(f"{folder}/c"),
    "subscribe and wait": lambda folder: untorn.subscribe(f"{folder}/c", timeout_s=0.1),
    "publish": publish,
    "look": lambda folder: ChannelView.open(places.named("c", folder)),
    "write as a worker": write_as_a_worker,
}
#: only for these, files of another user who gave others the right to them are good enough
READERS = ("subscribe", "subscribe and wait")


def outcomes(folder) -> dict[str, str]:
    """Return what each opener says, and what untorn ls and untorn gc make of the channel."""
    said = {}
    for name, opens in OPENERS.items():
        try:
            opens(folder).close() if name != "write as a worker" else opens(folder)
            said[name] = "opened"
        except (untorn.UntornError, OSError) as error:
            said[name] = f"{type(error).__name__}: {error}"
    said["ls"] = " ".join(f"{found.status}: {found.problem}" for found in list_channels(folder))
    said["gc"] = " ".join("removed" if each.removed else each.reason for each in collect(folder))
    return said


# -- wrong kinds of files


def make(kind: str, path: Path) -> None:
    """Put something else in a file's place. The test has changed into its directory: a socket's path must be short."""
    path.unlink()
    if kind == "a FIFO":
        os.mkfifo(path)
    elif kind == "a directory":
        path.mkdir()
    elif kind == "a socket":
        with socket.socket(socket.AF_UNIX) as made:
            made.bind(path.name)
    elif kind == "a link":
        path.symlink_to("elsewhere")
        Path("elsewhere").write_bytes(b"x" * 5000)
    elif kind == "a link to nothing":
        path.symlink_to("nothing")
    elif kind == "a link to itself":
        path.symlink_to(path.name)
    else:
        numbers = {"a device": (1, 3), "a device without a driver": (250, 77)}[kind]
        os.mknod(path, stat.S_IFCHR | 0o600, os.makedev(*numbers))


KINDS = ["a FIFO", "a directory", "a socket", "a link", "a link to nothing", "a link to itself"]
DEVICES = [pytest.param(kind, marks=as_root) for kind in ("a device", "a device without a driver")]


@pytest.mark.parametrize("part", ["control", "data"])
@pytest.mark.parametrize("kind", [*KINDS, *DEVICES])
def test_another_kind_of_file_under_a_channels_name(tmp_path, monkeypatch, kind, part):
    monkeypatch.chdir(tmp_path)
    publish(tmp_path).close()
    make(kind, tmp_path / f"c.{part}")
    for opener, said in outcomes(tmp_path).items():
        assert f"c.{part}'" in said, (opener, said)
        assert "which a channel's file never is" in said, (opener, said)
        if opener in OPENERS:
            assert said.startswith("FormatError"), (opener, said)
    assert (tmp_path / f"c.{part}").lstat() and len(os.listdir(tmp_path)) in (2, 3)


@pytest.mark.parametrize("kind", KINDS)
def test_another_kind_of_file_where_the_data_file_is_to_go(tmp_path, monkeypatch, kind):
    monkeypatch.chdir(tmp_path)
    publish(tmp_path).close()
    make(kind, tmp_path / "c.data")
    (tmp_path / "c.control").unlink()
    with pytest.raises(FormatError, match="never is; remove it"):
        publish(tmp_path)
    assert (tmp_path / "c.data").lstat() and not os.path.lexists(tmp_path / "c.control")
    assert [each.removed for each in collect(tmp_path)] == [False]
    assert (tmp_path / "c.data").lstat()


def test_a_leased_file_is_no_reason_to_wait(tmp_path):
    """A file under a lease of another process: opening it would wait until that lets go, or for a minute."""
    publish(tmp_path).close()
    with start(_lease, tmp_path / "c.control") as child:
        assert child.get() == "leased"
        with pytest.raises(BlockingIOError):
            untorn.subscribe(tmp_path / "c")


def _lease(pipe, path):
    import fcntl
    import signal

    signal.signal(signal.SIGIO, signal.SIG_IGN)
    fd = os.open(path, os.O_RDONLY)
    fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_RDLCK)
    pipe.put("leased")
    pipe.get()


# -- other users


@pytest.fixture
def shared():
    """A directory where everybody may make files, as /tmp."""
    folder = Path(f"/tmp/untorn-test-{os.getpid()}-{os.urandom(4).hex()}")
    folder.mkdir()
    folder.chmod(0o1777)
    yield folder
    folder.chmod(0o700)
    shutil.rmtree(folder)


def become(user: int) -> None:
    os.setgroups([])
    os.setresgid(user, user, user)
    os.setresuid(user, user, user)


def _plant(pipe, folder, user, parts, mode):
    become(user)
    publish(folder, "planted").close()
    for part in ("control", "data"):
        if part in parts:
            (folder / f"c.{part}").chmod(mode)
        else:
            (folder / f"c.{part}").unlink()
    pipe.put()
    pipe.get()


def plant(folder, user, parts=("control", "data"), mode=0o666):
    with start(_plant, folder, user, parts, mode) as child:
        child.get()
        child.put()
        child.join()


def _outcomes_as(pipe, folder, user):
    become(user)
    pipe.put(outcomes(folder))


def outcomes_as(user, folder) -> dict[str, str]:
    if user == 0:
        return outcomes(folder)
    with start(_outcomes_as, folder, user) as child:
        return child.get()


def contents(folder) -> dict[str, tuple[bytes, int]]:
    return {path.name: (path.read_bytes(), path.stat().st_ino) for path in sorted(folder.iterdir())}


@as_root
@pytest.mark.parametrize("user", [0, OTHER])
def test_a_channel_that_another_user_has_planted(shared, user):
    plant(shared, NOBODY)
    before = contents(shared)
    for opener, said in outcomes_as(user, shared).items():
        assert f"belongs to user {NOBODY}, and this is user {user}" in said, (opener, said)
        assert str(shared / "c.control") in said and f"run as user {NOBODY}, or choose another" in said
    assert contents(shared) == before


@as_root
@pytest.mark.parametrize("user", [0, OTHER])
@pytest.mark.parametrize("part", ["control", "data"])
def test_one_file_that_another_user_has_planted(shared, user, part):
    publish(shared, "mine").close()
    for name in ("control", "data"):
        os.chown(shared / f"c.{name}", user, user)
    (shared / f"c.{part}").unlink()
    real = (shared / f"c.{'data' if part == 'control' else 'control'}").rename(shared / "aside")
    plant(shared, NOBODY, (part,))
    real.rename(shared / f"c.{'data' if part == 'control' else 'control'}")
    before = contents(shared)
    for opener, said in outcomes_as(user, shared).items():
        assert f"c.{part}' belongs to user {NOBODY}" in said, (opener, said)
    assert contents(shared) == before


@as_root
@pytest.mark.parametrize("user", [0, OTHER])
def test_a_data_file_without_control_that_another_user_has_planted(shared, user):
    plant(shared, NOBODY, ("data",))
    before = contents(shared)
    said = outcomes_as(user, shared)
    assert f"c.data' belongs to user {NOBODY}" in said["publish"]
    assert said["gc"] != "removed" and said["subscribe"].startswith("ChannelNotFoundError")
    assert contents(shared) == before


@as_root
def test_a_successor_that_another_user_has_planted_is_none(shared):
    publisher = publish(shared)
    reader = untorn.subscribe(shared / "c")
    publisher.unlink()
    publisher.close()
    plant(shared, NOBODY)
    with pytest.raises(TimeoutError):
        reader.wait(1, timeout_s=0.05)


@pytest.mark.parametrize("mode", [0o620, 0o602, 0o666])
@pytest.mark.parametrize("part", ["control", "data"])
def test_files_that_others_may_write_to(shared, tmp_path, part, mode):
    for folder in (shared, tmp_path):
        publish(folder).close()
        (folder / f"c.{part}").chmod(mode)
    for opener, said in outcomes(shared).items():
        assert "can be written by other users" in said and "chmod 600 it, or use a directory that" in said, opener
    with publish(tmp_path, 2) as publisher:  # no other process reaches it there: its owner has given that right
        assert untorn.subscribe(tmp_path / "c").snapshot().version == publisher.version == 2
    (shared / f"c.{part}").chmod(0o600)
    with publish(shared, 2) as publisher:
        assert untorn.subscribe(shared / "c").snapshot().version == publisher.version == 2


@pytest.mark.parametrize("part", ["control", "data"])
def test_files_that_have_another_name(shared, tmp_path, part):
    for folder in (shared, tmp_path):
        publish(folder).close()
        os.link(folder / f"c.{part}", folder / "another")
    for opener, said in outcomes(shared).items():
        assert "has 2 names (hard links)" in said and "remove the others, or use a directory" in said, opener
    with publish(tmp_path, 2) as publisher:  # a backup, say
        assert untorn.subscribe(tmp_path / "c").snapshot().version == publisher.version == 2


@as_root
def test_one_users_directory_to_root(shared):
    """Root has all permissions, but gets the error too: that user could change what root reads or writes there."""
    shared.chmod(0o755)
    os.chown(shared, NOBODY, NOBODY)
    plant(shared, NOBODY, mode=0o600)
    for opener, said in outcomes(shared).items():
        assert f"belongs to user {NOBODY}, and this is user 0" in said, (opener, said)


@as_root
@pytest.mark.parametrize("user", [0, OTHER])
def test_a_user_who_gives_others_the_right_to_read(shared, user):
    """In its own directory: a reader there has asked for that user's files. Nobody else publishes there."""
    shared.chmod(0o755)
    os.chown(shared, NOBODY, NOBODY)
    plant(shared, NOBODY, mode=0o666)
    for opener, said in outcomes_as(user, shared).items():
        if opener in READERS:
            assert said == "opened"
        else:
            assert f"belongs to user {NOBODY}" in said, (opener, said)
    shared.chmod(0o777)
    assert "belongs to user" in outcomes_as(user, shared)["subscribe"]


@as_root
def test_a_directory_that_is_exchanged_under_the_eyes_of_the_opener(shared, tmp_path, monkeypatch):
    """A file of a directory where others may write, whose path leads to a private directory when that is looked at."""
    plant(shared, NOBODY)
    private = tmp_path / "private"
    private.mkdir(mode=0o755)
    os.chown(private, NOBODY, NOBODY)
    shutil.copy(shared / "c.control", private)
    real, path = os.open, tmp_path / "path"
    path.symlink_to(shared)

    def exchanging(name, flags, *args, **kwargs):
        if flags & os.O_DIRECTORY:
            path.unlink()
            path.symlink_to(private)
        return real(name, flags, *args, **kwargs)

    monkeypatch.setattr(os, "open", exchanging)
    with pytest.raises(PermissionError, match=f"belongs to user {NOBODY}"):
        untorn.subscribe(path / "c")


def test_what_is_refused_is_not_waited_for(tmp_path, monkeypatch):
    publish(tmp_path).close()
    (tmp_path / "c.control").unlink()
    os.mkfifo(tmp_path / "c.control")
    monkeypatch.setattr(time, "sleep", lambda seconds: pytest.fail("it waits"))
    with pytest.raises(FormatError):
        untorn.subscribe(tmp_path / "c", timeout_s=WATCHDOG_S)
