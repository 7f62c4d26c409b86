"""What the board has for the server to read: the record of each step, and a failed worker's report."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
from numpy.typing import NDArray

from untorn import _core
from untorn.errors import NonFiniteLossError, WorkerError
from untorn.share.views import array_over
from untorn.train.data import sampler

__all__ = ["NO_RECORDS", "Records", "failure", "means_of", "metric_names", "report_of", "task_named"]

NO_RECORDS = np.zeros((0, 2))


class Records:
    """What the steps of the current epoch measured, as the board records it.

    Args:
        board: of this epoch, or of what was left of it.
        earlier: rows of the steps before, from a checkpoint in the middle of the epoch: see until().
        clips: gradients are clipped, so their norm is measured, as the last of the metrics. With lanes the gradients'
            staleness comes before it.
    """

    def __init__(self, board: _core.Board, earlier: NDArray[np.float64] | None = None, *, clips: bool = False) -> None:
        self._board = board
        #: examples, loss, the metrics, the staleness, and the gradient's norm
        self._rows = array_over(board, np.float64, (board.steps, _core.BOARD_LOG_COLUMNS), board.log_at)
        self._earlier = NO_RECORDS if earlier is None else earlier
        #: what the board measures itself, and the column that has it
        self._own = {"staleness": -2} if board.lanes else {}
        self._own |= {"grad_norm": -1} if clips else {}
        self._known: tuple[list[str], list[int]] | None = None

    @property
    def names(self) -> list[str]:
        """The metrics' names; whole as soon as one step is done."""
        return self._named()[0]

    def _named(self) -> tuple[list[str], list[int]]:
        """Return the names, and the columns of examples, loss and each of the names."""
        if self._known is None:
            names = metric_names(self._board)
            own = {name: column for name, column in self._own.items() if name not in names}
            self._known = [*names, *own], [*range(2 + len(names)), *own.values()]
        return self._known

    def row(self, step: int) -> dict[str, float | int]:
        """Loss, metrics and number of examples of one step of this board."""
        row = self._measured(slice(step, step + 1))[0]
        measured: dict[str, float | int] = {"loss": float(row[1]), "examples": int(row[0])}
        return measured | {name: float(row[2 + i]) for i, name in enumerate(self.names)}

    def until(self, step: int) -> NDArray[np.float64]:
        """Examples, loss and metrics of each step of the epoch before this step of the board: a copy."""
        measured = self._measured(slice(step))
        earlier = np.zeros((len(self._earlier), measured.shape[1]))
        width = min(earlier.shape[1], self._earlier.shape[1])  # a checkpoint's clipping may have been another
        earlier[:, :width] = self._earlier[:, :width]
        return np.concatenate([earlier, measured])

    def _measured(self, steps: slice) -> NDArray[np.float64]:
        """Examples, loss, and a column for each of the names."""
        _, columns = self._named()
        rows: NDArray[np.float64] = self._rows[steps, columns]
        return rows

    def losses(self, first: int, last: int) -> NDArray[np.float64]:
        """The losses of the steps from ``first`` until before ``last`` of this board: a copy."""
        losses: NDArray[np.float64] = self._rows[first:last, 1].copy()
        return losses

    def staleness(self, steps: int) -> tuple[float, int] | None:
        """Mean and largest staleness of the last steps before this one; None in sync mode, and before the first."""
        if not self._board.lanes or steps == 0:
            return None
        staleness = self._rows[max(0, steps - 1000) : steps, -2]
        return float(staleness.mean()), int(staleness.max())


def means_of(rows: NDArray[np.float64], names: list[str]) -> dict[str, float]:
    """Return the means over the examples of an epoch, from all its rows, as Records.until() gives them."""
    # not from sums kept until now: the same rows in one piece give the same bits, wherever the epoch was cut
    examples = rows[:, 0]
    means = (rows[:, 1:] * examples[:, None]).sum(axis=0) / examples.sum()
    return {"loss": float(means[0])} | {name: float(means[1 + i]) for i, name in enumerate(names)}


def metric_names(board: _core.Board) -> list[str]:
    """The metrics' names, which workers write with their first gradient."""
    names: list[str] = json.loads(_text(board, board.names_at, 4096) or b"[]")
    return names


def report_of(board: _core.Board) -> dict[str, Any]:
    """What the first worker to fail has reported: see worker.Reporter."""
    at = board.errors_at + (board.failed - 1) * _core.BOARD_ERROR_NBYTES
    report: dict[str, Any] = json.loads(_text(board, at, _core.BOARD_ERROR_NBYTES))
    return report


def _text(board: _core.Board, at: int, nbytes: int) -> bytes:
    return bytes(memoryview(board)[at : at + nbytes]).split(b"\0", 1)[0]


def task_named(board: _core.Board, epoch: int, step: int, shard: int, skipped: int = 0, *, least: int = 1) -> str:
    """One gradient in words: its epoch, step, shard and examples; ``skipped``: steps of the epoch before this board."""
    start, stop = sampler.shard_bounds(
        step % board.steps,
        0 if board.lanes else shard,
        shards=1 if board.lanes else board.shards,
        examples=board.examples,
        batch_size=board.batch_size,
        least=least,
    )
    indices = array_over(board, np.int64, board.examples, board.order_at)[start:stop]
    return (
        f"epoch {epoch}, step {skipped + step % board.steps}, shard {shard} "
        f"({len(indices)} examples: {', '.join(map(str, indices[:8]))}{', ...' if len(indices) > 8 else ''})"
    )


def failure(board: _core.Board, epoch: int, skipped: int = 0, *, least: int = 1) -> Exception:
    """The error for what the first worker to fail has reported; ``skipped``: steps of the epoch before this board."""
    report = report_of(board)
    where = task_named(board, epoch, report["step"], report["shard"], skipped, least=least)
    if report["non_finite"]:
        return NonFiniteLossError(
            f"{report['summary'].split(': ', 1)[-1]} in {where}; the weights of the step before are kept in "
            "trainer.params. Lower the learning rate, or look at these examples for bad values"
        )
    return WorkerError(f"failed in worker {board.failed - 1}, {where}: {report['summary']}", report["traceback"])
