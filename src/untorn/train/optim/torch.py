"""Optimizers of torch.optim, and of other libraries with the same interface."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from untorn.engines.threads import threads_limited
from untorn.share.lowlevel import flatten
from untorn.train.checkpoints.resuming import described
from untorn.train.optim.base import ServerOptimizer, Session
from untorn.train.optim.schedules import rate_at

__all__ = ["TorchOptimizer"]

_Array = NDArray[Any]


@dataclass(frozen=True)
class _Place:
    """The place of a tensor or a number in an optimizer of torch."""

    of_group: bool
    index: int
    key: str
    is_number: bool

    @property
    def name(self) -> str:
        return f"{'group.' if self.of_group else ''}{self.index}.{self.key}"

    def holder(self, optimizer: Any, parameters: list[Any]) -> Any:
        """Return the dict that holds the value."""
        return optimizer.param_groups[self.index] if self.of_group else optimizer.state[parameters[self.index]]

    def is_there(self, optimizer: Any, parameters: list[Any]) -> bool:
        """Return whether the optimizer has made the value yet: it may do so with the first gradient."""
        holder = (
            optimizer.param_groups[self.index] if self.of_group else optimizer.state.get(parameters[self.index], {})
        )
        return holder.get(self.key) is not None


class TorchOptimizer(ServerOptimizer):
    """An optimizer of torch.optim, or of another library with the same interface.

    Its state is found by a step on parameters and gradients of zero: tensors and numbers in its state, and numbers of
    the parameter groups that a step changes. An optimizer makes the state of a parameter with its first gradient, so
    beside the state is published which parts of it there are.

    Args:
        make: makes the optimizer from a list of parameters. In a functools.partial, ``lr`` may be a function of the
            step.
        trained: the tree of parameters.
    """

    def __init__(self, make: Callable[[list[Any]], Any], trained: Any) -> None:
        try:
            import torch
        except ImportError:
            raise ImportError(
                "optimizer: a function makes an optimizer of torch.optim, which needs PyTorch, and that is not "
                "installed: pip install torch"
            ) from None
        self._make, schedule = _without_schedule(make)
        parameters = [torch.nn.Parameter(torch.from_numpy(np.zeros_like(leaf))) for leaf in flatten(trained)[1]]
        optimizer = self.made(parameters)
        groups = [dict(group) for group in optimizer.param_groups]
        settings = {"name": type(optimizer).__name__} | {
            key if index == 0 else f"group.{index}.{key}": described(value)
            for index, group in enumerate(groups)
            for key, value in group.items()
            if key != "params"
        }
        if schedule is not None:
            settings["lr"] = described(schedule)
        for parameter in parameters:
            parameter.grad = torch.zeros_like(parameter)
        try:
            optimizer.step()
        except Exception as error:
            raise TypeError(
                f"optimizer: expected one that needs only a gradient for its step; {type(optimizer).__name__} made "
                f"none with a gradient of zero ({error})"
            ) from error
        #: the places of its state, in the order in which they are published
        self.places = [
            _Place(False, index, key, isinstance(value, int | float))
            for index, parameter in enumerate(parameters)
            for key, value in optimizer.state.get(parameter, {}).items()
            if value is not None
        ] + [
            _Place(True, index, key, True)
            for index, group in enumerate(optimizer.param_groups)
            for key, value in group.items()
            if key not in ("params", "lr") and isinstance(value, int | float) and value != groups[index].get(key)
        ]
        #: the number of steps made: before the first one the state is what the optimizer itself makes
        state = {"steps": np.zeros((), np.int64), "begun": np.zeros(len(self.places), np.bool_)} | {
            place.name: np.zeros_like(_kept(place, optimizer, parameters)) for place in self.places
        }
        super().__init__(schedule or float(groups[0].get("lr", math.nan)), state, settings)

    def made(self, parameters: list[Any]) -> Any:
        """Return a new optimizer of these. Raises TypeError if what was made is no optimizer."""
        try:
            optimizer = self._make(parameters)
        except TypeError as error:
            error.add_note(
                "optimizer: for a learning rate by the step write functools.partial(torch.optim.NAME, lr=schedule)"
            )
            raise
        if not all(hasattr(optimizer, name) for name in ("param_groups", "state", "step")):
            raise TypeError(
                "optimizer: expected a function that makes an optimizer of torch.optim from a list of parameters, such "
                f"as functools.partial(torch.optim.NAdam, lr=1e-3); what it made is of type {type(optimizer).__name__}"
            )
        return optimizer

    def session(self, trained: Any, state: dict[str, _Array], *, threads: int) -> Session:
        """See Optimizer."""
        return _TorchSession(self, flatten(trained)[1], state, threads)


def _without_schedule(make: Callable[[list[Any]], Any]) -> tuple[Callable[[list[Any]], Any], Any]:
    """Return what makes the optimizer with the first rate of its schedule, and the schedule, if it has one."""
    if not isinstance(make, partial) or not callable(make.keywords.get("lr")):
        return make, None
    schedule: Any = make.keywords["lr"]
    first = {"lr": rate_at("optimizer", schedule, 0)}
    return partial(make.func, *make.args, **(make.keywords | first)), schedule


def _kept(place: _Place, optimizer: Any, parameters: list[Any]) -> _Array:
    """Return the value in this place, as an array over its memory. Raises TypeError for other types than numbers and
    tensors."""
    value = place.holder(optimizer, parameters)[place.key]
    if isinstance(value, int | float):
        return np.asarray(value)
    try:
        array: _Array = value.detach().numpy()
    except (AttributeError, TypeError, RuntimeError):
        raise TypeError(
            f"optimizer: {place.key!r} in the state of {type(optimizer).__name__}: expected a number or a tensor of a "
            f"dtype that NumPy has, found {getattr(value, 'dtype', type(value).__name__)}"
        ) from None
    return array


class _TorchSession(Session):
    def __init__(self, owner: TorchOptimizer, trained: list[_Array], state: dict[str, _Array], threads: int) -> None:
        import torch

        self._torch = torch
        self._threads = threads
        self._arrays = trained
        self._parameters = [torch.nn.Parameter(torch.from_numpy(array)) for array in trained]
        self._optimizer = owner.made(self._parameters)
        self._rates = [float(group.get("lr", math.nan)) for group in self._optimizer.param_groups]
        self._rate = self._rates[0]
        self._places, self._steps = owner.places, state["steps"]
        self._zeros = {place.name: np.zeros_like(state[place.name]) for place in self._places}
        if self._steps == 0:
            return
        for place, begun in zip(self._places, state["begun"].tolist(), strict=True):
            if not begun:
                continue
            array = state[place.name]  # load_state_dict would convert to the parameters' dtype, and so round
            value = array.item() if place.is_number else torch.from_numpy(array)
            place.holder(self._optimizer, self._parameters)[place.key] = value

    def step(self, gradients: list[_Array | None], rate: float) -> None:
        """See Session."""
        if rate != self._rate and not math.isnan(rate):
            self._set_rate(rate)
        for parameter, gradient in zip(self._parameters, gradients, strict=True):
            parameter.grad = None if gradient is None else self._torch.from_numpy(gradient)
        with threads_limited(self._threads):
            self._optimizer.step()
        self._steps[...] += 1

    def _set_rate(self, rate: float) -> None:
        """Set the rate of the first group; the rates of the others keep their ratio to it."""
        first = self._rates[0]
        for group, own in zip(self._optimizer.param_groups, self._rates, strict=True):
            new = rate if first in (own, 0) else rate * (own / first)
            if isinstance(group["lr"], self._torch.Tensor):
                group["lr"].fill_(new)
            else:
                group["lr"] = new
        self._rate = rate

    def values(self) -> list[_Array]:
        """See Session."""
        begun = [place.is_there(self._optimizer, self._parameters) for place in self._places]
        kept = [
            _kept(place, self._optimizer, self._parameters) if there else self._zeros[place.name]
            for place, there in zip(self._places, begun, strict=True)
        ]
        return [*self._arrays, self._steps, np.array(begun, np.bool_), *kept]
