"""A worker process as the server holds it: by a descriptor from the kernel (pidfd), not by its number.

The descriptor tells whether the process has ended even if other code reaped it: with SIGCHLD ignored the kernel reaps
it, and a handler, a thread or a library of the user may wait for any child. Its number may then belong to another
process; the descriptor never does.
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import signal
import time
from pathlib import Path
from typing import Protocol

from untorn.descriptors import keep

__all__ = ["ChildProcess", "Started", "WorkerHandle", "is_stopped"]

_NONE = -1
_RETRY_S = 0.01
_LONG_S = 60.0
#: given to subprocess, which needs a number
_UNKNOWN_EXITCODE = 255


class Started(Protocol):
    """A child process that was just started, such as a subprocess.Popen."""

    returncode: int | None

    @property
    def pid(self) -> int:
        """Its number."""

    def kill(self) -> None:
        """Send SIGKILL."""

    def wait(self) -> int:
        """Wait until it has ended."""


class WorkerHandle(Protocol):
    """A worker process as an engine sees it: a ChildProcess, or one that a fork server is asked for. ChildProcess
    describes the methods."""

    @property
    def pid(self) -> int:
        """Its number, for display only."""

    @property
    def ended(self) -> bool:
        """Whether it has ended."""

    @property
    def exitcode(self) -> int | None:
        """Its exit code."""

    @property
    def stopped(self) -> bool:
        """Whether a signal or a debugger has stopped it."""

    def kill(self) -> None:
        """Send SIGKILL unless it has ended."""

    def join(self, timeout_s: float) -> bool:
        """Wait until it has ended."""

    def end(self) -> None:
        """Kill it, wait until it has ended, and close its descriptor."""

    def close(self) -> None:
        """Close the descriptor of a process that has ended."""

    def forget(self) -> None:
        """Close the descriptor and leave the process alone."""


class ChildProcess:
    """A process that launching.py started; ChildProcess.of() makes one.

    Attributes:
        pid: its number, for display only.
    """

    def __init__(self, process: Started, fd: int) -> None:
        self.pid = process.pid
        self._process = process
        #: _NONE if the kernel has no such descriptors (before Linux 5.3), or a filter refuses them
        self._fd = fd
        self._ended = False
        self._exitcode: int | None = None

    @classmethod
    def of(cls, process: Started) -> ChildProcess:
        """Open the descriptor of a process that was just started. Raises OSError if this process has no free one."""
        fd = _NONE
        try:
            fd = keep(os.pidfd_open(process.pid))
        except (ProcessLookupError, PermissionError, NotImplementedError):
            pass  # it ended and was reaped elsewhere, or the call is refused
        except OSError as error:
            if error.errno != errno.ENOSYS:
                process.kill()
                process.wait()
                raise
        return cls(process, fd)

    @property
    def descriptor(self) -> int:
        """The descriptor, or -1."""
        return self._fd

    @property
    def ended(self) -> bool:
        """Whether the process has ended. Its exit code is known from then on, unless other code reaped it."""
        if self._ended:
            return True
        kind, number = (os.P_PID, self.pid) if self._fd == _NONE else (os.P_PIDFD, self._fd)
        try:
            result = os.waitid(kind, number, os.WEXITED | os.WNOHANG)
        except ChildProcessError:  # it ended, and subprocess, which then knows its exit code, or other code reaped it
            self._end(self._process.returncode)
        else:
            if result is not None:
                self._end(result.si_status if result.si_code == os.CLD_EXITED else -result.si_status)
        return self._ended

    def _end(self, exitcode: int | None) -> None:
        self._ended, self._exitcode = True, exitcode
        # otherwise subprocess would wait for the number, which may belong to another child by now
        self._process.returncode = _UNKNOWN_EXITCODE if exitcode is None else exitcode

    @property
    def exitcode(self) -> int | None:
        """The exit code as in subprocess, negative for a signal. None while it runs, and if other code reaped it."""
        return self._exitcode

    @property
    def stopped(self) -> bool:
        """Whether a signal or a debugger has stopped it, according to the kernel. False once it has ended."""
        return is_stopped(self.pid) and not self.ended  # in this order: the number was still its own when read

    def kill(self) -> None:
        """Send SIGKILL unless it has ended."""
        if self.ended:
            return
        with contextlib.suppress(ProcessLookupError):
            if self._fd == _NONE:
                os.kill(self.pid, signal.SIGKILL)
            else:
                signal.pidfd_send_signal(self._fd, signal.SIGKILL)

    def join(self, timeout_s: float) -> bool:
        """Wait at most ``timeout_s`` until it has ended. Returns whether it has."""
        end = time.monotonic() + timeout_s
        while not self.ended:
            left_s = end - time.monotonic()
            if left_s <= 0:
                return False
            if self._fd == _NONE:
                time.sleep(min(left_s, _RETRY_S))
                continue
            poller = select.poll()
            poller.register(self._fd, select.POLLIN)
            if poller.poll(left_s * 1000) and not self.ended:
                time.sleep(min(left_s, _RETRY_S))  # it ended, but a debugger keeps that from its parent for now
        return True

    def end(self) -> None:
        """Kill it, wait until it has ended, and close its descriptor."""
        self.kill()
        while not self.join(_LONG_S):
            pass
        self.close()

    def close(self) -> None:
        """Close the descriptor of a process that has ended. May be called twice."""
        self.forget()

    def forget(self) -> None:
        """Close the descriptor and leave the process alone, in a forked copy of its parent."""
        if not self._ended:
            self._end(None)
        if self._fd != _NONE:
            os.close(self._fd)
            self._fd = _NONE


def is_stopped(pid: int) -> bool:
    """Return whether a signal or a debugger has stopped the process that has this number now. False if that cannot be
    found out, as when no descriptor is free: ending the workers must not fail because of it."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return stat.rpartition(")")[2].split()[0] in ("T", "t")  # the name before it may contain anything
