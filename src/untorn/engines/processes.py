"""The processes engine: worker processes, started, supervised and replaced.

::

    server ── jobs (an anonymous channel) ──> worker 0, worker 1, ...
       │                                          │  claim tasks on the board, in shared memory
       └── waits at the board's bell  <───────────┘

No pipe and no lock lies between them that a killed worker could leave locked. The server learns of a death from the
kernel, even if other code reaps the process (child.py), settles the worker's claims on the board, and starts a
replacement. Workers learn of the server's death from the kernel too: the lock of the jobs channel is released.

A forked copy of the server owns no workers, so the server's workers survive whatever the copy cleans up when it exits.
"""

from __future__ import annotations

import logging
import os
import signal
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from untorn.board import Board
from untorn.engines.base import Death, Engine, EngineJob
from untorn.engines.child import WorkerHandle
from untorn.engines.fork_servers import StartMethod, hold_fork_servers, launch_worker, release_fork_servers
from untorn.engines.memory import OutOfMemory
from untorn.engines.module_names import modules_named
from untorn.engines.worker_logs import LogReceiver
from untorn.errors import ChannelNotFoundError
from untorn.share import Publisher, Subscriber, publish
from untorn.share.lowlevel import Address

__all__ = ["ProcessEngine", "worker_variables"]

_log = logging.getLogger(__name__)
_POLL_INTERVAL_S = 0.01
_JOIN_S = 5.0
#: how long no step ends before the server looks for stopped workers
_LOOK_FOR_STOPPED_S = 0.1
_THREAD_VARIABLES = (
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "BLIS_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
    "NUMEXPR_NUM_THREADS",
)


# A gradient allocates the same arrays in every step. By default, malloc returns them to the kernel each time and maps
# them again, page by page: a fault for every 4 KB, a fifth of a step. So malloc maps no array on its own (the threshold
# for that is limited to 32 MB), and a worker keeps up to 1 GB from step to step.
_MALLOC_VARIABLES = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(1 << 30)}


#: ``main(index, jobs, problem)`` runs a worker; it reports the problem, if any, when the first job comes
WorkerMain = Callable[[int, Subscriber, Exception | None], None]


