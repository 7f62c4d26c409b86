"""Open the two files of a channel that exists.

Opening two files takes two steps, and between them another channel may have taken over both names. Both files contain
the channel's id, and the core attaches only to two files with the same id, so a process that opened a mixed pair opens
it again. A process that holds the publisher's lock checks the names once more, and then they cannot change::

    reader      open control, open data, attach: same id? ── no: again, for some time ──> FormatError
    publisher   open control, lock, does the name still lead to it? open data, adopt it: same id?

storage.py does the second; both open a file by open_path(), and attach by attach().
"""

from __future__ import annotations

import errno
import os
import time

from untorn import _core
from untorn.descriptors import keep
from untorn.errors import ChannelNotFoundError, FormatError
from untorn.share.guard import check_file, no_file
from untorn.share.near_names import near_names
from untorn.share.storage_errors import (
    MixedError,
    NamingError,
    labelled,
    meaning,
    remedied,
    unreadable,
)

__all__ = [
    "NO_PROC",
    "UNSUPPORTED",
    "attach",
    "checked",
    "error_of",
    "has_proc",
    "not_found",
    "open_channel",
    "open_path",
]

#: the errors of a file system that does not support an operation
UNSUPPORTED = (errno.EOPNOTSUPP, errno.EISDIR, errno.EINVAL, errno.ENOSYS)
#: the errors of a path in /proc when the process is gone, its descriptor is now a pipe, a socket, a directory or a
#: device, or another user's process has the pid
_ANOTHERS = (
    errno.ENOENT, errno.ESRCH, errno.EACCES, errno.EPERM, errno.ENXIO, errno.ENODEV, errno.ENOTDIR, errno.EISDIR,
    errno.ELOOP, errno.EINVAL, errno.ESPIPE, errno.ETXTBSY, errno.EROFS, errno.EBADF, *UNSUPPORTED,
)  # fmt: skip
NO_PROC = "/proc is not mounted here; mount it (in a container: do not hide it)"
#: how often, and for how long, a reader opens a mixed pair again; the first times without waiting; how often it may be
#: exactly the same pair
_MIXED_TRIES, _MIXED_S, _MIXED_AT_ONCE, _MIXED_PAUSE_S, _MIXED_SAME = 200, 1.0, 10, 0.005, 10


def open_channel(
    places: tuple[tuple[str, str], ...], label: str, role: int, *, id: bytes | None = None
) -> _core.Attachment:
    """Attach at the first of its places that has the channel, as a reader or a writer.

    Raises ChannelNotFoundError; PermissionError for a named channel of another user; OSError if it is read-only;
    FormatError for files that are not a channel, or stay halves of different ones.
    """
    reason = ""
    for control, data in places:
        try:
            if control.startswith("/proc/"):
                return _open_descriptors(control, data, label, role, id)
            return _open_named(control, data, label, role, id)
        except (FileNotFoundError, NotADirectoryError) as error:
            reason = reason or _reason(error)
    raise not_found(places, label, reason)


def _reason(error: OSError) -> str:
    """Return why a process's descriptor does not lead to a channel; empty if it does not exist."""
    return "" if error.errno in (None, errno.ENOENT, errno.ENOTDIR) else os.strerror(error.errno or 0)


def not_found(places: tuple[tuple[str, str], ...], label: str, reason: str = "") -> ChannelNotFoundError:
    """Return the error for a channel that was not found at any of these places."""
    where = places[0][0] if places else "nowhere"
    if reason:
        where += f": {reason}"
    elif where.startswith("/proc/") and not has_proc():
        where += f": {NO_PROC}"
    elif places and not os.path.isdir(os.path.dirname(where)):
        where += ", and there is no such directory"
    elif places and not where.startswith("/proc/"):
        where += near_names(where)
    if all(control.startswith("/proc/") for control, _ in places) and has_proc():
        return ChannelNotFoundError(f"no channel {label!r} (looked for {where}); {_fate_of_publisher(places)}")
    return ChannelNotFoundError(
        f"no channel {label!r} (looked for {where}); is its publisher running, as the same user? "
        "subscribe(..., timeout_s=10) waits for it"
    )


def _fate_of_publisher(places: tuple[tuple[str, str], ...]) -> str:
    """Return what is known of the processes that had an anonymous channel open."""
    pids = [control.split("/")[2] for control, _ in places]
    living = [pid for pid in pids if os.path.isdir(f"/proc/{pid}")]
    if not living:
        return f"process {pids[0] if pids else '?'}, which had it open, has ended, and an anonymous channel with it"
    return (
        f"process {living[0]} does not have it open any more: its Publisher was closed, or garbage-collected; keep it "
        "in a variable for as long as others attach"
    )


