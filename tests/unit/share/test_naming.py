"""A channel whose files somebody removes, renames, replaces or shortens while it is published."""

from __future__ import annotations

import asyncio
import os
import pickle
import shutil
import struct
import warnings

import numpy as np
import pytest

import untorn
from helpers import WATCHDOG_S, start
from untorn.cli.gc import collect
from untorn.cli.listing import list_channels
from untorn.errors import BrokenChannelError, BusyError, ChannelNotFoundError, FormatError
from untorn.share import naming
from untorn.share.inspect import ChannelView, files_of

REMOVED = "its files were removed"


@pytest.fixture(autouse=True)
def look_each_time(monkeypatch):
    """Let every version look where the names lead; otherwise some do, by the clock."""
    monkeypatch.setattr(naming, "LOOK_INTERVAL_S", -1.0)


@pytest.fixture
def folder(tmp_path):
    return tmp_path


def publish(folder, value, **options):
    return untorn.publish(value, name="c", directory=folder, **options)


def remove(folder, *parts: str) -> None:
    for part in parts or ("data", "control"):
        os.unlink(folder / f"c.{part}")


def found(folder):
    with untorn.subscribe(folder / "c") as reader:
        return reader.snapshot().value


@pytest.mark.parametrize("parts", [("data", "control"), ("control",), ("data",)])
def test_a_channel_whose_files_are_removed_is_found_again(folder, parts):
    publisher = publish(folder, {"n": 0})
    attached = untorn.subscribe(folder / "c")
    handed = pickle.dumps(publisher.subscriber())
    remove(folder, *parts)
    with pytest.warns(RuntimeWarning, match=f"{REMOVED}.*New readers find it again.*enable-linger"):
        publisher.update({"n": 1})
    assert found(folder) == {"n": 1}
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # it is said once
        publisher.update({"n": 2})
        publisher.patch({"n": 3})
        with publisher.edit() as value:
            value["n"] = 4
    for reader in (attached, untorn.subscribe(folder / "c"), pickle.loads(handed), publisher.subscriber()):
        assert reader.snapshot().value == {"n": 4}
        assert (reader.version, reader.publisher_alive()) == (5, True)
    with pytest.raises(BusyError, match="living publisher"):
        publish(folder, 1)
    assert [outcome.removed for outcome in collect(folder)] == [False]
    publisher.close()
    assert os.listdir(folder) == [], "a signpost to nothing is no use"
    assert attached.snapshot().value == {"n": 4}
    with publish(folder, "anew") as publisher:
        assert (publisher.version, found(folder)) == (1, "anew")


def _use(pipe, reader):
    pipe.put(reader.snapshot(newer_than=1, timeout_s=WATCHDOG_S).value)
    pipe.put(untorn.subscribe(reader.name).snapshot().value)


def test_other_processes_go_on_and_find_it(folder):
    with publish(folder, 0) as publisher:
        remove(folder)
        with start(_use, untorn.subscribe(publisher)) as child:
            with pytest.warns(RuntimeWarning, match=REMOVED):
                publisher.update(1)
            assert (child.get(), child.get()) == (1, 1)
            assert child.join() == 0


def test_it_is_shown_as_it_is(folder):
    """By untorn ls, show and top, which look without attaching."""
    with publish(folder, {"n": 0}) as publisher, untorn.subscribe(folder / "c") as reader:
        held = reader.snapshot()
        remove(folder)
        with pytest.warns(RuntimeWarning, match=REMOVED):
            publisher.update({"n": 1})
        with ChannelView.open(files_of(f"{folder}/c")) as view:
            state = view.state()
            assert (state.version, state.publisher, state.publisher_pid) == (2, "alive", os.getpid())
            assert [reader.versions for reader in state.readers] == [(1,)]
            assert view.schema()[0] == 2
        assert [(found.status, found.state.version) for found in list_channels(folder)] == [("used", 2)]
        del held


