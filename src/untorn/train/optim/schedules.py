"""Learning rates that change: any function of the step, whose values are checked.

A schedule is a function ``step -> learning rate``, with the step counted from 0 when the trainer was made, over all
calls of ``fit``. optax's schedules are such functions; so is ``lambda step: 0.1 * 0.99**step``. The server asks for a
whole epoch's rates when it opens the epoch, so a schedule never slows a worker down.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np

__all__ = ["RateOrSchedule", "TorchSchedule", "check_learning_rate", "rate_at"]

RateOrSchedule: TypeAlias = float | Callable[[int], float]


def check_learning_rate(owner: str, learning_rate: Any) -> None:
    """Raise TypeError or ValueError unless this is a number greater than 0, or a function."""
    if callable(learning_rate):
        return
    if isinstance(learning_rate, bool) or not isinstance(learning_rate, int | float | np.number):
        found = type(learning_rate).__name__
        text = f"{owner}: learning_rate must be a number or a function of the step, found {found}"
        if hasattr(learning_rate, "get_last_lr"):
            text += "; write untorn.TorchSchedule(scheduler)"
        elif hasattr(learning_rate, "__iter__"):
            text += f"; leave the parameters out, the Trainer has them: {owner}(0.1)"
        raise TypeError(text)
    if not math.isfinite(learning_rate) or learning_rate < 0:
        raise ValueError(f"{owner}: learning_rate must be finite and not negative, found {learning_rate}")
    if learning_rate == 0:
        raise ValueError(f"{owner}: learning_rate must be greater than 0")


def rate_at(owner: str, learning_rate: RateOrSchedule, step: int) -> float:
    """Return the learning rate of one step, finite and at least 0. Raises TypeError or ValueError, naming the step."""
    if not callable(learning_rate):
        return float(learning_rate)
    found: Any = learning_rate(step)
    scalar = not isinstance(found, bool | str | bytes) and hasattr(type(found), "__float__")
    if not scalar or getattr(found, "ndim", 0) != 0:
        raise TypeError(
            f"{owner}: learning_rate({step}) must be a number, found {type(found).__name__}; the function gets the "
            "step as an int, counted from 0, and returns one number"
        )
    rate = float(found)
    if not math.isfinite(rate) or rate < 0:
        raise ValueError(f"{owner}: learning_rate({step}) must be finite and not negative, found {rate}")
    return rate


class TorchSchedule:
    """A torch.optim.lr_scheduler as a function of the step, which returns the rate of its optimizer's first group.

    Only this object steps the scheduler, once per training step, and nothing steps the scheduler's optimizer. So give
    it a separate optimizer; changes other than the learning rate, such as OneCycleLR's momentum, have no effect.

    Args:
        scheduler: a new torch.optim.lr_scheduler.LRScheduler; not ReduceLROnPlateau, which needs a metric. Or a
            function that makes one from an optimizer, such as functools.partial(CosineAnnealingLR, T_max=1000), with
            ``lr``.
        lr: the learning rate that such a scheduler starts from.

    Example:
        >>> import torch
        >>> optimizer = torch.optim.SGD([torch.zeros(1)], lr=0.1)
        >>> schedule = TorchSchedule(torch.optim.lr_scheduler.StepLR(optimizer, step_size=2, gamma=0.5))
        >>> [schedule(step) for step in range(5)]
        [0.1, 0.1, 0.05, 0.05, 0.025]
    """

    def __init__(self, scheduler: Any, *, lr: float | None = None) -> None:
        if callable(scheduler) and not hasattr(scheduler, "get_last_lr"):
            scheduler = _made(scheduler, lr)
        for name in ("step", "get_last_lr"):
            if not callable(getattr(scheduler, name, None)):
                raise TypeError(f"scheduler: expected a torch.optim.lr_scheduler, found {type(scheduler).__name__}")
        if type(scheduler).__name__ == "ReduceLROnPlateau":
            raise TypeError("scheduler: ReduceLROnPlateau needs a metric, so it is not a function of the step")
        self._scheduler = scheduler
        self._rates = [float(scheduler.get_last_lr()[0])]

    def __call__(self, step: int) -> float:
        """Return the learning rate of this step, counted from 0."""
        while len(self._rates) <= step:
            # torch warns about the order of optimizer.step() and scheduler.step(). There is no optimizer.step() here,
            # and silencing the warning for a moment would silence it for all threads
            optimizer = getattr(self._scheduler, "optimizer", None)
            if optimizer is not None:
                optimizer._opt_called = True  # noqa: SLF001 (torch has no public name for it)
            self._scheduler.step()
            self._rates.append(float(self._scheduler.get_last_lr()[0]))
        return self._rates[step]


def _made(make: Callable[[Any], Any], lr: float | None) -> Any:
    """Return the scheduler that a function makes, of an optimizer that nothing else uses."""
    import torch

    if lr is None:
        raise TypeError("scheduler: found a function that makes one, which needs lr=, the rate that it starts from")
    return make(torch.optim.SGD([torch.zeros(1)], lr=lr))
