"""Where a channel's two files are: anonymous (memfds) or named (files in a directory). Both are opened by path.

A named channel NAME is ``NAME.control`` and ``NAME.data``. Its control file gets its name first, complete and locked
by its publisher, and its data file right after; unlinking goes the other way round. So data without control cannot
exist, and control without data is a creation that was killed: the next publisher clears it away.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import stat
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from untorn import _core
from untorn.errors import BusyError, CapacityError, ChannelNotFoundError, FormatError

__all__ = ["Address", "Files", "anonymous", "default_directory", "named", "open_files"]

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.@+-]{0,199}")


@dataclass(frozen=True)
class Address:
    """Where to find a channel again: its identity and the (control, data) paths to try, in order."""

    id: bytes
    places: tuple[tuple[str, str], ...]
    label: str

    def here(self, attachment: _core.Attachment) -> Address:
        """The same, with this process's own descriptors as the first place to look."""
        own = _descriptor_paths(attachment)
        others = tuple(place for place in self.places if place != own)
        return Address(self.id, (own, *others[:2]), self.label)


@dataclass(frozen=True)
class Files:
    """The paths of a named channel."""

    control: str
    data: str
    label: str

    def exists(self) -> bool:
        """Is there a channel file of this name?"""
        return os.path.lexists(self.control)

    def unlink(self) -> None:
        """Remove both names; processes that have the channel open keep it."""
        for path in (self.data, self.control):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)

    def is_same_file(self, control_fd: int) -> bool:
        """Does the name still lead to the file that is open here?"""
        try:
            return os.path.samestat(os.stat(self.control, follow_symlinks=False), os.fstat(control_fd))
        except FileNotFoundError:
            return False


def _descriptor_paths(attachment: _core.Attachment) -> tuple[str, str]:
    folder = f"/proc/{os.getpid()}/fd"
    return f"{folder}/{attachment.control_fd}", f"{folder}/{attachment.data_fd}"


def default_directory() -> Path:
    """This user's own directory in /dev/shm, made on first use. Raises PermissionError if it is not safe to use."""
    path = Path(f"/dev/shm/untorn-{os.geteuid()}")
    with contextlib.suppress(FileExistsError):
        path.mkdir(mode=0o700)
    status = path.lstat()
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid() or status.st_mode & 0o077:
        raise PermissionError(
            f"{path} must be a directory that belongs to user {os.geteuid()} with mode 0700; found owner "
            f"{status.st_uid} and mode {stat.filemode(status.st_mode)}. Somebody else may have made it: "
            "remove it, or pass directory="
        )
    return path


def named(name: str, directory: str | os.PathLike[str] | None = None) -> Files:
    """The files of the channel of that name. Raises ValueError for what cannot be a name."""
    if not isinstance(name, str):
        raise TypeError(f"name: expected a str, found {type(name).__name__}")
    if "/" in name:
        raise ValueError(f"name {name!r} has a slash in it; a channel in a directory is name= and directory=")
    if not _NAME.fullmatch(name):
        raise ValueError(
            f"name {name!r}: expected 1 to 200 letters, digits and _ . @ + -, beginning with a letter, digit or _"
        )
    folder = default_directory() if directory is None else Path(directory)
    if directory is not None and not folder.is_dir():
        raise FileNotFoundError(f"directory {str(folder)!r} of channel {name!r} does not exist; make it first")
    stem = os.fspath(folder / name)
    return Files(stem + ".control", stem + ".data", name if directory is None else stem)


def anonymous(max_readers: int, max_slots: int, slots: int) -> tuple[int, int]:
    """Two new memfds (control, data), the first laid out."""
    flags = os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING
    return _new_pair(lambda part: os.memfd_create(f"untorn-{part}", flags), max_readers, max_slots, slots)


def seal(attachment: _core.Attachment) -> None:
    """Nobody may shrink an anonymous channel under its readers."""
    import fcntl

    for fd in (attachment.control_fd, attachment.data_fd):
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK)


def nameless(files: Files, max_readers: int, max_slots: int, slots: int) -> tuple[int, int]:
    """Two new files on the channel's file system that have no name yet: a kill leaves nothing behind."""
    folder = os.path.dirname(files.control) or "."
    flags = os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC
    return _new_pair(lambda _: os.open(folder, flags, 0o600), max_readers, max_slots, slots)


def _new_pair(make: Callable[[str], int], max_readers: int, max_slots: int, slots: int) -> tuple[int, int]:
    descriptors = []
    try:
        for part in ("control", "data"):
            descriptors.append(make(part))
        _lay_out(descriptors[0], max_readers, max_slots, slots)
    except BaseException:
        for fd in descriptors:
            os.close(fd)
        raise
    return descriptors[0], descriptors[1]


def give_names(files: Files, attachment: _core.Attachment) -> bool:
    """Make a finished, locked channel visible under its name; False if the name is taken."""
    try:
        _link(attachment.control_fd, files.control)
    except FileExistsError:
        return False
    with contextlib.suppress(FileNotFoundError):
        os.unlink(files.data)  # the control name was ours to take, so this belongs to nobody
    _link(attachment.data_fd, files.data)
    return True


