"""The first code that runs in a worker process: launching.py calls ``run(start)`` with the server's ``sys.path``.

It makes the process look like the server's: the same arguments, and the server's main program, run again as the module
``__mp_main__`` without the part under ``if __name__ == "__main__":``. (multiprocessing does the same for its processes
and chose the name.) An error there is reported when the first job comes, as an error of that job.

A fork server (fork_serving.py) starts in the same way, and each of its forks becomes a worker with ``be_fork()``.
"""

from __future__ import annotations

import itertools
import pickle
import runpy
import signal
import sys
import threading
import types
from types import TracebackType
from typing import Any

from untorn.engines.lifeline import follow
from untorn.engines.worker_logs import send_logs_to

__all__ = ["MainProgramError", "be_fork", "be_worker", "begin", "is_worker", "run", "run_main", "runs_main"]

_is_worker, _runs_main = threading.Event(), threading.Event()


class MainProgramError(Exception):
    """The main program failed when a worker process ran it again."""


def is_worker() -> bool:
    """Return whether this process is a worker that untorn started."""
    return _is_worker.is_set()


def runs_main() -> bool:
    """Return whether this process is a worker that is just running the main program again."""
    return _runs_main.is_set()


def run(start: dict[str, Any]) -> None:
    """Run the worker that ``start`` describes; launch() made it."""
    begin(start)
    be_worker(start, run_main(start["main"]))


def begin(start: dict[str, Any]) -> None:
    """Set what the main program may look at when it is run again."""
    _is_worker.set()
    signal.pthread_sigmask(signal.SIG_SETMASK, {signal.SIGINT})  # Ctrl-C goes to all processes of a terminal
    sys.argv[:] = start["argv"] or [""]  # runpy replaces the first one
    _be_a_process_of(start)
    send_logs_to(start["logs"])


def be_worker(start: dict[str, Any], problem: Exception | None) -> None:
    """Call what the worker is for, with the error of the main program, if any."""
    main, arguments = pickle.loads(start["call"])
    main(*arguments, problem)


def be_fork(start: dict[str, Any], problem: Exception | None) -> None:
    """Run the worker that ``start`` describes in a fork of a process that has run the main program."""
    _be_a_process_of(start)
    send_logs_to(start["logs"])
    be_worker(start, problem)


def _be_a_process_of(start: dict[str, Any]) -> None:
    """Follow the program, and set what multiprocessing also sets in its processes: the name in log records, the key
    that proxies of a Manager need, and the process that cleans up shared memory, so that the end of this process
    unlinks none."""
    from multiprocessing import process, resource_tracker

    follow(start["lifeline"])

    process.current_process().name = start["name"]
    if start["authkey"] is not None:
        process.current_process().authkey = start["authkey"]
    if start["tracker"] is not None:
        tracker_of_this: Any = resource_tracker._resource_tracker  # noqa: SLF001 (as multiprocessing.spawn does)
        tracker_of_this._fd = start["tracker"]  # noqa: SLF001 (likewise)


def _within_program(trace: TracebackType | None) -> TracebackType | None:
    """Return the part of a traceback that lies in the program: without the frames that lead to it, and without those of
    untorn at the end, which the program has called."""
    steps = []
    while trace is not None:
        steps.append(trace)
        trace = trace.tb_next
    steps = list(itertools.dropwhile(lambda step: _module_of(step) in ("runpy", __name__), steps))
    while steps and (_module_of(steps[-1]) == "contextlib" or _module_of(steps[-1]).partition(".")[0] == "untorn"):
        steps.pop()
    for step in reversed(steps):
        trace = TracebackType(trace, step.tb_frame, step.tb_lasti, step.tb_lineno)
    return trace


def _module_of(step: TracebackType) -> str:
    return str(step.tb_frame.f_globals.get("__name__", ""))


def run_main(program: tuple[str, str] | None) -> MainProgramError | None:
    """Run the server's main program as multiprocessing would. Returns the error if it failed."""
    if program is None:
        return None
    kind, name = program
    from multiprocessing import process

    module = types.ModuleType("__mp_main__")
    # if it starts processes all the same, multiprocessing raises its own error, with its advice
    this: Any = process.current_process()
    this._inheriting = True  # noqa: SLF001 (as multiprocessing.spawn does)
    _runs_main.set()
    try:
        if kind == "module":
            content = runpy.run_module(name, run_name="__mp_main__", alter_sys=True)
        else:
            content = runpy.run_path(name, run_name="__mp_main__")
    except (Exception, SystemExit) as error:
        problem = MainProgramError(
            f"the main program ({name}) failed in a worker process, which runs it again to get the functions and "
            "classes in it; put code that only the program itself should run under `if __name__ == '__main__':` "
            f"({type(error).__name__}: {error})"
        )
        problem.__cause__ = error.with_traceback(_within_program(error.__traceback__))
        return problem
    finally:
        del this._inheriting  # noqa: SLF001 (likewise)
        _runs_main.clear()
    module.__dict__.update(content)
    sys.modules["__main__"] = sys.modules["__mp_main__"] = module
    return None
