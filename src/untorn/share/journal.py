"""Log what the core did beside what it was asked for (csrc/journal.h): a channel grew, or dead processes left slots."""

from __future__ import annotations

import logging

from untorn import _core

__all__ = ["log_channel", "log_queue"]

_log = logging.getLogger(__name__)


def log_channel(attachment: _core.Attachment, label: str) -> None:
    """Log what happened on this side of a channel since the last call. The caller holds no lock: a handler of somebody
    else runs."""
    if not attachment.has_news:
        return
    entries, lost = attachment.read_journal()
    for kind, pid, slots, nbytes, _ in entries:
        if kind == _core.JOURNAL_GREW:
            _log.info(
                "channel %r: grew to %d slots of at most %d; bytes: %d", label, slots, attachment.max_slots, nbytes
            )
        else:
            _log.info("channel %r: reader %d is dead; slots that it held: %d, bytes: %d", label, pid, slots, nbytes)
    _log_lost(f"channel {label!r}", lost)


def log_queue(side: _core.Queue, label: str) -> None:
    """Log what happened on this side of a queue since the last call. The caller holds no lock."""
    if not side.has_news:
        return
    entries, lost = side.read_journal()
    for _, pid, slots, _, returned in entries:
        _log.info(
            "queue %r: process %d is dead; items that are in the queue again: %d, slots that are free again: %d",
            label,
            pid,
            returned,
            slots,
        )
    _log_lost(f"queue {label!r}", lost)


def _log_lost(what: str, lost: int) -> None:
    if lost:
        _log.info("%s: and %d more such events", what, lost)