def _link(fd: int, path: str) -> None:
    # src_dir_fd makes Python call linkat(), which alone can follow the link in /proc to a file without a name
    os.link(f"/proc/self/fd/{fd}", path, src_dir_fd=fd, follow_symlinks=True)


def _lay_out(control_fd: int, max_readers: int, max_slots: int, slots: int) -> None:
    nbytes = _core.control_nbytes(max_readers)
    try:
        os.posix_fallocate(control_fd, 0, nbytes)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
        raise no_space(control_fd, nbytes, "a new channel's control file") from error
    _core.format_control(control_fd, os.urandom(16), max_readers, max_slots, slots)


def no_space(fd: int, nbytes: int, what: str) -> CapacityError:
    """The error for a file system without room for ``nbytes``."""
    status = os.fstatvfs(fd)
    free = status.f_bavail * status.f_frsize
    return CapacityError(
        f"{what} needs {nbytes:,} bytes, and its file system has {free:,} free of "
        f"{status.f_blocks * status.f_frsize:,}; free some, enlarge it, or use directory= on another"
    )


def take_over(files: Files) -> _core.Attachment | None:
    """Attach as the publisher of an existing channel; None if there is nothing (any more) to take over.

    Raises BusyError while another publisher lives, FormatError if the file is not a channel.
    """
    try:
        control_fd = _open(files.control, os.O_RDWR)
    except FileNotFoundError:
        return None
    try:
        data_fd = _open(files.data, os.O_RDWR)
        whole = True
    except FileNotFoundError:
        data_fd, whole = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC), False
    except BaseException:
        os.close(control_fd)
        raise
    attachment = attach(control_fd, data_fd, _core.PUBLISHER, files.label)
    if not files.is_same_file(control_fd):
        return None  # unlinked, and perhaps made anew, while we waited for the lock
    if not whole:
        files.unlink()  # a creation that was killed half-way
        return None
    return attachment


def _open(path: str, flags: int) -> int:
    """Open one file of a channel. A name in a directory must not be a link; descriptors in /proc are safe ones."""
    flags |= os.O_CLOEXEC | os.O_NOCTTY | os.O_NONBLOCK  # the last: a FIFO of that name must not hang us
    if path.startswith("/proc/"):
        return os.open(path, flags)
    try:
        return os.open(path, flags | os.O_NOFOLLOW)
    except OSError as error:
        if error.errno != errno.ELOOP:
            raise
        raise FormatError(
            f"{path!r} is a symbolic link, which a channel's file never is; remove it, or choose another name"
        ) from None


def attach(control_fd: int, data_fd: int, role: int, label: str) -> _core.Attachment:
    """Attach, taking both descriptors over; the core's status becomes an error that names the channel."""
    try:
        return _core.Attachment(control_fd, data_fd, role)
    except _core.StatusError as error:
        code, number = error.args
        if code == "busy":
            raise BusyError(
                f"channel {label!r} has a living publisher already; a channel has one "
                "publisher at a time: close that one, or choose another name"
            ) from None
        if code == "format":
            raise FormatError(
                f"{label!r} is not an untorn channel: the file does not begin as one does; "
                "remove the file, or choose another name"
            ) from None
        if code == "layout":
            raise FormatError(
                f"channel {label!r} has another layout than version {_core.LAYOUT}, which this untorn reads; "
                "use the untorn that wrote it, or remove the file"
            ) from None
        if code == "no_row":
            raise CapacityError(
                f"channel {label!r} has no reader row left: every one is taken by a living process; "
                "close some subscribers, or publish with a larger max_readers"
            ) from None
        raise OSError(number, os.strerror(number), label) from None


def open_files(
    places: tuple[tuple[str, str], ...], label: str, *, writable: bool = False, id: bytes | None = None
) -> tuple[int, int]:
    """Open (control, data) at the first place that has the channel; data read-only unless ``writable``.

    Raises ChannelNotFoundError, or PermissionError for a named channel of another user.
    """
    for control, data in places:
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            return _open_pair(control, data, os.O_RDWR if writable else os.O_RDONLY, id)
    where = places[0][0] if places else "nowhere"
    raise ChannelNotFoundError(
        f"no channel {label!r} (looked for {where}); is its publisher running, as the same user? "
        "subscribe(..., timeout_s=10) waits for it"
    )


def _open_pair(control: str, data: str, data_flags: int, id: bytes | None) -> tuple[int, int]:
    """Both descriptors of one place; FileNotFoundError if it is not, or no longer, the place of this channel."""
    try:
        control_fd = _open(control, os.O_RDWR)
    except OSError as error:
        if control.startswith("/proc/") and error.errno not in (errno.EMFILE, errno.ENFILE):
            raise FileNotFoundError from None  # another process, a pipe or a socket has that number now
        if not isinstance(error, PermissionError):
            raise
        raise PermissionError(
            error.errno, "no right to open this channel; readers need to write its control file", control
        ) from None
    try:
        if id is not None and _id_of(control_fd) != id:
            raise FileNotFoundError
        return control_fd, _open(data, data_flags)
    except BaseException:
        os.close(control_fd)
        raise


def _id_of(control_fd: int) -> bytes:
    with contextlib.suppress(OSError):  # what cannot be read at an offset is no channel
        return os.pread(control_fd, 16, 16)
    return b""