def _open_named(control: str, data: str, label: str, role: int, id: bytes | None) -> _core.Attachment:
    """Open a channel by its two names. If a successor takes them over in between, the pair is mixed and is opened
    again. If the directory itself contains a mixed pair, that is found unchanged."""
    deadline = time.monotonic() + _MIXED_S
    before, same = None, 0
    for attempt in range(1, _MIXED_TRIES + 1):
        control_fd = _open_for(role, control, os.O_RDWR, label)
        try:
            _copy_up(control_fd, data, label)
            data_fd = _open_for(role, data, os.O_RDWR if role == _core.WRITER else os.O_RDONLY, label)
        except BaseException:
            os.close(control_fd)
            raise
        pair = tuple(os.fstat(fd).st_ino for fd in (control_fd, data_fd)) if attempt > 1 else None
        try:
            return attach(control_fd, data_fd, role, label, id=id)
        except (MixedError, NamingError) as error:
            before, same = pair, same + 1 if pair == before else 0
            stays = same == _MIXED_SAME and isinstance(error, MixedError)
            if stays or attempt == _MIXED_TRIES or time.monotonic() >= deadline:
                raise
        if attempt > _MIXED_AT_ONCE:
            time.sleep(_MIXED_PAUSE_S)
    raise AssertionError("the last attempt returns or raises")


def _open_for(role: int, path: str, flags: int, label: str) -> int:
    try:
        fd = open_path(path, flags)
    except OSError as error:
        raise unreadable(error, label, path) from None
    return checked(fd, path, writing=role != _core.READER)


def _open_descriptors(control: str, data: str, label: str, role: int, id: bytes | None) -> _core.Attachment:
    """Open a channel by descriptors of a process. Since their numbers and the pid may have been reused, raises
    FileNotFoundError for anything that is not the channel with this id."""
    try:
        control_fd = open_path(control, os.O_RDWR)
        try:
            data_fd = open_path(data, os.O_RDWR if role == _core.WRITER else os.O_RDONLY)
        except BaseException:
            os.close(control_fd)
            raise
        return attach(control_fd, data_fd, role, label, id=id)
    except FormatError:
        raise FileNotFoundError from None
    except OSError as error:
        if error.errno in _ANOTHERS:
            raise FileNotFoundError(error.errno, os.strerror(error.errno or 0)) from None
        raise unreadable(error, label, control) from None


def _copy_up(control_fd: int, data: str, label: str) -> None:
    """On overlayfs, copy the data file to the upper layer before it is opened for reading. Otherwise a mapping would
    keep showing the lower layer's file after a publisher opens the file for writing, which copies it: old bytes, and a
    SIGBUS beyond its end. The control file has been copied already, since readers write to it."""
    try:
        copied_when_written = _core.is_overlay(control_fd)
    except OSError as error:
        raise labelled(error, label) from None
    if copied_when_written:
        os.close(_open_for(_core.READER, data, os.O_RDWR, label))


def open_path(path: str, flags: int) -> int:
    """Open one file of a channel. A name in a directory must not be a link; the links in /proc are safe."""
    flags |= os.O_CLOEXEC | os.O_NOCTTY | os.O_NONBLOCK  # the last so that a FIFO of that name does not block
    if path.startswith("/proc/"):
        return keep(os.open(path, flags))
    try:
        return keep(os.open(path, flags | os.O_NOFOLLOW))
    except OSError as error:
        raise no_file(error, path) or remedied(error, path) from None


def checked(fd: int, path: str, *, writing: bool) -> int:
    """Return a descriptor that check_file() trusts; close any other, and raise its error."""
    try:
        check_file(fd, path, writing=writing, given=True)
    except BaseException:
        os.close(fd)
        raise
    return fd


def attach(control_fd: int, data_fd: int, role: int, label: str, *, id: bytes | None = None) -> _core.Attachment:
    """Attach to one channel, and take over both descriptors. Errors of the core become errors that name the channel.

    Raises MixedError if the files belong to two channels, OtherChannelError if they are not the one with that ``id``.
    """
    try:
        return _core.Attachment(control_fd, data_fd, role, id)
    except (_core.StatusError, OSError) as error:
        raise error_of(error, label) from None


def error_of(error: _core.StatusError | OSError, label: str) -> Exception:
    """Return an error of the core as one that names the channel."""
    if isinstance(error, OSError):
        return labelled(error, label)
    if error.args[0] == "format":
        return FormatError(
            f"{label!r} is not an untorn channel: the file does not begin as one does; "
            "remove the file, or choose another name"
        )
    return meaning(error, label)


def has_proc() -> bool:
    """Return whether descriptors can be opened and named by their paths in /proc."""
    return os.path.isdir("/proc/self/fd")
