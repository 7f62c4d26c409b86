"""A model whose gradient is the way that a group has gone in some steps of its own: see optim/local_steps.py.

The inner optimizer's state is published as buffers of the model: a shard starts with the mean of the groups' state. So
is the number of inner steps made, which learning rates and bias corrections depend on, and of those that skipped each
parameter, since it had no gradient::

    published     kept | inner steps, skipped steps, inner state | buffers of the model | trained parameters
"""

from __future__ import annotations

import copy
import functools
import math
from collections.abc import Callable
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from untorn import _core, trees
from untorn.share.lowlevel import flatten
from untorn.train.data import sampler
from untorn.train.models.base import Gradient, Model, Parts, Replica, Rows
from untorn.train.models.checks import check_metric_names
from untorn.train.optim.local_steps import LocalSteps

__all__ = ["LocalStepsModel"]

_Array = NDArray[Any]
#: the names of what is published beside the model's own values
_PREFIX = "local steps: "
_COUNT = f"{_PREFIX}count"
_SKIPPED = f"{_PREFIX}skipped"
#: the name of the parameters of a model that has them as one tree
_TREE = "params"
#: the epsilon of torch.nn.utils.clip_grad_norm_, against a division by a norm of 0
_CLIP_EPSILON = 1e-6


class LocalStepsModel(Model):
    """A model with an inner optimizer.

    Args:
        model: the model.
        optimizer: the inner optimizer, and how many steps it makes.
    """

    def __init__(self, model: Model, optimizer: LocalSteps) -> None:
        self._model = model
        self._optimizer = optimizer
        #: whether the parameters are one tree, and the number of arrays that are trained
        self._is_tree, self._trained = False, 0

    @property
    def private_params(self) -> bool:  # type: ignore[override]  # it depends on the model
        """See Model."""
        return self._model.private_params

    def parts(self, params: Any = None) -> Parts:
        """See Model."""
        kept, buffers, trained, shown, carried, _ = self._model.parts(params)
        leaves = flatten(trained)[1]
        # a dict of arrays by name is published as it is
        self._is_tree = not (
            isinstance(trained, dict) and all(isinstance(each, np.ndarray) for each in trained.values())
        )
        self._trained = len(leaves)
        inner: dict[str, _Array] = {_COUNT: np.zeros((), np.int64), _SKIPPED: np.zeros(len(leaves))}
        for name, fill in self._optimizer.inner.initial_state.items():
            for index, leaf in enumerate(leaves):
                inner[f"{_PREFIX}{name} {index}"] = np.full(np.size(leaf), fill, np.asarray(leaf).dtype)
        return Parts(kept, inner | buffers, {_TREE: trained} if self._is_tree else trained, shown, carried)

    def visible(self, params: Any) -> Any:
        """See Model."""
        if self._is_tree:
            return params[_TREE]
        return {name: value for name, value in params.items() if not name.startswith(_PREFIX)}

    def arrays(self, data: Any) -> Any:
        """See Model."""
        return self._model.arrays(data)

    def for_workers(self) -> Self:
        """See Model."""
        made = copy.copy(self)
        made.__dict__.update(_model=self._model.for_workers())
        return made

    def pickler(self, base: Any) -> Any:
        """See Model."""
        return self._model.pickler(base)

    def replica(self, threads: int | None) -> Replica:
        """See Model."""
        return _LocalStepsReplica(self, self._model.replica(threads), self._optimizer, self._trained)

    def module(self, params: Any) -> Any:
        """See Model."""
        return self._model.module(params)


class _LocalStepsReplica(Replica):
    """Makes the steps of one group in one round."""

    def __init__(self, model: LocalStepsModel, replica: Replica, optimizer: LocalSteps, trained: int) -> None:
        self._model = model
        self._replica = replica
        self._optimizer = optimizer
        self._trained = trained
        self.takes_rng = replica.takes_rng
        self.needs_several = replica.needs_several

    def __call__(self, params: Any, batch: Any, rng: np.random.Generator | None) -> Gradient:
        """See Replica."""
        group = _Group(self._model.visible(params), params, self._optimizer, self._trained)
        examples, steps = len(trees.flatten(batch, kinds=trees.BATCH)[1][0]), self._optimizer.steps
        totals: dict[str, float] = {}
        for part in range(steps):
            start, stop = sampler.shard_bounds(0, part, shards=steps, examples=examples, batch_size=examples)
            if start == stop:
                continue
            found = self._replica(group.params, _cut(batch, slice(start, stop)), rng)
            group.step([leaf.dense() if isinstance(leaf, Rows) else leaf for leaf in found.leaves])
            measured = {"loss": found.loss, **found.metrics}
            check_metric_names(list(totals or measured)[1:], found.metrics)
            for name, value in measured.items():
                totals[name] = totals.get(name, 0.0) + value * ((stop - start) / examples)
        loss = totals.pop("loss")
        return Gradient(loss, group.leaves(), totals)

    def measure(self, params: Any, batch: Any, rng: np.random.Generator | None) -> Gradient:
        """See Replica."""
        return self._replica.measure(self._model.visible(params), batch, rng)

    def failure(self, params: Any, batch: Any, rng: np.random.Generator) -> Exception | None:
        """See Replica."""
        return self._replica.failure(self._model.visible(params), batch, rng)

    def predict(self, params: Any, x: Any) -> Any:
        """See Replica."""
        return self._replica.predict(self._model.visible(params), x)


