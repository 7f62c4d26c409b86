"""The driver's coordinator: it decides which nodes take part, and from which step on.

::

    cluster ── starts ──> node ── connects ──> Member: sent everything that it lacks, while the others train
                                                  │ ready
                                                  v
    a member is lost, joins or leaves ──> session: pause all ── positions ──> members, cuts, step ──> begin all

A verdict of death can be wrong between machines. So every change of members makes a new session with a new number, in
which each member has new connections to the others: who was given up is in none, and nothing that it sends can reach
anybody. The members pause at a step, tell which, and whoever is behind fetches the newest version from one that is not.
The sum of a step does not depend on who computes which shard, so the training goes on with the same bits.

The driver copies the newest version now and then. If all nodes are lost at once, new ones begin with that copy, and
make the steps since then again: the driver keeps the order and the rates of the epochs that they need for it.

All of this runs in the thread of the hub, so a callback of the user's that takes long delays no recovery. The recruiter
speaks to the cluster, which may take its time, in a thread of its own.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import pickle
import socket
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

import numpy as np

from untorn.engines.nodes import Cluster, Figures
from untorn.engines.nodes.node import UnreachablePeerError, versions_here
from untorn.engines.nodes.wire import Blob, Hub, Message, Wire
from untorn.errors import WorkerError
from untorn.train.nodes.copies import Position, send_copy
from untorn.train.nodes.evaluation import evaluate_on
from untorn.train.nodes.jobs import NodeEpoch, NodeEvaluation, NodeJob, cuts_of
from untorn.train.nodes.members import LostError, Member, named
from untorn.train.nodes.recruiter import Recruiter
from untorn.train.nodes.sending import Sending
from untorn.train.run.chunks import Answer

__all__ = ["Coordinator"]

_log = logging.getLogger(__name__)

#: a node that is silent for so long is given up; one that is still starting may be busy importing
_SILENCE_S = 3.0
_SILENCE_STARTING_S = 60.0
#: how long the first session waits for nodes that are still to come, once one is ready
_PATIENCE_S = 30.0
#: how often the members are looked at when nothing is heard of them
_WATCH_S = 0.25
#: the number of sessions in which a member may be unreachable for another one, without a step in between
_ACCUSED_MAX = 2
#: how long the coordinator waits after a session that did not begin, and between two looks for a version
_PAUSE_S = 0.05
#: how often the driver copies the newest weights, and how many times as long as a copy takes at least
_COPY_EVERY_S = 30.0
_COPY_SHARE = 20
#: a copy is also made when the orders of the epochs since the last one have more bytes
_KEPT_NBYTES = 1 << 26


class Coordinator:
    """Runs the nodes of one trainer.

    Args:
        cluster: starts the nodes.
        setup: what every node is told first, without the weights.
        blobs: the bytes beside it: the model and the optimizer.
        workers: the number of workers of each node.
        max_restarts: how often nodes may be lost without a step in between.

    Attributes:
        made: the number of steps of the job that are made, as far as the driver knows.
        error: the error that has ended the job, or None.
        restarts: the number of nodes that were lost and replaced.
    """

    def __init__(
        self, cluster: Cluster, setup: Message, blobs: list[bytes], *, workers: int, max_restarts: int
    ) -> None:
        self.made = 0
        self.error: Exception | None = None
        self.restarts = 0
        self.workers = workers
        #: a copy of the newest weights that the driver has, for nodes to fetch
        self.held: tuple[memoryview, Position] | None = None
        self._cluster = cluster
        self._setup, self._sending = setup, Sending(setup, blobs)
        self._max_restarts = max_restarts
        self._members: dict[int, Member] = {}
        self._wires: dict[Wire, Member] = {}
        self._job: NodeJob | None = None
        self._session = 0
        self._inside: list[Member] = []
        #: the epoch that the members of the session know of, and the step that they have reached
        self._told: NodeEpoch | None = None
        self._reached = 0
        self._copy_soon = False
        self._begun_at = 0.0
        self._changed = threading.Condition()
        self._kick: asyncio.Event | None = None
        self._dirty = False
        self._accused: dict[int, int] = {}
        self._lost_since_step: list[str] = []
        self._digest: tuple[str, str] | None = None
        self._closed = False
        self._hub = Hub(os.urandom(32), host=cluster.host, on_connection=self._join, name="untorn-driver")
        self._recruiter = Recruiter(
            cluster,
            self._hub,
            workers=lambda: self.workers,
            figures=self._figures,
            on_ended=self._process_ended,
            on_cannot_start=self._cannot_start,
        )
        self._hub.call(self._begin)

    # -- for the driver's threads

    def begin_job(self, job: NodeJob) -> None:
        """Begin a job. Its first epoch comes with begin_epoch()."""
        self.made, self.error = 0, None
        self._hub.run(self._set_job(job)).result()

    def begin_epoch(self, first: int, until: int, epoch: Message, batch: bytes = b"") -> None:
        """Have the nodes make the steps from ``first`` to ``until``; order and rates are on the job's board. ``batch``
        is the next version of the data's channel, if it changes."""
        self._hub.run(self._set_epoch(first, until, epoch, batch)).result()

    def wait(self, timeout_s: float) -> None:
        """Wait until more steps are made, or something has failed. Raises the error of the job."""
        with self._changed:
            before = self.made
            self._changed.wait_for(lambda: self.made != before or self.error is not None, timeout_s)
        if self.error is not None:
            raise self.error

    def copy(self) -> tuple[int, Blob]:
        """Return the version of the weights after the last step that is known to be made, or a newer one: its number
        and its bytes. Blocks while nodes that were lost are replaced, and make these steps again. Raises the error of
        the job."""
        found: tuple[int, Blob] = self._hub.run(self._copy()).result()
        return found

    def end_job(self) -> tuple[int, Blob] | None:
        """End the job, wherever it is. Return the newest version that can be had, as copy() does. Blocks."""
        found: tuple[int, Blob] | None = self._hub.run(self._end_job()).result()
        return found

    def evaluate(self, work: NodeEvaluation, put: Callable[[tuple[int, Answer]], None]) -> Future[None]:
        """Have the nodes evaluate chunks. Calls ``put`` in the hub's thread with each answer. When the future is done,
        chunks that no node can compute are left over. Its exception is that of a model that failed."""
        return self._hub.run(self._evaluate(work, put))

    def forget(self, keys: list[int]) -> None:
        """Have the nodes release data."""
        self._hub.call(self._forget, keys)

    def set_workers(self, workers: int) -> None:
        """Change the number of workers of each node."""
        self.workers = workers

        def tell() -> None:
            for member in self._members.values():
                member.tell({"do": "workers", "count": workers})

        self._hub.call(tell)

    def look(self) -> None:
        """Look at the members soon: the number of nodes was changed."""
        self._hub.call(self._look_again)

    def nodes(self) -> list[dict[str, Any]]:
        """Return the nodes as a job's status lists them."""
        members = sorted(self._members.copy().items())
        return [member.describe() for _, member in members if member.lost is None]

    def close(self) -> None:
        """End the nodes and all connections."""
        self._closed = True
        self._recruiter.close()
        self._hub.close()

    # -- members

    def _begin(self) -> None:
        self._kick = asyncio.Event()
        self._hub.spawn(self._supervise())
        self._hub.spawn(self._keep_copies())

    def _look_again(self) -> None:
        self._dirty = True
        if self._kick is not None:
            self._kick.set()

    def _join(self, hello: Message, sock: socket.socket) -> None:
        kind, number = hello.get("kind"), hello.get("number")
        if kind == "fetch":
            self._serve_fetch(sock)
        elif kind == "node" and self._recruiter.expects(number):
            self._hub.adopt(
                sock, hello, on_message=self._receive, on_end=self._lose_wire, silence_s=_SILENCE_STARTING_S
            )
        else:
            _log.warning("a connection was closed: it is node %r, which is not expected", number)
            sock.close()

    def _serve_fetch(self, sock: socket.socket) -> None:
        held = self.held
        if held is None:
            sock.close()
            return
        sock.setblocking(True)
        threading.Thread(target=send_copy, args=(sock, *held), name="untorn-copy", daemon=True).start()

    def _receive(self, wire: Wire, message: Message, blobs: list[bytearray]) -> None:
        try:
            self._hear(wire, message, blobs)
        except Exception as error:
            self._fail(error)

    def _hear(self, wire: Wire, message: Message, blobs: list[bytearray]) -> None:
        member = self._wires.get(wire)
        if member is None:
            if self._recruiter.take(wire.hello["number"]):
                self._welcome(wire, message)
        elif member.lost is not None:
            return
        elif "re" in message:
            member.answered(message, blobs)
        elif "rows" in message:
            if message["session"] == self._session:
                self._reached = message["rows"] + self._take_rows(message["rows"], message["names"], blobs[0])
                self._tell_epoch()
        elif "status" in message:
            member.status = message["status"]
        elif "trouble" in message:
            self._hear_trouble(member, message["trouble"])
        elif "failed" in message:
            self._fail(named(_error_of(message["failed"]), member))

    def _welcome(self, wire: Wire, message: Message) -> None:
        member = Member(wire.hello["number"], wire)
        member.place = message
        self._members[member.number] = self._wires[wire] = member
        ours, theirs = versions_here(), message["versions"]
        for name, version in ours.items():
            if theirs.get(name) != version:
                what = f"{member.name} has {name} {theirs.get(name)}, and the driver has {version}"
                self._refuse(member, WorkerError(f"{what}; install the same version on all nodes"))
                return
        _log.info("%s has joined", member.name)
        if self._job is not None:
            self._hub.spawn(self._prepare(member))

    def _refuse(self, member: Member, error: Exception) -> None:
        """Give up a node that cannot take part. That ends the job, unless others are training already."""
        self._lose(member, str(error))
        if not self._inside:
            self._fail(error)

    def _lose_wire(self, wire: Wire, reason: str) -> None:
        member = self._wires.pop(wire, None)
        if member is not None:
            self._lose(member, reason)
        elif self._recruiter.take(wire.hello["number"]):
            self._recruiter.failed(f"node {wire.hello['number']}: {reason}")
            self._recruiter.stop(wire.hello["number"], lost=True)

    def _lose(self, member: Member, reason: str) -> None:
        if member.lost is not None or self._closed:
            return
        was_ready = member.ready
        member.lose(reason)
        if member.number in self._members:
            del self._members[member.number]
        if was_ready:
            self.restarts += 1
            self._lost_since_step.append(f"{member.name}: {reason}")
            _log.info("%s is lost: %s", member.name, reason)
        else:
            self._recruiter.failed(f"{member.name}: {reason}")
        self._recruiter.stop(member.number, lost=True)
        self._look_again()
        if len(self._lost_since_step) > self._max_restarts + len(self._inside):
            self._fail(
                WorkerError(
                    f"{len(self._lost_since_step)} nodes were lost one after the other without a step in between; the "
                    f"last: {self._lost_since_step[-1]}. max_restarts is {self._max_restarts}"
                )
            )

    def _hear_trouble(self, member: Member, trouble: Message) -> None:
        if trouble["session"] == self._session and trouble["peer"] < len(self._inside):
            self._accuse(member, self._inside[trouble["peer"]], trouble["text"])
            self._look_again()

    def _accuse(self, member: Member, accused: Member, text: str) -> None:
        """Note that a member cannot reach another one. If that is so again and again, the other one is given up."""
        _log.info("%s: its peer %s: %s", member.name, accused.name, text)
        if accused.lost is None:
            count = self._accused[accused.number] = self._accused.get(accused.number, 0) + 1
            if count > _ACCUSED_MAX:
                self._lose(accused, f"{member.name} cannot reach it: {text}")

    # -- what the recruiter asks and tells

    def _figures(self) -> Figures | None:
        job = self._job
        if job is None or self._closed:
            return None
        nodes = self.nodes()
        return Figures(
            name=job.name,
            step=job.plan.first_step + self.made,
            batch_size=job.plan.batch_size,
            restarts=self.restarts + sum(int(node["restarts"]) for node in nodes),
            nodes=nodes,
        )

    def _process_ended(self, number: int, reason: str) -> None:
        member = self._members.get(number)
        if member is not None:
            self._lose(member, reason)

    def _cannot_start(self, error: Exception) -> None:
        if not self._members:
            self._fail(error)

    # -- what a node needs before it can take part

    async def _prepare(self, member: Member) -> None:
        """Send a node everything that it lacks for the job, and have it start its workers."""
        job = self._job
        if job is None:
            return
        try:
            async with member.preparing:
                await self._sending.send(member, job, self.workers)
                question = {"do": "prepare", "plan": job.plan, "key": job.key, "examples": job.examples}
                answer, _ = await member.ask(question)
        except LostError:
            return
        except Exception as error:
            if self._job is job:
                self._refuse(member, named(error, member))
            return
        if self._job is not job or not self._same_bits(member, answer["digest"]):
            return
        member.ready = True
        member.wire.silence_s = _SILENCE_S
        self._recruiter.succeeded()
        self._look_again()

    def _same_bits(self, member: Member, digest: str) -> bool:
        """Compare the gradient of a few examples with that of the first node."""
        if self._digest is None:
            self._digest = digest, member.name
        if self._digest[0] == digest or not self._setup["same_bits"]:
            return True
        self._refuse(
            member,
            WorkerError(
                f"{member.name}: its processor computes other bits than that of {self._digest[1]}: the gradients of "
                "the same examples differ. Use machines of one kind, or give the cluster same_bits=False if the result "
                "need not be the same bit for bit"
            ),
        )
        return False

    # -- sessions

    async def _supervise(self) -> None:
        assert self._kick is not None
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_WATCH_S):  # wait_for() of Python 3.11 may lose a cancellation
                    await self._kick.wait()
            self._kick.clear()
            if self._job is None or not self._job.may_begin or self.error is not None:
                continue
            try:
                if self._needs_session():
                    await self._change_members()
            except Exception as error:
                self._fail(error)

    def _needs_session(self) -> bool:
        """Return whether the members have to change now."""
        ready = self._chosen()
        if not self._inside:
            return self._may_begin(ready)
        changed = ready != self._inside or self._dirty
        self._dirty = False
        return changed and bool(ready)

    def _chosen(self) -> list[Member]:
        ready = sorted((each for each in self._members.values() if each.ready), key=lambda each: each.number)
        return ready[: self._cluster.wanted()]

    def _may_begin(self, ready: list[Member]) -> bool:
        """Return whether enough nodes are there for the first session of a job."""
        now = time.monotonic()
        waited_s = now - self._begun_at
        limit_s = self._recruiter.connect_s
        if not ready and waited_s > limit_s:
            why = self._recruiter.why_not or "none has connected to the driver"
            self._fail(WorkerError(f"no node was ready within {limit_s:g} s; the last reason: {why}"))
            return False
        if len(ready) >= self._cluster.wanted() or (ready and self.made):
            return True
        if ready and waited_s > _PATIENCE_S:
            why = self._recruiter.why_not
            _log.warning("training begins on %d of %d nodes: %s", len(ready), self._cluster.wanted(), why)
            return True
        return False

    async def _change_members(self) -> None:
        """Pause everybody, and begin a session with those that are ready. Again, until all have begun. Those that leave
        stay until then, since only they may have the newest version."""
        leaving: list[Member] = []
        try:
            while (job := self._job) is not None and job.may_begin and self.error is None:
                self._session += 1
                self._dirty = False
                chosen = self._chosen()
                inside = dict.fromkeys(leaving + self._inside)
                leaving = [each for each in inside if each not in chosen and each.lost is None]
                if not chosen:
                    self._inside = []
                    self._begun_at = time.monotonic()
                    return
                positions = await self._pause(chosen + leaving)
                if job.ending or self.error is not None:
                    return
                if chosen != self._chosen() or not all(each in positions for each in chosen):
                    continue
                if await self._begin_session(job, chosen, positions):
                    self._copy_soon = self._copy_soon or len(chosen) == 1
                    return
                await asyncio.sleep(_PAUSE_S)
        finally:
            for member in leaving:
                self._dismiss(member)

    def _dismiss(self, member: Member) -> None:
        _log.info("%s leaves", member.name)
        member.lose("it leaves")
        self._members.pop(member.number, None)
        self._recruiter.stop(member.number, lost=False)

    async def _pause(self, members: list[Member]) -> dict[Member, Position]:
        """Have members pause. Return the positions of those that have answered."""
        first = self.made  # that of the rows in all answers; the first answer moves self.made
        message = {"do": "pause", "session": self._session, "rows_from": first}
        answers = await asyncio.gather(*(each.ask(message) for each in members), return_exceptions=True)
        positions: dict[Member, Position] = {}
        for member, answer in zip(members, answers, strict=True):
            if isinstance(answer, LostError):
                continue
            if isinstance(answer, Exception):
                self._fail(named(answer, member))
                continue
            if isinstance(answer, BaseException):
                raise answer
            found, (rows,) = answer
            if found["step"] is not None:
                count = self._take_rows(first, found["names"], rows)
                self._reached = max(self._reached, first + count if count else 0)
            positions[member] = Position(found["token"], found["version"])
        return positions

    async def _begin_session(self, job: NodeJob, members: list[Member], positions: dict[Member, Position]) -> bool:
        """Have members begin a session at the newest version. Return whether all have begun."""
        newest, source = self._newest(job, positions)
        step = newest - job.base
        epoch = job.epoch_at(step)
        cuts = cuts_of(job.plan.settings.shards, [each.workers for each in members])
        message = {
            "do": "session",
            "session": self._session,
            "addresses": [each.address for each in members],
            "cuts": cuts,
            "token": job.token,
            "version": newest,
            "fetch": source,
            "plan": job.plan,
            "key": job.key,
            "step": step,
            "epoch": epoch.message,
        }
        self._inside, self._told, self._reached = members, epoch, step
        _log.info("session %d begins at step %d on %s", self._session, step, ", ".join(each.name for each in members))
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

    def _has_begun(self, task: asyncio.Task[Any], member: Member, members: list[Member]) -> bool:
        """Return whether a member has begun its session."""
        try:
            answer, _ = task.result()
        except LostError:
            return False
        except UnreachablePeerError as error:  # -1: it is the source of the weights
            self._accuse(member, member if error.peer < 0 else members[error.peer], str(error))
            return False
        except OSError as error:
            self._accuse(member, member, str(error))
            return False
        except Exception as error:
            if self.made == 0 or len(members) == 1:
                self._fail(named(error, member))
            else:
                self._lose(member, str(error))
            return False
        begun: bool = answer["begun"]
        return begun

    def _newest(self, job: NodeJob, positions: dict[Member, Position]) -> tuple[int, tuple[str, int]]:
        """Return the newest version of the job's weights, and the address of one that has it."""
        newest, source = job.first_version, self._hub.address
        if self.held is not None and self.held[1].token == job.token:
            newest = self.held[1].version
        for member, (token, version) in positions.items():
            if token == job.token and version > newest:
                newest, source = version, member.address
        if newest < job.base + self._reached:
            _log.warning(
                "the newest nodes were lost: training goes back from step %d to %d", self._reached, newest - job.base
            )
        return newest, source

    # -- the job

    async def _set_job(self, job: NodeJob) -> None:
        self._job = job
        self._inside, self._accused, self._lost_since_step = [], {}, []
        self._told, self._reached, self._copy_soon = None, 0, False
        self._digest, self._begun_at = None, time.monotonic()
        self._recruiter.begin()
        for member in list(self._members.values()):
            member.ready = False
            member.wire.silence_s = _SILENCE_STARTING_S
            self._hub.spawn(self._prepare(member))

    async def _set_epoch(self, first: int, until: int, epoch: Message, batch: bytes) -> None:
        job = self._job
        assert job is not None
        order, rates = job.board.order.tobytes(), job.board.rates.tobytes()
        job.epochs.append(NodeEpoch(epoch | {"first": first}, order, rates, until, batch))
        if len(job.epochs) * job.epochs[-1].nbytes > _KEPT_NBYTES:
            self._copy_soon = True
        self._tell_epoch()
        assert self._kick is not None
        self._kick.set()

    def _tell_epoch(self) -> None:
        """Tell the members of the session the next epoch, if theirs is over and there is one."""
        job, told = self._job, self._told
        if job is None or told is None or self._reached < told.until:
            return
        following = next((each for each in job.epochs if each.first >= told.until and each is not told), None)
        if following is not None:
            self._told = following
            for member in self._inside:
                member.tell({"do": "epoch", "epoch": following.message}, following.blobs)

    def _take_rows(self, first: int, names: list[str], content: bytearray) -> int:
        """Take rows of the step log, from this step on. Return their number."""
        job = self._job
        if job is None or not content:
            return 0
        log = job.board.log
        rows = np.frombuffer(content, log.dtype)
        if log.ndim > 1:
            rows = rows.reshape(-1, *log.shape[1:])
        self._accused.clear()
        self._lost_since_step.clear()
        new = range(max(first, self.made), first + len(rows))
        if not new:
            return len(rows)
        if first > self.made:
            raise RuntimeError(f"rows of the step log are missing: steps {self.made} to {first}")
        for step in new:
            log[step % job.board.steps] = rows[step - first]
        if names and not job.board.metric_names:
            job.board.write_metric_names(names)
        with self._changed:
            self.made = new[-1] + 1
            self._changed.notify_all()
        return len(rows)

    def _fail(self, error: Exception) -> None:
        with self._changed:
            if self.error is None and self._job is not None:
                self.error = error
            self._changed.notify_all()

    async def _copy(self) -> tuple[int, Blob]:
        job = self._job
        assert job is not None
        wanted = job.base + self.made
        while True:
            if self.error is not None:
                raise self.error
            if self.held is not None and self.held[1].version >= wanted:
                return self.held[1].version, self.held[0]
            if not await self._copy_now(job):
                await asyncio.sleep(_PAUSE_S)

    async def _copy_now(self, job: NodeJob) -> bool:
        """Copy the newest version of a member of the session. Return whether it is newer than the copy before."""
        for member in list(self._inside):
            with contextlib.suppress(LostError):
                answer, (raw,) = await member.ask({"do": "copy"})
                if self._job is job and answer["token"] == job.token:
                    return self._hold(job, answer["version"], raw)
        return False

    def _hold(self, job: NodeJob, version: int, raw: Blob) -> bool:
        if self.held is not None and self.held[1].version >= version:
            return False
        self.held = memoryview(raw), Position(job.token, version)
        job.forget_epochs(version - job.base)
        return True

    async def _keep_copies(self) -> None:
        """Copy the newest version now and then, so that little is lost with all nodes."""
        copied, took_s = time.monotonic(), 0.0
        while True:
            await asyncio.sleep(_WATCH_S)
            job, now = self._job, time.monotonic()
            if job is None or job.ending or self.held is None:
                copied = now
                continue
            is_due = self._copy_soon or now - copied > max(_COPY_EVERY_S, _COPY_SHARE * took_s)
            if is_due and self._inside and self.held[1].version < job.base + self.made:
                self._copy_soon = False
                try:
                    await self._copy_now(job)
                except Exception as error:
                    _log.warning("the newest weights could not be copied: %s", error)
                copied = time.monotonic()
                took_s = copied - now

    async def _evaluate(self, work: NodeEvaluation, put: Callable[[tuple[int, Answer]], None]) -> None:
        members = [each for each in self._members.values() if each.ready]
        tasks = [asyncio.ensure_future(evaluate_on(member, work, put)) for member in members]
        try:
            await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    def _forget(self, keys: list[int]) -> None:
        for member in self._members.values():
            for key in keys:
                if key in member.has:
                    member.has.discard(key)
                    member.tell({"do": "forget", "key": key})

    async def _end_job(self) -> tuple[int, Blob] | None:
        """Pause all members, copy the newest version, and end the job."""
        job = self._job
        if job is None:
            return None
        job.ending = True
        self._session += 1
        members = [each for each in self._inside if each.lost is None]
        positions = await self._pause(members)
        for member in sorted(positions, key=lambda each: positions[each].version, reverse=True):
            if self.held is not None and positions[member].version <= self.held[1].version:
                break
            with contextlib.suppress(LostError):
                answer, (raw,) = await member.ask({"do": "copy"})
                self._hold(job, answer["version"], raw)
        self._job, self._inside, self._told = None, [], None
        for member in list(self._members.values()):
            member.tell({"do": "end"})
            member.wire.silence_s = _SILENCE_STARTING_S
        self._forget([job.key])
        return None if self.held is None else (self.held[1].version, self.held[0])


def _error_of(content: bytes) -> Exception:
    error: Exception = pickle.loads(content)
    return error


def _ignore(task: asyncio.Future[Any]) -> None:
    if not task.cancelled():
        task.exception()
