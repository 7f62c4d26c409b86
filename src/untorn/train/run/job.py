"""Jobs: the work that is assigned to workers, with the model to do it with.

The serial engine hands an Assignment to its worker. A worker process gets it as a dict through the channel of jobs:

========== ===========================================================================================
number     the number of the job; a worker that has it already continues with it
within     the number of the job that this one interrupts, or 0
board      the path of its board
job        a pickle of the job: GradientJob or EvaluationJob
model      a pickle of the model; a worker that has a replica from the same bytes uses it again
threads    the number of threads of that replica
levels     the levels at which this process logs, in JSON
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

__all__ = ["Assignment", "Job", "PickledModel", "pickled_model"]


class Job(Protocol):
    """A job, without its board and the model. It is pickled."""

    def begin(self, index: int, board: Board, model: Replica) -> Worker:
        """Return a worker for the job."""
        ...


@dataclass(frozen=True)
class PickledModel:
    """A model as bytes, for a server that only passes it on.

    Attributes:
        content: the pickle of a Model.
    """

    content: bytes


@dataclass(frozen=True)
class Assignment:
    """A job with the model to do it with, as an engine hands it to its workers.

    Attributes:
        job: the job.
        model: the model without its values, which the workers read from the weights.
        threads: the number of threads of each worker's replica.
    """

    job: Job
    model: Model | PickledModel
    threads: int

    def worker(self, index: int, board: Board) -> Worker:
        """Return a worker in this process."""
        if isinstance(self.model, PickledModel):
            raise TypeError("a model that is only passed on has no worker in this process")
        return self.job.begin(index, board, self.model.replica(self.threads))

    def payload(self, board: Board, *, within: int) -> dict[str, Any]:
        """Return the job as it is sent to worker processes. Raises TypeError for a model that cannot be sent."""
        return {
            "number": board.job,
            "within": within,
            "board": board.path,
            "job": pickle.dumps(self.job, protocol=5),
            "model": pickled_model(self.model),
            "threads": self.threads,
            "levels": json.dumps(levels_here()),
        }


def pickled_model(model: Model | PickledModel) -> bytes:
    """Return the pickle of a model for workers. Raises TypeError for a model that cannot be sent."""
    if isinstance(model, PickledModel):
        return model.content
    return pickled("model: it", model, otherwise="use engine='serial'", derive=model.pickler)