def test_again_and_again(folder):
    with publish(folder, 0) as publisher:
        for version in range(1, 4):
            remove(folder, *(("data", "control"), ("control",), ("data",))[version - 1])
            with pytest.warns(RuntimeWarning, match=REMOVED) as caught:
                publisher.update(version)
            assert [warning.filename for warning in caught] == [__file__], "it is about the caller's line"
            assert found(folder) == version
        publisher.unlink()
        assert os.listdir(folder) == []
        publisher.update(4)  # its own doing: nothing to be said
        assert os.listdir(folder) == []


def test_by_the_clock(folder, monkeypatch):
    """That the data file lost its name is noticed at once, all else after some time."""
    monkeypatch.setattr(naming, "LOOK_INTERVAL_S", 3600.0)
    with publish(folder, 0) as publisher:
        remove(folder, "control")
        publisher.update(1)
        remove(folder, "data")
        with pytest.warns(RuntimeWarning, match=REMOVED):
            publisher.update(2)
        assert found(folder) == 2


def test_files_that_have_their_names_stay_as_they_are(folder):
    """Some file systems say of every file that it has no name."""
    with publish(folder, 0) as publisher, warnings.catch_warnings():
        warnings.simplefilter("error")
        before = [os.stat(folder / f"c.{part}").st_ino for part in ("control", "data")]
        publisher._versions.name.restore()
        publisher.update(1)
        assert [os.stat(folder / f"c.{part}").st_ino for part in ("control", "data")] == before
        assert found(folder) == 1
        remove(folder)
        with pytest.warns(RuntimeWarning, match=REMOVED):
            publisher.update(2)


def _follow_at_once(pipe, path, count):
    readers = [untorn.subscribe(path) for _ in range(count)]
    pipe.put([reader.snapshot().value for reader in readers])
    pipe.get()


def test_many_find_it_again_at_the_same_time(folder):
    with publish(folder, 0) as publisher:
        remove(folder)
        with pytest.warns(RuntimeWarning, match=REMOVED):
            publisher.update(1)
        children = [start(_follow_at_once, folder / "c", 5) for _ in range(3)]
        for child in children:
            assert child.get() == [1] * 5
        assert len(publisher.readers()) == 3
        for child in children:
            child.put()
            assert child.join() == 0


def test_files_that_are_somewhere_get_their_name_back(folder):
    with publish(folder, 0) as publisher:
        before = os.stat(folder / "c.control").st_ino
        for part in ("control", "data"):
            os.rename(folder / f"c.{part}", folder / f"moved.{part}")
        with pytest.warns(RuntimeWarning, match="It has its name back"):
            publisher.update(1)
        assert os.stat(folder / "c.control").st_ino == before
        assert found(folder) == 1
    assert found(folder) == 1, "and so it outlives its publisher"


def test_a_file_in_place_of_the_data_file_is_left_alone(folder):
    with publish(folder, 0) as publisher:
        (folder / "backup").write_bytes(b"of somebody")
        os.rename(folder / "backup", folder / "c.data")
        for _ in range(2):
            with pytest.raises(BrokenChannelError, match="has lost its data file"):
                publisher.update(1)
        assert (folder / "c.data").read_bytes() == b"of somebody"
        os.unlink(folder / "c.data")
        with pytest.warns(RuntimeWarning, match=REMOVED):
            publisher.update(1)
        assert found(folder) == 1


def test_a_directory_that_is_gone(tmp_path):
    folder = tmp_path / "gone"
    folder.mkdir()
    with publish(folder, 0) as publisher:
        reader = untorn.subscribe(folder / "c")
        shutil.rmtree(folder)
        with pytest.warns(RuntimeWarning, match="New readers cannot find it any more"):
            publisher.update(1)
        publisher.update(2)
        assert reader.snapshot().value == 2


