"""Step strategies: three ways to make the steps of an epoch, behind one interface that FitLoop uses.

::

    WorkerSteps   sync, a fused optimizer             the workers make the steps; the server only supervises
    ServerSteps   sync, another library's optimizer   the workers sum a step's gradients; the server makes the step
    AsyncSteps    async                               batches are in flight; the server applies gradients as they arrive
"""

from __future__ import annotations

from abc import ABC, abstractmethod

from untorn import _core
from untorn.board import Board
from untorn.share.lowlevel import attachment_of, meaning
from untorn.train.run.async_schedule import AsyncSchedule
from untorn.train.run.server_steps import Stepper
from untorn.train.run.tasks import GradientTasks
from untorn.train.run.weights import Weights

__all__ = ["AsyncSteps", "ServerSteps", "StepStrategy", "WorkerSteps", "strategy_of"]


class StepStrategy(ABC):
    """Makes the steps of the epochs on one board. Steps are numbered from the board's first one. Abstract.

    Args:
        board: the board.
        tasks: describes the board's tasks in errors.
    """

    def __init__(self, board: Board, tasks: GradientTasks) -> None:
        self.board = board
        self.tasks = tasks
        self.first = self.steps = 0

    def begin(self, steps: int, *, first: int | None = None) -> None:
        """Begin an epoch of this number of steps, whose order and learning rates are on the board. ``first`` is the
        board's step at which it began, if some of its steps are made already."""
        self.first, self.steps = self.made if first is None else first, steps
        self._go()

    @property
    @abstractmethod
    def made(self) -> int:
        """The number of steps made on this board, which is the number of versions published."""

    @property
    @abstractmethod
    def until(self) -> int:
        """The step that the engine may run up to before it returns."""

    @abstractmethod
    def _go(self) -> None:
        """Let the workers begin the epoch."""

    def advance(self) -> int:
        """Do the server's part of the work, if any. Return the number of steps of the epoch that are made."""
        return min(self.steps, self.made - self.first)

    def pace(self, steps: int | None) -> None:  # noqa: B027 - the other strategies return after each step anyway
        """Let the workers stop after this number of steps more, until the next call; None for no such stop."""

    def settled(self) -> bool:
        """Return whether a checkpoint may be taken now. Begins no new work until resume()."""
        return True

    @property
    def at_rest(self) -> bool:
        """Whether no worker can publish a version any more, whatever it is doing now."""
        return self.board.step >= self.until

    def pending(self, made: int) -> list[int]:
        """Return the batches of the epoch, from 0, that later batches have overtaken when ``made`` steps are made."""
        return []

    def resume(self) -> None:  # noqa: B027 - only AsyncSteps holds new work back
        """Begin new work again, after settled(): the version to save is pinned."""


class WorkerSteps(StepStrategy):
    """The workers make the steps without the server."""

    #: the board's step that they stop at, if that comes before the end of the epoch
    _stop: int | None = None

    @property
    def made(self) -> int:
        """See StepStrategy."""
        return self.board.step

    @property
    def until(self) -> int:
        """See StepStrategy."""
        end = self.first + self.steps
        return end if self._stop is None else min(end, self._stop)

    def pace(self, steps: int | None) -> None:
        """See StepStrategy."""
        stop = None if steps is None else self.made + steps
        if stop != self._stop:
            self._stop = stop
            self._go()

    def _go(self) -> None:
        self.board.set_limit(self.until)


class ServerSteps(StepStrategy):
    """The workers stop after the sum of each step, and the server makes the step."""

    def __init__(self, board: Board, tasks: GradientTasks, stepper: Stepper) -> None:
        super().__init__(board, tasks)
        self._stepper = stepper

    @property
    def made(self) -> int:
        """See StepStrategy."""
        return self._stepper.steps

    @property
    def until(self) -> int:
        """See StepStrategy."""
        return min(self._stepper.steps + 1, self.first + self.steps)

    def _go(self) -> None:
        self._stepper.prepare()
        self.board.set_limit(self.until)

    def advance(self) -> int:
        """See StepStrategy."""
        if self.board.step > self._stepper.steps:
            self._stepper.make(self.board)
            self.board.set_limit(self.until)
        return super().advance()


