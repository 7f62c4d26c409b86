"""Find the kind of the data. Classes of frameworks are recognised by their names, so none is imported."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from untorn import trees
from untorn.train.data.arrays import ArraySource, is_array, type_name
from untorn.train.data.base import Source
from untorn.train.data.items import Examples, ItemSource
from untorn.train.data.sampled import Chosen, SampledBatches, SampledSource, choice_of

__all__ = ["batches_of", "source_of"]

#: samplers whose order is that of fit's shuffle=True or shuffle=False
_PLAIN_SAMPLERS = frozenset({"RandomSampler", "SequentialSampler"})


def batches_of(data: Any) -> Any:
    """Return the data as an iterable of batches, or None if its examples can be chosen by index. An iterable of batches
    is a DataLoader that reads an IterableDataset or has a custom batch_sampler, or any other iterable without [index]
    that is not a tree of arrays."""
    if _is_torch(data, "DataLoader"):
        if _is_torch(data.dataset, "IterableDataset"):
            return data if data.batch_size is not None else None
        if _has_batches_of_its_own(data):
            return SampledBatches("data", _examples_of("data", data), data.batch_sampler)
        return None
    known = isinstance(data, Source | Examples | dict | tuple | list | str | bytes | Mapping | type) or is_array(data)
    if known or _is_torch(data, "Dataset") or (hasattr(data, "__len__") and hasattr(data, "__getitem__")):
        return None
    return data if isinstance(data, Iterable) else None


def batch_size_of(data: Any) -> int | None:
    """Return the batch size of a DataLoader whose examples can be chosen by index; None for other data."""
    return getattr(data, "batch_size", None) if _is_torch(data, "DataLoader") else None


def source_of(what: str, data: Any, *, in_epochs: bool = False) -> Source:
    """Return the source of this data, after all checks that are cheap. Raises TypeError or ValueError, which name
    ``what``, the part, and what is wrong with it. For a DataLoader with a custom sampler, the source has the examples
    that the sampler chooses: again in each epoch with ``in_epochs``, else once."""
    if isinstance(data, Source):
        return data
    if isinstance(data, Examples):
        return ItemSource(what, data.items, data.collate_fn)
    if _is_torch(data, "DataLoader"):
        return _of_loader(what, data, in_epochs=in_epochs)
    if _is_torch(data, "TensorDataset"):
        return ArraySource(what, data.tensors)
    if _is_list_of_examples(data):
        return ItemSource(what, data)
    if isinstance(data, dict | tuple | list) or is_array(data):
        return ArraySource(what, data)
    if _is_torch(data, "IterableDataset"):
        raise _examples_one_by_one(what, data)
    if not isinstance(data, str | bytes | Mapping | type):
        if hasattr(data, "__len__") and hasattr(data, "__getitem__"):
            return ItemSource(what, data)
        if isinstance(data, Iterable):
            raise _only_for_training(what, data)
    raise TypeError(
        f"{what}: expected a NumPy array, or a tuple, list or dict of them, or a dataset with len() and [index], found "
        f"{type_name(data)}"
    )


def _is_list_of_examples(data: Any) -> bool:
    """Return whether this is a list of examples, and no tree of arrays with a row per example. It is no such tree if
    the first example has a number, a single element or a text among its parts, or parts with unlike numbers of rows."""
    if not isinstance(data, list) or not data or not isinstance(data[0], tuple | list | dict):
        return False
    if any(type(item) is not type(data[0]) for item in data):
        return False
    first, last = _shapes_of(data[0]), _shapes_of(data[-1])
    if () in first:
        return True
    return len(data) > 1 and first == last and len({shape[0] for shape in first}) > 1


def _shapes_of(example: Any) -> list[tuple[int, ...]]:
    """Return the shapes of an example's parts, that of a number or a text being ()."""
    leaves = trees.flatten(example, kinds=trees.BATCH)[1]
    return [tuple(getattr(leaf, "shape", ())) if is_array(leaf) else () for leaf in leaves]


def _is_torch(data: Any, name: str) -> bool:
    """Return whether it is an instance of this class of torch.utils.data."""
    return any(cls.__name__ == name and cls.__module__.startswith("torch.utils.data") for cls in type(data).__mro__)


def _of_loader(what: str, loader: Any, *, in_epochs: bool) -> Source:
    """Return the source with a DataLoader's dataset, collate_fn and sampler. Its workers and batch size are ignored,
    since fit has its own."""
    if _is_torch(loader.dataset, "IterableDataset"):
        raise _only_for_training(what, loader) if loader.batch_size else _examples_one_by_one(what, loader)
    source = _examples_of(what, loader)
    own = _has_batches_of_its_own(loader)
    sampler = loader.batch_sampler if own else getattr(loader.batch_sampler, "sampler", loader.sampler)
    plain = type(sampler).__name__ in _PLAIN_SAMPLERS and not getattr(sampler, "replacement", False)
    if plain and not own and len(sampler) == source.examples:
        return source
    if in_epochs:
        return SampledSource(what, source, sampler)
    chosen = choice_of(what, sampler, own, source.examples)
    return ItemSource(what, Chosen(loader.dataset, chosen), _collate_of(loader))


def _has_batches_of_its_own(loader: Any) -> bool:
    return loader.batch_sampler is not None and type(loader.batch_sampler).__name__ != "BatchSampler"


def _examples_of(what: str, loader: Any) -> Source:
    """Return all examples of a DataLoader's dataset."""
    if _collate_of(loader) is None and _is_torch(loader.dataset, "TensorDataset"):
        return ArraySource(what, loader.dataset.tensors)
    return ItemSource(what, loader.dataset, _collate_of(loader))


def _collate_of(loader: Any) -> Any:
    """Return the collate_fn if it is not torch's own, else None."""
    return None if getattr(loader.collate_fn, "__module__", "").startswith("torch.utils.data") else loader.collate_fn


def _only_for_training(what: str, data: Any) -> Exception:
    return TypeError(
        f"{what}: a {type_name(data)} can only be read from its beginning, which only fit supports; expected arrays, "
        "or a dataset with len() and [index]"
    )


def _examples_one_by_one(what: str, data: Any) -> Exception:
    return TypeError(
        f"{what}: a {type_name(data)} yields single examples; expected batches: "
        "torch.utils.data.DataLoader(dataset, batch_size=...)"
    )
