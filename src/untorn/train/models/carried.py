"""State that a model carries from step to step, a row per example: what a training with it needs.

::

    step t        rows of shard 0 | rows of shard 1      of a buffer of the module: (batch, ...)
                        |                 |              each shard computes with its own rows, and leaves new ones
    step t + 1    rows of shard 0 | rows of shard 1      the update puts them together: they are part of the version
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from untorn.train.models.base import Parts

__all__ = ["check_buffers", "check_carried", "check_order", "checked_names"]


def checked_names(given: Any) -> tuple[str, ...]:
    """Return the names of the buffers that are carried, each once. Raises TypeError."""
    if isinstance(given, str) or not isinstance(given, Iterable):
        raise TypeError(f"carried: expected a list of names of buffers, found {type(given).__name__}")
    return tuple(dict.fromkeys(given))


def check_buffers(names: tuple[str, ...], buffers: dict[str, Any]) -> None:
    """Raise ValueError unless these buffers can be carried; put them in order of rows."""
    rows = 0
    for name in names:
        if name not in buffers:
            found = ", ".join(buffers) or "none"
            raise ValueError(f"carried: expected names of the module's buffers ({found}), found {name!r}")
        buffer = buffers[name]
        if buffer.ndim == 0 or buffer.size == 0 or (rows and len(buffer) != rows):
            raise ValueError(
                f"carried: buffer {name!r}: expected a row for each example of a batch{f', {rows}' if rows else ''}, "
                f"found shape {buffer.shape}"
            )
        rows = len(buffer)
        buffers[name] = np.ascontiguousarray(buffer)


def check_carried(parts: Parts, *, shards: int, is_async: bool, accumulate: int, local_steps: bool) -> None:
    """Raise ValueError unless a training with these settings can carry the state."""
    if not parts.carried:
        return
    rows = len(parts.buffers[parts.carried[0]])
    if shards > rows:
        raise ValueError(f"shards: expected at most {rows}, the rows of the state that is carried, found {shards}")
    for is_set, setting in (
        (is_async, "mode='async'"),
        (accumulate > 1, f"accumulate={accumulate}"),
        (local_steps, "LocalSteps"),
    ):
        if is_set:
            raise ValueError(
                f"carried: with state that is carried from one step to the next, each step must be made at once, and "
                f"after the one before; found {setting}"
            )


def check_order(carried: tuple[str, ...], *, shuffle: bool) -> None:
    """Raise ValueError if examples would come in an order in which no row continues."""
    if carried and shuffle:
        raise ValueError(
            "shuffle: row i of each batch continues row i of the batch before, as the model carries state; expected "
            "shuffle=False"
        )
