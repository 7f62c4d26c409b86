"""The search for the fastest number of workers, for ``workers="auto"``."""

from __future__ import annotations

import logging
import statistics
from dataclasses import dataclass, field

__all__ = ["Tuner"]

_log = logging.getLogger(__name__)


@dataclass
class Tuner:
    """Finds the fastest number of workers, measured on the training itself. A state machine without a clock.

    It begins with one worker per processor and halves the number, so that it never starts a worker that it does not
    need. Each number is measured in a few windows of time, from the moment when all its workers have computed a
    gradient, and has the speed of the median window. Of numbers that are equally fast within a few percent, the
    smallest is chosen.

    Args:
        most: the number to begin with.

    Example:
        >>> tuner = Tuner(2)
        >>> tuner.workers, tuner.found
        (2, False)
    """

    most: int
    #: median steps per second, by number of workers
    steps_per_s: dict[int, float] = field(default_factory=dict)
    found: bool = False
    _windows: list[float] = field(default_factory=list)
    #: the time and step of the last observation; the seconds and steps of the window, without the time between epochs
    _last: tuple[float, int] | None = None
    _seconds: float = 0.0
    _steps: int = 0
    _all_work: bool = False

    #: the minimum seconds and steps of a window; the number of windows; the relative slowdown that counts as equal
    WINDOW_S = 0.15
    WINDOW_STEPS = 3
    WINDOWS = 3
    TOLERANCE = 0.03

    def __post_init__(self) -> None:
        self.workers: int = self.most
        if self.most == 1:
            self.found = True

    def begin_epoch(self, now_s: float, step: int) -> None:
        """Begin an epoch. The time since the last one does not count."""
        self._last = (now_s, step)

    def observe(self, now_s: float, step: int, commits: list[int]) -> int:
        """Record the steps made until now, and the number of gradients that each worker has committed. Return the
        number of workers to have from now on."""
        last, self._last = self._last, (now_s, step)
        if self.found or last is None:
            return self.workers
        if not self._all_work:
            self._all_work = len(commits) >= self.workers and all(count > 0 for count in commits[: self.workers])
            return self.workers
        self._seconds += now_s - last[0]
        self._steps += step - last[1]
        if self._seconds >= self.WINDOW_S and self._steps >= self.WINDOW_STEPS:
            self._windows.append(self._steps / self._seconds)
            self._seconds, self._steps = 0.0, 0
        if len(self._windows) == self.WINDOWS:
            self.steps_per_s[self.workers] = statistics.median(self._windows)
            self._windows.clear()
            self._all_work = False
            self._next()
        return self.workers

    def _next(self) -> None:
        if self.workers > 1:
            self.workers //= 2
            return
        best = max(self.steps_per_s.values())
        self.workers = min(n for n, rate in self.steps_per_s.items() if rate >= best * (1 - self.TOLERANCE))
        self.found = True
        _log.info("workers='auto': %s", self)

    def __str__(self) -> str:
        """Return a text such as ``2 workers (1: 812, 2: 1,240 steps/s)``."""
        rates = ", ".join(f"{n}: {rate:,.4g}" for n, rate in sorted(self.steps_per_s.items()))
        chosen = f"{self.workers} worker{'s' * (self.workers != 1)}"
        if not rates:
            return chosen if self.found else f"{chosen} (not measured yet)"
        return f"{chosen} ({rates} steps/s){'' if self.found else ', still measuring'}"
