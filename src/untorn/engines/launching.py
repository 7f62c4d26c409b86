"""Start a worker process: a new interpreter with an environment of its own.

multiprocessing's spawn is not used: it refuses to start anything in a daemonic process (a task of a Pool, of Dask or of
Celery), passes on whatever start method the process has set, fails in a directory that was deleted, and can give an
environment only by changing this process's own, for all its threads.

The worker inherits a memory file with a dict that describes it, so there is no pipe that one of the two could wait at.
The dict also has this process's path and arguments and the place of its main program; see starting.py. The worker
inherits the standard descriptors, without input, and those that are named here. Code that starts workers in another way
has to give ``run`` of starting.py the same dict, and set the environment.

A fork server (fork_servers.py) is started in the same way, and runs fork_serving.py.
"""

from __future__ import annotations

import marshal
import os
import pickle
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any

from untorn.descriptors import keep, standard_streams
from untorn.engines.child import ChildProcess
from untorn.engines.importable import main_program, worker_path
from untorn.engines.inherited import variables_of_worker
from untorn.engines.lifeline import lifeline
from untorn.engines.starting import runs_main

__all__ = ["Call", "call_of", "launch", "launch_server", "memory_file", "tracker_descriptor"]

#: a function of untorn that a worker calls, and its first arguments; the last one is an error of its start, or None
Call = tuple[Callable[..., None], tuple[Any, ...]]

_PROGRAM = """
import marshal, sys
with open({fd}, "rb") as file:
    start = marshal.load(file)
sys.path[:] = start["path"]
from untorn.engines.{module} import {function}
{function}(start)
"""


def launch(name: str, call: Call, *, environment: Mapping[str, str], logs: int) -> ChildProcess:
    """Start a process that calls a function of untorn. ``environment`` is added to this process's own; ``logs`` is the
    descriptor that its log records go to.

    Raises RuntimeError if no worker can be started here, OSError if the system starts no process.
    """
    tracker = tracker_descriptor()
    start = call_of(name, call) | {"tracker": tracker, "logs": logs}
    inherited = [each for each in (logs, tracker) if each is not None]
    return _start("starting", "run", start, variables_of_worker(environment), inherited)


def launch_server(
    *, modules: Sequence[str], variables: Mapping[str, str], logs: int, control: int, idle_s: float
) -> ChildProcess:
    """Start a fork server that imports these modules and serves the socket ``control``. See launch()."""
    start = {
        "name": "untorn-fork-server",
        "authkey": _authkey(),
        "tracker": None,
        "logs": logs,
        "modules": list(modules),
        "control": control,
        "program": os.getpid(),
        "lifeline": lifeline(),
        "idle_s": idle_s,
    }
    return _start("fork_serving", "run_server", start, variables, [logs, control])


def call_of(name: str, call: Call) -> dict[str, Any]:
    """Return what a worker needs to know of its own."""
    return {"name": name, "call": pickle.dumps(call, protocol=5), "authkey": _authkey(), "lifeline": lifeline()}


def _start(
    module: str, function: str, start: dict[str, Any], variables: Mapping[str, str], inherited: list[int]
) -> ChildProcess:
    if runs_main():
        raise RuntimeError(
            "a worker process runs the main program again, which then trains again; put the code that starts training "
            "under `if __name__ == '__main__':`"
        )
    executable = _interpreter()
    start |= {
        "path": worker_path(),
        "argv": [str(argument) for argument in sys.argv],
        "main": main_program(),
    }
    with standard_streams(inherited=True), memory_file(marshal.dumps(start)) as fd, _signals_blocked():
        program = _PROGRAM.format(fd=fd, module=module, function=function)
        process = subprocess.Popen(
            [executable, *subprocess._args_from_interpreter_flags(), "-c", program],  # type: ignore[attr-defined]  # noqa: SLF001 (multiprocessing takes the same)
            stdin=subprocess.DEVNULL,
            env=variables,
            pass_fds=[fd, *inherited],
        )
        return ChildProcess.of(process)


def _interpreter() -> str:
    if getattr(sys, "frozen", False) or not sys.executable:
        raise RuntimeError(
            "worker processes: this program does not run in a Python interpreter that can be started again (it is "
            "frozen, or Python is embedded in another program); use engine='serial'"
        )
    return sys.executable


def _authkey() -> bytes | None:
    process = sys.modules.get("multiprocessing.process")
    return None if process is None else bytes(process.current_process().authkey)


def tracker_descriptor() -> int | None:
    """Return the descriptor of this process's multiprocessing.resource_tracker; None if none runs."""
    module = sys.modules.get("multiprocessing.resource_tracker")
    fd = None if module is None else module._resource_tracker._fd  # noqa: SLF001 (its public way starts the tracker)
    if isinstance(fd, int) and fd > 2:
        with suppress(OSError):
            os.fstat(fd)
            return fd
    return None


@contextmanager
def memory_file(content: bytes) -> Iterator[int]:
    """Yield the descriptor of a memory file with this content, open for the block."""
    fd = keep(os.memfd_create("untorn-start", os.MFD_CLOEXEC))
    try:
        with open(fd, "wb", closefd=False) as file:
            file.write(content)
        os.lseek(fd, 0, os.SEEK_SET)
        yield fd
    finally:
        os.close(fd)


@contextmanager
def _signals_blocked() -> Iterator[None]:
    """Block signals, so that no handler raises in this thread after a process has started and before it is recorded.
    The worker has this mask until it sets its own."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
