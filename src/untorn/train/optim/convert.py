"""Convert a user's optimizer to an Optimizer."""

from __future__ import annotations

from typing import Any

from untorn.train.optim.base import Optimizer
from untorn.train.optim.fused import FusedOptimizer
from untorn.train.optim.grouped import GroupedOptimizer
from untorn.train.optim.groups import names_and_arrays
from untorn.train.optim.optax import OptaxOptimizer
from untorn.train.optim.sparse_adam import sparse_adam_of
from untorn.train.optim.torch import TorchOptimizer
from untorn.train.optim.turns import Turns, TurnsOptimizer

__all__ = ["as_optimizer"]


def as_optimizer(given: Any, trained: Any) -> Optimizer:
    """Return the optimizer of a trainer with these parameters: itself, or an adapter of a function that makes one of
    torch.optim, or of an optax.GradientTransformation. Raises TypeError for anything else."""
    if isinstance(given, FusedOptimizer) and given.groups:
        return GroupedOptimizer(given, *names_and_arrays(trained))
    if isinstance(given, Turns):
        return TurnsOptimizer(given, trained)
    if isinstance(given, Optimizer):
        return given
    if isinstance(given, type) and issubclass(given, FusedOptimizer):
        name = given.__name__
        raise TypeError(f"optimizer: expected untorn.{name}(...), found the class {name}; make one: {name}(0.1)")
    if callable(getattr(given, "init", None)) and callable(getattr(given, "update", None)):
        return OptaxOptimizer(given, trained)
    if (sparse_adam := sparse_adam_of(given)) is not None:
        return sparse_adam
    if callable(given) and not hasattr(given, "param_groups"):
        return TorchOptimizer(given, trained)
    found = type(given).__name__
    advice = "Adam, AdamW, RMSprop and Adagrad will do as well"
    if hasattr(given, "param_groups"):
        advice = f"give what makes one of torch.optim from parameters: functools.partial(torch.optim.{found}, lr=...)"
    raise TypeError(f"optimizer: expected untorn.SGD(...), found {found}; {advice}")
