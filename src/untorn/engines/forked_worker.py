"""A worker that a fork server is asked for, and the fork server as the program holds it.

A request is a memory file and a pipe. The kernel writes the worker's id into the file before the worker runs, and the
pipe is closed by all others when the worker runs, or when it is certain that it never will: so whatever is killed, and
when, this process learns of it and knows the id of each process that is its child.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import marshal
import os
import select
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence

from untorn.descriptors import keep, keep_socket, standard_streams
from untorn.engines.child import ChildProcess, WorkerHandle
from untorn.engines.fork_serving import CANCELLED_AT, CONTENT_AT, MAX_NBYTES, PID_AT
from untorn.engines.inherited import CHANGING_VARIABLES
from untorn.engines.launching import Call, call_of, launch_server, memory_file, tracker_descriptor

__all__ = ["ForkServer", "ForkedWorker", "Request"]

_log = logging.getLogger(__name__)
_PID_WAIT_S = 1.0
_RETRY_S = 0.01
_LONG_S = 60.0


class _Sibling:
    """A process that a fork server has forked: a child of this process."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.returncode: int | None = None

    def kill(self) -> None:
        os.kill(self.pid, signal.SIGKILL)

    def wait(self) -> int:
        return os.waitpid(self.pid, 0)[1]


class Request:
    """A worker that a server is asked for. A signal handler may close it at any line, also between these.

    Args:
        memory: the memory file.
        pipe: the end of the pipe that shows when the server and the worker have closed the other one.
    """

    def __init__(self, memory: int, pipe: int) -> None:
        self._memory = memory
        self._pipe = pipe

    @property
    def pid(self) -> int:
        """The id of the worker; 0 while there is none, and once this is closed."""
        try:
            return int.from_bytes(os.pread(self._memory, 4, PID_AT), sys.byteorder)
        except OSError:
            if self._memory < 0:
                return 0
            raise

    def wait(self, timeout_s: float) -> bool:
        """Wait until it is certain whether there is a worker. Returns whether it is, which was so if this is closed."""
        poller = select.poll()
        try:
            poller.register(self._pipe, 0)  # its end is always reported
        except ValueError:
            return True
        return bool(poller.poll(timeout_s * 1000))

    def cancel(self) -> None:
        """Have the server fork no worker for it, or the worker end at once."""
        try:
            os.pwrite(self._memory, b"\1", CANCELLED_AT)
        except OSError:
            if self._memory >= 0:
                raise

    def close(self) -> None:
        """Close the descriptors. May be called twice."""
        descriptors, self._memory, self._pipe = (self._memory, self._pipe), -1, -1
        for fd in descriptors:
            if fd >= 0:
                os.close(fd)


class ForkServer:
    """A fork server of this process.

    Attributes:
        process: the process.
        ready: whether it has been able to fork.
        verdict: why it will not fork, as (kind, reason).
        discarded: whether this process has ended it.
    """

    def __init__(self, process: ChildProcess, control: socket.socket) -> None:
        self.process = process
        self.control = control
        self.ready = False
        self.verdict: tuple[str, str] | None = None
        self.discarded = False

    @property
    def descriptors(self) -> set[int]:
        """What this process has open for it."""
        return {self.control.fileno(), self.process.descriptor} - {-1}

    @classmethod
    def start(cls, modules: Sequence[str], variables: Mapping[str, str], *, logs: int, idle_s: float) -> ForkServer:
        """Start one. See launch_server()."""
        ours, theirs = (keep_socket(each) for each in socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET))
        try:
            process = launch_server(
                modules=modules, variables=variables, logs=logs, control=theirs.fileno(), idle_s=idle_s
            )
        except BaseException:
            ours.close()
            raise
        finally:
            theirs.close()
        ours.setblocking(False)
        return cls(process, ours)

    def look(self) -> None:
        """Read what the server has said."""
        while not self.discarded:
            try:
                message = self.control.recv(MAX_NBYTES)
            except OSError as error:
                if error.errno == errno.EINTR:
                    continue
                return
            if not message:
                return
            kind, _, reason = message.decode(errors="replace").partition(" ")
            if kind == "ready":
                self.ready = True
            else:
                self.verdict = kind, reason
                level = logging.INFO if kind == "unfit" else logging.DEBUG
                _log.log(level, "worker processes are not forked: %s", reason)

    @property
    def is_unfit(self) -> bool:
        """Whether what it has imported, or the kernel, does not let it fork."""
        return self.verdict is not None and self.verdict[0] in ("unfit", "failed")

    @property
    def serves(self) -> bool:
        """Whether it can be asked, as far as is known."""
        self.look()
        return self.verdict is None and not self.discarded and not self.process.ended

    def tell(self, message: bytes) -> None:
        """Send a message without descriptors, if it still serves."""
        with contextlib.suppress(OSError):
            self.control.send(message)

    def ask(self, name: str, call: Call, logs: int) -> Request | None:
        """Ask for a worker. Returns None if this server cannot be asked."""
        environment = {each: os.environ.get(each) for each in CHANGING_VARIABLES}
        content = marshal.dumps(call_of(name, call) | {"environment": environment})
        tracker = tracker_descriptor()
        with standard_streams(inherited=True), memory_file(bytes(CONTENT_AT) + content) as fd:
            ours, theirs = (keep(each) for each in os.pipe2(os.O_CLOEXEC))
            request = Request(-1, ours)
            try:
                request = Request(keep(os.dup(fd)), ours)
                given = [fd, theirs, 1, 2, logs, *([] if tracker is None else [tracker])]
                socket.send_fds(self.control, [b"fork"], given)
            except OSError as error:
                request.close()
                _log.debug("a fork server cannot be asked: %s", error)
                return None
            finally:
                os.close(theirs)
            return request

    def discard(self) -> None:
        """Kill it. Workers that it was asked for by others are started in another way."""
        self.discarded = True
        self.control.close()
        self.process.end()

    def forget(self) -> None:
        """Leave it alone, in a forked copy of its program."""
        self.discarded = True
        self.control.close()
        self.process.forget()


