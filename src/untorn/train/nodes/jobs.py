"""What the nodes have to do, as the driver keeps it: a job of training with its epochs, and chunks to evaluate."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from untorn.board import Board
from untorn.engines.nodes.wire import Message
from untorn.train.nodes.copies import Position
from untorn.train.run.chunks import Evaluation
from untorn.train.run.plan import Plan

__all__ = ["NodeEpoch", "NodeEvaluation", "NodeJob", "cuts_of"]


@dataclass(frozen=True)
class NodeEpoch:
    """An epoch of a job.

    Attributes:
        message: what the nodes are told of it: its first step on the board, its number and the steps skipped.
        order, rates: the order of the examples and the learning rates, as on a board.
        until: the step at which it ends.
        batch: the version of the data's channel that it uses, as bytes; empty if the data never changes.
    """

    message: Message
    order: bytes
    rates: bytes
    until: int
    batch: bytes = b""

    @property
    def blobs(self) -> list[bytes]:
        """What the nodes are sent beside the message."""
        return [self.order, self.rates, self.batch]

    @property
    def nbytes(self) -> int:
        """The bytes that are kept for it."""
        return sum(map(len, self.blobs))

    @property
    def first(self) -> int:
        """The step at which it begins."""
        first: int = self.message["first"]
        return first


@dataclass
class NodeJob:
    """A job of training.

    Attributes:
        plan: its plan.
        board: the driver's board, with the step log, which has no tasks.
        key: the number of its data.
        read: makes a reader of the data from a snapshot of its channel.
        raw: the data's channel, as bytes.
        base: the version of the weights at the board's step 0.
        token: the identity of the weights.
        first: the weights that it begins with, as bytes.
        first_version: their version.
        examples: the number of examples of the gradient that nodes are compared by.
        name: the name of the weights, or None.
        epochs: the epochs that may have to be computed (again): those since the driver's copy of the weights.
        ending: whether no session may begin any more.
    """

    plan: Plan
    board: Board
    key: int
    read: Callable[..., Any]
    raw: memoryview
    base: int
    token: bytes
    first: memoryview
    first_version: int
    examples: int
    name: str | None
    epochs: list[NodeEpoch] = field(default_factory=list)
    ending: bool = False

    def epoch_at(self, step: int) -> NodeEpoch:
        """Return the epoch that this step is in; the last one if it is over."""
        return next((each for each in self.epochs if step < each.until), self.epochs[-1])

    def forget_epochs(self, step: int) -> None:
        """Forget the epochs that are over at this step, but for the last one."""
        while len(self.epochs) > 1 and self.epochs[0].until <= step:
            del self.epochs[0]

    @property
    def may_begin(self) -> bool:
        """Whether a session may begin."""
        return bool(self.epochs) and not self.ending


@dataclass(frozen=True)
class NodeEvaluation:
    """Chunks of data for the nodes to evaluate.

    Attributes:
        evaluation: what to compute.
        key, read, raw: the data, as in NodeJob.
        position: the weights to evaluate; a node that has others takes no part.
        chunks: the chunks that nobody computes yet.
    """

    evaluation: Evaluation
    key: int
    read: Callable[..., Any]
    raw: memoryview
    position: Position
    chunks: list[int]


def cuts_of(shards: int, weights: list[int]) -> list[int]:
    """Return where the shards are cut for nodes with these weights: node k has the shards from cuts[k] to cuts[k + 1].

    Example:
        >>> cuts_of(8, [1, 1, 1])
        [0, 3, 6, 8]
        >>> cuts_of(2, [1, 1, 1])
        [0, 1, 2, 2]
    """
    total = sum(weights)
    sums = [0, *itertools.accumulate(weights)]
    return [-(-shards * each // total) for each in sums]
