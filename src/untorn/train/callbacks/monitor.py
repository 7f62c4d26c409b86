"""The metric that a callback watches, and the rule by which it improves."""

from __future__ import annotations

import math
from typing import Literal

from untorn.train.callbacks.base import Logs

__all__ = ["Mode", "Monitor", "check_count"]

Mode = Literal["auto", "min", "max"]

# Metrics of which more is better. Of all others (losses, errors, perplexities) less is.
_MORE_IS_BETTER = ("acc", "auc", "precision", "recall", "f1", "score", "r2", "iou", "bleu")


class Monitor:
    """A metric in the logs, and whether less or more of it is better.

    Args:
        owner: the name of the callback's class, for errors.
        name: the metric's name in the logs, such as ``val_loss``.
        mode: "min", "max", or "auto" to decide by the name.
        min_delta: the smallest change that counts as an improvement.

    Raises:
        TypeError, ValueError: an argument is wrong.
    """

    def __init__(self, owner: str, name: str, *, mode: Mode, min_delta: float = 0.0) -> None:
        if not isinstance(name, str):
            raise TypeError(f"{owner}: monitor={name!r}: expected a metric's name, found {type(name).__name__}")
        if isinstance(min_delta, bool) or not isinstance(min_delta, int | float):
            raise TypeError(f"{owner}: min_delta={min_delta!r}: expected a number, found {type(min_delta).__name__}")
        if mode not in ("auto", "min", "max"):
            raise ValueError(f"{owner}: mode={mode!r}: expected 'auto', 'min' or 'max'")
        if not 0 <= min_delta < math.inf:
            raise ValueError(f"{owner}: min_delta={min_delta!r}: expected a finite number of at least 0")
        self.name = name
        self.min_delta = min_delta
        self.mode: Literal["min", "max"] = _mode_of(name) if mode == "auto" else mode
        self._owner = owner

    def value(self, logs: Logs) -> float:
        """Return the metric's value in these logs. Raises ValueError if it is not among them."""
        if self.name not in logs:
            hint = "; give fit validation_data" if self.name.startswith("val_") else ""
            raise ValueError(
                f"{self._owner}(monitor={self.name!r}): the logs have no such metric; expected one of "
                f"{', '.join(logs) or 'none'}{hint}"
            )
        return float(logs[self.name])

    def is_better(self, value: float, than: float) -> bool:
        """Return whether ``value`` is better by more than min_delta. NaN is worse than every number."""
        if math.isnan(value):
            return False
        if math.isnan(than):
            return True
        gain = than - value if self.mode == "min" else value - than
        return gain > self.min_delta


def _mode_of(name: str) -> Literal["min", "max"]:
    name = name.removeprefix("val_").lower()
    return "max" if any(part.startswith(_MORE_IS_BETTER) for part in name.split("_")) else "min"


def check_count(owner: str, name: str, value: int, *, least: int) -> int:
    """Return the int ``value``. Raises TypeError or ValueError if it is none, or less than ``least``."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{owner}: {name}={value!r}: expected an int, found {type(value).__name__}")
    if value < least:
        raise ValueError(f"{owner}: {name}={value!r}: expected at least {least}")
    return value
