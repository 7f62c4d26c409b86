"""The types of a Trainer's arguments. They are structural: a user's function or class needs no base class.

Programs import them from untorn.typing, for annotations. Nothing checks them at run time.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, Protocol, SupportsFloat, TypeAlias

import numpy as np

from untorn.train.models.base import Model
from untorn.train.optim.fused import FusedOptimizer
from untorn.train.optim.turns import Turns
from untorn.typevars import TypeVar

__all__ = [
    "Answer",
    "EngineName",
    "GradientTransformation",
    "LossAndGrad",
    "LossAndGradWithRng",
    "LossModel",
    "Mode",
    "ModelLike",
    "ModelT_co",
    "OptimizerLike",
    "TorchOptimizer",
]

EngineName: TypeAlias = Literal["processes", "serial", "ray", "loopback"]
Mode: TypeAlias = Literal["sync", "async"]

Answer: TypeAlias = tuple[SupportsFloat, Any] | tuple[SupportsFloat, Any, Mapping[str, SupportsFloat]]
"""The answer of a model to a batch: ``(loss, grads)`` or ``(loss, grads, metrics)``."""


class LossAndGrad(Protocol):
    """A function ``loss_and_grad(params, batch) -> (loss, grads[, metrics])``."""

    def __call__(self, params: Any, batch: Any, /) -> Answer:
        """Return the mean loss of the batch, its gradient, a tree like params, and mean metrics by name."""


class LossAndGradWithRng(Protocol):
    """A function ``loss_and_grad(params, batch, rng) -> (loss, grads[, metrics])``, which draws random numbers."""

    def __call__(self, params: Any, batch: Any, rng: np.random.Generator, /) -> Answer:
        """Return what LossAndGrad returns."""


class LossModel(Protocol):
    """An object with a method ``loss_and_grad``. Trainer.predict needs a method ``predict(params, x)`` as well."""

    @property
    def loss_and_grad(self) -> LossAndGrad | LossAndGradWithRng:
        """The function."""


class TorchOptimizer(Protocol):
    """An optimizer of torch.optim, or of a library with the same interface."""

    @property
    def param_groups(self) -> Sequence[dict[str, Any]]:
        """The groups of parameters, with their options."""

    @property
    def state(self) -> Mapping[Any, Any]:
        """The state that is kept for each parameter."""

    def step(self) -> Any:
        """Change the parameters by their gradients."""


class GradientTransformation(Protocol):
    """An optax.GradientTransformation: a pair of pure functions."""

    @property
    def init(self) -> Callable[[Any], Any]:
        """The function ``params -> state``."""

    @property
    def update(self) -> Callable[..., tuple[Any, Any]]:
        """The function ``(gradients, state, params) -> (updates, state)``."""


ModelLike: TypeAlias = (
    LossAndGrad | LossAndGradWithRng | LossModel | Model | Mapping[str, LossAndGrad | LossAndGradWithRng]
)
"""The model of a Trainer: a function, an object with such a method, a dict of functions that take turns, a TorchModel
or a JaxModel."""

OptimizerLike: TypeAlias = FusedOptimizer | Turns | Callable[[list[Any]], TorchOptimizer] | GradientTransformation
"""The optimizer of a Trainer: SGD, Adam, AdamW, RMSprop or Adagrad, a function that makes an optimizer of torch.optim
from a list of parameters, an optax.GradientTransformation, or Turns."""

ModelT_co = TypeVar("ModelT_co", bound=ModelLike, default=Any, covariant=True)