def _publish_as_nobody(pipe, folder):
    os.chmod(folder, 0o700)
    with publish(folder, 0) as publisher:
        os.setresuid(65534, 65534, 65534)
        with pytest.raises(PermissionError):
            os.stat(folder / "c.control")
        pipe.put(publisher.update(1))
        pipe.get()
        with pytest.warns(RuntimeWarning, match="New readers cannot find it any more .*Permission denied"):
            pipe.put(publisher.update(2))
        pipe.put(publisher.update(3))


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
def test_a_publisher_that_may_not_look_there_any_more(folder):
    with start(_publish_as_nobody, folder) as child:
        assert child.get() == 2
        reader = untorn.subscribe(folder / "c")
        remove(folder)
        child.put()
        assert (child.get(), child.get()) == (3, 4)
        assert child.join() == 0
    assert reader.snapshot().value == 3


def test_what_is_durable_cannot_be_without_files(folder):
    with publish(folder, 0, durable=True) as publisher:
        remove(folder)
        for _ in range(2):
            with pytest.raises(BrokenChannelError, match="no longer durable"):
                publisher.update(1)
        assert publisher.version == 1


def test_its_own_unlink_is_no_news(folder):
    with publish(folder, 0) as publisher:
        publisher.unlink()
        with publish(folder, "other") as other:
            publisher.update(1)
            other.update("still other")
            assert found(folder) == "still other"


# -- two publishers


def _publish_another(pipe, folder):
    with publish(folder, "other") as publisher:
        pipe.put(publisher.version)
        pipe.get()
        pipe.put(publisher.update("newer"))
        publisher.unlink()


@pytest.mark.parametrize("clock", [-1.0, 3600.0])
def test_a_second_channel_under_the_name_is_an_error_for_the_first(folder, monkeypatch, clock):
    monkeypatch.setattr(naming, "LOOK_INTERVAL_S", clock)
    publisher = publish(folder, {"n": 0})
    reader = untorn.subscribe(folder / "c")
    remove(folder)
    with start(_publish_another, folder) as child:
        assert child.get() == 1
        for write in (
            lambda: publisher.update({"n": 1}),
            lambda: publisher.patch({"n": 1}),
            lambda: publisher.edit().__enter__(),
        ):
            with pytest.raises(BrokenChannelError, match="has lost its name: its files were removed"):
                write()
        assert (publisher.version, reader.snapshot().value) == (1, {"n": 0})
        assert found(folder) == "other"
        publisher.unlink()
        assert found(folder) == "other", "whose name it is now"
        publisher.close()
        _check_told(reader)
        child.put()
        assert child.get() == 2
        assert child.join() == 0


def _check_told(reader) -> None:
    """Every way to wait says that there is another channel now."""
    said = "another channel has this name now: subscribe again"
    for timeout_s in (None, WATCHDOG_S):
        with pytest.raises(BrokenChannelError, match=said):
            reader.wait(1, timeout_s=timeout_s)
        with pytest.raises(BrokenChannelError, match=said):
            asyncio.run(reader.wait_async(1, timeout_s=timeout_s))
    values = iter(reader)
    next(values)
    with pytest.raises(BrokenChannelError, match=said):
        next(values)

    async def all_of_them():
        return [snapshot.version async for snapshot in reader]

    with pytest.raises(BrokenChannelError, match=said):
        asyncio.run(all_of_them())


def test_a_reader_of_a_channel_that_was_made_anew_is_told(folder):
    publisher = publish(folder, 0)
    reader = untorn.subscribe(folder / "c")
    publisher.unlink()
    publisher.close()
    assert [snapshot.version for snapshot in reader] == [1]
    with publish(folder, 1) as publisher:
        _check_told(reader)
        assert reader.snapshot().value == 0
        publisher.unlink()
    assert [snapshot.version for snapshot in reader] == [1]


def _wait(pipe, folder, timeout_s):
    reader = untorn.subscribe(folder / "c")
    pipe.put(reader.version)
    with pytest.raises(BrokenChannelError, match="subscribe again"):
        reader.wait(1, timeout_s=timeout_s)
    pipe.put(untorn.subscribe(reader.name).snapshot().value)


def test_a_reader_that_waits_is_told(folder):
    publisher = publish(folder, 0)
    with start(_wait, folder, 10 * WATCHDOG_S) as child:
        assert child.get() == 1
        publisher.unlink()
        publisher.close()
        with publish(folder, 1):
            assert child.get() == 1
            assert child.join() == 0


