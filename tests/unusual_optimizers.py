"""Optimizers in the manner of torch.optim that keep something outside ``.state``."""

from __future__ import annotations

import itertools
from typing import Any

import torch


class TwoAdams(torch.optim.Optimizer):
    """Even steps for the first two parameters, odd steps for the others."""

    def __init__(self, parameters: list[Any]) -> None:
        super().__init__(parameters, {"lr": 0.01})
        self.halves = [torch.optim.Adam(half, lr=0.01) for half in (parameters[:2], parameters[2:])]
        self.number = 0

    def step(self) -> None:
        self.halves[self.number % 2].step()
        self.number += 1


class TwoAdamsWithStateDict(TwoAdams):
    """The same, with a state_dict() that has everything."""

    def state_dict(self) -> Any:
        return {"halves": [half.state_dict() for half in self.halves], "number": self.number}

    def load_state_dict(self, state_dict: Any) -> None:
        for half, state in zip(self.halves, state_dict["halves"], strict=True):
            half.load_state_dict(state)
        self.number = state_dict["number"]


class Lookahead:
    """Zhang et al., Lookahead Optimizer: k steps forward, 1 step back (arXiv:1907.08610)."""

    def __init__(self, inner: Any, k: int) -> None:
        self.inner, self.k, self.steps = inner, k, itertools.count(1)
        self.param_groups, self.state = inner.param_groups, inner.state
        self.slow = [parameter.detach().clone() for parameter in self._parameters()]

    def _parameters(self) -> Any:
        return (parameter for group in self.param_groups for parameter in group["params"])

    @torch.no_grad()
    def step(self) -> None:
        self.inner.step()
        if next(self.steps) % self.k == 0:
            for slow, parameter in zip(self.slow, self._parameters(), strict=True):
                parameter.copy_(slow.lerp_(parameter, 0.5))


def lookahead(parameters: list[Any]) -> Any:
    return Lookahead(torch.optim.Adam(parameters, lr=0.01), k=5)


def with_scheduler(parameters: list[Any]) -> Any:
    """An optimizer whose step is that of a scheduler, too."""
    optimizer = torch.optim.NAdam(parameters, lr=0.01)
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)
    step = optimizer.step

    def both() -> None:
        step()
        optimizer._opt_called = True
        schedule.step()

    both._wrapped_by_lr_sched = True  # or else the scheduler warns
    optimizer.step = both
    return optimizer


class Moving(torch.optim.SGD):
    """Gives its parameters other memory in each step."""

    def step(self) -> None:
        for group in self.param_groups:
            for parameter in group["params"]:
                parameter.data = parameter.data - group["lr"] * parameter.grad


STEPS_OF_ALL = itertools.count(1)


class Global(torch.optim.SGD):
    """Its rate depends on a global variable."""

    @torch.no_grad()
    def step(self) -> None:
        rate = 0.1 / next(STEPS_OF_ALL)
        for parameter in self.param_groups[0]["params"]:
            parameter.sub_(rate * parameter.grad)


OUTSIDE = {
    "TwoAdams": (
        TwoAdams,
        "TwoAdams keeps its attributes number, halves[0].state, halves[1].state, and its state_dict()",
    ),
    "Lookahead": (lookahead, "Lookahead keeps its attributes steps, slow[0], "),
    "scheduler": (with_scheduler, "NAdam keeps its attributes "),
}
