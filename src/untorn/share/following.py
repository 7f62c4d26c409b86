"""Follow a channel's name: snapshots of its newest versions, over restarts of its publisher.

::

    publisher ends, another takes the channel over      the same files: the next version wakes the reader
    unlink(), and publish() under the name anew         other files: the name is looked at every 0.1 s
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, Self, final

from untorn import _core
from untorn.share import waiting
from untorn.share.snapshot import Snapshot
from untorn.typevars import T_co

__all__ = ["Following", "Source"]

#: how often the name is looked at
LOOK_INTERVAL_S = 0.1


@dataclass(frozen=True)
class Source(Generic[T_co]):
    """One channel that is followed.

    Attributes:
        name: the channel's name.
        attachment: returns the channel; None as long as there is none.
        snapshot: returns its newest version.
        successor: returns the channel that the name leads to now; None if it is the same one, or if there is none.
        ended: returns whether the channel was closed and has no name, so that nothing can come. Raises
            BrokenChannelError if its publisher died.
    """

    name: str
    attachment: Callable[[], _core.Attachment | None]
    snapshot: Callable[[], Snapshot[T_co]]
    successor: Callable[[], Source[T_co] | None]
    ended: Callable[[int], bool]


@final
class Following(Generic[T_co]):
    """The iterator of Subscriber.follow(), for ``for`` and ``async for``. It keeps the number of the last snapshot, not
    the snapshot."""

    __slots__ = ("_seen", "_source", "_timeout_s")

    def __init__(self, source: Source[T_co], timeout_s: float | None) -> None:
        self._source = source
        self._timeout_s = timeout_s
        self._seen = 0

    def __iter__(self) -> Self:
        return self

    def __aiter__(self) -> Self:
        return self

    def __next__(self) -> Snapshot[T_co]:
        deadline = self._deadline()
        while True:
            attachment, found = self._look(deadline)
            if found is not None:
                return found
            if attachment is None:
                time.sleep(self._pause_s(deadline))
            else:
                attachment.wait(self._seen, self._pause_s(deadline))

    async def __anext__(self) -> Snapshot[T_co]:
        import asyncio

        deadline = self._deadline()
        while True:
            try:
                attachment, found = self._look(deadline)
            except StopIteration:
                raise StopAsyncIteration from None
            if found is not None:
                await asyncio.sleep(0)
                return found
            if attachment is None:
                await asyncio.sleep(self._pause_s(deadline))
            else:
                await waiting.changed(attachment, self._seen, or_lost=False, timeout_s=self._pause_s(deadline))

    def _deadline(self) -> float | None:
        return None if self._timeout_s is None else waiting.deadline_of(self._timeout_s)

    def _pause_s(self, deadline: float | None) -> float:
        return LOOK_INTERVAL_S if deadline is None else max(0.0, min(LOOK_INTERVAL_S, deadline - time.monotonic()))

    def _look(self, deadline: float | None) -> tuple[_core.Attachment | None, Snapshot[T_co] | None]:
        """Return the channel, and its newest version if that is a new one. Raises the error that ends the wait."""
        source = self._source
        ended = source.ended(self._seen)  # first, since the last version may have been published just before the end
        attachment = source.attachment()
        if attachment is not None and attachment.version > self._seen:
            snapshot = source.snapshot()
            self._seen = snapshot.version
            return attachment, snapshot
        if ended:
            raise StopIteration
        successor = source.successor()
        if successor is not None:
            self._source, self._seen = successor, 0
            return self._look(deadline)
        if deadline is not None and time.monotonic() >= deadline:
            raise TimeoutError(
                f"channel {source.name!r}: nothing newer than version {self._seen} within {self._timeout_s} s, "
                "and no other channel under its name"
            )
        return attachment, None
