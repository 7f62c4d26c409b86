"""Write a FrozenDict that consists of changes as a whole table again, in a thread, while changes go on.

::

    publisher   version 90      91          92          93                        94
                changes of 1    changes     changes     changes of 1              changes of 90'
    thread      pin 90 -> merge it with its base -> write it to a slot, 90'        ^ those since 90

The result becomes the base of a later version; until then nothing refers to its slot. So readers never see it half
written, a publisher that is killed leaves nothing but space, which the next one gives back, and a compaction can be
dropped at any time. Before a fork it is, since the thread would not exist in the child.
"""

from __future__ import annotations

import os
import threading
import weakref
from typing import Any, NamedTuple

from untorn import _core
from untorn.share.frozen_dict import STOP_NBYTES, FrozenDict, merged
from untorn.share.layout import Layout
from untorn.share.table_overlay import Overlay
from untorn.share.versions import Tree

__all__ = ["Compaction", "Placed", "Sweep"]

#: the schema of a base that was written here is named by its version and this bit, as that version has another one
_SCHEMA_OF_BASE = 1 << 63


class Placed(NamedTuple):
    """A base in its slot, ready to be referred to."""

    version: int
    slot: int
    nbytes: int


class Compaction:
    """One compaction, which a thread does.

    Args:
        attachment: the publisher's.
        hold: the version to write, pinned.
        table: its value.
        durable: flush the base to the disk.

    Attributes:
        overlay: the changes since that version, to which the publisher adds.
        version: the newest version whose changes are in the overlay.
        error: why it failed; None if it did not, or was stopped.
    """

    def __init__(
        self,
        attachment: _core.Attachment,
        hold: _core.Hold,
        table: FrozenDict[Any, Any],
        *,
        allow_pickle: bool,
        durable: bool,
    ) -> None:
        self.overlay: Overlay = Overlay.begin(table, allow_pickle=allow_pickle)
        self.version: int = hold.version
        self.error: BaseException | None = None
        self._attachment = attachment
        self._allow_pickle = allow_pickle
        self._durable = durable
        self._stop = bytearray(STOP_NBYTES)
        self._placed: Placed | None = None
        self._thread = threading.Thread(target=self._run, args=(hold, table), name="untorn-compaction", daemon=True)

    def start(self) -> None:
        """Start the thread. Raises RuntimeError if there can be none."""
        self._thread.start()
        _running.add(self)

    @property
    def is_over(self) -> bool:
        """Whether finish() does not wait."""
        return not self._thread.is_alive()

    def finish(self) -> Placed | None:
        """Wait for the end, and return the new base; None if it failed or was stopped. The caller unreserves the slot
        when a version refers to it."""
        self._thread.join()
        return self._placed

    def stop(self) -> None:
        """End it soon, and wait for that. A base that is ready stays."""
        self._stop[0] = 1
        if self._thread is not threading.current_thread():  # a finalizer may run there
            self._thread.join()

    def drop(self) -> None:
        """Stop it, and give up what it has made."""
        self.stop()
        placed, self._placed = self._placed, None
        if placed is not None:
            self._attachment.unreserve(placed.slot)

    def _run(self, hold: _core.Hold, table: FrozenDict[Any, Any]) -> None:
        try:
            made = merged(table, self._stop)
            if made is not None:
                self._placed = self._place(made, hold.version)
        except BaseException as error:  # reported by the next version, or not at all if it can do without
            self.error = error.with_traceback(None)

    def _place(self, table: FrozenDict[Any, Any], version: int) -> Placed | None:
        attachment = self._attachment
        tree = Tree.of(table, allow_pickle=self._allow_pickle)
        layout = Layout(tree.spec)
        slot = attachment.reserve(layout.nbytes)
        try:
            draft = attachment.draft(slot)
            for index, leaf in enumerate(tree.leaves):
                if self._stop[0]:
                    attachment.unreserve(slot)
                    return None
                layout.write_leaf(draft, index, leaf)
            layout.write_schema(draft)
            attachment.finish(slot, version, layout.nbytes, len(layout.schema), version | _SCHEMA_OF_BASE)
            if self._durable:
                os.fdatasync(attachment.data_fd)
        except BaseException:
            attachment.unreserve(slot)
            raise
        return Placed(version, slot, layout.nbytes)


class Sweep:
    """Gives back the space of claimed slots in a thread, since that takes long for large ones."""

    def __init__(self, attachment: _core.Attachment, claimed: int) -> None:
        self._thread = threading.Thread(
            target=attachment.release_spare, args=(claimed,), name="untorn-sweep", daemon=True
        )

    def start(self) -> None:
        """Start the thread. Raises RuntimeError if there can be none."""
        self._thread.start()
        _running.add(self)

    def stop(self) -> None:
        """Wait until the space has been given back."""
        if self._thread is not threading.current_thread():
            self._thread.join()


_running: weakref.WeakSet[Compaction | Sweep] = weakref.WeakSet()


def _stop_all() -> None:
    for each in list(_running):
        each.stop()


os.register_at_fork(before=_stop_all)
