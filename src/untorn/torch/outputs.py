"""The outputs of a module as Trainer.predict returns them."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

import torch
from numpy.typing import NDArray

from untorn import trees

__all__ = ["predicted"]


def predicted(outputs: Any, name: str) -> Any:
    """Return a module's outputs as new arrays: dicts stay dicts, tuples and lists become tuples. An object with
    attributes, as Hugging Face's models return it, becomes a dict of those with a row per example, or a single array if
    there is only one."""
    if isinstance(outputs, torch.Tensor):
        array: NDArray[Any] = (outputs.float() if outputs.dtype == torch.bfloat16 else outputs).numpy().copy()
        return array
    node = trees.opened(tuple(outputs) if isinstance(outputs, list) else outputs, trees.BATCH)
    if node is not None and (node.kind != "dict" or type(outputs) in (dict, OrderedDict)):
        places = zip(trees.subscripts(node), node.members, strict=True)
        return node.make([predicted(part, name + place) for place, part in places])
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
