"""Local steps: an optimizer for slow networks, whose groups exchange weights only after every k steps.

::

    round t        group 0: k steps with the inner optimizer ──┐
    weights t ──>  group 1: k steps with the inner optimizer ──┼──> mean of (weights t - weights of the group)
                   ...                                         │      └── outer optimizer ──> weights t + 1
                   group G-1: ...                            ──┘

For the rest of a training a round is a step, a group is a shard, and what a group sends is a gradient
(models/local_steps.py): so the result depends on the number of groups, and neither on the workers nor on the nodes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import KW_ONLY, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from untorn.board import KernelSettings
from untorn.train.arguments import checked_count
from untorn.train.checkpoints.resuming import described
from untorn.train.optim.base import Optimizer
from untorn.train.optim.fused import SGD, FusedOptimizer, check_clip_norm
from untorn.train.optim.schedules import RateOrSchedule

__all__ = ["LocalSteps"]


@dataclass(frozen=True)
class LocalSteps(Optimizer):
    """Let each of several groups make some steps by itself, and then average them: local SGD, and DiLoCo.

    It exchanges the weights once in ``steps`` steps, so a slow network costs that much less. It is another algorithm
    than plain data-parallel training: between two averages the groups' weights drift apart. The result is as
    reproducible: it depends on the number of groups (the Trainer's ``shards``), and not on workers, nodes or kills.

    A step of the Trainer is then one round, of ``steps`` batches: ``batch_size`` counts the examples of one inner step
    of all groups together, and the last round of an epoch may have fewer. In each round a group starts with the common
    weights, makes its steps one after another in one worker, and gives the difference to the outer optimizer in the
    place of a gradient. With ``outer=SGD(1.0)`` the next weights are the mean of the groups' (to rounding). The state
    of the inner optimizer is averaged, too.

    Sources: Stich, "Local SGD converges fast and communicates little" (2019); averaged momentum: Yu, Jin and Yang, "On
    the linear speedup analysis of communication efficient momentum SGD" (2019); an outer optimizer, as in
    ``outer=SGD(0.7, momentum=0.9, nesterov=True)``: Douillard et al., "DiLoCo: Distributed low-communication training
    of language models" (2023).

    Args:
        inner: makes the steps of a group: SGD, Adam, AdamW, RMSprop or Adagrad. A learning rate that is a function
            gets the number of the inner step.
        steps: the number of inner steps of a round.
        outer: makes the step of a round; the default averages.
        groups: the number of groups, which is the Trainer's ``shards``; None to give it there.
        clip_norm: the maximum norm of a group's gradient in an inner step; a larger one is scaled down to it.

    Example:
        >>> import numpy as np
        >>> from untorn import SGD, LocalSteps, Trainer
        >>> def loss_and_grad(params, batch):
        ...     x, y = batch
        ...     error = x @ params["w"] - y
        ...     return (error**2).mean(), {"w": 2 * x.T @ error / len(x)}
        >>> x = np.random.default_rng(0).normal(size=(256, 2))
        >>> optimizer = LocalSteps(SGD(0.1), steps=4, groups=2)
        >>> with Trainer(loss_and_grad, {"w": np.zeros(2)}, optimizer=optimizer, engine="serial") as trainer:
        ...     history = trainer.fit((x, x @ [1.0, -2.0]), epochs=5, batch_size=16)
        ...     trainer.params["w"].round(2), trainer.step
        (array([ 1., -2.]), 20)
    """

    server_steps = False

    inner: FusedOptimizer
    steps: int
    _: KW_ONLY
    outer: FusedOptimizer = SGD(1.0)  # noqa: RUF009 (frozen)
    groups: int | None = None
    clip_norm: float | None = None

    def __post_init__(self) -> None:
        for name in ("inner", "outer"):
            found = getattr(self, name)
            if not isinstance(found, FusedOptimizer):
                raise TypeError(
                    f"LocalSteps: {name}: expected untorn.SGD(...), Adam, AdamW, RMSprop or Adagrad, found "
                    f"{found.__name__ if isinstance(found, type) else type(found).__name__}"
                )
            if found.groups:
                raise ValueError(
                    f"LocalSteps: {name}: expected an optimizer without groups= of parameters, found {found}"
                )
        object.__setattr__(self, "steps", checked_count("LocalSteps: steps", self.steps, 1, 1_000_000))
        if self.groups is not None:
            object.__setattr__(self, "groups", checked_count("LocalSteps: groups", self.groups, 1, 1024))
        object.__setattr__(self, "clip_norm", check_clip_norm(self.clip_norm))

    def checked_shards(self, mode: str, shards: int | None) -> int | None:
        """Return the number of shards for a trainer with this mode. Raises ValueError."""
        if mode == "async":
            raise ValueError("optimizer: LocalSteps needs mode='sync': it averages the groups after each round")
        if self.groups is not None and shards not in (None, self.groups):
            raise ValueError(
                f"shards: they are the groups of LocalSteps, of which there are {self.groups}; found {shards}"
            )
        return shards if self.groups is None else self.groups

    @property
    def batches(self) -> int:
        """See Optimizer."""
        return self.steps

    @property
    def learning_rate(self) -> RateOrSchedule:  # type: ignore[override]  # it is read, and never set
        """The learning rate of the outer optimizer."""
        return self.outer.learning_rate

    @property
    def kernels(self) -> tuple[KernelSettings, ...]:
        """See Optimizer."""
        return self.outer.kernels

    @property
    def settings(self) -> Any:
        """See Optimizer."""
        return described(self)

    def state_for(self, trained: Any) -> Any:
        """See Optimizer."""
        return self.outer.state_for(trained)

    def rates(self, first_step: int, steps: int, rate_of: Callable[[int], float] | None = None) -> NDArray[np.float64]:
        """See Optimizer."""
        return self.outer.rates(first_step, steps, rate_of)
