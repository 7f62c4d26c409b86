"""Turns: several losses, each of which trains a part of the parameters, one step after another.

::

    step      0      1      2      3          Turns(netD=Adam(...), netG=Adam(...))
    loss      netD   netG   netD   netG       the model has a loss of each name
    netD.*    step   -      step   -          "-": parameters and optimizer state stay as they are
    netG.*    -      step   -      step

The part that a step trains depends on the number of the step alone, so a training that resumes goes on with the turn
that it had reached, and nothing about turns is in a checkpoint but their description.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, TypeAlias, final

import numpy as np
from numpy.typing import NDArray

from untorn import _core
from untorn.board import KernelSettings
from untorn.train.models.base import Turn
from untorn.train.optim.base import Optimizer
from untorn.train.optim.fused import FusedOptimizer
from untorn.train.optim.grouped import GroupedOptimizer
from untorn.train.optim.groups import Pattern, assigned, checked_patterns, names_and_arrays
from untorn.train.optim.initial import state_of
from untorn.train.optim.schedules import RateOrSchedule, rate_at

__all__ = ["Part", "Turns", "TurnsOptimizer"]

Part: TypeAlias = FusedOptimizer | tuple[Pattern | Sequence[Pattern], FusedOptimizer]
"""The optimizer of a part of the parameters; or a path or several, which say what belongs to the part, and it."""

_MAX_TURNS = 10_000


@final
class Turns:
    """The optimizer of a model with several losses that take turns: GANs, actor and critic.

    Each step computes one of the losses, its gradient for the parameters of its part, and a step of that part's
    optimizer. The parameters of the others stay, and so do the state and the count of steps of their optimizers. The
    model has a loss for each name: ``TorchModel(module, None, forward={name: function})``, or ``Trainer({name:
    function}, params)``.

    Each step takes the next batch. To show several turns the same batch, call ``trainer.step(batch)`` once for each, or
    give ``fit`` an iterable that yields each batch once for each.

    Args:
        order: the names in the order of their turns, which is repeated; a name may come several times, such as
            ``["critic"] * 5 + ["actor"]``. By default each has one turn, in the order of the parts.
        parts: the optimizer of each part: SGD, Adam, AdamW, RMSprop or Adagrad, with ``groups`` or without. The part is
            the module, or the key of the tree, of that name. For another name, or other parameters, write
            ``name=(paths, optimizer)``, with paths as in ``groups``. A learning rate that is a function gets the number
            of the part's own step.

    Raises:
        TypeError, ValueError: a name or an optimizer is wrong. A Trainer raises ValueError for a parameter in no part,
            or in two.

    Example:
        >>> import numpy as np
        >>> from untorn import SGD, Trainer, Turns
        >>> def down(params, batch):                             # the part "a" goes towards b
        ...     away = params["a"] - params["b"]
        ...     return float(away**2), {"a": 2 * away, "b": 0 * away}
        >>> def up(params, batch):                               # the part "b" goes towards 3
        ...     away = params["b"] - 3
        ...     return float(away**2), {"a": 0 * away, "b": 2 * away}
        >>> optimizer = Turns(a=SGD(0.5), b=SGD(0.25))
        >>> params = {"a": np.array(0.0), "b": np.array(1.0)}
        >>> with Trainer({"a": down, "b": up}, params, optimizer=optimizer, engine="serial") as trainer:
        ...     history = trainer.fit((np.zeros(4),), epochs=1, batch_size=2)
        ...     float(trainer.params["a"]), float(trainer.params["b"])
        (1.0, 2.0)
    """

    def __init__(self, *, order: Sequence[str] | None = None, **parts: Part) -> None:
        if not parts:
            raise TypeError(
                "Turns: expected the optimizer of each part by name, such as Turns(netD=Adam(), netG=Adam())"
            )
        if len(parts) > _core.BOARD_METRICS:
            raise ValueError(f"Turns: expected at most {_core.BOARD_METRICS} parts, found {len(parts)}")
        self.parts: dict[str, tuple[tuple[Pattern, ...], FusedOptimizer]] = {
            name: _checked_part(name, part) for name, part in parts.items()
        }
        names = list(parts) if order is None else order
        if isinstance(names, str) or not isinstance(names, Sequence):
            raise TypeError(f"Turns: order: expected a list of names of parts, found {type(order).__name__}")
        for name in names:
            if name not in parts:
                raise ValueError(f"Turns: order: expected names of parts, {', '.join(parts)}; found {name!r}")
        for name in parts:
            if name not in names:
                raise ValueError(f"Turns: order: the part {name} has no turn; expected each part at least once")
        if len(names) > _MAX_TURNS:
            raise ValueError(f"Turns: order: expected at most {_MAX_TURNS:,} turns, found {len(names):,}")
        self.order: tuple[str, ...] = tuple(names)

    def __repr__(self) -> str:
        parts = (f"{name}={part}" for name, part in self.parts.items())
        return f"Turns({', '.join(parts)}, order={list(self.order)!r})"


def _checked_part(name: str, part: Any) -> tuple[tuple[Pattern, ...], FusedOptimizer]:
    patterns: Any = name
    optimizer = part
    if isinstance(part, tuple):
        if len(part) != 2:
            raise TypeError(f"Turns: {name}: expected (paths, optimizer), found a tuple of {len(part)}")
        patterns, optimizer = part
    if not isinstance(optimizer, FusedOptimizer):
        found = optimizer.__name__ if isinstance(optimizer, type) else type(optimizer).__name__
        raise TypeError(
            f"Turns: {name}: expected untorn.SGD(...), Adam, AdamW, RMSprop or Adagrad, or (paths, optimizer), found "
            f"{found}; optimizers of other libraries take no turns"
        )
    return checked_patterns(f"Turns: {name}", patterns), optimizer


class TurnsOptimizer(Optimizer):
    """Turns as a trainer uses them.

    Args:
        given: the turns.
        trained: the tree of parameters.
    """

    server_steps = False

    def __init__(self, given: Turns, trained: Any) -> None:
        self._given = given
        self._names = list(given.parts)
        self._order = [self._names.index(name) for name in given.order]
        names, arrays = names_and_arrays(trained)
        patterns = {f"Turns: {name}": part[0] for name, part in given.parts.items()}
        found = assigned(patterns, names, arrays)
        if None in found:
            raise ValueError(
                f"Turns: parameter {names[found.index(None)]} is in no part; expected each one in "
                f"{', '.join(self._names)}. Add its path to one of them, name=(paths, optimizer), or freeze it "
                "(requires_grad_(False))"
            )
        self._part_of = [index for index in found if index is not None]
        self._optimizers: list[GroupedOptimizer] = []
        #: the group, among those of all parts, that each part begins with
        self._first: list[int] = []
        groups = [0] * len(names)
        for index, (_, optimizer) in enumerate(given.parts.values()):
            own = [place for place, part in enumerate(self._part_of) if part == index]
            made = GroupedOptimizer(optimizer, [names[place] for place in own], [arrays[place] for place in own])
            self._first.append(len(self._groups))
            for place, group in zip(own, made.assignment, strict=True):
                groups[place] = self._first[index] + group
            self._optimizers.append(made)
        self._assignment = tuple(groups)
        rate = self._optimizers[0].learning_rate
        self.learning_rate: RateOrSchedule = self._first_rate if callable(rate) else rate

    @property
    def _groups(self) -> list[FusedOptimizer]:
        return [group for each in self._optimizers for group in each.groups]

    @property
    def kernels(self) -> tuple[KernelSettings, ...]:
        """See Optimizer."""
        return tuple(kernel for each in self._optimizers for kernel in each.kernels)

    @property
    def by_rows(self) -> tuple[bool, ...]:
        """See Optimizer."""
        return tuple(by_rows for each in self._optimizers for by_rows in each.by_rows)

    @property
    def assignment(self) -> tuple[int, ...]:
        """See Optimizer."""
        return self._assignment

    @property
    def turns(self) -> tuple[Turn, ...]:
        """See Optimizer."""
        trained = [tuple(part == index for part in self._part_of) for index in range(len(self._names))]
        return tuple(Turn(self._names[index], trained[index]) for index in self._order)

    @property
    def settings(self) -> Any:
        """See Optimizer."""
        parts = {name: made.settings for name, made in zip(self._names, self._optimizers, strict=True)}
        return {"name": "Turns", "order": list(self._given.order), "parts": parts, "part_of": self._part_of}

    def state_for(self, trained: Any) -> Any:
        """See Optimizer."""
        return state_of(self._groups, self._assignment, trained)

    def rates(self, first_step: int, steps: int, rate_of: Callable[[int], float] | None = None) -> NDArray[np.float64]:
        """See Optimizer. A rate that was set is that of the first part; it changes those of the others by the same
        factor."""
        rows = np.ones((steps, len(self._groups), _core.KERNEL_RATES))
        rows[:, :, 0] = np.nan
        for row, step in zip(rows, range(first_step, first_step + steps), strict=True):
            index = self._order[step % len(self._order)]
            optimizer, first = self._optimizers[index], self._first[index]
            made = optimizer.rates(self._count(index, step), 1, self._changed(optimizer, step, rate_of))
            row[first : first + len(optimizer.groups)] = made.reshape(-1, _core.KERNEL_RATES)
        return rows.reshape(steps, -1)

    def _changed(
        self, optimizer: GroupedOptimizer, step: int, rate_of: Callable[[int], float] | None
    ) -> Callable[[int], float] | None:
        """Return the learning rate of a part, as a function of its step, in this step of all; None for its own."""
        if rate_of is None:
            return None
        scheduled, rate = rate_at("Turns", self.learning_rate, step), rate_of(step)
        return None if rate == scheduled else partial(_scaled, optimizer.learning_rate, scheduled, rate)

    def _count(self, part: int, step: int) -> int:
        """Return the number of steps of a part among the first steps of all."""
        rounds, rest = divmod(step, len(self._order))
        return rounds * self._order.count(part) + self._order[:rest].count(part)

    def _first_rate(self, step: int) -> float:
        """Return the learning rate of the first part, in a step of all."""
        return rate_at("Turns", self._optimizers[0].learning_rate, self._count(0, step))


def _scaled(own: RateOrSchedule, scheduled: float, rate: float, step: int) -> float:
    return rate_at("Turns", own, step) * (rate / scheduled) if scheduled else rate
