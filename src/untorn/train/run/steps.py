"""How the steps of an epoch are made: three strategies behind one interface, which the loop of loop.py uses.

::

    WorkerSteps   sync, a fused optimizer       the workers make the steps by themselves; the server watches
    ServerSteps   sync, another's optimizer     the workers sum a step's gradients, the server makes the step
    AsyncSteps    async                         batches are in flight; the server applies gradients as they arrive
"""

from __future__ import annotations

from abc import ABC, abstractmethod

from untorn import _core
from untorn.board import Board
from untorn.share.lowlevel import attachment_of, meaning
from untorn.train.run.async_schedule import AsyncSchedule
from untorn.train.run.server_steps import ServerStepper
from untorn.train.run.weights import Weights

__all__ = ["AsyncSteps", "ServerSteps", "StepStrategy", "WorkerSteps", "strategy_of"]


class StepStrategy(ABC):
    """Abstract. Steps are counted by the board, from its first one on."""

    def __init__(self, board: Board) -> None:
        self.board = board
        self.first = self.steps = 0

    def begin(self, steps: int) -> None:
        """Begin an epoch of this number of steps; its order and rates are on the board."""
        self.first, self.steps = self.made, steps
        self._go()

    @property
    @abstractmethod
    def made(self) -> int:
        """The number of steps that are made: of versions that are published."""

    @property
    @abstractmethod
    def until(self) -> int:
        """The step before which the engine need not come back."""

    @abstractmethod
    def _go(self) -> None:
        """Let the workers begin."""

    def move(self) -> int:
        """Do the server's part, if it has one. Return how many steps of the epoch are made."""
        return min(self.steps, self.made - self.first)

    def settled(self) -> bool:
        """Return whether a checkpoint may be taken. If not, no new work is begun until go_on()."""
        return True

    @property
    def at_rest(self) -> bool:
        """Whether no worker can publish anything any more, whatever it is doing just now."""
        return self.board.step >= self.until

    def pending(self, made: int) -> list[int]:
        """Return the batches, from 0, that others have overtaken, if no more follow after ``made`` steps of the
        epoch."""
        return []

    def go_on(self) -> None:  # noqa: B027 - most have nothing to go on with
        """Go on with new work: the version to be saved is pinned."""


class WorkerSteps(StepStrategy):
    """The workers make the steps by themselves."""

    @property
    def made(self) -> int:
        """See StepStrategy."""
        return self.board.step

    @property
    def until(self) -> int:
        """See StepStrategy."""
        return self.first + self.steps

    def _go(self) -> None:
        self.board.set_limit(self.until)


class ServerSteps(StepStrategy):
    """The workers stop after the sum of each step, and the server makes the step."""

    def __init__(self, board: Board, stepper: ServerStepper) -> None:
        super().__init__(board)
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
        self.board.set_limit(self.until)

    def move(self) -> int:
        """See StepStrategy."""
        if self.board.step > self._stepper.steps:
            self._stepper.make(self.board, self._stepper.steps)
            self.board.set_limit(self.until)
        return super().move()


class AsyncSteps(StepStrategy):
    """The server begins batches and applies the gradients that arrive, as an AsyncSchedule decides.

    Args:
        board: has a slot for each batch in flight.
        weights: what the gradients are applied to.
        max_staleness: how many versions a gradient may be behind the weights that it is applied to.
        stepper: makes the steps; None: the board does, with a fused optimizer.
    """

    def __init__(self, board: Board, weights: Weights, max_staleness: int, stepper: ServerStepper | None) -> None:
        super().__init__(board)
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

    def move(self) -> int:
        """See StepStrategy."""
        while (slot := self._schedule.next_apply(self._arrived(), made=self.made)) is not None:
            self._apply(slot)
            self._start()
        return super().move()

    def settled(self) -> bool:
        """See StepStrategy. A checkpoint is of a step before which every batch is applied, and none after."""
        return self._schedule.hold()

    def go_on(self) -> None:
        """See StepStrategy."""
        self._schedule.release()
        self._start()

    @property
    def at_rest(self) -> bool:
        """See StepStrategy. In async training only the server publishes."""
        return True

    def pending(self, made: int) -> list[int]:
        """See StepStrategy. What the board says counts: an error, or Ctrl-C, may have come between any two lines."""
        next_batch = self._schedule.next_batch
        found = [self.board.in_flight(slot) for slot in self._schedule.in_flight]
        begun = [(each.state, each.batch - self.first) for each in found if each.batch < next_batch]
        waiting = [batch for state, batch in begun if state != _core.TASK_EMPTY]
        if next_batch - self.first - len(waiting) > made:  # a sum was taken, and its step not made
            waiting = [batch for _, batch in begun]
        return sorted(waiting)

    def _arrived(self) -> list[int]:
        return [slot for slot in self._schedule.in_flight if self.board.in_flight(slot).state == _core.TASK_DONE]

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
            self._stepper.make(self.board, self._stepper.steps)
        self._schedule.applied(slot)

    def _start(self) -> None:
        while (slot := self._schedule.next_start()) is not None:
            if not self.board.inflight_open(slot, self._schedule.next_batch):
                raise RuntimeError(f"slot {slot} is neither empty nor done: the board is damaged")
            self._schedule.started(slot, made=self.made)


def strategy_of(board: Board, weights: Weights, max_staleness: int, stepper: ServerStepper | None) -> StepStrategy:
    """Return how steps are made at this board."""
    if board.is_async:
        return AsyncSteps(board, weights, max_staleness, stepper)
    return WorkerSteps(board) if stepper is None else ServerSteps(board, stepper)
