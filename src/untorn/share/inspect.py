"""A named channel seen from outside: its versions, and the living processes that publish or hold them.

This changes nothing: the files are opened read-only, no reader row is taken, and no process is woken. The kernel tells
which processes are alive, by the locks that they hold::

    control ──pread──> decode_control, decode_rows ──┐
    kernel  ──F_OFD_GETLK──> living lock bytes ──────┼──> ChannelState
    data    ──pread──> decode_slot_header ───────────┘
            └─pread──> json ─────────────────────────────> the schema (cli/outline.py draws it)

The decoders are pure functions of bytes, specified in docs/format.md. A channel in use may change between two reads:
only a reader's row keeps a version from being replaced, so the schema is read again if the channel has changed. A pid
is the number that a process wrote down, perhaps in another pid namespace: it is for display only.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import struct
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from untorn.descriptors import keep
from untorn.errors import BusyError, ChannelNotFoundError, FormatError
from untorn.share import places
from untorn.share.guard import check_file, is_folder, is_there, no_file
from untorn.share.naming import signpost_target
from untorn.share.near_names import near_names
from untorn.share.places import Files, default_path
from untorn.share.storage_errors import remedied

__all__ = [
    "DATA_HEADER_NBYTES",
    "ChannelState",
    "ChannelView",
    "ReaderState",
    "SlotState",
    "belongs_to",
    "decode_control",
    "decode_rows",
    "decode_schema",
    "decode_slot_header",
    "default_path",
    "files_of",
    "is_data_file",
    "living_bytes",
    "open_file",
    "read_text",
]

LINE = 64
CONTROL_NBYTES = 1152
MAX_SCHEMA_NBYTES = 1 << 28
_MAGIC, _DATA_MAGIC = b"untorn\r\n", b"utdata\r\n"
_LAYOUT = 2
_BYTE_ORDER = 0x01020304
_CLOSED, _NAMING = 1, 2
_LEAST_PAGE = 4096
_PIECE_NBYTES = 1 << 16
#: how often the newest version may move while it is read
_TRIES = 100

_IDENTITY = struct.Struct("<8sII16sIIQqII")
_PUBLISHER = struct.Struct("<QII")
_DATA_HEADER = struct.Struct("<8sII16s")
DATA_HEADER_NBYTES = _DATA_HEADER.size
_EXTENT = struct.Struct("<QQ")
_ROW = struct.Struct("<QI4xq")
_SLOT_HEADER = struct.Struct("<QqQQQQ")
_FLOCK = struct.Struct("hhqqi4x")


class Control(NamedTuple):
    """Page 0 of the control file."""

    id: bytes
    max_readers: int
    max_slots: int
    keep_slots: int
    rows_offset: int
    created_ns: int
    version: int
    slot: int
    closed: bool
    naming: bool  # its publisher is giving it its names, or was killed in between
    publisher_pid: int
    extents: tuple[tuple[int, int], ...]  # (offset, capacity) of each slot


class Row(NamedTuple):
    """A reader's line. Only a lock tells whether its reader is alive."""

    held: int
    pid: int
    attached_ns: int


class SlotHeader(NamedTuple):
    """The first bytes of a slot. They are only a hint unless a reader holds the slot."""

    version: int
    published_ns: int
    nbytes: int
    schema_nbytes: int
    schema_id: int
    base: int


