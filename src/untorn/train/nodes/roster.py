"""The nodes that have connected to the driver: who is a member, who takes part in the session, and who is given up."""

from __future__ import annotations

import logging
from collections.abc import Callable

from untorn.engines.nodes.node import versions_here
from untorn.engines.nodes.wire import Message, Wire
from untorn.errors import WorkerError
from untorn.train.nodes.members import Member
from untorn.train.nodes.progress import Progress
from untorn.train.nodes.recruiter import Recruiter

__all__ = ["Roster"]

_log = logging.getLogger(__name__)

#: the number of sessions in which a member may be unreachable for another one, without a step in between
_ACCUSED_MAX = 2


class Roster:
    """The members. All methods are called in the hub's thread.

    Args:
        progress: the job; it fails if too many nodes are lost.
        recruiter: stops the nodes that are given up.
        max_restarts: how often nodes may be lost without a step in between.
        on_change: called when a member that was ready is lost.

    Attributes:
        members: the nodes that have connected and are not lost, by their numbers.
        inside: those that take part in the session, in the order of their shards; some of them may be lost.
        restarts: the number of nodes that were lost after they had been ready.
    """

    def __init__(
        self, progress: Progress, recruiter: Recruiter, *, max_restarts: int, on_change: Callable[[], None]
    ) -> None:
        self.members: dict[int, Member] = {}
        self.inside: list[Member] = []
        self.restarts = 0
        self._progress, self._recruiter = progress, recruiter
        self._max_restarts = max_restarts
        self._on_change = on_change
        self._wires: dict[Wire, Member] = {}
        #: how often each node was unreachable for another one, and the nodes lost, since the last step
        self._accused: dict[int, int] = {}
        self._lost_since_step: list[str] = []
        self._closed = False

    def begin(self) -> None:
        """Begin a job: nobody takes part, and nothing is held against anybody."""
        self.inside = []
        self.note_step()

    def note_step(self) -> None:
        """Note that a step was made: what was held against nodes before it counts no more."""
        self._accused.clear()
        self._lost_since_step.clear()

    def close(self) -> None:
        """Begin the end: nodes that end from now on are not lost."""
        self._closed = True

    def of(self, wire: Wire) -> Member | None:
        """Return the member at the other end of a connection."""
        return self._wires.get(wire)

    def chosen(self, wanted: int) -> list[Member]:
        """Return the members that should take part: the first ones that are ready."""
        ready = sorted((each for each in self.members.values() if each.ready), key=lambda each: each.number)
        return ready[:wanted]

    def welcome(self, wire: Wire, message: Message) -> Member | None:
        """Take a node in by its first message. Return it, or None if it has other versions of the libraries."""
        member = Member(wire.hello["number"], wire)
        member.place = message
        self.members[member.number] = self._wires[wire] = member
        ours, theirs = versions_here(), message["versions"]
        for name, version in ours.items():
            if theirs.get(name) != version:
                what = f"{member.name} has {name} {theirs.get(name)}, and the driver has {version}"
                self.refuse(member, WorkerError(f"{what}; install the same version on all nodes"))
                return None
        _log.info("%s has joined", member.name)
        return member

    def refuse(self, member: Member, error: Exception) -> None:
        """Give up a node that cannot take part. That ends the job, unless others are training already."""
        self.lose(member, str(error))
        if not self.inside:
            self._progress.fail(error)

    def dismiss(self, member: Member) -> None:
        """Let a node go that is not wanted any more."""
        _log.info("%s leaves", member.name)
        member.lose("it leaves")
        self.members.pop(member.number, None)
        self._recruiter.stop(member.number, lost=False)

    def accuse(self, member: Member, accused: Member, text: str) -> None:
        """Note that a member cannot reach another one. If that is so again and again, the other one is given up."""
        _log.info("%s: its peer %s: %s", member.name, accused.name, text)
        if accused.lost is None:
            count = self._accused[accused.number] = self._accused.get(accused.number, 0) + 1
            if count > _ACCUSED_MAX:
                self.lose(accused, f"{member.name} cannot reach it: {text}")

    def lose_wire(self, wire: Wire, reason: str) -> None:
        """Note that a connection has ended."""
        member = self._wires.pop(wire, None)
        number = wire.hello["number"]
        if member is not None:
            self.lose(member, reason)
        elif self._recruiter.take(number):
            self._recruiter.failed(f"node {number}: {reason}")
            self._recruiter.stop(number, lost=True)

    def lose(self, member: Member, reason: str) -> None:
        """Give a node up. That ends the job if it was one too many."""
        if member.lost is not None or self._closed:
            return
        was_ready = member.ready
        member.lose(reason)
        self.members.pop(member.number, None)
        if was_ready:
            self.restarts += 1
            self._lost_since_step.append(f"{member.name}: {reason}")
            _log.info("%s is lost: %s", member.name, reason)
        else:
            self._recruiter.failed(f"{member.name}: {reason}")
        self._recruiter.stop(member.number, lost=True)
        self._on_change()
        if len(self._lost_since_step) > self._max_restarts + len(self.inside):
            self._progress.fail(
                WorkerError(
                    f"{len(self._lost_since_step)} nodes were lost one after the other without a step in between; the "
                    f"last: {self._lost_since_step[-1]}. max_restarts is {self._max_restarts}"
                )
            )
