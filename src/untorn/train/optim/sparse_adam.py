"""torch.optim.SparseAdam, whose steps the workers make: a step of a table costs what its rows cost."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from typing import Any

from untorn import _core
from untorn.board import KernelSettings
from untorn.train.optim.fused import Adam

__all__ = ["SparseAdam", "sparse_adam_of"]

_SOURCE = ("torch.optim.sparse_adam", "SparseAdam")


@dataclass(frozen=True, repr=False)
class SparseAdam(Adam):
    """Adam as torch.optim.SparseAdam defines it, for tables only: rows without a gradient keep their parameters and
    their state, and eps is added to the root before the correction of the mean square."""

    @property
    def kernel(self) -> KernelSettings:
        """See FusedOptimizer."""
        return super().kernel._replace(optimizer=_core.KERNEL_SPARSE_ADAM)

    def _row(self, rate: float, step: int) -> tuple[float, float, float]:
        beta1, beta2 = self.betas
        return rate * math.sqrt(1 - beta2 ** (step + 1)) / (1 - beta1 ** (step + 1)), 1.0, 1.0


def sparse_adam_of(make: Any) -> SparseAdam | None:
    """Return the optimizer that torch.optim.SparseAdam, or a functools.partial of it, describes; None for anything
    else. Raises TypeError or ValueError for settings that it cannot have."""
    function = make.func if isinstance(make, partial) else make
    if not isinstance(function, type) or (function.__module__, function.__name__) != _SOURCE:
        return None
    import torch

    given = dict(make.keywords) if isinstance(make, partial) else {}
    schedule = given.pop("lr", 1e-3)
    # torch's own checks and defaults
    (group,) = torch.optim.SparseAdam([torch.zeros(1)], **given).param_groups
    if group["maximize"]:
        raise TypeError("optimizer: SparseAdam: expected maximize=False, found True; negate the loss")
    beta1, beta2 = group["betas"]
    return SparseAdam(schedule, (float(beta1), float(beta2)), eps=float(group["eps"]))
