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
from untorn.share.lowlevel import update_leaves
from untorn.train.data.arrays import ReadArrays
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
        self.are_objects = batch.spec is None
        self.examples = batch.examples
        self._batch = batch
        self._publisher: Publisher | None = None
        #: the kind of the batch that was published last
        self._kind: Any = None

    def put(self, batch: Batch) -> None:
        """Have the next step use this batch. It is copied, unless the workers are in this process. Raises TypeError if
        it cannot be sent, CapacityError if there is no memory for it."""
        self._batch, self.examples = batch, batch.examples
        if self._publisher is None:
            return
        kind = _kind_of(batch)
        if kind is not None and kind == self._kind:
            update_leaves(self._publisher, dict(enumerate(batch.leaves)))
        else:
            self._publisher.update(self._sent())
        self._kind = kind

    def take(self, indices: NDArray[np.int64]) -> Any:
        """See Reader."""
        batch = self._batch
        if batch.spec is None:
            return items_of(batch.leaves, "batch").take(indices)
        return unflatten(batch.spec, [leaf.take(indices, axis=0) for leaf in batch.leaves])

    @contextmanager
    def shared(self, *, max_readers: int, local: bool) -> Iterator[SharedData]:
        """See Source."""
        if local:
            with publish(None, max_slots=2, slots=1, max_readers=max_readers) as publisher:
                yield SharedData(publisher.subscriber(), lambda _: self)
            return
        with publish(self._sent(), max_readers=max_readers) as publisher:
            self._publisher, self._kind = publisher, _kind_of(self._batch)
            try:
                yield SharedData(publisher.subscriber(), _read_objects if self.are_objects else ReadArrays(()))
            finally:
                self._publisher = None

    def _sent(self) -> Any:
        batch = self._batch
        return sendable("batch", items_of(batch.leaves, "batch")) if batch.spec is None else _tree_of(batch)


def _tree_of(batch: Batch) -> Any:
    assert batch.spec is not None
    return unflatten(batch.spec, batch.leaves)


def _kind_of(batch: Batch) -> Any:
    """Return what must be equal for a version to have only other values; None for an object."""
    return None if batch.spec is None else (batch.spec, [(leaf.dtype, leaf.shape) for leaf in batch.leaves])


def _read_objects(snapshot: Snapshot) -> Reader:
    source: ItemSource = received(snapshot)
    return source
