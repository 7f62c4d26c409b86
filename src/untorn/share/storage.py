"""Make the two files of a channel, anonymous (memfds) or named (files in a directory), and take over those of a dead
publisher.

A named channel NAME is ``NAME.control`` and ``NAME.data``. The control file gets its name first, complete and locked by
its publisher, and the data file right after; they are unlinked in the reverse order. So data without control cannot
exist, and control without data is left by a publisher that was killed; the next publisher removes it.

Until they get their names, the two files have none. If the file system does not support nameless files, or /proc, which
is needed to name them, is not mounted, they are called ``.NAME.<pid>.<random>.control`` and ``.data`` meanwhile, which
cannot be a channel's name; a process that is killed may leave these.
"""

from __future__ import annotations

import contextlib
import errno
import os
import weakref
from collections.abc import Callable

from untorn import _core
from untorn.descriptors import keep
from untorn.share import opening
from untorn.share.opening import NO_PROC, UNSUPPORTED, checked, error_of, has_proc
from untorn.share.places import Files, leads_to
from untorn.share.storage_errors import (
    FULL,
    MixedError,
    explained,
    labelled,
    no_space,
    remedied,
)

__all__ = [
    "anonymous",
    "claim_name",
    "forget_temporary",
    "give_name",
    "give_names",
    "nameless",
    "new_file",
    "seal",
    "sync_names",
    "take_over",
]

_RENAME_NOREPLACE, _AT_FDCWD = 1, -100


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
    """Return a descriptor of a new file without a name; with a temporary one where that is not supported."""
    flags = os.O_RDWR | os.O_CLOEXEC
    try:
        try:
            if has_proc():
                return keep(os.open(files.folder, flags | os.O_TMPFILE, 0o600))
        except OSError as error:
            if error.errno not in UNSUPPORTED:
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
    """Remove the temporary names of new files that are left."""
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
    attachment = opening.attach(*nameless(files, 1, 2, 1), _core.PUBLISHER, files.label)
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
        if leads_to(path, fd):
            os.unlink(path)


def _remove_stale_data(files: Files) -> None:
    try:
        fd = keep(os.open(files.data, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC))
    except FileNotFoundError:
        return
    except OSError as error:
        raise remedied(error, files.data) from None
    os.close(checked(fd, files.data, writing=True))
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
        raise OSError(error.errno, f"a durable channel is found through /proc: {NO_PROC}", error.filename) from None
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
        if error.errno == errno.ENOENT and os.path.isdir(files.folder) and not has_proc():
            raise OSError(errno.ENOENT, f"channel {files.label!r} cannot be given its name: {NO_PROC}", path) from None
        raise explained(error, files.title, "cannot be given its name in this directory", files.folder) from None


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
    if number in UNSUPPORTED:
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
    claim = opening.attach(control_fd, -1, _core.PUBLISHER, files.label)
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
        raise error_of(error, label) from None


def _open_own(files: Files, path: str) -> int:
    """Open one file of a channel to publish to, which must belong to this user."""
    try:
        fd = opening.open_path(path, os.O_RDWR)
    except OSError as error:
        if error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise
        what = "cannot be taken over, for which both of its files must be writable"
        raise explained(error, files.title, what, path) from None
    return checked(fd, path, writing=True)
