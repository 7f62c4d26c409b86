"""Keep descriptors away from the numbers 0, 1 and 2.

A program may start with its standard streams closed, or close them, as daemons do. The next opened file then gets the
lowest free number, and code that writes to the standard error, in a C library or a child, would write to that file.
csrc/descriptors.h does the same in C.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
import threading
from collections.abc import Iterator

__all__ = ["FIRST", "keep", "keep_socket", "opener", "standard_streams"]

#: the lowest number that a descriptor may have
FIRST = 3


def keep(fd: int) -> int:
    """Return a descriptor of the same file with a number above 2. Takes ownership of ``fd``."""
    if fd >= FIRST:
        return fd
    try:
        return fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, FIRST)
    finally:
        os.close(fd)


def keep_socket(found: socket.socket) -> socket.socket:
    """Return the same socket with a number above 2, blocking or not as before. Takes ownership of the given one."""
    if found.fileno() >= FIRST:
        return found
    timeout_s = found.gettimeout()
    kept = socket.socket(fileno=keep(found.detach()))
    kept.settimeout(timeout_s)
    return kept


def opener(path: str, flags: int) -> int:
    """Open a file for open(..., opener=opener), with a number above 2."""
    return keep(os.open(path, flags | os.O_CLOEXEC, 0o666))


class _Filling:
    """The number of calls inside standard_streams(), and the descriptors that were opened for them."""

    def __init__(self) -> None:
        self.lock = threading.RLock()  # a signal handler may run at any point
        self.inside = 0
        self.filled: list[int] = []

    def begin(self, *, inherited: bool) -> None:
        self.inside += 1  # first, so that a call in a signal handler does not close what this one opens
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
                if os.fstat(fd).st_rdev == null:  # otherwise the program has reused the number meanwhile
                    os.close(fd)


_filling = _Filling()
#: a child that is forked meanwhile keeps the opened descriptors, which does no harm
os.register_at_fork(after_in_child=_filling.__init__)  # type: ignore[misc]


@contextlib.contextmanager
def standard_streams(*, inherited: bool = False) -> Iterator[None]:
    """Occupy the free numbers among 0 to 2 with /dev/null for the block, so that files opened meanwhile get higher
    ones. With ``inherited``, programs that are started meanwhile inherit them."""
    with _filling.lock:
        _filling.begin(inherited=inherited)
    try:
        yield
    finally:
        with _filling.lock:
            _filling.end()
