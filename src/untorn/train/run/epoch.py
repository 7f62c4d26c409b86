"""What the boards of one epoch add up to, and the place in it where an error left training."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from untorn.train.checkpoints.resuming import PartialEpoch
from untorn.train.run.step_log import NO_STEPS, StepLog
from untorn.train.run.steps import StepStrategy

__all__ = ["Epoch", "Segment"]


class Segment(NamedTuple):
    """The part of an epoch that is on one board.

    Attributes:
        version: the version of the weights that it began with.
        before: steps of the epoch before it.
        strategy: makes its steps.
        log: what they measure.
    """

    version: int
    before: int
    strategy: StepStrategy
    log: StepLog


@dataclass
class Epoch:
    """An epoch that runs.

    Attributes:
        started: when, by the clock of perf_counter.
        rows: what the steps before the running segment have measured.
        names: of the rows' columns, from the third.
        begun: its steps that were made before this call of fit.
        late: batches among the first that these steps have left out, see Progress.
        segment: the one that runs, or was the last.
        learning_rate: of the last step.
    """

    started: float
    rows: NDArray[np.float64]
    names: list[str]
    begun: int
    late: list[int]
    segment: Segment | None = None
    learning_rate: float = math.nan

    @classmethod
    def begin(cls, partial: PartialEpoch | None) -> Epoch:
        """Begin an epoch, or go on with one that is half done."""
        if partial is None:
            return cls(time.perf_counter(), NO_STEPS, [], 0, [])
        progress = partial.progress
        started = time.perf_counter() - progress.seconds
        return cls(started, partial.records, progress.metrics, progress.step_in_epoch, progress.late)

    @property
    def seconds(self) -> float:
        """How long it has taken until now."""
        return time.perf_counter() - self.started

    def place(self, version: int) -> tuple[int, list[int]]:
        """Return how many steps are made with weights of this version, and which batches are late."""
        if self.segment is None:
            return self.begun, self.late
        made = version - self.segment.version
        first = self.segment.before - self.begun  # of the batches that this fit was to do, the segment's first
        pending = self.segment.strategy.pending(made)
        taken = first + made + len(pending)
        late = [self._batch(first + index) for index in pending] + self.late[taken:]
        return self.segment.before + made, sorted(late)

    def _batch(self, index: int) -> int:
        """Return the number in the epoch of a batch of this fit: first the late ones, and then those that follow."""
        return self.late[index] if index < len(self.late) else self.begun + index

    def measured(self, version: int) -> tuple[list[str], NDArray[np.float64]]:
        """Return the names of the metrics, and what was measured up to weights of this version."""
        if self.segment is None or version == self.segment.version:
            return self.names, self.rows
        return self.segment.log.names, self.segment.log.until(version - self.segment.version)
