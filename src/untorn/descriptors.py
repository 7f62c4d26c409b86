"""Descriptors that are kept never have the numbers 0, 1 and 2.

A program may start with its standard streams closed, or close them, as daemons do. The next file opened then gets the
lowest number that is free, and whatever writes to the standard error, a C library or a child, would write into it.
In C: csrc/descriptors.h.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
import threading
from collections.abc import Iterator

__all__ = ["FIRST", "keep", "keep_socket", "opener", "standard_streams"]

#: the lowest number that may be kept
FIRST = 3


def keep(fd: int) -> int:
    """Return a descriptor of the same file with a number that may be kept. Takes ``fd`` over."""
    if fd >= FIRST:
        return fd
    try:
        return fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, FIRST)
    finally:
        os.close(fd)


def keep_socket(found: socket.socket) -> socket.socket:
    """Do the same for a socket, which is taken over: whether it blocks does not change."""
    if found.fileno() >= FIRST:
        return found
    timeout_s = found.gettimeout()
    kept = socket.socket(fileno=keep(found.detach()))
    kept.settimeout(timeout_s)
    return kept


def opener(path: str, flags: int) -> int:
    """Open a file for open(..., opener=opener), under a number that may be kept."""
    return keep(os.open(path, flags | os.O_CLOEXEC, 0o666))


class _Filling:
    """The calls that are inside standard_streams(), and the descriptors that were opened for them."""

    def __init__(self) -> None:
        self.lock = threading.RLock()  # a signal handler may come in anywhere
        self.inside = 0
        self.filled: list[int] = []

    def begin(self, *, inherited: bool) -> None:
        self.inside += 1  # first: a call that comes in between and leaves must not close what this one opens
        try:
            while (fd := os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)) < FIRST:
                self.filled.append(fd)
            os.close(fd)
        except BaseException:
            self.end()
            raise
        for fd in self.filled if inherited else ():
            os.set_inheritable(fd, True)

    def end(self) -> None:
        self.inside -= 1
        null = os.stat(os.devnull).st_rdev
        while self.filled and self.inside == 0:
            fd = self.filled.pop()
            with contextlib.suppress(OSError):
                if os.fstat(fd).st_rdev == null:  # else the program has given it a new meaning meanwhile
                    os.close(fd)


_filling = _Filling()
#: a child that was forked meanwhile keeps what was opened, which is harmless
os.register_at_fork(after_in_child=_filling.__init__)  # type: ignore[misc]


@contextlib.contextmanager
def standard_streams(*, inherited: bool = False) -> Iterator[None]:
    """Keep the numbers 0 to 2 taken in the block: those that are free lead to /dev/null, so that what others open gets
    higher ones. ``inherited``: so they do in programs that are started meanwhile."""
    with _filling.lock:
        _filling.begin(inherited=inherited)
    try:
        yield
    finally:
        with _filling.lock:
            _filling.end()
