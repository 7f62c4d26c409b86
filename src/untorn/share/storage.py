"""The two files of a channel: anonymous (memfds) or named (files in a directory). Both are opened by path.

A named channel NAME is ``NAME.control`` and ``NAME.data``. The control file gets its name first, complete and locked by
its publisher, and the data file right after; they are unlinked in the reverse order. So data without control cannot
exist, and control without data is left by a publisher that was killed; the next publisher removes it.

Opening two files takes two steps, and between them another channel may have taken over both names. Both files contain
the channel's id, and the core attaches only to two files with the same id, so a process that opened a mixed pair opens
it again. A process that holds the publisher's lock checks the names once more, and then they cannot change::

    reader      open control, open data, attach: same id? ── no: again, for some time ──> FormatError
    publisher   open control, lock, does the name still lead to it? open data, adopt it: same id?

Until they get their names, the two files have none. If the file system does not support nameless files, or /proc, which
is needed to name them, is not mounted, they are called ``.NAME.<pid>.<random>.control`` and ``.data`` meanwhile, which
cannot be a channel's name; a process that is killed may leave these.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import stat
import time
import weakref
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from untorn import _core
from untorn.descriptors import keep
from untorn.errors import ChannelNotFoundError, FormatError
from untorn.share.guard import check_file, is_there, no_file
from untorn.share.near_names import near_names
from untorn.share.storage_errors import (
    FULL,
    MixedError,
    NamingError,
    explained,
    labelled,
    meaning,
    no_space,
    remedied,
    unreadable,
)

__all__ = ["Address", "Files", "anonymous", "default_directory", "default_path", "named", "no_space", "open_channel"]

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.@+-]{0,199}")
#: the errors of a file system that does not support an operation
_UNSUPPORTED = (errno.EOPNOTSUPP, errno.EISDIR, errno.EINVAL, errno.ENOSYS)
#: the errors of a path in /proc when the process is gone, its descriptor is now a pipe, a socket, a directory or a
#: device, or another user's process has the pid
_ANOTHERS = (
    errno.ENOENT, errno.ESRCH, errno.EACCES, errno.EPERM, errno.ENXIO, errno.ENODEV, errno.ENOTDIR, errno.EISDIR,
    errno.ELOOP, errno.EINVAL, errno.ESPIPE, errno.ETXTBSY, errno.EROFS, errno.EBADF, *_UNSUPPORTED,
)  # fmt: skip
_NO_PROC = "/proc is not mounted here; mount it (in a container: do not hide it)"
_RENAME_NOREPLACE, _AT_FDCWD = 1, -100
#: how often, and for how long, a reader opens a mixed pair again; the first times without waiting; how often it may be
#: exactly the same pair
_MIXED_TRIES, _MIXED_S, _MIXED_AT_ONCE, _MIXED_PAUSE_S, _MIXED_SAME = 200, 1.0, 10, 0.005, 10


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
        return _leads_to(self.control, control_fd)

    def is_same_data(self, data_fd: int) -> bool:
        """Return whether the name of the data file still leads to the one that is open here."""
        return _leads_to(self.data, data_fd)


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


def _leads_to(path: str, fd: int) -> bool:
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


def anonymous(max_readers: int, max_slots: int, slots: int) -> tuple[int, int]:
    """Return two new memfds (control, data), the first of which is laid out."""
    flags = os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING
    try:
        return _new_pair(lambda part: keep(os.memfd_create(f"untorn-{part}", flags)), max_readers, max_slots, slots)
    except OSError as error:
        raise labelled(error, "anonymous") from None


def seal(attachment: _core.Attachment) -> None:
    """Seal an anonymous channel, so that no process can shrink it under its readers."""
    import fcntl

    for fd in (attachment.control_fd, attachment.data_fd):
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK)


def nameless(files: Files, max_readers: int, max_slots: int, slots: int) -> tuple[int, int]:
    """Return two new files on the channel's file system without names, so that a kill leaves nothing behind.

    Raises OSError (by its cause: FileNotFoundError, PermissionError, ...) or CapacityError, which say what to do.
    """
    try:
        return _new_pair(lambda part: new_file(files, part), max_readers, max_slots, slots)
    except BaseException:
        forget_temporary(files)
        raise


def new_file(files: Files, part: str) -> int:
    flags = os.O_RDWR | os.O_CLOEXEC
    try:
        try:
            if _has_proc():
                return keep(os.open(files.folder, flags | os.O_TMPFILE, 0o600))
        except OSError as error:
            if error.errno not in _UNSUPPORTED:
                raise
        name = os.path.basename(files.control).removesuffix(".control")
        path = os.path.join(files.folder, f".{name}.{os.getpid()}.{os.urandom(8).hex()}.{part}")
        fd = keep(os.open(path, flags | os.O_CREAT | os.O_EXCL, 0o600))
    except OSError as error:
        raise explained(error, files.title, "cannot be made in this directory", files.folder) from None
    files.temporary[path] = weakref.finalize(files, _remove_own, os.getpid(), path)
    return fd


def _remove_own(pid: int, path: str) -> None:
    if os.getpid() == pid:  # a forked child has a copy of this, but it belongs to its parent
        with contextlib.suppress(OSError):
            os.unlink(path)


def forget_temporary(files: Files) -> None:
    for remove in files.temporary.values():
        remove()
    files.temporary.clear()


def _new_pair(make: Callable[[str], int], max_readers: int, max_slots: int, slots: int) -> tuple[int, int]:
    descriptors = []
    try:
        for part in ("control", "data"):
            descriptors.append(make(part))
        _lay_out(descriptors[0], descriptors[1], max_readers, max_slots, slots)
    except BaseException:
        for fd in descriptors:
            os.close(fd)
        raise
    return descriptors[0], descriptors[1]


def give_names(files: Files, attachment: _core.Attachment, *, durable: bool) -> bool:
    """Make a finished, locked channel visible under its name. Returns False if the name is taken."""
    attachment.set_naming(True)  # killed in between, the two names may lead to different channels: take_over() knows
    try:
        try:
            give_name(files, attachment.control_fd, files.control)
        except FileExistsError:
            return False
        try:
            _remove_stale_data(files)  # the control name was free, so this belongs to no channel
            try:
                give_name(files, attachment.data_fd, files.data)
            except FileExistsError:  # a process without the lock removed the control name, and another channel came
                _take_back(files, attachment)
                return False
            if durable:
                _sync_directory(files.folder)
        except BaseException:
            _take_back(files, attachment)
            raise
    finally:
        forget_temporary(files)
    attachment.set_naming(False)
    return True


def claim_name(files: Files) -> _core.Attachment | None:
    """Take a channel's name with a new, locked control file, to remove what is left under the name. Returns None if the
    name is taken. If this process is killed, the next publisher removes what it left."""
    attachment = attach(*nameless(files, 1, 2, 1), _core.PUBLISHER, files.label)
    attachment.set_naming(True)
    try:
        give_name(files, attachment.control_fd, files.control)
    except FileExistsError:
        return None
    finally:
        forget_temporary(files)
    return attachment


def _take_back(files: Files, attachment: _core.Attachment) -> None:
    """Remove the names that lead to this channel."""
    for path, fd in ((files.data, attachment.data_fd), (files.control, attachment.control_fd)):
        if _leads_to(path, fd):
            os.unlink(path)


def _remove_stale_data(files: Files) -> None:
    try:
        fd = keep(os.open(files.data, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC))
    except FileNotFoundError:
        return
    except OSError as error:
        raise remedied(error, files.data) from None
    os.close(_checked(fd, files.data, writing=True))
    try:
        os.unlink(files.data)
    except FileNotFoundError:
        pass
    except OSError as error:
        raise explained(error, files.title, "has a data file without a control file that must go", files.data) from None


def sync_names(control_fd: int) -> None:
    """Flush the names of an existing channel to the disk, since the process that gave them may not have done it."""
    try:
        path = os.readlink(f"/proc/self/fd/{control_fd}")
    except FileNotFoundError as error:
        raise OSError(error.errno, f"a durable channel is found through /proc: {_NO_PROC}", error.filename) from None
    _sync_directory(os.path.dirname(path))


def _sync_directory(path: str) -> None:
    folder = keep(os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC))
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def give_name(files: Files, fd: int, path: str) -> None:
    """Give a file its name. Raises FileExistsError, and changes nothing, if the name is taken."""
    ending = os.path.splitext(path)[1]
    try:
        for temporary in files.temporary:
            if temporary.endswith(ending) and _rename(temporary, path):
                return
        # src_dir_fd makes Python call linkat(): only this can follow the link in /proc to a file without a name
        os.link(f"/proc/self/fd/{fd}", path, src_dir_fd=fd, follow_symlinks=True)
    except FileExistsError:
        raise
    except OSError as error:
        if error.errno == errno.ENOENT and os.path.isdir(files.folder) and not _has_proc():
            raise OSError(errno.ENOENT, f"channel {files.label!r} cannot be given its name: {_NO_PROC}", path) from None
        raise explained(error, files.title, "cannot be given its name in this directory", files.folder) from None


def _has_proc() -> bool:
    return os.path.isdir("/proc/self/fd")


def _rename(old: str, new: str) -> bool:
    """Rename without replacing another file, and without hard links, which some file systems do not support. Returns
    False if the system does not support this."""
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


def _lay_out(control_fd: int, data_fd: int, max_readers: int, max_slots: int, slots: int) -> None:
    nbytes = _core.control_nbytes(max_readers)
    id = os.urandom(16)
    for fd, room, part in ((control_fd, nbytes, "control"), (data_fd, os.sysconf("SC_PAGESIZE"), "data")):
        what = f"a new channel's {part} file"
        try:
            os.posix_fallocate(fd, 0, room)
            if fd == control_fd:
                _core.format_control(fd, id, max_readers, max_slots, slots)
            else:
                _core.format_data(fd, id)
        except OSError as error:
            if error.errno in FULL:
                raise no_space(fd, room, what, number=error.errno) from error
            raise OSError(error.errno, f"{what} cannot be written: {os.strerror(error.errno or 0)}") from None


def take_over(files: Files) -> _core.Attachment | None:
    """Attach as the publisher of an existing channel. Returns None if there is no channel to take over.

    Raises BusyError while another publisher lives, FormatError if the file is not a channel.
    """
    try:
        control_fd = _open_own(files, files.control)
    except FileNotFoundError:
        return None
    claim = attach(control_fd, -1, _core.PUBLISHER, files.label)
    try:
        if _completed(files, claim):
            return claim
    except BaseException:
        claim.abandon()  # its traceback would keep the lock
        raise
    claim.abandon()
    return None


def _completed(files: Files, claim: _core.Attachment) -> bool:
    """Return whether the channel that is locked here has its name and its data file. Removes one whose publisher was
    killed half-way."""
    if not files.is_same_file(claim.control_fd):
        return False  # unlinked, and perhaps created again, while this process waited for the lock
    # From here on the names cannot change: only the process that has the lock gives or removes them.
    try:
        data_fd = _open_own(files, files.data)
    except FileNotFoundError:
        files.unlink()
        return False
    try:
        _adopt(claim, data_fd, files.label)
    except MixedError:
        if not files.is_same_file(claim.control_fd):
            return False  # a process without the lock removed the names
        if not claim.naming:
            raise
        files.unlink()  # its publisher was killed between the two names, and the data file belongs to an older channel
        return False
    if claim.version == 0:
        files.unlink()  # untorn gc was killed in the middle of removing it
        return False
    return files.is_same_file(claim.control_fd) and files.is_same_data(claim.data_fd)


def _adopt(claim: _core.Attachment, data_fd: int, label: str) -> None:
    """Give a locked channel its data file, and write the header of that file if it was cut off."""
    try:
        with contextlib.suppress(_core.StatusError):  # adopting it finds out which channel it belongs to
            _core.format_data(data_fd, claim.id)
    except OSError as error:
        os.close(data_fd)
        raise labelled(error, label) from None
    try:
        claim.adopt(data_fd)
    except (_core.StatusError, OSError) as error:
        raise _error_of(error, label) from None


def _open_own(files: Files, path: str) -> int:
    """Open one file of a channel to publish to, which must belong to this user."""
    try:
        fd = open_path(path, os.O_RDWR)
    except OSError as error:
        if error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise
        what = "cannot be taken over, for which both of its files must be writable"
        raise explained(error, files.title, what, path) from None
    return _checked(fd, path, writing=True)


def _checked(fd: int, path: str, *, writing: bool) -> int:
    try:
        check_file(fd, path, writing=writing, given=True)
    except BaseException:
        os.close(fd)
        raise
    return fd


def open_path(path: str, flags: int) -> int:
    """Open one file of a channel. A name in a directory must not be a link; the links in /proc are safe."""
    flags |= os.O_CLOEXEC | os.O_NOCTTY | os.O_NONBLOCK  # the last so that a FIFO of that name does not block
    if path.startswith("/proc/"):
        return keep(os.open(path, flags))
    try:
        return keep(os.open(path, flags | os.O_NOFOLLOW))
    except OSError as error:
        raise no_file(error, path) or remedied(error, path) from None


def attach(control_fd: int, data_fd: int, role: int, label: str, *, id: bytes | None = None) -> _core.Attachment:
    """Attach to one channel, and take over both descriptors. Errors of the core become errors that name the channel.

    Raises MixedError if the files belong to two channels, OtherChannelError if they are not the one with that ``id``.
    """
    try:
        return _core.Attachment(control_fd, data_fd, role, id)
    except (_core.StatusError, OSError) as error:
        raise _error_of(error, label) from None


def _error_of(error: _core.StatusError | OSError, label: str) -> Exception:
    """Return an error of the core as one that names the channel."""
    if isinstance(error, OSError):
        return labelled(error, label)
    if error.args[0] == "format":
        return FormatError(
            f"{label!r} is not an untorn channel: the file does not begin as one does; "
            "remove the file, or choose another name"
        )
    return meaning(error, label)


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
    elif where.startswith("/proc/") and not _has_proc():
        where += f": {_NO_PROC}"
    elif places and not os.path.isdir(os.path.dirname(where)):
        where += ", and there is no such directory"
    elif places and not where.startswith("/proc/"):
        where += near_names(where)
    if all(control.startswith("/proc/") for control, _ in places) and _has_proc():
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
    return _checked(fd, path, writing=role != _core.READER)


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