def decode_control(page: bytes, *, file_nbytes: int) -> Control:
    """Decode the first page of the control file. Raises FormatError, which says what is wrong with it."""
    if len(page) < CONTROL_NBYTES or page[:8] != _MAGIC:
        raise FormatError(
            f"not an untorn channel: expected {CONTROL_NBYTES} bytes or more that begin with {_MAGIC!r}, found "
            f"{file_nbytes} that begin with {page[:8]!r}"
        )
    _, layout, order, id, max_readers, max_slots, rows_offset, created_ns, keep, _ = _IDENTITY.unpack_from(page, 0)
    if (layout, order) != (_LAYOUT, _BYTE_ORDER):
        raise FormatError(f"layout {layout}, byte order {order:#x}; this untorn reads only layout {_LAYOUT}")
    for what, found, least, most in (("max_readers", max_readers, 1, 65535), ("max_slots", max_slots, 2, 64)):
        if not least <= found <= most:
            raise FormatError(f"the control file is damaged: {what} is {found}, expected {least} to {most}")
    rows_end = rows_offset + (max_readers + 1) * LINE
    if rows_offset < CONTROL_NBYTES or rows_offset % _LEAST_PAGE or rows_end > file_nbytes:
        raise FormatError(
            f"the control file is damaged: its rows are at bytes {rows_offset} to {rows_end} of {file_nbytes}"
        )
    latest, state, pid = _PUBLISHER.unpack_from(page, 64)
    extents = tuple(_EXTENT.unpack_from(page, 128 + 16 * slot) for slot in range(max_slots))
    return Control(
        id,
        max_readers,
        max_slots,
        keep,
        rows_offset,
        created_ns,
        latest >> 6,
        latest & 63,
        state == _CLOSED,
        state == _NAMING,
        pid,
        extents,
    )


def belongs_to(header: bytes, control: Control) -> bool:
    """Return whether this is the beginning of that channel's data file. It may be cut off, or followed by zeros. Raises
    FormatError if it is not the beginning of a data file."""
    expected = _DATA_HEADER.pack(_DATA_MAGIC, _LAYOUT, _BYTE_ORDER, control.id)
    if not any(header) or (len(header) < len(expected) and expected.startswith(header)):
        return True
    if header[:8] != _DATA_MAGIC or len(header) < len(expected):
        raise FormatError(f"not a channel's data file: expected it to begin with {_DATA_MAGIC!r}, found {header[:8]!r}")
    if header[:16] != expected[:16]:
        raise FormatError(f"the data file has another layout than {_LAYOUT}, or another byte order")
    return header == expected


def is_data_file(header: bytes) -> bool:
    """Return whether a file that begins so looks like the data file of some channel."""
    return len(header) >= DATA_HEADER_NBYTES and header[:8] == _DATA_MAGIC


def decode_rows(lines: bytes) -> list[Row]:
    """Decode the lines of the row pages, including line 0, which all readers share."""
    return [Row(*_ROW.unpack_from(lines, at)) for at in range(0, len(lines) - LINE + 1, LINE)]


def decode_slot_header(header: bytes) -> SlotHeader:
    """Decode a slot's header; all zeros if the file has no such bytes."""
    return SlotHeader(*_SLOT_HEADER.unpack(header.ljust(_SLOT_HEADER.size, b"\0")[: _SLOT_HEADER.size]))


def decode_schema(text: bytes) -> dict[str, Any]:
    """Decode the schema of a version, without looking at its nodes. Raises FormatError if it is not a schema."""
    try:
        document = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise FormatError(f"the schema of the newest version is damaged: {error}") from None
    if not isinstance(document, dict) or "value" not in document:
        raise FormatError("the schema of the newest version is damaged: it has no value")
    return document


@dataclass(frozen=True)
class SlotState:
    """A slot that has space.

    Attributes:
        slot: its number.
        offset, capacity: its position and size in the data file, in bytes.
        version: the version last published in it; 0 if none. A hint, unless the slot is held or the newest.
        latest: whether it has the newest version.
        held_by: the rows of the living readers that hold it.
    """

    slot: int
    offset: int
    capacity: int
    version: int
    latest: bool
    held_by: tuple[int, ...]


@dataclass(frozen=True)
class ReaderState:
    """A living reader.

    Attributes:
        row: its line in the control file.
        pid: its process id, as it wrote it down.
        versions: the versions that it holds, oldest first.
        behind: the number of versions between the newest that it holds and the newest of all; None if it holds none.
        age_s: the age of the oldest version that it holds, in seconds; 0.0 if it holds none.
        attached_at: when it attached, in seconds since the epoch.
    """

    row: int
    pid: int
    versions: tuple[int, ...]
    behind: int | None
    age_s: float
    attached_at: float


