"""Learning rates by the step, as people write them: warm-up, cosine, linear, in stages.

::

    from untorn.train.schedules import Cosine, Warmup

    AdamW(Warmup(500, Cosine(3e-4, 20_000)))                    # 500 steps up, then 20,000 steps down
    functools.partial(torch.optim.NAdam, lr=Cosine(1e-3, 20_000))

Each is a function ``step -> learning rate``, with the step counted from 0 over all calls of ``fit``. It is a value: a
checkpoint has its numbers, and a training resumes only with the same ones. Any function will do in their place; for an
optimizer of optax take one of optax's schedules, which it calls itself.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

__all__ = ["Cosine", "Linear", "Stages", "Warmup"]


@dataclass(frozen=True)
class Linear:
    """From one rate to another in a straight line, and then that rate: torch's LinearLR, optax's linear_schedule.

    Args:
        start: the rate of step 0, 0 or more.
        steps: the number of steps until ``end``, 1 or more.
        end: the rate from then on, 0 or more.

    Example:
        >>> [Linear(0.4, 4)(step) for step in range(6)]
        [0.4, 0.30000000000000004, 0.2, 0.1, 0.0, 0.0]
    """

    start: float
    steps: int
    end: float = 0.0

    def __post_init__(self) -> None:
        _check(self, rates=("start", "end"))

    def __call__(self, step: int) -> float:
        """Return the rate of this step."""
        return self.end + (self.start - self.end) * (1 - min(step, self.steps) / self.steps)


@dataclass(frozen=True)
class Cosine:
    """Half a period of a cosine from one rate down to another, and then that rate: torch's CosineAnnealingLR within
    its T_max steps, optax's cosine_decay_schedule.

    Source: Loshchilov and Hutter, "SGDR: stochastic gradient descent with warm restarts" (2017).

    Args:
        start: the rate of step 0, 0 or more.
        steps: the number of steps until ``end``, 1 or more.
        end: the rate from then on, 0 or more.

    Example:
        >>> [round(Cosine(0.4, 4)(step), 3) for step in range(6)]
        [0.4, 0.341, 0.2, 0.059, 0.0, 0.0]
    """

    start: float
    steps: int
    end: float = 0.0

    def __post_init__(self) -> None:
        _check(self, rates=("start", "end"))

    def __call__(self, step: int) -> float:
        """Return the rate of this step."""
        if step >= self.steps:
            return self.end
        return self.end + (self.start - self.end) * (1 + math.cos(math.pi * step / self.steps)) / 2


@dataclass(frozen=True)
class Stages:
    """A rate that is multiplied by a factor at some steps: torch's MultiStepLR.

    Args:
        start: the rate of step 0, 0 or more.
        steps: the steps from which on the factor counts once more, in ascending order.
        factor: the factor, 0 or more.

    Example:
        >>> [Stages(0.5, [2, 4], factor=0.5)(step) for step in range(6)]
        [0.5, 0.5, 0.25, 0.25, 0.125, 0.125]
    """

    start: float
    steps: Sequence[int]
    factor: float = 0.1

    def __post_init__(self) -> None:
        _check(self, rates=("start", "factor"))
        steps = tuple(self.steps)
        if not all(type(step) is int and step > 0 for step in steps) or list(steps) != sorted(set(steps)):
            raise ValueError(f"Stages: steps: expected whole numbers above 0 in ascending order, found {self.steps!r}")
        object.__setattr__(self, "steps", steps)

    def __call__(self, step: int) -> float:
        """Return the rate of this step."""
        return self.start * self.factor ** sum(step >= each for each in self.steps)


@dataclass(frozen=True)
class Warmup:
    """From 0 in a straight line to the first rate of another schedule, which then begins: optax's
    warmup_cosine_decay_schedule, and transformers' get_cosine_schedule_with_warmup.

    Args:
        steps: the number of steps of the warm-up, 1 or more. Step 0 has the rate ``start``, and step ``steps`` the
            first one of ``then``.
        then: a learning rate, or a function of the step, which gets the number of steps since the warm-up.
        start: the rate of step 0, 0 or more.

    Example:
        >>> [Warmup(2, Linear(0.4, 4))(step) for step in range(5)]
        [0.0, 0.2, 0.4, 0.30000000000000004, 0.2]
    """

    steps: int
    then: float | Callable[[int], float]
    start: float = 0.0

    def __post_init__(self) -> None:
        _check(self, rates=("start",) if callable(self.then) else ("start", "then"))

    def __call__(self, step: int) -> float:
        """Return the rate of this step."""
        then = self.then if callable(self.then) else _Constant(self.then)
        if step >= self.steps:
            return then(step - self.steps)
        return self.start + (then(0) - self.start) * (step / self.steps)


@dataclass(frozen=True)
class _Constant:
    rate: float

    def __call__(self, step: int) -> float:
        return self.rate


def _check(schedule: Any, *, rates: Sequence[str]) -> None:
    """Raise TypeError or ValueError, naming the argument, unless rates and the number of steps are possible ones."""
    owner = type(schedule).__name__
    for name in rates:
        rate = getattr(schedule, name)
        if isinstance(rate, bool) or not isinstance(rate, int | float):
            raise TypeError(f"{owner}: {name}: expected a number, found {type(rate).__name__}")
        if not 0 <= rate < math.inf:
            raise ValueError(f"{owner}: {name}: expected a finite number of at least 0, found {rate}")
    if isinstance(schedule, Stages):
        if isinstance(schedule.steps, str) or not isinstance(schedule.steps, Sequence):
            raise TypeError(f"Stages: steps: expected a list of steps, found {type(schedule.steps).__name__}")
        return
    steps = schedule.steps
    if isinstance(steps, bool) or not isinstance(steps, int):
        raise TypeError(f"{owner}: steps: expected a whole number, found {type(steps).__name__}")
    if steps < 1:
        raise ValueError(f"{owner}: steps: expected at least 1, found {steps}")
