"""The probes of ``untorn doctor``: each uses a kernel feature that channels need, once.

They leave nothing behind: files have no name or lose it at once, descriptors are closed, and the channel is anonymous.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import os
import platform
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator

import untorn
from untorn.cli.checks import Check, Machine, note, ok, problem
from untorn.cli.listing import UNUSED, list_channels
from untorn.cli.tables import count, plain, size
from untorn.share.lowlevel import default_path

__all__ = ["channels", "directory", "kernel"]

_FUTEX = {"x86_64": 202, "aarch64": 98}
_FUTEX_WAITV = 449
_FUTEX_WAKE = 1
_PUNCH_HOLE = 3  # FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE
_FLOCK = struct.Struct("hhqqi4x")
#: file systems on which mapped memory or locks may not be shared as on a local one
_REMOTE = ("nfs", "cifs", "smb", "9p", "fuse.sshfs", "ceph", "lustre", "glusterfs", "afs")


def kernel() -> list[Check]:
    """Try system calls. A sandbox (gVisor, an old seccomp profile) may lack calls that the kernel's version has."""
    advice = "this kernel, or the sandbox around this process, lacks it, and channels need it; allow it"
    tried = [
        ("memfd_create", _try_memfd, "anonymous memory can be sealed"),
        ("OFD locks", _try_locks, "they tell which processes are alive"),
        ("futex", _try_futex, "readers can sleep until a version is published"),
        ("anonymous channel", _try_anonymous, "another process can open it"),
    ]
    checks = []
    for name, attempt, found in tried:
        try:
            attempt()
            checks.append(ok(name, f"works: {found}"))
        except (OSError, RuntimeError, untorn.UntornError, subprocess.SubprocessError) as error:
            checks.append(problem(name, f"failed: {plain(error)}", advice))
    found = "available" if _has_futex_waitv() else "not available (new in Linux 5.16); untorn does not need it"
    checks.append(ok("futex_waitv", found))
    return checks


@contextlib.contextmanager
def _memfd() -> Iterator[int]:
    fd = os.memfd_create("untorn-doctor", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        yield fd
    finally:
        os.close(fd)


def _try_memfd() -> None:
    with _memfd() as fd:
        os.posix_fallocate(fd, 0, 8192)
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK)
        try:
            os.ftruncate(fd, 0)
        except PermissionError:
            return
        raise RuntimeError("a sealed file could be shrunk")


def _try_locks() -> None:
    """Check that a lock of one file description is seen through another."""
    lock = _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, 3, 1, 0)
    with _memfd() as fd:
        fcntl.fcntl(fd, fcntl.F_OFD_SETLK, lock)
        other = os.open(f"/proc/self/fd/{fd}", os.O_RDONLY | os.O_CLOEXEC)
        try:
            seen = fcntl.fcntl(other, fcntl.F_OFD_GETLK, lock)
        finally:
            os.close(other)
    if _FLOCK.unpack(seen)[0] == fcntl.F_UNLCK:
        raise RuntimeError("a lock was not visible through another descriptor")


def _syscall(number: int, *arguments: object) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.syscall(ctypes.c_long(number), *arguments) < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))


def _try_futex() -> None:
    if platform.machine() in _FUTEX:
        word = ctypes.c_uint32(0)
        _syscall(_FUTEX[platform.machine()], ctypes.byref(word), _FUTEX_WAKE, 1, None, None, 0)


def _has_futex_waitv() -> bool:
    """Return whether the call exists. If it does, waiting for zero futexes fails with EINVAL."""
    try:
        _syscall(_FUTEX_WAITV, None, 0, 0, None, 0)
    except OSError as error:
        return error.errno == errno.EINVAL
    return True


_READER = "import os, sys; os.pread(os.open(sys.argv[1], os.O_RDWR), 8, 0) == b'untorn\\r\\n' or sys.exit('no channel')"


