"""The driver's coordinator: it leads a job of training on nodes.

::

    cluster ── starts ──> node ── connects ──> Member: sent everything that it lacks, while the others train
                                                  │ ready
                                                  v
    a member is lost, joins or leaves ──> session: pause all ── positions ──> members, cuts, step ──> begin all

Its parts: the Recruiter starts nodes, the Roster knows who is there, Sending makes them ready, Sessions have them train
together, Progress is what they have made, and the DriverCopy is what is left if all of them are lost at once: new ones
begin with it, and make the steps since then again. The job keeps the order and the rates of the epochs that they need.

All of this runs in the thread of the hub, so a callback of the user's that takes long delays no recovery. The recruiter
speaks to the cluster, which may take its time, in a thread of its own.
"""

from __future__ import annotations

import asyncio
import logging
import os
import pickle
import socket
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

from untorn.engines.nodes import Cluster, Figures
from untorn.engines.nodes.wire import Blob, Hub, Message, Wire
from untorn.train.nodes.driver_copy import DriverCopy
from untorn.train.nodes.evaluation import evaluate_on
from untorn.train.nodes.jobs import NodeEpoch, NodeEvaluation, NodeJob
from untorn.train.nodes.members import LostError, Member, named
from untorn.train.nodes.progress import Progress
from untorn.train.nodes.recruiter import Recruiter
from untorn.train.nodes.roster import Roster
from untorn.train.nodes.sending import Sending
from untorn.train.nodes.sessions import Sessions
from untorn.train.run.chunks import Answer

__all__ = ["Coordinator"]

_log = logging.getLogger(__name__)

#: a node that is silent for so long is given up; one that is still starting may be busy importing
_SILENCE_S = 3.0
_SILENCE_STARTING_S = 60.0
#: a copy of the weights is also made when the orders of the epochs since the last one have more bytes
_KEPT_NBYTES = 1 << 26


