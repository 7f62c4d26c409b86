"""The driver's own copy of the weights: nodes begin with it, and little is lost if all of them are."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import threading
import time

from untorn.engines.nodes.wire import Blob
from untorn.train.nodes.copies import Position, send_copy
from untorn.train.nodes.jobs import NodeJob
from untorn.train.nodes.members import LostError, Member
from untorn.train.nodes.progress import Progress
from untorn.train.nodes.roster import Roster

__all__ = ["DriverCopy"]

_log = logging.getLogger(__name__)

#: how often the driver copies the newest weights, and how many times as long as a copy takes at least
_EVERY_S = 30.0
_SHARE = 20
#: how often it looks whether that is due, and the pause between two looks for a version
_WATCH_S = 0.25
_PAUSE_S = 0.05


class DriverCopy:
    """Keeps a copy of the newest weights. The methods are called in the hub's thread.

    Args:
        roster: the members, which have the weights.
        progress: the job.

    Attributes:
        held: the copy as raw_version() returns it, and what it is a copy of; None between two jobs.
        soon: whether the next copy is due, however old this one is.
    """

    def __init__(self, roster: Roster, progress: Progress) -> None:
        self.held: tuple[memoryview, Position] | None = None
        self.soon = False
        self._roster, self._progress = roster, progress

    def begin_job(self, job: NodeJob) -> None:
        """Begin with the weights that the job begins with."""
        self.held = job.first, Position(job.token, job.first_version)
        self.soon = False

    def end_job(self) -> None:
        """Release the copy."""
        self.held = None

    def send(self, sock: socket.socket) -> None:
        """Send the copy to a node that has connected to fetch it. Returns at once."""
        if self.held is None:
            sock.close()
            return
        sock.setblocking(True)
        threading.Thread(target=send_copy, args=(sock, *self.held), name="untorn-copy", daemon=True).start()

    def version_of(self, token: bytes) -> int | None:
        """Return the version of these weights that the driver has, or None."""
        return self.held[1].version if self.held is not None and self.held[1].token == token else None

    async def at_least(self, wanted: int) -> tuple[int, Blob]:
        """Return the version ``wanted`` of the job's weights or a newer one: its number and its bytes. Waits while
        nodes that were lost are replaced. Raises the error of the job."""
        job = self._progress.job
        assert job is not None
        while True:
            if self._progress.error is not None:
                raise self._progress.error
            if self.held is not None and self.held[1].version >= wanted:
                return self.held[1].version, self.held[0]
            if not await self._renew(job):
                await asyncio.sleep(_PAUSE_S)

    async def take_newest(self, job: NodeJob, positions: dict[Member, Position]) -> tuple[int, Blob] | None:
        """Copy the newest version of members that are at these positions. Return it, or the driver's if none is newer,
        as at_least() does."""
        for member in sorted(positions, key=lambda each: positions[each].version, reverse=True):
            if self.held is not None and positions[member].version <= self.held[1].version:
                break
            with contextlib.suppress(LostError):
                answer, (raw,) = await member.ask({"do": "copy"})
                self._hold(job, answer["version"], raw)
        return None if self.held is None else (self.held[1].version, self.held[0])

    async def keep(self) -> None:
        """Copy the newest version now and then, for ever."""
        copied, took_s = time.monotonic(), 0.0
        while True:
            await asyncio.sleep(_WATCH_S)
            job, now = self._progress.job, time.monotonic()
            if job is None or job.ending or self.held is None:
                copied = now
                continue
            is_due = self.soon or now - copied > max(_EVERY_S, _SHARE * took_s)
            if is_due and self._roster.inside and self.held[1].version < job.base + self._progress.made:
                self.soon = False
                try:
                    await self._renew(job)
                except Exception as error:
                    _log.warning("the newest weights could not be copied: %s", error)
                copied = time.monotonic()
                took_s = copied - now

    async def _renew(self, job: NodeJob) -> bool:
        """Copy the newest version of a member of the session. Return whether it is newer than the copy before."""
        for member in list(self._roster.inside):
            with contextlib.suppress(LostError):
                answer, (raw,) = await member.ask({"do": "copy"})
                if self._progress.job is job and answer["token"] == job.token:
                    return self._hold(job, answer["version"], raw)
        return False

    def _hold(self, job: NodeJob, version: int, raw: Blob) -> bool:
        if self.held is not None and self.held[1].version >= version:
            return False
        self.held = memoryview(raw), Position(job.token, version)
        job.forget_epochs(version - job.base)
        return True