class _Group:
    """The weights of one group in one round: a copy that steps change.

    Args:
        own: the model's own values, at the start.
        published: these, and the inner optimizer's.
        optimizer: the inner optimizer.
        trained: the number of arrays that are trained, which come last.

    Attributes:
        params: the model's own values now.
    """

    def __init__(self, own: Any, published: Any, optimizer: LocalSteps, trained: int) -> None:
        self._optimizer = optimizer
        self._count = int(published[_COUNT])
        #: the mean of the groups'
        self._skipped = np.round(published[_SKIPPED])
        self._has_gradient = [False] * trained
        self._spec, self._leaves = flatten(own)
        self._untrained = len(self._leaves) - trained
        self._start = [np.asarray(leaf) for leaf in self._leaves[self._untrained :]]
        self._buffers: list[Any] = []
        names = optimizer.inner.initial_state
        #: of each trained array: it and its state, in the order of memory
        self._now = [
            (_flat(leaf.copy(order="K")), *(published[f"{_PREFIX}{name} {index}"] for name in names))
            for index, leaf in enumerate(self._start)
        ]
        #: the arrays of the next step, and of the one after it: what was published is only read
        self._next, self._spare = self._empty(), self._empty()
        self._show()

    def _empty(self) -> list[tuple[_Array, ...]]:
        return [tuple(np.empty_like(array) for array in arrays) for arrays in self._now]

    def _show(self) -> None:
        self._leaves[self._untrained :] = [
            _shaped(arrays[0], leaf) for arrays, leaf in zip(self._now, self._start, strict=True)
        ]
        self.params = trees.unflatten(self._spec, self._leaves)

    def step(self, found: list[Any]) -> None:
        """Make one step with these results of the model: new values of its buffers, and gradients."""
        count = len(found) - len(self._start)
        gradients = [
            None if each is None else _flat_like(each, leaf)
            for each, leaf in zip(found[count:], self._start, strict=True)
        ]
        if self._optimizer.clip_norm is not None:
            _clip([gradient for gradient in gradients if gradient is not None], self._optimizer.clip_norm)
        kernel, rates = self._optimizer.inner.kernel, self._rates()
        for index, gradient in enumerate(gradients):
            now, following = self._now[index], self._next[index]
            if gradient is None:
                for array, copy_of in zip(now, following, strict=True):
                    np.copyto(copy_of, array)
                self._skipped[index] += 1
                continue
            self._has_gradient[index] = True
            _core.step_arrays(kernel, rates(int(self._skipped[index])), (now[0], gradient, *now[1:]), following)
        self._now, self._next, self._spare = self._next, self._spare, self._next
        self._count += 1
        self._buffers = [np.array(each) for each in found[:count]]
        self._leaves[self._untrained - count : self._untrained] = self._buffers
        self._show()

    def _rates(self) -> Callable[[int], Any]:
        """Return the kernel's numbers for this step as a function of the number of steps that skipped a parameter."""
        inner, row = self._optimizer.inner, self._optimizer.inner.rates(self._count, 1)[0]
        rate = float(row[3])

        @functools.cache
        def rates(skipped: int) -> tuple[float, ...]:
            made = self._count - skipped
            return tuple((row if skipped == 0 else inner.rates(made, 1, lambda _: rate)[0]).tolist())

        return rates

    def leaves(self) -> list[Any]:
        """Return the contents of a gradient buffer: the number of steps, the state, the model's buffers, and the way
        from here to the start, which is what an optimizer subtracts; None for a parameter without any gradient."""
        states = [arrays[k] for k in range(1, len(self._now[0])) for arrays in self._now]
        way = [
            leaf - _shaped(arrays[0], leaf) if has_gradient else None
            for arrays, leaf, has_gradient in zip(self._now, self._start, self._has_gradient, strict=True)
        ]
        return [np.array(self._count, np.int64), self._skipped, *states, *self._buffers, *way]


def _cut(batch: Any, part: slice) -> Any:
    return trees.map(lambda leaf: leaf[part], batch)


def _flat(array: _Array) -> _Array:
    """Return a dense array in the order of its memory: a view."""
    return np.ndarray(array.size, array.dtype, array.ravel(order="K"))


def _shaped(flat: _Array, like: _Array) -> _Array:
    """Return a view of these numbers with the shape and the order of memory of another array."""
    return np.ndarray(like.shape, flat.dtype, flat, strides=np.empty_like(like, order="K", subok=False).strides)


def _flat_like(value: Any, like: _Array) -> _Array:
    """Return the numbers of a gradient in the order of another array's memory: a copy."""
    shaped = np.empty_like(like, order="K", subok=False)
    np.copyto(shaped, value, casting="same_kind")
    return _flat(shaped)


def _clip(gradients: list[_Array], clip_norm: float) -> None:
    """Scale the gradients in place, as torch.nn.utils.clip_grad_norm_ does."""
    norm = math.sqrt(sum(float(np.square(gradient, dtype=np.float64).sum()) for gradient in gradients))
    scale = clip_norm / (norm + _CLIP_EPSILON)
    if not scale > 1:
        for gradient in gradients:
            np.multiply(gradient, gradient.dtype.type(scale), out=gradient)
