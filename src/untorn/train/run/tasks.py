"""Descriptions of the tasks of a training's board, for error messages."""

from __future__ import annotations

from untorn.board import Board, FailureReport
from untorn.errors import NonFiniteLossError, WorkerError
from untorn.train.data import sampler

__all__ = ["GradientTasks"]

_SHOWN = 8


class GradientTasks:
    """Describes gradients by their epoch, step, shard and examples. See supervisor.Tasks.

    Args:
        board: the board with the steps.
        min_examples: the minimum number of examples of a shard.

    Attributes:
        epoch: the epoch of the board's steps; None for single steps.
        skipped: the number of steps of that epoch before them; for a single step, its number since training began.
    """

    #: training may run for days, and continues however often idle workers are killed meanwhile
    counts_kills = False

    def __init__(self, board: Board, min_examples: int) -> None:
        self._board = board
        self._min_examples = min_examples
        self.epoch: int | None = 0
        self.skipped = 0
        self._examples: int | None = None

    def set_epoch(self, epoch: int, skipped: int, examples: int | None = None) -> None:
        """Set the epoch of the board's steps, and the number of steps of that epoch before them. ``examples`` is the
        size of the next batch, if batches come one by one."""
        self.epoch, self.skipped, self._examples = epoch, skipped, examples

    def set_step(self, step: int, examples: int) -> None:
        """Describe the board's next step as a single one: the number of its step since training began, and the number
        of its examples."""
        self.epoch, self.skipped, self._examples = None, step, examples

    def where(self, step: int, shard: int) -> str:
        """Return the place of a gradient: "in epoch 0, step 3, shard 1 (16 examples: 5, 2, ...)"."""
        return f"in {self._describe(step, shard)}"

    def _describe(self, step: int, shard: int) -> str:
        board, examples = self._board, self._examples
        start, stop = sampler.shard_bounds(
            step % board.steps,
            0 if board.is_async else shard,
            shards=1 if board.is_async else board.shards,
            examples=examples or board.examples,
            batch_size=examples or board.batch_size,
            min_examples=self._min_examples,
        )
        indices = board.order[start:stop]
        shown = f"{', '.join(map(str, indices[:_SHOWN]))}{', ...' if len(indices) > _SHOWN else ''}"
        step_in_epoch = self.skipped + step % board.steps
        epoch = "" if self.epoch is None else f"epoch {self.epoch}, "
        return f"{epoch}step {step_in_epoch}, shard {shard} ({len(indices)} examples: {shown})"

    def failure(self, report: FailureReport) -> Exception:
        """Return the error for the report of the first worker that failed."""
        task = self._describe(report.step, report.shard)
        if report.non_finite:
            return NonFiniteLossError(
                f"{report.summary.split(': ', 1)[-1]} in {task}; the weights are those of the step before. "
                "Lower the learning rate, or look at these examples for bad values"
            )
        return WorkerError(f"failed in worker {report.worker}, {task}: {report.summary}", report.traceback)
