"""The processes engine: worker processes, started, supervised and replaced.

::

    server ── jobs (an anonymous channel) ──> worker 0, worker 1, ...
       │                                          │  take turns at the board, in shared memory
       └── waits at the board's bell  <───────────┘

There is no pipe and no lock between them that a killed worker could leave locked. The server learns of a death from
the kernel (it reaps its child), settles the dead worker's claims at the board, and starts another in its place. Workers
learn of the server's death from the kernel too: the lock of the jobs channel is released.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing import resource_tracker
from multiprocessing.context import SpawnProcess
from typing import Any

from untorn import _core
from untorn.engines.base import Death, Engine, Turner
from untorn.errors import ChannelNotFoundError
from untorn.share import Publisher, Subscriber, publish
from untorn.share.storage import Address

__all__ = ["ProcessEngine", "environment", "worker_variables"]

_MOMENT_S = 0.02
_JOIN_S = 5.0
_THREAD_VARIABLES = (
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "BLIS_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
    "NUMEXPR_NUM_THREADS",
)


# A gradient allocates the same arrays in every step. Left to itself, malloc gives them back to the kernel each time and
# takes them again, page by page: a fault for every 4 KB, a fifth of a step.
_MALLOC_VARIABLES = {"MALLOC_MMAP_THRESHOLD_": str(32 << 20), "MALLOC_TRIM_THRESHOLD_": str(256 << 20)}


class ProcessEngine(Engine):
    """``workers`` processes, each running ``main(index, jobs)`` with its own number of BLAS threads."""

    def __init__(self, workers: int, threads_per_worker: int, main: Callable[[int, Subscriber], None]) -> None:
        self.workers = workers
        self.restarts = 0
        self._threads = threads_per_worker
        self._main = main
        self._jobs: Publisher | None = None
        self._processes: list[SpawnProcess] = []
        self._board: _core.Board | None = None
        self._bell = 0

    @property
    def pids(self) -> list[int]:
        """The worker processes, by index."""
        return [process.pid or 0 for process in self._processes]

    def begin(self, board: _core.Board, payload: dict[str, Any], turner: Callable[[int], Turner]) -> None:
        """See Engine."""
        self._board = board
        self._bell = 0
        if self._jobs is None:
            self._jobs = publish(payload, max_readers=4 * self.workers + 16)
        else:
            self._jobs.update(payload)
        for index in range(len(self._processes), self.workers):
            self._processes.append(self._start(index))

    def _start(self, index: int) -> SpawnProcess:
        assert self._jobs is not None
        process = multiprocessing.get_context("spawn").Process(
            target=_worker,
            args=(self._main, index, self._jobs.subscriber().address),
            name=f"untorn-worker-{index}",
            daemon=True,
        )
        with environment(worker_variables(self._threads)), _interrupts_blocked():
            process.start()
        return process

    def advance(self, until_step: int) -> list[Death]:
        """See Engine."""
        assert self._board is not None
        self._bell = self._board.wait_server(self._bell, _MOMENT_S)
        return [self._replace(i) for i, process in enumerate(self._processes) if process.exitcode is not None]

    def _replace(self, index: int) -> Death:
        assert self._board is not None
        dead = self._processes[index]
        exitcode = dead.exitcode or 0
        step = self._board.step
        shard = self._board.recover(index)
        self.restarts += 1
        self._processes[index] = self._start(index)
        dead.close()  # after it was replaced: other threads may ask for the pids at any time
        return Death(index, exitcode, shard, step)

    def end(self) -> None:
        """See Engine."""
        if self._board is not None:
            self._board.stop()
            self._board = None
        if self._jobs is not None:
            self._jobs.update(None)

    def close(self) -> None:
        """See Engine."""
        if self._board is not None:
            self._board.stop()
            self._board = None
        if self._jobs is not None:
            self._jobs.close()
            self._jobs = None
        for process in self._processes:
            process.join(_JOIN_S)
            if process.exitcode is None:
                process.kill()
                process.join()
            process.close()
        self._processes.clear()


def _worker(main: Callable[[int, Subscriber], None], index: int, address: Address) -> None:
    """Attach and go; a server that closed or died while this process was starting is no error."""
    jobs = Subscriber(address)
    try:
        jobs.attach()
    except ChannelNotFoundError:
        return
    main(index, jobs)


def worker_variables(threads: int) -> dict[str, str]:
    """The environment of a worker process, beside this process's own."""
    unless_set = _MALLOC_VARIABLES | {"JAX_PLATFORMS": "cpu"}  # or else each worker takes a share of every GPU
    others = {key: value for key, value in unless_set.items() if key not in os.environ}
    # JAX takes other algorithms, with other last bits, where it has one thread alone; the serial engine has several
    return dict.fromkeys(_THREAD_VARIABLES, str(threads)) | {"PJRT_NPROC": str(max(2, threads))} | others


@contextmanager
def environment(variables: dict[str, str]) -> Iterator[None]:
    """Set variables for processes started inside: BLAS libraries and malloc read theirs when they are loaded."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


@contextmanager
def _interrupts_blocked() -> Iterator[None]:
    """Ctrl-C goes to every process of a terminal; workers inherit this mask, and leave it to the server."""
    resource_tracker.ensure_running()  # multiprocessing starts it with the first process, and then unblocks SIGINT
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
