"""Sessions: which nodes train together, and from which step on.

A session has a number, its members in an order, where the shards are cut for them, and the step at which it begins. A
verdict of death can be wrong between machines. So every change of members makes a new session with a new number, in
which each member has new connections to the others: who was given up is in none, and nothing that it sends can reach
anybody. The members pause at a step and tell which, those behind fetch the newest version from one that is not,
and all begin. If one cannot begin, the next session follows. The sum of a step does not depend on who computes which
shard, so the training goes on with the same bits.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable
from typing import Any

from untorn.engines.nodes.node import UnreachablePeerError
from untorn.engines.nodes.wire import Message
from untorn.errors import WorkerError
from untorn.train.nodes.copies import Position
from untorn.train.nodes.driver_copy import DriverCopy
from untorn.train.nodes.jobs import NodeEpoch, NodeJob, cuts_of
from untorn.train.nodes.members import LostError, Member, named
from untorn.train.nodes.progress import Progress
from untorn.train.nodes.recruiter import Recruiter
from untorn.train.nodes.roster import Roster

__all__ = ["Sessions"]

_log = logging.getLogger(__name__)

#: how long the first session waits for nodes that are still to come, once one is ready
_PATIENCE_S = 30.0
#: how often the members are looked at when nothing is heard of them
_WATCH_S = 0.25
#: how long to wait after a session that did not begin
_PAUSE_S = 0.05


class Sessions:
    """Makes a new session whenever the members have to change. All methods are called in the hub's thread.

    Args:
        roster: the members.
        progress: the job.
        copy: the driver's copy of the weights.
        recruiter: knows why nodes did not come.
        wanted: returns the number of nodes that the cluster wants.
        address: the driver's address, where its copy can be fetched.
    """

    def __init__(
        self,
        roster: Roster,
        progress: Progress,
        copy: DriverCopy,
        recruiter: Recruiter,
        *,
        wanted: Callable[[], int],
        address: tuple[str, int],
    ) -> None:
        self._roster, self._progress, self._copy, self._recruiter = roster, progress, copy, recruiter
        self._wanted, self._address = wanted, address
        self._number = 0
        #: the epoch that the members know of, and the step that they have reached
        self._told: NodeEpoch | None = None
        self._reached = 0
        #: since when a first session is waited for
        self._waiting_since = 0.0
        #: set when the members should be looked at, and whether they have to change although the chosen ones are inside
        self._kick = asyncio.Event()
        self._dirty = False

    def begin_job(self) -> None:
        """Begin a job: its first session is still to come."""
        self._told, self._reached = None, 0
        self._waiting_since = time.monotonic()

    async def end_job(self) -> dict[Member, Position]:
        """Pause all members for the last time. Return where they are."""
        self._number += 1
        positions = await self._pause([each for each in self._roster.inside if each.lost is None])
        self._told = None
        return positions

    def look(self) -> None:
        """Look at the members soon: one may have to join or to leave."""
        self._dirty = True
        self._kick.set()

    def follow_epochs(self) -> None:
        """Look at the epochs: a new one is there."""
        self._tell_epoch()
        self._kick.set()

    def hear_rows(self, message: Message, content: bytearray) -> None:
        """Take rows of the step log that a member has sent."""
        if message["session"] == self._number:
            self._reached = message["rows"] + self._take_rows(message["rows"], message["names"], content)
            self._tell_epoch()

    def hear_trouble(self, member: Member, trouble: Message) -> None:
        """Take the report of a member that it cannot reach another one."""
        inside = self._roster.inside
        if trouble["session"] == self._number and trouble["peer"] < len(inside):
            self._roster.accuse(member, inside[trouble["peer"]], trouble["text"])
            self.look()

    async def supervise(self) -> None:
        """Make sessions, for ever."""
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_WATCH_S):  # wait_for() of Python 3.11 may lose a cancellation
                    await self._kick.wait()
            self._kick.clear()
            try:
                if self._progress.may_go_on and self._is_needed():
                    await self._change_members()
            except Exception as error:
                self._progress.fail(error)

    # -- when a session is needed

    def _chosen(self) -> list[Member]:
        return self._roster.chosen(self._wanted())

    def _is_needed(self) -> bool:
        """Return whether the members have to change now."""
        ready = self._chosen()
        if not self._roster.inside:
            return self._may_begin(ready)
        changed = ready != self._roster.inside or self._dirty
        self._dirty = False
        return changed and bool(ready)

    def _may_begin(self, ready: list[Member]) -> bool:
        """Return whether enough nodes are there for the first session of a job."""
        waited_s = time.monotonic() - self._waiting_since
        limit_s = self._recruiter.connect_s
        if not ready and waited_s > limit_s:
            why = self._recruiter.why_not or "none has connected to the driver"
            self._progress.fail(WorkerError(f"no node was ready within {limit_s:g} s; the last reason: {why}"))
            return False
        if len(ready) >= self._wanted() or (ready and self._progress.made):
            return True
        if ready and waited_s > _PATIENCE_S:
            why = self._recruiter.why_not
            _log.warning("training begins on %d of %d nodes: %s", len(ready), self._wanted(), why)
            return True
        return False

    # -- how one begins

    async def _change_members(self) -> None:
        """Pause everybody, and begin a session with those that are ready. Again, until all have begun. Those that leave
        stay until then, since only they may have the newest version."""
        leaving: list[Member] = []
        try:
            while (job := self._progress.job) is not None and self._progress.may_go_on:
                self._number += 1
                self._dirty = False
                chosen = self._chosen()
                inside = dict.fromkeys(leaving + self._roster.inside)
                leaving = [each for each in inside if each not in chosen and each.lost is None]
                if not chosen:
                    self._roster.inside = []
                    self._waiting_since = time.monotonic()
                    return
                positions = await self._pause(chosen + leaving)
                if job.ending or self._progress.error is not None:
                    return
                if chosen != self._chosen() or not all(each in positions for each in chosen):
                    continue
                if await self._begin(job, chosen, positions):
                    self._copy.soon = self._copy.soon or len(chosen) == 1
                    return
                await asyncio.sleep(_PAUSE_S)
        finally:
            for member in leaving:
                self._roster.dismiss(member)

    async def _pause(self, members: list[Member]) -> dict[Member, Position]:
        """Have members pause. Return the positions of those that have answered."""
        first = self._progress.made  # that of the rows in all answers; the first answer moves it
        message = {"do": "pause", "session": self._number, "rows_from": first}
        answers = await asyncio.gather(*(each.ask(message) for each in members), return_exceptions=True)
        positions: dict[Member, Position] = {}
        for member, answer in zip(members, answers, strict=True):
            if isinstance(answer, LostError):
                continue
            if isinstance(answer, Exception):
                self._progress.fail(named(answer, member))
                continue
            if isinstance(answer, BaseException):
                raise answer
            found, (rows,) = answer
            if found["step"] is not None:
                count = self._take_rows(first, found["names"], rows)
                self._reached = max(self._reached, first + count if count else 0)
            positions[member] = Position(found["token"], found["version"])
        return positions

    async def _begin(self, job: NodeJob, members: list[Member], positions: dict[Member, Position]) -> bool:
        """Have members begin a session at the newest version. Return whether all have begun."""
        newest, source = self._newest(job, positions)
        step = newest - job.base
        epoch = job.epoch_at(step)
        message = {
            "do": "session",
            "session": self._number,
            "addresses": [each.address for each in members],
            "cuts": cuts_of(job.plan.settings.shards, [each.workers for each in members]),
            "token": job.token,
            "version": newest,
            "fetch": source,
            "plan": job.plan,
            "key": job.key,
            "step": step,
            "epoch": epoch.message,
        }
        self._roster.inside, self._told, self._reached = members, epoch, step
        _log.info("session %d begins at step %d on %s", self._number, step, ", ".join(each.name for each in members))
        asked: dict[asyncio.Task[Any], Member] = {}
        for index, each in enumerate(members):
            question = each.ask(message | {"index": index}, epoch.blobs)
            asked[asyncio.ensure_future(question)] = each
        waiting, begun = set(asked), True
        while waiting and begun:
            done, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                begun = self._has_begun(task, asked[task], members) and begun
        for task in waiting:  # the next pause makes these stop waiting
            task.add_done_callback(_ignore)
        self._tell_epoch()
        return begun

    def _newest(self, job: NodeJob, positions: dict[Member, Position]) -> tuple[int, tuple[str, int]]:
        """Return the newest version of the job's weights, and the address of one that has it."""
        held = self._copy.version_of(job.token)
        newest, source = job.first_version if held is None else held, self._address
        for member, (token, version) in positions.items():
            if token == job.token and version > newest:
                newest, source = version, member.address
        if newest < job.base + self._reached:
            _log.warning(
                "the newest nodes were lost: training goes back from step %d to %d", self._reached, newest - job.base
            )
        return newest, source

    def _has_begun(self, task: asyncio.Task[Any], member: Member, members: list[Member]) -> bool:
        """Return whether a member has begun its session."""
        try:
            answer, _ = task.result()
        except LostError:
            return False
        except UnreachablePeerError as error:  # -1: it is the source of the weights
            self._roster.accuse(member, member if error.peer < 0 else members[error.peer], str(error))
            return False
        except OSError as error:
            self._roster.accuse(member, member, str(error))
            return False
        except Exception as error:
            if self._progress.made == 0 or len(members) == 1:
                self._progress.fail(named(error, member))
            else:
                self._roster.lose(member, str(error))
            return False
        begun: bool = answer["begun"]
        return begun

    # -- while it runs

    def _take_rows(self, first: int, names: list[str], content: bytearray) -> int:
        count = self._progress.take_rows(first, names, content)
        if count:
            self._roster.note_step()
        return count

    def _tell_epoch(self) -> None:
        """Tell the members the next epoch, if theirs is over and there is one."""
        job, told = self._progress.job, self._told
        if job is None or told is None or self._reached < told.until:
            return
        following = next((each for each in job.epochs if each.first >= told.until and each is not told), None)
        if following is not None:
            self._told = following
            for member in self._roster.inside:
                member.tell({"do": "epoch", "epoch": following.message}, following.blobs)


def _ignore(task: asyncio.Future[Any]) -> None:
    if not task.cancelled():
        task.exception()
