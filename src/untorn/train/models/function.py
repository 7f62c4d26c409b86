"""A user's function as a Model."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any, Self

import numpy as np

from untorn.train.models.base import Gradient, Model, Parts, Replica, Turn
from untorn.train.models.checks import check_parameters, checked_loss, checked_metrics
from untorn.train.models.gradients import GradientCheck
from untorn.train.models.turns import checked_functions, no_metrics, of_all, only_trained

__all__ = ["FunctionModel", "as_model", "takes_rng"]


def as_model(given: Any) -> Model:
    """Return the model that a user gave as a Model: itself, or a FunctionModel. Raises TypeError for anything else."""
    if isinstance(given, Model):
        return given
    if any(cls.__module__ == "torch.nn.modules.module" for cls in type(given).__mro__):
        raise TypeError(
            f"model: expected a model with its loss, found the torch.nn.Module {type(given).__name__}; "
            "give untorn.torch.TorchModel(module, loss)"
        )
    return SeveralFunctions(given) if isinstance(given, Mapping) else FunctionModel(given)


class FunctionModel(Model):
    """A function ``loss_and_grad(params, batch[, rng]) -> (loss, grads[, metrics])``, or an object with this method
    and, for Trainer.predict, a method ``predict(params, x)``. Raises TypeError for anything else."""

    private_params = False

    def __init__(self, given: Any) -> None:
        _loss_and_grad(given)
        self._given = given

    def parts(self, params: Any = None) -> Parts:
        """See Model."""
        check_parameters(params)
        return Parts({}, {}, params)

    def arrays(self, data: Any) -> Any:
        """See Model."""
        return data

    def for_workers(self) -> Self:
        """See Model."""
        return self

    def replica(self, threads: int | None) -> Replica:
        """See Model."""
        return _FunctionReplica(self._given)

    def module(self, params: Any) -> Any:
        """See Model."""
        raise TypeError("module: the model is a plain function; its weights are in trainer.params")


class SeveralFunctions(FunctionModel):
    """Functions ``loss_and_grad(params, batch[, rng])`` by name, which take turns. Raises TypeError or ValueError."""

    def __init__(self, given: Mapping[str, Any]) -> None:
        self._functions = checked_functions("model", {name: _loss_and_grad(each) for name, each in given.items()})

    @property
    def losses(self) -> tuple[str, ...]:
        """See Model."""
        return tuple(self._functions)

    def replica(self, threads: int | None) -> Replica:
        """See Model."""
        return _SeveralReplica({name: _FunctionReplica(each) for name, each in self._functions.items()})


class _SeveralReplica(Replica):
    """Calls the function of the turn."""

    def __init__(self, replicas: dict[str, _FunctionReplica]) -> None:
        self._replicas = replicas
        self._turn: Turn | None = None
        self.takes_rng = any(each.takes_rng for each in replicas.values())

    def take_turn(self, turn: Turn) -> None:
        """See Replica."""
        self._turn = turn

    def __call__(self, params: Any, batch: Any, rng: np.random.Generator | None) -> Gradient:
        """See Replica."""
        turn = self._turn
        assert turn is not None
        found = self._replicas[turn.name](params, batch, rng)
        no_metrics(turn, found.metrics)
        return Gradient(found.loss, only_trained(found.leaves, turn), {})

    def measure(self, params: Any, batch: Any, rng: np.random.Generator | None) -> Gradient:
        """See Replica."""
        return of_all({name: each.measure(params, batch, rng).loss for name, each in self._replicas.items()})

    def predict(self, params: Any, x: Any) -> Any:
        """See Replica."""
        raise TypeError("predict: the model is several functions; compute it from trainer.params")


class _FunctionReplica(Replica):
    """Calls the user's function, and checks its answer."""

    def __init__(self, given: Any) -> None:
        self._given = given
        self._call = _loss_and_grad(given)
        self.takes_rng = takes_rng(self._call)
        self._check: GradientCheck | None = None

    def __call__(self, params: Any, batch: Any, rng: np.random.Generator | None) -> Gradient:
        """See Replica."""
        answer = self._call(params, batch, rng) if self.takes_rng else self._call(params, batch)
        if not isinstance(answer, tuple) or len(answer) not in (2, 3):
            raise TypeError(
                "the model must return (loss, grads) or (loss, grads, metrics), "
                f"found {type(answer).__name__}{f' of length {len(answer)}' if isinstance(answer, tuple) else ''}"
            )
        loss = checked_loss(answer[0])
        metrics = checked_metrics(answer[2]) if len(answer) == 3 else {}
        if self._check is None:
            self._check = GradientCheck(params)
        return Gradient(loss, self._check.leaves(answer[1]), metrics)

    def measure(self, params: Any, batch: Any, rng: np.random.Generator | None) -> Gradient:
        """See Replica."""
        return self(params, batch, rng)

    def predict(self, params: Any, x: Any) -> Any:
        """See Replica."""
        function = getattr(self._given, "predict", None)
        if function is None:
            raise TypeError(
                "predict: the model is a plain function; give Trainer an object with loss_and_grad(params, batch) "
                "and predict(params, x)"
            )
        return function(params, x)


def _loss_and_grad(given: Any) -> Callable[..., Any]:
    function: Any = getattr(given, "loss_and_grad", given)
    if not callable(function):
        raise TypeError(
            f"model: expected a function loss_and_grad(params, batch[, rng]) or an object with that method, "
            f"found {type(given).__name__}"
        )
    return function  # type: ignore[no-any-return]


def takes_rng(function: Callable[..., Any]) -> bool:
    """Return whether it has a third parameter, for random numbers. One with a default must be called rng."""
    try:
        parameters = list(inspect.signature(function).parameters.values())
    except (TypeError, ValueError):
        return False
    positional = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    required = [p for p in positional if p.default is p.empty]
    return len(required) >= 3 or any(p.name == "rng" for p in positional[2:3])
