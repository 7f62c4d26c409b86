"""Optimizers of torch.optim and of optax: the workers sum the gradients, and the server makes the step.

::

    what Trainer was given ── optimizer_of ──> ServerOptimizer ── session(weights, state) ──> Session: step, step, ...

A ServerOptimizer knows what state there is, and a Session is one optimizer at work, from the begin of a job to its end.
Where its gradients come from and its weights go to: server_steps.py.
"""

from __future__ import annotations

import contextlib
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import numpy as np
from numpy.typing import NDArray

from untorn.board import KernelSettings
from untorn.engines.threads import threads_limited
from untorn.share.specs import flatten
from untorn.train.checkpoints.resuming import described
from untorn.train.optim.fused import FusedOptimizer

__all__ = ["ServerOptimizer", "Session", "optimizer_of"]

_Array = NDArray[Any]


def optimizer_of(optimizer: Any, trained: Any) -> FusedOptimizer | ServerOptimizer:
    """What a trainer of these parameters works with. Raises TypeError, naming what was expected, for anything else than
    an optimizer of untorn, a function that makes one of torch.optim, or an optax.GradientTransformation."""
    if isinstance(optimizer, FusedOptimizer):
        return optimizer
    if isinstance(optimizer, type) and issubclass(optimizer, FusedOptimizer):
        name = optimizer.__name__
        raise TypeError(f"optimizer: expected untorn.{name}(...), found the class {name}; make one: {name}(0.1)")
    if callable(getattr(optimizer, "init", None)) and callable(getattr(optimizer, "update", None)):
        return OptaxOptimizer(optimizer, trained)
    if callable(optimizer) and not hasattr(optimizer, "param_groups"):
        return TorchOptimizer(optimizer, trained)
    found = type(optimizer).__name__
    advice = "Adam, AdamW, RMSprop and Adagrad will do as well"
    if hasattr(optimizer, "param_groups"):
        advice = f"give what makes one of torch.optim from parameters: functools.partial(torch.optim.{found}, lr=...)"
    raise TypeError(f"optimizer: expected untorn.SGD(...), found {found}; {advice}")


class Session(ABC):
    """An optimizer at work: it owns a copy of the parameters, and its state."""

    @abstractmethod
    def step(self, gradients: list[_Array], rate: float) -> None:
        """One step with these gradients, one per parameter; they may be changed. ``rate`` is the learning rate of all
        parameters, or of the first group of them; NaN leaves it to the optimizer."""

    @abstractmethod
    def values(self) -> list[_Array]:
        """The parameters, and then the state in the order of ServerOptimizer.state: views, valid until the next
        step."""


class ServerOptimizer(ABC):
    """An optimizer whose step the server makes. Abstract.

    Attributes:
        learning_rate: of the first group of parameters; NaN where it cannot be known.
        state: what is published beside the weights before the first step: a dict of arrays.
        settings: what a checkpoint says of the optimizer.
    """

    learning_rate: float
    state: dict[str, _Array]
    settings: Any
    #: the board's own optimizer has nothing to do
    kernel = KernelSettings()

    @abstractmethod
    def session(self, trained: Any, state: dict[str, _Array], *, threads: int) -> Session:
        """Go on from these parameters and this state; both are the session's from now on. ``threads`` are for those
        libraries whose number of threads can be set."""


def _leaves(tree: Any) -> list[_Array]:
    return flatten(tree)[1]


# -- torch.optim


@dataclass(frozen=True)
class _Place:
    """Where an optimizer of torch keeps a tensor or a number."""

    of_group: bool
    index: int
    key: str
    is_number: bool

    @property
    def name(self) -> str:
        return f"{'group.' if self.of_group else ''}{self.index}.{self.key}"

    def holder(self, optimizer: Any, parameters: list[Any]) -> Any:
        """The dict that has it."""
        return optimizer.param_groups[self.index] if self.of_group else optimizer.state[parameters[self.index]]


