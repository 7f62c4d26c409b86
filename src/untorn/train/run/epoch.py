"""The bookkeeping of one epoch: the step logs of its boards, and the position that training has reached in it.

::

    order of the batches   | completed before this fit | segment: board 1 | segment: board 2 | ...
                             rows, names, begun          version, before, strategy, log
"""

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
        version: the version of the weights at its start.
        before: the number of steps of the epoch before it.
        strategy: makes its steps.
        log: the step log of its board.
    """

    version: int
    before: int
    strategy: StepStrategy
    log: StepLog


@dataclass
class Epoch:
    """The current epoch.

    Attributes:
        started: its start, by the clock of perf_counter.
        rows: the step log of the segments before the current one.
        names: the names of the metrics, from the third column of the rows on.
        begun: the number of its steps that were made before this call of fit.
        late: the batches that these steps have overtaken, see Progress.
        segment: the current segment, or the last one; None before the first.
        learning_rate: the learning rate of the last step.
    """

    started: float
    rows: NDArray[np.float64]
    names: list[str]
    begun: int
    late: list[int]
    segment: Segment | None = None
    learning_rate: float = math.nan
    #: the memory of the rows, with room for more
    _memory: NDArray[np.float64] | None = None

    @classmethod
    def begin(cls, partial: PartialEpoch | None) -> Epoch:
        """Return a new epoch, or the continuation of a partial one."""
        if partial is None:
            return cls(time.perf_counter(), NO_STEPS, [], 0, [])
        progress = partial.progress
        started = time.perf_counter() - progress.seconds
        return cls(started, partial.records, progress.metrics, progress.step_in_epoch, progress.late)

    def end_segment(self, steps: int) -> None:
        """End the segment, of which this number of steps is made: its rows are now those of an earlier one."""
        assert self.segment is not None
        log = self.segment.log
        self.names = log.names
        if self._memory is None or steps > 1:
            self.rows = self._memory = log.until(steps)
            return
        new, count = log.rows(steps), len(self.rows)
        if count == len(self._memory):
            self._memory = np.concatenate([self._memory, np.zeros_like(self._memory)])
        self._memory[count] = new[0]
        self.rows = self._memory[: count + 1]

    @property
    def seconds(self) -> float:
        """The duration of the epoch until now."""
        return time.perf_counter() - self.started

    def position(self, version: int) -> tuple[int, list[int]]:
        """Return the number of steps of the epoch up to this version of the weights, and the late batches."""
        if self.segment is None:
            return self.begun, self.late
        made = version - self.segment.version
        first = self.segment.before - self.begun  # the segment's first batch among the batches of this fit
        pending = self.segment.strategy.pending(made)
        taken = first + made + len(pending)
        late = [self._batch(first + index) for index in pending] + self.late[taken:]
        return self.segment.before + made, sorted(late)

    def _batch(self, index: int) -> int:
        """Return the number in the epoch of a batch of this fit, which does the late batches first."""
        return self.late[index] if index < len(self.late) else self.begun + index

    def measured(self, version: int) -> tuple[list[str], NDArray[np.float64]]:
        """Return the names of the metrics, and the step log up to this version of the weights."""
        if self.segment is None or version == self.segment.version:
            return self.names, self.rows
        return self.segment.log.names, self.segment.log.until(version - self.segment.version)
