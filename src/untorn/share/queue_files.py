"""The file of a queue: a memfd, or ``NAME.queue`` in a directory.

A file gets its name when it is complete, with one system call, so a name always leads to a whole queue. Its byte 0 is
the lock of its name: a process that removes a name holds it, and then looks once more where the name leads.

A queue that was closed and has no process any more has ended. The next process that asks for its name removes it, and
makes a new one. One that was not closed keeps its items for the next process, although all of its processes died.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import struct
import weakref
from collections.abc import Iterator
from typing import NamedTuple

from untorn import _core
from untorn.descriptors import keep
from untorn.errors import CapacityError, ChannelNotFoundError, FormatError, UntornError
from untorn.share import opening, places, storage
from untorn.share.guard import check_file
from untorn.share.places import Files
from untorn.share.storage_errors import FULL, explained, labelled, no_space

__all__ = [
    "QueueAddress",
    "QueueSizes",
    "attached_to",
    "check_range",
    "drop_lonely",
    "forget",
    "keep_attached",
    "look",
    "make",
    "meaning",
    "named",
    "remove_unused",
    "unlink",
]

_FLOCK = struct.Struct("hhqqi4x")
#: how the file of a queue begins, in the layout that this untorn reads
_BEGINNING = struct.pack("<8sII", b"utqueue\n", _core.QUEUE_LAYOUT, 0x01020304)
#: where the head of a queue's file says that it is closed, and how many rows it has
_CLOSED_AT, _MAX_PROCESSES_AT = 340, 48
#: how many queues stay attached for the next task of a pool
_MAX_KEPT = 8

_MEANINGS: dict[str, tuple[type[UntornError], str]] = {
    "format": (
        FormatError,
        " is damaged, or is not a queue: the file has bytes that no untorn writes; remove it, or choose another name",
    ),
    "layout": (
        FormatError,
        f" has another layout than version {_core.QUEUE_LAYOUT}, which this untorn reads; use the untorn that wrote "
        "it, or remove the file",
    ),
    "boot": (
        FormatError,
        " is from before this machine was started again, and so perhaps incomplete; remove the file, or choose another "
        "name",
    ),
    "other": (ChannelNotFoundError, " is gone; there is another one in its place"),
    "no_row": (
        CapacityError,
        " has as many processes as it may; close it in some, or make it with a larger max_processes",
    ),
    "not_owned": (
        UntornError,
        ": this was begun before this process was forked, and belongs to the parent; begin again here",
    ),
}


class QueueSizes(NamedTuple):
    """The sizes of a queue, which never change."""

    max_processes: int
    capacity: int
    nbytes: int


def check_range(name: str, value: int, least: int, most: int) -> None:
    """Raise TypeError or ValueError unless this is an int in the range."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name}: expected an int, found {type(value).__name__}")
    if not least <= value <= most:
        raise ValueError(f"{name}: expected {least:,} to {most:,}, found {value:,}")


class QueueAddress(NamedTuple):
    """The address of a queue: its identity, and the paths to try, in order."""

    id: bytes
    places: tuple[str, ...]
    label: str

    def here(self, core: _core.Queue) -> QueueAddress:
        """Return the same address, with this process's own descriptor as the first path to try."""
        own = f"/proc/{os.getpid()}/fd/{core.fd}"
        processes = [place for place in self.places if place.startswith("/proc/") and place != own]
        files = [place for place in self.places if not place.startswith("/proc/")]  # these last longest
        return self._replace(places=(own, *processes[:2], *files))


def meaning(error: _core.StatusError, label: str) -> UntornError:
    """Return the error for a status of the core."""
    kind, text = _MEANINGS.get(error.args[0], (UntornError, f": the core failed ({error.args[0]})"))
    return kind(f"queue {label!r}{text}")


def look(core: _core.Queue, label: str) -> tuple[int, bool]:
    """Return the number of items that wait, and whether the queue is closed."""
    try:
        return core.look()
    except _core.StatusError as error:
        raise meaning(error, label) from None


def named(name: str, directory: str | os.PathLike[str] | None) -> Files:
    """Return the file of the queue of that name. Raises ValueError if the name is not valid."""
    files = places.named(name, directory)
    path = files.control.removesuffix(".control") + ".queue"
    return Files(path, path, files.label, "queue")


