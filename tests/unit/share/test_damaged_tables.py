"""Damaged slot tables and slot headers: a reader gets a value or a FormatError, in bounded memory, and the next
publisher repairs the channel."""

from __future__ import annotations

import contextlib
import os
import signal
import struct
import sys

import numpy as np
import pytest

import untorn
from helpers import start
from untorn.cli.gc import collect
from untorn.errors import ChannelNotFoundError, FormatError
from untorn.share.inspect import ChannelView, files_of, read_text

PAGE = os.sysconf("SC_PAGE_SIZE")
SLOTS_AT = 128
VALUE = {"w": np.arange(1000.0), "n": 5}
WILD = [0, 1, 63, 64, 65, PAGE - 1, PAGE, PAGE + 1, 2**40, 2**40 + 1, 2**63, 2**64 - PAGE, 2**64 - 1]


@pytest.fixture
def folder(tmp_path):
    """A directory with a channel in it, "c", of three versions, that nobody uses."""
    with untorn.publish(VALUE, name="c", directory=tmp_path) as publisher:
        publisher.update(VALUE)
        publisher.update(VALUE)
    return tmp_path


def table(folder) -> tuple[int, list[tuple[int, int]]]:
    """The newest version's slot, and (offset, capacity) of each."""
    page = (folder / "c.control").read_bytes()
    (latest,) = struct.unpack_from("<Q", page, 64)
    return latest & 63, [struct.unpack_from("<QQ", page, SLOTS_AT + 16 * slot) for slot in range(64)]


def put(path, at: int, number: int, form: str = "<Q") -> None:
    with open(path, "r+b") as file:
        file.seek(at)
        file.write(struct.pack(form, number))


def check_good_again(folder) -> None:
    """Publishers find no trouble, and readers see what they publish."""
    reader = None
    for _ in range(2):
        with untorn.publish({"w": np.zeros(10)}, name="c", directory=folder) as publisher:
            reader = reader or untorn.subscribe(folder / "c")
            held = [reader.snapshot()]
            for nbytes in (1000, 5000, 100_000):
                value = np.full(nbytes, publisher.version, np.uint8)
                publisher.update(value)
                held.append(reader.snapshot())
                assert np.array_equal(held[-1].value, value)
            for snapshot in held[1:]:
                assert (snapshot.value == (snapshot.version - 1) % 256).all()


@pytest.mark.parametrize("number", WILD)
@pytest.mark.parametrize("field", ["offset", "capacity"])
def test_the_newest_slots_entry(folder, field, number):
    newest, _ = table(folder)
    put(folder / "c.control", SLOTS_AT + 16 * newest + 8 * (field == "capacity"), number)
    with contextlib.suppress(FormatError):
        assert untorn.subscribe(folder / "c").snapshot().value["n"] == 5
    check_good_again(folder)


@pytest.mark.parametrize("number", [1, 64, PAGE - 1, 2**40, 2**64 - 1])
def test_every_entry(folder, number):
    newest, _ = table(folder)
    for slot in range(64):
        if slot != newest:
            put(folder / "c.control", SLOTS_AT + 16 * slot, slot * PAGE)
            put(folder / "c.control", SLOTS_AT + 16 * slot + 8, number)
    assert untorn.subscribe(folder / "c").snapshot().value["n"] == 5
    check_good_again(folder)


def test_random_entries(folder, rng):
    _, before = table(folder)
    whole = (folder / "c.control").read_bytes(), (folder / "c.data").read_bytes()
    for _ in range(20):
        for name, content in zip(("c.control", "c.data"), whole, strict=True):
            (folder / name).write_bytes(content)
        for slot, entry in enumerate(before):
            for part in range(2):
                if rng.random() < 0.3:
                    near = entry[part] + rng.choice([-PAGE, -64, -1, 1, 64, PAGE])
                    number = rng.choice([near, rng.choice(WILD), rng.randrange(2**64)]) % 2**64
                    put(folder / "c.control", SLOTS_AT + 16 * slot + 8 * part, number)
        with contextlib.suppress(FormatError):
            assert untorn.subscribe(folder / "c").snapshot().value["n"] == 5
        check_good_again(folder)


def test_the_last_version_number(folder):
    newest, _ = table(folder)
    put(folder / "c.control", 64, (2**58 - 1) << 6 | newest)
    with pytest.raises(FormatError, match="after which none comes"):
        untorn.publish(1, name="c", directory=folder)


@pytest.mark.parametrize("at", [0, 8, 16, 24, 32])
def test_a_header_that_changes_after_it_was_checked(folder, at):
    """The reader uses what it checked, whatever the memory says afterwards."""
    newest, extents = table(folder)
    snapshot = untorn.subscribe(folder / "c").snapshot()
    hold = snapshot._held()
    fields = ("version", "nbytes", "schema_nbytes", "schema_id", "published_ns")
    before = [getattr(hold, name) for name in fields]
    put(folder / "c.data", extents[newest][0] + at, 2**62)
    assert [getattr(hold, name) for name in fields] == before
    assert snapshot.value["n"] == 5
    assert snapshot.nbytes == memoryview(hold).nbytes == before[1]


