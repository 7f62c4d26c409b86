"""Optimizers: what a step does with the gradient. The arithmetic is in C (csrc/kernels.c), fused with the sum."""

from __future__ import annotations

import math
from dataclasses import dataclass

__all__ = ["SGD"]


@dataclass(frozen=True)
class SGD:
    """Stochastic gradient descent as torch.optim.SGD defines it, with momentum, Nesterov momentum and weight decay.

    Per parameter w with gradient g: ``d = g + weight_decay * w``; with momentum ``m = momentum * m + d`` and
    ``d = d + momentum * m`` (Nesterov) or ``d = m``; then ``w = w - learning_rate * d``.

    Source: Sutskever, Martens, Dahl and Hinton, "On the importance of initialization and momentum in deep learning"
    (2013), with PyTorch's placement of the learning rate.

    Args:
        learning_rate: greater than 0.
        momentum: 0 (none) or more, below 1.
        nesterov: look ahead; needs momentum.
        weight_decay: L2 penalty, 0 or more.

    Example:
        >>> SGD(0.1, momentum=0.9, nesterov=True)
        SGD(learning_rate=0.1, momentum=0.9, nesterov=True, weight_decay=0.0)
    """

    learning_rate: float
    momentum: float = 0.0
    nesterov: bool = False
    weight_decay: float = 0.0

    def __post_init__(self) -> None:
        for name in ("learning_rate", "momentum", "weight_decay"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float):
                raise TypeError(f"SGD: {name} must be a number, found {type(value).__name__}")
            if not math.isfinite(value) or value < 0:
                raise ValueError(f"SGD: {name} must be finite and not negative, found {value}")
        if self.learning_rate == 0:
            raise ValueError("SGD: learning_rate must be greater than 0")
        if self.momentum >= 1:
            raise ValueError(f"SGD: momentum must be below 1, found {self.momentum}")
        if self.nesterov and self.momentum == 0:
            raise ValueError("SGD: nesterov needs momentum")

    @property
    def state_names(self) -> tuple[str, ...]:
        """The buffers that this optimizer keeps for each parameter, in the order in which the kernels use them."""
        return ("momentum",) if self.momentum else ()
