"""A named queue seen from outside: its items, and the living processes that put, take and hold them.

As inspect.py for channels, this changes nothing: the file is opened read-only, no row is taken, and no process is
woken. The layout is specified in docs/format.md. A queue in use changes between two reads, so all numbers are a
moment's.
"""

from __future__ import annotations

import os
import struct
from dataclasses import dataclass
from typing import Literal, NamedTuple, Self

from untorn import _core
from untorn.errors import FormatError
from untorn.share.inspect import files_of, living_bytes, open_file
from untorn.share.places import Files

__all__ = ["QueueProcessState", "QueueState", "QueueView", "queue_files_of"]

LINE = 64
HEAD_NBYTES = 384
_MAGIC, _BYTE_ORDER = b"utqueue\n", 0x01020304
_IDENTITY = struct.Struct("<8sII16s16sIIIIIIQQQQQQQQq")
_GATE = struct.Struct("<QQI")
_RARE = struct.Struct("<QQII")
_ROW = struct.Struct("<IIqI")
_SLOT = struct.Struct("<QQ")
_WAITS: dict[int, Literal["item", "room"]] = {1: "item", 2: "room"}


class Head(NamedTuple):
    """The head of a queue's file."""

    id: bytes
    max_processes: int
    capacity: int
    slots: int
    page_nbytes: int
    limit_pages: int
    rows_offset: int
    slots_offset: int
    created_ns: int
    cells: int
    tail: int
    head: int
    high_water: int
    closed: bool


def decode_head(page: bytes, *, file_nbytes: int) -> Head:
    """Decode the head of a queue's file. Raises FormatError, which says what is wrong with it."""
    if len(page) < HEAD_NBYTES or page[:8] != _MAGIC:
        raise FormatError(
            f"not an untorn queue: expected {HEAD_NBYTES} bytes or more that begin with {_MAGIC!r}, found "
            f"{file_nbytes} that begin with {page[:8]!r}"
        )
    (
        _,
        layout,
        order,
        id,
        _,
        max_processes,
        capacity,
        slots,
        cells,
        _,
        page_nbytes,
        limit_pages,
        _,
        *offsets,
        created,
    ) = _IDENTITY.unpack_from(page, 0)
    if (layout, order) != (_core.QUEUE_LAYOUT, _BYTE_ORDER):
        raise FormatError(f"layout {layout}, byte order {order:#x}; this untorn reads only layout {_core.QUEUE_LAYOUT}")
    rows_offset, slots_offset = offsets[:2]
    rows_end, slots_end = rows_offset + (max_processes + 1) * LINE, slots_offset + slots * LINE
    if not (HEAD_NBYTES <= rows_offset < rows_end <= slots_offset < slots_end <= file_nbytes) or cells < 1:
        raise FormatError(
            f"the queue's file is damaged: its rows are at bytes {rows_offset} to {rows_end}, and its slots at "
            f"{slots_offset} to {slots_end} of {file_nbytes}"
        )
    (tail, *_), (head, *_) = _GATE.unpack_from(page, 192), _GATE.unpack_from(page, 256)
    _, _, high_water, closed = _RARE.unpack_from(page, 320)
    return Head(
        id=id,
        max_processes=max_processes,
        capacity=capacity,
        slots=slots,
        page_nbytes=page_nbytes,
        limit_pages=limit_pages,
        rows_offset=rows_offset,
        slots_offset=slots_offset,
        created_ns=created,
        cells=cells,
        tail=tail,
        head=head,
        high_water=min(high_water, max_processes),
        closed=bool(closed),
    )


@dataclass(frozen=True)
class QueueProcessState:
    """A living process that has the queue open.

    Attributes:
        row: its line in the file.
        pid: its process id, as it wrote it down.
        waits_for: "item", "room", or None.
        taken, held, writing: how many items it has taken, holds after finishing them, and writes.
        nbytes: the memory of these, without small items.
        attached_at: when it opened the queue, in seconds since the epoch.
    """

    row: int
    pid: int
    waits_for: Literal["item", "room"] | None
    taken: int
    held: int
    writing: int
    nbytes: int
    attached_at: float


