"""What the server tells the workers of a job: a dict that goes through the channel of jobs.

========== ===========================================================================================
number     of the job; a worker that knows it goes on with what it has
within     the number of the job that this one interrupts for a moment, or 0
board      the path of its board
job        a pickle of the job: train.worker.Job or train.measuring.MeasuringJob
model      a pickle of the model; a worker that has made a replica of the same bytes takes that
threads    for that replica
========== ===========================================================================================
"""

from __future__ import annotations

import io
import pickle
from typing import Any

from untorn.engines.processes import main_has_a_file
from untorn.train.model import FrameworkModel

__all__ = ["payload_of"]


def payload_of(
    job: Any, *, number: int, board_path: str, model: Any, sent: Any, threads: int, within: int = 0
) -> dict[str, Any]:
    """The payload. ``model`` is what the user gave, and ``sent`` what goes to the workers in its place. Raises
    TypeError for a model that cannot be sent."""
    return {
        "number": number,
        "within": within,
        "board": board_path,
        "job": pickle.dumps(job, protocol=5),
        "model": _pickled(model, sent),
        "threads": threads,
    }


def _pickled(model: Any, sent: Any) -> bytes:
    """What plain pickle cannot send, such as a lambda or a notebook's function, goes through cloudpickle if it is
    installed."""
    interactive = not main_has_a_file()
    reason: object = "it is defined in an interactive session"
    of_session = getattr(model, "__module__", getattr(type(model), "__module__", "")) == "__main__"
    if not (interactive and (of_session or isinstance(model, FrameworkModel))):
        try:
            return _dumped(sent, pickle.Pickler)
        except (pickle.PicklingError, AttributeError, TypeError, RuntimeError) as error:
            reason = error
    try:
        import cloudpickle
    except ImportError:
        raise TypeError(
            f"model: it cannot be sent to worker processes ({reason}); define it at the top of a module, or install "
            "cloudpickle: pip install 'untorn[train]'"
        ) from None
    try:
        return _dumped(sent, cloudpickle.Pickler)
    except Exception as error:
        raise TypeError(f"model: it cannot be sent to worker processes ({error})") from None


def _dumped(sent: Any, base: Any) -> bytes:
    stream = io.BytesIO()
    pickler = sent.pickler(base) if isinstance(sent, FrameworkModel) else base
    pickler(stream, protocol=5).dump(sent)
    return stream.getvalue()
