"""What virtual nodes use: processor time of their processes, and bytes on their network."""

from __future__ import annotations

import time
from contextlib import suppress
from typing import NamedTuple

from virtual_nodes import VirtualNodes


class Use(NamedTuple):
    """What all nodes used within a period.

    Attributes:
        cpu_s: seconds of processors, of all processes of all nodes. The switch is not among them.
        payload: for each node, the bytes that it sent, without the headers of IP and TCP.
    """

    cpu_s: float
    payload: list[int]


class Meter:
    """Reads what the nodes use from its creation, or from the last call of ``read``."""

    def __init__(self, nodes: VirtualNodes) -> None:
        self._nodes = nodes
        self._clocks = self._read_clocks()
        self._counters = nodes.counters()

    def read(self) -> Use:
        """Return what was used since the last call. Processes that ended meanwhile are not counted."""
        clocks, counters = self._read_clocks(), self._nodes.counters()
        cpu_s = sum(now - self._clocks.get(pid, 0.0) for pid, now in clocks.items())
        payload = [(now - then).sent_payload for now, then in zip(counters, self._counters, strict=True)]
        self._clocks, self._counters = clocks, counters
        return Use(cpu_s, payload)

    def _read_clocks(self) -> dict[int, float]:
        found = {}
        for node in self._nodes:
            for pid in node.pids():
                with suppress(OSError):
                    found[pid] = time.clock_gettime(cpu_clock(pid))
        return found


def cpu_clock(pid: int) -> int:
    """Return the clock of another process's processor time (the kernel's encoding of clock_getcpuclockid(3))."""
    return (~pid << 3) | 2
