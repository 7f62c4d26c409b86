"""How far the nodes are with the job: the steps that are made, or the error that has ended it."""

from __future__ import annotations

import threading

import numpy as np

from untorn.errors import WorkerError
from untorn.train.nodes.jobs import NodeJob

__all__ = ["Progress"]


class Progress:
    """The job, and what is made of it. It is changed in the hub's thread only, and read by all.

    Attributes:
        job: the job; None between two.
        made: the number of its steps that are made, as far as the driver knows.
        error: the error that has ended it, or None.
    """

    def __init__(self) -> None:
        self.job: NodeJob | None = None
        self.made = 0
        self.error: Exception | None = None
        self._changed = threading.Condition()

    @property
    def may_go_on(self) -> bool:
        """Whether a session may begin."""
        return self.job is not None and self.job.may_begin and self.error is None

    def begin(self, job: NodeJob) -> None:
        """Begin a job."""
        self.job, self.made, self.error = job, 0, None

    def end(self) -> None:
        """End the job."""
        self.job = None

    def fail(self, error: Exception) -> None:
        """End the job with an error, unless it has one."""
        with self._changed:
            if self.error is None and self.job is not None:
                self.error = error
            self._changed.notify_all()

    def wait(self, timeout_s: float) -> None:
        """Wait until more steps are made, or the job has failed. Raises the error of the job. For other threads."""
        with self._changed:
            before = self.made
            self._changed.wait_for(lambda: self.made != before or self.error is not None, timeout_s)
        if self.error is not None:
            raise self.error

    def take_rows(self, first: int, names: list[str], content: bytearray) -> int:
        """Take rows of the step log, from step ``first`` on. Return their number. Rows that are known are passed over.

        Raises RuntimeError if there are steps between the last known one and these, WorkerError if the metrics of a
        node have other names than those of the others, to which they were added.
        """
        if self.job is None or not content:
            return 0
        board = self.job.board
        rows = np.frombuffer(content, board.log.dtype)
        if board.log.ndim > 1:
            rows = rows.reshape(-1, *board.log.shape[1:])
        new = range(max(first, self.made), first + len(rows))
        if not new:
            return len(rows)
        if first > self.made:
            raise RuntimeError(f"rows of the step log are missing: steps {self.made} to {first}")
        for step in new:
            board.log[step % board.steps] = rows[step - first]
        if names and not board.write_metric_names(names):
            raise WorkerError(
                f"the nodes compute different metrics: {', '.join(board.metric_names)}; {', '.join(names)}; return the "
                "same names for every batch"
            )
        with self._changed:
            self.made = new[-1] + 1
            self._changed.notify_all()
        return len(rows)
