"""Publish the changes of a FrozenDict that a channel holds: what Publisher.edit() and patch() do if the newest version
is one.

A version is a whole table, or the changes of an older one that is whole, its *base*::

    version     1        2              3                        90              91
    slot        0        1              2                        1               2
                table    changes of 1   changes of 1   ...       changes of 1    changes of 85'
                  ^         |              |                                        |
                  +---------+--------------+             slot 3: table of 85  <-----+

All changes since the base are copied to each version, so this costs in proportion to them. If they are larger than a
share of the base, the table is written again (it is *compacted*): a small one by the next version, which is a whole
table then; a large one in a thread (compaction.py), and the next version after that consists of the changes since.

A base stays in its slot as long as a version that refers to it is the newest or held (csrc/picking.c), so no reader is
stopped, and a publisher that is killed anywhere leaves the newest version with its base.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Mapping
from typing import Any, NamedTuple

from untorn import _core
from untorn.errors import UntornError
from untorn.share.attached import Attached
from untorn.share.compaction import Compaction, Placed, Sweep
from untorn.share.frozen_dict import FrozenDict, base_of, compacted
from untorn.share.storage_errors import shortage
from untorn.share.table_overlay import Overlay
from untorn.share.versions import Tree, Versions

__all__ = ["MAX_SHARE", "TableWriter"]

_log = logging.getLogger(__name__)

#: changes may have this share of the size of their base: with three slots of them, a channel needs 1.3 times its size
MAX_SHARE = 12
#: while a thread writes the table again, they may have this share; then the publisher waits for the thread
_MAX_SHARE_MEANWHILE = 3
#: a smaller table is written again at once, which takes less than starting a thread and waiting for it
_SMALL_NBYTES = 1 << 20
#: giving back more space than this takes longer than starting a thread
_LARGE_NBYTES = 4 << 20
#: the space for changes is a multiple of this, and of every size of a page
_STEP_NBYTES = 1 << 16
#: the number of slots without which there is none for a next version: the newest one has one, and its base
_MIN_SLOTS = 3


class _Known(NamedTuple):
    """The overlay of the newest version."""

    version: int
    overlay: Overlay


class TableWriter:
    """What a publisher needs to publish changes. The caller ensures that only one thread writes at a time.

    An error or Ctrl-C can end a method between any two steps. So what is known is forgotten before it is changed, and
    the newest version itself tells it to the next call.

    Args:
        allow_pickle: as for publish().
        durable: as for publish().
    """

    def __init__(self, label: str, *, allow_pickle: bool, durable: bool) -> None:
        self._label = label
        self._allow_pickle = allow_pickle
        self._durable = durable
        self._known: _Known | None = None
        self._compaction: Compaction | None = None
        self._sweep: Sweep | None = None
        self._news: BaseException | None = None  # what is to be logged
        self._retry_nbytes = 0  # after a failed compaction, the size of changes from which on to try again

    def write(
        self,
        versions: Versions,
        reader: Attached,
        pinned: _core.Hold,
        table: FrozenDict[Any, Any],
        changes: Mapping[Any, Any],
        timeout_s: float,
    ) -> int:
        """Publish a table with these changes: keys with new values or REMOVED. Returns the version's number.

        Args:
            versions: makes the version.
            reader: the publisher's reading side.
            pinned: the newest version.
            table: its value.
            changes: what changed.
            timeout_s: how long to wait for a slot, in seconds.
        """
        known, self._known = self._known, None
        compaction, self._compaction = self._compaction, None
        try:
            if compaction is not None and compaction.version != pinned.version:  # another value came in between
                compaction.drop()
                compaction = None
            base = base_of(table) or table
            if known is not None and known.version == pinned.version:
                overlay = known.overlay
            else:
                overlay = Overlay.of(table, allow_pickle=self._allow_pickle)
            overlay.add(changes, base)
            if compaction is not None:
                compaction.overlay.add(changes, None)
                compaction.overlay.length = overlay.length
            made = overlay.changes()
            nbytes = made.nbytes
            if compaction is not None and (compaction.is_over or nbytes * _MAX_SHARE_MEANWHILE > base.nbytes):
                placed = compaction.finish()
                if placed is not None:
                    return self._move(versions, compaction, placed, timeout_s)
                self._note_failure(compaction, nbytes)
                compaction = None
            if compaction is None and self._is_whole_now(versions, nbytes, base.nbytes):
                whole = compacted(made.over(base))
                return versions.publish(Tree.of(whole, allow_pickle=self._allow_pickle), timeout_s)
            hold = pinned.base() if pinned.base_version else pinned
            version = self._publish(versions, overlay, (hold.version, hold.slot), base.nbytes, timeout_s)
            if compaction is not None:
                compaction.version = version
            elif nbytes * MAX_SHARE > base.nbytes and nbytes > self._retry_nbytes:
                compaction = self._begin(versions, reader, nbytes)
        except BaseException:
            if compaction is not None:
                compaction.drop()
            raise
        self._compaction = compaction
        return version

    def end(self) -> None:
        """Give up what a thread writes."""
        compaction, self._compaction = self._compaction, None
        sweep, self._sweep = self._sweep, None
        if compaction is not None:
            compaction.drop()
        if sweep is not None:
            sweep.stop()

    def _is_whole_now(self, versions: Versions, nbytes: int, base_nbytes: int) -> bool:
        """Return whether the next version is to be a whole table."""
        if versions.attachment.max_slots < _MIN_SLOTS:
            return True
        if base_nbytes < _SMALL_NBYTES:
            return nbytes * MAX_SHARE > base_nbytes
        return nbytes * _MAX_SHARE_MEANWHILE > base_nbytes and not self._retry_nbytes

    def _publish(
        self, versions: Versions, overlay: Overlay, base: tuple[int, int], base_nbytes: int, timeout_s: float
    ) -> int:
        made = overlay.changes()
        most = (base_nbytes // (MAX_SHARE * _STEP_NBYTES) + 1) * _STEP_NBYTES
        self._trim(versions, max(most, 2 * made.nbytes, _SMALL_NBYTES))
        tree = Tree.of(made, allow_pickle=self._allow_pickle)
        version = versions.publish_changes(tree, base, timeout_s, most=most)
        self._known = _Known(version, overlay)
        return version

    def _trim(self, versions: Versions, most: int) -> None:
        """Give back the space of versions that were a base: it would be kept for versions of this size."""
        claimed, nbytes = versions.claim_spare(most)
        if claimed and nbytes > _LARGE_NBYTES:
            if self._sweep is not None:
                self._sweep.stop()
            self._sweep = Sweep(versions.attachment, claimed)
            with contextlib.suppress(RuntimeError):  # there can be no thread
                self._sweep.start()
                return
            self._sweep = None
        if claimed:
            versions.attachment.release_spare(claimed)

    def _move(self, versions: Versions, compaction: Compaction, placed: Placed, timeout_s: float) -> int:
        """Publish the changes since the version that a thread has written as a whole."""
        base = (placed.version, placed.slot)
        version = self._publish(versions, compaction.overlay, base, placed.nbytes, timeout_s)
        versions.attachment.unreserve(placed.slot)  # the version refers to it
        self._retry_nbytes = 0
        return version

    def _begin(self, versions: Versions, reader: Attached, nbytes: int) -> Compaction | None:
        """Let a thread write the newest version as a whole. If that is not possible, it is tried again later."""
        try:
            hold = reader.pin()
            table = reader.value(hold, self._allow_pickle)
            compaction = Compaction(
                versions.attachment, hold, table, allow_pickle=self._allow_pickle, durable=self._durable
            )
            compaction.start()
        except (UntornError, OSError, RuntimeError) as error:
            self._note(error, nbytes)
            return None
        return compaction

    def _note_failure(self, compaction: Compaction, nbytes: int) -> None:
        if compaction.error is not None:  # otherwise it was stopped by a fork
            self._note(compaction.error, nbytes)

    def _note(self, error: BaseException, nbytes: int) -> None:
        if not self._retry_nbytes:
            self._news = error
        self._retry_nbytes = nbytes * 5 // 4

    def log_news(self) -> None:
        """Log that the table could not be written again. The caller has no lock: a handler of somebody else runs."""
        error, self._news = self._news, None
        if error is not None:
            _log.warning(
                "channel %r: its FrozenDict could not be written again as a whole, so versions grow: %s",
                self._label,
                _reason(error),
            )


def _reason(error: BaseException) -> str:
    if isinstance(error, _core.StatusError):
        return shortage(error) or "no slot is free" if error.args[0] in ("no_space", "no_slot") else error.args[0]
    return f"{type(error).__name__}: {error}"
