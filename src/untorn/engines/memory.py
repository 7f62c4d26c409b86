"""Detect that the kernel has killed processes because memory ran out, from the kernel's own counters."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from untorn.engines.cgroups import group_files

__all__ = ["OutOfMemory"]

_MACHINE = Path("/proc/vmstat")


class OutOfMemory:
    """Watch the counts of out-of-memory kills in this process's control groups and on the whole machine.

    Args:
        counters: files with lines "name number", of which the one named oom_kill is read; by default the kernel's.
    """

    def __init__(self, counters: Iterable[Path] | None = None) -> None:
        if counters is None:
            files = group_files("memory", v1="memory.oom_control", v2="memory.events")
            counters = [*(Path(path) for path, _ in files), _MACHINE]
        self._before = {path: _count(path) for path in counters}

    def killed_since_last_check(self) -> bool:
        """Return whether a count has risen since the last call, or since this object was made."""
        now = {path: _count(path) for path in self._before}
        risen = any(now[path] > before for path, before in self._before.items())
        self._before = now
        return risen


def _count(path: Path) -> int:
    try:
        lines = path.read_text().splitlines()
    except OSError:
        return 0
    return sum(int(line.split()[1]) for line in lines if line.startswith("oom_kill "))
