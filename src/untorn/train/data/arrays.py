"""Arrays, or trees of arrays, with one example per row: published once, or mapped from their files."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from untorn import trees
from untorn.errors import UnsupportedTypeError
from untorn.share import Snapshot, publish
from untorn.train.data.base import Reader, SharedData, Source
from untorn.train.data.files import MappedFile, mapped_file

__all__ = ["ArraySource", "ReadArrays", "as_array", "is_array", "take_examples", "type_name"]


def take_examples(data: Any, indices: NDArray[np.int64]) -> Any:
    """Return copies of the examples with these indices, from every array of a tree."""
    if type(data) is tuple and all(type(part) is np.ndarray for part in data):  # most data; ten times as fast
        return tuple([part.take(indices, axis=0) for part in data])
    return trees.map(lambda array: array.take(indices, axis=0), data)


class ArraySource(Source):
    """A tree of arrays. Raises TypeError or ValueError, which name the part that does not fit.

    Args:
        what: its name in errors.
        data: the tree.
        make: makes a batch of the tree with the examples of a batch; by default it is one. It is pickled.
    """

    def __init__(self, what: str, data: Any, make: Callable[[Any], Any] | None = None) -> None:
        self._make = make
        arrays: list[tuple[str, NDArray[Any]]] = []

        def check(path: str, leaf: Any) -> NDArray[Any]:
            arrays.append((path, _checked(path, leaf)))
            return arrays[-1][1]

        self._tree = trees.map_with_path(check, data, at=what)
        if not arrays:
            raise ValueError(f"{what}: found no arrays; expected arrays with one example per row, such as (x, y)")
        first, rows = arrays[0]
        self.examples = len(rows)
        for path, array in arrays:
            if len(array) != self.examples:
                raise ValueError(f"{path} has {len(array):,} examples and {first} has {self.examples:,}")
        if self.examples == 0:
            raise ValueError(f"{what}: expected at least one example, found none")

    def take(self, indices: NDArray[np.int64]) -> Any:
        """See Reader."""
        taken = take_examples(self._tree, indices)
        return taken if self._make is None else self._make(taken)

    @contextmanager
    def shared(self, *, max_readers: int, local: bool) -> Iterator[SharedData]:
        """See Source."""
        files: list[MappedFile | None] = []

        def unmapped(array: NDArray[Any]) -> NDArray[Any] | None:
            files.append(mapped_file(array))
            return array if files[-1] is None else None

        tree = trees.map(unmapped, self._tree)
        with publish(tree, max_slots=2, slots=1, max_readers=max_readers) as publisher:
            yield SharedData(publisher.subscriber(), ReadArrays(tuple(file for file in files if file), self._make))


@dataclass(frozen=True)
class ReadArrays:
    """Reads a tree in which None stands for each array that is mapped from a file."""

    files: tuple[MappedFile, ...] = ()
    make: Callable[[Any], Any] | None = None

    def __call__(self, snapshot: Snapshot) -> Reader:
        """Return a reader of this version."""
        if not self.files:
            return _ArrayReader(snapshot.value, self.make)
        files = iter(self.files)
        tree = trees.map(lambda leaf: next(files).open() if leaf is None else leaf, snapshot.value)
        return _ArrayReader(tree, self.make)


class _ArrayReader(Reader):
    """A tree of shared arrays."""

    def __init__(self, tree: Any, make: Callable[[Any], Any] | None) -> None:
        self._tree = tree
        self._make = make

    @property
    def examples(self) -> int:  # type: ignore[override] # only a job of single batches asks for it
        """See Reader."""
        first = self._tree
        while type(first) in (tuple, list, dict) and first:
            first = next(iter(first.values() if type(first) is dict else first))
        return len(first if isinstance(first, np.ndarray) else trees.flatten(self._tree)[1][0])

    def take(self, indices: NDArray[np.int64]) -> Any:
        """See Reader."""
        taken = take_examples(self._tree, indices)
        return taken if self._make is None else self._make(taken)


def is_array(value: Any) -> bool:
    """Return whether the value is an array, or can become one: a tensor, a table or a column."""
    if isinstance(value, type | np.generic):
        return False
    return isinstance(value, np.ndarray) or hasattr(value, "__array__") or hasattr(value, "toarray")


def as_array(path: str, value: Any) -> NDArray[Any]:
    """Return an array or array-like as a NumPy array, a view if possible. Raises TypeError if it cannot be converted,
    UnsupportedTypeError if it holds Python objects."""
    if not isinstance(value, np.ndarray):
        value = _converted(path, value)
    array: NDArray[Any] = value
    if array.dtype.hasobject:
        raise UnsupportedTypeError(
            f"{path}: expected numbers, found dtype {array.dtype}, which holds Python objects; convert it, for example "
            "with astype(np.float32), or replace each text or category by a number"
        )
    return array


def _converted(path: str, value: Any) -> Any:
    if hasattr(value, "toarray"):  # scipy.sparse
        raise TypeError(
            f"{path}: found a sparse {type_name(value)}; expected a dense array: use .toarray(), or a Dataset whose "
            "items are dense"
        )
    if type(value).__module__.partition(".")[0] == "torch":
        value = value.detach()
    try:
        return np.asarray(value)
    except Exception as error:  # the other library may raise any error
        raise TypeError(
            f"{path}: found a {type_name(value)} that cannot be converted to a NumPy array ({error}); expected dense "
            "data in CPU memory, of a dtype that NumPy has"
        ) from error


def _checked(path: str, leaf: Any) -> NDArray[Any]:
    if not is_array(leaf):
        hint = "np.asarray(...) may convert it"
        if hasattr(leaf, "__getitem__") and hasattr(leaf, "__len__") and not isinstance(leaf, str | bytes):
            hint += "; give a dataset by itself, not in a tuple or dict, since its items are the examples"
        raise TypeError(
            f"{path}: expected a NumPy array, or a tuple, list or dict of them, found {type_name(leaf)}; {hint}"
        )
    array = as_array(path, leaf)
    if array.ndim == 0:
        raise ValueError(f"{path}: found a single number; expected an array with one example per row")
    return array


def type_name(value: Any) -> str:
    """Return the name of a value's type for error messages."""
    return f"{type(value).__module__}.{type(value).__qualname__}"
