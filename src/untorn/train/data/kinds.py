"""Which kind of data was given. Frameworks are known by the names of their classes, so none is imported."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from untorn.train.data.arrays import ArraySource, is_array, type_name
from untorn.train.data.base import Source
from untorn.train.data.items import Examples, ItemSource
from untorn.train.data.sampled import Chosen, SampledBatches, SampledSource, choice_of

__all__ = ["batches_of", "source_of"]

#: samplers whose order is what shuffle=True or shuffle=False of fit gives
_PLAIN_SAMPLERS = frozenset({"RandomSampler", "SequentialSampler"})


def batches_of(data: Any) -> Any:
    """The iterable of batches that this is, or None if its examples can be chosen: a DataLoader that reads an
    IterableDataset, or has a batch_sampler of its own, or anything that has iter() but is no tree of arrays and has no
    [index]."""
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


def source_of(what: str, data: Any, *, in_epochs: bool = False) -> Source:
    """The source of this data, checked as far as that is cheap. Raises TypeError or ValueError naming ``what``, the
    part and what is wrong with it. Of a DataLoader with a sampler of its own it has what that chooses: ``in_epochs``
    anew in each, else once."""
    if isinstance(data, Source):
        return data
    if isinstance(data, Examples):
        return ItemSource(what, data.items, data.collate_fn)
    if _is_torch(data, "DataLoader"):
        return _of_loader(what, data, in_epochs=in_epochs)
    if _is_torch(data, "TensorDataset"):
        return ArraySource(what, data.tensors)
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


def _is_torch(data: Any, name: str) -> bool:
    """Is it of this class of torch.utils.data, or of one derived from it?"""
    return any(cls.__name__ == name and cls.__module__.startswith("torch.utils.data") for cls in type(data).__mro__)


def _of_loader(what: str, loader: Any, *, in_epochs: bool) -> Source:
    """A DataLoader's dataset, collate_fn and sampler. Its workers and plain batches are for loops that read it; fit has
    its own."""
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
    """Return the collate_fn, if it is the user's."""
    return None if getattr(loader.collate_fn, "__module__", "").startswith("torch.utils.data") else loader.collate_fn


def _only_for_training(what: str, data: Any) -> Exception:
    return TypeError(
        f"{what}: a {type_name(data)} can only be read from its beginning, which does for fit alone; expected arrays, "
        "or a dataset with len() and [index]"
    )


def _examples_one_by_one(what: str, data: Any) -> Exception:
    return TypeError(
        f"{what}: a {type_name(data)} gives examples one by one; expected batches: "
        "torch.utils.data.DataLoader(dataset, batch_size=...)"
    )
