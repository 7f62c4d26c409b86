"""Helpers of the tests: child processes that are controlled by messages, never by sleeping.

``start(target, *args)`` runs ``target(pipe, *args)`` in a child and returns a Child. A test and its child talk through
the pipe; ``get`` has a watchdog of a minute, which only turns a hang into a failure.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import sys
import traceback
from multiprocessing.connection import Connection

WATCHDOG_S = 60.0


class Failure(Exception):
    """A child failed; its traceback is the message."""


class Child:
    """A child process and this side of its pipe. As a context manager it is killed at the end."""

    def __init__(self, process, pipe: Connection) -> None:
        self.process = process
        self.pipe = pipe

    @property
    def pid(self) -> int:
        return self.process.pid

    def get(self):
        """The child's next message. Fails if the child failed, died, or is silent for a minute."""
        if not self.pipe.poll(WATCHDOG_S):
            raise Failure(f"pid {self.pid} was silent for {WATCHDOG_S} s")
        try:
            kind, content = self.pipe.recv()
        except (EOFError, ConnectionResetError):
            self.process.join(WATCHDOG_S)
            raise Failure(f"pid {self.pid} ended with {self.process.exitcode} and no message") from None
        if kind == "failed":
            raise Failure(content)
        return content

    def put(self, message=None) -> None:
        self.pipe.send(message)

    def kill(self) -> int:
        """SIGKILL, and wait for the kernel to have taken everything back. Returns the exit code."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)
        self.process.join()  # waits for the pid: a grandchild may keep all else of it open
        return self.join()

    def join(self) -> int:
        """Wait for the end; returns the exit code (negative: the signal)."""
        self.process.join(WATCHDOG_S)
        code = self.process.exitcode
        if code is None:
            raise Failure(f"pid {self.pid} did not end within {WATCHDOG_S} s")
        self.pipe.close()
        self.process.close()
        return code

    def __enter__(self) -> Child:
        return self

    def __exit__(self, *_: object) -> None:
        if not self.pipe.closed:
            self.kill()


class Pipe:
    """The child's side: ``put`` and ``get``."""

    def __init__(self, pipe: Connection) -> None:
        self._pipe = pipe

    def put(self, message=None) -> None:
        self._pipe.send(("message", message))

    def get(self):
        return self._pipe.recv()

    def has_message(self) -> bool:
        return self._pipe.poll(0)


def start(target, *args, method: str = "fork") -> Child:
    """Run ``target(pipe, *args)`` in a new process."""
    context = multiprocessing.get_context(method)
    ours, theirs = context.Pipe()
    process = context.Process(target=_run, args=(ours if method == "fork" else None, theirs, target, args))
    process.start()
    theirs.close()
    return Child(process, ours)


def _run(parents: Connection | None, pipe: Connection, target, args: tuple) -> None:
    if parents is not None:
        parents.close()  # or the parent's death would not be seen here
    try:
        target(Pipe(pipe), *args)
    except EOFError:
        pass  # the test is over
    except BaseException:
        with contextlib.suppress(OSError):
            pipe.send(("failed", traceback.format_exc()))
        sys.exit(1)


def descriptors() -> dict[int, str]:
    """The open descriptors of this process and what they lead to."""
    found = {}
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(FileNotFoundError):
            found[int(name)] = os.readlink(f"/proc/self/fd/{name}")
    return found


def untorn_mappings() -> list[str]:
    """This process's mappings of channels, as lines of /proc/self/maps."""
    with open("/proc/self/maps") as maps:
        found = [line.rstrip() for line in maps if "/memfd:untorn" in line or "/untorn-" in line]
    return [line for line in found if not line.endswith(".so")]  # of a checkout in a directory untorn-...
