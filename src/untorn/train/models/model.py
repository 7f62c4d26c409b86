"""What a model is to the trainer, and one shard's gradient: the only place where the user's function is called.

A model is a function ``loss_and_grad(params, batch[, rng]) -> (loss, grads[, metrics])``, or an object with such a
method and, for Trainer.predict, a method ``predict(params, x)``. Or it is a FrameworkModel, which brings its own
parameters.

Whoever computes has a *replica*: ModelFunction for the former, what ``FrameworkModel.replica`` makes for the latter.
"""

from __future__ import annotations

import inspect
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from untorn import _core
from untorn.errors import NonFiniteLossError, UnsupportedTypeError
from untorn.share.tree import CONTAINERS, Spec, flatten, member_names, path_of

__all__ = [
    "FrameworkModel",
    "Gradient",
    "ModelFunction",
    "Parts",
    "Replica",
    "checked_loss",
    "checked_metrics",
    "mapped",
    "replica_of",
    "take_examples",
    "takes_rng",
]


def take_examples(data: Any, indices: NDArray[np.int64]) -> Any:
    """The examples of these indices from every array of a tree of arrays; copies."""
    return mapped(data, lambda array: array.take(indices, axis=0))


def mapped(tree: Any, function: Callable[[Any], Any]) -> Any:
    """The same tree of dicts, lists, tuples and named tuples with this done to every leaf."""
    if isinstance(tree, dict):
        return {key: mapped(part, function) for key, part in tree.items()}
    if isinstance(tree, tuple) and hasattr(tree, "_fields"):
        return type(tree)(*(mapped(part, function) for part in tree))
    if isinstance(tree, tuple | list):
        return type(tree)(mapped(part, function) for part in tree)
    return function(tree)


class Gradient:
    """What a model made of one batch, checked.

    Attributes:
        loss: mean over the batch.
        leaves: what belongs into a gradient buffer, in the plan's order: the new values of the model's buffers, if it
            has any, and one gradient per trained parameter.
        metrics: means over the batch, by name.
    """

    __slots__ = ("leaves", "loss", "metrics")

    def __init__(self, loss: float, leaves: list[Any], metrics: Mapping[str, float]) -> None:
        self.loss = loss
        self.leaves = leaves
        self.metrics = metrics


class Replica(ABC):
    """A model as one process computes with it."""

    #: whether it must be given random numbers
    takes_rng: bool
    #: whether there may be batches of one example on which it cannot be trained
    needs_several = False

    @abstractmethod
    def __call__(self, params: Any, batch: Any, rng: np.random.Generator | None) -> Gradient:
        """Loss, gradient and metrics of one batch. Raises TypeError or ValueError naming what is wrong with the model's
        answer, NonFiniteLossError for a loss that is not a number."""

    @abstractmethod
    def measure(self, params: Any, batch: Any, rng: np.random.Generator | None) -> Gradient:
        """Loss and metrics of one batch, as Trainer.evaluate wants them; the leaves are nobody's business."""

    def failure(self, params: Any, batch: Any, rng: np.random.Generator) -> Exception | None:
        """Return what computing the loss of a batch raises, in training; None if nothing. For one that
        ``needs_several``."""
        raise NotImplementedError

    @abstractmethod
    def predict(self, params: Any, x: Any) -> Any:
        """The model's outputs for these inputs: an array with one row per example. Raises TypeError if it has none."""


class Parts(NamedTuple):
    """The values that a FrameworkModel brings, each a dict of arrays by name. They are published as one dict, in this
    order: run/parameter_layout.py depends on it."""

    kept: dict[str, NDArray[Any]]
    """parameters that are not trained"""
    buffers: dict[str, NDArray[Any]]
    """what computing a gradient changes on the way: the next version has the mean over the shards"""
    trained: dict[str, NDArray[Any]]
    """parameters that the optimizer changes: float32 and float64"""

    def tree(self) -> dict[str, NDArray[Any]]:
        """All of them, as they are published."""
        return self.kept | self.buffers | self.trained