class Coordinator:
    """Runs the nodes of one trainer.

    Args:
        cluster: starts the nodes.
        setup: what every node is told first, without the weights.
        blobs: the bytes beside it: the model and the optimizer.
        workers: the number of workers of each node.
        max_restarts: how often nodes may be lost without a step in between.
    """

    def __init__(
        self, cluster: Cluster, setup: Message, blobs: list[bytes], *, workers: int, max_restarts: int
    ) -> None:
        self.workers = workers
        self._hub = Hub(os.urandom(32), host=cluster.host, on_connection=self._join, name="untorn-driver")
        self._progress = Progress()
        self._sending = Sending(setup, blobs)
        self._recruiter = Recruiter(
            cluster,
            self._hub,
            workers=lambda: self.workers,
            figures=self._figures,
            on_ended=self._process_ended,
            on_cannot_start=self._cannot_start,
        )
        self._roster = Roster(self._progress, self._recruiter, max_restarts=max_restarts, on_change=self._look)
        self._copy = DriverCopy(self._roster, self._progress)
        self._sessions = Sessions(
            self._roster,
            self._progress,
            self._copy,
            self._recruiter,
            wanted=cluster.wanted,
            address=self._hub.address,
        )
        self._closed = False
        self._hub.call(self._begin)

    # -- for the driver's threads

    @property
    def made(self) -> int:
        """The number of steps of the job that are made, as far as the driver knows."""
        return self._progress.made

    @property
    def restarts(self) -> int:
        """The number of nodes that were lost and replaced."""
        return self._roster.restarts

    def begin_job(self, job: NodeJob) -> None:
        """Begin a job. Its first epoch comes with begin_epoch()."""
        self._hub.run(self._begin_job(job)).result()

    def begin_epoch(self, first: int, until: int, epoch: Message, batch: bytes = b"") -> None:
        """Have the nodes make the steps from ``first`` to ``until``; order and rates are on the job's board. ``batch``
        is the next version of the data's channel, if it changes."""
        self._hub.run(self._begin_epoch(first, until, epoch, batch)).result()

    def wait(self, timeout_s: float) -> None:
        """Wait until more steps are made, or something has failed. Raises the error of the job."""
        self._progress.wait(timeout_s)

    def copy(self) -> tuple[int, Blob]:
        """Return the version of the weights after the last step that is known to be made, or a newer one: its number
        and its bytes. Blocks while nodes that were lost are replaced, and make these steps again. Raises the error of
        the job."""
        found: tuple[int, Blob] = self._hub.run(self._copy_newest()).result()
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
            for member in self._roster.members.values():
                member.tell({"do": "workers", "count": workers})

        self._hub.call(tell)

    def look(self) -> None:
        """Look at the members soon: the number of nodes was changed."""
        self._hub.call(self._look)

    def nodes(self) -> list[dict[str, Any]]:
        """Return the nodes as a job's status lists them."""
        members = sorted(self._roster.members.copy().items())
        return [member.describe() for _, member in members if member.lost is None]

    def close(self) -> None:
        """End the nodes and all connections."""
        self._closed = True
        self._roster.close()
        self._recruiter.close()
        self._hub.close()

    # -- what the nodes and the recruiter tell, in the hub's thread

    def _begin(self) -> None:
        self._hub.spawn(self._sessions.supervise())
        self._hub.spawn(self._copy.keep())

    def _look(self) -> None:
        self._sessions.look()

    def _join(self, hello: Message, sock: socket.socket) -> None:
        kind, number = hello.get("kind"), hello.get("number")
        if kind == "fetch":
            self._copy.send(sock)
        elif kind == "node" and self._recruiter.expects(number):
            self._hub.adopt(
                sock, hello, on_message=self._receive, on_end=self._roster.lose_wire, silence_s=_SILENCE_STARTING_S
            )
        else:
            _log.warning("a connection was closed: it is node %r, which is not expected", number)
            sock.close()

    def _receive(self, wire: Wire, message: Message, blobs: list[bytearray]) -> None:
        try:
            self._hear(wire, message, blobs)
        except Exception as error:
            self._progress.fail(error)

    def _hear(self, wire: Wire, message: Message, blobs: list[bytearray]) -> None:
        member = self._roster.of(wire)
        if member is None:
            if self._recruiter.take(wire.hello["number"]):
                self._welcome(wire, message)
        elif member.lost is not None:
            return
        elif "re" in message:
            member.answered(message, blobs)
        elif "rows" in message:
            self._sessions.hear_rows(message, blobs[0])
        elif "status" in message:
            member.status = message["status"]
        elif "trouble" in message:
            self._sessions.hear_trouble(member, message["trouble"])
        elif "failed" in message:
            self._progress.fail(named(pickle.loads(message["failed"]), member))

    def _welcome(self, wire: Wire, message: Message) -> None:
        member = self._roster.welcome(wire, message)
        if member is not None and self._progress.job is not None:
            self._hub.spawn(self._prepare(member))

    def _figures(self) -> Figures | None:
        job = self._progress.job
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
        member = self._roster.members.get(number)
        if member is not None:
            self._roster.lose(member, reason)

    def _cannot_start(self, error: Exception) -> None:
        if not self._roster.members:
            self._progress.fail(error)

    # -- the job, in the hub's thread

    async def _begin_job(self, job: NodeJob) -> None:
        self._progress.begin(job)
        self._copy.begin_job(job)
        self._sending.begin_job()
        self._roster.begin()
        self._sessions.begin_job()
        self._recruiter.begin()
        for member in list(self._roster.members.values()):
            member.ready = False
            member.wire.silence_s = _SILENCE_STARTING_S
            self._hub.spawn(self._prepare(member))

    async def _prepare(self, member: Member) -> None:
        """Send a node everything that it lacks for the job; then it is ready."""
        job = self._progress.job
        if job is None:
            return
        try:
            digest = await self._sending.prepare(member, job, self.workers)
            if self._progress.job is not job:
                return
            self._sending.check_bits(member, digest)
        except LostError:
            return
        except Exception as error:
            if self._progress.job is job:
                self._roster.refuse(member, named(error, member))
            return
        member.ready = True
        member.wire.silence_s = _SILENCE_S
        self._recruiter.succeeded()
        self._sessions.look()

    async def _begin_epoch(self, first: int, until: int, epoch: Message, batch: bytes) -> None:
        job = self._progress.job
        assert job is not None
        order, rates = job.board.order.tobytes(), job.board.rates.tobytes()
        job.epochs.append(NodeEpoch(epoch | {"first": first}, order, rates, until, batch))
        if len(job.epochs) * job.epochs[-1].nbytes > _KEPT_NBYTES:
            self._copy.soon = True
        self._sessions.follow_epochs()

    async def _copy_newest(self) -> tuple[int, Blob]:
        job = self._progress.job
        assert job is not None
        return await self._copy.at_least(job.base + self.made)

    async def _evaluate(self, work: NodeEvaluation, put: Callable[[tuple[int, Answer]], None]) -> None:
        members = [each for each in self._roster.members.values() if each.ready]
        tasks = [asyncio.ensure_future(evaluate_on(member, work, put)) for member in members]
        try:
            await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    def _forget(self, keys: list[int]) -> None:
        for member in self._roster.members.values():
            for key in keys:
                if key in member.has:
                    member.has.discard(key)
                    member.tell({"do": "forget", "key": key})

    async def _end_job(self) -> tuple[int, Blob] | None:
        """Pause all members, copy the newest version, and end the job."""
        job = self._progress.job
        if job is None:
            return None
        job.ending = True
        try:
            positions = await self._sessions.end_job()
            newest = await self._copy.take_newest(job, positions)
        finally:
            self._copy.end_job()
        self._progress.end()
        self._roster.inside = []
        for member in list(self._roster.members.values()):
            member.tell({"do": "end"})
            member.wire.silence_s = _SILENCE_STARTING_S
        self._forget([job.key])
        return newest
