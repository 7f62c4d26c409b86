"""A worker process as the server knows it: by a descriptor of the kernel's for this process, not by its number.

Whether it lives does not depend on who reaps it. With SIGCHLD ignored the kernel reaps it; a handler, a thread or a
library of the user's may wait for any child. A number may by then be another process's; the descriptor never is.
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import signal
import subprocess
import time
from pathlib import Path

from untorn.share.descriptors import keep

__all__ = ["ChildProcess", "is_stopped"]

_NONE = -1
_RETRY_S = 0.01
_LONG_S = 60.0
#: for subprocess, which wants a number
_UNKNOWN_EXITCODE = 255


class ChildProcess:
    """A process that launching.py started. Made by ChildProcess.of().

    Attributes:
        pid: its number, to be shown; nothing is done by it.
    """

    def __init__(self, process: subprocess.Popen[bytes], fd: int) -> None:
        self.pid = process.pid
        self._process = process
        #: _NONE: the kernel is too old for such descriptors (Linux 5.3), or a filter refuses them
        self._fd = fd
        self._ended = False
        self._exitcode: int | None = None

    @classmethod
    def of(cls, process: subprocess.Popen[bytes]) -> ChildProcess:
        """Open the descriptor of a process that was just started. Raises OSError if none is left."""
        fd = _NONE
        try:
            fd = keep(os.pidfd_open(process.pid))
        except (ProcessLookupError, PermissionError, NotImplementedError):
            pass  # it ended, and somebody has reaped it; or it is refused
        except OSError as error:
            if error.errno != errno.ENOSYS:
                process.kill()
                process.wait()
                raise
        return cls(process, fd)

    @property
    def ended(self) -> bool:
        """Return whether the kernel has ended it; then its exit code is known, if nobody else took it."""
        if self._ended:
            return True
        kind, number = (os.P_PID, self.pid) if self._fd == _NONE else (os.P_PIDFD, self._fd)
        try:
            result = os.waitid(kind, number, os.WEXITED | os.WNOHANG)
        except ChildProcessError:  # it ended, and was reaped: by subprocess, which then knows the rest
            self._end(self._process.returncode)
        else:
            if result is not None:
                self._end(result.si_status if result.si_code == os.CLD_EXITED else -result.si_status)
        return self._ended

    def _end(self, exitcode: int | None) -> None:
        self._ended, self._exitcode = True, exitcode
        # or else subprocess would wait for the number, which may be another child's by now
        self._process.returncode = _UNKNOWN_EXITCODE if exitcode is None else exitcode

    @property
    def exitcode(self) -> int | None:
        """The exit code as in subprocess: negative for a signal. None while it runs, and if somebody else took it."""
        return self._exitcode

    @property
    def stopped(self) -> bool:
        """Return whether it was stopped by a signal, or by a debugger. The kernel says so; what has ended is not."""
        return is_stopped(self.pid) and not self.ended  # so the number was not another's when it was looked up

    def kill(self) -> None:
        """Send SIGKILL, if it has not ended."""
        if self.ended:
            return
        with contextlib.suppress(ProcessLookupError):
            if self._fd == _NONE:
                os.kill(self.pid, signal.SIGKILL)
            else:
                signal.pidfd_send_signal(self._fd, signal.SIGKILL)

    def join(self, timeout_s: float) -> bool:
        """Wait until it has ended, at most this long; return whether it has."""
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
                time.sleep(min(left_s, _RETRY_S))  # it ended, and a debugger has not let its parent know yet
        return True

    def end(self) -> None:
        """Kill it, wait until the kernel has ended it, and let go of it."""
        self.kill()
        while not self.join(_LONG_S):
            pass
        self.close()

    def close(self) -> None:
        """Let go of a process that has ended. Closing twice is fine."""
        self.forget()

    def forget(self) -> None:
        """Let go of it as it is: this process is not its parent, but a forked copy of it."""
        if not self._ended:
            self._end(None)
        if self._fd != _NONE:
            os.close(self._fd)
            self._fd = _NONE


def is_stopped(pid: int) -> bool:
    """Return whether the process that has this number now was stopped, by a signal or by a debugger. False where that
    cannot be known, as when no descriptor is left: who ends the workers must not fail for want of a look."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return stat.rpartition(")")[2].split()[0] in ("T", "t")  # the name before it may contain anything
