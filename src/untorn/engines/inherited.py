"""What a process that is started now would inherit from this one, or be told at its start.

Two workers whose start has the same of it begin in the same state. So it is the key under which fork servers are found.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from untorn.engines.importable import main_program, worker_path

__all__ = ["CHANGING_VARIABLES", "inherited", "variables_of_worker"]

#: variables that would keep a worker's interpreter alive when it is done
_NOT_FOR_WORKERS = ("PYTHONINSPECT",)
#: variables that shells and pytest change all the time, and that no module reads when it is imported
CHANGING_VARIABLES = ("PYTEST_CURRENT_TEST", "PWD", "OLDPWD", "SHLVL", "_")
#: the lines of a thread's status that its children begin with
_LINES = (
    "Umask:", "Uid:", "Gid:", "Groups:", "NSpgid:", "NSsid:", "SigIgn:", "CapInh:", "CapPrm:", "CapEff:", "CapBnd:",
    "CapAmb:", "NoNewPrivs:", "Seccomp:", "Seccomp_filters:", "Cpus_allowed:", "Mems_allowed:",
)  # fmt: skip
_FILES = ("cgroup", "limits", "oom_score_adj")
_SELF = Path("/proc/thread-self")


def variables_of_worker(more: Mapping[str, str]) -> dict[str, str]:
    """Return the environment of a worker: this process's own, with ``more``."""
    return {key: value for key, value in os.environ.copy().items() if key not in _NOT_FOR_WORKERS} | dict(more)


def inherited(variables: Mapping[str, str]) -> tuple[Any, ...]:
    """Return all that, as a value that can be compared, for a worker with this environment."""
    return (
        sys.executable,
        tuple(subprocess._args_from_interpreter_flags()),  # type: ignore[attr-defined]  # noqa: SLF001 (see launching)
        tuple(worker_path()),
        tuple(map(str, sys.argv)),
        main_program(),
        frozenset((key, value) for key, value in variables.items() if key not in CHANGING_VARIABLES),
        _place("."),
        _place("/"),
        tuple(_is_terminal(fd) for fd in (1, 2)),
        tuple(line for line in _read("status").splitlines() if line.startswith(_LINES)),
        tuple(map(_read, _FILES)),
        _namespaces(),
        os.getpriority(os.PRIO_PROCESS, 0),
        os.sched_getscheduler(0),
    )


def _read(name: str) -> str:
    try:
        return (_SELF / name).read_text()
    except OSError:
        return ""


def _place(path: str) -> tuple[int, int] | None:
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _is_terminal(fd: int) -> bool | None:
    try:
        os.fstat(fd)
    except OSError:
        return None
    return os.isatty(fd)


def _namespaces() -> tuple[str, ...]:
    found = []
    with suppress(OSError):
        for name in sorted(os.listdir(_SELF / "ns")):
            found.append(os.readlink(_SELF / "ns" / name))
    return tuple(found)
