"""Batches that come one at a time, each for one step: Trainer.step().

::

    batch ── put() ──> channel, one version per step ──> workers: the newest version, when they compute a gradient
                  └──> the worker of the serial engine, in this process

Batch t is put when step t - 1 is made, and the workers take gradients of step t after that. So whoever still has a
claim on a gradient of step t finds batch t in the newest version.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from untorn.share import Publisher, Snapshot, publish
from untorn.train.data.arrays import ArraySource, ReadArrays
from untorn.train.data.base import Reader, SharedData, Source
from untorn.train.data.items import ItemSource
from untorn.train.data.sending import received, sendable
from untorn.train.data.stream import Batch, items_of
from untorn.trees import unflatten

__all__ = ["Feed"]


class Feed(Source):
    """The batch of the current step, as a source of examples.

    Args:
        batch: the first batch.
    """

    def __init__(self, batch: Batch) -> None:
        self._publisher: Publisher | None = None
        self._current: ArraySource | ItemSource
        self.are_objects = batch.spec is None
        self._take_up(batch)

    def _take_up(self, batch: Batch) -> None:
        self.examples = batch.examples
        if batch.spec is None:
            self._current = items_of(batch.leaves, "batch")
        else:
            self._tree = unflatten(batch.spec, batch.leaves)
            self._current = ArraySource("batch", self._tree)

    def put(self, batch: Batch) -> None:
        """Have the next step use this batch. It is copied, unless the workers are in this process. Raises TypeError if
        it cannot be sent, CapacityError if there is no memory for it."""
        self._take_up(batch)
        if self._publisher is not None:
            self._publisher.update(self._sent())

    def take(self, indices: NDArray[np.int64]) -> Any:
        """See Reader."""
        return self._current.take(indices)

    @contextmanager
    def shared(self, *, max_readers: int, local: bool) -> Iterator[SharedData]:
        """See Source."""
        if local:
            with publish(None, max_slots=2, slots=1, max_readers=max_readers) as publisher:
                yield SharedData(publisher.subscriber(), lambda _: self)
            return
        with publish(self._sent(), max_readers=max_readers) as publisher:
            self._publisher = publisher
            try:
                yield SharedData(publisher.subscriber(), _read_objects if self.are_objects else ReadArrays(()))
            finally:
                self._publisher = None

    def _sent(self) -> Any:
        return sendable("batch", self._current) if self.are_objects else self._tree


def _read_objects(snapshot: Snapshot) -> Reader:
    source: ItemSource = received(snapshot)
    return source
