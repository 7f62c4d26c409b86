"""How the steps of an epoch come about: three ways, behind one interface that the loop of loop.py drives.

::

    EveryStep     sync, a fused optimizer       the workers do it all by themselves; the server only watches
    OneStep       sync, another's optimizer     the workers sum a step's gradients, the server makes the step
    Lanes         async                         each batch has a lane; the server applies gradients as they come

Async training keeps its bound by admission. ``max_staleness`` + 1 lanes take one batch each, so no more gradients than
that are under way. A gradient that is there is applied at once, unless that would make another that is still under way
too old in the end (``may_apply``): then it waits for that one. So no gradient is ever too old, and none is thrown away.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import TYPE_CHECKING

from untorn import _core
from untorn.board import Board
from untorn.share import lowlevel
from untorn.share.lowlevel import meaning
from untorn.train.run.server_steps import ServerSteps

if TYPE_CHECKING:
    from untorn.train.run.running import Running

__all__ = ["Driver", "EveryStep", "Lanes", "OneStep", "driver_of", "may_apply"]


class Driver(ABC):
    """Abstract. Steps are counted by the board, from its first one on."""

    def __init__(self, board: Board) -> None:
        self.board = board
        self.first = self.steps = 0

    def begin(self, steps: int) -> None:
        """An epoch of so many steps begins; its order and rates are on the board."""
        self.first, self.steps = self.made, steps
        self._go()

    @property
    @abstractmethod
    def made(self) -> int:
        """Steps that are made: weights that are published."""

    @property
    @abstractmethod
    def until(self) -> int:
        """The step before which an engine need not come back."""

    @abstractmethod
    def _go(self) -> None:
        """Let the workers begin."""

    def move(self) -> int:
        """Do the server's part, if it has one; how many steps of the epoch are made."""
        return min(self.steps, self.made - self.first)

    def settled(self) -> bool:
        """Return whether a checkpoint may be taken. If not, no new work is begun until go_on()."""
        return True

    @property
    def at_rest(self) -> bool:
        """Return whether no worker can publish anything any more, whatever it is doing just now."""
        return self.board.step >= self.until

    def pending(self, made: int) -> list[int]:
        """Return the batches, from 0, that others overtook, if no more follow after ``made`` steps of the epoch."""
        return []

    def go_on(self) -> None:  # noqa: B027 - most have nothing to go on with
        """Go on with new work: the version to be saved is pinned."""


class EveryStep(Driver):
    """The workers move the epoch on by themselves."""

    @property
    def made(self) -> int:
        """See Driver."""
        return self.board.step

    @property
    def until(self) -> int:
        """See Driver."""
        return self.first + self.steps

    def _go(self) -> None:
        self.board.set_limit(self.until)


class OneStep(Driver):
    """The workers stop after each step's sum, and the server makes the step."""

    def __init__(self, board: Board, server: ServerSteps) -> None:
        super().__init__(board)
        self._server = server

    @property
    def made(self) -> int:
        """See Driver."""
        return self._server.steps

    @property
    def until(self) -> int:
        """See Driver."""
        return min(self._server.steps + 1, self.first + self.steps)

    def _go(self) -> None:
        self.board.set_limit(self.until)

    def move(self) -> int:
        """See Driver."""
        if self.board.step > self._server.steps:
            self._server.make(self.board, self._server.steps)
            self.board.set_limit(self.until)
        return super().move()


class Lanes(Driver):
    """The server puts batches into lanes and applies the gradients that come out.

    Args:
        max_staleness: how many versions a gradient may be behind the weights that it is applied to; one lane more.
        server: makes the steps; None: the board does, with a fused optimizer.
    """

    def __init__(self, board: Board, running: Running, max_staleness: int, server: ServerSteps | None) -> None:
        super().__init__(board)
        self._running = running
        self._max_staleness = max_staleness
        self._server = server
        self._base_version = running.weights.version
        self._next_batch = 0
        #: by lane that has a batch: how many steps were made when it got it
        self._under_way: dict[int, int] = {}
        self._held = False

    @property
    def made(self) -> int:
        """See Driver."""
        return self.board.step if self._server is None else self._server.steps

    @property
    def until(self) -> int:
        """See Driver."""
        return self.first + self.steps

    def _go(self) -> None:
        self._next_batch = self.first
        self._fill()

    def move(self) -> int:
        """See Driver."""
        while (lane := self._ready()) is not None:
            self._apply(lane)
            self._fill()
        return super().move()

    def settled(self) -> bool:
        """See Driver. A checkpoint is of a step before which every batch is applied, and none after."""
        self._held = True
        return not self._under_way

    def go_on(self) -> None:
        """See Driver."""
        self._held = False
        self._fill()

    @property
    def at_rest(self) -> bool:
        """See Driver. Here only the server publishes."""
        return True

    def pending(self, made: int) -> list[int]:
        """See Driver. What the board says counts: an error, or Ctrl-C, may have come between any two lines here."""
        lanes = [self.board.in_flight(lane)[:2] for lane in self._under_way]
        begun = [(state, batch - self.first) for state, batch in lanes if batch < self._next_batch]
        waiting = [batch for state, batch in begun if state != _core.TASK_EMPTY]
        if self._next_batch - self.first - len(waiting) > made:  # a sum was taken, and its step not made
            waiting = [batch for _, batch in begun]
        return sorted(waiting)

    def _ready(self) -> int | None:
        """The lane to apply next, of those whose gradient is there: whose batch came first."""
        for lane in self._under_way:
            if self.board.in_flight(lane).state == _core.TASK_DONE:
                others = [since for other, since in self._under_way.items() if other != lane]
                if may_apply(self.made, others, self._max_staleness):
                    return lane
        return None

    def _apply(self, lane: int) -> None:
        version = self.board.in_flight(lane).version
        staleness = self._base_version + self.made - version
        while True:
            try:
                self.board.inflight_apply(
                    lowlevel.attachment_of(self._running.target), lane, self.board.step, staleness
                )
                break
            except _core.StatusError as error:
                if error.args[0] != "no_slot":
                    raise meaning(error, "weights") from None
                self._running.find_slot(self.board)
        if self._server is not None:
            self._server.make(self.board, self._server.steps)
        del self._under_way[lane]

    def _fill(self) -> None:
        for lane in range(self.board.shards):
            if self._held or self._next_batch >= self.until:
                return
            if lane not in self._under_way:
                if not self.board.inflight_open(lane, self._next_batch):
                    raise RuntimeError(f"lane {lane} is neither empty nor done: the board is damaged")
                self._under_way[lane] = self.made
                self._next_batch += 1


def may_apply(made: int, others: Iterable[int], max_staleness: int) -> bool:
    """May one more gradient be applied after so many steps, when ``others`` are under way since these? Only if all of
    them, oldest first and one per step, can still be applied within the bound after it.

    Example:
        >>> may_apply(made=5, others=[3, 5], max_staleness=2)  # the first can wait no longer
        False
        >>> may_apply(made=4, others=[3, 4], max_staleness=2)
        True
    """
    return all(made + 1 + place - since <= max_staleness for place, since in enumerate(sorted(others)))


def driver_of(board: Board, running: Running, max_staleness: int, server: ServerSteps | None) -> Driver:
    """What drives a job on this board."""
    if board.is_async:
        return Lanes(board, running, max_staleness, server)
    return EveryStep(board) if server is None else OneStep(board, server)
