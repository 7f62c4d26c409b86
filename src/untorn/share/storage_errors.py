"""Turn the errno of a system call, or a status of the core, into an error that says what to do.

The rule: CapacityError if there is not enough of something, another error of untorn if the channel is at fault, and
otherwise OSError with the true cause.
"""

from __future__ import annotations

import errno
import os

from untorn import _core
from untorn.errors import BusyError, CapacityError, ChannelNotFoundError, ClosedError, FormatError, UntornError

__all__ = [
    "FULL",
    "MixedError",
    "NamingError",
    "OtherChannelError",
    "explained",
    "labelled",
    "meaning",
    "no_space",
    "remedied",
    "shortage",
    "unmappable",
    "unreadable",
]

#: there is not enough of something: disk, quota, memory, or the size that a file may have
FULL = (errno.ENOSPC, errno.EDQUOT, errno.ENOMEM, errno.EFBIG)


class MixedError(FormatError):
    """The control file and the data file belong to different channels; the opener decides what to do."""


class NamingError(ChannelNotFoundError):
    """The same, while the channel is being given its names and does not exist yet."""


class OtherChannelError(ChannelNotFoundError):
    """The file belongs to another channel than the requested one."""


#: the meaning of the core's statuses, unless a caller knows better
_MEANINGS: dict[str, tuple[type[UntornError], str]] = {
    "format": (FormatError, ": its newest version is damaged; publish again, or remove its files"),
    "data": (
        FormatError,
        ": its data file is damaged, or not a channel's: it does not begin as one does; remove both of its files, or "
        "choose another name",
    ),
    "mixed": (
        MixedError,
        ": its control file and its data file belong to two different channels; unless it is being made or removed "
        "just now, one of them was copied or replaced by hand: put the right one back, or remove both",
    ),
    "naming": (NamingError, " is being given its names just now, or that was cut short"),
    "other": (OtherChannelError, " is gone; there is another one in its place"),
    "layout": (
        FormatError,
        f" has another layout than version {_core.LAYOUT}, which this untorn reads; use the untorn that wrote it, or "
        "remove the file",
    ),
    "busy": (
        BusyError,
        " has a living publisher already; a channel has one publisher at a time: close that one, or choose another "
        "name",
    ),
    "no_row": (
        CapacityError,
        " has no reader row left: every one is taken by a living process; close some subscribers, or publish with a "
        "larger max_readers",
    ),
    "no_slot": (CapacityError, " has no free slot: all are held; let old snapshots go, or use a larger max_slots"),
    "no_space": (CapacityError, ": there is no room for another version"),
    "forked": (
        ClosedError,
        ": this process was forked from its publisher, and only the parent may publish; here use "
        "publisher.subscriber()",
    ),
}

#: problems with this process's descriptors, and what to do about them
_DESCRIPTORS = {
    errno.EMFILE: "this process has as many files open as it may; close some, or raise its limit (ulimit -n)",
    errno.ENFILE: "this machine has as many files open as it may; close some, or raise its limit (fs.file-max)",
    errno.EBADF: "something in this process closed the channel's descriptors, or gave their numbers to other files "
    "(os.closerange, os.dup2, a daemoniser); attach or publish after that",
}
#: problems of a publisher, and what to do about them
_PUBLISHERS = {
    errno.ENOENT: "the directory does not exist; make it first",
    errno.ENOTDIR: "this is not a directory; choose another directory=",
    errno.EACCES: "this user has no right to; run as the user whose files these are, or choose another directory=",
    errno.EPERM: "the system, or the file system, does not allow it; choose another directory=",
    errno.EROFS: "the file system is read-only; mount it writable, or choose another directory=",
    errno.ENOLCK: "the kernel gives no locks on this file system; choose another directory=",
}
#: problems of a reader, and what to do about them
_READERS = {
    errno.EACCES: "this user has no right to; run as the user who publishes it",
    errno.EPERM: "the system does not allow it",
    errno.EROFS: "this file system is read-only; mount it writable here, or copy both files to where it is writable",
}