class ProcessEngine(Engine):
    """``workers`` processes, each running ``main(index, jobs, problem)`` with its own number of BLAS threads.

    Args:
        max_workers: the largest number that resize() may ask for.
        start_method: how worker processes are started. With more than one thread per worker they are spawned, since
            BLAS libraries start their threads when they are loaded.
    """

    is_local = False

    def __init__(
        self,
        workers: int,
        max_workers: int,
        threads_per_worker: int,
        main: WorkerMain,
        start_method: StartMethod = "forkserver",
    ) -> None:
        self.workers = workers
        self.restarts = 0
        self.max_workers = max_workers
        self._threads = threads_per_worker
        self._main = main
        self._start_method: StartMethod = start_method
        if threads_per_worker > 1 and start_method != "spawn":
            _log.debug("worker processes are not forked: each has %d BLAS threads", threads_per_worker)
            self._start_method = "spawn"
        self._holds_servers = False
        #: the modules that workers need for the model of the newest job
        self._modules: list[str] = []
        self._jobs: Publisher | None = None
        self._logs: LogReceiver | None = None
        self._processes: dict[int, WorkerHandle] = {}
        self._leaving: set[int] = set()
        #: by worker, the number of gradients committed in its row when it was started
        self._commits_before: dict[int, int] = {}
        self._oom = OutOfMemory()
        #: the board of the running job, and after it the board of a job that interrupts it
        self._boards: list[Board] = []
        self._payload: dict[str, Any] | None = None
        self._bell = 0
        self._looked_at_s = self._looked_after_s = 0.0
        self._step_then = -1
        _engines_here.add(self)

    @property
    def pids(self) -> list[int]:
        """The ids of the worker processes, by index."""
        processes = dict(self._processes)  # other threads may read this at any time
        return [processes[index].pid for index in sorted(processes)]

    def begin(self, job: EngineJob, board: Board) -> None:
        """See Engine."""
        payload = job.payload(board, within=0)
        if not self._processes:
            self._oom = OutOfMemory()  # kills before this are not those of workers
        self._boards = [board]
        self._assign(payload)
        self._payload = payload
        self._start_missing()

    def _assign(self, payload: dict[str, Any] | None) -> None:
        """Tell the workers what to do next."""
        if payload is not None:
            self._modules = list(dict.fromkeys([self._main.__module__, *modules_named(payload["model"])]))
        self._bell = 0
        self._commits_before.clear()
        if self._jobs is None:
            self._jobs = publish(payload, max_readers=4 * self.max_workers + 16)
        else:
            self._jobs.update(payload)

    @contextmanager
    def interrupt(self, job: EngineJob, board: Board, spin_s: float) -> Iterator[None]:
        """See Engine."""
        outer = self._boards[-1] if self._boards else None
        payload = job.payload(board, within=outer.job if outer is not None else 0)
        self._boards.append(board)
        self._assign(payload)
        self._start_missing()
        if outer is not None:
            outer.set_workers(0, 0.0)  # a worker that leaves it looks for a newer job first, and finds this one
        try:
            yield
        finally:
            if board in self._boards:  # or else the engine was closed inside the block
                if outer is not None:
                    outer.set_workers(self.workers, spin_s)  # before any worker comes back
                self._assign(self._payload)
                board.stop()
                self._boards.remove(board)

    def resize(self, workers: int) -> None:
        """See Engine. Between two jobs, surplus workers end at once."""
        self.workers = workers
        self._looked_after_s = 0.0  # start the missing ones at the next call of advance()
        for index in [index for index in self._processes if index >= workers]:
            if self._boards:
                self._leaving.add(index)
            else:
                self._processes.pop(index).end()

    def _start_missing(self) -> None:
        for index in range(self.workers if self._boards else 0):  # none after close(), which a signal handler may call
            if index not in self._processes:
                self._processes[index] = self._start(index)

    def members(self) -> list[tuple[int, int, str]]:
        """See Engine."""
        commits = self._boards[-1].commits if self._boards else []
        return [
            (index, process.pid, self._state(index, process, commits))
            for index, process in sorted(self._processes.items())
        ]

    def _state(self, index: int, process: WorkerHandle, commits: list[int]) -> str:
        if process.ended:
            return "dead"
        if index in self._leaving:
            return "leaving"
        if process.stopped:
            return "stopped"
        starting = index < len(commits) and commits[index] <= self._commits_before.get(index, -1)
        return "starting" if starting else "running"

    def _start(self, index: int) -> WorkerHandle:
        assert self._jobs is not None
        if self._logs is None:
            self._logs = LogReceiver()
        if self._boards:
            self._commits_before[index] = self._boards[-1].commits[index]
        call = _worker, (self._main, index, self._jobs.subscriber().address)
        if not self._holds_servers and self._start_method == "forkserver":
            self._holds_servers = True
            hold_fork_servers()
        return launch_worker(
            f"untorn-worker-{index}",
            call,
            environment=worker_variables(self._threads),
            logs=self._logs.fd,
            modules=self._modules,
            start_method=self._start_method,
        )

    def advance(self, until_step: int) -> list[Death]:
        """See Engine."""
        if not self._boards:  # a signal handler has closed the engine
            return []
        board = self._boards[-1]
        self._bell = board.wait_server(self._bell, _POLL_INTERVAL_S)
        now = time.monotonic()
        if board.step >= until_step and now - self._looked_after_s < _POLL_INTERVAL_S:
            return []  # the next steps wait: look after the workers when they run
        self._looked_after_s = now
        self._handle_logs()
        self._pass_over_stopped(board)
        deaths = self._reap(board)
        self._start_missing()
        return deaths

    def _handle_logs(self) -> None:
        if self._logs is not None:
            self._logs.handle()

    def _reap(self, board: Board) -> list[Death]:
        """Release the claims of ended workers, and replace those that were not told to leave. Returns the latter."""
        deaths = []
        for index, process in list(self._processes.items()):
            if not process.ended:
                continue
            exitcode, step = process.exitcode, board.step
            for each in self._boards[:-1]:
                each.recover(index)
            shard = board.recover(index)
            if shard >= 0 and board.is_async:
                step = board.in_flight(shard).batch
            if index in self._leaving:
                self._leaving.discard(index)
                del self._processes[index]
            else:
                out_of_memory = exitcode in (None, -signal.SIGKILL) and self._oom.killed_since_last_check()
                deaths.append(Death(index, process.pid, exitcode, shard, step, out_of_memory))
                self.restarts += 1
                self._processes[index] = self._start(index)
            process.close()  # after its replacement started: other threads may read the pids at any time
        return deaths

    def _pass_over_stopped(self, board: Board) -> None:
        """While no step ends, give the gradients of stopped processes to others. A range has one writer as long as
        that writer lives, so a worker that is stopped in the middle of one is killed."""
        now = time.monotonic()
        if board.step != self._step_then:
            self._step_then, self._looked_at_s = board.step, now
        if now - self._looked_at_s < _LOOK_FOR_STOPPED_S:
            return
        self._looked_at_s = now
        for index, process in self._processes.items():
            if process.stopped:
                shard = board.give_up(index)
                if shard >= 0:
                    _log.info("worker %d is stopped: shard %d is given to others", index, shard)
                if board.holds_range(index):
                    _log.warning("worker %d is stopped in the middle of an update: it is replaced", index)
                    process.kill()

    def end(self, *, abandon: bool = False) -> None:
        """See Engine."""
        self._stop()
        if abandon:
            self._end_all()
        self._handle_logs()
        if self._jobs is not None:
            self._jobs.update(None)
        for index in sorted(self._leaving):
            self._processes.pop(index).end()
        self._leaving.clear()

    def _stop(self) -> None:
        self._payload = None
        for board in self._boards:
            board.stop()
        self._boards = []

    def close(self) -> None:
        """See Engine."""
        self._stop()
        if self._jobs is not None:
            self._jobs.close()
            self._jobs = None
        for process in self._processes.values():
            process.join(0 if process.stopped else _JOIN_S)
        self._end_all()
        if self._holds_servers:
            self._holds_servers = False
            release_fork_servers()
        if self._logs is not None:
            logs, self._logs = self._logs, None
            logs.close()

    def _end_all(self) -> None:
        processes, self._processes = self._processes, {}
        for process in processes.values():
            process.kill()
        for process in processes.values():
            process.end()
        self._leaving.clear()

    def forget(self) -> None:
        """Forget the workers and their jobs in a forked child: they belong to its parent."""
        processes, self._processes = self._processes, {}
        for process in processes.values():
            process.forget()
        self._leaving.clear()
        self._holds_servers = False
        if self._logs is not None:
            self._logs.forget()
            self._logs = None
        self._boards, self._payload, self._jobs = [], None, None


_engines_here: weakref.WeakSet[ProcessEngine] = weakref.WeakSet()


def _after_fork() -> None:
    for engine in list(_engines_here):
        engine.forget()


os.register_at_fork(after_in_child=_after_fork)


def _worker(main: WorkerMain, index: int, address: Address, problem: Exception | None) -> None:
    """Attach to the jobs and run. A server that closed or died while this process was starting is no error."""
    jobs = Subscriber(address)
    try:
        jobs.attach()
    except ChannelNotFoundError:
        return
    main(index, jobs, problem)


def worker_variables(threads: int) -> dict[str, str]:
    """Return the environment variables of a worker process that differ from this process's. They must be set before
    it starts, since BLAS libraries and malloc read theirs when they are loaded."""
    unless_set = _MALLOC_VARIABLES | {"JAX_PLATFORMS": "cpu"}  # otherwise each worker takes a share of every GPU
    others = {key: value for key, value in unless_set.items() if key not in os.environ}
    # With only one thread JAX uses other algorithms, with other last bits; the serial engine has several
    return dict.fromkeys(_THREAD_VARIABLES, str(threads)) | {"PJRT_NPROC": str(max(2, threads))} | others
