"""Where a channel's two files are: anonymous (memfds) or named (files in a directory). Both are opened by path.

A named channel NAME is ``NAME.control`` and ``NAME.data``. Its control file gets its name first, complete and locked
by its publisher, and its data file right after; unlinking goes the other way round. So data without control cannot
exist, and control without data is a creation that was killed: the next publisher clears it away.

Until then the two files have no names. Where a file system has no nameless files they are called
``.NAME.<pid>.<random>.control`` and ``.data``, which is no channel's name; a kill may leave these.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import stat
import weakref
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from untorn import _core
from untorn.errors import ChannelNotFoundError, FormatError
from untorn.share.obstacles import FULL, explained, labelled, meaning, no_space, unreadable

__all__ = ["Address", "Files", "anonymous", "default_directory", "named", "no_space", "open_files"]

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.@+-]{0,199}")
#: what a file system says that cannot do something at all
_UNSUPPORTED = (errno.EOPNOTSUPP, errno.EISDIR, errno.EINVAL, errno.ENOSYS)
_RENAME_NOREPLACE, _AT_FDCWD = 1, -100


@dataclass(frozen=True)
class Address:
    """Where to find a channel again: its identity and the (control, data) paths to try, in order."""

    id: bytes
    places: tuple[tuple[str, str], ...]
    label: str

    def here(self, attachment: _core.Attachment) -> Address:
        """The same, with this process's own descriptors as the first place to look."""
        own = _descriptor_paths(attachment)
        others = [place for place in self.places if place != own]
        files = [place for place in others if not place[0].startswith("/proc/")]  # these last longest
        processes = [place for place in others if place not in files]
        return Address(self.id, (own, *processes[:2], *files), self.label)

    def has_successor(self, attachment: _core.Attachment) -> bool:
        """Does a name lead to another channel now, which has a version?"""
        names = (place for place in self.places if not place[0].startswith("/proc/"))
        return any(_has_version(control, attachment.control_fd) for control, _ in names)

    def is_named(self, attachment: _core.Attachment) -> bool:
        """Does a name in a directory still lead to this channel?"""
        names = (place for place in self.places if not place[0].startswith("/proc/"))
        return any(Files(*place, self.label).is_same_file(attachment.control_fd) for place in names)


@dataclass(frozen=True)
class Files:
    """The paths of a named channel; absolute, so that they mean the same after a change of directory."""

    control: str
    data: str
    label: str
    #: the names that its new files have meanwhile, and what removes each, at the latest when this object goes
    temporary: dict[str, weakref.finalize[Any, Any]] = field(default_factory=dict, compare=False, repr=False)

    @property
    def folder(self) -> str:
        """Where they are."""
        return os.path.dirname(self.control)

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
        return _leads_to(self.control, control_fd)

    def is_same_data(self, data_fd: int) -> bool:
        """Does the name of the data file still lead to the one that is open here?"""
        return _leads_to(self.data, data_fd)


