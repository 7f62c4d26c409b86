"""What a source of examples is, and how workers come to read it."""

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
    """Examples, as one process reads them."""

    @abstractmethod
    def take(self, indices: NDArray[np.int64]) -> Any:
        """The batch of these examples, in this order: a tree of NumPy arrays of the caller's own. Raises ValueError,
        TypeError or RuntimeError naming the example that does not fit."""


class Source(Reader):
    """The examples of one call of fit, evaluate or predict, in the process that called it."""

    #: how many an epoch has; at least one
    examples: int
    #: what gives the order, if it is not fit's shuffle=
    order_by: str | None = None

    def order(self, seed: int, epoch: int, *, shuffle: bool) -> NDArray[np.int64]:
        """The examples of an epoch, in their order."""
        return epoch_order(seed, epoch, self.examples) if shuffle else np.arange(self.examples)

    def replay(self) -> None:
        """Go, in a resumed training, to where one that never stopped would be."""

    @abstractmethod
    def shared(self, *, max_readers: int, local: bool) -> AbstractContextManager[SharedData]:
        """Make it readable by workers, until the block ends; ``local``: those in this process alone. Raises TypeError
        for data that cannot be sent to other processes, CapacityError for want of memory."""


@dataclass(frozen=True)
class SharedData:
    """What a worker needs to read the data; it pickles to little. The channel is there as long as the job is, also
    where nothing is in it: a worker that comes too late does not find it."""

    channel: Subscriber
    read: Callable[[Snapshot], Reader]

    def open(self) -> Reader:
        """Attach. Raises ChannelNotFoundError if the job is over."""
        return self.read(self.channel.snapshot())


def chunks(examples: int, size: int) -> Iterator[NDArray[np.int64]]:
    """Indices 0 to examples, ``size`` at a time."""
    for start in range(0, examples, size):
        yield np.arange(start, min(examples, start + size))
