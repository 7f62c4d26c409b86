"""The data of one call of fit, as epochs of batches.

::

    data of the user ─ training_data() ─> TrainingData ──┬── source: examples, shuffled and cut into batches here
                                                         └── stream: batches, in the order in which they arrive

DataRef recognises the data in a later call of fit, which may then continue a partial epoch.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from untorn.train.arguments import check_no_cut, checked_count
from untorn.train.data import sampler
from untorn.train.data.base import Source
from untorn.train.data.kinds import batch_size_of, batches_of, source_of
from untorn.train.data.sampled import SampledBatches
from untorn.train.data.stream import Stream
from untorn.trees import BATCH, flatten

__all__ = ["DataRef", "TrainingData", "training_data"]


@dataclass(frozen=True)
class TrainingData:
    """The data of one call of fit, with either a source or a stream.

    Attributes:
        given: the data, as the user gave it.
        ref: recognises the data in a later call of fit.
        source: the examples, which are shuffled and cut into batches; None for a stream.
        stream: the batches, if the user gives batches; else None.
        batch_size: examples per batch; 0 for a stream.
        examples: examples per epoch, without the batch that drop_last leaves out; 0 for a stream.
        shuffle: whether each epoch has a new order.
    """

    given: Any
    ref: DataRef
    source: Source | None
    stream: Stream | None
    batch_size: int = 0
    examples: int = 0
    shuffle: bool = False

    @property
    def goes_on(self) -> bool:
        """Whether the batches come from an iterator, which continues in each epoch where the last one ended."""
        return self.stream is not None and self.stream.goes_on

    @property
    def batching(self) -> dict[str, Any]:
        """The division of the data into batches, as a checkpoint stores it."""
        shuffle = self.source.order_by or self.shuffle if self.source else False
        return {"batch_size": self.batch_size, "examples": self.examples, "shuffle": shuffle}

    def order(self, seed: int, epoch: int) -> NDArray[np.int64]:
        """Return the indices of the examples of an epoch, in order."""
        assert self.source is not None
        return self.source.order(seed, epoch, shuffle=self.shuffle)[: self.examples]


def training_data(
    data: Any,
    arrays: Callable[[Any], Any],
    *,
    seed: int,
    batch_size: int | None,
    steps_per_epoch: int | None,
    shuffle: bool,
    drop_last: bool,
    replay: bool,
    prefetch: int | None = None,
) -> TrainingData:
    """Check the arguments of fit about its data. Raises TypeError or ValueError, naming the argument.

    Args:
        data: the data, as the user gave it.
        arrays: a function that converts it to NumPy arrays.
        seed: the trainer's seed.
        batch_size, steps_per_epoch, shuffle, drop_last: the arguments of fit.
        prefetch: the argument of fit, for batches of an iterable.
        replay: have a sampler of the data repeat the earlier epochs.
    """
    batches = batches_of(data)
    if batches is not None:
        check_no_cut(batch_size=batch_size, drop_last=drop_last)
        prefetch = None if prefetch is None else checked_count("prefetch", prefetch, 0, 2**31)
        steps = None if steps_per_epoch is None else checked_count("steps_per_epoch", steps_per_epoch, 1, 2**31)
        if isinstance(batches, SampledBatches):
            batches.begin(seed, limit=steps, replay=replay)
        return TrainingData(data, DataRef(data), None, Stream("data", batches, steps, prefetch))
    if prefetch is not None:
        raise ValueError(
            "prefetch: the workers read this data themselves; it is for iterables of batches, such as a generator"
        )
    if steps_per_epoch is not None:
        raise ValueError("steps_per_epoch: an epoch of this data is all of it; only iterables of batches have one")
    source = source_of("data", arrays(data), in_epochs=True)
    if replay:
        source.replay()
    batch_size = batch_size_of(data) if batch_size is None else batch_size
    if batch_size is None:
        raise TypeError("fit() needs batch_size=, the examples per step; only iterables of batches have their own")
    batch_size = checked_count("batch_size", batch_size, 1, 2**31)
    batch_size, examples = sampler.used_examples(source.examples, batch_size, drop_last=drop_last)
    return TrainingData(data, DataRef(data), source, None, batch_size, examples, bool(shuffle))


class DataRef:
    """A weak reference to data, to recognise it later: to each array or tensor of a tree, or to the object."""

    def __init__(self, data: Any) -> None:
        self._refs = [_reference(leaf) for leaf in flatten(data, kinds=BATCH)[1]]

    def is_of(self, data: Any) -> bool:
        """Return whether this is the same data."""
        leaves = flatten(data, kinds=BATCH)[1]
        same = [ref() is leaf for ref, leaf in zip(self._refs, leaves, strict=False)]
        return len(leaves) == len(self._refs) and all(same)


def _reference(leaf: Any) -> Callable[[], Any]:
    try:
        return weakref.ref(leaf)
    except TypeError:  # for example a list, which has no weak references
        return lambda: leaf
