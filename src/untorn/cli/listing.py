"""What a directory has of channels, those that nobody uses and pieces of ones included. Looking changes nothing."""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import signal
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

from untorn.errors import BusyError, FormatError
from untorn.share import storage
from untorn.share.guard import is_there
from untorn.share.inspect import CONTROL_NBYTES, ChannelState, ChannelView, decode_control, default_path, open_file
from untorn.share.storage import Files

__all__ = ["LEFT_OVER", "Found", "Status", "list_channels", "nobody_has_it_open"]

Status = Literal[
    "used", "unused", "control without data", "data without control", "temporary", "stale temporary", "unreadable"
]
#: what no living process uses
LEFT_OVER: frozenset[Status] = frozenset({"unused", "control without data", "data without control", "stale temporary"})
#: names of new files on a file system that has no nameless ones (storage.py)
_TEMPORARY = re.compile(r"\.[A-Za-z0-9_].*\.[0-9]+\.[0-9a-f]{16}\.(control|data)")


@dataclass(frozen=True)
class Found:
    """What a directory has under one channel name.

    Attributes:
        name: the channel's, without its directory; a temporary file's own.
        files: where it is; of a temporary file, twice that.
        status: "used" (a living process publishes or reads it), "unused"; "control without data", "data without
            control": half of one; "temporary": somebody is making one; "stale temporary": nobody is any more;
            "unreadable".
        state: of a channel that could be read.
        problem: why it could not be read.
        file_nbytes: memory, or disk, that its files take.
    """

    name: str
    files: Files
    status: Status
    state: ChannelState | None
    problem: str
    file_nbytes: int


def list_channels(directory: str | os.PathLike[str] | None = None) -> list[Found]:
    """What this user's own directory in /dev/shm, or another directory, has of channels, by name.

    Changes nothing. Other files are passed over. Raises FileNotFoundError or NotADirectoryError for a directory that
    is none, PermissionError for one that is not safe to use or not readable.
    """
    if directory is None:
        if not is_there(default_path()):
            return []
        folder = storage.default_directory()
    else:
        folder = Path(directory)
    names: dict[str, Callable[[], Found]] = {}
    for entry in os.listdir(folder):
        stem, ending = os.path.splitext(entry)
        if _TEMPORARY.fullmatch(entry):
            names[entry] = partial(_look_at_temporary, entry, os.fspath(folder / entry))
        elif ending in (".control", ".data"):
            names[stem] = partial(_look, stem, directory)
    found = []
    for name in sorted(names):
        with contextlib.suppress(ValueError, FileNotFoundError):  # no channel's name; gone meanwhile
            found.append(names[name]())
    return found


def _look(name: str, directory: str | os.PathLike[str] | None) -> Found:
    """Raises FileNotFoundError if there is nothing of that name (any more), ValueError if it is no channel's."""
    files = storage.named(name, directory)
    nbytes = _blocks(files.control) + _blocks(files.data)
    try:
        return _look_at(name, files, nbytes)
    except FileNotFoundError:
        raise
    except OSError as error:
        return Found(name, files, "unreadable", None, str(error), nbytes)


def _look_at(name: str, files: Files, nbytes: int) -> Found:
    has_control, has_data = is_there(files.control), is_there(files.data)
    if not has_control and not has_data:
        raise FileNotFoundError(files.control)
    if not has_control:
        return Found(name, files, "data without control", None, "", nbytes)
    try:
        with ChannelView.open(files) as view:
            state = view.state()
        return Found(name, files, "used" if state.used else "unused", state, "", nbytes)
    except (FormatError, BusyError) as error:
        if _is_half_made(files, has_data=has_data):
            return Found(name, files, "control without data", None, str(error), nbytes)
        return Found(name, files, "unreadable", None, str(error), nbytes)


def _look_at_temporary(name: str, path: str) -> Found:
    files = Files(path, path, path)
    try:
        fd = open_file(path, path)
    except (FormatError, PermissionError) as error:
        return Found(name, files, "unreadable", None, str(error), _blocks(path))
    try:
        status: Status = "stale temporary" if nobody_has_it_open(fd) else "temporary"
    finally:
        os.close(fd)
    return Found(name, files, status, None, "", _blocks(path))


def nobody_has_it_open(fd: int) -> bool:
    """Return whether the kernel says that no process has this file open for writing. A process that makes a channel
    has, from the first moment on. The kernel is asked for a lease, which it gives in that case alone; False where it
    gives none at all."""
    try:
        fcntl.fcntl(fd, fcntl.F_SETSIG, signal.SIGURG)  # which is ignored; the usual one would end this process
        fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_RDLCK)
        fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_UNLCK)
    except OSError:
        return False
    return True


def _is_half_made(files: Files, *, has_data: bool) -> bool:
    """Return whether this really is a control file, and without its data file. Another channel's may be there: the
    publisher was killed when it was about to remove that."""
    try:
        fd = open_file(files.control, files.label)
    except FormatError:
        return False
    try:
        control = decode_control(os.pread(fd, CONTROL_NBYTES, 0), file_nbytes=os.fstat(fd).st_size)
    except FormatError:
        return False
    finally:
        os.close(fd)
    return control.naming or not has_data


def _blocks(path: str) -> int:
    try:
        return os.lstat(path).st_blocks * 512
    except OSError:
        return 0
