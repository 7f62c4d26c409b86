"""Examples and batches in the order of a user's sampler, such as torch's WeightedRandomSampler.

The process that trains iterates the sampler once per epoch, before the epoch's first step, and workers read the
examples that it chose. So the result does not depend on the workers. Samplers draw from torch's, NumPy's or Python's
global random generators; these are seeded with (seed, epoch) meanwhile, and then restored. A sampler may also have its
own generator: in a resumed training the sampler is iterated for the earlier epochs, too, so that its generator is in
the same state.
"""

from __future__ import annotations

import itertools
import operator
import random
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from untorn import _core
from untorn.engines.default_generators import generators_lock
from untorn.train.data.base import SharedData, Source

__all__ = ["Chosen", "SampledBatches", "SampledSource", "choice_of"]


class _Drawn:
    """The items that a sampler yields in each epoch, which depend only on the seed and the epoch."""

    def __init__(self, sampler: Any, checked: Callable[[Any], Any], limit: int | None) -> None:
        self._sampler, self._checked, self._limit = sampler, checked, limit
        self._next: int | None = None
        self._found: list[Any] = []

    def replay(self) -> None:
        """Begin with epoch 0, even if a later one is needed first."""
        self._next = 0

    def of(self, seed: int, epoch: int) -> list[Any]:
        """Return the items of this epoch. Must be called in the order of the epochs."""
        if self._next is None:
            self._next = epoch
        while self._next <= epoch:
            for part in (self._sampler, getattr(self._sampler, "sampler", None)):
                if callable(set_epoch := getattr(part, "set_epoch", None)):
                    set_epoch(self._next)
            with _keyed(seed, self._next):
                self._found = list(map(self._checked, itertools.islice(iter(self._sampler), self._limit)))
            self._next += 1
        return self._found


class SampledSource(Source):
    """Another source in the order of a sampler of indices."""

    def __init__(self, what: str, source: Source, sampler: Any) -> None:
        self._source, self._what = source, what
        self.examples = _length(what, sampler)
        self.order_by = f"sampler {type(sampler).__name__}"
        self._drawn = _Drawn(sampler, _index_below(what, sampler, source.examples), self.examples + 1)

    def order(self, seed: int, epoch: int, *, shuffle: bool) -> NDArray[np.int64]:
        """See Source. Raises ValueError if the sampler yields another number of indices than its len()."""
        found = self._drawn.of(seed, epoch)
        if len(found) != self.examples:
            raise ValueError(
                f"{self._what}: the sampler has len() {self.examples}, but yielded "
                f"{'more' if len(found) > self.examples else len(found)} indices; expected that number in each epoch"
            )
        return np.array(found, np.int64)

    def replay(self) -> None:
        """See Source."""
        self._drawn.replay()

    def take(self, indices: NDArray[np.int64]) -> Any:
        """See Reader. The indices are those of the dataset."""
        return self._source.take(indices)

    def shared(self, *, max_readers: int, local: bool) -> AbstractContextManager[SharedData]:
        """See Source."""
        return self._source.shared(max_readers=max_readers, local=local)


class SampledBatches:
    """An iterable of the batches that a batch_sampler, an iterable of lists of indices, chooses."""

    def __init__(self, what: str, source: Source, batch_sampler: Any) -> None:
        self._source = source
        self._index = _index_below(what, batch_sampler, source.examples)
        self._sampler = batch_sampler
        self._drawn: _Drawn
        self._batches: list[list[int]] = []

    def begin(self, seed: int, *, limit: int | None, replay: bool) -> None:
        """Begin a training, or resume one with ``replay``. It uses at most ``limit`` batches of each epoch."""
        self._seed = seed
        self._drawn = _Drawn(self._sampler, lambda batch: list(map(self._index, batch)), limit)
        if replay:
            self._drawn.replay()

    def set_epoch(self, epoch: int) -> None:
        """Choose the batches of this epoch."""
        self._batches = self._drawn.of(self._seed, epoch)

    def __iter__(self) -> Iterator[Any]:
        return (self._source.take(np.array(batch, np.int64)) for batch in self._batches)


class Chosen:
    """A dataset of some of the examples of another one."""

    def __init__(self, items: Any, indices: list[int]) -> None:
        self._items, self._indices = items, indices

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, index: int) -> Any:
        return self._items[self._indices[index]]


def choice_of(what: str, sampler: Any, batches: bool, examples: int) -> list[int]:
    """Return the indices that a sampler, or a batch_sampler, chooses when there are no epochs."""
    index = _index_below(what, sampler, examples)
    with _keyed(0, 0):
        found = list(sampler)
    return [index(each) for each in (itertools.chain.from_iterable(found) if batches else found)]


def _length(what: str, sampler: Any) -> int:
    try:
        return len(sampler)
    except TypeError:
        raise TypeError(
            f"{what}: a DataLoader with a sampler ({type(sampler).__name__}) without len(); expected one with the same "
            "number of indices in each epoch. Or give an iterable of batches, which may have any order"
        ) from None


def _index_below(what: str, sampler: Any, examples: int) -> Callable[[Any], int]:
    def checked(value: Any) -> int:
        try:
            index = operator.index(value)
        except TypeError:
            raise TypeError(f"{what}: {type(sampler).__name__} yielded {value!r}; expected an index") from None
        if not -examples <= index < examples:
            raise ValueError(f"{what}: {type(sampler).__name__} yielded index {index}, with only {examples} examples")
        return index % examples

    return checked


def _keyed(seed: int, epoch: int) -> AbstractContextManager[None]:
    """Seed the global random generators with these numbers for the block, and restore them afterwards."""
    return _core.Block(_keyed_steps(seed, epoch))


def _keyed_steps(seed: int, epoch: int) -> Iterator[None]:
    """Seed the global generators of torch (if it is imported), NumPy and Python, then restore them."""
    torch = sys.modules.get("torch")
    words = np.random.SeedSequence((seed, epoch)).generate_state(4)
    with generators_lock():
        before = random.getstate(), np.random.get_state(), torch.get_rng_state() if torch else None
        random.seed(int(words[0]))
        np.random.seed(words[1])
        if torch:
            torch.manual_seed(int(words[2]))
        try:
            yield
        finally:
            random.setstate(before[0])
            np.random.set_state(before[1])
            if torch:
                torch.set_rng_state(before[2])