def _try_anonymous() -> None:
    """Read a version here, and open the control file through /proc in another process, as subscribers do."""
    with untorn.publish(1) as publisher, publisher.subscriber() as subscriber:
        publisher.update(2)
        with subscriber.snapshot(newer_than=1, timeout_s=10) as snapshot:
            if snapshot.value != 2:
                raise RuntimeError(f"read {snapshot.value!r} where 2 was published")
        control = subscriber.address.places[0][0]
        command = [sys.executable, "-I", "-S", "-c", _READER, control]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        last = done.stderr.strip().rpartition("\n")[2]
        raise RuntimeError(f"another process cannot open {control}: {last} (is this process dumpable?)")


# -- directories


def directory(machine: Machine, path: str) -> list[Check]:
    """Try what channels need in this directory."""
    name, checks = f"files in {path}", []
    mount = machine.mount(os.path.realpath(path))
    if mount is not None and mount[1].startswith(_REMOTE):
        advice = "choose a local file system; over a network, neither memory nor locks are shared"
        checks.append(problem(name, f"on {mount[1]}", advice))
    attempts: tuple[tuple[str, Callable[[int], None]], ...] = (
        ("reserving space (fallocate)", lambda fd: os.posix_fallocate(fd, 0, 16384)),
        ("releasing it (holes)", _punch),
    )
    try:
        fd, has_nameless = _new_file(path)
    except OSError as error:
        what = f"no channel can be created there: {error.strerror}"
        return [*checks, problem(name, what, "choose a writable directory on tmpfs, ext4, xfs or btrfs")]
    if not has_nameless:
        advice = "a publisher that is killed while it creates a channel can leave files; untorn gc removes them"
        checks.append(note(name, "nameless files (O_TMPFILE) are not supported", advice))
    try:
        for what, attempt in attempts:
            try:
                attempt(fd)
            except OSError as error:
                advice = "choose a directory on tmpfs, ext4, xfs or btrfs"
                checks.append(problem(name, f"{what} failed: {error.strerror}", advice))
    finally:
        os.close(fd)
    kind = f" on {mount[1]}" if mount is not None else ""
    return checks or [ok(name, f"nameless files, reserved space and holes work{kind}")]


def _new_file(folder: str) -> tuple[int, bool]:
    """Return a file without a name, and whether the file system can create nameless files."""
    flags = os.O_RDWR | os.O_CLOEXEC
    try:
        return os.open(folder, flags | os.O_TMPFILE, 0o600), True
    except OSError as error:
        if error.errno not in (errno.EOPNOTSUPP, errno.EISDIR, errno.EINVAL, errno.ENOSYS):
            raise
    path = os.path.join(folder, f".untorn-doctor-{os.getpid()}-{os.urandom(8).hex()}")
    fd = os.open(path, flags | os.O_CREAT | os.O_EXCL, 0o600)
    os.unlink(path)
    return fd, False


def _punch(fd: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.fallocate(fd, _PUNCH_HOLE, ctypes.c_int64(0), ctypes.c_int64(4096)) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))


def channels() -> list[Check]:
    """Check for unused and unreadable channels of this user in /dev/shm."""
    try:
        found = list_channels()
    except OSError as error:
        return [problem("channels", str(error), "correct what the error says")]
    used = sum(entry.status == "used" for entry in found)
    unused = [entry for entry in found if entry.status in UNUSED]
    unreadable = [entry.name for entry in found if entry.status == "unreadable"]
    checks = []
    if unused:
        what = f"{count(len(unused), 'unused channel')}, {size(sum(entry.file_nbytes for entry in unused))}"
        checks.append(note("channels", what, "untorn gc removes channels that no living process uses"))
    if unreadable:
        names = ", ".join(map(plain, unreadable))
        checks.append(note("channels", f"unreadable: {names}", f"untorn ls says why; they are in {default_path()}"))
    return checks or [ok("channels", f"{used} in use, none unused")]
