"""Queues, as ``untorn ls``, ``show``, ``top``, ``rm`` and ``gc`` show them."""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import RenderableType

from untorn.cli.listing import blocks
from untorn.cli.tables import age, facts, grid, plain, size
from untorn.errors import BusyError, ChannelNotFoundError, UntornError
from untorn.share.lowlevel import (
    Files,
    QueueState,
    QueueView,
    default_path,
    files_of,
    is_there,
    queue_files_of,
    remove_queue,
)

__all__ = [
    "FoundQueue",
    "QueueLine",
    "collect_queues",
    "find_queue",
    "is_queue",
    "list_queues",
    "means_queue",
    "process_table",
    "queue_document",
    "queue_rates",
    "queue_table",
    "rate_tables",
    "remove_named_queue",
    "show_queue",
]

_COLUMNS = ("QUEUE", "ITEMS", "CAPACITY", "MEMORY", "PROCESSES", "NOTE")
_RATE_COLUMNS = ("QUEUE", "ITEMS", "PUT/S", "TAKEN/S", "MEMORY", "PROCESSES")
_BUSY_COLUMNS = ("PID", "QUEUE", "WAITS FOR", "TAKEN", "HELD", "WRITING")
_BUSY_NUMBERS = frozenset({"PID", "TAKEN", "HELD", "WRITING"})


@dataclass(frozen=True)
class FoundQueue:
    """A queue's file in a directory: its state, or the problem of reading it."""

    name: str
    files: Files
    state: QueueState | None
    problem: str
    file_nbytes: int

    @property
    def status(self) -> str:
        """Whether a living process has it: "used", "unused" or "unreadable"."""
        return "unreadable" if self.state is None else "used" if self.state.used else "unused"

    def as_json(self) -> dict[str, Any]:
        """Return the queue as a JSON object."""
        state = None if self.state is None else dataclasses.asdict(self.state)
        return {
            "name": self.name,
            "path": self.files.control,
            "status": self.status,
            "problem": self.problem or None,
            "file_nbytes": self.file_nbytes,
            "state": state,
        }


def list_queues(directory: str | os.PathLike[str] | None = None) -> list[FoundQueue]:
    """Return the queues in this user's directory in /dev/shm, or in another one, sorted by name."""
    folder = Path(default_path() if directory is None else directory)
    if directory is None and not is_there(os.fspath(folder)):
        return []
    names = [entry.removesuffix(".queue") for entry in sorted(os.listdir(folder)) if entry.endswith(".queue")]
    return [find_queue(name if directory is None else os.fspath(folder / name)) for name in names if name[:1] != "."]


def find_queue(queue: str) -> FoundQueue:
    """Look at one queue, given by its name or path."""
    files = queue_files_of(queue)
    name = os.path.basename(files.control).removesuffix(".queue")
    try:
        with QueueView.open(files) as view:
            return FoundQueue(name, files, view.state(), "", blocks(files.control))
    except (UntornError, OSError) as error:
        return FoundQueue(name, files, None, str(error), blocks(files.control))


def is_queue(name: str) -> bool:
    """Return whether there is a queue of this name or path. Raises OSError or CapacityError if that is unknown."""
    try:
        return queue_files_of(name).exists()
    except (ChannelNotFoundError, ValueError):
        return False


def means_queue(name: str) -> bool:
    """Return whether a command that takes channels and queues means the queue of this name: there is no channel of the
    name. ``NAME.queue`` means the queue where there are both."""
    return is_queue(name) and not files_of(name).exists()


# -- ls


def queue_table(found: Iterable[FoundQueue]) -> RenderableType:
    """Return the table of ``untorn ls``."""
    return grid(_COLUMNS, map(_row, found), right=("ITEMS", "CAPACITY", "MEMORY", "PROCESSES"), optional=("MEMORY",))


def _row(found: FoundQueue) -> tuple[str, ...]:
    state, memory = found.state, size(found.file_nbytes)
    if state is None:
        return plain(found.name), "-", "-", memory, "-", f"unreadable: {plain(found.problem)}"
    note = ", ".join(filter(None, ("" if state.used else "unused", "closed" * state.closed)))
    return plain(found.name), str(state.waiting), str(state.capacity), memory, str(len(state.processes)), note


# -- show


def show_queue(name: str) -> Sequence[RenderableType]:
    """Return what ``untorn show`` shows of a queue."""
    with QueueView.open(queue_files_of(name)) as view:
        state = view.state()
    parts: list[RenderableType] = [facts(_facts(state))]
    if state.processes:
        parts += ["", process_table(state)]
    return parts


def process_table(state: QueueState, width: int | None = None) -> RenderableType:
    """Return the table of a queue's processes, for a terminal of this width."""
    columns = ("PID", "WAITS FOR", "TAKEN", "HELD", "WRITING", "MEMORY", "ATTACHED")
    optional = ("ATTACHED", "MEMORY", "WRITING")
    return grid(columns, _process_rows(state), right=("PID", *columns[2:]), optional=optional, width=width)


