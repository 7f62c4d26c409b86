"""Check that an opened file can be trusted as a channel's: its kind, its owner and its mode, all through descriptors.

A user who owns a channel's file, or may write to it, can change its contents or truncate it under its readers. In a
directory where others may make files, such as /tmp, a file with a channel's name may belong to any user. So:

    the file                                   its directory                       may be used
    mine; only I may write; one name           any                                 yes
    mine, but others may write, or more names  only I (or root) may write          yes: I allowed that
    another user's, who gave others the right  only that user (or root) may write  to read it
    anything else                                                                  no: PermissionError
    not a regular file                                                             no: FormatError
"""

from __future__ import annotations

import errno
import os
import stat

from untorn.errors import FormatError

__all__ = ["check_file", "is_folder", "is_there", "no_file"]

_KINDS = {
    stat.S_IFDIR: "a directory",
    stat.S_IFIFO: "a FIFO",
    stat.S_IFSOCK: "a socket",
    stat.S_IFLNK: "a symbolic link",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}
#: the errors of open() for something that is not a regular file
_OPEN_ERRORS = {
    errno.ELOOP: "a symbolic link",
    errno.EISDIR: "a directory",
    errno.ENXIO: "a socket or a device",
    errno.ENODEV: "a device",
}
_OTHERS_MAY_READ = stat.S_IRGRP | stat.S_IROTH
_OTHERS_MAY_WRITE = stat.S_IWGRP | stat.S_IWOTH


def is_there(path: str) -> bool:
    """Return whether a file of that name exists, even if it is a broken link. Unlike os.path.lexists(), raises OSError
    if that cannot be found out."""
    try:
        os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True


def is_folder(path: str) -> bool:
    """Return whether there is a directory of that name. Unlike os.path.isdir(), raises OSError if that cannot be found
    out."""
    try:
        return stat.S_ISDIR(os.stat(path).st_mode)
    except (FileNotFoundError, NotADirectoryError):
        return False


def no_file(error: OSError, path: str) -> FormatError | None:
    """Return the kind of file that an error of open() stands for; None if the error is about something else."""
    kind = _OPEN_ERRORS.get(error.errno or 0)
    return None if kind is None else _never_is(path, kind)


def check_file(fd: int, path: str, *, writing: bool, given: bool = False) -> None:
    """Raise FormatError or PermissionError unless this file, opened at ``path``, may be used.

    Args:
        fd: the file.
        path: for the message, and to find the directory that it lies in.
        writing: another user's file is never written to.
        given: the file may belong to another user who gave others the right to it, in a directory of that user.
    """
    status, user = os.fstat(fd), os.geteuid()
    if not stat.S_ISREG(status.st_mode):
        raise _never_is(path, _KINDS.get(stat.S_IFMT(status.st_mode), "no file"))
    mine, shared = status.st_uid == user, status.st_mode & _OTHERS_MAY_WRITE or status.st_nlink > 1
    if mine and not shared:
        return
    if mine and _folder_owner(path, status) in (user, 0):
        return
    was_given = given and not writing and not mine and status.st_mode & (_OTHERS_MAY_READ | _OTHERS_MAY_WRITE)
    if was_given and _folder_owner(path, status) in (status.st_uid, 0):
        return
    raise PermissionError(_why_not(path, status, user))


def _why_not(path: str, status: os.stat_result, user: int) -> str:
    if status.st_uid != user:
        return (
            f"{path!r} belongs to user {status.st_uid}, and this is user {user}: the owner of a channel's file can "
            f"change it at any time, so it must be your own; run as user {status.st_uid}, or choose another name or "
            "directory"
        )
    if status.st_nlink > 1:
        found = f"has {status.st_nlink} names (hard links), of which only this one is known"
        remedy = "remove the others"
    else:
        found = f"can be written by other users (its mode is {stat.filemode(status.st_mode)})"
        remedy = "chmod 600 it"
    return (
        f"{path!r} {found}, and lies in a directory where others may make files; {remedy}, or use a directory that "
        f"only user {user} may write to"
    )


def _never_is(path: str, kind: str) -> FormatError:
    return FormatError(f"{path!r} is {kind}, which a channel's file never is; remove it, or choose another name")


def _folder_owner(path: str, status: os.stat_result) -> int | None:
    """Return the owner of the directory that has this file under this name; None if others may write there too."""
    try:
        folder = os.open(os.path.dirname(path) or ".", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        found = os.fstat(folder)
        there = os.stat(os.path.basename(path), dir_fd=folder, follow_symlinks=False)
    except OSError:
        return None
    finally:
        os.close(folder)
    private = not found.st_mode & _OTHERS_MAY_WRITE and os.path.samestat(there, status)
    return found.st_uid if private else None
