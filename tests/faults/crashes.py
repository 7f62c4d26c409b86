"""Simulate crashes of the machine: record every state of a channel that the disk may have after a crash.

After a crash a file has the bytes of its last sync and any part of the later writes: each piece is as it was at some
moment since the sync. Pieces of 4096 bytes are pages, of 512 bytes sectors, and of 64 bytes lines of persistent memory.
The directory has its names of some moment since its last sync.
"""

import os
import random

import numpy as np
import pytest

from untorn import _core
from untorn.share import layout

__all__ = ["Machine"]

PIECES = (64, 512, 4096)


class History:
    """The states that the disk may have of a file, or of the set of names: those since its last sync."""

    def __init__(self, now) -> None:
        self.moments = [now]

    def note(self, now) -> None:
        if now != self.moments[-1]:
            self.moments.append(now)

    def sync(self) -> None:
        del self.moments[:-1]

    def mixed(self, rng, piece: int) -> bytes:
        """Return the bytes with each piece as it was at some moment."""
        if len(self.moments) == 1:
            return self.moments[0]
        size = len(self.moments[rng.integers(len(self.moments))])
        padded = -(-max(map(len, self.moments)) // piece) * piece
        stack = np.stack([np.frombuffer(m.ljust(padded, b"\0"), np.uint8).reshape(-1, piece) for m in self.moments])
        ends_only = rng.integers(2)
        at = rng.integers(len(stack), size=stack.shape[1])
        if ends_only:
            at = np.where(at % 2, len(stack) - 1, 0)
        return stack[at, np.arange(stack.shape[1])].tobytes()[:size]

    def alone(self, piece: int):
        """Return the bytes with one piece as it was at some moment, and all others as they are now."""
        now = self.moments[-1]
        for then in self.moments[:-1]:
            if len(then) == len(now):
                for at in range(0, len(now), piece):
                    if then[at : at + piece] != now[at : at + piece]:
                        yield now[:at] + then[at : at + piece] + now[at + piece :]


class Machine:
    """Observes the calls of a publisher, and collects the states that a crash may leave.

    Attributes:
        returned: the last version whose call has returned.
        expected: the value of each version.
        states: (returned, begun, control, data) without repetitions; a file without a name is None.
    """

    def __init__(self, rng: random.Random, folder) -> None:
        self.folder = folder
        self.returned = 0
        self.expected: dict[int, dict] = {}
        self.states: dict[tuple, None] = {}  # in order, so that a seed repeats a run
        self.interrupt_at = ""
        self._rng = np.random.default_rng(rng.randrange(2**32))
        self._attachment = None
        self._files = {"control": History(b""), "data": History(b"")}
        self._names = History(frozenset())

    def step(self, attachment=None) -> None:
        """Record a moment at which the machine may crash."""
        self._attachment = attachment = attachment or self._attachment
        if attachment is None:
            return
        for part, history in self._files.items():
            fd = getattr(attachment, f"{part}_fd")
            history.note(os.pread(fd, os.fstat(fd).st_size, 0))
        self._names.note(frozenset(os.listdir(self.folder)))
        control, data = (history.moments for history in self._files.values())
        for pair in ((control[0], data[0]), (control[-1], data[0]), (control[0], data[-1]), (control[-1], data[-1])):
            self._add(*pair)
        for one in self._files["control"].alone(PIECES[0]):
            self._add(one, data[-1])
        for piece in PIECES:
            self._add(*(history.mixed(self._rng, piece) for history in self._files.values()))

    def _add(self, control: bytes, data: bytes) -> None:
        for names in self._names.moments:
            parts = [b if f"channel.{p}" in names else None for p, b in (("control", control), ("data", data))]
            self.states[self.returned, self._attachment.version + 1, *parts] = None

    def synced(self, fd: int) -> None:
        """Record that a file, or the directory, is on the disk."""
        if self._attachment is None:
            return
        for part, history in self._files.items():
            if os.path.samestat(os.fstat(fd), os.fstat(getattr(self._attachment, f"{part}_fd"))):
                history.sync()
        if os.path.samestat(os.fstat(fd), os.stat(self.folder)):
            self._names.sync()

    def watch(self, patch: pytest.MonkeyPatch) -> None:
        """Record a moment before and after each call that changes a file."""
        for method in ("pick", "finish", "publish"):
            patch.setattr(_core.Attachment, method, self._watched(getattr(_core.Attachment, method), own=True))
        patch.setattr(layout.Layout, "write_leaf", self._watched(layout.Layout.write_leaf))
        patch.setattr(layout.Layout, "write_schema", self._watched(layout.Layout.write_schema))
        patch.setattr(_core, "copy", self._watched(_core.copy))
        for call in ("fdatasync", "fsync", "link"):
            patch.setattr(os, call, self._watched(getattr(os, call), syncs=call != "link"))

    def _watched(self, call, *, own=False, syncs=False):
        def watched(*args, **kwargs):
            self.step(args[0] if own else None)
            if syncs and self.interrupt_at and self.interrupt_at == self._published():
                self.interrupt_at = ""
                raise KeyboardInterrupt
            try:
                result = call(*args, **kwargs)
                if syncs:
                    self.synced(args[0])
                return result
            finally:
                self.step()

        return watched

    def _published(self) -> str:
        return f"version {self._attachment.version}" if self._attachment else ""
