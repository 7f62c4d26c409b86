"""Batches from an iterable, which can only be read from its beginning.

::

    iterable ── a thread reads ahead, within a limit ──> batches ──┬── sync mode: one by one, each a step
                                                                   └── async mode: all that are ready ──> window

A window is a run of batches of the same size (the last may be smaller), combined into arrays: a source like any other,
with one step per batch. How batches are grouped into windows depends on timing, as does all of async mode.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Collection, Iterable, Iterator, Mapping
from numbers import Number
from typing import Any, NamedTuple

import numpy as np

from untorn.train.data.arrays import ArraySource, type_name
from untorn.train.data.base import Source
from untorn.train.data.collate import as_batch
from untorn.train.data.items import ItemSource
from untorn.train.data.records import Form, record_of
from untorn.trees import BATCH, Spec, flatten, opened, unflatten

__all__ = ["Batch", "Stream", "Window", "array_source", "checked_batch", "items_of"]

#: the limits for reading ahead, beyond one batch
_AHEAD_NBYTES = 64 << 20
_AHEAD_BATCHES = 256
#: what an object of unknown size counts against these limits
_OBJECT_NBYTES = 4 << 20


class Window(NamedTuple):
    """Some batches: the source of their examples, and the size of all but the last."""

    source: Source
    batch_size: int


class Batch(NamedTuple):
    """A batch of arrays; or, with no spec, an object that is not cut into shards, which counts as one example. The form
    makes a batch with dataclasses of its arrays."""

    spec: Spec | None
    leaves: list[Any]
    examples: int
    form: Form | None = None

    @property
    def nbytes(self) -> int:
        """The bytes of its arrays; a guess for an object."""
        return _OBJECT_NBYTES if self.spec is None else sum(leaf.nbytes for leaf in self.leaves)

    def kind(self) -> Any:
        """Return the structure, and the dtypes and shapes of the rows."""
        if self.spec is None:
            return None
        return self.form or self.spec, [(leaf.dtype, leaf.shape[1:]) for leaf in self.leaves]


class Stream:
    """An iterable of batches: trees of arrays or tensors with one example per row, whose examples the shards share; or
    objects of other classes, each of which is one shard.

    Args:
        what: its name in errors.
        batches: the iterable. Each epoch calls iter(batches) and uses all of it, or the first ``steps_per_epoch``
            batches; an iterator, such as a generator, continues where the last epoch left it.
        steps_per_epoch: the number of batches in an epoch; None for all.
        prefetch: the number of batches to read ahead; None for the default limits.
    """

    def __init__(
        self, what: str, batches: Iterable[Any], steps_per_epoch: int | None, prefetch: int | None = None
    ) -> None:
        self.what = what
        self.steps_per_epoch = steps_per_epoch
        self._batches = batches
        self._prefetch = prefetch
        self._epoch: Iterator[Batch] = iter(())

    @property
    def goes_on(self) -> bool:
        """Whether it is an iterator, which cannot start again."""
        return isinstance(self._batches, Iterator)

    def begin(self, epoch: int, *, skip: int, late: Collection[int] = (), behind: int = 0) -> None:
        """Begin an epoch after its first batches, of which ``skip`` are done and the ``late`` ones are not. The
        iterable's first ``behind`` batches, which come before the epoch, are skipped as well."""
        set_epoch = getattr(self._batches, "set_epoch", None)
        if callable(set_epoch):  # as in samplers and datasets of PyTorch and Hugging Face
            set_epoch(epoch)
        self._epoch = self._read(skip, late, behind)

    def batches(self) -> Iterator[Batch]:
        """Yield the batches of the epoch. Raises ValueError or TypeError for those that do not fit, and the errors of
        the iterable."""
        for batches in self._runs(at_most=1):
            yield from batches

    def windows(self) -> Iterator[Window]:
        """Yield the batches of the epoch in runs of those that are ready and fit together. Raises as batches()."""
        for batches in self._runs(at_most=_AHEAD_BATCHES):
            yield self._window(batches)

    def _runs(self, *, at_most: int) -> Iterator[list[Batch]]:
        if self._prefetch == 0:
            for batch in self._epoch:
                yield [batch]
            return
        with _ReadAhead(self._epoch, self._prefetch) as ahead:
            while batches := ahead.take(at_most):
                yield batches

    def _read(self, skip: int, late: Collection[int], behind: int) -> Iterator[Batch]:
        number = 0
        iterator = iter(self._batches)
        for _ in itertools.islice(iterator, behind):
            pass
        while self.steps_per_epoch is None or number < self.steps_per_epoch:
            try:
                tree = next(iterator)
            except StopIteration:
                break
            number += 1
            if number > skip + len(late) or number - 1 in late:
                yield checked_batch(f"{self.what}: batch {number - 1}", tree)
        if self.steps_per_epoch is not None and number < self.steps_per_epoch:
            raise ValueError(f"{self.what}: it ended after {number} batches; steps_per_epoch is {self.steps_per_epoch}")
        if number == 0:
            raise ValueError(
                f"{self.what}: a {type_name(self._batches)} without batches; an iterator can be read once, so give an "
                "object whose iter() starts again, or enough batches and steps_per_epoch="
            )

    def _window(self, batches: list[Batch]) -> Window:
        first, *others = batches
        if first.spec is None:
            return Window(items_of([batch.leaves[0] for batch in batches], self.what), 1)
        parts = zip(*(batch.leaves for batch in batches), strict=True)
        leaves = [np.concatenate(part) for part in parts] if others else first.leaves
        return Window(array_source(self.what, first._replace(leaves=leaves)), first.examples)


