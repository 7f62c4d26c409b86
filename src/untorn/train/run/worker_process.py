"""The main loop of a worker process, which takes part in the jobs that the server publishes, one after another.

::

    channel of jobs ──> worker_main ──> WorkerProcess.take_part ──> run_once, run_once, ... until the job ends
    no server: end                      no job: clear               surplus worker: end
"""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import time
import traceback
from typing import Any

from untorn import _core
from untorn.board import NO_SHARD, Board
from untorn.engines import Worker
from untorn.engines.starting import MainProgramError
from untorn.engines.threads import use_threads
from untorn.engines.worker_logs import set_levels
from untorn.errors import BrokenChannelError, CapacityError, UntornError
from untorn.share import Subscriber
from untorn.train.models.base import Model, Replica

__all__ = ["WorkerProcess", "worker_main"]

#: how long a worker waits for work before it checks that its server is alive
_WAIT_S = 0.1


def worker_main(index: int, jobs: Subscriber, problem: Exception | None) -> None:
    """Run a worker process: take part in every job that the server publishes, until the server ends.

    Args:
        index: the index of the worker.
        jobs: the channel of jobs, see job.py.
        problem: an error from the start of the process, which fails every job; or None.
    """
    process, done = WorkerProcess(index, jobs, problem), 0
    own_pid = os.getpid()
    while os.getpid() == own_pid:  # a copy that the model has forked, and that returns to here, must stop
        try:
            snapshot = jobs.snapshot(newer_than=done)
        except BrokenChannelError:
            return  # the server has closed the channel or has died, as the kernel reports
        done = snapshot.version
        payload = snapshot.value
        snapshot.close()
        if payload is None:
            process.clear()
        elif process.take_part(done, payload) == _core.RUN_LEAVE and jobs.version == done:
            return  # this worker is surplus, and no other job interrupts this one


class WorkerProcess:
    """The state of a worker process: its replica of the model, and its jobs.

    At most two jobs are open: one, and another that interrupts it.
    """

    def __init__(self, index: int, jobs: Subscriber, problem: Exception | None) -> None:
        self._index = index
        self._jobs = jobs
        self._problem = problem
        self._workers: dict[int, Worker] = {}
        self._model: tuple[bytes, int, Replica] | None = None

    def clear(self) -> None:
        """Release the memory of all jobs."""
        self._workers.clear()

    def take_part(self, version: int, payload: dict[str, Any]) -> int:
        """Take part in the job of this version of the channel until it ends. Return the kind of the last task."""
        set_levels(json.loads(payload["levels"]))
        number = payload["number"]
        known = {key: self._workers[key] for key in (number, payload["within"]) if key in self._workers}
        self._workers = known
        if number not in known:
            worker = self._begin(version, payload)
            if worker is None:
                return _core.RUN_STOP
            known[number] = worker
        return _run(known[number], self._jobs, version)

    def _begin(self, version: int, payload: dict[str, Any]) -> Worker | None:
        """Return the worker for this job; None if the job is over, or cannot begin and the server was told."""
        try:
            board = Board.open(payload["board"])
        except (OSError, _core.StatusError) as error:
            if self._jobs.version != version or not self._jobs.publisher_alive():
                return None  # the job ended before this worker opened its board
            raise CapacityError(
                f"worker {self._index} cannot map the board of its job, {payload['board']}: {error}; look at its "
                "limits (ulimit -v, vm.max_map_count), and at whether it may read /proc"
            ) from error
        if board.job != payload["number"]:
            return None  # likewise: the path names a descriptor, and the next job's board has its number now
        try:
            if self._problem is not None:
                raise self._problem
            model = self._replica(payload["model"], payload["threads"])
            worker: Worker = pickle.loads(payload["job"]).begin(self._index, board, model)
            return worker
        except Exception as error:
            over = isinstance(error, UntornError | OSError) and self._jobs.version != version
            if board.stopped or not over:
                board.report_failure(self._index, board.step, NO_SHARD, error, _text_of(error))
            return None

    def _replica(self, model: bytes, threads: int) -> Replica:
        """Return a replica of this model: if it is the model of the job before, the same replica, already compiled."""
        if self._model is None or self._model[:2] != (model, threads):
            given: Model = pickle.loads(model)
            use_threads(threads)
            self._model = (model, threads, given.replica(threads))
        return self._model[2]


def _text_of(error: Exception) -> str:
    """Return the traceback to report: if the main program failed, that of its failure alone."""
    found = error.__cause__ if isinstance(error, MainProgramError) and error.__cause__ is not None else error
    return "".join(traceback.format_exception(found))


def _run(worker: Worker, jobs: Subscriber, version: int) -> int:
    looked = time.monotonic()
    with contextlib.suppress(BrokenChannelError):
        while (kind := worker.run_once(_WAIT_S)) not in (_core.RUN_STOP, _core.RUN_LEAVE):
            now = time.monotonic()
            if now - looked < _WAIT_S:
                continue
            looked = now
            if jobs.version != version or not jobs.publisher_alive():
                return _core.RUN_STOP
        return kind
    return _core.RUN_STOP
