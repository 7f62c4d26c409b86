"""A worker process from its first line on: launching.py runs ``run(start)`` in it, with ``sys.path`` as the server's.

It becomes what the server's process is, as far as code can tell: the same arguments, and the server's main program,
run anew as the module ``__mp_main__`` without what is under ``if __name__ == "__main__":``. (The name is
multiprocessing's, which does the same for its processes.) What goes wrong there is told when the first job comes, as an
error of that job.
"""

from __future__ import annotations

import pickle
import runpy
import signal
import sys
import threading
import types
from typing import Any

from untorn.engines.worker_logs import send_logs_to

__all__ = ["MainProgramError", "is_worker", "run", "runs_main"]

_is_worker, _runs_main = threading.Event(), threading.Event()


class MainProgramError(Exception):
    """The main program, run anew in a worker process, failed."""


def is_worker() -> bool:
    """Return whether this process is a worker of untorn, and not of another library."""
    return _is_worker.is_set()


def runs_main() -> bool:
    """Return whether this process is a worker that runs the main program anew, at this moment."""
    return _runs_main.is_set()


def run(start: dict[str, Any]) -> None:
    """Run the worker that ``start``, which Launcher made, describes."""
    _is_worker.set()
    signal.pthread_sigmask(signal.SIG_SETMASK, {signal.SIGINT})  # Ctrl-C goes to all processes of a terminal
    sys.argv[:] = start["argv"] or [""]  # runpy replaces the first one
    _be_a_process_of(start)
    send_logs_to(start["logs"])
    problem = _run_main(start["main"])
    main, arguments = pickle.loads(start["call"])
    main(*arguments, problem)


def _be_a_process_of(start: dict[str, Any]) -> None:
    """Set what multiprocessing sets in its processes, too: a name that log records have; the key of a Manager, so that
    its proxies work; and the process that cleans up after shared memory, so that the end of this process does not
    unlink it."""
    from multiprocessing import process, resource_tracker

    process.current_process().name = start["name"]
    if start["authkey"] is not None:
        process.current_process().authkey = start["authkey"]
    if start["tracker"] is not None:
        tracker_of_this: Any = resource_tracker._resource_tracker
        tracker_of_this._fd = start["tracker"]


def _run_main(program: tuple[str, str] | None) -> MainProgramError | None:
    """Run the server's main program, as multiprocessing would; return what went wrong."""
    if program is None:
        return None
    kind, name = program
    from multiprocessing import process

    module = types.ModuleType("__mp_main__")
    # processes that it starts all the same have multiprocessing's error about that, and its advice
    this: Any = process.current_process()
    this._inheriting = True
    _runs_main.set()
    try:
        if kind == "module":
            content = runpy.run_module(name, run_name="__mp_main__", alter_sys=True)
        else:
            content = runpy.run_path(name, run_name="__mp_main__")
    except (Exception, SystemExit) as error:
        problem = MainProgramError(
            f"the main program ({name}) failed in a worker process, which runs it anew for the functions and classes "
            "in it; put what only the program itself is to do under `if __name__ == '__main__':` "
            f"({type(error).__name__}: {error})"
        )
        problem.__cause__ = error
        return problem
    finally:
        del this._inheriting
        _runs_main.clear()
    module.__dict__.update(content)
    sys.modules["__main__"] = sys.modules["__mp_main__"] = module
    return None
