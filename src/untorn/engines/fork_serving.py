"""The fork server: a process that has imported what workers need, and forks them.

::

    program ── asks, with descriptors ──> fork server ── forks ──> worker     a child of the program, not of the server
       ^                                                              │
       └──────────── the pipe of the request is closed ───────────────┘       it runs

It starts like a worker (starting.py), runs the main program and imports the modules of the model. Then it has one
thread, and waits for requests. It forks with _core.fork_sibling(), so the program waits for the workers as for those
that it spawns, and its own end changes nothing for them.

If the imports have made it unfit for forking, it says why, and becomes the worker of the first request itself: it is in
the state of a spawned one.

It ends with the program (a descriptor of that process, by which the kernel tells), when the program closes the
connection, when a file that it has imported changes, and some time after the last trainer was closed.
"""

from __future__ import annotations

import ctypes
import gc
import marshal
import mmap
import os
import select
import socket
import sys
import time
from contextlib import suppress
from typing import Any

from untorn import _core
from untorn.engines.forkable import why_not_forkable
from untorn.engines.import_watch import ImportWatch
from untorn.engines.lifeline import lifeline_descriptors
from untorn.engines.starting import be_fork, begin, run_main

__all__ = ["CANCELLED_AT", "CONTENT_AT", "MAX_NBYTES", "PID_AT", "run_server"]

#: of a request's memory file: the id of the worker, whether the request is cancelled, and the worker's description
PID_AT, CANCELLED_AT, CONTENT_AT = 0, 4, 8
MAX_NBYTES = 2000
_MAX_DESCRIPTORS = 8


def run_server(start: dict[str, Any]) -> None:
    """Be the fork server that ``start`` describes, until the program ends or wants no more of it. In a worker that it
    has forked, returns when the worker's work is done."""
    control = socket.socket(fileno=start["control"])
    control.set_inheritable(False)
    try:
        program = os.pidfd_open(start["program"])
    except ProcessLookupError:
        return
    if os.getppid() != start["program"]:
        return  # it ended, and its number belongs to another
    with ImportWatch() as watch:
        begin(start)
        problem = run_main(start["main"])
        if problem is None:
            watch.import_modules(start["modules"])
    known = {0, 1, 2, start["logs"], control.fileno(), program} | lifeline_descriptors()
    reason = watch.reasons[0] if watch.reasons else why_not_forkable(known)
    server = _Server(control, program, known, watch, problem, start["idle_s"])
    if reason is not None:
        server.tell("unfit", reason)
        server.run_first_request()
        return
    _silence()
    gc.collect()
    gc.freeze()  # so that a collection in a worker does not write to, and so copy, the memory of all these objects
    server.tell("ready", "")
    server.run()


class _Server:
    def __init__(
        self,
        control: socket.socket,
        program: int,
        known: set[int],
        watch: ImportWatch,
        problem: Exception | None,
        idle_s: float,
    ) -> None:
        self._control = control
        self._program = program
        self._known = known
        self._watch = watch
        self._problem = problem
        self._idle_s = idle_s
        self._idle_since_s: float | None = None

    def tell(self, what: str, why: str) -> None:
        """Send a message to the program, if it is still there."""
        with suppress(OSError):
            self._control.send(f"{what} {why}".encode()[:MAX_NBYTES])

    def run(self) -> None:
        """Serve until the end; in a worker, run it."""
        start = None
        while start is None:
            message, fds = self._receive()
            if message in (b"idle", b"busy"):
                self._idle_since_s = time.monotonic() if message == b"idle" else None
                continue
            if message != b"fork":
                os._exit(0)  # without what the modules would do at exit: this process has only imported them
            self._idle_since_s = None
            reason = self._why_not(fds)
            if reason is not None:
                self.tell("stale", reason)
                os._exit(0)
            start = self._fork(fds)
        be_fork(start, self._problem)

    def run_first_request(self) -> None:
        """Be the worker of the first request; the program turns to others with the rest."""
        message, fds = self._receive()
        if message != b"fork":
            return
        with mmap.mmap(fds[0], 0) as memory:
            memory[PID_AT : PID_AT + 4] = os.getpid().to_bytes(4, sys.byteorder)
            start = self._begin_worker(memory, fds)
        be_fork(start, self._problem)

    def _receive(self) -> tuple[bytes, list[int]]:
        """Return the next message with its descriptors. It is empty when this process has to end."""
        poller = select.poll()
        for each in (self._control.fileno(), self._program):
            poller.register(each, select.POLLIN)
        while True:
            wait_s = None
            if self._idle_since_s is not None:
                wait_s = max(0.0, self._idle_since_s + self._idle_s - time.monotonic())
            ready = [fd for fd, _ in poller.poll(None if wait_s is None else wait_s * 1000)]
            if self._program in ready:
                return b"", []
            if self._control.fileno() in ready:
                try:
                    message, fds, _, _ = socket.recv_fds(self._control, MAX_NBYTES, _MAX_DESCRIPTORS)
                except OSError:
                    return b"", []
                return message, fds
            if not ready and wait_s == 0.0:
                return b"", []

    def _why_not(self, fds: list[int]) -> str | None:
        changed = self._watch.changed_file()
        return f"{changed} has changed" if changed is not None else why_not_forkable(self._known | set(fds))

    def _fork(self, fds: list[int]) -> dict[str, Any] | None:
        """Fork a worker. Return its description in the worker, None in the server."""
        with mmap.mmap(fds[0], 0) as memory:
            if not memory[CANCELLED_AT]:
                try:
                    if _core.fork_sibling(memory) == 0:
                        self._watch.set_generators()
                        return self._begin_worker(memory, fds)
                except OSError as error:
                    self.tell("failed", str(error))
        for fd in fds:
            os.close(fd)
        if self._problem is not None:
            os._exit(0)  # the next worker tries the main program again
        return None

    def _begin_worker(self, memory: mmap.mmap, fds: list[int]) -> dict[str, Any]:
        """Take over what a request gives to its worker, close all else that was the server's, and return the worker's
        description."""
        start: dict[str, Any] = marshal.loads(memory[CONTENT_AT:])
        cancelled = memory[CANCELLED_AT]
        self._control.close()
        os.close(self._program)
        file, pipe, output, errors, start["logs"], *tracker = fds
        os.dup2(output, 1)
        os.dup2(errors, 2)
        for fd in (file, output, errors, pipe):
            os.close(fd)
        if cancelled:
            os._exit(0)
        start["tracker"] = tracker[0] if tracker else None
        for name, value in start["environment"].items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
        return start


def _silence() -> None:
    """Write what is buffered, and let go of the program's standard streams: each worker gets them with its request."""
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError, AttributeError):
            stream.flush()
    ctypes.CDLL(None).fflush(None)
    null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    for fd in (1, 2):
        os.dup2(null, fd)
    os.close(null)
