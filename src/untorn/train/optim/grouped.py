"""An optimizer with groups of parameters, as a trainer uses it: each group has a kernel and rates of its own."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from untorn import _core
from untorn.board import KernelSettings
from untorn.train.optim.base import Optimizer
from untorn.train.optim.fused import FusedOptimizer
from untorn.train.optim.groups import assigned
from untorn.train.optim.initial import state_of
from untorn.train.optim.schedules import RateOrSchedule, rate_at

__all__ = ["GroupedOptimizer"]

#: of a group: the factor of the optimizer's learning rate
_SCALE = "lr_scale"


class GroupedOptimizer(Optimizer):
    """A fused optimizer whose parameters are in groups. The first group is that of all parameters in no other.

    Args:
        base: the optimizer, with groups or without.
        names, arrays: the path of each parameter, and the parameters.

    Attributes:
        groups: the optimizer of each group.

    Raises:
        TypeError, ValueError: a group has another setting than the optimizer, or a wrong value; a pattern matches no
            parameter; two groups have the same parameter. The message names it.
    """

    server_steps = False

    def __init__(self, base: FusedOptimizer, names: Sequence[str], arrays: Sequence[NDArray[Any]]) -> None:
        self._base = base
        self.learning_rate = base.learning_rate
        self._own: list[tuple[RateOrSchedule | None, float]] = [(None, 1.0)]
        self.groups = [dataclasses.replace(base, groups=())]
        for index, group in enumerate(base.groups):
            made, own = _made(base, f"groups[{index}]", dict(group))
            self.groups.append(made)
            self._own.append(own)
        patterns = {f"groups[{index}]": group["params"] for index, group in enumerate(base.groups)}
        self._assignment = tuple(0 if index is None else 1 + index for index in assigned(patterns, names, arrays))

    @property
    def kernels(self) -> tuple[KernelSettings, ...]:
        """See Optimizer."""
        return tuple(each.kernel for each in self.groups)

    @property
    def by_rows(self) -> tuple[bool, ...]:
        """See Optimizer."""
        return tuple(by_rows for each in self.groups for by_rows in each.by_rows)

    @property
    def assignment(self) -> tuple[int, ...]:
        """See Optimizer."""
        return self._assignment

    @property
    def settings(self) -> Any:
        """See Optimizer."""
        return self._base.settings

    def state_for(self, trained: Any) -> Any:
        """See Optimizer."""
        return state_of(self.groups, self._assignment, trained)

    def rates(self, first_step: int, steps: int, rate_of: Callable[[int], float] | None = None) -> NDArray[np.float64]:
        """See Optimizer. A rate that was set changes that of each group by the same factor."""
        rows = np.empty((steps, len(self.groups), _core.KERNEL_RATES))
        for index, (optimizer, (own, scale)) in enumerate(zip(self.groups, self._own, strict=True)):
            rows[:, index] = optimizer.rates(first_step, steps, partial(self._rate, rate_of, own, scale))
        return rows.reshape(steps, -1)

    def _rate(
        self, rate_of: Callable[[int], float] | None, own: RateOrSchedule | None, scale: float, step: int
    ) -> float:
        """Return the rate of a group for one step."""
        name = type(self._base).__name__
        scheduled = rate_at(name, self.learning_rate, step)
        common = scheduled if rate_of is None else rate_of(step)
        if own is None:
            return common * scale
        alone = rate_at(name, own, step)
        if common == scheduled:
            return alone
        return alone * (common / scheduled) if scheduled else common


def _made(
    base: FusedOptimizer, where: str, options: dict[str, Any]
) -> tuple[FusedOptimizer, tuple[RateOrSchedule | None, float]]:
    """Return the optimizer of a group, and its learning rate: one of its own, or None, and the factor."""
    del options["params"]
    scale = options.pop(_SCALE, 1.0)
    if isinstance(scale, bool) or not isinstance(scale, int | float) or not 0 <= scale < np.inf:
        raise ValueError(f"{where}: {_SCALE}: expected a finite number of at least 0, found {scale!r}")
    own = options.get("learning_rate")
    if own is not None and scale != 1:
        raise ValueError(f"{where}: it has a learning_rate and {_SCALE}, the factor of the others' rate; give one")
    if callable(base.learning_rate) and own is not None and not callable(own):
        raise ValueError(
            f"{where}: learning_rate={own!r} is a number, and the optimizer's is a function of the step; write "
            f"{_SCALE}= for a factor of that, or give the group a function"
        )
    names = {each.name for each in dataclasses.fields(base)} - {"groups"}
    try:
        if "groups" in options:
            raise TypeError("a group has no groups of its own")
        made = type(base)(**{name: getattr(base, name) for name in names} | options)
    except (TypeError, ValueError) as error:
        raise type(error)(f"{where}: {error}") from None
    return made, (own, float(scale))