# -- making


def make(sizes: QueueSizes, files: Files | None) -> _core.Queue:
    """Make an anonymous queue, or open or make the one of that name."""
    if files is None:
        core = _attach(_anonymous(sizes), "anonymous")
        fcntl.fcntl(core.fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK)
        return core
    while True:
        found = _opened(files) or _made(sizes, files)
        if found is not None and files.is_same_file(found.fd):
            return found


def _anonymous(sizes: QueueSizes) -> int:
    try:
        fd = keep(os.memfd_create("untorn-queue", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING))
    except OSError as error:
        raise labelled(error, "anonymous") from None
    return _laid_out(fd, sizes)


def _laid_out(fd: int, sizes: QueueSizes) -> int:
    """Lay out a queue in an empty file, and return the file; close it after an error."""
    try:
        _core.format_queue(fd, os.urandom(16), *sizes)
    except BaseException as error:
        try:
            raise _unmade(fd, sizes, error) from None
        finally:
            os.close(fd)
    return fd


def _unmade(fd: int, sizes: QueueSizes, error: BaseException) -> BaseException:
    what = "a new queue"
    number = error.errno if isinstance(error, OSError) else 0
    if isinstance(error, _core.StatusError):
        number = error.args[1] if error.args[0] == "no_space" else 0
        if error.args[0] == "too_large":
            return CapacityError(
                f"{what} of {sizes.capacity:,} items of up to {sizes.nbytes:,} bytes needs more address space than a "
                "file can have here, since each item has some of its own; use a smaller capacity or nbytes"
            )
    if number in FULL:
        return no_space(fd, os.fstat(fd).st_size, what, number=number or 0)
    return error


def _made(sizes: QueueSizes, files: Files) -> _core.Queue | None:
    """Make the queue of that name; None if another process was faster."""
    try:
        fd = _laid_out(storage.new_file(files, "queue"), sizes)
        core = _attach(fd, files.label)  # it owns the descriptor
        try:
            storage.give_name(files, core.fd, files.control)
        except FileExistsError:
            return None
        return core
    finally:
        storage.forget_temporary(files)


def _opened(files: Files) -> _core.Queue | None:
    """Open the queue of that name; None if there is none, or only one that has ended, which is removed."""
    try:
        fd = _open(files)
    except FileNotFoundError:
        return None
    try:
        ended = _has_ended(fd)
        if ended:
            with _name_lock(fd):
                if files.is_same_file(fd):
                    os.unlink(files.control)
    except BaseException:
        os.close(fd)
        raise
    if ended:
        os.close(fd)
        return None
    return _attach(fd, files.label)


def _open(files: Files) -> int:
    path = files.control
    if path.startswith("/proc/"):
        return opening.open_path(path, os.O_RDWR)
    try:
        fd = opening.open_path(path, os.O_RDWR)
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise explained(error, files.title, "cannot be opened for reading and writing", path) from None
        raise
    try:
        check_file(fd, path, writing=True)
    except BaseException:
        os.close(fd)
        raise
    return fd


def _attach(fd: int, label: str, id: bytes | None = None) -> _core.Queue:
    try:
        return _core.Queue(fd, id)
    except _core.StatusError as error:
        raise meaning(error, label) from None
    except OSError as error:
        if error.errno == errno.ENOMEM:
            raise CapacityError(
                f"queue {label!r} cannot be mapped ({os.strerror(error.errno)}); see this process's limits (ulimit -v, "
                "vm.max_map_count)"
            ) from None
        raise labelled(error, label) from None


def _has_ended(fd: int) -> bool:
    """Return whether a queue of this layout is closed and no process has it."""
    head = os.pread(fd, _CLOSED_AT + 4, 0)
    if len(head) < _CLOSED_AT + 4 or head[: len(_BEGINNING)] != _BEGINNING:
        return False
    if not int.from_bytes(head[_CLOSED_AT:], "little"):
        return False
    return _is_unused(fd, int.from_bytes(head[_MAX_PROCESSES_AT : _MAX_PROCESSES_AT + 4], "little"))


