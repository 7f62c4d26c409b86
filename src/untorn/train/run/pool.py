"""The workers of a trainer, and one way to have them train or evaluate.

::

    train(plan) ──> run(job, board) ──> Engine ──> workers <──> board
                                                      ^
    answers(evaluation) ──────────────────────────────┘    may interrupt training; then the workers return to it

Pool is what a trainer needs of them. WorkerPool has them on this machine: one engine and the target number of workers.
NodePool (train/nodes/pool.py) has a WorkerPool on each node.
"""

from __future__ import annotations

import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import numpy as np

from untorn import _core
from untorn.board import Board, BoardSpec
from untorn.engines import Engine, ProcessEngine, SerialEngine
from untorn.errors import CapacityError
from untorn.share.lowlevel import shortage
from untorn.train.data import SharedData, Source
from untorn.train.models.base import Model, Parts
from untorn.train.optim.base import Optimizer
from untorn.train.run.chunks import Answer, Evaluation
from untorn.train.run.evaluation_worker import EvaluationJob
from untorn.train.run.job import Assignment, Job, PickledModel
from untorn.train.run.plan import Plan
from untorn.train.run.server_steps import Steppers
from untorn.train.run.steps import StepStrategy, strategy_of
from untorn.train.run.supervisor import Supervisor, Tasks
from untorn.train.run.tasks import GradientTasks
from untorn.train.run.tuner import Tuner
from untorn.train.run.weights import Weights
from untorn.train.run.worker_count import WorkerCount
from untorn.train.run.worker_process import worker_main
from untorn.train.settings import Settings

__all__ = ["Pool", "WorkerPool"]

_SLOTS_PER_WORKER = 2


class Pool(ABC):
    """The workers of a trainer, from the first job to close(). Abstract.

    Args:
        settings: the settings of the trainer.
        server_works: whether the server computes steps too, so that it needs a processor of its own.

    Attributes:
        count: the target number of workers; on nodes, of each of them.
        tuner: measures which number is fastest; None if the number was given.
        shards: the number of shards.
        lock: held by the thread that uses the workers.
        at_work: whether the workers have a job of training.
        stepping: whether they make steps now.
    """

    def __init__(self, settings: Settings, *, server_works: bool) -> None:
        self.count = WorkerCount(
            settings.workers, places=settings.places, server_works=server_works, fixed=settings.is_serial
        )
        self.tuner = Tuner(settings.workers) if settings.tuned else None
        self.shards = settings.shards
        self.lock = threading.RLock()
        self.at_work = False
        self.stepping = False

    @property
    @abstractmethod
    def is_local(self) -> bool:
        """Whether the workers run in this process, and so can read its memory."""

    #: whether all batches of a job of single steps must have the same number of examples
    needs_equal_batches = False

    @property
    @abstractmethod
    def restarts(self) -> int:
        """The number of workers that have been replaced."""

    @property
    @abstractmethod
    def pids(self) -> list[int]:
        """The process ids of the workers on this machine, by index."""

    @abstractmethod
    def members(self) -> list[dict[str, Any]]:
        """Return the workers as a job's status lists them: index, pid, state and gradients."""

    def nodes(self) -> list[dict[str, Any]]:
        """Return the nodes as a job's status lists them; none if all workers are on this machine."""
        return []

    @abstractmethod
    def resize(self, workers: int) -> None:
        """Set the target number of workers; a running job adopts it at the next call of follow(). Raises TypeError,
        ValueError or CapacityError."""

    @property
    def wanted_nodes(self) -> int:
        """The target number of nodes; 0 if all workers are on this machine."""
        return 0

    def resize_nodes(self, nodes: int) -> None:
        """Set the target number of nodes. Raises ValueError or CapacityError."""
        raise ValueError(f"nodes: this trainer runs on this machine alone, found {nodes}; make it with engine='ray'")

    def first_weights(self, parts: Parts, optimizer: Optimizer, name: str | None) -> Weights:
        """Publish the first version of the weights, under this name. See Weights.begin."""
        return Weights.begin(parts, optimizer, name, shards=self.shards)

    @abstractmethod
    def train(
        self, plan: Plan, source: Source, weights: Weights, optimizer: Optimizer
    ) -> AbstractContextManager[StepStrategy]:
        """Run a job of training inside the block, which gets the strategy of its steps."""

    @abstractmethod
    def idle_processes(self) -> AbstractContextManager[bool]:
        """Yield whether worker processes may be interrupted inside the block."""

    @abstractmethod
    def answers(
        self,
        evaluation: Evaluation,
        weights: Weights,
        data: SharedData,
        chunks: Sequence[int],
        while_waiting: Callable[[], None],
    ) -> Iterator[tuple[int, Answer]]:
        """Have idle worker processes evaluate these chunks with the newest weights. Yields each chunk with its answer,
        which is valid until the next one, in any order; chunks may be left over. Calls ``while_waiting`` repeatedly."""

    @abstractmethod
    def advance(self, board: Board, tasks: Tasks, until: int, check: Callable[[], None]) -> None:
        """Let the workers work for a moment, or until the board has reached the step ``until`` or needs the server.
        Then call ``check``, and raise the error of workers that have failed."""

    @abstractmethod
    def begin_epoch(self, step: int) -> None:
        """Tell the tuner that an epoch, or a segment of one, begins at this step."""

    @property
    def pace(self) -> int | None:
        """The number of steps after which the next call of follow() is due; None for whenever it comes."""
        return None

    @abstractmethod
    def follow(self, board: Board, step: int) -> None:
        """Adopt the target number of workers, which the tuner may change first."""

    @abstractmethod
    def close(self) -> None:
        """End the workers."""

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