def _has_version(control: str, other_than: int) -> bool:
    """Is this the control file of a channel that has a version, and another file than the one that is open?"""
    try:
        fd = os.open(control, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return False
    try:
        if os.path.samestat(os.fstat(fd), os.fstat(other_than)):
            return False
        return int.from_bytes(os.pread(fd, 8, 64), "little") >> 6 != 0
    except OSError:
        return False
    finally:
        os.close(fd)


def _leads_to(path: str, fd: int) -> bool:
    try:
        return os.path.samestat(os.stat(path, follow_symlinks=False), os.fstat(fd))
    except FileNotFoundError:
        return False


def _descriptor_paths(attachment: _core.Attachment) -> tuple[str, str]:
    folder = f"/proc/{os.getpid()}/fd"
    return f"{folder}/{attachment.control_fd}", f"{folder}/{attachment.data_fd}"


def default_directory() -> Path:
    """This user's own directory in /dev/shm, made on first use. Raises PermissionError if it is not safe to use."""
    path = Path(f"/dev/shm/untorn-{os.geteuid()}")
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
    stem = os.fspath(folder.absolute() / name)
    return Files(stem + ".control", stem + ".data", name if directory is None else os.fspath(folder / name))


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
    """Two new files on the channel's file system that have no name yet: a kill leaves nothing behind.

    Raises OSError (by its cause: FileNotFoundError, PermissionError, ...) or CapacityError, saying what to do.
    """
    try:
        return _new_pair(lambda part: _new_file(files, part), max_readers, max_slots, slots)
    except BaseException:
        _forget_temporary(files)
        raise


def _new_file(files: Files, part: str) -> int:
    flags = os.O_RDWR | os.O_CLOEXEC
    try:
        try:
            return os.open(files.folder, flags | os.O_TMPFILE, 0o600)
        except OSError as error:
            if error.errno not in _UNSUPPORTED:
                raise
        name = os.path.basename(files.control).removesuffix(".control")
        path = os.path.join(files.folder, f".{name}.{os.getpid()}.{os.urandom(8).hex()}.{part}")
        fd = os.open(path, flags | os.O_CREAT | os.O_EXCL, 0o600)
    except OSError as error:
        raise explained(error, files.label, "cannot be made in this directory", files.folder) from None
    files.temporary[path] = weakref.finalize(files, _remove_own, os.getpid(), path)
    return fd


def _remove_own(pid: int, path: str) -> None:
    if os.getpid() == pid:  # a forked child has a copy of everything, but this is its parent's
        with contextlib.suppress(OSError):
            os.unlink(path)


def _forget_temporary(files: Files) -> None:
    for remove in files.temporary.values():
        remove()
    files.temporary.clear()


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


def give_names(files: Files, attachment: _core.Attachment, *, durable: bool) -> bool:
    """Make a finished, locked channel visible under its name; False if the name is taken."""
    try:
        try:
            _give_name(files, attachment.control_fd, files.control)
        except FileExistsError:
            return False
        try:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(files.data)  # the control name was ours to take, so this belongs to nobody
            _give_name(files, attachment.data_fd, files.data)
            if durable:
                _sync_directory(files.folder)
        except BaseException:
            files.unlink()
            raise
    finally:
        _forget_temporary(files)
    return True


def claim_name(files: Files, attachment: _core.Attachment) -> bool:
    """Take a channel's name with a locked control file alone, in order to remove what is left under it; False if the
    name is taken. A kill leaves what the next publisher clears away."""
    try:
        _give_name(files, attachment.control_fd, files.control)
    except FileExistsError:
        return False
    finally:
        _forget_temporary(files)
    return True


def sync_names(control_fd: int) -> None:
    """The names of a channel that exists are on the disk when this returns: whoever gave them may not have waited."""
    _sync_directory(os.path.dirname(os.readlink(f"/proc/self/fd/{control_fd}")))


def _sync_directory(path: str) -> None:
    folder = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _give_name(files: Files, fd: int, path: str) -> None:
    """Raises FileExistsError, changing nothing, if the name is taken."""
    ending = os.path.splitext(path)[1]
    try:
        for temporary in files.temporary:
            if temporary.endswith(ending) and _rename(temporary, path):
                return
        # src_dir_fd makes Python call linkat(), which alone can follow the link in /proc to a file without a name
        os.link(f"/proc/self/fd/{fd}", path, src_dir_fd=fd, follow_symlinks=True)
    except FileExistsError:
        raise
    except OSError as error:
        raise explained(error, files.label, "cannot be given its name in this directory", files.folder) from None


def _rename(old: str, new: str) -> bool:
    """Rename, but never over another file, and not by hard links, which some file systems do not have. False if the
    system cannot."""
    import ctypes

    try:
        call = ctypes.CDLL(None, use_errno=True).renameat2
    except AttributeError:
        return False
    if call(_AT_FDCWD, os.fsencode(old), _AT_FDCWD, os.fsencode(new), _RENAME_NOREPLACE) == 0:
        return True
    number = ctypes.get_errno()
    if number in _UNSUPPORTED:
        return False
    raise OSError(number, os.strerror(number), new)


def _lay_out(control_fd: int, max_readers: int, max_slots: int, slots: int) -> None:
    nbytes = _core.control_nbytes(max_readers)
    what = "a new channel's control file"
    try:
        os.posix_fallocate(control_fd, 0, nbytes)
        _core.format_control(control_fd, os.urandom(16), max_readers, max_slots, slots)
    except OSError as error:
        if error.errno in FULL:
            raise no_space(control_fd, nbytes, what, number=error.errno) from error
        raise OSError(error.errno, f"{what} cannot be written: {os.strerror(error.errno or 0)}") from None


def take_over(files: Files) -> _core.Attachment | None:
    """Attach as the publisher of an existing channel; None if there is nothing (any more) to take over.

    Raises BusyError while another publisher lives, FormatError if the file is not a channel.
    """
    try:
        control_fd = _open_own(files, files.control)
    except FileNotFoundError:
        return None
    try:
        data_fd = _open_own(files, files.data)
        whole = True
    except FileNotFoundError:
        data_fd, whole = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC), False
    except BaseException:
        os.close(control_fd)
        raise
    attachment = attach(control_fd, data_fd, _core.PUBLISHER, files.label)
    if not files.is_same_file(control_fd):
        return None  # unlinked, and perhaps made anew, while we waited for the lock
    if not whole or attachment.version == 0:
        files.unlink()  # a creation, or a removal by gc, that was killed half-way
        return None
    return attachment


