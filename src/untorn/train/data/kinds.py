"""Which kind of data was given. Frameworks are known by the names of their classes, so none is imported."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from untorn.train.data.arrays import ArraySource, is_array, type_name
from untorn.train.data.base import Source
from untorn.train.data.items import Examples, ItemSource

__all__ = ["batches_of", "source_of"]

#: samplers whose order is what shuffle=True or shuffle=False of fit gives
_PLAIN_SAMPLERS = frozenset({"RandomSampler", "SequentialSampler"})


def batches_of(data: Any) -> Any:
    """The iterable of batches that this is, or None if its examples can be chosen: a DataLoader that reads an
    IterableDataset, or anything that has iter() but is no tree of arrays and has no [index]."""
    if _is_torch(data, "DataLoader"):
        return data if _is_torch(data.dataset, "IterableDataset") and data.batch_size is not None else None
    known = isinstance(data, Source | Examples | dict | tuple | list | str | bytes | Mapping | type) or is_array(data)
    if known or _is_torch(data, "Dataset") or (hasattr(data, "__len__") and hasattr(data, "__getitem__")):
        return None
    return data if isinstance(data, Iterable) else None


def source_of(what: str, data: Any) -> Source:
    """The source of this data, checked as far as that is cheap. Raises TypeError or ValueError naming ``what``, the
    part and what is wrong with it."""
    if isinstance(data, Source):
        return data
    if isinstance(data, Examples):
        return ItemSource(what, data.items, data.collate_fn)
    if _is_torch(data, "DataLoader"):
        return _of_loader(what, data)
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


def _of_loader(what: str, loader: Any) -> Source:
    """A DataLoader's dataset and collate_fn. Its workers and batches are for loops that read it; fit has its own."""
    if _is_torch(loader.dataset, "IterableDataset"):
        raise _only_for_training(what, loader) if loader.batch_size else _examples_one_by_one(what, loader)
    batches, sampler = loader.batch_sampler, loader.sampler
    if batches is not None and type(batches).__name__ != "BatchSampler":
        raise _not_honoured(what, "batch_sampler", batches)
    if batches is not None:
        sampler = batches.sampler
    name = type(sampler).__name__
    whole = not getattr(sampler, "replacement", False) and len(sampler) == len(loader.dataset)
    if name not in _PLAIN_SAMPLERS or not whole:
        raise _not_honoured(what, "sampler", sampler)
    own = not loader.collate_fn.__module__.startswith("torch.utils.data")
    if not own and _is_torch(loader.dataset, "TensorDataset"):
        return ArraySource(what, loader.dataset.tensors)
    return ItemSource(what, loader.dataset, loader.collate_fn if own else None)


def _not_honoured(what: str, part: str, found: Any) -> Exception:
    return ValueError(
        f"{what}: a DataLoader with its own {part} ({type(found).__name__}), which fit cannot follow: untorn shuffles "
        "and cuts batches itself, the same way for any number of workers (shuffle=, batch_size=, drop_last=). Give the "
        "dataset alone; torch.utils.data.Subset chooses examples"
    )


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