@dataclass(frozen=True)
class ChannelState:
    """A channel at one moment.

    Attributes:
        label: its name, or its path if it has a directory of its own.
        id: its unique id, in hexadecimal.
        version: the newest version; 0 if nothing was published.
        publisher: "alive", "closed" (it closed the channel) or "dead" (it did not).
        publisher_pid: the process id of the living publisher, as it wrote it down; None if there is none.
        created_at, published_at: the times of the channel and of its newest version, in seconds since the epoch.
        age_s: the age of the newest version, in seconds; None if nothing was published.
        nbytes: the size of the newest version.
        base_version: the version that the newest one consists of changes of; None if it is whole.
        base_nbytes: the size of that version; 0 if the newest one is whole.
        reserved_nbytes: the size of all slots together.
        slots: the slots that have space.
        readers: the living readers.
        dead_rows: the number of readers that died holding a version, which the publisher reclaims when it needs it.
    """

    label: str
    id: str
    version: int
    publisher: Literal["alive", "closed", "dead"]
    publisher_pid: int | None
    created_at: float
    published_at: float | None
    age_s: float | None
    nbytes: int
    base_version: int | None
    base_nbytes: int
    reserved_nbytes: int
    max_slots: int
    max_readers: int
    slots: tuple[SlotState, ...]
    readers: tuple[ReaderState, ...]
    dead_rows: int

    @property
    def used(self) -> bool:
        """Whether a living process publishes or reads it."""
        return self.publisher == "alive" or bool(self.readers)


def read_text(fd: int, offset: int, nbytes: int) -> bytes:
    """Read ``nbytes`` bytes of text; return nothing if it is not text. Text contains no zero byte, and a hole in a
    sparse file begins with one, so this uses no more memory than the file, whatever size is requested."""
    pieces = []
    while nbytes > 0:
        try:
            piece = os.pread(fd, min(nbytes, _PIECE_NBYTES), offset)
        except (OSError, OverflowError):  # an offset that no file has
            return b""
        if not piece or b"\0" in piece:
            return b""
        pieces.append(piece)
        offset += len(piece)
        nbytes -= len(piece)
    return b"".join(pieces)


def files_of(channel: str) -> Files:
    """Return the files of a channel, given as a name, as directory/name like in untorn.subscribe, or as one of the two
    files. Creates nothing. Raises ChannelNotFoundError if there is no such directory, ValueError for a bad name."""
    folder, _, name = channel.rpartition("/")
    if not folder and "/" not in channel:
        if not is_there(default_path()):
            raise ChannelNotFoundError(f"no channel {channel!r}: {default_path()} does not exist; nothing is published")
        return places.named(name)
    folder = folder or "/"
    for ending in (".control", ".data"):
        stem = name.removesuffix(ending)
        if stem != name and is_there(channel) and not is_there(channel + ".control"):
            name = stem
    if not is_folder(folder):
        raise ChannelNotFoundError(f"no channel {channel!r}: there is no directory {folder!r}")
    return places.named(name, folder)


