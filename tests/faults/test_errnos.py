"""A failing system call raises an error with its true cause: "no room" if there is no room, "another publisher" if
there is one, and the system's own message otherwise. A lock whose state is unknown is no proof of a death.

Each test runs in its own process, whose C library fails on request (errnos.c).
"""

from __future__ import annotations

import ctypes
import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import untorn
from untorn.errors import CapacityError, ChannelNotFoundError

HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    """Build the library with the failing calls of the C library."""
    made = tmp_path_factory.mktemp("errnos") / "errnos.so"
    compiler = os.environ.get("CC", "gcc")
    command = [compiler, "-shared", "-fPIC", "-O1", "-Wall", "-Werror", "-o", made, HERE / "errnos.c", "-ldl"]
    subprocess.run([os.fspath(part) for part in command], check=True, timeout=60)
    return made


@pytest.fixture
def under(library, tmp_path):
    """Run a function of this module in a process whose system calls can fail; an assertion there fails here."""

    def run(function, *arguments):
        program = f"import sys; sys.path[:0] = {[str(HERE), str(HERE.parent)]!r}; import test_errnos; "
        program += f"test_errnos.{function.__name__}(*{(str(tmp_path), *arguments)!r})"
        done = subprocess.run(
            [sys.executable, "-W", "error", "-c", program],
            env=os.environ | {"LD_PRELOAD": os.fspath(library)},
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"

    return run


class Failing:
    """Let a system call fail inside the block, and check that at least one has."""

    def __init__(self, call: str, number: int, *, skip: int = 0, times: int = -1, raises: int = 0) -> None:
        self.plan = ctypes.CDLL(None).errno_plan
        self.arguments = (call.encode(), number, skip, times, raises)

    def __enter__(self):
        self.plan(*self.arguments)
        return self

    def __exit__(self, *_):
        assert self.plan(b"", 0, 0, 0, 0) > 0, f"{self.arguments} never came to pass"


def expect(kind, number, action):
    """Check that the error has exactly this class, and that it names its cause, by errno or in words."""
    with pytest.raises(kind) as caught:
        action()
    assert type(caught.value) is kind
    assert number in (0, getattr(caught.value, "errno", None)) or os.strerror(number) in str(caught.value)


def kind_of(number: int) -> type[Exception]:
    """Return the error for a shortage, or the one for any other failure."""
    lack = number in (errno.ENOSPC, errno.EDQUOT, errno.ENOMEM, errno.EFBIG)
    return CapacityError if lack else type(OSError(number, ""))


def space(folder: str, number: int) -> None:
    """There is no channel, or no next version; the existing one is kept, and nothing of the failed one is left."""
    number_in_words = 0 if number in (errno.ENOSPC, errno.EDQUOT, errno.ENOMEM) else number
    for skip in (0, 1):
        with Failing("fallocate", number, skip=skip):
            expect(kind_of(number), number_in_words, lambda: untorn.publish("x", name="c", directory=folder))
        assert os.listdir(folder) == []
    with untorn.publish("x", name="c", directory=folder) as publisher:
        with Failing("fallocate", number):
            expect(kind_of(number), number_in_words, lambda: publisher.update("y" * 100_000))
            expect(kind_of(number), number_in_words, lambda: publisher.patch({"": "y" * 100_000}))
        assert untorn.subscribe(f"{folder}/c").snapshot().value == "x"
        assert publisher.update("y" * 100_000) == 2
        publisher.unlink()


@pytest.mark.parametrize("number", ["ENOSPC", "EDQUOT", "ENOMEM", "EFBIG", "EIO", "EPERM", "EBADF", "ENODEV"])
def test_only_a_lack_of_room_is_no_room(under, number):
    under(space, getattr(errno, number))


def interrupted(folder: str) -> None:
    with Failing("fallocate", errno.EINTR, times=3):
        publisher = untorn.publish("x", name="c", directory=folder)
    with Failing("fallocate", errno.EINTR, times=40):
        publisher.update("y" * 1_000_000)
    assert untorn.subscribe(f"{folder}/c").snapshot().value == "y" * 1_000_000
    caught = []

    def handler(*_):
        caught.append(len(caught))
        if len(caught) == 3:
            raise KeyboardInterrupt

    signal.signal(signal.SIGUSR1, handler)
    with Failing("fallocate", errno.EINTR, raises=signal.SIGUSR1):
        try:
            publisher.update("z" * 3_000_000)
        except KeyboardInterrupt:
            caught.append("out")
    assert caught == [0, 1, 2, "out"], caught
    assert publisher.update("z" * 3_000_000) == 3
    publisher.unlink()
    publisher.close()


def test_a_reservation_that_a_signal_interrupts_goes_on(under):
    """Signal handlers run in between, and an exception from one is raised."""
    under(interrupted)


def locks(folder: str) -> None:
    """A lock that fails does not mean a living publisher, nor a lack of rows."""
    failure = type(OSError(errno.ENOLCK, ""))
    with Failing("setlk", errno.ENOLCK):
        expect(failure, errno.ENOLCK, lambda: untorn.publish("x", name="c", directory=folder))
    assert os.listdir(folder) == []
    publisher = untorn.publish("x", name="c", directory=folder)
    with Failing("setlk", errno.ENOLCK):
        expect(failure, errno.ENOLCK, lambda: untorn.subscribe(f"{folder}/c"))
    with Failing("setlk", errno.EINTR, times=3):
        reader = untorn.subscribe(f"{folder}/c")
    with Failing("getlk", errno.ENOLCK):
        expect(failure, errno.ENOLCK, reader.publisher_alive)
        expect(failure, errno.ENOLCK, lambda: reader.wait(1))
        expect(failure, errno.ENOLCK, publisher.readers)
    assert [info.versions for info in publisher.readers()] == [()]
    publisher.close()
    with Failing("setlk", errno.ENOLCK):
        expect(failure, errno.ENOLCK, lambda: untorn.publish("y", name="c", directory=folder))
    with untorn.publish("y", name="c", directory=folder) as publisher:
        assert reader.snapshot().value == "y"
        publisher.unlink()


def test_a_lock_that_fails_is_no_living_process(under):
    under(locks)


def handed_over(folder: str) -> None:
    """A channel that was passed on still exists if it cannot be opened, locked or mapped at the moment."""
    publisher = untorn.publish("x")
    for call, number in (("open", errno.EIO), ("open", errno.ENOMEM), ("setlk", errno.ENOLCK), ("mmap", errno.ENOMEM)):
        with Failing(call, number):
            expect(type(OSError(number, "")), number, publisher.subscriber().snapshot)
    for number in (errno.ENXIO, errno.EACCES):  # the target of such a path when another file has the number
        with Failing("open", number):
            expect(ChannelNotFoundError, 0, publisher.subscriber().snapshot)
    assert publisher.subscriber().snapshot().value == "x"
    publisher.close()


def test_a_channel_that_was_handed_over_says_why_it_cannot_be_opened(under):
    under(handed_over)


def async_wait(folder: str) -> None:
    import asyncio

    with untorn.publish("x", name="c", directory=folder) as publisher:
        reader = untorn.subscribe(f"{folder}/c")
        with Failing("getlk", errno.ENOLCK, skip=3):
            expect(type(OSError(errno.ENOLCK, "")), errno.ENOLCK, lambda: asyncio.run(reader.wait_async(1)))
        publisher.unlink()


def test_the_thread_that_waits_for_coroutines_survives_a_lock_that_fails(under):
    under(async_wait)


def held(folder: str) -> None:
    """A reader whose state is unknown keeps its versions when others reclaim and when gc runs."""
    from untorn.cli.gc import collect

    with untorn.publish(1, name="c", directory=folder, slots=1, max_slots=2) as publisher:
        reader = untorn.subscribe(f"{folder}/c")
        kept = [reader.snapshot()]
        publisher.update(2)
        kept.append(reader.snapshot())
        with Failing("setlk", errno.ENOLCK):
            expect(CapacityError, 0, lambda: publisher.update(3, timeout_s=0))
        assert [snapshot.value for snapshot in kept] == [1, 2]
    with Failing("getlk", errno.ENOLCK):
        assert [outcome.removed for outcome in collect(folder)] == [False]
    with Failing("getlk", errno.ENOLCK, skip=1):
        assert [outcome.removed for outcome in collect(folder)] == [False]
    assert [snapshot.value for snapshot in kept] == [1, 2]
    del reader, kept
    with Failing("setlk", errno.ENOLCK):
        assert [outcome.removed for outcome in collect(folder)] == [False]
    assert sorted(os.listdir(folder)) == ["c.control", "c.data"]
    assert [outcome.removed for outcome in collect(folder)] == [True]


def test_a_reader_that_nobody_could_ask_about_is_not_dead(under):
    under(held)


def writing(folder: str) -> None:
    """The control file of a new channel cannot be written, or a mapping fails."""
    with Failing("pwrite", errno.EIO):
        expect(OSError, errno.EIO, lambda: untorn.publish("x", name="c", directory=folder))
    for number, kind in ((errno.EIO, OSError), (errno.ENOMEM, CapacityError)):
        with Failing("mmap", number, skip=2):  # the two mappings of the control file succeed
            expect(kind, 0 if kind is CapacityError else number, lambda: _publish(folder))
        for skip in (0, 1):
            with Failing("mmap", number, skip=skip, times=1):
                expect(OSError, number, lambda: _publish(folder))
        assert os.listdir(folder) == []
    with _publish(folder) as publisher:
        with Failing("mmap", errno.ENOMEM, skip=2):
            expect(OSError, errno.ENOMEM, lambda: untorn.subscribe(f"{folder}/c").snapshot())
        assert untorn.subscribe(f"{folder}/c").snapshot().value == "x"
        publisher.unlink()


def _publish(folder: str):
    return untorn.publish("x", name="c", directory=folder)


def test_what_cannot_be_written_or_mapped_says_why(under):
    under(writing)
