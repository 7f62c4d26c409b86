"""Optimizers whose step is a C kernel (csrc/kernels.c), fused with summing the gradients.

An optimizer here is a value: its hyperparameters, the buffers of state that it keeps for each parameter, and the row
of numbers that the kernels need for each step, such as Adam's bias corrections::

    SGD(...) ── kernel ────────> board: once
             ── rates(steps) ──> board: a row per step of an epoch, in double precision
             ── initial_state ─> the first version of the weights

A parameter that has no gradient in a step is skipped: it and its state stay as they are. Numbers that depend on how
many steps a parameter has made are then computed by the kernels, from the number of those that it skipped.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from untorn import _core
from untorn.board import KernelSettings
from untorn.train.checkpoints.resuming import described
from untorn.train.optim.base import Optimizer
from untorn.train.optim.groups import checked_groups
from untorn.train.optim.guesses import says_the_right_word
from untorn.train.optim.initial import state_of
from untorn.train.optim.schedules import RateOrSchedule, check_learning_rate, rate_at

__all__ = ["SGD", "Adagrad", "Adam", "AdamW", "FusedOptimizer", "RMSprop", "check_clip_norm"]


@dataclass(frozen=True, repr=False)
class FusedOptimizer(Optimizer):
    """An optimizer whose step is a C kernel. Abstract.

    Args:
        learning_rate: greater than 0, or a function of the step, which is counted from 0 over all calls of fit; optax's
            schedules are such functions. The server calls it once per step, when an epoch begins.
        groups: parameters with other settings, a list of dicts as torch.optim takes it, except that ``params`` says
            which: ``{"params": ["*.bias", "norm*"], "weight_decay": 0.0}``. A pattern is a path as in
            Publisher.patch(), such as "head.weight" or "head/w"; that of a module or dict stands for all that is below;
            ``*`` stands for any characters. Or a function ``(name, array) -> bool``. The other keys are arguments of
            this optimizer, or ``lr_scale``, a factor of its learning rate. A parameter in no group has the optimizer's
            own settings.
    """

    server_steps = False
    learning_rate: RateOrSchedule
    groups: Sequence[Mapping[str, Any]] = field(default=(), kw_only=True)

    def __post_init__(self) -> None:
        check_learning_rate(type(self).__name__, self.learning_rate)
        object.__setattr__(self, "groups", checked_groups(self.groups))

    def __repr__(self) -> str:
        shown = [(each.name, getattr(self, each.name)) for each in fields(self) if each.name != "groups" or self.groups]
        return f"{type(self).__name__}({', '.join(f'{name}={value!r}' for name, value in shown)})"

    @property
    @abstractmethod
    def initial_state(self) -> dict[str, float]:
        """The buffers kept for each parameter, in the order in which the kernels use them, with the value that fills
        each before the first step."""

    @property
    @abstractmethod
    def kernel(self) -> KernelSettings:
        """The kernel of the workers' updates, and its numbers that no step changes, without the groups."""

    @property
    def kernels(self) -> tuple[KernelSettings, ...]:
        """See Optimizer. A trainer uses an optimizer with groups through a GroupedOptimizer."""
        return (self.kernel,)

    @property
    def state_names(self) -> tuple[str, ...]:
        """The buffers kept for each parameter, in the order in which the kernels use them."""
        return tuple(self.initial_state)

    @property
    def counts_steps(self) -> bool:
        """Whether a step depends on how many steps the parameter has made before."""
        return False

    @property
    def settings(self) -> Any:
        """See Optimizer."""
        found = described(self)
        return found if self.groups else {name: value for name, value in found.items() if name != "groups"}

    def state_for(self, trained: Any) -> dict[str, Any] | None:
        """See Optimizer. Each buffer is a tree like the parameters; "skipped", if the optimizer counts steps, is the
        number of steps that skipped each parameter."""
        return state_of([self], (), trained)

    def rates(self, first_step: int, steps: int, rate_of: Callable[[int], float] | None = None) -> NDArray[np.float64]:
        """See Optimizer. The numbers are computed one by one, in double precision."""
        name, schedule = type(self).__name__, self.learning_rate if rate_of is None else rate_of
        rows = []
        for step in range(first_step, first_step + steps):
            rate = rate_at(name, schedule, step)
            rows.append((*self._row(rate, step), rate, step + 1))
        return np.array(rows, np.float64).reshape(steps, _core.KERNEL_RATES)

    def _row(self, rate: float, step: int) -> tuple[float, float, float]:
        """Return the first three of the kernel's numbers for a step with this learning rate."""
        return rate, 1.0, 1.0

    def _check(self, names: str, *, below: float = math.inf) -> None:
        for name in names.split():
            _check_number(type(self).__name__, name, getattr(self, name), below)


