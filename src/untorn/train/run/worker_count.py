"""How many workers there are to be.

The result of sync training does not depend on the number of workers, so it may change at any time: the trainer's
owner (``Trainer.resize``), another process (``untorn join``) and the tuner of ``workers="auto"`` all set the number
that is wanted, and the loop that supervises the workers follows.
"""

from __future__ import annotations

import os

from untorn.board import Board
from untorn.descriptors import keep
from untorn.engines import Engine
from untorn.errors import CapacityError
from untorn.share.lowlevel import shortage

__all__ = ["WorkerCount", "max_workers"]

_SPIN_S = 0.002
_SPIN_CROWDED_S = 0.00002
#: rows of a board, at least; a row that is not used takes 32 KB of address space and no memory
_ROOM = 64
_MAX = 1000


def max_workers(workers: int) -> int:
    """Return how many workers a training can grow to that begins with this many."""
    return min(_MAX, max(_ROOM, 2 * workers))


class _Descriptor:
    """A descriptor that is open for as long as this is referred to: another thread may be about to use it."""

    def __init__(self, fd: int) -> None:
        self.fd = fd

    def __del__(self) -> None:
        os.close(self.fd)


class WorkerCount:
    """The number of workers that is wanted; any thread may set it.

    Args:
        workers: the number at the start.
        places: how many workers the processors have room for.
        server_works: the server computes as well (it applies the gradients), so it needs a processor of its own.
        fixed: the engine has one worker for ever.
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
        """Rows of a channel that all workers read, with room for those that were killed and are not yet reaped."""
        return 4 * self.max + 16

    @property
    def spin_s(self) -> float:
        """How long a worker spins before it sleeps: longer where it takes no processor from others."""
        return _SPIN_S if self.wanted + self._server_works <= self._places else _SPIN_CROWDED_S

    def begin(self, board: Board) -> None:
        """Begin a job on this board, which this process made."""
        self._job = board, _Descriptor(keep(os.dup(board.fd)))
        board.set_workers(self.wanted, self.spin_s)

    def end(self) -> None:
        """End the job."""
        self._job = None

    def follow(self, engine: Engine, board: Board) -> None:
        """Let the engine have the number of workers that is wanted by now."""
        wanted = self.wanted
        if engine.workers != wanted and not self._fixed:
            board.set_workers(wanted, self.spin_s)
            engine.resize(wanted)
