"""Which gradient of async training is applied next, and which batch is begun: a state machine without a board.

Async training keeps its bound by admission. ``max_staleness`` + 1 batches are in flight at most, each in a slot of its
own, so no more gradients than that are under way. A gradient that has arrived is applied at once, unless that would
make another that is still under way too old in the end (``may_apply``): then it waits for that one. So no gradient is
ever too old, and none is thrown away::

    begin(steps) ─> next_start ─> started ─> (a worker computes) ─> next_apply ─> applied ─> next_start ─> ...
"""

from __future__ import annotations

from collections.abc import Collection, Iterable

__all__ = ["AsyncSchedule", "may_apply"]


class AsyncSchedule:
    """Decides; what it decides on is done by its caller, who then tells it.

    Args:
        slots: how many batches may be in flight.
        max_staleness: how many versions a gradient may be behind the weights that it is applied to.

    Attributes:
        in_flight: for each slot that has a batch, how many steps were made when it got it; in the order of batches.
        next_batch: the batch that is begun next.

    Example:
        >>> schedule = AsyncSchedule(slots=2, max_staleness=1)
        >>> schedule.begin(first=0, until=3)
        >>> schedule.next_start()
        0
        >>> schedule.started(0, made=0)
        >>> schedule.next_start()
        1
        >>> schedule.started(1, made=0)
        >>> schedule.next_apply(arrived={1}, made=0)
        1
        >>> schedule.applied(1)
        >>> schedule.next_start(), schedule.next_batch
        (1, 2)
    """

    def __init__(self, slots: int, max_staleness: int) -> None:
        self.in_flight: dict[int, int] = {}
        self.next_batch = 0
        self._slots = slots
        self._max_staleness = max_staleness
        self._until = 0
        self._held = False

    def begin(self, *, first: int, until: int) -> None:
        """Begin the batches from ``first`` until before ``until``."""
        self.next_batch, self._until = first, until

    def next_start(self) -> int | None:
        """Return the slot in which to begin the next batch; None if there is none to begin, or no room."""
        if self._held or self.next_batch >= self._until:
            return None
        return next((slot for slot in range(self._slots) if slot not in self.in_flight), None)

    def started(self, slot: int, *, made: int) -> None:
        """Take note that the next batch is begun in this slot, after this number of steps."""
        self.in_flight[slot] = made
        self.next_batch += 1

    def next_apply(self, arrived: Collection[int], *, made: int) -> int | None:
        """Return the slot to apply next, of those whose gradient has arrived: the one whose batch was begun first, of
        those that may be applied."""
        for slot in self.in_flight:
            if slot in arrived:
                others = [since for other, since in self.in_flight.items() if other != slot]
                if may_apply(made, others, self._max_staleness):
                    return slot
        return None

    def applied(self, slot: int) -> None:
        """Take note that the gradient of this slot is applied."""
        del self.in_flight[slot]

    def hold(self) -> bool:
        """Begin no new batch until release(). Return whether none is in flight any more."""
        self._held = True
        return not self.in_flight

    def release(self) -> None:
        """Go on with new batches."""
        self._held = False


def may_apply(made: int, others: Iterable[int], max_staleness: int) -> bool:
    """Return whether one more gradient may be applied after ``made`` steps, when ``others`` are under way since these
    steps: if all of them, oldest first and one per step, can still be applied within the bound after it.

    Example:
        >>> may_apply(made=5, others=[3, 5], max_staleness=2)  # the first can wait no longer
        False
        >>> may_apply(made=4, others=[3, 4], max_staleness=2)
        True
    """
    return all(made + 1 + place - since <= max_staleness for place, since in enumerate(sorted(others)))