def checked_batch(where: str, tree: Any) -> Batch:
    """Return what the user gave as a batch. Raises TypeError or ValueError, which begin with ``where``."""
    plain = _plain_batch(tree)
    if plain is not None:
        return plain
    record = record_of(tree)
    if record is not None:
        form, arrays = record
        return Batch(form.spec, arrays, len(arrays[0]), form)
    given = dict(tree) if isinstance(tree, Mapping) else tree
    spec, leaves = flatten(as_batch(where, given), kinds=BATCH)
    if _is_object(given, leaves):
        return Batch(None, [tree], 1)
    if not leaves or not all(isinstance(leaf, np.ndarray) and leaf.ndim for leaf in leaves):
        raise TypeError(f"{where}: expected arrays with one example per row, or a tree of them")
    counts = {len(leaf) for leaf in leaves}
    if len(counts) != 1 or counts == {0}:
        raise ValueError(f"{where}: expected arrays with one example per row, found {sorted(counts)} rows")
    return Batch(spec, leaves, counts.pop())


#: the structure of plain batches, by their type and keys: finding it takes as long as a small step
_PLAIN_SPECS: dict[Any, Spec] = {}
_PLAIN_SPECS_MAX = 64


def _plain_batch(tree: Any) -> Batch | None:
    """Return the batch that checked_batch() would return, in a fraction of its time, for what most batches are: a
    tuple, list or dict of arrays or tensors with equally many rows. None for anything else."""
    kind = type(tree)
    if kind is tuple or kind is list:
        leaves, key = list(tree), (kind, len(tree))
    elif kind is dict:
        leaves, key = list(tree.values()), (kind, *tree)
    else:
        return None
    for index, leaf in enumerate(leaves):
        if type(leaf) is not np.ndarray:
            if type(leaf).__module__ != "torch" or type(leaf).__name__ != "Tensor":
                return None
            try:
                leaves[index] = leaf.detach().numpy()
            except (RuntimeError, TypeError):
                return None
    if not leaves or not all(leaf.ndim and len(leaf) == len(leaves[0]) for leaf in leaves) or not len(leaves[0]):
        return None
    if any(leaf.dtype.hasobject for leaf in leaves):
        return None
    spec = _PLAIN_SPECS.get(key)
    if spec is None:
        spec = flatten(kind(leaves) if kind is not dict else dict(zip(tree, leaves, strict=True)), kinds=BATCH)[0]
        if len(_PLAIN_SPECS) < _PLAIN_SPECS_MAX:
            _PLAIN_SPECS[key] = spec
    return Batch(spec, leaves, len(leaves[0]))