class FrameworkModel(ABC):
    """A model of another library, which brings its parameters: TorchModel is one."""

    @abstractmethod
    def parts(self) -> Parts:
        """Its parameters and buffers; views where possible. Raises TypeError or ValueError naming what does not fit."""

    @abstractmethod
    def arrays(self, data: Any) -> Any:
        """Data as NumPy arrays, without a copy where possible."""

    @abstractmethod
    def for_workers(self) -> Self:
        """The same model without its values, which the workers find in the version: this is what is sent to them."""

    def pickler(self, base: Any) -> Any:
        """Return a class that derives from this pickler, pickle's or cloudpickle's, and can pickle for_workers()."""
        return base

    @abstractmethod
    def replica(self, threads: int | None) -> Replica:
        """A replica of its own, which computes gradients with so many threads (None: leave them as they are)."""

    @abstractmethod
    def module(self, params: Any) -> Any:
        """The library's own object with these parameters and buffers; shares no memory with anything."""


def replica_of(model: Any, *, threads: int | None = None) -> Replica:
    """A replica of whatever a user gave as model. Raises TypeError if it is none."""
    return model.replica(threads) if isinstance(model, FrameworkModel) else ModelFunction(model)


class ModelFunction(Replica):
    """A user's function behind one call that checks what comes back."""

    def __init__(self, model: Any) -> None:
        self.call: Callable[..., Any] = getattr(model, "loss_and_grad", model)
        if not callable(self.call):
            raise TypeError(
                f"model: expected a function loss_and_grad(params, batch[, rng]) or an object with that method, "
                f"found {type(model).__name__}"
            )
        self.takes_rng = takes_rng(self.call)
        self._model = model
        self._params_spec: Spec | None = None
        self._collect: _Collect | None = None

    def __call__(self, params: Any, batch: Any, rng: np.random.Generator | None) -> Gradient:
        """See Replica."""
        answer = self.call(params, batch, rng) if self.takes_rng else self.call(params, batch)
        if not isinstance(answer, tuple) or len(answer) not in (2, 3):
            raise TypeError(
                "the model must return (loss, grads) or (loss, grads, metrics), "
                f"found {type(answer).__name__}{f' of length {len(answer)}' if isinstance(answer, tuple) else ''}"
            )
        loss = checked_loss(answer[0])
        metrics = checked_metrics(answer[2]) if len(answer) == 3 else {}
        return Gradient(loss, self._gradient_leaves(params, answer[1]), metrics)

    def measure(self, params: Any, batch: Any, rng: np.random.Generator | None) -> Gradient:
        """See Replica."""
        return self(params, batch, rng)

    def predict(self, params: Any, x: Any) -> Any:
        """See Replica."""
        function = getattr(self._model, "predict", None)
        if function is None:
            raise TypeError(
                "predict: the model is a plain function; give Trainer an object with loss_and_grad(params, batch) "
                "and predict(params, x)"
            )
        return function(params, x)

    def _gradient_leaves(self, params: Any, grads: Any) -> list[Any]:
        if self._collect is None:  # the parameters' structure never changes
            self._params_spec = flatten(params)[0]
            self._collect = _collector(self._params_spec)
        leaves: list[Any] = []
        if not self._collect(grads, leaves):
            assert self._params_spec is not None
            raise _tree_error(self._params_spec, grads)
        return leaves


_Collect = Callable[[Any, list[Any]], bool]


def _collector(spec: Spec) -> _Collect:
    """A function that appends the leaves of a gradient tree in the parameters' order; False if it is another tree.
    It runs for every shard of every step, so what can be known beforehand is."""
    if spec.kind == "array":
        shape = spec.detail[1]

        def collect_array(grad: Any, leaves: list[Any]) -> bool:
            leaves.append(grad)
            if type(grad) is np.ndarray:
                return grad.shape == shape and grad.dtype.kind in "fiub"
            return shape == () and isinstance(grad, float | int | np.floating | np.integer)

        return collect_array
    children = [_collector(child) for child in spec.children]
    if spec.kind in ("dict", "odict"):
        items = list(zip((key for _, key in spec.detail), children, strict=True))

        def collect_dict(grads: Any, leaves: list[Any]) -> bool:
            return (
                isinstance(grads, dict)
                and len(grads) == len(items)
                and all(key in grads and collect(grads[key], leaves) for key, collect in items)
            )

        return collect_dict
    if spec.kind == "dataclass":
        members = list(zip(spec.detail[2], children, strict=True))
        return lambda grads, leaves: all(
            hasattr(grads, name) and collect(getattr(grads, name), leaves) for name, collect in members
        )
    kind = list if spec.kind == "list" else tuple
    names = spec.detail[2] if spec.kind == "namedtuple" else None

    def collect_sequence(grads: Any, leaves: list[Any]) -> bool:
        return (
            isinstance(grads, kind)
            and getattr(grads, "_fields", None) == names
            and len(grads) == len(children)
            and all(collect(grad, leaves) for collect, grad in zip(children, grads, strict=True))
        )

    return collect_sequence


