"""The target number of workers, which may change while training runs.

The result of sync training does not depend on the number of workers, so it may change at any time::

    Trainer.resize ────────────────┐
    untorn join, untorn leave ─────┼──> WorkerCount.set ──> wanted ──> WorkerPool.follow ──> engine and board
    tuner of workers="auto" ───────┘
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

from untorn.board import Board
from untorn.descriptors import keep
from untorn.engines import Engine
from untorn.errors import CapacityError
from untorn.share.lowlevel import shortage

__all__ = ["WorkerCount", "max_workers"]

_SPIN_S = 0.002
_SPIN_CROWDED_S = 0.00002
#: the minimum number of rows of a board; an unused row takes 32 KB of address space and no memory
_ROOM = 64
_MAX = 1000


def max_workers(workers: int) -> int:
    """Return the maximum number of workers of a training that begins with ``workers``."""
    return min(_MAX, max(_ROOM, 2 * workers))


class _Descriptor:
    """A descriptor that stays open while this object is referenced, since another thread may be about to use it."""

    def __init__(self, fd: int) -> None:
        self.fd = fd

    def __del__(self) -> None:
        os.close(self.fd)


class WorkerCount:
    """The target number of workers, which any thread may set.

    Args:
        workers: the initial number.
        places: the number of workers that the processors have room for.
        server_works: whether the server computes too, so that it needs a processor of its own.
        fixed: whether the number of the engine's workers cannot change.
    """

    def __init__(self, workers: int, *, places: int, server_works: bool, fixed: bool) -> None:
        self.wanted = workers
        self.max = workers if fixed else max_workers(workers)
        self._places = places
        self._server_works = server_works
        self._fixed = fixed
        self._job: tuple[Board, _Descriptor] | None = None

    def set(self, workers: int) -> None:
        """Set the number of workers. Thread-safe, and safe in signal handlers: there is no lock. Raises ValueError or
        CapacityError; then nothing changes."""
        if self._fixed and workers != self.wanted:
            raise ValueError(f"workers: engine='serial' has one worker, this process; found {workers}")
        if not 1 <= workers <= self.max:
            raise ValueError(
                f"workers: expected 1 to {self.max}, found {workers}; a trainer that is made with more workers has "
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
        """The reader rows of a channel that all workers read, with room for dead workers that are not yet reaped."""
        return 4 * self.max + 16

    @property
    def spin_s(self) -> float:
        """The seconds that a worker spins before it sleeps: more if it does not take a processor from others."""
        return _SPIN_S if self.wanted + self._server_works <= self._places else _SPIN_CROWDED_S

    @contextmanager
    def job(self, board: Board) -> Iterator[None]:
        """Make set() allocate memory on this board inside the block. This process has created the board."""
        self._job = board, _Descriptor(keep(os.dup(board.fd)))
        try:
            yield
        finally:
            self._job = None

    def apply(self, engine: Engine, board: Board) -> None:
        """Set the board's and the engine's number of workers to the target number."""
        wanted = self.wanted  # read once: another thread may set it at any time
        board.set_workers(wanted, self.spin_s)
        engine.resize(wanted)

    def follow(self, engine: Engine, board: Board) -> None:
        """Apply the target number if the engine has another one."""
        if engine.workers != self.wanted and not self._fixed:
            self.apply(engine, board)
