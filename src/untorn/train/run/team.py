"""How many workers there are, how many there are to be, and which number is fastest.

The result of sync training does not depend on the number of workers, so it may change at any time: the trainer's
owner (``Trainer.resize``), another process (``untorn join``) and the tuner of ``workers="auto"`` all set the number
that is wanted, and the loop that supervises the workers follows.
"""

from __future__ import annotations

import logging
import os
import statistics
from dataclasses import dataclass, field

from untorn.board import Board
from untorn.descriptors import keep
from untorn.engines import Engine
from untorn.errors import CapacityError
from untorn.share.lowlevel import shortage

__all__ = ["Team", "Tuner", "most_workers"]

_log = logging.getLogger(__name__)
_SPIN_S = 0.002
_SPIN_CROWDED_S = 0.00002
#: rows of a board, at least; a row that nobody uses takes 32 KB of address space and no memory
_ROOM = 64
_MOST = 1000


def most_workers(workers: int) -> int:
    """How many workers a training that begins with so many can grow to."""
    return min(_MOST, max(_ROOM, 2 * workers))


class _Descriptor:
    """A descriptor that is open for as long as anybody refers to this: another thread may be about to use it."""

    def __init__(self, fd: int) -> None:
        self.fd = fd

    def __del__(self) -> None:
        os.close(self.fd)


class Team:
    """The workers of a trainer, as a number that anybody may change.

    Args:
        workers: at first.
        cpus: processors there are.
        server_works: the server computes as well (it applies the gradients), so it needs a processor of its own.
        can_change: False for an engine that has one worker for ever.
    """

    def __init__(self, workers: int, *, cpus: int, server_works: bool, can_change: bool) -> None:
        self.wanted = workers
        self.most = most_workers(workers) if can_change else workers
        self._cpus = cpus
        self._server_works = server_works
        self._can_change = can_change
        self._job: tuple[Board, _Descriptor] | None = None

    def set(self, workers: int) -> None:
        """Set the number of workers. Thread-safe, and safe in signal handlers: there is no lock. Raises ValueError or
        CapacityError; then nothing changes."""
        if not self._can_change and workers != self.wanted:
            raise ValueError(f"workers: engine='serial' has one worker, this process; found {workers}")
        if not 1 <= workers <= self.most:
            raise ValueError(
                f"workers: expected 1 to {self.most}, found {workers}; a trainer that is made with more workers has "
                "room for more"
            )
        job = self._job
        if job is not None:
            board, file = job
            nbytes = board.nbytes_used(workers)
            try:
                os.posix_fallocate(file.fd, 0, nbytes)
            except OSError as error:
                if not shortage(error):
                    raise
                raise CapacityError(
                    f"no memory for the gradient buffers of {workers} workers, {nbytes:,} bytes in all "
                    f"({error.strerror}); there are {self.wanted} workers"
                ) from None
        self.wanted = workers

    @property
    def max_readers(self) -> int:
        """Rows of a channel that all workers read, with room for those that were killed and not yet buried."""
        return 4 * self.most + 16

    @property
    def spin_s(self) -> float:
        """How long a worker spins before it sleeps: longer where it takes no processor from others."""
        return _SPIN_S if self.wanted + self._server_works <= self._cpus else _SPIN_CROWDED_S

    def begin(self, board: Board) -> None:
        """A job begins on this board."""
        self._job = board, _Descriptor(keep(os.dup(board.fd)))
        board.set_workers(self.wanted, self.spin_s)

    def end(self) -> None:
        """The job is over."""
        self._job = None

    def follow(self, engine: Engine, board: Board) -> None:
        """Let the engine have as many workers as are wanted."""
        wanted = self.wanted
        if engine.workers != wanted and self._can_change:
            board.set_workers(wanted, self.spin_s)
            engine.resize(wanted)


@dataclass
class Tuner:
    """Finds the fastest number of workers, on the steps of the training itself: a state machine without a clock.

    It begins with as many as there are processors and halves: what is not needed leaves, and nobody is started in vain.
    Each number gets a few windows of time, counted from when all its workers have computed something; the median
    window counts. Of numbers that are equally fast within a few percent the smallest is taken.

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
    #: when it looked last, and what the window has so far; without the time between epochs
    _last: tuple[float, int] | None = None
    _seconds: float = 0.0
    _steps: int = 0
    _all_work: bool = False

    #: what a window has at least, how many there are, and how much slower counts as equally fast
    WINDOW_S = 0.15
    WINDOW_STEPS = 3
    WINDOWS = 3
    TOLERANCE = 0.03

    def __post_init__(self) -> None:
        self.workers: int = self.most
        if self.most == 1:
            self.found = True

    def begin_epoch(self, now_s: float, step: int) -> None:
        """The time before this is nobody's."""
        self._last = (now_s, step)

    def saw(self, now_s: float, step: int, commits: list[int]) -> int:
        """At this time so many steps were done, and each worker had committed so many gradients since it is one; how
        many workers there are to be."""
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
        """``2 workers (1: 812, 2: 1,240 steps/s)``."""
        rates = ", ".join(f"{n}: {rate:,.4g}" for n, rate in sorted(self.steps_per_s.items()))
        chosen = f"{self.workers} worker{'s' * (self.workers != 1)}"
        if not rates:
            return chosen if self.found else f"{chosen} (not measured yet)"
        return f"{chosen} ({rates} steps/s){'' if self.found else ', still measuring'}"
