"""What an engine is: it makes workers take turns at a board until the board has nothing to do."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from untorn import _core

__all__ = ["Death", "Engine", "Turner"]


class Turner(Protocol):
    """A worker as an engine sees it."""

    def turn(self, wait_s: float) -> int:
        """Do one thing; the kind of turn (``_core.TURN_...``) that it was."""


@dataclass(frozen=True)
class Death:
    """A worker that the kernel declared dead.

    Attributes:
        worker: its index.
        exitcode: as multiprocessing gives it: negative for a signal. None: something else in this process took it.
        shard: the shard, or the lane, whose gradient it was computing, or -1.
        step: the step, or the batch, of that.
        out_of_memory: the kernel has killed processes for want of memory since the last look.
    """

    worker: int
    exitcode: int | None
    shard: int
    step: int
    out_of_memory: bool = False


class Engine(ABC):
    """Runs the workers of one job after another."""

    #: how many workers take turns
    workers: int
    #: how many workers were replaced so far
    restarts: int

    @abstractmethod
    def begin(self, board: _core.Board, payload: dict[str, Any], turner: Callable[[int], Turner]) -> None:
        """Start a job: workers elsewhere get ``payload``, workers here are made by ``turner(index)``."""

    @abstractmethod
    def resize(self, workers: int) -> None:
        """From the next advance() on this many take turns; the board's ``team`` says so to those that leave."""

    @abstractmethod
    def members(self) -> list[tuple[int, int, str]]:
        """Who takes turns: index, process id, and "starting", "running", "stopped" (by a signal), "leaving" or
        "dead"."""

    @abstractmethod
    def advance(self, until_step: int) -> list[Death]:
        """Let the workers work for a moment (some tens of milliseconds at most), or until the board has finished
        ``until_step`` or wants the server. Returns the workers that died meanwhile; they were replaced."""

    @abstractmethod
    def end(self, *, abandon: bool = False) -> None:
        """Stop the job; workers stay for the next. ``abandon``: when this returns nobody takes part in it any more; it
        costs the workers, if they are processes, which may be in the middle of something."""

    @abstractmethod
    def close(self) -> None:
        """End all workers. Nothing is left when this returns."""