class ForkedWorker:
    """A worker that a server was asked for. See WorkerHandle. While the server imports, it stands for the worker.

    Args:
        again: starts the worker in another way, or on another server.
        discard: ends a server that this worker cannot be had from, or ended on, otherwise.
    """

    def __init__(
        self,
        server: ForkServer,
        request: Request,
        *,
        again: Callable[[], WorkerHandle],
        discard: Callable[[ForkServer], None],
    ) -> None:
        self._server = server
        self._request = request
        self._again = again
        self._discard = discard
        self._cancelled = False
        self._worker: WorkerHandle | None = None
        self._finding = threading.RLock()

    def _found(self) -> WorkerHandle | None:
        """Return the worker; None while it is not certain whether there is one, or while another thread looks."""
        if self._worker is None and self._finding.acquire(blocking=False):
            try:
                if self._worker is None and self._request.wait(0.0):
                    worker = self._find()
                    if self._worker is None:
                        self._worker = worker
                    elif worker is not None and worker is not self._worker:
                        worker.end()  # a signal handler was here meanwhile, and started one too
                    if self._worker is not None:
                        self._request.close()
                        if self._cancelled:
                            self._worker.kill()  # it began before it could see that
            finally:
                self._finding.release()
        return self._worker

    def _find(self) -> WorkerHandle | None:
        server, pid = self._server, self._request.pid
        if self._worker is not None:
            return self._worker  # a signal handler was here meanwhile
        server.look()
        if pid == server.process.pid:
            return server.process  # it has become the worker
        if pid:
            worker = ChildProcess.of(_Sibling(pid))
            if self._worker is None:
                return worker
            worker.forget()  # likewise
            return self._worker
        if self._cancelled:
            return _Never()
        if server.ready or server.verdict is not None or server.discarded:
            return self._again()
        return server.process if server.process.ended else None  # a worker too would have died while it imports

    @property
    def pid(self) -> int:
        """See WorkerHandle."""
        worker = self._found()
        if worker is None and self._server.ready and self._request.wait(_PID_WAIT_S):
            worker = self._found()
        return self._server.process.pid if worker is None else worker.pid

    @property
    def ended(self) -> bool:
        """See WorkerHandle."""
        worker = self._found()
        return worker is not None and worker.ended

    @property
    def exitcode(self) -> int | None:
        """See WorkerHandle."""
        worker = self._found()
        return None if worker is None else worker.exitcode

    @property
    def stopped(self) -> bool:
        """See WorkerHandle."""
        worker = self._found()
        return self._server.process.stopped if worker is None else worker.stopped

    def kill(self) -> None:
        """See WorkerHandle."""
        self._cancelled = True
        worker = self._found()
        if worker is not None:
            worker.kill()
            return
        self._request.cancel()
        self._server.look()
        if not self._server.ready:
            self._discard(self._server)

    def join(self, timeout_s: float) -> bool:
        """See WorkerHandle."""
        end = time.monotonic() + timeout_s
        while (worker := self._found()) is None:
            left_s = end - time.monotonic()
            if left_s <= 0:
                return False
            if self._request.wait(min(left_s, _LONG_S)):
                time.sleep(min(left_s, _RETRY_S))  # the server dies
        return worker.join(max(0.0, end - time.monotonic()))

    def end(self) -> None:
        """See WorkerHandle."""
        self.kill()
        if self._worker is None and not self.join(_PID_WAIT_S) and self._worker is None:
            self._discard(self._server)  # it is stopped, or waits for something
        while not self.join(_LONG_S):
            self.kill()
        self.close()

    def close(self) -> None:
        """See WorkerHandle."""
        self._request.close()
        if self._worker is not None:
            self._worker.close()

    def forget(self) -> None:
        """See WorkerHandle."""
        self._request.close()
        if self._worker is None:
            self._worker = _Never()
        self._worker.forget()


class _Never:
    """A worker that was cancelled before it began."""

    pid = 0
    ended = True
    exitcode: int | None = -signal.SIGKILL
    stopped = False

    def kill(self) -> None: ...

    def join(self, timeout_s: float) -> bool:
        return True

    def end(self) -> None: ...

    def close(self) -> None: ...

    def forget(self) -> None: ...
