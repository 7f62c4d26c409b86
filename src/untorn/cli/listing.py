"""List the channels of a directory, including unused ones and parts of channels, without changing anything."""

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

from untorn.errors import BusyError, ChannelNotFoundError, FormatError
from untorn.share.lowlevel import (
    CONTROL_NBYTES,
    ChannelState,
    ChannelView,
    Files,
    decode_control,
    default_directory,
    default_path,
    files_of,
    is_there,
    named,
    open_file,
)

__all__ = ["UNUSED", "Found", "Status", "blocks", "find_channel", "is_open_nowhere", "list_channels"]

Status = Literal[
    "used", "unused", "control without data", "data without control", "temporary", "stale temporary", "unreadable"
]
#: the statuses of channels that no living process uses
UNUSED: frozenset[Status] = frozenset({"unused", "control without data", "data without control", "stale temporary"})
#: temporary names of new files on a file system without nameless files (storage.py)
_TEMPORARY = re.compile(r"\.[A-Za-z0-9_].*\.[0-9]+\.[0-9a-f]{16}\.(control|data)")


@dataclass(frozen=True)
class Found:
    """A channel, or a part of one, in a directory.

    Attributes:
        name: the channel's name without its directory, or a temporary file's own name.
        files: its files; for a temporary file, both are that file.
        status: "used" if a living process publishes or reads it, otherwise "unused"; "control without data" or "data
            without control" for half of one; "temporary" while a process creates one, "stale temporary" if that process
            is gone; "unreadable" for anything else.
        state: the channel's state, if it could be read.
        problem: why it could not be read.
        file_nbytes: the memory, or disk space, of its files.
    """

    name: str
    files: Files
    status: Status
    state: ChannelState | None
    problem: str
    file_nbytes: int


def list_channels(directory: str | os.PathLike[str] | None = None) -> list[Found]:
    """Return the channels in this user's directory in /dev/shm, or in another directory, sorted by name.

    Ignores other files. Raises FileNotFoundError or NotADirectoryError if there is no such directory, PermissionError
    if it is not safe to use or not readable.
    """
    if directory is None:
        if not is_there(default_path()):
            return []
        folder = default_directory()
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
        with contextlib.suppress(ValueError, FileNotFoundError):  # not a channel's name, or gone by now
            found.append(names[name]())
    return found


def find_channel(channel: str) -> Found:
    """Return one channel, given by its name or path. Raises ChannelNotFoundError if there is none, ValueError for a bad
    name."""
    files = files_of(channel)
    folder = None if files.folder == default_path() else files.folder
    try:
        return _look(os.path.basename(files.control).removesuffix(".control"), folder)
    except FileNotFoundError:
        raise ChannelNotFoundError(
            f"{channel!r} is neither a directory nor a channel (looked for {files.control}); untorn ls shows what "
            "there is"
        ) from None


def _look(name: str, directory: str | os.PathLike[str] | None) -> Found:
    """Look at the files of this name. Raises FileNotFoundError if they are gone, ValueError if a channel cannot have
    this name."""
    files = named(name, directory)
    nbytes = blocks(files.control) + blocks(files.data)
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
        return Found(name, files, "unreadable", None, str(error), blocks(path))
    try:
        status: Status = "stale temporary" if is_open_nowhere(fd) else "temporary"
    finally:
        os.close(fd)
    return Found(name, files, status, None, "", blocks(path))


def is_open_nowhere(fd: int) -> bool:
    """Return whether no process has this file open for writing. A process that creates a channel does, from the start.
    The kernel grants a lease only if no process does; False if the file system supports no leases."""
    try:
        fcntl.fcntl(fd, fcntl.F_SETSIG, signal.SIGURG)  # ignored by default; the usual signal would end this process
        fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_RDLCK)
        fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_UNLCK)
    except OSError:
        return False
    return True


def _is_half_made(files: Files, *, has_data: bool) -> bool:
    """Return whether this is a valid control file whose own data file is missing. A data file of an earlier channel may
    still exist, if the publisher was killed before it removed that."""
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


def blocks(path: str) -> int:
    """Return the memory, or disk space, of a file in bytes; 0 if there is none."""
    try:
        return os.lstat(path).st_blocks * 512
    except OSError:
        return 0