class ChannelView:
    """Both files of a channel, opened read-only. A context manager."""

    def __init__(self, files: Files, control_fd: int, data_fd: int) -> None:
        self.files = files
        self._control_fd = control_fd
        self._data_fd = data_fd

    @classmethod
    def open(cls, files: Files) -> ChannelView:
        """Open a channel read-only.

        Raises ChannelNotFoundError if it does not exist, PermissionError if it belongs to another user, FormatError if
        a file is not a channel's.
        """
        stays = False
        for attempt in range(_TRIES):
            control_fd = open_file(files.control, files.label)
            try:
                data_fd = open_file(files.data, files.label)
            except ChannelNotFoundError:
                try:
                    same = files.is_same_file(control_fd)
                finally:
                    os.close(control_fd)
                if not same:
                    continue
                raise FormatError(
                    f"channel {files.label!r} has no data file: it is being made or removed just now, or that was cut "
                    "short; untorn gc removes the rest"
                ) from None
            except BaseException:
                os.close(control_fd)
                raise
            view = cls(files, control_fd, data_fd)
            try:
                if view.is_one_channel():
                    return view._followed()
                stays = files.is_same_file(control_fd) and files.is_same_data(data_fd)
            except BaseException:
                view.close()
                raise
            view.close()
            if attempt > _TRIES // 10:
                time.sleep(0.001)
        if stays:
            raise FormatError(
                f"channel {files.label!r}: its control file and its data file belong to two different channels; one "
                "was copied or replaced by hand: put the right one back, or remove both"
            )
        raise BusyError(f"channel {files.label!r} is being made and removed all the time; try again")

    def _followed(self) -> ChannelView:
        """Return where this leads, if it is a signpost to a channel that lost its files; else this itself."""
        target = None if self._control().version else signpost_target(self._control_fd, self.files.label)
        if target is None:
            return self
        with contextlib.ExitStack() as opened:
            try:
                control_fd, data_fd = (_open_descriptor(path, opened) for path in target.places[0])
                view = ChannelView(self.files, control_fd, data_fd)
                if view._control().id != target.id or not view.is_one_channel():
                    return self
            except (OSError, FormatError):  # its publisher is gone, and another process may have the pid
                return self
            opened.pop_all()
        self.close()
        return view

    def is_one_channel(self) -> bool:
        """Return whether both files belong to the same channel. Raises FormatError if one is not a channel's."""
        control = self._control()
        try:
            return belongs_to(os.pread(self._data_fd, DATA_HEADER_NBYTES, 0), control)
        except FormatError as error:
            raise FormatError(f"{self.files.data}: {error}") from None

    def close(self) -> None:
        """Close both. Locks that this process holds through other descriptors stay."""
        try:
            os.close(self._control_fd)
        finally:
            os.close(self._data_fd)

    def __enter__(self) -> ChannelView:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def state(self) -> ChannelState:
        """Return the state of the channel now. Does not block."""
        control, newest = self._newest()
        lines = os.pread(self._control_fd, (control.max_readers + 1) * LINE, control.rows_offset)
        rows = decode_rows(lines)
        living = {byte for byte in living_bytes(self._control_fd, 0, control.max_readers) if byte < max(1, len(rows))}
        return _state_of(self.files.label, control, newest, self._slot_headers(control), rows, living)

    def schema(self) -> tuple[int, dict[str, Any]]:
        """Return the newest version's number and its schema, as specified in docs/format.md, without values.

        Raises FormatError if it cannot be read, BusyError if the version was replaced during every attempt.
        """
        for _ in range(_TRIES):
            control, newest = self._newest()
            if control.version == 0:
                raise FormatError(f"channel {self.files.label!r}: nothing was published yet")
            if not 0 < newest.schema_nbytes <= min(newest.nbytes, MAX_SCHEMA_NBYTES):
                raise FormatError(f"channel {self.files.label!r}: its newest version is damaged; publish again")
            text = read_text(self._data_fd, control.extents[control.slot][0] + LINE, newest.schema_nbytes)
            after = self._control()
            if (after.version, after.slot) == (control.version, control.slot):  # so no process wrote to that slot
                return control.version, decode_schema(text)
        raise BusyError(
            f"channel {self.files.label!r}: its newest version was replaced {_TRIES} times while it was read; try again"
        )

    def _control(self) -> Control:
        page = os.pread(self._control_fd, CONTROL_NBYTES, 0)
        try:
            return decode_control(page, file_nbytes=os.fstat(self._control_fd).st_size)
        except FormatError as error:
            raise FormatError(f"{self.files.control}: {error}") from None

    def _newest(self) -> tuple[Control, SlotHeader]:
        """Return page 0 and the header of its newest slot, read at the same time if possible."""
        for _ in range(_TRIES):
            control = self._control()
            header = self._slot_header(control, control.slot)
            if header.version == control.version:
                break
        return control, header

    def _slot_header(self, control: Control, slot: int) -> SlotHeader:
        if slot >= control.max_slots or control.version == 0:
            return decode_slot_header(b"")
        return decode_slot_header(self._data(control.extents[slot][0], _SLOT_HEADER.size))

    def _data(self, offset: int, nbytes: int) -> bytes:
        try:
            return os.pread(self._data_fd, nbytes, offset)
        except (OSError, OverflowError):  # an offset that no file has
            return b""

    def _slot_headers(self, control: Control) -> dict[int, SlotHeader]:
        return {
            slot: self._slot_header(control, slot) for slot, (_, capacity) in enumerate(control.extents) if capacity
        }


