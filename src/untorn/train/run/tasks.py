"""The tasks of a training's board in words, for errors."""

from __future__ import annotations

from untorn.board import Board, FailureReport
from untorn.errors import NonFiniteLossError, WorkerError
from untorn.train.data import sampler

__all__ = ["GradientTasks"]

_SHOWN = 8


class GradientTasks:
    """Names gradients by their epoch, step, shard and examples. See supervisor.Tasks.

    Args:
        board: of the steps.
        least: examples of a shard, at least.
    """

    def __init__(self, board: Board, least: int) -> None:
        self._board = board
        self._least = least
        self._epoch = self._skipped = 0

    def place(self, epoch: int, skipped: int) -> None:
        """Set the epoch that the board's steps are of, and the number of its steps before them."""
        self._epoch, self._skipped = epoch, skipped

    def where(self, step: int, shard: int) -> str:
        """Return the place of a gradient: "in epoch 0, step 3, shard 1 (16 examples: 5, 2, ...)"."""
        return f"in {self._named(step, shard)}"

    def _named(self, step: int, shard: int) -> str:
        board = self._board
        start, stop = sampler.shard_bounds(
            step % board.steps,
            0 if board.is_async else shard,
            shards=1 if board.is_async else board.shards,
            examples=board.examples,
            batch_size=board.batch_size,
            least=self._least,
        )
        indices = board.order[start:stop]
        shown = f"{', '.join(map(str, indices[:_SHOWN]))}{', ...' if len(indices) > _SHOWN else ''}"
        step_in_epoch = self._skipped + step % board.steps
        return f"epoch {self._epoch}, step {step_in_epoch}, shard {shard} ({len(indices)} examples: {shown})"

    def failure(self, report: FailureReport) -> Exception:
        """Return the error for what the first worker to fail has reported."""
        named = self._named(report.step, report.shard)
        if report.non_finite:
            return NonFiniteLossError(
                f"{report.summary.split(': ', 1)[-1]} in {named}; the weights of the step before are kept in "
                "trainer.params. Lower the learning rate, or look at these examples for bad values"
            )
        return WorkerError(f"failed in worker {report.worker}, {named}: {report.summary}", report.traceback)
