"""The interface of a model, which a user's function, a TorchModel and a JaxModel share.

::

    what the user gave ── as_model ──> Model ── for_workers ──> pickle ──> the Model of a worker process
                                         └───── replica ──────> Replica: loss, gradients and outputs of a batch

A Model is described once. Each process that computes with it has a Replica.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Generic, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from untorn.typevars import T_co

__all__ = ["Gradient", "Model", "Parts", "Replica", "Rows", "Turn", "check_no_params"]


class Gradient:
    """The checked answer of a model to one batch.

    Args:
        leaves: see below; or a function that makes them, and that keeps the memory at the addresses.

    Attributes:
        loss: mean over the batch.
        metrics: means over the batch, by name.
        addresses: where the leaves lie, if all of them are arrays in C order of the type and shape of their parameter:
            then they can be copied from there, and need not be made. None is in the place of a leaf that is None.
    """

    __slots__ = ("_leaves", "addresses", "loss", "metrics")

    loss: float
    metrics: Mapping[str, float]
    addresses: list[Any] | None

    def __init__(
        self,
        loss: float,
        leaves: list[Any] | Callable[[], list[Any]],
        metrics: Mapping[str, float],
        addresses: list[Any] | None = None,
    ) -> None:
        self.loss = loss
        self._leaves = leaves
        self.metrics = metrics
        self.addresses = addresses

    @property
    def leaves(self) -> list[Any]:
        """The contents of a gradient buffer, in the order of the parameter layout: the new values of the model's
        buffers, if it has any, and one gradient per trained parameter, which may be Rows; None if the loss does not
        depend on it, or if the turn does not train it."""
        if callable(self._leaves):
            self._leaves = self._leaves()
        return self._leaves


class Rows:
    """The gradient of a table, of which a batch reaches some rows; the others are zeros.

    Attributes:
        indices: int64 (n,), the row of each value; a row may come several times, and then is the sum.
        values: (n, ...), the gradients, in C order.
        shape: the shape of the table.
    """

    __slots__ = ("indices", "shape", "values")

    def __init__(self, indices: NDArray[np.int64], values: NDArray[Any], shape: tuple[int, ...]) -> None:
        self.indices = indices
        self.values = values
        self.shape = shape

    def dense(self) -> NDArray[Any]:
        """Return the whole gradient, a new array."""
        whole = np.zeros(self.shape, self.values.dtype)
        np.add.at(whole, self.indices, self.values)
        return whole


class Turn(NamedTuple):
    """A turn of a model with several losses."""

    name: str
    """the name of the loss"""
    trained: tuple[bool, ...]
    """of each trained parameter, whether the turn trains it"""


class Replica(ABC):
    """A model as one process computes with it."""

    #: whether it must be given random numbers
    takes_rng: bool
    #: whether there may be batches of one example on which it cannot be trained
    needs_several: bool = False

    @abstractmethod
    def __call__(self, params: Any, batch: Any, rng: np.random.Generator | None) -> Gradient:
        """Return loss, gradient and metrics of one batch. Raises TypeError or ValueError naming the fault in the
        model's answer, NonFiniteLossError for a loss that is not finite."""

    @abstractmethod
    def measure(self, params: Any, batch: Any, rng: np.random.Generator | None) -> Gradient:
        """Return loss and metrics of one batch, for Trainer.evaluate; the leaves are not used."""

    def take_rows(self, start: int, stop: int) -> None:
        """Compute with these examples of a step from now on. Only called for a model that carries state."""
        raise NotImplementedError

    def take_turn(self, turn: Turn) -> None:
        """Compute the loss of this turn, and its gradient for the parameters that it trains, until the next turn. Only
        called for a model with several losses."""
        raise NotImplementedError

    def failure(self, params: Any, batch: Any, rng: np.random.Generator) -> Exception | None:
        """Return the exception that computing the loss of a batch raises in training, or None. Only called where
        ``needs_several``."""
        raise NotImplementedError

    @abstractmethod
    def predict(self, params: Any, x: Any) -> Any:
        """Return the model's outputs for these inputs: arrays with one row per example. Raises TypeError if the model
        cannot predict."""


class Parts(NamedTuple):
    """The values of a model before the first step. A function's parameters are one tree, ``trained``. Of the other
    models each part is a dict of arrays by name, and they are published as one dict, in this order:
    run/parameter_layout.py depends on it."""

    kept: dict[str, NDArray[Any]]
    """parameters that are not trained"""
    buffers: dict[str, NDArray[Any]]
    """arrays that computing a gradient changes: the next version has the mean over the shards"""
    trained: Any
    """parameters that the optimizer changes: float32 and float64"""
    shown: Callable[[Any], Any] | None = None
    """makes of the arrays, without a copy, what others see in their place: the library's own kind"""
    carried: tuple[str, ...] = ()
    """the names of buffers whose rows belong to the examples of a step: each shard has its own rows"""
    tables: frozenset[str] = frozenset()
    """the names of parameters whose gradients may be Rows"""

    @property
    def published(self) -> Any:
        """The tree that is published."""
        tree = self.kept | self.summed if self.kept else self.summed
        return tree if self.shown is None else self.shown(tree)

    @property
    def summed(self) -> Any:
        """The part of that tree of which each shard makes new values or gradients."""
        return self.buffers | self.trained if self.buffers else self.trained


class Model(ABC, Generic[T_co]):
    """A model with its loss, as a Trainer uses it. Abstract."""

    #: whether its replicas need parameters in private, writable memory when this process or a worker evaluates them:
    #: frameworks have no read-only memory
    private_params: ClassVar[bool] = True

    @property
    def losses(self) -> tuple[str, ...]:
        """The names of its losses, if it has several, which take turns."""
        return ()

    @abstractmethod
    def parts(self, params: Any = None) -> Parts:
        """Return the values to start from; views where possible. ``params`` is what Trainer was given. Raises TypeError
        or ValueError naming the value that does not fit."""

    def visible(self, params: Any) -> Any:
        """Return the part of the published values that the user sees: all of them, except for what only training
        needs."""
        return params

    @abstractmethod
    def arrays(self, data: Any) -> Any:
        """Return data as NumPy arrays, without a copy where possible."""

    @abstractmethod
    def for_workers(self) -> Self:
        """Return the model without its values, which the workers find in the version: this is sent to them."""

    def pickler(self, base: Any) -> Any:
        """Return a class that derives from this pickler, pickle's or cloudpickle's, and can pickle for_workers()."""
        return base

    @abstractmethod
    def replica(self, threads: int | None) -> Replica:
        """Return a new replica, which computes gradients with this number of threads (None: as it is set)."""

    @abstractmethod
    def module(self, params: Any) -> T_co:
        """Return the library's own object with these parameters and buffers, in memory of its own. Raises TypeError if
        the model has none."""


def check_no_params(model: Model, params: Any) -> None:
    """Raise TypeError if parameters were given to a model that brings its own."""
    if params is not None:
        raise TypeError(f"params: a {type(model).__name__} brings its own parameters; leave params out")
