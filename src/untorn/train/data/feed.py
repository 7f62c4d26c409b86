"""Batches that come one at a time, each for one step: Trainer.step().

::

    batch ── put() ──> channel, one version per step ──> workers: the newest version, when they compute a gradient
                  └──> the worker of the serial engine, in this process

Batch t is put when step t - 1 is made, and the workers take gradients of step t after that. So a worker that still has
a claim on a gradient of step t finds batch t in the newest version.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from untorn.share import Publisher, Snapshot, publish
from untorn.train.data.arrays import ReadArrays
from untorn.train.data.base import Reader, SharedData, Source
from untorn.train.data.items import ItemSource
from untorn.train.data.sending import received, sendable
from untorn.train.data.stream import Batch, items_of
from untorn.trees import Spec, unflattener

__all__ = ["Feed"]


class Feed(Source):
    """The batch of the current step, as a source of examples.

    Args:
        batch: the first batch.
    """

    def __init__(self, batch: Batch) -> None:
        self.are_objects, self._form = batch.spec is None, batch.form
        self.examples = batch.examples
        self._batch = batch
        self._publisher: Publisher | None = None
        self._spec: Spec | None = None
        self._unflatten: Callable[[list[Any]], Any] = tuple

    def reads(self, batch: Batch) -> bool:
        """Return whether the workers can read this batch as they read the first one."""
        return (batch.spec is None) == self.are_objects and batch.form == self._form

    def put(self, batch: Batch) -> None:
        """Have the next step use this batch. It is copied, unless the workers are in this process. Raises TypeError if
        it cannot be sent, CapacityError if there is no memory for it."""
        self._batch, self.examples = batch, batch.examples
        if self._publisher is not None:
            self._publisher.update(self._sent())

    def take(self, indices: NDArray[np.int64]) -> Any:
        """See Reader."""
        batch = self._batch
        if batch.spec is None:
            return items_of(batch.leaves, "batch").take(indices)
        leaves = [leaf.take(indices, axis=0) for leaf in batch.leaves]
        return self._tree(batch.spec, leaves) if batch.form is None else batch.form.make(leaves)

    def _tree(self, spec: Spec, leaves: list[Any]) -> Any:
        if spec is not self._spec:
            self._unflatten = unflattener(spec)
            self._spec = spec  # last: an interrupt may come in between
        return self._unflatten(leaves)

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
                yield SharedData(publisher.subscriber(), self._read)
            finally:
                self._publisher = None

    @property
    def _read(self) -> Callable[[Snapshot], Reader]:
        if self.are_objects:
            return _read_objects
        return ReadArrays(make=self._form.make if self._form else None)

    def _sent(self) -> Any:
        batch = self._batch
        if batch.spec is None:
            return sendable("batch", items_of(batch.leaves, "batch"))
        return self._tree(batch.spec, batch.leaves) if batch.form is None else batch.leaves


def _read_objects(snapshot: Snapshot) -> Reader:
    source: ItemSource = received(snapshot)
    return source
