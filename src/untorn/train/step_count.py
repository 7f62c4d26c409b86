"""The number of steps of a trainer, which can be called to make one more."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any, Never

from untorn.first_guesses import unknown_arguments

__all__ = ["StepCount"]


class StepCount(int):
    """``trainer.step``: the number of steps since training began, an int; and a function, ``trainer.step(batch)``.

    It is not changed by later steps, and its pickle and copies are plain ints.
    """

    _make_step: weakref.WeakMethod[Callable[[Any], dict[str, float]]]

    @classmethod
    def of(cls, count: int, make_step: Callable[[Any], dict[str, float]]) -> StepCount:
        """Return this number; a call of it is one of ``make_step``, a method of an object that it does not keep."""
        made = cls(count)
        made._make_step = weakref.WeakMethod(make_step)
        return made

    def __call__(self, batch: Any, *more: Never) -> dict[str, float]:
        """Make one training step with this batch, and return its loss and metrics: see ``Trainer.step``."""
        if more:
            instead = "give all parts of the batch as one: trainer.step((x, y))"
            raise unknown_arguments("step", more, guesses={}, instead=instead)
        make_step = self._make_step()
        if make_step is None:
            raise ReferenceError("step: its trainer does not exist any more; write trainer.step(batch)")
        return make_step(batch)

    def __reduce__(self) -> tuple[type[int], tuple[int]]:
        return int, (int(self),)