def queue_document(name: str) -> dict[str, Any]:
    """Return the same as a JSON object."""
    with QueueView.open(queue_files_of(name)) as view:
        return dataclasses.asdict(view.state())


def _facts(state: QueueState) -> list[tuple[str, str]]:
    processes = f"{len(state.processes)} of at most {state.max_processes}"
    if state.dead_slots:
        processes += f"; dead ones had {state.dead_slots} items, which come back when a process looks for items"
    return [
        ("queue", plain(state.label)),
        ("items", f"{state.waiting} of at most {state.capacity}" + ", closed" * state.closed),
        ("put", f"{state.put_count}, of which {state.taken_count} were taken"),
        ("memory", f"{size(state.nbytes)} of at most {size(state.limit_nbytes)}"),
        ("processes", processes),
        ("created", time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(state.created_at))),
        ("id", state.id),
    ]


def _process_rows(state: QueueState) -> list[tuple[str, ...]]:
    now = time.time()
    return [
        (
            str(process.pid),
            process.waits_for or "-",
            str(process.taken),
            str(process.held),
            str(process.writing),
            size(process.nbytes),
            age(max(0.0, now - process.attached_at)),
        )
        for process in state.processes
    ]


# -- top


@dataclass(frozen=True)
class QueueLine:
    """One queue between two looks; the rates are None in its first one."""

    name: str
    state: QueueState
    put_per_s: float | None
    taken_per_s: float | None

    def as_json(self) -> dict[str, Any]:
        """Return the rates and the state as a JSON object."""
        rates = {"put_per_s": self.put_per_s, "taken_per_s": self.taken_per_s}
        return {"name": self.name, **rates, **dataclasses.asdict(self.state)}


def queue_rates(before: Mapping[str, QueueState], now: Mapping[str, QueueState], seconds: float) -> list[QueueLine]:
    """Return the rates between two looks."""
    lines = []
    for name, state in now.items():
        known = before.get(name)
        if known is None or known.id != state.id:  # new, or made again under its old name
            lines.append(QueueLine(name, state, None, None))
            continue
        put, taken = state.put_count - known.put_count, state.taken_count - known.taken_count
        lines.append(QueueLine(name, state, max(0, put) / seconds, max(0, taken) / seconds))
    return lines


def rate_tables(lines: Sequence[QueueLine], width: int | None = None) -> list[RenderableType]:
    """Return the tables of ``untorn top``, for a terminal of this width: queues, and their busy processes."""
    right, optional = _RATE_COLUMNS[1:], ("MEMORY", "PROCESSES")
    tables: list[RenderableType] = [
        grid(_RATE_COLUMNS, map(_rate_row, lines), right=right, optional=optional, width=width)
    ]
    busy = [row for line in lines for row in _busy_rows(line)]
    if busy:
        tables += ["", grid(_BUSY_COLUMNS, busy, right=_BUSY_NUMBERS, optional=("WRITING", "HELD"), width=width)]
    return tables


def _rate_row(line: QueueLine) -> tuple[str, ...]:
    state = line.state
    return (
        plain(line.name),
        f"{state.waiting}/{state.capacity}" + " closed" * state.closed,
        "-" if line.put_per_s is None else f"{line.put_per_s:,.1f}",
        "-" if line.taken_per_s is None else f"{line.taken_per_s:,.1f}",
        size(state.nbytes),
        str(len(state.processes)),
    )


def _busy_rows(line: QueueLine) -> Iterator[tuple[str, ...]]:
    for process in line.state.processes:
        counts = process.taken, process.held, process.writing
        if process.waits_for or any(counts):
            yield str(process.pid), plain(line.name), process.waits_for or "-", *map(str, counts)


# -- rm and gc


def remove_named_queue(name: str) -> tuple[FoundQueue, int]:
    """Remove a queue that no living process has open. Returns it, and the number of items that it had. Raises BusyError
    if one has, and FormatError if the file is not a queue."""
    files = queue_files_of(name)
    with QueueView.open(files) as view:
        state = view.state()
    found = FoundQueue(files.label, files, state, "", blocks(files.control))
    reason = f"open in pid {', '.join(str(each.pid) for each in state.processes)}" if state.used else ""
    if reason := reason or remove_queue(files):
        raise BusyError(
            f"queue {files.label!r} is not removed: {reason}; end these processes, or call Queue.unlink() in one"
        )
    return found, state.waiting + state.dead_slots


def collect_queues(directory: str | os.PathLike[str] | None, *, dry_run: bool) -> list[tuple[FoundQueue, bool, str]]:
    """Remove the queues of a directory that no living process has open: (queue, whether it was removed, why not)."""
    outcomes = []
    for found in list_queues(directory):
        reason = found.problem
        if found.state is not None and found.state.used:
            reason = "in use by pid " + ", ".join(str(process.pid) for process in found.state.processes)
        if not reason and not dry_run:
            try:
                reason = remove_queue(found.files)
            except (UntornError, OSError) as error:
                reason = str(error)
        outcomes.append((found, not reason and not dry_run, reason))
    return outcomes