class WorkerPool(Pool):
    """The workers of one machine. See Pool.

    Args:
        settings: the settings of the trainer.
        model: the model, as it is sent to the workers.
        server_works: whether the server computes steps too, so that it needs a processor of its own.

    Attributes:
        supervisor: counts the deaths of workers.
        steppers: keeps the optimizer at work from job to job, if this process makes the steps.
    """

    def __init__(self, settings: Settings, model: Model | PickledModel, *, server_works: bool) -> None:
        super().__init__(settings, server_works=server_works)
        self.supervisor = Supervisor(settings.max_restarts)
        self.steppers = Steppers()
        self._interrupted = False
        self._board: Board | None = None
        self._settings = settings
        self._model = model
        self._engine: Engine
        if settings.is_serial:
            self._engine = SerialEngine(settings.threads_per_worker)
        else:
            self._engine = ProcessEngine(
                settings.workers,
                self.count.max,
                settings.threads_per_worker,
                worker_main,
                start_method=settings.start_method,
            )

    @property
    def is_local(self) -> bool:
        """See Pool."""
        return self._engine.is_local

    @property
    def restarts(self) -> int:
        """See Pool."""
        return self._engine.restarts

    @property
    def pids(self) -> list[int]:
        """See Pool."""
        return self._engine.pids

    def members(self) -> list[dict[str, Any]]:
        """See Pool."""
        commits = self._board.commits if self._board is not None else []
        return [
            {"index": index, "pid": pid, "state": state, "gradients": commits[index] if index < len(commits) else 0}
            for index, pid, state in self._engine.members()
        ]

    def resize(self, workers: int) -> None:
        """See Pool."""
        self.count.set(self._settings.check_workers(workers))

    @contextmanager
    def train(self, plan: Plan, source: Source, weights: Weights, optimizer: Optimizer) -> Iterator[StepStrategy]:
        """See Pool."""
        stepper = self.steppers.get(optimizer, weights, plan.settings)
        advice = f"use fewer {'workers' if plan.settings.is_async else 'shards or workers'}"
        with self.make_board(plan.board_spec(weights, self.count), advice=advice) as board, self.count.job(board):
            tasks = GradientTasks(board, plan.min_examples)
            strategy = strategy_of(board, tasks, weights, plan.settings.max_staleness, stepper)
            with source.shared(max_readers=self.count.max_readers, local=self.is_local) as data:
                job = plan.gradient_job(weights, data)
                with self.run(job, board, at_rest=lambda: strategy.at_rest):
                    yield strategy

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
            self._board = board
            self._engine.begin(self._assigned(job), board)
            self.at_work = True
            yield
        finally:
            try:
                self._engine.end(abandon=not at_rest())
            finally:
                self.at_work = False
                self._board = None

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

    def answers(
        self,
        evaluation: Evaluation,
        weights: Weights,
        data: SharedData,
        chunks: Sequence[int],
        while_waiting: Callable[[], None],
    ) -> Iterator[tuple[int, Answer]]:
        """See Pool."""
        spec = BoardSpec(
            shards=min(len(chunks), _SLOTS_PER_WORKER * self.count.wanted),
            max_workers=self.count.max,
            workers=self.count.wanted,
            is_async=True,
            steps=1,
            examples=1,
            batch_size=1,
            gradient_nbytes=evaluation.nbytes,
        )
        job = EvaluationJob(weights.subscriber().address, data, evaluation)
        with self.make_board(spec, advice="use a smaller batch_size") as board, self._interrupt(job, board):
            rest = iter(chunks)
            in_flight = dict(zip(range(board.shards), rest, strict=False))
            for slot, chunk in in_flight.items():
                board.inflight_open(slot, chunk)
            while in_flight:
                self.advance(board, evaluation.chunks, 0, while_waiting)
                for slot, chunk in list(in_flight.items()):
                    found = board.in_flight(slot)
                    if found.state != _core.TASK_DONE:
                        continue
                    yield chunk, _answer(board, found.buffer_at, evaluation)
                    board.inflight_empty(slot)
                    del in_flight[slot]
                    following = next(rest, None)
                    if following is not None:
                        in_flight[slot] = following
                        board.inflight_open(slot, following)

    @contextmanager
    def _interrupt(self, job: Job, board: Board) -> Iterator[None]:
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
        """See Pool."""
        deaths = self._engine.advance(until)
        check()
        self.supervisor.check(board, tasks, deaths)

    def begin_epoch(self, step: int) -> None:
        """See Pool."""
        if self.tuner is not None:
            self.tuner.begin_epoch(time.monotonic(), step)

    @property
    def pace(self) -> int | None:
        """See Pool."""
        return None if self.tuner is None else self.tuner.pace

    def follow(self, board: Board, step: int) -> None:
        """See Pool."""
        if self.tuner is not None and not self.tuner.found:
            wanted = self.tuner.observe(time.monotonic(), step, board.commits)
            if wanted != self.count.wanted:
                self.resize(wanted)
        self.count.follow(self._engine, board)

    def close(self) -> None:
        """See Pool."""
        self._engine.close()
        self.steppers.close()


def _answer(board: Board, buffer_at: int, evaluation: Evaluation) -> Answer:
    """Return views of the answer in this buffer."""
    payload: Any = b""
    if evaluation.outputs:
        payload = board.payload_array(buffer_at, np.uint8, (evaluation.nbytes,), 0)
    return Answer(board.metric_names, board.buffer(buffer_at).measured, payload)
