"""Taking values from a queue: waiting for an item, and what its bytes mean."""

from __future__ import annotations

from typing import Any

from untorn import _core
from untorn.errors import ClosedError, EmptyError, FormatError, UnsupportedTypeError
from untorn.share.decoder import Decoder
from untorn.share.journal import log_queue
from untorn.share.queue_files import meaning
from untorn.share.queue_waiting import wait
from untorn.share.storage_errors import labelled
from untorn.share.tree_plans import drop_oldest

__all__ = ["Taker"]


class Taker:
    """What one Queue object knows for taking values.

    Args:
        label: the queue's name, for messages.
        allow_pickle: pickles are loaded.
    """

    __slots__ = ("_allow_pickle", "_decoders", "_label")

    def __init__(self, label: str, allow_pickle: bool) -> None:
        self._label = label
        self._allow_pickle = allow_pickle
        self._decoders: dict[bytes, Decoder] = {}

    def take(self, core: _core.Queue, deadline: float | None) -> _core.QueueItem:
        """Take the next item, and wait for it. Raises what Queue.take() does."""
        looked = False
        while True:
            seen = core.events(False)
            item = self._try_take(core)
            log_queue(core, self._label)
            if item is not None:
                return item
            if not looked:
                looked = True
                if core.reap():
                    continue
            if not wait(core, False, seen, deadline):
                raise EmptyError(f"queue {self._label!r} is empty")

    def take_next(self, core: _core.Queue) -> _core.QueueItem | None:
        """Take the next item if one waits. Raises what Queue.take() does, but for the end of the queue."""
        try:
            return self._try_take(core)
        except ClosedError:
            return None

    def _try_take(self, core: _core.Queue) -> _core.QueueItem | None:
        try:
            return core.take()
        except (_core.StatusError, OSError) as error:
            raise self.untaken(error) from None

    def untaken(self, error: _core.StatusError | OSError) -> Exception:
        """Return the error of untorn for an error of taking."""
        if isinstance(error, OSError):
            return labelled(error, self._label)
        if error.args[0] == "ended":
            return ClosedError(f"queue {self._label!r} is closed and empty")
        return meaning(error, self._label)

    def decode(self, item: _core.QueueItem, copy: bool = False) -> Any:
        """Return the value of an item: views into it, or a copy."""
        schema = item.schema()
        decoder = self._decoders.get(schema)
        if decoder is None or decoder.slot_nbytes > item.nbytes:
            try:
                decoder = Decoder(schema, item.nbytes, allow_pickle=self._allow_pickle)
            except (FormatError, UnsupportedTypeError, ImportError) as error:
                raise type(error)(f"queue {self._label!r}: {error}") from error
            self._decoders[schema] = decoder
            drop_oldest(self._decoders)
        return decoder.value(bytearray(memoryview(item)) if copy else item)