def _state_of(
    label: str,
    control: Control,
    newest: SlotHeader,
    headers: dict[int, SlotHeader],
    rows: list[Row],
    living: set[int],
) -> ChannelState:
    """Return the state for what was read. A pure function, except for the clock."""
    now = time.time()
    readers = tuple(
        _reader_of(row, rows[row], headers, control.version, now) for row in sorted(living) if 0 < row < len(rows)
    )
    slots = tuple(
        SlotState(
            slot,
            *control.extents[slot],
            version=header.version,
            latest=slot == control.slot,
            held_by=tuple(reader.row for reader in readers if rows[reader.row].held >> slot & 1),
        )
        for slot, header in headers.items()
    )
    alive = 0 in living
    published_at = newest.published_ns / 1e9 if control.version else None
    base = headers.get(newest.base & 63) if newest.base else None
    return ChannelState(
        label=label,
        id=control.id.hex(),
        version=control.version,
        publisher="alive" if alive else "closed" if control.closed else "dead",
        publisher_pid=control.publisher_pid if alive else None,
        created_at=control.created_ns / 1e9,
        published_at=published_at,
        age_s=None if published_at is None else max(0.0, now - published_at),
        nbytes=newest.nbytes,
        base_version=newest.base >> 6 or None,
        base_nbytes=0 if base is None else base.nbytes,
        reserved_nbytes=sum(slot.capacity for slot in slots),
        max_slots=control.max_slots,
        max_readers=control.max_readers,
        slots=slots,
        readers=readers,
        dead_rows=sum(1 for row, line in enumerate(rows) if row and line.held and row not in living),
    )


def _reader_of(row: int, line: Row, headers: dict[int, SlotHeader], newest: int, now: float) -> ReaderState:
    held = sorted(
        (header.version, header.published_ns / 1e9)
        for slot, header in headers.items()
        if line.held >> slot & 1 and header.version
    )
    return ReaderState(
        row=row,
        pid=line.pid,
        versions=tuple(version for version, _ in held),
        behind=max(0, newest - held[-1][0]) if held else None,
        age_s=max(0.0, now - min(at for _, at in held)) if held else 0.0,
        attached_at=line.attached_ns / 1e9,
    )


def living_bytes(fd: int, first: int, last: int) -> Iterator[int]:
    """Yield the bytes from ``first`` to ``last`` that a living process has locked. It needs a call per lock, not per
    byte: the kernel returns any one lock in the range, and the ranges before and after it are asked for next."""
    ranges = [(first, last)]
    while ranges:
        low, high = ranges.pop()
        if low > high:
            continue
        asked = _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, low, high - low + 1, 0)
        kind, _, start, length, _ = _FLOCK.unpack(fcntl.fcntl(fd, fcntl.F_OFD_GETLK, asked))
        if kind == fcntl.F_UNLCK:
            continue
        end = high if length == 0 else min(high, start + length - 1)
        start = max(low, start)
        yield from range(start, end + 1)
        ranges += [(low, start - 1), (end + 1, high)]


def _open_descriptor(path: str, opened: contextlib.ExitStack) -> int:
    fd = keep(os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOCTTY | os.O_NONBLOCK))
    opened.callback(os.close, fd)
    return fd


def open_file(path: str, label: str) -> int:
    """Open a channel's file for reading. Raises an error for anything else, and never blocks."""
    flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NOCTTY | os.O_NONBLOCK | os.O_NOFOLLOW
    try:
        fd = keep(os.open(path, flags))
    except FileNotFoundError:
        raise ChannelNotFoundError(
            f"no channel {label!r} (looked for {path}{near_names(path)}); untorn ls shows what there is"
        ) from None
    except OSError as error:
        raise no_file(error, path) or remedied(error, path) from None
    try:
        check_file(fd, path, writing=False)
    except BaseException:
        os.close(fd)
        raise
    return fd
