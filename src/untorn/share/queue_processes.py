"""The living processes that have a queue open, as one of them sees them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from untorn import _core
from untorn.share.storage_errors import labelled

__all__ = ["QueueProcess", "processes_of"]

_STATES = {
    _core.QUEUE_WRITING: "writing",
    _core.QUEUE_OFFERED: "writing",
    _core.QUEUE_TAKEN: "taken",
    _core.QUEUE_HELD: "held",
}


@dataclass(frozen=True)
class QueueProcess:
    """One living process that has a queue open.

    Attributes:
        pid: its process id, as it wrote it down.
        waits_for: what it waits for: "item", "room" or nothing (None).
        taken: how many items it has taken and not finished.
        held: how many items it has finished, but has views of.
        writing: how many items it writes.
        nbytes: the memory of all of these, in bytes; small items have none of their own.
    """

    pid: int
    waits_for: Literal["item", "room"] | None
    taken: int
    held: int
    writing: int
    nbytes: int


def processes_of(core: _core.Queue, label: str) -> list[QueueProcess]:
    """Return the living processes of a queue. Raises OSError if the kernel does not say which these are."""
    try:
        slots, rows = core.slots(), core.rows()
    except OSError as error:
        raise labelled(error, label) from None
    counts: dict[int, dict[str, int]] = {
        row: dict.fromkeys(("taken", "held", "writing", "nbytes"), 0) for row, *_ in rows
    }
    for _, state, row, _, nbytes in slots:
        if state in _STATES and row in counts:
            counts[row][_STATES[state]] += 1
            counts[row]["nbytes"] += nbytes
    waits: dict[int, Literal["item", "room"]] = {1: "item", 2: "room"}
    return [QueueProcess(pid, waits.get(waiting), **counts[row]) for row, pid, _, waiting in rows]