# -- sizes that the file does not have


def sparse(folder, nbytes: int, schema_nbytes: int) -> None:
    """Let the newest version say that it has these sizes, in a file that grows by a hole."""
    newest, extents = table(folder)
    offset = extents[newest][0]
    os.truncate(folder / "c.data", offset + nbytes)
    put(folder / "c.control", SLOTS_AT + 16 * newest + 8, nbytes)
    put(folder / "c.data", offset + 16, nbytes)
    put(folder / "c.data", offset + 24, schema_nbytes)


def _read_sparse(pipe, folder):
    def peak_kib() -> int:
        with open("/proc/self/status") as status:
            return next(int(line.split()[1]) for line in status if line.startswith("VmHWM"))

    before = peak_kib()
    try:
        _ = untorn.subscribe(folder / "c").snapshot().value
    except FormatError as error:
        pipe.put(str(error))
    with pytest.raises(FormatError), ChannelView.open(files_of(f"{folder}/c")) as view:
        view.schema()
    os.unlink(folder / "c.control")
    pipe.put([outcome.removed for outcome in collect(folder)])
    pipe.put(peak_kib() - before)


@pytest.mark.parametrize("end", [b"", b"}"])
def test_a_sparse_file_costs_its_reader_what_it_has(folder, end):
    """Not what its headers say; also where the last byte is one that a schema could end with."""
    nbytes = 3 << 30
    sparse(folder, nbytes, nbytes - 64)
    newest, extents = table(folder)
    if end:
        with open(folder / "c.data", "r+b") as file:
            file.seek(extents[newest][0] + nbytes - len(end))
            file.write(end)
    with start(_read_sparse, folder) as child:
        assert "its schema should be" in child.get()
        assert child.get() == [True], "it begins as a channel's data file does"
        assert child.get() < 64 << 10
        assert child.join() == 0


def test_text_is_read_without_holes(tmp_path):
    with open(tmp_path / "file", "w+b") as file:
        file.write(b"x" * 100_000)
        file.truncate(1 << 40)
        file.flush()
        assert read_text(file.fileno(), 0, 100_000) == b"x" * 100_000
        for offset, nbytes in ((0, 100_001), (0, 1 << 40), (1 << 40, 5), (2**63, 5), (1 << 39, 1 << 39)):
            assert read_text(file.fileno(), offset, nbytes) == b""


# -- halves


def _collect_until(pipe, folder, event: int) -> None:
    """gc, killed before the so-manieth thing that Python asks of the system."""
    seen = 0

    def hook(name: str, _: object) -> None:
        nonlocal seen
        if name.startswith(("os.", "open", "fcntl.", "socket.")):
            seen += 1
            if seen == event:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)
    outcomes = collect(folder)
    pipe.put(([outcome.removed for outcome in outcomes], seen))


@pytest.mark.parametrize("half", ["whole", "data"])
def test_gc_that_is_killed_anywhere_leaves_nothing_that_misleads(tmp_path, half):
    """Neither a channel without a version nor the sizes of gc's own files."""
    event, done = 0, False
    while not done:
        event += 1
        folder = tmp_path / str(event)
        folder.mkdir()
        untorn.publish(VALUE, name="c", directory=folder).close()
        if half == "data":
            os.unlink(folder / "c.control")
        with start(_collect_until, folder, event) as child:
            if child.join() == 0:
                assert os.listdir(folder) == []
                done = True
        with contextlib.suppress(ChannelNotFoundError):
            assert untorn.subscribe(folder / "c").snapshot().value["n"] == 5
        with untorn.publish(VALUE, name="c", directory=folder) as publisher:
            assert publisher._open().max_readers == 256
            assert publisher.version == untorn.subscribe(folder / "c").snapshot().version
        assert [outcome.removed for outcome in collect(folder)] == [True]
        assert os.listdir(folder) == []
    assert event > 5


def test_a_channel_without_a_version_is_none(tmp_path):
    """A killed gc of an older untorn left such channels, with sizes of its own."""
    with untorn.publish(1, name="c", directory=tmp_path, max_readers=1, max_slots=2):
        pass
    put(tmp_path / "c.control", 64, 0)
    for timeout_s in (0, 0.05):
        with pytest.raises(ChannelNotFoundError):
            untorn.subscribe(tmp_path / "c", timeout_s=timeout_s)
    with start(_subscribe, tmp_path) as child:
        with untorn.publish(2, name="c", directory=tmp_path) as publisher:
            assert child.get() == (1, 2)
            assert publisher._open().max_readers == 256
        assert child.join() == 0


def _subscribe(pipe, folder):
    snapshot = untorn.subscribe(folder / "c", timeout_s=60).snapshot()
    pipe.put((snapshot.version, snapshot.value))
