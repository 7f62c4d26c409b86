"""Where a channel's files are: the paths of a name in a directory, and the address of a channel for other processes."""

from __future__ import annotations

import contextlib
import os
import re
import stat
import weakref
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from untorn import _core
from untorn.errors import FormatError
from untorn.share.guard import check_file, is_there
from untorn.share.opening import open_path
from untorn.share.storage_errors import (
    explained,
)

__all__ = ["Address", "Files", "default_directory", "default_path", "leads_to", "named"]

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.@+-]{0,199}")


@dataclass(frozen=True)
class Address:
    """The address of a channel: its identity, and the (control, data) paths to try, in order."""

    id: bytes
    places: tuple[tuple[str, str], ...]
    label: str

    def here(self, attachment: _core.Attachment) -> Address:
        """Return the same address, with this process's own descriptors as the first paths to try."""
        own = _descriptor_paths(attachment)
        others = [place for place in self.places if place != own]
        files = [place for place in others if not place[0].startswith("/proc/")]  # these last longest
        processes = [place for place in others if place not in files]
        return Address(self.id, (own, *processes[:2], *files), self.label)

    @property
    def has_name(self) -> bool:
        """Whether the channel has a name in a directory, under which it can be published again."""
        return any(not control.startswith("/proc/") for control, _ in self.places)

    def has_successor(self, attachment: _core.Attachment) -> bool:
        """Return whether a name leads to another channel now, which has a version."""
        names = (place for place in self.places if not place[0].startswith("/proc/"))
        return any(_has_version(control, attachment.control_fd) for control, _ in names)

    def leads_elsewhere(self, attachment: _core.Attachment) -> bool:
        """Return whether its names in directories lead to other files than those that are open here."""
        names = [Files(*place, self.label) for place in self.places if not place[0].startswith("/proc/")]
        there = [files for files in names if files.exists()]
        return bool(there) and not any(files.is_same_file(attachment.control_fd) for files in there)

    def is_named(self, attachment: _core.Attachment) -> bool:
        """Return whether a name in a directory still leads to this channel."""
        names = (place for place in self.places if not place[0].startswith("/proc/"))
        return any(Files(*place, self.label).is_same_file(attachment.control_fd) for place in names)


@dataclass(frozen=True)
class Files:
    """The absolute paths of a named channel, which stay valid when the current directory changes."""

    control: str
    data: str
    label: str
    #: what has these files: "channel" or "queue"
    kind: str = "channel"
    #: the temporary names of its new files, and what removes each, at the latest when this object is destroyed
    temporary: dict[str, weakref.finalize[Any, Any]] = field(default_factory=dict, compare=False, repr=False)

    @property
    def folder(self) -> str:
        """The directory of the files."""
        return os.path.dirname(self.control)

    @property
    def title(self) -> str:
        """What has these files, for messages."""
        return f"{self.kind} {self.label!r}"

    def exists(self) -> bool:
        """Return whether there is a channel file of this name. Raises OSError, with a remedy, if that is unknown."""
        try:
            return is_there(self.control)
        except OSError as error:
            raise explained(error, self.title, "cannot be looked for in this directory", self.folder) from None

    def unlink(self) -> None:
        """Remove both names; processes that have the channel open keep it."""
        for path in (self.data, self.control):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)

    def is_same_file(self, control_fd: int) -> bool:
        """Return whether the name still leads to the file that is open here."""
        return leads_to(self.control, control_fd)

    def is_same_data(self, data_fd: int) -> bool:
        """Return whether the name of the data file still leads to the one that is open here."""
        return leads_to(self.data, data_fd)


def _has_version(control: str, other_than: int) -> bool:
    """Return whether this is the control file of a channel that has a version, and not the file that is open."""
    try:
        fd = open_path(control, os.O_RDONLY)
    except (OSError, FormatError):
        return False
    try:
        check_file(fd, control, writing=False, given=True)
        if os.path.samestat(os.fstat(fd), os.fstat(other_than)):
            return False
        return int.from_bytes(os.pread(fd, 8, 64), "little") >> 6 != 0
    except (OSError, FormatError):  # in any case, it is not a successor
        return False
    finally:
        os.close(fd)


def leads_to(path: str, fd: int) -> bool:
    """Return whether this is the path of the file that is open as ``fd``."""
    try:
        return os.path.samestat(os.stat(path, follow_symlinks=False), os.fstat(fd))
    except (FileNotFoundError, NotADirectoryError):
        return False


def _descriptor_paths(attachment: _core.Attachment) -> tuple[str, str]:
    folder = f"/proc/{os.getpid()}/fd"
    return f"{folder}/{attachment.control_fd}", f"{folder}/{attachment.data_fd}"


def default_path() -> str:
    """Return the directory of this user's channels, whether it exists or not."""
    return f"/dev/shm/untorn-{os.geteuid()}"


def default_directory() -> Path:
    """Return this user's own directory in /dev/shm, made on first use. Raises PermissionError if it is not safe."""
    path = Path(default_path())
    try:
        path.mkdir(mode=0o700)
    except FileExistsError:
        pass
    except OSError as error:
        raise OSError(
            error.errno,
            f"the directory of this user's channels cannot be made ({os.strerror(error.errno or 0)}); pass directory=",
            os.fspath(path),
        ) from None
    status = path.lstat()
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid() or status.st_mode & 0o077:
        raise PermissionError(
            f"{path} must be a directory that belongs to user {os.geteuid()} with mode 0700; found owner "
            f"{status.st_uid} and mode {stat.filemode(status.st_mode)}. Another user may have made it; "
            "remove it, or pass directory="
        )
    return path


def named(name: str, directory: str | os.PathLike[str] | None = None) -> Files:
    """Return the files of the channel of that name. Raises ValueError if the name is not valid."""
    if not isinstance(name, str):
        raise TypeError(f"name: expected a str, found {type(name).__name__}")
    if "/" in name:
        raise ValueError(f"name {name!r} has a slash in it; a channel in a directory is name= and directory=")
    if not _NAME.fullmatch(name):
        raise ValueError(
            f"name {name!r}: expected 1 to 200 letters, digits and _ . @ + -, beginning with a letter, digit or _"
        )
    folder = default_directory() if directory is None else Path(directory)
    try:
        stem = os.fspath(folder.absolute() / name)
    except FileNotFoundError as error:
        raise FileNotFoundError(
            error.errno,
            "the current directory was removed; change to another one, or give an absolute path",
            str(folder),
        ) from None
    return Files(stem + ".control", stem + ".data", name if directory is None else os.fspath(folder / name))
