"""Datasets: objects with ``len()`` and ``[index]``, whose items are read and combined in the workers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Generic, Protocol

import numpy as np
from numpy.typing import NDArray

from untorn.share import Snapshot, publish
from untorn.train.data.base import Reader, SharedData, Source
from untorn.train.data.collate import as_batch, collate
from untorn.train.data.sending import received, sendable
from untorn.typevars import T_co

__all__ = ["Dataset", "Examples", "ItemSource"]

Collate = Callable[[list[Any]], Any]


class Dataset(Protocol[T_co]):
    """Anything with ``len(items)`` and ``items[index]``."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> T_co: ...


class Examples(Generic[T_co]):
    """A dataset with a collate_fn, or a list of examples, as data for a Trainer.

    Args:
        items: an object with ``len(items)`` and ``items[index]``.
        collate_fn: a function of a list of items that returns a batch, a tree of arrays or tensors. By default, the
            items' parts are stacked.

    Example:
        >>> import numpy as np
        >>> from untorn.train.data import Examples, source_of
        >>> examples = Examples([(np.ones(2), 0), (np.zeros(2), 1)])
        >>> source_of("data", examples).take([1, 0])
        (array([[0., 0.],
               [1., 1.]]), array([1, 0]))
    """

    def __init__(self, items: Dataset[T_co], collate_fn: Callable[[list[T_co]], Any] | None = None) -> None:
        if not (hasattr(items, "__len__") and hasattr(items, "__getitem__")):
            raise TypeError(f"items: expected len(items) and items[index], found {type(items).__name__}")
        if collate_fn is not None and not callable(collate_fn):
            raise TypeError(f"collate_fn: expected a function, found {type(collate_fn).__name__}")
        self.items = items
        self.collate_fn = collate_fn

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> T_co:
        return self.items[index]


class ItemSource(Source):
    """A dataset, read item by item, or by ``__getitems__(indices)`` if it has that."""

    def __init__(self, what: str, items: Any, collate_fn: Collate | None = None) -> None:
        self._what, self._items, self._collate_fn = what, items, collate_fn
        self.examples = len(items)
        if self.examples == 0:
            raise ValueError(f"{what}: expected at least one example, found none")

    def take(self, indices: NDArray[np.int64]) -> Any:
        """See Reader."""
        numbers = [int(index) for index in indices]
        items = self._read(numbers)
        names = [f"{self._what}[{number}]" for number in numbers]
        if self._collate_fn is None:
            return collate(items, names)
        try:
            batch = self._collate_fn(items)
        except Exception as error:
            raise RuntimeError(f"collate_fn: {type(error).__name__}: {error} (examples {_listed(names)})") from error
        return as_batch("the batch of collate_fn", batch)

    def _read(self, numbers: list[int]) -> list[Any]:
        together = getattr(self._items, "__getitems__", None)
        if together is None:
            return [self._item(number) for number in numbers]
        try:
            items = list(together(numbers))
        except Exception as error:
            listed = _listed([f"{self._what}[{number}]" for number in numbers])
            raise RuntimeError(f"{listed}: {type(error).__name__}: {error}") from error
        if len(items) != len(numbers):
            raise ValueError(f"{self._what}: __getitems__ returned {len(items)} items for {len(numbers)} indices")
        return items

    def _item(self, number: int) -> Any:
        try:
            return self._items[number]
        except Exception as error:  # any error of the dataset, whose author needs to know the example
            raise RuntimeError(f"{self._what}[{number}]: {type(error).__name__}: {error}") from error

    @contextmanager
    def shared(self, *, max_readers: int, local: bool) -> Iterator[SharedData]:
        """See Source. The dataset is sent once, with its arrays and tensors in shared memory."""
        value = None if local else sendable(self._what, self)
        with publish(value, max_slots=2, slots=1, max_readers=max_readers) as publisher:
            yield SharedData(publisher.subscriber(), (lambda _: self) if local else _read)


def _read(snapshot: Snapshot) -> Reader:
    source: ItemSource = received(snapshot)
    return source


def _listed(names: list[str]) -> str:
    return ", ".join(names[:8]) + (", ..." if len(names) > 8 else "")