def _check_number(owner: str, name: str, value: Any, below: float = math.inf) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{owner}: {name} must be a number, found {type(value).__name__}")
    if not math.isfinite(value) or value < 0:
        raise ValueError(f"{owner}: {name} must be finite and not negative, found {value}")
    if value >= below:
        raise ValueError(f"{owner}: {name} must be below {below:g}, found {value}")


def check_clip_norm(value: Any) -> float | None:
    """Return the largest allowed norm of a gradient, or None for no limit. Raises TypeError or ValueError."""
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"clip_norm: expected a number or None, found {type(value).__name__}")
    if not math.isfinite(value) or value <= 0:
        raise ValueError(f"clip_norm: expected a finite number greater than 0, or None, found {value}")
    return float(value)


@says_the_right_word
@dataclass(frozen=True, repr=False)
class SGD(FusedOptimizer):
    """Stochastic gradient descent as torch.optim.SGD defines it, with momentum, Nesterov momentum and weight decay.

    Per parameter w with gradient g: ``d = g + weight_decay * w``; with momentum ``m = momentum * m + d`` and
    ``d = d + momentum * m`` (Nesterov) or ``d = m``; then ``w = w - learning_rate * d``.

    Source: Sutskever, Martens, Dahl and Hinton, "On the importance of initialization and momentum in deep learning"
    (2013), with PyTorch's placement of the learning rate.

    Args:
        learning_rate: greater than 0, or a function of the step (counted from 0).
        momentum: 0 (none) or more, below 1.
        nesterov: look ahead; needs momentum.
        weight_decay: L2 penalty, 0 or more.

    Example:
        >>> SGD(0.1, momentum=0.9, nesterov=True)
        SGD(learning_rate=0.1, momentum=0.9, nesterov=True, weight_decay=0.0)
    """

    momentum: float = 0.0
    nesterov: bool = False
    weight_decay: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check("weight_decay")
        self._check("momentum", below=1)
        if self.nesterov and self.momentum == 0:
            raise ValueError("SGD: nesterov needs momentum")

    @property
    def initial_state(self) -> dict[str, float]:
        """The momentum, if there is any."""
        return {"momentum": 0.0} if self.momentum else {}

    @property
    def by_rows(self) -> tuple[bool, ...]:
        """See Optimizer. Without momentum and decay, a row without a gradient stays as it is in any case."""
        return (self.momentum == 0 and self.weight_decay == 0,)

    @property
    def kernel(self) -> KernelSettings:
        """See FusedOptimizer."""
        return KernelSettings(_core.KERNEL_SGD, self.momentum, self.weight_decay, nesterov=self.nesterov)