# -- ends


def _publish_and_lose(pipe, folder):
    publisher = publish(folder, 0)
    remove(folder)
    with pytest.warns(RuntimeWarning, match=REMOVED):
        publisher.update(1)
    pipe.put(publisher.version)
    pipe.get()


def test_a_signpost_is_nothing_without_its_publisher(folder):
    with start(_publish_and_lose, folder) as child:
        assert child.get() == 2
        assert found(folder) == 1
        child.kill()
    with pytest.raises(ChannelNotFoundError):
        untorn.subscribe(folder / "c")
    assert sorted(os.listdir(folder)) == ["c.control", "c.data"]
    with publish(folder, "next") as publisher:
        assert (publisher.version, found(folder)) == (1, "next")
        publisher.unlink()


def test_gc_removes_a_signpost_to_nothing(folder):
    with start(_publish_and_lose, folder) as child:
        assert child.get() == 2
        child.kill()
    assert [outcome.removed for outcome in collect(folder)] == [True]
    assert os.listdir(folder) == []


@pytest.mark.parametrize(
    "text",
    [
        b"{}",
        b"[1]",
        b"[" * 400,
        b'{"pid": -1, "control": 0, "data": 0, "id": ""}',
        b'{"pid": 1, "control": 3, "data": 4, "id": "zz"}',
        b'{"pid": 1e999, "control": 3, "data": 4, "id": "00"}',
        b'{"pid": "1/../self", "control": 3, "data": 4, "id": "00"}',
        b'{"pid": null, "control": [], "data": {}, "id": 5}',
    ],
)
def test_a_signpost_that_is_none(folder, text):
    publish(folder, 0).close()
    with open(folder / "c.control", "r+b") as file:
        file.seek(64)
        file.write(struct.pack("<Q", 0))
        file.seek(1152)
        file.write(text)
    with pytest.raises(ChannelNotFoundError):
        untorn.subscribe(folder / "c")


def test_a_forked_child_leaves_the_name_alone(folder):
    publisher = publish(folder, 0)
    remove(folder)
    with pytest.warns(RuntimeWarning, match=REMOVED):
        publisher.update(1)
    child = os.fork()
    if child == 0:
        publisher.close()
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    assert found(folder) == 1
    publisher.close()


# -- a data file that was shortened


@pytest.mark.parametrize("nbytes", [0, 1, 4096, 5000])
def test_a_publisher_whose_data_file_was_shortened(folder, nbytes):
    value = {"a": np.arange(1000.0), "n": 1}
    with publish(folder, value) as publisher:
        reader = untorn.subscribe(folder / "c")
        for _ in range(3):
            publisher.update(value)
        os.truncate(folder / "c.data", nbytes)
        lost = "its newest version is lost, because its data file was shortened"
        with pytest.raises(FormatError, match=lost):
            publisher.patch({"n": 2})
        with pytest.raises(FormatError, match=lost), publisher.edit():
            pass
        assert publisher.version == 4
        assert publisher.update(value) == 5
        for size in (10, 1000, 100_000):
            publisher.update({"a": np.full(size, size), "n": size})
            publisher.patch({"n": 7})
            snapshot = reader.snapshot()
            assert (snapshot.value["a"] == size).all()
            assert snapshot.value["n"] == 7
            assert found(folder)["n"] == 7


def test_versions_that_others_hold_stay_when_the_end_of_the_file_is_cut(folder):
    """The bytes before the cut are unchanged, and are not written again while they are held."""
    with publish(folder, np.full(1000, 1.0), slots=4) as publisher:
        held = publisher.subscriber().snapshot()
        for number in range(2, 6):
            publisher.update(np.full(1000, float(number)))
        first_end = max(offset + capacity for slot, offset, capacity, version, _ in
                        publisher._open().slots() if version == 1)  # fmt: skip
        os.truncate(folder / "c.data", first_end)
        for number in range(6, 20):
            publisher.update(np.full(1000, float(number)))
            assert (found(folder) == number).all()
        assert (held.value == 1.0).all()
