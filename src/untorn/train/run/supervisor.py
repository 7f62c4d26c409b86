"""The supervision of workers that die or fail.

The engine replaces a dead worker, and its task is done again, so a death changes no result. The supervisor ends the job
when one task has killed too many workers, or when workers die before they have taken any task.
"""

from __future__ import annotations

import logging
from typing import Protocol

from untorn.board import NO_SHARD, Board, FailureReport
from untorn.engines import Death
from untorn.errors import WorkerError
from untorn.train.run.cell_sources import with_sources

__all__ = ["Supervisor", "Tasks"]

_log = logging.getLogger(__name__)


class Tasks(Protocol):
    """Describes the tasks of a board, for error messages."""

    @property
    def counts_kills(self) -> bool:
        """Whether to count a worker that a signal has killed while it had no task."""
        ...

    def where(self, step: int, shard: int) -> str:
        """Return the place of a task, with its preposition: "in epoch 0, step 3, shard 1"."""
        ...

    def failure(self, report: FailureReport) -> Exception:
        """Return the error for the report of the first worker that failed."""
        ...


class Supervisor:
    """Counts the deaths of workers, and raises WorkerError when one cause has too many.

    Args:
        max_restarts: how often one task may kill its worker.
    """

    def __init__(self, max_restarts: int) -> None:
        self._max_restarts = max_restarts
        #: the number of deaths by job, step and shard
        self._deaths: dict[tuple[int, int, int], int] = {}
        #: the deaths of workers without a task, and the job and step since which they are counted
        self._idle_deaths = 0
        self._idle_since = (0, 0)

    @property
    def deaths_in_tasks(self) -> int:
        """The number of workers that died during a task."""
        return sum(self._deaths.values())

    def check(self, board: Board, tasks: Tasks, deaths: list[Death]) -> None:
        """Count these deaths. Raises WorkerError if a task has killed too many workers, or too many ended before they
        took one; or the error that a worker has reported."""
        for death in deaths:
            where = f" {tasks.where(death.step, death.shard)}" if death.shard >= 0 else ""
            how = _how_it_died(death)
            _log.info("worker %d (pid %d)%s %s; another takes its place", death.worker, death.pid, where, how)
            self._count(board, tasks, death)
        report = board.failure
        if report is not None:
            report = report._replace(traceback=with_sources(report.traceback))
            if report.shard == NO_SHARD:
                raise WorkerError(f"worker {report.worker} could not begin: {report.summary}", report.traceback)
            raise tasks.failure(report)

    def _count(self, board: Board, tasks: Tasks, death: Death) -> None:
        if death.shard >= 0:
            task = (board.job, death.step, death.shard)
            count = self._deaths[task] = self._deaths.get(task, 0) + 1
            if count > self._max_restarts:
                raise WorkerError(
                    f"{count} workers died one after the other {tasks.where(death.step, death.shard)}; the last "
                    f"{_how_it_died(death)}. max_restarts is {self._max_restarts}"
                )
        elif death.exitcode is None or death.exitcode >= 0 or tasks.counts_kills:  # it ended without a task
            if self._idle_since != (board.job, board.step):
                self._idle_since, self._idle_deaths = (board.job, board.step), 0
            self._idle_deaths += 1
            if self._idle_deaths > self._max_restarts:
                raise WorkerError(
                    f"{self._idle_deaths} workers ended before they could take part (the last {_how_it_died(death)}); "
                    "see their output for the reason. A script that trains needs `if __name__ == '__main__':` around "
                    "its start, because worker processes import it"
                )


def _how_it_died(death: Death) -> str:
    """Describe a death, in words that follow "the last worker"."""
    if death.exitcode is None and not death.out_of_memory:
        return (
            "ended for an unknown reason: its exit status was lost, because SIGCHLD is ignored in this process, "
            "or its code waits for any child"
        )
    if death.exitcode in (None, -9) and death.out_of_memory:
        return (
            "was killed by the kernel because memory ran out; use fewer workers, smaller batches, or accumulate= to "
            "compute a shard in parts"
        )
    if death.exitcode == -9:
        return "was killed by SIGKILL, and not by the kernel for lack of memory"
    if death.exitcode is not None and death.exitcode < 0:
        return f"was ended by signal {-death.exitcode}"
    return f"ended with exit code {death.exitcode}"
