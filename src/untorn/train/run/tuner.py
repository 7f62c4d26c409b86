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

    It begins with one worker per processor and halves the number. Each number is measured in three windows, from the
    moment when all its workers have computed a gradient, and has the speed of the median window. The windows are short
    at first: all together have fewer than fifty steps on up to 32 processors. Numbers whose windows are as fast as
    those of the fastest are measured again, in longer windows. Of numbers that are equally fast within a few percent,
    the smallest is chosen.

    Args:
        most: the number to begin with.

    Example:
        >>> tuner = Tuner(2)
        >>> tuner.workers, tuner.found
        (2, False)
    """

    most: int
    #: the number to have now
    workers: int = field(init=False)
    #: median steps per second, by number of workers
    steps_per_s: dict[int, float] = field(default_factory=dict)
    found: bool = False
    _windows: list[float] = field(default_factory=list)
    #: the slowest and the fastest window, by number of workers
    _ranges: dict[int, tuple[float, float]] = field(default_factory=dict)
    #: the numbers that are still to be measured after the current one
    _rest: list[int] = field(default_factory=list)
    _again: bool = False
    #: the time and step of the last observation; the seconds and steps of the window, without the time between epochs
    _last: tuple[float, int] | None = None
    _seconds: float = 0.0
    _steps: int = 0
    _all_work: bool = False

    #: the seconds of a long window, and its minimum steps; the number of windows; the steps of all short ones, with
    #: those of each number until all its workers work; the relative slowdown that counts as equal
    WINDOW_S = 0.15
    WINDOW_STEPS = 3
    WINDOWS = 3
    SHORT_STEPS = 48
    BEGIN_STEPS = 2
    TOLERANCE = 0.03

    def __post_init__(self) -> None:
        numbers = [self.most >> halvings for halvings in range(self.most.bit_length())]
        self.workers, *self._rest = numbers
        for_each = self.SHORT_STEPS // len(numbers) - self.BEGIN_STEPS
        #: the steps of a short window
        self._short = min(7, max(2, for_each // self.WINDOWS))
        self.found = self.most == 1

    @property
    def pace(self) -> int | None:
        """The number of steps after which the next observation is due; None for whenever it comes."""
        if self.found or self._again:
            return None
        return self._short - self._steps if self._all_work else self.BEGIN_STEPS

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
        if self._window_ends():
            self._windows.append(self._steps / self._seconds)
            self._seconds, self._steps = 0.0, 0
        if len(self._windows) == self.WINDOWS:
            self.steps_per_s[self.workers] = statistics.median(self._windows)
            self._ranges[self.workers] = (min(self._windows), max(self._windows))
            self._windows.clear()
            self._all_work = False
            self._next()
        return self.workers

    def _window_ends(self) -> bool:
        if not self._again and self._steps >= self._short and self._seconds > 0:
            return True
        return self._seconds >= self.WINDOW_S and self._steps >= self.WINDOW_STEPS

    def _next(self) -> None:
        if not self._rest and not self._again:
            self._again = True
            as_fast = self._as_fast_as_any()
            self._rest = as_fast if len(as_fast) > 1 else []
        if self._rest:
            self.workers = self._rest.pop(0)
            return
        best = max(self.steps_per_s.values())
        self.workers = min(n for n, rate in self.steps_per_s.items() if rate >= best * (1 - self.TOLERANCE))
        self.found = True
        _log.info("workers='auto': %s", self)

    def _as_fast_as_any(self) -> list[int]:
        """Return the numbers that had a window as fast as the slowest one of the fastest number."""
        fastest = max(self.steps_per_s, key=self.steps_per_s.__getitem__)
        least = self._ranges[fastest][0] * (1 - self.TOLERANCE)
        return [n for n, (_, most) in self._ranges.items() if most >= least]

    def __str__(self) -> str:
        """Return a text such as ``2 workers (1: 812, 2: 1,240 steps/s)``."""
        rates = ", ".join(f"{n}: {rate:,.4g}" for n, rate in sorted(self.steps_per_s.items()))
        chosen = f"{self.workers} worker{'s' * (self.workers != 1)}"
        if not rates:
            return chosen if self.found else f"{chosen} (not measured yet)"
        return f"{chosen} ({rates} steps/s){'' if self.found else ', still measuring'}"
