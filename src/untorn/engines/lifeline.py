"""End worker processes with the program, whatever they are doing.

::

    program: keeps the end of a pipe for writing     worker, fork server: opens the same pipe for reading, by /proc
                        └── closed by the kernel when the program is gone ──> SIGIO, and SIGALRM after GRACE_S

A worker looks between two gradients whether its program lives, and ends in order. The signal is for a worker whose
model function takes long or never returns, and for a process that is importing the main program.
"""

from __future__ import annotations

import os
import threading
from contextlib import suppress

from untorn import _core
from untorn.descriptors import keep

__all__ = ["Lifeline", "follow", "lifeline", "lifeline_descriptors"]

#: process, descriptor and inode of a pipe's end for writing
Lifeline = tuple[int, int, int]

#: how long a process has to end in order
_GRACE_S = 5


class _Pipe:
    """The end of a pipe that this process keeps: the one for writing in a program, the other one in its workers."""

    def __init__(self) -> None:
        self.lock = threading.RLock()  # a signal handler may come in between
        self.fd = self.inode = -1

    def keep(self, fd: int) -> None:
        """Keep this end, and close the one before."""
        self.close()
        self.fd, self.inode = fd, os.fstat(fd).st_ino

    @property
    def is_open(self) -> bool:
        """Whether no other code has closed it."""
        try:
            return self.fd >= 0 and os.fstat(self.fd).st_ino == self.inode
        except OSError:
            return False

    def close(self) -> None:
        """Close it, unless other code has."""
        if self.is_open:
            os.close(self.fd)
        self.fd = self.inode = -1

    def forget(self) -> None:
        """In a forked copy: let go of it, so that this process's end alone closes it."""
        self.close()
        self.__init__()  # type: ignore[misc]


_ours, _followed = _Pipe(), _Pipe()


def lifeline() -> Lifeline:
    """Return what processes need to follow() this one. The descriptor is kept until this process ends."""
    with _ours.lock:
        if not _ours.is_open:
            reading, writing = os.pipe2(os.O_CLOEXEC)
            os.close(reading)
            _ours.keep(keep(writing))
        return os.getpid(), _ours.fd, _ours.inode


def follow(program: Lifeline) -> None:
    """End this process when the program has ended, after some seconds in which it may end by itself. Where the kernel
    refuses that, it only ends by itself."""
    pid, number, inode = program
    with suppress(OSError):  # such as that the program has ended: the attempt to attach to its jobs will tell
        fd = keep(os.open(f"/proc/{pid}/fd/{number}", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC))
        if os.fstat(fd).st_ino != inode:  # code of the program has closed its descriptors
            os.close(fd)
            return
        _followed.keep(fd)
        _core.follow_lifeline(fd, _GRACE_S)


def lifeline_descriptors() -> set[int]:
    """Return the descriptors that this process keeps for this purpose."""
    return {each.fd for each in (_ours, _followed)} - {-1}


os.register_at_fork(after_in_child=_ours.forget)
