"""The schedule of async training, which begins batches and applies gradients: a state machine without a board.

Async training keeps its bound on the staleness by admission. At most ``max_staleness`` + 1 batches are in flight, each
in a slot of its own. A gradient that has arrived is applied at once, unless that would make another one in flight too
old (``may_apply``): then it waits for that one. So no gradient is ever too old, and none is discarded::

    begin(steps) ─> next_start ─> started ─> (a worker computes) ─> next_apply ─> applied ─> next_start ─> ...
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

__all__ = ["AsyncSchedule", "may_apply"]


class AsyncSchedule:
    """Decides which batch begins and which gradient is applied next. The caller does it, and then reports it.

    Args:
        slots: the maximum number of batches in flight.
        max_staleness: the number of versions that a gradient may be behind the weights that it is applied to.

    Attributes:
        in_flight: for each slot with a batch, the number of steps made when the batch began; in the order of batches.
        next_batch: the next batch to begin.

    Example:
        >>> schedule = AsyncSchedule(slots=2, max_staleness=1)
        >>> schedule.begin(first=0, until=3)
        >>> schedule.next_start()
        0
        >>> schedule.started(0, made=0)
        >>> schedule.next_start()
        1
        >>> schedule.started(1, made=0)
        >>> schedule.next_apply(lambda slot: slot == 1, made=0)
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
        """Schedule the batches from ``first`` to ``until``, the latter excluded."""
        self.next_batch, self._until = first, until

    def next_start(self) -> int | None:
        """Return the slot for the next batch; None if there is no batch to begin, or no free slot."""
        if self._held or self.next_batch >= self._until or len(self.in_flight) == self._slots:
            return None
        return next((slot for slot in range(self._slots) if slot not in self.in_flight), None)

    def started(self, slot: int, *, made: int) -> None:
        """Record that the next batch has begun in this slot, after ``made`` steps."""
        self.in_flight[slot] = made
        self.next_batch += 1

    def next_apply(self, has_arrived: Callable[[int], bool], *, made: int) -> int | None:
        """Return the slot whose gradient to apply next: of those that have arrived and may be applied, the one whose
        batch began first. None if there is none."""
        for slot in self.in_flight:
            if has_arrived(slot):
                others = [since for other, since in self.in_flight.items() if other != slot]
                if may_apply(made, others, self._max_staleness):
                    return slot
        return None

    def applied(self, slot: int) -> None:
        """Record that the gradient of this slot was applied."""
        del self.in_flight[slot]

    def hold(self) -> bool:
        """Begin no new batch until release(). Return whether no batch is in flight."""
        self._held = True
        return not self.in_flight

    def release(self) -> None:
        """Begin new batches again."""
        self._held = False


def may_apply(made: int, others: Iterable[int], max_staleness: int) -> bool:
    """Return whether another gradient may be applied after ``made`` steps, while ``others`` have been in flight since
    these steps: whether all of them, oldest first and one per step, can still be applied within the bound after it.

    Example:
        >>> may_apply(made=5, others=[3, 5], max_staleness=2)  # the oldest one cannot wait any longer
        False
        >>> may_apply(made=4, others=[3, 4], max_staleness=2)
        True
    """
    return all(made + 1 + place - since <= max_staleness for place, since in enumerate(sorted(others)))
