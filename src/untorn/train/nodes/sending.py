"""What makes a node ready to take part: the model, the weights, the data, and the proof that it computes the same."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from untorn.engines.nodes.wire import Message
from untorn.errors import WorkerError
from untorn.train.nodes.jobs import NodeJob
from untorn.train.nodes.members import Member

__all__ = ["Sending", "send_data"]


class Sending:
    """Makes members ready for a job.

    Args:
        setup: what every node is told first, without the weights.
        blobs: the bytes beside it: the model and the optimizer.
    """

    def __init__(self, setup: Message, blobs: list[bytes]) -> None:
        self._setup, self._blobs = setup, blobs
        #: the first node's gradient of a few examples, as a digest, and the node's name
        self._first: tuple[str, str] | None = None

    def begin_job(self) -> None:
        """Begin a job: the first node that is prepared is the one that the others are compared with."""
        self._first = None

    async def prepare(self, member: Member, job: NodeJob, workers: int) -> str:
        """Send a member all that it lacks for the job, and have it start its workers. Return the digest of its gradient
        of a few examples. Raises what the member has raised."""
        async with member.preparing:
            await self._send(member, job, workers)
            question = {"do": "prepare", "plan": job.plan, "key": job.key, "examples": job.examples}
            answer, _ = await member.ask(question)
        digest: str = answer["digest"]
        return digest

    def check_bits(self, member: Member, digest: str) -> None:
        """Compare the digest with that of the first node. Raises WorkerError if it is another one and may not be."""
        if self._first is None:
            self._first = digest, member.name
        if self._first[0] != digest and self._setup["same_bits"]:
            raise WorkerError(
                f"{member.name}: its processor computes other bits than that of {self._first[1]}: the gradients of "
                "the same examples differ. Use machines of one kind, or give the cluster same_bits=False if the result "
                "need not be the same bit for bit"
            )

    async def _send(self, member: Member, job: NodeJob, workers: int) -> None:
        weights = {"form": self._setup["form"], "token": job.token, "version": job.first_version}
        target = [self._setup["target"]] if self._setup["target"] is not None else []
        if "setup" not in member.has:
            message = {"do": "setup", "settings": self._setup["settings"], "levels": self._setup["levels"]} | weights
            await member.ask(message, [*self._blobs, job.first, *target])
            member.has.add("setup")
            member.tell({"do": "workers", "count": workers})
        else:
            # a node that was at work when a job was ended may be a step ahead of what anybody knows, or behind
            position, _ = await member.ask({"do": "position"})
            if (position["token"], position["version"]) != (job.token, job.first_version):
                await member.ask({"do": "weights"} | weights, [job.first, *target])
        await send_data(member, job.key, job.read, job.raw)


async def send_data(member: Member, key: int, read: Callable[..., Any], raw: memoryview) -> None:
    """Send a member the data with this key, unless it has them."""
    if key not in member.has:
        try:
            await member.ask({"do": "data", "key": key, "read": read}, [raw])
        except OSError as error:
            raise WorkerError(
                f"{member.name} cannot read the data: {error}. Every node must have the same files in the same places"
            ) from error
        member.has.add(key)
