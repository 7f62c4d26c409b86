"""Putting values into a queue: their place, their bytes, and waiting for room."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from untorn import _core
from untorn.errors import CapacityError, ClosedError, FullError
from untorn.share.edit import Edit
from untorn.share.journal import log_queue
from untorn.share.layout import Layout
from untorn.share.queue_files import look, meaning
from untorn.share.queue_processes import processes_of
from untorn.share.queue_waiting import wait
from untorn.share.specs import flatten
from untorn.share.storage_errors import labelled, no_space
from untorn.share.tree_plans import drop_oldest
from untorn.trees import Spec

__all__ = ["Putter"]


class Putter:
    """What one Queue object knows for putting values.

    Args:
        label: the queue's name, for messages.
        allow_pickle: values that cannot be shared otherwise are pickled.
    """

    __slots__ = ("_allow_pickle", "_label", "_layouts")

    def __init__(self, label: str, allow_pickle: bool) -> None:
        self._label = label
        self._allow_pickle = allow_pickle
        self._layouts: dict[Spec, Layout] = {}

    def reserve(self, core: _core.Queue, like: Any, deadline: float | None) -> Iterator[Any]:
        """Yield a tree that is written in place, and put it: the inside of Queue.reserve()."""
        if look(core, self._label)[1]:
            raise self._closed()  # before the caller has written it
        spec, leaves = flatten(like, allow_pickle=self._allow_pickle)
        layout = self._layout(spec)
        draft = self._begin(core, layout.nbytes, deadline, windowed=True)
        arrays = set(layout.arrays)
        for index, leaf in enumerate(leaves):
            if index not in arrays:
                layout.write_leaf(draft, index, leaf)
        spread: list[Any] = []
        decoder = layout.decoder(allow_pickle=self._allow_pickle)
        tree = decoder.value(draft)
        edit = Edit(spread.append, None, layout, draft, tree, only=None, allow_pickle=self._allow_pickle)
        try:
            try:
                yield edit.tree
                restructured = edit.collect()
            finally:
                edit.end()
            if restructured is not None:
                self.put(core, restructured.spec, restructured.leaves, deadline)
                return
            if spread:  # some array of it may still be written to
                self._seal(core, draft, layout)
            self._insert(core, draft, layout, deadline)
        finally:
            core.discard(draft)  # unless it was put

    def put(self, core: _core.Queue, spec: Spec, leaves: list[Any], deadline: float | None) -> bytes:
        """Put a value as its leaves; return its schema. Waits for room, and raises what Queue.put() does."""
        layout = self._layout(spec)
        draft = self._begin(core, layout.nbytes, deadline)
        for index, leaf in enumerate(leaves):
            layout.write_leaf(draft, index, leaf)
        layout.write_schema(draft)
        self._insert(core, draft, layout, deadline)
        return layout.schema

    def _layout(self, spec: Spec) -> Layout:
        layout = self._layouts.get(spec)
        if layout is None:
            layout = self._layouts[spec] = Layout(spec)
            drop_oldest(self._layouts)
        return layout

    def _begin(
        self, core: _core.Queue, nbytes: int, deadline: float | None, *, windowed: bool = False
    ) -> _core.QueueDraft:
        """Return a slot to write to; wait for one."""
        looked = False
        while True:
            log_queue(core, self._label)
            seen = core.events(True)
            try:
                return core.begin(nbytes, windowed)
            except _core.StatusError as error:
                if error.args[0] not in ("no_slot", "no_room"):
                    raise self._unbegun(core, error, nbytes) from None
                reason = error.args[0]
                if look(core, self._label)[1]:
                    raise self._closed() from None
            except OSError as error:
                raise labelled(error, self._label) from None
            if not looked or wait(core, True, seen, deadline):
                looked = True
                core.reap()
                continue
            raise FullError(self._why_full(core, reason, nbytes))

    def _closed(self) -> ClosedError:
        return ClosedError(f"queue {self._label!r} is closed: nothing can be put into it")

    def _seal(self, core: _core.Queue, draft: _core.QueueDraft, layout: Layout) -> None:
        try:
            core.seal(draft, layout.nbytes, len(layout.schema))
        except _core.StatusError as error:
            raise meaning(error, self._label) from None
        except OSError as error:
            raise labelled(error, self._label) from None

    def _unbegun(self, core: _core.Queue, error: _core.StatusError, nbytes: int) -> Exception:
        if error.args[0] == "too_large":
            return CapacityError(
                f"queue {self._label!r}: this item needs {nbytes:,} bytes, and all items together have "
                f"{core.limit_nbytes:,}; make the queue with a larger nbytes, or put the value in parts"
            )
        if error.args[0] == "no_space":
            return no_space(core.fd, nbytes, f"queue {self._label!r}: an item", number=error.args[1])
        return meaning(error, self._label)

    def _insert(self, core: _core.Queue, draft: _core.QueueDraft, layout: Layout, deadline: float | None) -> None:
        looked = False
        while True:
            log_queue(core, self._label)
            seen = core.events(True)
            try:
                if core.put(draft, layout.nbytes, len(layout.schema)):
                    return
            except _core.StatusError as error:
                raise (self._closed() if error.args[0] == "ended" else meaning(error, self._label)) from None
            if not looked or wait(core, True, seen, deadline):
                looked = True
                continue
            raise FullError(self._why_full(core, "full", layout.nbytes))

    def _why_full(self, core: _core.Queue, reason: str, nbytes: int) -> str:
        label = f"queue {self._label!r}"
        if reason == "full":
            return f"{label} is full: {core.capacity:,} items wait, which is its capacity"
        holders = "; ".join(
            f"pid {process.pid} has taken {process.taken}, holds {process.held} and writes {process.writing}"
            for process in processes_of(core, self._label)
            if process.taken or process.held or process.writing
        )
        waiting = f"{look(core, self._label)[0]:,} items wait" + (f"; {holders}" if holders else "")
        if reason == "no_slot":
            return f"{label} is full: every slot has an item ({waiting}); let items and their views go, or copy them"
        return (
            f"{label} is full: this item needs {nbytes:,} bytes, and all items together have {core.limit_nbytes:,} "
            f"({waiting}); let items and their views go, or make the queue with a larger nbytes"
        )
