"""The channel of this machine that a follower writes: made, continued, ended as its source is."""

from __future__ import annotations

import contextlib
from collections.abc import Callable

from untorn.engines.nodes.streaming.frames import NO_DIGEST, NO_ID, Frame, Have, digest_of
from untorn.errors import BrokenChannelError, UntornError
from untorn.share import Publisher, subscribe
from untorn.share.lowlevel import attachment_of, continue_channel, id_of, publish_received, receive_raw

__all__ = ["LocalChannel"]

#: how long a follower waits for a free slot; its subscribers then hold all of them, and miss a version
_FREE_SLOT_TIMEOUT_S = 1.0


class LocalChannel:
    """The channel that a follower writes, and what is known of it."""

    def __init__(self, name: str, sizes: tuple[int, int, int]) -> None:
        self.name = name
        self._sizes = sizes
        self._publisher: Publisher | None = None
        self._last: Publisher | None = None
        self.version = 0
        self.id = NO_ID

    def is_the_same(self, id: bytes) -> bool:
        """Return whether the name leads to the channel with this id, which is not this one's."""
        if self._publisher is not None:
            return False
        try:
            return id_of(subscribe(self.name)) == id
        except (UntornError, OSError):
            return False

    def adopt(self) -> None:
        """Continue what an earlier follower left. Raises BusyError if the name has a living publisher."""
        if self._publisher is not None or self.version != 0:
            return
        self._publisher = self._last = continue_channel(self.name, tolerant=True)
        if self._publisher is not None:
            self.version = self._publisher.version

    def revive(self) -> None:
        """Continue the channel, if it has lost its publisher. Raises BrokenChannelError if it is gone."""
        if self._publisher is not None or self.version == 0:
            return
        publisher = continue_channel(self.name, tolerant=True)
        if publisher is None or publisher.version != self.version:
            if publisher is not None:
                publisher.close()
            self.forget()
            raise BrokenChannelError(f"channel {self.name!r} was removed or changed by another program")
        self._publisher = self._last = publisher

    def forget(self) -> None:
        """Begin anew."""
        self.close()
        self._last, self.version, self.id = None, 0, NO_ID

    def have(self) -> Have:
        """Return what the source is asked with."""
        digest = NO_DIGEST
        if self._publisher is not None and self.id == NO_ID:
            with self._publisher.subscriber() as reader, reader.snapshot() as snapshot:
                digest = digest_of(snapshot)
        return Have(self.version, self.id, digest)

    def receive(self, frame: Frame, fill: Callable[[memoryview], None]) -> None:
        """Publish a version that ``fill`` writes. Raises CapacityError, before that is called, if there is no room."""
        follows = frame.version > self.version and self.id in (NO_ID, frame.id)
        if not follows:
            self.remove()
        publisher = self._publisher
        if publisher is not None:
            with receive_raw(publisher, frame.nbytes, frame.version, timeout_s=_FREE_SLOT_TIMEOUT_S) as memory:
                fill(memory)
        else:
            self._publisher = self._last = publish_received(
                fill, frame.nbytes, frame.version, name=self.name, sizes=self._sizes, tolerant=True
            )
        self.version, self.id = frame.version, frame.id

    def close(self) -> None:
        """Tell its subscribers that the publisher has closed it."""
        publisher, self._publisher = self._publisher, None
        if publisher is not None:
            publisher.close()

    def die(self) -> None:
        """Let its subscribers find that the publisher is dead."""
        publisher, self._publisher = self._publisher, None
        if publisher is not None:
            attachment_of(publisher).abandon()
            publisher.close()

    def remove(self) -> None:
        """Close it, and remove its names."""
        self.close()
        last, self._last = self._last, None
        if last is not None:
            with contextlib.suppress(UntornError, OSError):  # another publisher has the names now
                last.unlink()
        self.version, self.id = 0, NO_ID
