"""The interface of an optimizer, which SGD, torch.optim and optax share.

::

    what the user gave ── as_optimizer ──> Optimizer ── kernel, rates ──> board: the workers make each step
                                               └─────── session ────────> Session: the server makes each step

An Optimizer is described once; its state is published beside the weights, in every version. If the server makes the
steps (``server_steps``), the workers sum the gradients, and run/server_steps.py takes the sums from there.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import partial
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from untorn import _core
from untorn.board import NO_UPDATE, KernelSettings
from untorn.train.models.base import Turn
from untorn.train.optim.schedules import RateOrSchedule, rate_at

__all__ = ["SKIPPED", "LoopOptimizer", "Optimizer", "ServerOptimizer", "Session"]

#: the name, among what a fused optimizer publishes, of the number of steps that skipped each parameter
SKIPPED = "skipped"


class Session(ABC):
    """An optimizer at work, from its first job on: it owns a copy of the parameters, and its state. Abstract."""

    @abstractmethod
    def step(self, gradients: list[NDArray[Any] | None], rate: float) -> None:
        """Make one step with these gradients, one per parameter, or None for a parameter that has none; they may be
        changed. ``rate`` is the learning rate of all parameters, or of the first group of them; NaN leaves it to the
        optimizer."""

    @abstractmethod
    def values(self) -> list[NDArray[Any]]:
        """Return the parameters, and then the state in the order of Optimizer.state_for: views, valid until the next
        step."""


class Optimizer(ABC):
    """The rule by which weights follow from gradients, as a Trainer uses it. Abstract.

    Attributes:
        learning_rate: that of the first group of parameters, a number or a function of the step; NaN if unknown.
    """

    #: whether the server makes the steps, in a session; else the workers do, with the kernel
    server_steps: ClassVar[bool]
    #: what the optimizer keeps where no version can have it, such as "it keeps its attribute number ..."; "" for
    #: nothing. If there is something, a session cannot begin from a version
    outside: str = ""
    learning_rate: RateOrSchedule

    @property
    def batches(self) -> int:
        """The number of batches that a step takes."""
        return 1

    @property
    @abstractmethod
    def kernels(self) -> tuple[KernelSettings, ...]:
        """The kernel of the workers' updates, and its numbers that no step changes, of each group of parameters."""

    @property
    def assignment(self) -> tuple[int, ...]:
        """The group of each parameter, in the order of the tree; empty if all are in the first."""
        return ()

    @property
    def by_rows(self) -> tuple[bool, ...]:
        """Of each group of parameters, whether a step changes only the rows of a table that have a gradient, and their
        state, if the model has tables (Parts.tables)."""
        return (False,) * len(self.kernels)

    @property
    def turns(self) -> tuple[Turn, ...]:
        """The turns that the steps take, over and over; empty if each step trains all parameters."""
        return ()

    @property
    @abstractmethod
    def settings(self) -> Any:
        """The description of the optimizer in a checkpoint, which must be equal when training resumes."""

    @abstractmethod
    def state_for(self, trained: Any) -> Any:
        """Return the state that is published beside these parameters before the first step: a dict, or None."""

    @abstractmethod
    def rates(self, first_step: int, steps: int, rate_of: Callable[[int], float] | None = None) -> NDArray[np.float64]:
        """Return the kernel's numbers for these steps, as a board has them: a new array (steps, 5 * groups) of the
        learning rate with its corrections, the factor of the parameters, the factor of the root of the second moment,
        the learning rate itself, and the number of the step, from 1 on, for each group. A learning rate with
        corrections of NaN says that the group takes no step. ``rate_of`` takes the place of ``learning_rate``.

        Raises TypeError or ValueError, naming the step, if a schedule gives anything but a finite number of 0 or more.
        """

    def session(self, trained: Any, state: dict[str, NDArray[Any]], *, threads: int) -> Session:
        """Return the optimizer at work, with these parameters and this state, which the session owns from now on.
        ``threads`` is used by libraries whose number of threads can be set. Only called if ``server_steps``."""
        raise TypeError(f"{type(self).__name__}: the workers make its steps")


class ServerOptimizer(Optimizer):
    """An optimizer of another library, whose steps the server makes. Abstract.

    Args:
        learning_rate: the learning rate of the first group of parameters, a number or a function of the step; NaN if it
            is unknown.
        state: the state to publish beside the weights before the first step.
        settings: the description in a checkpoint.
    """

    server_steps = True

    def __init__(self, learning_rate: RateOrSchedule, state: dict[str, NDArray[Any]], settings: Any) -> None:
        self.learning_rate: RateOrSchedule = learning_rate
        self._state = state
        self._settings = settings

    @property
    def kernels(self) -> tuple[KernelSettings, ...]:
        """See Optimizer. The workers' updates have no step to make."""
        return (NO_UPDATE,)

    @property
    def settings(self) -> Any:
        """See Optimizer."""
        return self._settings

    def state_for(self, trained: Any) -> dict[str, NDArray[Any]]:
        """See Optimizer."""
        return self._state

    def rates(self, first_step: int, steps: int, rate_of: Callable[[int], float] | None = None) -> NDArray[np.float64]:
        """See Optimizer."""
        rows = np.ones((steps, _core.KERNEL_RATES))
        if rate_of is None:
            rate_of = partial(rate_at, type(self).__name__, self.learning_rate)
        changes = callable(self.learning_rate)
        rows[:, 0] = [rate_of(first_step + step) for step in range(steps)] if changes else rate_of(first_step)
        return rows

    @abstractmethod
    def session(self, trained: Any, state: dict[str, NDArray[Any]], *, threads: int) -> Session:
        """See Optimizer."""


class LoopOptimizer(ServerOptimizer):
    """The optimizer of a loop outside the trainer, which makes each step itself once it has the gradient. Abstract.

    Args:
        name: the name of the loop's interface, for errors.
    """

    def __init__(self, name: str) -> None:
        super().__init__(math.nan, {}, {"name": name})
        self._name = name

    @abstractmethod
    def values(self) -> list[NDArray[Any]]:
        """Return the loop's newest values, views or copies: all leaves of a version, in its order."""

    @abstractmethod
    def take(self, buffers: list[NDArray[Any]], gradients: list[NDArray[Any] | None]) -> None:
        """Take the model's new buffers, and the gradient of each parameter that is trained, or None for one that has
        none: read-only views, valid during the call."""

    def session(self, trained: Any, state: dict[str, NDArray[Any]], *, threads: int) -> Session:
        """See Optimizer. Raises TypeError: the loop makes the steps."""
        raise TypeError(f"{self._name}: the loop makes the steps")
