"""What a node is sent before it can take part: the model, the weights, the data."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from untorn.engines.nodes.wire import Message
from untorn.errors import WorkerError
from untorn.train.nodes.jobs import NodeJob
from untorn.train.nodes.members import Member

__all__ = ["Sending", "send_data"]


class Sending:
    """Sends members what they lack for a job.

    Args:
        setup: what every node is told first, without the weights.
        blobs: the bytes beside it: the model and the optimizer.
    """

    def __init__(self, setup: Message, blobs: list[bytes]) -> None:
        self._setup, self._blobs = setup, blobs

    async def send(self, member: Member, job: NodeJob, workers: int) -> None:
        """Send a member all that it lacks for the job. Raises what the member has raised."""
        weights = {"form": self._setup["form"], "token": job.token, "version": job.first_version}
        target = [self._setup["target"]] if self._setup["target"] is not None else []
        if "setup" not in member.has:
            message = {"do": "setup", "settings": self._setup["settings"], "levels": self._setup["levels"]} | weights
            await member.ask(message, [*self._blobs, job.first, *target])
            member.has.add("setup")
            member.tell({"do": "workers", "count": workers})
        else:
            # a node that was at work when a job was ended may have made a step more than anybody knows
            position, _ = await member.ask({"do": "position"})
            if position["token"] != job.token or position["version"] > job.first_version:
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
