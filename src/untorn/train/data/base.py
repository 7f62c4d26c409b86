"""The interface of a source of examples, and of its readers in workers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from untorn.share import Snapshot, Subscriber
from untorn.train.data.sampler import epoch_order

__all__ = ["Reader", "SharedData", "Source", "chunks"]


class Reader(ABC):
    """The examples as one process reads them."""

    #: the number of examples; at least one
    examples: int

    @abstractmethod
    def take(self, indices: NDArray[np.int64]) -> Any:
        """Return the batch of these examples, in this order, as a tree of NumPy arrays that the caller may change.
        Raises ValueError, TypeError or RuntimeError, which name the example that does not fit."""


class Source(Reader):
    """The examples of one call of fit, evaluate or predict, in the process that called it."""

    #: the name of what determines the order, if it is not fit's shuffle=
    order_by: str | None = None

    def order(self, seed: int, epoch: int, *, shuffle: bool) -> NDArray[np.int64]:
        """Return the indices of an epoch's examples, in their order."""
        return epoch_order(seed, epoch, self.examples) if shuffle else np.arange(self.examples)

    def replay(self) -> None:
        """Prepare for a resumed training, so that it gets the same order as one that never stopped."""

    @abstractmethod
    def shared(self, *, max_readers: int, local: bool) -> AbstractContextManager[SharedData]:
        """Make the data readable by workers for the block; with ``local``, only by workers in this process. Raises
        TypeError if the data cannot be sent to other processes, CapacityError if there is not enough memory."""


@dataclass(frozen=True)
class SharedData:
    """A reference to shared data, for workers to read it; its pickle is small. The channel exists as long as the job,
    even if it is empty, so a worker that arrives after the job does not find it."""

    channel: Subscriber
    read: Callable[[Snapshot], Reader]

    def open(self) -> Reader:
        """Attach to the channel and return a reader of its newest version. Raises ChannelNotFoundError if the job is
        over."""
        return self.read(self.channel.snapshot())


def chunks(examples: int, size: int) -> Iterator[NDArray[np.int64]]:
    """Yield the indices from 0 to ``examples``, ``size`` at a time."""
    for start in range(0, examples, size):
        yield np.arange(start, min(examples, start + size))