def _tree_error(expected: Spec, grads: Any) -> Exception:
    """What is wrong with a gradient tree that is not the parameters'."""
    try:
        _check_same_tree(expected, flatten(grads)[0], ())
    except UnsupportedTypeError as error:
        return TypeError(f"the gradient tree: {error}")
    except ValueError as error:
        return error
    return ValueError("the gradient tree differs from the parameters; it must be the same tree, with the same shapes")


def takes_rng(function: Callable[..., Any]) -> bool:
    """Does it have a third parameter, for random numbers? One with a default must be called rng."""
    try:
        parameters = list(inspect.signature(function).parameters.values())
    except (TypeError, ValueError):
        return False
    positional = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    required = [p for p in positional if p.default is p.empty]
    return len(required) >= 3 or any(p.name == "rng" for p in positional[2:3])


def checked_loss(value: Any) -> float:
    """The loss as a float. Raises TypeError unless it is a single number, NonFiniteLossError unless it is finite."""
    loss = value if type(value) is float else _scalar("the loss", value)
    if not math.isfinite(loss):
        raise NonFiniteLossError(f"the loss is {loss}")
    return loss


def checked_metrics(found: Any) -> dict[str, float]:
    """The metrics as floats, in the order in which every worker records them. Raises TypeError or ValueError."""
    if not isinstance(found, Mapping):
        raise TypeError(f"the metrics must be a dict of numbers by name, found {type(found).__name__}")
    metrics = {str(name): _metric(name, value) for name, value in found.items()}
    if len(metrics) > _core.BOARD_METRICS:
        raise ValueError(f"{len(metrics)} metrics: at most {_core.BOARD_METRICS} are supported")
    return dict(sorted(metrics.items())) if len(metrics) > 1 else metrics


def _scalar(what: str, value: Any) -> float:
    try:
        return float(value)
    except (TypeError, ValueError):
        raise TypeError(f"{what} must be a single number, found {_describe(value)}") from None


def _metric(name: Any, value: Any) -> float:
    return value if type(value) is float else _scalar(f"metric {name!r}", value)


def _describe(value: Any) -> str:
    if isinstance(value, np.ndarray):
        return f"an array of shape {value.shape}"
    return type(value).__name__


def _check_same_tree(expected: Spec, found: Spec, path: tuple[str, ...]) -> None:
    """Gradients have the structure and shapes of the parameters; dtypes are converted."""
    where = path_of(path)
    if expected.kind in CONTAINERS or found.kind in CONTAINERS:
        if expected.kind != found.kind or set(member_names(expected)) != set(member_names(found)):
            raise ValueError(
                f"the gradient tree differs from the parameters at {where}: expected {_describe_spec(expected)}, "
                f"found {_describe_spec(found)}"
            )
        others = dict(zip(member_names(found), found.children, strict=True))
        for name, mine in zip(member_names(expected), expected.children, strict=True):
            _check_same_tree(mine, others[name], (*path, name))
        return
    if _leaf_shape(expected) != _leaf_shape(found):
        raise ValueError(
            f"the gradient of {where} has another shape: expected {_describe_spec(expected)}, "
            f"found {_describe_spec(found)}"
        )


def _leaf_shape(spec: Spec) -> Any:
    if spec.kind == "array":
        dtype, shape, _ = spec.detail
        return shape if dtype.kind in "fiub" else None
    if spec.kind == "numpy":
        return () if spec.detail.kind in "fiub" else None
    return () if spec.kind in ("float", "int") else spec.kind


def _describe_spec(spec: Spec) -> str:
    if spec.kind == "array":
        return f"{spec.detail[0]} array of shape {spec.detail[1]}"
    if spec.kind in CONTAINERS:
        return f"{spec.kind} of {', '.join(member_names(spec)) or 'nothing'}"
    return spec.kind
