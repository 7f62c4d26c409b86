"""Optimizers of torch.optim, and of other libraries with the same interface."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from untorn.engines.threads import threads_limited
from untorn.share.lowlevel import flatten
from untorn.train.checkpoints.resuming import described
from untorn.train.optim.base import ServerOptimizer, Session
from untorn.train.optim.schedules import rate_at
from untorn.train.optim.torch_state import Form, Places, StateDict
from untorn.train.optim.torch_trial import STEPS, differences, left_alone

__all__ = ["TorchOptimizer"]

_Array = NDArray[Any]


class TorchOptimizer(ServerOptimizer):
    """An optimizer of torch.optim, or of another library with the same interface.

    Its state is found by steps on parameters of zero: tensors and numbers in its state, and numbers of the parameter
    groups that a step changes; or what its state_dict() returns, if it keeps more. A trial finds out (torch_trial.py).
    An optimizer makes the state of a parameter with its first gradient, so beside the state is published which parts of
    it there are.

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
        self.form, arrays, self.outside = self._formed(optimizer, parameters)
        #: the number of steps made: before the first one the state is what the optimizer itself makes
        state = {"steps": np.zeros((), np.int64), "begun": np.zeros(len(arrays), np.bool_)}
        state |= {name: np.zeros_like(array) for name, array in zip(self.form.names, arrays, strict=True)}
        super().__init__(schedule or float(groups[0].get("lr", math.nan)), state, settings)

    def _formed(self, optimizer: Any, parameters: list[Any]) -> tuple[Form, list[_Array], str]:
        """Return the form of the optimizer's state, its arrays, and a sentence about what it keeps elsewhere."""
        import torch

        name, groups = type(optimizer).__name__, [dict(group) for group in optimizer.param_groups]

        def step(gradient: float) -> None:
            for parameter in parameters:
                parameter.grad = torch.full_like(parameter, gradient)
            optimizer.step()

        with left_alone():
            try:
                step(0.0)
            except Exception as error:
                raise TypeError(
                    f"optimizer: expected one that needs only a gradient for its step; {name} made none with a "
                    f"gradient of zero ({error})"
                ) from error
            early = Places.of(optimizer, parameters, groups)
            shapes = [None if each is None else np.zeros_like(each) for each in early.arrays(optimizer, parameters)]
            step(0.01)
            form: Form = Places.of(optimizer, parameters, groups)
            first = dict(zip(early.names, shapes, strict=True))  # those of the first step: a later one is an error then
            arrays = [
                first.get(place, each)
                for place, each in zip(form.names, form.arrays(optimizer, parameters), strict=True)
            ]
            found = differences(self.made, parameters, form.names)
            if found and not all(hasattr(optimizer, method) for method in ("state_dict", "load_state_dict")):
                return Places(()), [], f"{name} keeps {'; '.join(found)}, and has no state_dict() and load_state_dict()"
            if found:
                found = differences(self.made, parameters, None)
                if found:
                    outside = f"{name} keeps {'; '.join(found)}, and its state_dict() does not return all of it"
                    return Places(()), [], outside
                for _ in range(STEPS):
                    step(0.01)
                form = StateDict.of(optimizer)
                arrays = form.arrays(optimizer, parameters)
            return form, [each for each in arrays if each is not None], ""

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
        self._form, self._steps = owner.form, state["steps"]
        self._zeros = [np.zeros_like(state[name]) for name in self._form.names]
        if self._steps != 0:
            begun = zip(self._form.names, state["begun"].tolist(), strict=True)
            self._form.restore(
                self._optimizer, self._parameters, {name: state[name] for name, is_there in begun if is_there}
            )

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
            new = own if rate == first else rate if first in (own, 0) else rate * (own / first)
            if isinstance(group["lr"], self._torch.Tensor):
                group["lr"].fill_(new)
            else:
                group["lr"] = new
        self._rate = rate

    def values(self) -> list[_Array]:
        """See Session."""
        trained = [parameter.detach().numpy() for parameter in self._parameters]  # it may have given them other memory
        state = self._form.arrays(self._optimizer, self._parameters)
        begun = np.array([each is not None for each in state], np.bool_)
        whole = [zeros if each is None else each for each, zeros in zip(state, self._zeros, strict=True)]
        return [*trained, self._steps, begun, *whole]
