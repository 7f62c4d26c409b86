"""What the server tells the workers of a job: a dict that goes through the channel of jobs.

========== ===========================================================================================
number     of the job; a worker that knows it goes on with what it has
within     the number of the job that this one interrupts for a moment, or 0
board      the path of its board
job        a pickle of the job: train.worker.Job or train.measuring.MeasuringJob
model      a pickle of the Model; a worker that has made a replica of the same bytes takes that
threads    for that replica
levels     at which this process logs, in JSON
========== ===========================================================================================
"""

from __future__ import annotations

import json
import pickle
from typing import Any

from untorn.engines.worker_logs import levels_here
from untorn.train.models.base import Model
from untorn.train.models.pickling import pickled

__all__ = ["payload_of"]


def payload_of(
    job: Any, *, number: int, board_path: str, model: Model, threads: int, within: int = 0
) -> dict[str, Any]:
    """Return the payload. Raises TypeError for a model that cannot be sent."""
    return {
        "number": number,
        "within": within,
        "board": board_path,
        "job": pickle.dumps(job, protocol=5),
        "model": pickled("model: it", model, otherwise="use engine='serial'", derive=model.pickler),
        "threads": threads,
        "levels": json.dumps(levels_here()),
    }
