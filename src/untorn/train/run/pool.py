"""The workers of a trainer: one engine, the number of workers that is wanted, and one way to give them a job.

A job runs at a board. A job of evaluation may interrupt one of training: the workers do it and come back.
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
        settings: of the trainer.
        model: as it is sent to the workers.
        server_works: the server computes steps too, so it needs a processor of its own.

    Attributes:
        count: the number of workers that is wanted.
        tuner: measures which number is fastest; None for a number that was given.
        lock: held by the thread that has the workers do something.
        at_work: whether the workers are at a job of training.
        stepping: whether they make steps.
        supervisor: counts the workers that die.
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
        self._settings = settings
        self._model = model
        self._engine: Engine
        if settings.is_serial:
            self._engine = SerialEngine(settings.threads_per_worker)
        else:
            self._engine = ProcessEngine(settings.workers, self.count.max, settings.threads_per_worker, worker_main)

    @property
    def is_local(self) -> bool:
        """Whether the workers are in this process, so that they can read its memory."""
        return self._engine.is_local

    @property
    def restarts(self) -> int:
        """How many workers have been replaced."""
        return self._engine.restarts

    @property
    def pids(self) -> list[int]:
        """The process ids of the workers, by index."""
        return self._engine.pids

    def members(self) -> list[tuple[int, int, str]]:
        """Return index, process id and state of each worker."""
        return self._engine.members()

    def resize(self, workers: int) -> None:
        """Set the number of workers that is wanted; the job that runs follows at its next look. Raises TypeError,
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
        """Have the workers do a job of training, inside the block.

        Args:
            at_rest: says at the end whether no worker can publish any more. Workers that can are ended: the step that
                one has left in the middle must not appear when others have begun the next job.
        """
        self.count.begin(board)
        try:
            self._engine.resize(self.count.wanted)
            try:
                self._engine.begin(self._assigned(job), board)
                self.at_work = True
                yield
            finally:
                self._engine.end(abandon=not at_rest())
                self.at_work = False
        finally:
            self.count.end()

    @contextmanager
    def idle_processes(self) -> Iterator[bool]:
        """Tell whether there are worker processes that may be interrupted inside the block: not while they make steps,
        for then each of them has other weights as the newest, and not for a thread beside the one that trains."""
        if not self._engine.pids:
            yield False
            return
        taken: list[bool] = []
        try:
            # in one call, so that no Ctrl-C can come after the lock is taken and before that is noted
            taken.extend(map(self.lock.acquire, [False]))
            yield taken[0] and not self.stepping
        finally:
            if any(taken):
                self.lock.release()

    @contextmanager
    def interrupt(self, job: Job, board: Board) -> Iterator[None]:
        """Have the worker processes do another job, inside the block, and then go back to what they did."""
        board.set_workers(self.count.wanted, self.count.spin_s)
        with self._engine.interrupt(self._assigned(job), board, self.count.spin_s):
            yield

    def _assigned(self, job: Job) -> Assignment:
        return Assignment(job, self._model, self._settings.threads_per_worker)

    def advance(self, board: Board, tasks: Tasks, until: int, check: Callable[[], None]) -> None:
        """Let the workers work for a moment, or until the board has made the steps before ``until`` or wants the
        server. Then call ``check``, and raise the error for workers that have failed."""
        deaths = self._engine.advance(until)
        check()
        self.supervisor.check(board, tasks, deaths)

    def begin_epoch(self, step: int) -> None:
        """Begin the steps of an epoch, or of a part of it."""
        if self.tuner is not None:
            self.tuner.begin_epoch(time.monotonic(), step)

    def follow(self, board: Board, step: int) -> None:
        """Have the number of workers that is wanted, after the tuner has looked at how far training is."""
        if self.tuner is not None and not self.tuner.found:
            wanted = self.tuner.saw(time.monotonic(), step, board.commits)
            if wanted != self.count.wanted:
                self.resize(wanted)
        self.count.follow(self._engine, board)

    def close(self) -> None:
        """End the workers."""
        self._engine.close()
