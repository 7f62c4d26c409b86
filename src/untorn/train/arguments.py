"""Check the arguments of a Trainer: return the value to use, or raise an error that names the argument, what was
expected, and what was found."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from untorn.train.callbacks import Callback

__all__ = [
    "check_busy",
    "check_no_cut",
    "checked_callbacks",
    "checked_count",
    "checked_path",
    "checked_shards",
    "checked_staleness",
]

#: one less than the largest number of in-flight batches, which are the shards of an async board
_MAX_STALENESS = 1023


def checked_count(name: str, value: Any, minimum: int, maximum: int) -> int:
    """Return an int of any library, from ``minimum`` to ``maximum``, as an int. Raises TypeError or ValueError."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer):
        raise TypeError(f"{name}: expected an int, found {type(value).__name__}")
    if not minimum <= value <= maximum:
        raise ValueError(f"{name}: expected {minimum} to {maximum}, found {value}")
    return int(value)


def checked_staleness(mode: str, max_staleness: int | None, workers: int, *, given: bool) -> int:
    """Return the bound on the staleness; 0 in sync mode."""
    if mode not in ("sync", "async"):
        raise ValueError(f"mode: expected 'sync' or 'async', found {mode!r}")
    if mode == "sync":
        if max_staleness is not None:
            raise ValueError("max_staleness: sync mode has no stale gradients; leave it out, or give mode='async'")
        return 0
    if max_staleness is None:
        return min(workers, _MAX_STALENESS)
    max_staleness = checked_count("max_staleness", max_staleness, 0, _MAX_STALENESS)
    if given:
        check_busy(workers, max_staleness)
    return max_staleness


def check_busy(workers: int, max_staleness: int) -> None:
    """Raise ValueError if the bound leaves some of the workers without work."""
    if workers > max_staleness + 1:
        raise ValueError(
            f"workers: with max_staleness={max_staleness} at most {max_staleness + 1} gradients are in flight, so "
            f"{workers - max_staleness - 1} of {workers} workers would have nothing to do; expected at most "
            f"{max_staleness + 1} workers, or a larger max_staleness"
        )


def checked_shards(mode: str, shards: int | None, otherwise: int) -> int:
    """Return the number of parts that a batch is cut into: ``shards``, or ``otherwise`` if it is None; always 1 in
    async mode."""
    if mode == "sync":
        return checked_count("shards", otherwise if shards is None else shards, 1, 1024)
    if shards not in (None, 1):
        raise ValueError(
            f"shards: async mode computes each batch's gradient in one piece; leave it out, found {shards}"
        )
    return 1


def check_no_cut(**given: Any) -> None:
    """Raise ValueError for arguments that an iterable of batches determines itself: their size and their order."""
    for name, value in given.items():
        if value not in (None, False):
            raise ValueError(f"{name}: the data is an iterable of batches, which has its own; leave {name} out")


def checked_callbacks(callbacks: Iterable[Callback]) -> list[Callback]:
    """Return the callbacks as a list. Raises TypeError if an item is not a Callback."""
    if isinstance(callbacks, Callback) or not isinstance(callbacks, Iterable):
        raise TypeError(f"callbacks: expected a list of Callback objects, found {_described(callbacks)}")
    callbacks = list(callbacks)
    for index, callback in enumerate(callbacks):
        if not isinstance(callback, Callback):
            raise TypeError(f"callbacks[{index}]: expected a Callback object, found {_described(callback)}")
    return callbacks


def checked_path(name: str, path: str | os.PathLike[str]) -> Path:
    """Return the path. Raises TypeError if it is not one, ValueError if it is empty."""
    if not isinstance(path, str | os.PathLike):
        raise TypeError(f"{name}: expected a path, found {type(path).__name__}")
    if not os.fspath(path):
        raise ValueError(f"{name}: expected a path, found an empty one; '.' is the current directory")
    return Path(path)


def _described(value: Any) -> str:
    return f"the class {value.__name__}; create an object" if isinstance(value, type) else type(value).__name__
