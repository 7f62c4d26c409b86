"""The messages of a worker to the server, through the board: the names of the metrics, and errors."""

from __future__ import annotations

import traceback
from pathlib import Path

from untorn.board import Board
from untorn.train.models.checks import check_metric_names

__all__ = ["Reporter"]

#: the names that callbacks and the history use beside the model's metrics
_RESERVED_NAMES = ("loss", "learning_rate", "examples", "examples_per_s", "seconds", "version", "restarts")


class Reporter:
    """Reports the names of the metrics and the errors of one worker to the server.

    Args:
        board: the board of the job.
        index: the index of the worker.
    """

    def __init__(self, board: Board, index: int) -> None:
        self._board = board
        self._index = index
        self._names: tuple[str, ...] | None = None

    def name_metrics(self, names: tuple[str, ...]) -> None:
        """Write the names of the metrics, once. Every worker writes the same names, so they are complete after a
        step, whichever worker is first. Raises ValueError if the names are not those of another batch of the job."""
        if names == self._names:
            return
        if self._names is not None:
            check_metric_names(self._names, names)
        for name in names:
            if name in _RESERVED_NAMES or name.startswith("val_"):
                raise ValueError(
                    f"the metric {name!r}: the trainer uses this name itself, as it does val_... and "
                    f"{', '.join(_RESERVED_NAMES)}; choose another"
                )
        if not self._board.write_metric_names(names):
            check_metric_names(self._board.metric_names, names)
        self._names = names

    def report(self, error: Exception, step: int, shard: int) -> None:
        """Report an error, with a traceback that begins in the user's code."""
        trace = error.__traceback__
        while trace is not None and _is_ours(trace.tb_frame.f_code.co_filename):
            trace = trace.tb_next
        lines = traceback.format_exception(type(error), error, trace)
        self._board.report_failure(self._index, step, shard, error, "".join(lines))


def _is_ours(filename: str) -> bool:
    """Return whether a file belongs to untorn's code between a worker and the user's code."""
    package = Path(__file__).parents[2]
    path = Path(filename).absolute()
    return path.parent == package or any(folder in path.parents for folder in (package / "train", package / "torch"))
