"""The nodes as the driver sees them: one wire each, questions and answers, and what a node has and does."""

from __future__ import annotations

import asyncio
import itertools
import pickle
from collections.abc import Sequence
from typing import Any

from untorn.engines.nodes.wire import Blob, Message, Wire
from untorn.errors import CapacityError, NonFiniteLossError, WorkerError

__all__ = ["LostError", "Member", "named"]


class LostError(Exception):
    """A node was lost before it answered."""


class Member:
    """A node process that has connected. All methods are called in the hub's thread.

    Attributes:
        number: the number of its invitation.
        wire: the connection.
        place: what it has said of itself: host, pid, versions, and the address of its listening socket.
        ready: whether it has everything that a session needs.
        lost: why it is lost; None while it is not.
        has: the token of the weights and the keys of the data that were sent to it.
        status: its last report.
    """

    def __init__(self, number: int, wire: Wire) -> None:
        self.number = number
        self.wire = wire
        self.place: Message = {}
        self.ready = False
        self.lost: str | None = None
        self.has: set[object] = set()
        self.status: Message = {}
        self.preparing = asyncio.Lock()
        self._ids = itertools.count(1)
        self._waiting: dict[int, asyncio.Future[tuple[Message, list[bytearray]]]] = {}

    @property
    def name(self) -> str:
        """Its name in messages: "node 3 (host gamma)"."""
        host = self.place.get("host")
        return f"node {self.number}" + (f" ({host})" if host else "")

    @property
    def address(self) -> tuple[str, int]:
        """The address of its listening socket."""
        host, port = self.place["here"]
        return str(host), int(port)

    @property
    def workers(self) -> int:
        """The number of its workers, by its last report; 1 before the first."""
        return max(1, len(self.status.get("workers", ())))

    def tell(self, message: Message, blobs: Sequence[Blob] = ()) -> None:
        """Send a message that needs no answer."""
        self.wire.post(message, blobs)

    async def ask(self, message: Message, blobs: Sequence[Blob] = ()) -> tuple[Message, list[bytearray]]:
        """Send a message and return the answer. Raises LostError, or the error that the node has answered."""
        if self.lost is not None:
            raise LostError(f"{self.name}: {self.lost}")
        number = next(self._ids)
        future: asyncio.Future[tuple[Message, list[bytearray]]] = asyncio.get_running_loop().create_future()
        self._waiting[number] = future
        self.tell(message | {"id": number}, blobs)
        try:
            answer, back = await future
        finally:
            self._waiting.pop(number, None)
        if "error" in answer:
            error: Exception = pickle.loads(answer["error"])
            raise error
        return answer, back

    def answered(self, message: Message, blobs: list[bytearray]) -> None:
        """Take the answer to a question."""
        future = self._waiting.get(message["re"])
        if future is not None and not future.done():
            future.set_result((message, blobs))

    def lose(self, reason: str) -> None:
        """Give the node up: nothing that it sends counts any more."""
        if self.lost is not None:
            return
        self.lost, self.ready = reason, False
        for future in self._waiting.values():
            if not future.done():
                future.set_exception(LostError(f"{self.name}: {reason}"))
        self.wire.close()

    def describe(self) -> dict[str, Any]:
        """Return the node as a job's status lists it; see docs/commands.md for the keys."""
        status = self.status
        workers = status.get("workers", [])
        return {
            "number": self.number,
            "host": self.place.get("host", "?"),
            "pid": self.place.get("pid"),
            "state": "lost" if self.lost else "running" if "index" in status and self.ready else "joining",
            "workers": workers,
            "step": status.get("step"),
            "restarts": status.get("restarts", 0),
            "at": status.get("at"),
            "sent": status.get("sent", 0),
            "received": status.get("received", 0),
            "waited_s": status.get("waited_s", 0.0),
        }


def named(error: Exception, member: Member) -> Exception:
    """Return the error with the name of the node in its message."""
    if isinstance(error, WorkerError | NonFiniteLossError | CapacityError) and error.args:
        if member.name not in str(error.args[0]):
            error.args = (f"{member.name}: {error.args[0]}", *error.args[1:])
    else:
        error.add_note(f"on {member.name}")
    return error