@says_the_right_word
@dataclass(frozen=True, repr=False)
class Adam(FusedOptimizer):
    """Adam as torch.optim.Adam defines it, with AMSGrad and weight decay as an L2 penalty.

    Per parameter w with gradient g, at step t = 1, 2, ...: ``g = g + weight_decay * w``;
    ``m = beta1 * m + (1 - beta1) * g``; ``v = beta2 * v + (1 - beta2) * g**2``; then
    ``w = w - learning_rate * (m / (1 - beta1**t)) / (sqrt(v / (1 - beta2**t)) + eps)``. AMSGrad uses the largest v so
    far in place of v. t continues over epochs and calls of fit; the corrections are computed once per step in double
    precision, for parameters of any type.

    Source: Kingma and Ba, "Adam: a method for stochastic optimization" (2015); Reddi, Kale and Kumar, "On the
    convergence of Adam and beyond" (2018).

    Args:
        learning_rate: greater than 0, or a function of the step (counted from 0).
        betas: the weights of the previous mean gradient and mean square, each 0 or more, below 1.
        eps: added to the root, 0 or more.
        weight_decay: L2 penalty, 0 or more. AdamW's weight decay is different.
        amsgrad: use the largest mean square so far.

    Example:
        >>> Adam(1e-4).betas
        (0.9, 0.999)
    """

    learning_rate: RateOrSchedule = 1e-3
    betas: tuple[float, float] = (0.9, 0.999)
    _: KW_ONLY
    eps: float = 1e-8
    weight_decay: float = 0.0
    amsgrad: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        name = type(self).__name__
        if not isinstance(self.betas, tuple | list) or len(self.betas) != 2:
            raise TypeError(f"{name}: betas must be two numbers such as (0.9, 0.999), found {self.betas!r}")
        for index, beta in enumerate(self.betas):
            _check_number(name, f"betas[{index}]", beta, 1)
        object.__setattr__(self, "betas", tuple(self.betas))
        self._check("eps weight_decay")

    @property
    def counts_steps(self) -> bool:
        """See FusedOptimizer. The corrections depend on the number."""
        return True

    @property
    def initial_state(self) -> dict[str, float]:
        """The mean gradient, the mean square, and AMSGrad's greatest mean square."""
        return dict.fromkeys(("exp_avg", "exp_avg_sq", *(("max_exp_avg_sq",) if self.amsgrad else ())), 0.0)

    @property
    def by_rows(self) -> tuple[bool, ...]:
        """See Optimizer."""
        return (self.weight_decay == 0,)

    @property
    def kernel(self) -> KernelSettings:
        """See FusedOptimizer."""
        return KernelSettings(_core.KERNEL_ADAM, 0.0, self.weight_decay, *self.betas, self.eps, amsgrad=self.amsgrad)

    def _row(self, rate: float, step: int) -> tuple[float, float, float]:
        # Python's powers, one by one, since NumPy's may differ in the last bit with the processor's vector units
        beta1, beta2 = self.betas
        return rate / (1 - beta1 ** (step + 1)), 1.0, 1 / math.sqrt(1 - beta2 ** (step + 1))


@says_the_right_word
@dataclass(frozen=True, repr=False)
class AdamW(Adam):
    """Adam with decoupled weight decay, as torch.optim.AdamW defines it.

    As Adam, but the decay does not pass through the gradient: at the start of each step
    ``w = w * (1 - learning_rate * weight_decay)``.

    Source: Loshchilov and Hutter, "Decoupled weight decay regularization" (2019).

    Args:
        learning_rate: greater than 0, or a function of the step (counted from 0).
        betas: the weights of the previous mean gradient and mean square, each 0 or more, below 1.
        eps: added to the root, 0 or more.
        weight_decay: 0 or more.
        amsgrad: use the largest mean square so far.

    Example:
        >>> AdamW(1e-4).weight_decay
        0.01
    """

    _: KW_ONLY
    weight_decay: float = 0.01

    @property
    def kernel(self) -> KernelSettings:
        """See FusedOptimizer. The decay is in the rates."""
        return super().kernel._replace(weight_decay=0.0)

    def _row(self, rate: float, step: int) -> tuple[float, float, float]:
        corrected, _, root_scale = super()._row(rate, step)
        return corrected, 1 - rate * self.weight_decay, root_scale


