"""The workers of a trainer: one engine, the target number of workers, and one way to run a job on a board.

::

    run(job, board) ──> Engine ──> workers <──> board
                                      ^
    interrupt(job, board) ────────────┘    evaluation, which may interrupt training; then the workers return to it
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from untorn import _core
from untorn.board import Board, BoardSpec
from untorn.engines import Engine, ProcessEngine, SerialEngine
from untorn.errors import CapacityError
from untorn.share.lowlevel import shortage
from untorn.train.models.base import Model
from untorn.train.run.job import Assignment, Job
from untorn.train.run.supervisor import Supervisor, Tasks
from untorn.train.run.tuner import Tuner
from untorn.train.run.worker_count import WorkerCount
from untorn.train.run.worker_process import worker_main
from untorn.train.settings import Settings

__all__ = ["WorkerPool"]


class WorkerPool:
    """The workers, from the first job to close().

    Args:
        settings: the settings of the trainer.
        model: the model, as it is sent to the workers.
        server_works: whether the server computes steps too, so that it needs a processor of its own.

    Attributes:
        count: the target number of workers.
        tuner: measures which number is fastest; None if the number was given.
        lock: held by the thread that uses the workers.
        at_work: whether the workers have a job of training.
        stepping: whether they make steps now.
        supervisor: counts the deaths of workers.
    """

    def __init__(self, settings: Settings, model: Model, *, server_works: bool) -> None:
        self.count = WorkerCount(
            settings.workers, places=settings.places, server_works=server_works, fixed=settings.is_serial
        )
        self.tuner = Tuner(settings.workers) if settings.tuned else None
        self.supervisor = Supervisor(settings.max_restarts)
        self.lock = threading.RLock()
        self.at_work = False
        self.stepping = False
        self._interrupted = False
        self._settings = settings
        self._model = model
        self._engine: Engine
        if settings.is_serial:
            self._engine = SerialEngine(settings.threads_per_worker)
        else:
            self._engine = ProcessEngine(settings.workers, self.count.max, settings.threads_per_worker, worker_main)

    @property
    def is_local(self) -> bool:
        """Whether the workers run in this process, and so can read its memory."""
        return self._engine.is_local

    @property
    def restarts(self) -> int:
        """The number of workers that have been replaced."""
        return self._engine.restarts

    @property
    def pids(self) -> list[int]:
        """The process ids of the workers, by index."""
        return self._engine.pids

    def members(self) -> list[tuple[int, int, str]]:
        """Return index, process id and state of each worker."""
        return self._engine.members()

    def resize(self, workers: int) -> None:
        """Set the target number of workers; a running job adopts it at the next call of follow(). Raises TypeError,
        ValueError or CapacityError."""
        self.count.set(self._settings.check_workers(workers))

    def make_board(self, spec: BoardSpec, *, advice: str) -> Board:
        """Create a board. Raises CapacityError, with this advice, if there is no memory for it."""
        try:
            return Board.create(spec)
        except (_core.StatusError, OSError) as error:
            reason = shortage(error)
            if not reason:
                raise
            raise CapacityError(
                f"no memory for {spec.shards + spec.workers} gradient buffers of {spec.gradient_nbytes:,} bytes "
                f"({reason}); {advice}"
            ) from None

    @contextmanager
    def run(self, job: Job, board: Board, *, at_rest: Callable[[], bool]) -> Iterator[None]:
        """Run a job of training inside the block.

        Args:
            at_rest: returns at the end whether no worker can publish a version any more. Workers that can are ended:
                a step that one has left half done must not be published after the next job has begun.
        """
        if self._interrupted:
            raise RuntimeError("fit: this is a signal handler inside an evaluation by the workers; call it after that")
        self.count.apply(self._engine, board)
        try:
            self._engine.begin(self._assigned(job), board)
            self.at_work = True
            yield
        finally:
            try:
                self._engine.end(abandon=not at_rest())
            finally:
                self.at_work = False

    @contextmanager
    def idle_processes(self) -> Iterator[bool]:
        """Yield whether worker processes may be interrupted inside the block. They may not while they make steps,
        since the newest weights then change, nor by a thread other than the one that trains, nor inside
        interrupt(), where a signal handler may call this."""
        if not self._engine.pids:
            yield False
            return
        taken: list[bool] = []
        try:
            # one call of C code, so that no Ctrl-C can come between taking the lock and recording it
            taken.extend(map(self.lock.acquire, [False]))
            yield taken[0] and not self.stepping and not self._interrupted
        finally:
            if any(taken):
                self.lock.release()

    @contextmanager
    def interrupt(self, job: Job, board: Board) -> Iterator[None]:
        """Have the worker processes run another job inside the block, and then return to the one before."""
        board.set_workers(self.count.wanted, self.count.spin_s)
        try:
            self._interrupted = True
            with self._engine.interrupt(self._assigned(job), board, self.count.spin_s):
                yield
        finally:
            self._interrupted = False

    def _assigned(self, job: Job) -> Assignment:
        return Assignment(job, self._model, self._settings.threads_per_worker)

    def advance(self, board: Board, tasks: Tasks, until: int, check: Callable[[], None]) -> None:
        """Let the workers work for a moment, or until the board has reached the step ``until`` or needs the server.
        Then call ``check``, and raise the error of workers that have failed."""
        deaths = self._engine.advance(until)
        check()
        self.supervisor.check(board, tasks, deaths)

    def begin_epoch(self, step: int) -> None:
        """Tell the tuner that an epoch, or a segment of one, begins at this step."""
        if self.tuner is not None:
            self.tuner.begin_epoch(time.monotonic(), step)

    def follow(self, board: Board, step: int) -> None:
        """Adopt the target number of workers, which the tuner may change first."""
        if self.tuner is not None and not self.tuner.found:
            wanted = self.tuner.observe(time.monotonic(), step, board.commits)
            if wanted != self.count.wanted:
                self.resize(wanted)
        self.count.follow(self._engine, board)

    def close(self) -> None:
        """End the workers."""
        self._engine.close()