class AsyncSteps(StepStrategy):
    """The server begins batches and applies the gradients that arrive, as an AsyncSchedule decides.

    Args:
        board: the board, with a slot for each batch in flight.
        tasks: describes the board's tasks in errors.
        weights: the weights that the gradients are applied to.
        max_staleness: the number of versions that a gradient may be behind the weights that it is applied to.
        stepper: makes the steps; None if the board makes them, with a fused optimizer.
    """

    def __init__(
        self, board: Board, tasks: GradientTasks, weights: Weights, max_staleness: int, stepper: Stepper | None
    ) -> None:
        super().__init__(board, tasks)
        self._weights = weights
        self._stepper = stepper
        self._base_version = weights.version
        self._schedule = AsyncSchedule(board.shards, max_staleness)

    @property
    def made(self) -> int:
        """See StepStrategy."""
        return self.board.step if self._stepper is None else self._stepper.steps

    @property
    def until(self) -> int:
        """See StepStrategy."""
        return self.first + self.steps

    def _go(self) -> None:
        self._schedule.begin(first=self.first, until=self.until)
        self._start()

    def advance(self) -> int:
        """See StepStrategy."""
        while (slot := self._schedule.next_apply(self._has_arrived, made=self.made)) is not None:
            self._apply(slot)
            self._start()
        return super().advance()

    def settled(self) -> bool:
        """See StepStrategy. A checkpoint is taken when no batch is in flight."""
        return self._schedule.hold()

    def resume(self) -> None:
        """See StepStrategy."""
        self._schedule.release()
        self._start()

    @property
    def at_rest(self) -> bool:
        """See StepStrategy. In async training only the server publishes."""
        return True

    def pending(self, made: int) -> list[int]:
        """See StepStrategy. Relies on the board, since an error or Ctrl-C may have come between any two lines."""
        next_batch = self._schedule.next_batch
        found = [self.board.in_flight(slot) for slot in self._schedule.in_flight]
        begun = [(each.state, each.batch - self.first) for each in found if each.batch < next_batch]
        waiting = [batch for state, batch in begun if state != _core.TASK_EMPTY]
        if next_batch - self.first - len(waiting) > made:  # a sum was taken, but its step was not made
            waiting = [batch for _, batch in begun]
        return sorted(waiting)

    def _has_arrived(self, slot: int) -> bool:
        # called for each slot at each look, so without making an InFlight
        return _core.Board.in_flight(self.board, slot)[0] == _core.TASK_DONE

    def _apply(self, slot: int) -> None:
        staleness = self._base_version + self.made - self.board.in_flight(slot).version
        while True:
            try:
                self.board.inflight_apply(attachment_of(self._weights.target), slot, self.board.step, staleness)
                break
            except _core.StatusError as error:
                if error.args[0] != "no_slot":
                    raise meaning(error, "weights") from None
                self._weights.make_room(self.board)
        if self._stepper is not None:
            self._stepper.make(self.board)
        self._schedule.applied(slot)

    def _start(self) -> None:
        while (slot := self._schedule.next_start()) is not None:
            if not self.board.inflight_open(slot, self._schedule.next_batch):
                raise RuntimeError(f"slot {slot} is neither empty nor done: the board is damaged")
            self._schedule.started(slot, made=self.made)


def strategy_of(
    board: Board, tasks: GradientTasks, weights: Weights, max_staleness: int, stepper: Stepper | None
) -> StepStrategy:
    """Return the step strategy for this board."""
    if board.is_async:
        return AsyncSteps(board, tasks, weights, max_staleness, stepper)
    return WorkerSteps(board, tasks) if stepper is None else ServerSteps(board, tasks, stepper)
