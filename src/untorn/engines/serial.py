"""The serial engine: one worker, in this process. The reference."""

from __future__ import annotations

import os
import time

from untorn import _core
from untorn.board import Board
from untorn.engines.base import Death, Engine, EngineJob, Worker
from untorn.engines.threads import threads_limited

__all__ = ["SerialEngine"]

_POLL_INTERVAL_S = 0.05


class SerialEngine(Engine):
    """Does every task in this process, with the number of BLAS threads that a worker process would have."""

    is_local = True

    def __init__(self, threads_per_worker: int) -> None:
        self.workers = 1
        self.restarts = 0
        self._threads = threads_per_worker
        self._worker: Worker | None = None
        self._board: Board | None = None

    def begin(self, job: EngineJob, board: Board) -> None:
        """See Engine."""
        self._board, self._worker = board, job.worker(0, board)

    def resize(self, workers: int) -> None:
        """See Engine. Does nothing: this engine always has one worker."""

    def members(self) -> list[tuple[int, int, str]]:
        """See Engine."""
        return [(0, os.getpid(), "running")]

    def advance(self, until_step: int) -> list[Death]:
        """See Engine."""
        assert self._board is not None
        assert self._worker is not None
        end = time.monotonic() + _POLL_INTERVAL_S
        until = {_core.RUN_STOP, _core.RUN_NEED_SLOT}
        if self._board.is_async:  # the server applies each gradient before the next is computed
            until |= {_core.RUN_GRADIENT, _core.RUN_IDLE}
        with threads_limited(self._threads):
            while self._board.step < until_step and time.monotonic() < end:
                if self._worker.run_once(0.0) in until:
                    break
        return []

    def end(self, *, abandon: bool = False) -> None:
        """See Engine."""
        self._worker = self._board = None

    def close(self) -> None:
        """See Engine."""
        self.end()