@dataclass(frozen=True)
class QueueState:
    """A queue at one moment.

    Attributes:
        label: its name, or its path if it has a directory of its own.
        id: its unique id, in hexadecimal.
        capacity: the number of items that can wait.
        waiting: the number of items that wait, with those that were given back.
        put_count, taken_count: how many items were put, and taken for the first time, since the queue was made.
        closed: whether it was closed.
        nbytes: the memory of its items, and what it keeps for the next ones; without small items.
        limit_nbytes: the bound of these.
        max_processes: how many processes can have it open.
        processes: the living ones that have.
        dead_slots: the number of slots that dead processes had, which a living one takes back when it needs them.
        created_at: when it was made, in seconds since the epoch.
    """

    label: str
    id: str
    capacity: int
    waiting: int
    put_count: int
    taken_count: int
    closed: bool
    nbytes: int
    limit_nbytes: int
    max_processes: int
    processes: tuple[QueueProcessState, ...]
    dead_slots: int
    created_at: float

    @property
    def used(self) -> bool:
        """Whether a living process has it open."""
        return bool(self.processes)


class QueueView:
    """A queue's file, opened read-only. A context manager."""

    def __init__(self, files: Files, fd: int) -> None:
        self.files = files
        self._fd = fd

    @classmethod
    def open(cls, files: Files) -> QueueView:
        """Open a queue's file read-only. Raises ChannelNotFoundError, PermissionError or FormatError."""
        return cls(files, open_file(files.control, files.label))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._fd)

    def state(self) -> QueueState:
        """Return the state of the queue now. Does not block."""
        try:
            head = decode_head(os.pread(self._fd, HEAD_NBYTES, 0), file_nbytes=os.fstat(self._fd).st_size)
        except FormatError as error:
            raise FormatError(f"{self.files.control}: {error}") from None
        lines = os.pread(self._fd, (head.high_water + 1) * LINE, head.rows_offset)
        slots = os.pread(self._fd, head.slots * LINE, head.slots_offset)
        living = set(living_bytes(self._fd, 1, head.max_processes))
        return _state_of(self.files.label, head, lines, slots, living)


def _state_of(label: str, head: Head, lines: bytes, slots: bytes, living: set[int]) -> QueueState:
    """Return the state for what was read. A pure function."""
    counts = {row: {"taken": 0, "held": 0, "writing": 0, "nbytes": 0} for row in living}
    kinds = {
        _core.QUEUE_WRITING: "writing",
        _core.QUEUE_OFFERED: "writing",
        _core.QUEUE_TAKEN: "taken",
        _core.QUEUE_HELD: "held",
    }
    returned = dead = pages_in_all = 0
    for at in range(0, len(slots) - LINE + 1, LINE):
        word, pages = _SLOT.unpack_from(slots, at)
        state, row, pages = word >> 13 & 7, word & 8191, pages & 0xFFFFFFFF
        pages_in_all += pages
        returned += state == _core.QUEUE_RETURNED
        if state in kinds and row in counts:
            counts[row][kinds[state]] += 1
            counts[row]["nbytes"] += pages * head.page_nbytes
        elif state in kinds:
            dead += 1
    rows = [row for row in sorted(living) if (row + 1) * LINE <= len(lines)]
    unpacked = {row: _ROW.unpack_from(lines, row * LINE) for row in rows}
    return QueueState(
        label=label,
        id=head.id.hex(),
        capacity=head.capacity,
        waiting=max(0, head.tail - head.head) + returned,
        put_count=max(0, head.tail - head.cells),
        taken_count=max(0, head.head - head.cells),
        closed=head.closed,
        nbytes=pages_in_all * head.page_nbytes,
        limit_nbytes=head.limit_pages * head.page_nbytes,
        max_processes=head.max_processes,
        processes=tuple(
            QueueProcessState(row=row, pid=pid, waits_for=_WAITS.get(waits), attached_at=at / 1e9, **counts[row])
            for row, (_, pid, at, waits) in unpacked.items()
        ),
        dead_slots=dead,
        created_at=head.created_ns / 1e9,
    )


def queue_files_of(queue: str) -> Files:
    """Return the file of a queue, given as a name, as directory/name, or as the file. Creates nothing. Raises what
    files_of() of a channel does."""
    files = files_of(queue.removesuffix(".queue"))
    path = files.control.removesuffix(".control") + ".queue"
    return Files(path, path, files.label, "queue")
