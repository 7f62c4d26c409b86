"""The interface of an engine, which has workers do the tasks of a board until none is left."""

from __future__ import annotations

from abc import ABC, abstractmethod
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol

from untorn.board import Board

__all__ = ["Death", "Engine", "EngineJob", "Worker"]


class Worker(Protocol):
    """A worker as an engine sees it."""

    def run_once(self, wait_s: float) -> int:
        """Do one task of the board, waiting at most ``wait_s`` for it. Returns its kind, one of ``_core.RUN_...``."""


@dataclass(frozen=True)
class Death:
    """A worker process that has ended unexpectedly.

    Attributes:
        worker: its index.
        pid: its process id.
        exitcode: its exit code as in multiprocessing, negative for a signal; None if other code in this process reaped
            it first.
        shard: the shard whose gradient it was computing, or its in-flight batch in async mode; -1 for none.
        step: the step of that shard, or the number of that batch.
        out_of_memory: whether the kernel has killed processes for lack of memory since the last check.
    """

    worker: int
    pid: int
    exitcode: int | None
    shard: int
    step: int
    out_of_memory: bool = False


class EngineJob(Protocol):
    """A job as an engine sees it."""

    def worker(self, index: int, board: Board) -> Worker:
        """Return a worker in this process."""

    def payload(self, board: Board, *, within: int) -> dict[str, Any]:
        """Return what worker processes are told, with the number of the board's job as "number". ``within`` is the
        number of the job that this one interrupts; 0 for none."""


class Engine(ABC):
    """Runs the workers of one job after another."""

    #: whether the workers are in this process
    is_local: bool

    #: the number of workers
    workers: int
    #: the number of workers that were replaced so far
    restarts: int

    @property
    def pids(self) -> list[int]:
        """The ids of the worker processes, by index; empty if there are none."""
        return []

    @abstractmethod
    def begin(self, job: EngineJob, board: Board) -> None:
        """Have the workers do this job at this board."""

    def interrupt(self, job: EngineJob, board: Board, spin_s: float) -> AbstractContextManager[None]:
        """Have the worker processes do another job for the block, in which advance() uses its board. Works between jobs
        too. For an engine that has ``pids``."""
        raise NotImplementedError

    @abstractmethod
    def resize(self, workers: int) -> None:
        """Change the number of workers, from the next advance() on. Workers that have to leave learn it from the
        board."""

    @abstractmethod
    def members(self) -> list[tuple[int, int, str]]:
        """Return the workers: index, process id, and "starting", "running", "stopped" (by a signal), "leaving" or
        "dead"."""

    @abstractmethod
    def advance(self, until_step: int) -> list[Death]:
        """Let the workers work until the board has finished ``until_step`` or needs the server, for some tens of
        milliseconds at most. Returns the workers that died meanwhile; they have been replaced."""

    @abstractmethod
    def end(self, *, abandon: bool = False) -> None:
        """Stop the job and keep the workers for the next one. With ``abandon``, worker processes are killed, whatever
        they are doing, so that none still takes part in the job when this returns."""

    @abstractmethod
    def close(self) -> None:
        """End all workers, and wait until they have ended."""
