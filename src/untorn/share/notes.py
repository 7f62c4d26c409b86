"""What a publisher notes in its channel for readers, beside the versions, and whether it publishes.

A note is a JSON text in page 0 of the control file, which only the process with the publisher's lock writes. It says
what the words of the protocol do not: that the channel ends with its publisher (``keep=False``), that the Publisher
object was garbage-collected, or, in a signpost, where the channel is (naming.py).

A second lock says that the living publisher has published a version itself. The publisher's lock alone does not: a
process that takes a channel over has it before its first version, and the newest version is then its predecessor's::

    byte 0                  held while the publisher lives
    byte max_readers + 1    held while a publisher lives that has published a version
"""

from __future__ import annotations

import fcntl
import json
import os
import struct
from typing import Any

from untorn import _core

__all__ = [
    "KEEP",
    "begin_living",
    "dropped_text",
    "end_living",
    "is_live",
    "note_dropped",
    "read_note",
    "was_dropped",
    "write_note",
]

#: the position of the text in the control file, and its largest size
_AT, _NBYTES = 1152, 512
#: the key that is false if a channel ends with its publisher
KEEP = "keep"
_DROPPED = "dropped"
_FLOCK = struct.Struct("hhqqi4x")


def read_note(control_fd: int) -> dict[str, Any]:
    """Return the note of a channel; an empty dict if there is none, or none that can be read."""
    text = os.pread(control_fd, _NBYTES, _AT).split(b"\0", 1)[0]
    try:
        note: Any = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return note if isinstance(note, dict) else {}


def write_note(attachment: _core.Attachment, note: dict[str, Any]) -> None:
    """Replace the channel's note; an empty dict removes it."""
    text = json.dumps(note).encode() if note else b""
    os.pwrite(attachment.control_fd, text.ljust(_NBYTES, b"\0"), _AT)


def note_dropped(attachment: _core.Attachment) -> None:
    """Note that the Publisher was garbage-collected."""
    write_note(attachment, read_note(attachment.control_fd) | {_DROPPED: os.getpid()})


def was_dropped(attachment: _core.Attachment) -> int | None:
    """Return the process in which the Publisher was garbage-collected; None if it was not."""
    pid = read_note(attachment.control_fd).get(_DROPPED)
    return pid if isinstance(pid, int) else None


def dropped_text(pid: int) -> str:
    """Return the reason for messages."""
    return (
        f"its Publisher was garbage-collected while process {pid} ran on; keep it in a variable for as long as it "
        "publishes"
    )


def begin_living(attachment: _core.Attachment) -> None:
    """Take the lock of a publisher that has published. Raises OSError if the file system has no locks."""
    fcntl.fcntl(attachment.control_fd, fcntl.F_OFD_SETLK, _living(attachment, fcntl.F_WRLCK))


def end_living(attachment: _core.Attachment) -> None:
    """Release that lock; the kernel releases it when the process ends."""
    fcntl.fcntl(attachment.control_fd, fcntl.F_OFD_SETLK, _living(attachment, fcntl.F_UNLCK))


def is_live(attachment: _core.Attachment) -> bool:
    """Return whether the newest version is that of a living publisher, or will be replaced by it. Needs one system
    call."""
    answer = fcntl.fcntl(attachment.control_fd, fcntl.F_OFD_GETLK, _living(attachment, fcntl.F_WRLCK))
    return bool(_FLOCK.unpack(answer)[0] != fcntl.F_UNLCK)


def _living(attachment: _core.Attachment, kind: int) -> bytes:
    return _FLOCK.pack(kind, os.SEEK_SET, attachment.max_readers + 1, 1, 0)