def array_source(what: str, batch: Batch) -> ArraySource:
    """Return the source of the examples of a batch that can be cut."""
    if batch.form is not None:
        return ArraySource(what, batch.leaves, batch.form.make)
    assert batch.spec is not None
    return ArraySource(what, unflatten(batch.spec, batch.leaves))


def items_of(objects: list[Any], what: str) -> ItemSource:
    """Return the source of batches that are objects, each of which is one example."""
    return ItemSource(what, objects, _only)


def _is_object(tree: Any, leaves: list[Any]) -> bool:
    """Return whether only the model knows what a batch is, so that it cannot be cut: it has an object of another class,
    or texts beside its arrays."""
    foreign = [leaf for leaf in leaves if not isinstance(leaf, np.ndarray | Number)]
    arrays = len(leaves) > len(foreign)
    return _has_packed(tree) or any(arrays or not isinstance(leaf, str | bytes | None) for leaf in foreign)


def _has_packed(tree: Any) -> bool:
    """Return whether the tree has one of torch's PackedSequence, a named tuple whose arrays have no row per example."""
    if type(tree).__name__ == "PackedSequence":
        return True
    node = opened(tree, BATCH)
    return node is not None and any(map(_has_packed, node.members))


def _only(batches: list[Any]) -> Any:
    """Combine the only item of a batch, which is the batch."""
    (batch,) = batches
    return batch


class _ReadAhead:
    """Reads batches in a separate thread, and keeps them until they are taken. A context manager."""

    def __init__(self, batches: Iterator[Batch], limit: int | None) -> None:
        self._batches = batches
        self._limit = limit
        self._ready: list[Batch] = []
        self._lock = threading.RLock()  # not taken through Condition, in whose code Ctrl-C could leave it taken
        self._changed = threading.Condition(self._lock)
        self._over = self._closed = False
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="untorn-read-ahead", daemon=True)

    def __enter__(self) -> _ReadAhead:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._closed = True
            self._changed.notify_all()
        self._thread.join()  # at most one batch is still being read

    def _run(self) -> None:
        try:
            while True:
                with self._lock:
                    self._changed.wait_for(lambda: self._closed or not self._is_full())
                    if self._closed:
                        return
                batch = next(self._batches, None)
                if batch is None:
                    return
                with self._lock:
                    self._ready.append(batch)
                    self._changed.notify_all()
        except BaseException as error:
            self._error = error
        finally:
            with self._lock:
                self._over = True
                self._changed.notify_all()

    def _is_full(self) -> bool:
        if self._limit is not None:
            return len(self._ready) >= self._limit
        nbytes = sum(batch.nbytes for batch in self._ready)
        return len(self._ready) >= _AHEAD_BATCHES or nbytes >= _AHEAD_NBYTES

    def take(self, at_most: int) -> list[Batch]:
        """Wait for a batch, and return all that are ready and fit together, or the first of these; an empty list at the
        end. An error while reading is raised after the batches read before it."""
        with self._lock:
            self._changed.wait_for(lambda: self._ready or self._over)
            if not self._ready and self._error is not None:
                raise self._error
            count = _fitting(self._ready[:at_most])
            taken, self._ready = self._ready[:count], self._ready[count:]
            self._changed.notify_all()
            return taken


def _fitting(batches: list[Batch]) -> int:
    """Return the number of batches from the first on with the same structure and size; the last may be smaller."""
    for index, batch in enumerate(batches):
        if batch.kind() != batches[0].kind() or batch.examples > batches[0].examples:
            return index
        if batch.examples < batches[0].examples:
            return index + 1
    return len(batches)
