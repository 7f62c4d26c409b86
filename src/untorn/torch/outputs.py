"""The outputs of a module as Trainer.predict returns them."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

import torch
from numpy.typing import NDArray

__all__ = ["predicted"]


def predicted(outputs: Any, name: str) -> Any:
    """Return a module's outputs as arrays of their own: dicts stay dicts, tuples and lists are tuples. An object with
    attributes, as Hugging Face's models give it, is a dict of those with a row per example; a single one by itself."""
    if isinstance(outputs, torch.Tensor):
        array: NDArray[Any] = (outputs.float() if outputs.dtype == torch.bfloat16 else outputs).numpy().copy()
        return array
    if type(outputs) in (dict, OrderedDict):
        return {key: predicted(part, f"{name}[{key!r}]") for key, part in outputs.items()}
    if isinstance(outputs, tuple | list):
        parts = [predicted(part, f"{name}[{index}]") for index, part in enumerate(outputs)]
        return type(outputs)(*parts) if hasattr(outputs, "_fields") else tuple(parts)
    if outputs is None and name:
        return None
    found = dict(outputs) if isinstance(outputs, Mapping) else getattr(outputs, "__dict__", {})
    rows = {key: part for key, part in found.items() if _has_rows(part)}
    if not rows:
        raise TypeError(
            f"predict: expected a module that returns tensors, or a dict, tuple or object of them, found "
            f"{type(outputs).__name__}{f' as output {name}' if name else ''}"
        )
    made = {key: predicted(part, f"{name}[{key!r}]") for key, part in rows.items()}
    return made if len(made) > 1 else next(iter(made.values()))


def _has_rows(part: Any) -> bool:
    if isinstance(part, tuple | list):
        return bool(part) and all(map(_has_rows, part))
    return isinstance(part, torch.Tensor) and part.ndim > 0
