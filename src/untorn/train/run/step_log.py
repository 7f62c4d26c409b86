"""The step log of an epoch: the measurements of each step, which the workers write to the board."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from untorn.board import Board

__all__ = ["NO_STEPS", "StepLog", "means_of"]

NO_STEPS = np.zeros((0, 2))


class StepLog:
    """The step log: the measurements of each step of the current epoch.

    Args:
        board: the board of this epoch, or of the rest of it.
        earlier: the rows of earlier steps of the epoch, from a board before or from a checkpoint; see until().
        clips: whether gradients are clipped. If so, their norm is the last metric. In async mode, the staleness of
            gradients comes before it.
    """

    def __init__(self, board: Board, earlier: NDArray[np.float64] | None = None, *, clips: bool = False) -> None:
        self._board = board
        self._log = board.log
        self._earlier = NO_STEPS if earlier is None else earlier
        #: the metrics that the board itself measures
        self._own = [*(["staleness"] if board.is_async else []), *(["grad_norm"] if clips else [])]
        self._known: tuple[list[str], list[NDArray[np.float64]]] | None = None

    def continue_after(self, earlier: NDArray[np.float64]) -> None:
        """Set the rows of the earlier steps."""
        self._earlier = earlier

    @property
    def names(self) -> list[str]:
        """The names of the metrics; complete once a step is done."""
        return self._columns()[0]

    def _columns(self) -> tuple[list[str], list[NDArray[np.float64]]]:
        """Return the names, and the columns of examples, loss and each named metric."""
        if self._known is None:
            names, log = self._board.metric_names, self._log
            own = [name for name in self._own if name not in names]
            metrics = log["metrics"].T[: len(names)]
            self._known = [*names, *own], [log["examples"], log["loss"], *metrics, *(log[name] for name in own)]
        return self._known

    def row(self, step: int) -> dict[str, float | int]:
        """Return the loss, metrics and number of examples of one step of this board."""
        names, (examples, loss, *metrics) = self._columns()
        measured: dict[str, float | int] = {"loss": float(loss[step]), "examples": int(examples[step])}
        return measured | {name: float(values[step]) for name, values in zip(names, metrics, strict=True)}

    def until(self, step: int) -> NDArray[np.float64]:
        """Return a copy of the examples, loss and metrics of each step of the epoch before this step of the board."""
        measured = self.rows(step)
        earlier = np.zeros((len(self._earlier), measured.shape[1]))
        width = min(earlier.shape[1], self._earlier.shape[1])  # the clipping of a checkpoint may differ
        earlier[:, :width] = self._earlier[:, :width]
        return np.concatenate([earlier, measured])

    def rows(self, step: int) -> NDArray[np.float64]:
        """Return a copy of the examples, loss and metrics of the board's steps before this one."""
        return np.stack([column[:step] for column in self._columns()[1]], axis=1)

    def losses(self, first: int, last: int) -> NDArray[np.float64]:
        """Return a copy of the losses of this board's steps from ``first`` to ``last``, the latter excluded."""
        losses: NDArray[np.float64] = self._log["loss"][first:last].copy()
        return losses

    def staleness(self, steps: int) -> tuple[float, int] | None:
        """Return the mean and largest staleness of the last 1,000 steps before this one; None in sync mode, and before
        the first step."""
        if not self._board.is_async or steps == 0:
            return None
        staleness = self._log["staleness"][max(0, steps - 1000) : steps]
        return float(staleness.mean()), int(staleness.max())


def means_of(rows: NDArray[np.float64], names: list[str]) -> dict[str, float]:
    """Return the means over the examples of an epoch, from all its rows, as StepLog.until() returns them."""
    # computed from all rows at once, so that the bits do not depend on where the epoch was interrupted
    examples = rows[:, 0]
    means = (rows[:, 1:] * examples[:, None]).sum(axis=0) / examples.sum()
    return {"loss": float(means[0])} | {name: float(means[1 + i]) for i, name in enumerate(names)}
