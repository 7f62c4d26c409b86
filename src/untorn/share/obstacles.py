"""What stands in a channel's way on its file system, as errors that say what to do about it."""

from __future__ import annotations

import errno
import os

from untorn.errors import CapacityError

__all__ = ["FULL", "explained", "no_space", "unreadable"]

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)

#: what stands in a publisher's way, and what to do about it
_PUBLISHERS = {
    errno.ENOENT: "the directory does not exist; make it first",
    errno.ENOTDIR: "this is not a directory; choose another directory=",
    errno.EACCES: "this user has no right to; run as the user whose channel it is, or choose another directory=",
    errno.EPERM: "the system, or the file system, does not allow it; choose another directory=",
    errno.EROFS: "the file system is read-only; mount it writable, or choose another directory=",
}
#: what stands in a reader's way, and what to do about it
_READERS = {
    errno.EACCES: "this user has no right to; run as the user who publishes it",
    errno.EPERM: "the system does not allow it",
    errno.EROFS: "this file system is read-only; mount it writable here, or copy both files to where it is writable",
}


def explained(error: OSError, label: str, what: str, path: str) -> Exception:
    """The error of a system call, as one that says what it was for and what to do."""
    if error.errno in FULL:
        return CapacityError(
            f"channel {label!r} {what} ({path}): its file system has no room for another file "
            f"({os.strerror(error.errno)}); free some, enlarge it, or use directory= on another"
        )
    obstacle = _PUBLISHERS.get(error.errno or 0, f"{os.strerror(error.errno or 0)}; choose another directory=")
    return OSError(error.errno, f"channel {label!r} {what}: {obstacle}", path)


def unreadable(error: OSError, label: str, path: str) -> OSError:
    """The error for a reader that cannot open one of the files; most are as good as they are."""
    obstacle = _READERS.get(error.errno or 0)
    if obstacle is None:
        return error
    return OSError(
        error.errno,
        f"channel {label!r} cannot be opened: readers note in its control file what they hold, so they must be able to "
        f"write to that file, and to read the data file, and {obstacle}",
        path,
    )


def no_space(fd: int, nbytes: int, what: str, *, number: int = errno.ENOSPC) -> CapacityError:
    """The error for a file system, or with ENOMEM a machine, without room for ``nbytes``."""
    if number == errno.ENOMEM:
        return CapacityError(
            f"{what} needs {nbytes:,} bytes of memory, and this machine has less available (untorn doctor says how "
            "much); free some, let old snapshots go, or use directory= on a disk"
        )
    status = os.fstatvfs(fd)
    free = status.f_bavail * status.f_frsize
    return CapacityError(
        f"{what} needs {nbytes:,} bytes, and its file system has {free:,} free of "
        f"{status.f_blocks * status.f_frsize:,}; free some, enlarge it, or use directory= on another"
    )