@says_the_right_word
@dataclass(frozen=True, repr=False)
class RMSprop(FusedOptimizer):
    """RMSprop as torch.optim.RMSprop defines it, with momentum and centering.

    Per parameter w with gradient g: ``g = g + weight_decay * w``; ``v = alpha * v + (1 - alpha) * g**2``; centered:
    ``a = alpha * a + (1 - alpha) * g``, and ``max(v - a**2, 0)`` in v's place; ``d = g / (sqrt(v) + eps)``; with
    momentum ``b = momentum * b + d`` and ``d = b``; then ``w = w - learning_rate * d``.

    Where rounding makes ``v - a**2`` negative, torch.optim.RMSprop has NaN, and this optimizer 0.

    Source: Tieleman and Hinton, "Neural networks for machine learning", lecture 6.5 (2012); centered: Graves,
    "Generating sequences with recurrent neural networks" (2013).

    Args:
        learning_rate: greater than 0, or a function of the step (counted from 0).
        alpha: the weight of the previous mean square, 0 or more, below 1.
        eps: added to the root, 0 or more.
        weight_decay: L2 penalty, 0 or more.
        momentum: 0 (none) or more, below 1.
        centered: divide by the standard deviation of the gradient rather than by the root of its mean square.

    Example:
        >>> RMSprop(centered=True).state_names
        ('square_avg', 'grad_avg')
    """

    learning_rate: RateOrSchedule = 1e-2
    alpha: float = 0.99
    _: KW_ONLY
    eps: float = 1e-8
    weight_decay: float = 0.0
    momentum: float = 0.0
    centered: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check("alpha momentum", below=1)
        self._check("eps weight_decay")

    @property
    def initial_state(self) -> dict[str, float]:
        """The mean square, the momentum, if there is any, and the mean gradient, if centered."""
        momentum = ("momentum",) if self.momentum else ()
        return dict.fromkeys(("square_avg", *momentum, *(("grad_avg",) if self.centered else ())), 0.0)

    @property
    def kernel(self) -> KernelSettings:
        """See FusedOptimizer."""
        decays = (self.momentum, self.weight_decay, 0.0, self.alpha)
        return KernelSettings(_core.KERNEL_RMSPROP, *decays, self.eps, centered=self.centered)


@says_the_right_word
@dataclass(frozen=True, repr=False)
class Adagrad(FusedOptimizer):
    """Adagrad as torch.optim.Adagrad defines it.

    Per parameter w with gradient g, at step t = 1, 2, ...: ``g = g + weight_decay * w``; ``v = v + g**2``; then
    ``w = w - learning_rate / (1 + (t - 1) * lr_decay) * g / (sqrt(v) + eps)``.

    Source: Duchi, Hazan and Singer, "Adaptive subgradient methods for online learning and stochastic optimization"
    (2011).

    Args:
        learning_rate: greater than 0, or a function of the step (counted from 0).
        lr_decay: 0 or more.
        weight_decay: L2 penalty, 0 or more.
        initial_accumulator_value: v before the first step, 0 or more.
        eps: added to the root, 0 or more.

    Example:
        >>> Adagrad(0.1, initial_accumulator_value=0.5).initial_state
        {'sum': 0.5}
    """

    learning_rate: RateOrSchedule = 1e-2
    _: KW_ONLY
    lr_decay: float = 0.0
    weight_decay: float = 0.0
    initial_accumulator_value: float = 0.0
    eps: float = 1e-10

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check("lr_decay weight_decay initial_accumulator_value eps")

    @property
    def counts_steps(self) -> bool:
        """See FusedOptimizer. The decay of the rate depends on the number."""
        return self.lr_decay != 0

    @property
    def initial_state(self) -> dict[str, float]:
        """The sum of the squares."""
        return {"sum": float(self.initial_accumulator_value)}

    @property
    def by_rows(self) -> tuple[bool, ...]:
        """See Optimizer. Without decay, a row without a gradient stays as it is in any case."""
        return (self.weight_decay == 0,)

    @property
    def kernel(self) -> KernelSettings:
        """See FusedOptimizer."""
        return KernelSettings(_core.KERNEL_ADAGRAD, 0.0, self.weight_decay, self.lr_decay, eps=self.eps)

    def _row(self, rate: float, step: int) -> tuple[float, float, float]:
        return rate / (1 + step * self.lr_decay), 1.0, 1.0
