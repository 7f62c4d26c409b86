"""The items of a queue: one that was taken, and one that is written in place."""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType
from typing import Any, Generic, Literal, Self

from untorn import _core
from untorn.errors import ClosedError
from untorn.share.queue_files import meaning
from untorn.typevars import T_co

__all__ = ["Item"]

OnError = Literal["return", "drop"]


class Item(Generic[T_co]):
    """One item that was taken from a queue, and is not finished. Made by Queue.take().

    If its process dies before it is finished, it goes back into the queue, before all others. Used as a context
    manager, it is finished at the end of the block; after an error in the block it goes back, or is dropped, as
    ``take(on_error=...)`` says.

    Example:
        >>> import untorn
        >>> with untorn.queue(10) as tasks:
        ...     tasks.put("dig")
        ...     with tasks.take() as item:
        ...         item.value
        'dig'
    """

    __slots__ = ("__weakref__", "_decode", "_item", "_label", "_on_error", "_value", "put_at")

    #: when it was put, in seconds since the epoch (as time.time())
    put_at: float

    def __init__(self, item: _core.QueueItem, decode: Callable[[_core.QueueItem], Any], label: str, on_error: OnError):
        self._item: _core.QueueItem | None = item
        self._decode = decode
        self._label = label
        self._on_error = on_error
        self._value: Any = _MISSING
        self.put_at = item.published_ns / 1e9

    def _held(self) -> _core.QueueItem:
        item = self._item  # read once, here as below: a signal handler may end this in between
        if item is None:
            raise ClosedError(f"this item of queue {self._label!r} is over; keep a view into its value, or a copy")
        return item

    @property
    def value(self) -> T_co:
        """The value. Arrays are read-only views of shared memory, as those of Queue.get(); they stay valid after the
        item is finished. Raises what Queue.get() raises for a value that cannot be read here."""
        item, value = self._held(), self._value
        if value is _MISSING:
            value = self._decode(item)
            if self._item is not None:
                self._value = value
        return value  # type: ignore[no-any-return]  # decoding cannot know the type

    @property
    def nbytes(self) -> int:
        """The size of the item in shared memory, in bytes."""
        return self._held().nbytes

    def finish(self) -> None:
        """Let no other process get this item. Its memory is free again when the last view of the value is gone. May be
        called twice. Raises UntornError in a process that was forked from the one that took it."""
        item = self._item
        if item is None:
            return
        try:
            item.finish()
        except _core.StatusError as error:
            raise meaning(error, self._label) from None
        self._item = self._value = None

    def give_back(self) -> None:
        """Put the item back, before all others in the queue, as soon as no view of the value is left here."""
        self._item = self._value = None

    def __enter__(self) -> Self:
        self._held()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None or self._on_error == "drop":
            self.finish()
        else:
            self.give_back()

    def __reduce__(self) -> Any:
        raise TypeError("an Item stays in its process; send what you need of the value, and the Queue")

    def __repr__(self) -> str:
        item = self._item
        state = "over" if item is None else f"{item.nbytes:,} bytes"
        return f"<untorn.Item of {self._label!r}, {state}>"


_MISSING = object()