def _open_own(files: Files, path: str) -> int:
    try:
        return _open(path, os.O_RDWR)
    except OSError as error:
        if error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise
        what = "cannot be taken over, for which both of its files must be writable"
        raise explained(error, files.label, what, path) from None


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
        if error.args[0] == "format":
            raise FormatError(
                f"{label!r} is not an untorn channel: the file does not begin as one does; "
                "remove the file, or choose another name"
            ) from None
        raise meaning(error, label) from None
    except OSError as error:
        raise labelled(error, label) from None


def open_files(
    places: tuple[tuple[str, str], ...], label: str, *, writable: bool = False, id: bytes | None = None
) -> tuple[int, int]:
    """Open (control, data) at the first place that has the channel; data read-only unless ``writable``.

    Raises ChannelNotFoundError; PermissionError for a named channel of another user; OSError where it is read-only.
    """
    for control, data in places:
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            return _open_pair(control, data, os.O_RDWR if writable else os.O_RDONLY, id, label)
    raise not_found(places, label)


def not_found(places: tuple[tuple[str, str], ...], label: str) -> ChannelNotFoundError:
    """The error for a channel that is at none of these places."""
    where = places[0][0] if places else "nowhere"
    if places and not os.path.isdir(os.path.dirname(where)):
        where += ", and there is no such directory"
    return ChannelNotFoundError(
        f"no channel {label!r} (looked for {where}); is its publisher running, as the same user? "
        "subscribe(..., timeout_s=10) waits for it"
    )


def _open_pair(control: str, data: str, data_flags: int, id: bytes | None, label: str) -> tuple[int, int]:
    """Both descriptors of one place; FileNotFoundError if it is not, or no longer, the place of this channel."""
    try:
        control_fd = _open(control, os.O_RDWR)
    except OSError as error:
        if control.startswith("/proc/") and error.errno not in (errno.EMFILE, errno.ENFILE):
            raise FileNotFoundError from None  # another process, a pipe or a socket has that number now
        raise unreadable(error, label, control) from None
    try:
        if id is not None and _id_of(control_fd) != id:
            raise FileNotFoundError
        try:
            return control_fd, _open(data, data_flags)
        except OSError as error:
            raise unreadable(error, label, data) from None
    except BaseException:
        os.close(control_fd)
        raise


def _id_of(control_fd: int) -> bytes:
    with contextlib.suppress(OSError):  # what cannot be read at an offset is no channel
        return os.pread(control_fd, 16, 16)
    return b""
