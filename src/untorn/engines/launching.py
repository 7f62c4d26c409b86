"""Starting a worker process: a new interpreter, from this process's, with an environment of its own.

multiprocessing's spawn is not used: it starts nothing in a daemonic process (the tasks of a Pool, of Dask, of Celery),
hands the worker whatever start method the process has set, fails in a directory that was deleted, and has no way to
give an environment but to change that of this process, for all its threads.

What a worker is to be, a dict, goes through a memory file that it inherits: there is no pipe that one of the two could
wait at. With it go the path and the arguments of this process, and where its main program is; see starting.py. Of its
descriptors the worker gets the standard ones, with no input, and those that are named here. Whatever starts workers in
another way has to give ``run`` of starting.py the same dict, and the environment.
"""

from __future__ import annotations

import marshal
import os
import pickle
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

from untorn.engines.child import ChildProcess
from untorn.engines.importable import main_program, worker_path
from untorn.engines.starting import runs_main
from untorn.share.descriptors import keep, standard_streams

__all__ = ["launch"]

_PROGRAM = """
import marshal, sys
with open({fd}, "rb") as file:
    start = marshal.load(file)
sys.path[:] = start["path"]
from untorn.engines.starting import run
run(start)
"""
#: what would keep the interpreter of a worker at its end
_NOT_FOR_WORKERS = ("PYTHONINSPECT",)


def launch(
    name: str, call: tuple[Callable[..., None], tuple[Any, ...]], *, environment: Mapping[str, str], logs: int
) -> ChildProcess:
    """Start a process that calls a function of untorn's. ``environment`` goes on top of this process's own; ``logs`` is
    the descriptor that its log records go to.

    Raises RuntimeError where no worker can be started, OSError where the system starts no process.
    """
    if runs_main():
        raise RuntimeError(
            "a worker process runs the main program anew, and that trains again; put what starts it under "
            "`if __name__ == '__main__':`"
        )
    executable = _interpreter()
    tracker = _descriptor_of_the_tracker()
    start = {
        "name": name,
        "path": worker_path(),
        "argv": [str(argument) for argument in sys.argv],
        "main": main_program(),
        "call": pickle.dumps(call, protocol=5),
        "authkey": _authkey(),
        "tracker": tracker,
        "logs": logs,
    }
    variables = {key: value for key, value in os.environ.copy().items() if key not in _NOT_FOR_WORKERS}
    with standard_streams(inherited=True), _memory_file(marshal.dumps(start)) as fd, _signals_blocked():
        process = subprocess.Popen(
            [executable, *subprocess._args_from_interpreter_flags(), "-c", _PROGRAM.format(fd=fd)],  # type: ignore[attr-defined]
            stdin=subprocess.DEVNULL,
            env=variables | dict(environment),
            pass_fds=[each for each in (fd, logs, tracker) if each is not None],
        )
        return ChildProcess.of(process)


def _interpreter() -> str:
    if getattr(sys, "frozen", False) or not sys.executable:
        raise RuntimeError(
            "worker processes: this program is not run by a Python interpreter that could be started again (it is "
            "frozen, or Python is embedded in another program); use engine='serial'"
        )
    return sys.executable


def _authkey() -> bytes | None:
    process = sys.modules.get("multiprocessing.process")
    return None if process is None else bytes(process.current_process().authkey)


def _descriptor_of_the_tracker() -> int | None:
    """Return the descriptor of this process's multiprocessing.resource_tracker; None if none runs."""
    module = sys.modules.get("multiprocessing.resource_tracker")
    fd = None if module is None else module._resource_tracker._fd
    if isinstance(fd, int) and fd > 2:
        with suppress(OSError):
            os.fstat(fd)
            return fd
    return None


@contextmanager
def _memory_file(content: bytes) -> Iterator[int]:
    """Give a descriptor of a file with this content, for the block."""
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
    """Block signals, so that no handler of this thread raises between the start of a process and its being known. The
    worker has this mask until it sets its own."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
