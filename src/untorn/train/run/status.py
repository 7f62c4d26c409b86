"""The status of a running job, for requests of other processes (untorn.control): progress, losses and workers."""

from __future__ import annotations

import os
import time
from typing import Any

import numpy as np
from numpy.typing import NDArray

from untorn.board import Board
from untorn.train.run.pool import Pool
from untorn.train.run.step_log import StepLog
from untorn.train.run.weights import Weights
from untorn.train.settings import Settings
from untorn.train.state import TrainingState

__all__ = ["JobStatus", "LossCurve"]


class LossCurve:
    """The losses of all steps as at most ``max_points`` points, each the mean of an equal number of adjacent steps.

    Example:
        >>> curve = LossCurve(max_points=4)
        >>> curve.extend(0, [8.0, 6.0, 4.0, 2.0, 1.0, 1.0])
        >>> curve.points()
        [(1, 7.0), (3, 3.0), (5, 1.0)]
    """

    def __init__(self, max_points: int = 200) -> None:
        self._max_points = max_points
        self._stride = 1
        self._means = np.zeros(0)
        #: the losses of the last steps, too few for a point
        self._rest = np.zeros(0)
        self._first: int | None = None

    def extend(self, step: int, losses: NDArray[np.float64] | list[float]) -> None:
        """Add the losses of the steps from ``step`` on."""
        if self._first is None:
            self._first = step
        losses = np.concatenate([self._rest, losses])
        whole = len(losses) // self._stride * self._stride
        self._means = np.concatenate([self._means, losses[:whole].reshape(-1, self._stride).mean(axis=1)])
        self._rest = losses[whole:]
        while len(self._means) > self._max_points:
            if len(self._means) % 2:  # the last one has no neighbour yet
                self._rest = np.concatenate([np.full(self._stride, self._means[-1]), self._rest])
                self._means = self._means[:-1]
            self._means = self._means.reshape(-1, 2).mean(axis=1)
            self._stride *= 2

    def points(self) -> list[tuple[int, float]]:
        """Return a list of (last step of the point, mean loss of its steps)."""
        first = self._first or 0
        points = [(first + (i + 1) * self._stride - 1, float(mean)) for i, mean in enumerate(self._means)]
        if len(self._rest):
            points.append((first + len(self._means) * self._stride + len(self._rest) - 1, float(self._rest.mean())))
        return points


class JobStatus:
    """Answers requests of other processes about one call of fit. See control.Handlers.

    Args:
        settings: the settings of the trainer.
        state: the state of the training.
        pool: the workers.
        weights: the channel of the weights, which has the name of the job.
        epochs: the number of epochs of this call of fit; None for single steps.

    Attributes:
        epochs: the number of epochs since training began when this call of fit ends.
    """

    def __init__(
        self, settings: Settings, state: TrainingState, pool: Pool, weights: Weights, epochs: int | None
    ) -> None:
        self._settings = settings
        self._state = state
        self._pool = pool
        self._weights = weights
        self.epochs = epochs
        self._started_at = time.time()
        self._curve = LossCurve()
        self._board: Board | None = None
        self._log: StepLog | None = None
        self._begun_s = 0.0
        #: the steps of this board that are done, and those of them that are in the curve
        self._done = self._in_curve = 0
        #: the steps since training began, and the steps of the epoch, before those of this board
        self._first_step = self._skipped = 0
        self._steps: int | None = 0
        self._validated: dict[str, float] = {}

    @property
    def has_begun(self) -> bool:
        """Whether there has been a segment: on_epoch_begin, which may evaluate, comes before the first."""
        return self._board is not None

    def begin_segment(self, board: Board, log: StepLog, skipped: int, steps: int | None) -> None:
        """Begin the segment of an epoch after its first ``skipped`` steps. The epoch has ``steps`` of them; None if
        that is not known."""
        self._catch_up()
        self._steps = steps
        self._board, self._log, self._skipped = board, log, skipped
        self._begun_s = time.monotonic()
        self._done = self._in_curve = 0
        self._first_step = self._state.step

    def update(self, done: int) -> None:
        """Set the number of steps of the segment that are done."""
        self._done = done

    def end_epoch(self, metrics: dict[str, float]) -> None:
        """End the epoch, with these metrics."""
        self._catch_up()
        self._validated = {name: value for name, value in metrics.items() if name.startswith("val_")}

    def _catch_up(self) -> None:
        """Add the new losses to the curve. This takes microseconds, so only a request and an epoch's end do it."""
        if self._log is not None and self._done > self._in_curve:
            self._curve.extend(self._first_step + self._in_curve, self._log.losses(self._in_curve, self._done))
            self._in_curve = self._done

    # -- control.Handlers

    @property
    def workers(self) -> int:
        """See control.Handlers."""
        return self._pool.count.wanted

    def resize(self, workers: int) -> None:
        """See control.Handlers."""
        self._pool.resize(workers)

    @property
    def nodes(self) -> int:
        """See control.Handlers."""
        return self._pool.wanted_nodes

    def resize_nodes(self, nodes: int) -> None:
        """See control.Handlers."""
        self._pool.resize_nodes(nodes)

    def status(self) -> dict[str, Any]:
        """See control.Handlers, and docs/commands.md for the keys."""
        settings, state, board, log = self._settings, self._state, self._board, self._log
        assert board is not None
        assert log is not None
        self._catch_up()
        measured: dict[str, Any] = dict(log.row(self._done - 1)) if self._done else {}
        examples = min(self._done * board.batch_size, board.examples)
        step = self._first_step + self._done
        return {
            "name": self._weights.channel.name,
            "pid": os.getpid(),
            "mode": settings.mode,
            "engine": settings.engine,
            "step": step,
            "epoch": state.epoch,
            "epochs": self.epochs,
            "step_in_epoch": self._skipped + self._done,
            "steps_per_epoch": self._steps,
            "version": self._weights.version,
            "workers": self._pool.members(),
            "nodes": self._pool.nodes(),
            "wanted_nodes": self._pool.wanted_nodes,
            "restarts": self._pool.restarts,
            "losses": self._curve.points(),
            "loss": measured.pop("loss", None),
            "metrics": {k: v for k, v in measured.items() if k not in ("examples", "staleness")} | self._validated,
            "examples_per_s": examples / max(time.monotonic() - self._begun_s, 1e-9) if self._done else None,
            "learning_rate": state.learning_rate.at(step),
            "max_staleness": settings.max_staleness,
            "staleness": log.staleness(self._done),
            "started_at": self._started_at,
        }