def meaning(error: _core.StatusError, label: str) -> UntornError:
    """Return the error for a status of the core."""
    kind, text = _MEANINGS.get(error.args[0], (UntornError, f": the core failed ({error.args[0]})"))
    return kind(f"channel {label!r}{text}")


def shortage(error: _core.StatusError | OSError) -> str:
    """Return the system's text for a lack of some resource; empty if the error is about something else."""
    number = error.errno if isinstance(error, OSError) else error.args[1] if error.args[0] == "no_space" else 0
    return os.strerror(number) if number in FULL else ""


def labelled(error: OSError, label: str) -> OSError:
    """Return the same error with the channel's name and, if known, what to do."""
    number = error.errno or 0
    remedy = _DESCRIPTORS.get(number)
    return OSError(number, f"{os.strerror(number)}: {remedy}" if remedy else os.strerror(number), label)


def remedied(error: OSError, path: str) -> OSError:
    """Return the same error, with what to do if it is about this process's descriptors."""
    return labelled(error, path) if error.errno in _DESCRIPTORS else error


def explained(error: OSError, title: str, what: str, path: str) -> Exception:
    """Return the error of a system call as one that says what it was for and what to do.

    Args:
        title: the channel or queue, as ``Files.title``.
        what: what cannot be done.
        path: the file or directory.
    """
    if error.errno == errno.ENOMEM:
        return CapacityError(f"{title} {what} ({path}): {os.strerror(error.errno)}; free some memory")
    if error.errno in FULL:
        return CapacityError(
            f"{title} {what} ({path}): its file system has no room for another file "
            f"({os.strerror(error.errno)}); free some, enlarge it, or use directory= on another"
        )
    number = error.errno or 0
    obstacle = _DESCRIPTORS.get(number) or _PUBLISHERS.get(
        number, f"{os.strerror(error.errno or 0)}; choose another directory="
    )
    return OSError(error.errno, f"{title} {what}: {obstacle}", path)


def unreadable(error: OSError, label: str, path: str) -> OSError:
    """Return the error for a reader that cannot open one of the files; most stay unchanged."""
    obstacle = _READERS.get(error.errno or 0)
    if obstacle is None:
        return remedied(error, path)
    return OSError(
        error.errno,
        f"channel {label!r} cannot be opened: readers note in its control file what they hold, so they must be able to "
        f"write to that file, and to read the data file, and {obstacle}",
        path,
    )


def unmappable(nbytes: int, what: str, number: int) -> CapacityError:
    """Return the error for a process that cannot map ``nbytes`` more."""
    return CapacityError(
        f"{what} needs {nbytes:,} bytes of address space, and this process cannot map them ({os.strerror(number)}); "
        "see its limits (ulimit -v, vm.max_map_count), or let old snapshots go"
    )


def no_space(fd: int, nbytes: int, what: str, *, number: int = errno.ENOSPC) -> CapacityError:
    """Return the error for a file system, or with ENOMEM a machine, that has no room for ``nbytes``."""
    if number == errno.ENOMEM:
        return CapacityError(
            f"{what} needs {nbytes:,} bytes of memory, and this machine has less available (untorn doctor says how "
            "much); free some, let old snapshots go, or use directory= on a disk"
        )
    if number == errno.EFBIG:
        return CapacityError(
            f"{what} needs {nbytes:,} bytes, and its file may not become so large ({os.strerror(number)}): raise the "
            "limit on the size of files (ulimit -f), or use directory= on another file system"
        )
    status = os.fstatvfs(fd)
    free = status.f_bavail * status.f_frsize
    return CapacityError(
        f"{what} needs {nbytes:,} bytes, and its file system has {free:,} free of "
        f"{status.f_blocks * status.f_frsize:,}; free some, enlarge it, or use directory= on another"
    )