class TorchOptimizer(ServerOptimizer):
    """An optimizer of torch.optim, or of another library with the same interface.

    What it keeps is found out by a step on parameters and gradients of zero: tensors and numbers in its state, and
    numbers of the parameter groups that a step changes.

    Args:
        make: makes the optimizer from a list of parameters.
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
        self._make = make
        parameters = [torch.nn.Parameter(torch.from_numpy(np.zeros_like(leaf))) for leaf in _leaves(trained)]
        optimizer = self.made(parameters)
        groups = [dict(group) for group in optimizer.param_groups]
        self.learning_rate = float(groups[0].get("lr", math.nan))
        self.settings = {"name": type(optimizer).__name__} | {
            key if index == 0 else f"group.{index}.{key}": described(value)
            for index, group in enumerate(groups)
            for key, value in group.items()
            if key != "params"
        }
        for parameter in parameters:
            parameter.grad = torch.zeros_like(parameter)
        try:
            optimizer.step()
        except Exception as error:
            raise TypeError(
                f"optimizer: expected one that needs a gradient alone for its step; {type(optimizer).__name__} made "
                f"none with a gradient of zero ({error})"
            ) from error
        #: what it keeps, in the order in which it is published
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
        #: how many steps were made: before the first one the state is what the optimizer itself makes
        self.state = {"steps": np.zeros((), np.int64)} | {
            place.name: np.zeros_like(_kept(place, optimizer, parameters)) for place in self.places
        }

    def made(self, parameters: list[Any]) -> Any:
        """A new optimizer of these. Raises TypeError if it is none."""
        optimizer = self._make(parameters)
        if not all(hasattr(optimizer, name) for name in ("param_groups", "state", "step")):
            raise TypeError(
                "optimizer: expected a function that makes an optimizer of torch.optim from a list of parameters, such "
                f"as functools.partial(torch.optim.NAdam, lr=1e-3); what it made is of type {type(optimizer).__name__}"
            )
        return optimizer

    def session(self, trained: Any, state: dict[str, _Array], *, threads: int) -> Session:
        """See ServerOptimizer."""
        return _TorchSession(self, _leaves(trained), state, threads)


def _kept(place: _Place, optimizer: Any, parameters: list[Any]) -> _Array:
    """What is in that place, as an array on its memory. Raises TypeError for what is no number and no tensor."""
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
        if self._steps == 0:
            return
        for place in self._places:  # load_state_dict would convert to the parameters' dtype, and so round
            array = state[place.name]
            value = array.item() if place.is_number else torch.from_numpy(array)
            place.holder(self._optimizer, self._parameters)[place.key] = value

    def step(self, gradients: list[_Array], rate: float) -> None:
        """See Session."""
        if rate != self._rate and not math.isnan(rate):
            self._set_rate(rate)
        for parameter, gradient in zip(self._parameters, gradients, strict=True):
            parameter.grad = self._torch.from_numpy(gradient)
        with threads_limited(self._threads):
            self._optimizer.step()
        self._steps[...] += 1

    def _set_rate(self, rate: float) -> None:
        """Other groups' rates keep their ratio to the first one's."""
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
        kept = [_kept(place, self._optimizer, self._parameters) for place in self._places]
        return [*self._arrays, self._steps, *kept]


# -- optax


class OptaxOptimizer(ServerOptimizer):
    """An optax.GradientTransformation. It sees the parameters as a pytree: the tree that was given, or a dict by name.

    Args:
        transformation: a pair of functions, init and update.
        trained: the tree of parameters.
    """

    def __init__(self, transformation: Any, trained: Any) -> None:
        try:
            jax: Any = import_module("jax")
            import_module("optax")
        except ImportError:
            raise ImportError(
                "optimizer: what has init and update is taken for optax's, and optax is not installed: "
                "pip install optax"
            ) from None
        self.transformation = transformation
        self.learning_rate = math.nan
        self.settings = {"name": "optax", "init": described(transformation.init)}
        leaves = _leaves(trained)
        if sorted(map(id, jax.tree_util.tree_leaves(trained))) != sorted(map(id, leaves)):
            raise TypeError(
                "params: with an optimizer of optax they must be a pytree of JAX: dicts, lists, tuples and named "
                "tuples are; register other classes with jax.tree_util"
            )
        self.x64 = any(leaf.dtype == np.float64 for leaf in leaves)
        with self.computing():
            found = jax.tree_util.tree_flatten_with_path(transformation.init(jax.tree.map(jax.numpy.array, trained)))
        self.structure = found[1]
        self.state = {jax.tree_util.keystr(path): np.array(leaf) for path, leaf in found[0]}

    @contextlib.contextmanager
    def computing(self) -> Iterator[None]:
        """On the CPU; with float64 where there are parameters of it."""
        import jax

        with jax.default_device(jax.devices("cpu")[0]), jax.enable_x64(True) if self.x64 else contextlib.nullcontext():
            yield

    def session(self, trained: Any, state: dict[str, _Array], *, threads: int) -> Session:
        """See ServerOptimizer. XLA's number of threads is the process's own."""
        return _OptaxSession(self, trained, state)


class _OptaxSession(Session):
    def __init__(self, owner: OptaxOptimizer, trained: Any, state: dict[str, _Array]) -> None:
        jax: Any = import_module("jax")
        self._jax, self._apply = jax, import_module("optax").apply_updates
        self._owner = owner
        leaves, self._structure = jax.tree_util.tree_flatten(trained)
        at = {id(leaf): index for index, leaf in enumerate(leaves)}
        #: of each parameter, in the order of its channel, its place among JAX's leaves: JAX sorts the keys of a dict
        self._order = [at[id(leaf)] for leaf in _leaves(trained)]
        with owner.computing():
            self._params = jax.tree.map(jax.numpy.array, trained)
            arrays = [jax.numpy.array(state[name]) for name in owner.state]
        self._state = jax.tree_util.tree_unflatten(owner.structure, arrays)
        self._step = jax.jit(self._stepped)

    def _stepped(self, gradients: Any, params: Any, state: Any) -> tuple[Any, Any]:
        updates, new = self._owner.transformation.update(gradients, state, params)
        # of the same dtypes, and those for certain: going on from a checkpoint is then the same computation
        convert = self._jax.lax.convert_element_type
        new = self._jax.tree.map(lambda after, before: convert(after, before.dtype), new, state)
        return self._apply(params, updates), new

    def step(self, gradients: list[_Array], rate: float) -> None:
        """See Session."""
        leaves: list[Any] = [None] * len(gradients)
        for index, gradient in zip(self._order, gradients, strict=True):
            leaves[index] = gradient
        tree = self._jax.tree_util.tree_unflatten(self._structure, leaves)
        with self._owner.computing():
            made = self._step(tree, self._params, self._state)
            self._params, self._state = self._jax.block_until_ready(made)  # the gradients' memory is used again

    def values(self) -> list[_Array]:
        """See Session."""
        leaves = self._jax.tree_util.tree_leaves(self._params)
        state = self._jax.tree_util.tree_leaves(self._state)
        return [np.asarray(leaf) for leaf in [*(leaves[index] for index in self._order), *state]]
