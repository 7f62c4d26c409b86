"""What workers are told to do: a job, with the model to do it with.

A worker process gets a job as a dict that goes through the channel of jobs:

========== ===========================================================================================
number     of the job; a worker that knows it goes on with what it has
within     the number of the job that this one interrupts for a moment, or 0
board      the path of its board
job        a pickle of the job: GradientJob or EvaluationJob
model      a pickle of the model; a worker that has made a replica of the same bytes takes that
threads    for that replica
levels     at which this process logs, in JSON
========== ===========================================================================================
"""

from __future__ import annotations

import json
import pickle
from dataclasses import dataclass
from typing import Any, Protocol

from untorn.board import Board
from untorn.engines import Worker
from untorn.engines.worker_logs import levels_here
from untorn.train.models.base import Model, Replica
from untorn.train.models.pickling import pickled

__all__ = ["Assignment", "Job"]


class Job(Protocol):
    """What workers need to know of a job, beside its board and the model. It is pickled."""

    def begin(self, index: int, board: Board, model: Replica) -> Worker:
        """Return a worker for it."""
        ...


@dataclass(frozen=True)
class Assignment:
    """A job, and the model to do it with: what an engine hands to its workers.

    Attributes:
        job: what to do.
        model: without its values, which the workers find in the weights.
        threads: for each worker's replica of it.
    """

    job: Job
    model: Model
    threads: int

    def worker(self, index: int, board: Board) -> Worker:
        """Return a worker in this process."""
        return self.job.begin(index, board, self.model.replica(self.threads))

    def payload(self, board: Board, *, within: int) -> dict[str, Any]:
        """Return what worker processes are told. Raises TypeError for a model that cannot be sent."""
        return {
            "number": board.job,
            "within": within,
            "board": board.path,
            "job": pickle.dumps(self.job, protocol=5),
            "model": pickled("model: it", self.model, otherwise="use engine='serial'", derive=self.model.pickler),
            "threads": self.threads,
            "levels": json.dumps(levels_here()),
        }