def _is_unused(fd: int, rows: int) -> bool:
    """Return whether no living process has one of these rows."""
    asked = _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, 1, rows, 0)
    kind, *_ = _FLOCK.unpack(fcntl.fcntl(fd, fcntl.F_OFD_GETLK, asked))
    return bool(kind == fcntl.F_UNLCK)


@contextlib.contextmanager
def _name_lock(fd: int) -> Iterator[None]:
    """Hold the lock of a queue's name for the block, in which nothing blocks."""
    lock = (os.SEEK_SET, 0, 1, 0)
    fcntl.fcntl(fd, fcntl.F_OFD_SETLKW, _FLOCK.pack(fcntl.F_WRLCK, *lock))
    try:
        yield
    finally:
        fcntl.fcntl(fd, fcntl.F_OFD_SETLK, _FLOCK.pack(fcntl.F_UNLCK, *lock))


def unlink(files: Files, core: _core.Queue) -> None:
    """Remove the queue's name, if it still leads to it. Processes that have it open keep it."""
    with _name_lock(core.fd):
        if files.is_same_file(core.fd):
            os.unlink(files.control)


def remove_unused(files: Files) -> str:
    """Remove the name of a queue that no living process has open. Returns an empty string, or why it was kept."""
    fd = _open(files)
    try:
        rows = int.from_bytes(os.pread(fd, 4, _MAX_PROCESSES_AT), "little")
        with _name_lock(fd):
            if not _is_unused(fd, rows):
                return "in use by a process that has just come"
            if files.is_same_file(fd):
                os.unlink(files.control)
    finally:
        os.close(fd)
    return ""


# -- what this process has attached

_attached: weakref.WeakValueDictionary[bytes, _Kept] = weakref.WeakValueDictionary()
#: queues of unpickled objects, the most recent last; without these, a pool's task would attach again each time
_kept: dict[bytes, _Kept] = {}


class _Kept:
    """A queue that is attached, and the names in directories that lead to it."""

    def __init__(self, core: _core.Queue, address: QueueAddress) -> None:
        self.core = core
        self.address = address

    def is_lonely(self) -> bool:
        """Return whether no other process has the queue, and no name leads to it."""
        with contextlib.suppress(OSError, _core.StatusError):
            names = (place for place in self.address.places if not place.startswith("/proc/"))
            if any(Files(name, name, "").is_same_file(self.core.fd) for name in names):
                return False
            return all(row == self.core.row for row, *_ in self.core.rows())
        return False


def attached_to(address: QueueAddress) -> _core.Queue:
    """Return this process's side of the queue at an address. Raises ChannelNotFoundError, or the error of opening."""
    known = _attached.get(address.id)
    if known is not None and known.core.fd >= 0:
        return known.core
    refused = ""
    for place in address.places:
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            try:
                return _attach(_open(Files(place, place, address.label, "queue")), address.label, address.id)
            except (OSError, FormatError) as error:
                # a process's descriptor may be another file by now
                if not place.startswith("/proc/") or isinstance(error, CapacityError):
                    raise
                if isinstance(error, PermissionError):
                    refused = f", and only for the user of the process that has it (this is user {os.geteuid()})"
    raise ChannelNotFoundError(
        f"no queue {address.label!r} (looked for {', '.join(address.places)}); an anonymous queue is there until the "
        f"last process that has it open ends{refused}"
    )


def keep_attached(core: _core.Queue, address: QueueAddress) -> None:
    """Keep this queue for the next task; drop those that nobody else has, and the oldest if there are too many."""
    known = _attached.get(address.id)
    if known is None or known.core is not core:
        known = _attached[address.id] = _Kept(core, address)
    _kept.pop(address.id, None)
    _kept[address.id] = known
    for id in list(_kept)[:-_MAX_KEPT]:
        _kept.pop(id, None)
    drop_lonely(spared=address.id)


def forget(id: bytes) -> None:
    """No longer keep this queue for the next task."""
    _kept.pop(id, None)


def drop_lonely(spared: bytes = b"") -> None:
    """Of the queues kept for the next task, close those that no other process has and no name leads to."""
    for id, kept in list(_kept.items()):
        if id != spared and kept.is_lonely():
            _kept.pop(id, None)
