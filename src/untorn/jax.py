"""JAX loss functions and pytrees of parameters as models of a Trainer.

::

    Trainer(JaxModel(loss_fn, params), optimizer=SGD(0.1), workers=4)

    version (shared memory) ── read where it lies ──> jit(value_and_grad(loss_fn)) ──> gradients, copied once

A version is one dict of arrays, named by their paths in the pytree: "params.Dense_0.kernel". The pytree may consist of
any registered types: dicts, lists, named tuples, dataclasses, the results of flax.linen's init and flax.nnx.split,
equinox modules. Workers get it without its arrays, and fill it with those of the version; nothing is ever donated.

Every process compiles loss_fn by itself, once for each shape of a batch, which takes from a tenth of a second to
minutes. If the batch size is a multiple of ``shards``, all shards have the same shape; a smaller last batch adds up to
two. So choose a batch size that ``shards`` divides, and fit(drop_last=True). With JAX_COMPILATION_CACHE_DIR in the
environment, processes share compiled code, now and in later runs.

Workers compute on the CPU. With threads_per_worker=1 a matrix product takes one thread; XLA's pool, which is made once
per process, has max(2, threads_per_worker) threads in a worker, and as many as there are processors in this process.
XLA has other last bits for a pool of one thread than for a larger one, and, in the gradients of convolutions, for each
size. So all workers agree with each other, and the serial engine agrees with them except for large convolutions on more
than two processors, or on a single one. To make it agree there, start Python with PJRT_NPROC=2 in the environment.
"""

from __future__ import annotations

import contextlib
import copy
import inspect
import operator
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from functools import partial
from importlib import import_module
from typing import Any, Self

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from untorn.engines.importable import can_import
from untorn.train.models.base import Gradient, Model, Parts, Replica, check_no_params
from untorn.train.models.checks import checked_loss, checked_metrics

__all__ = ["JaxModel"]

_TRAINABLE = (np.dtype(np.float32), np.dtype(np.float64))
#: the settings on which results depend; workers adopt them from the process that made the model
_SETTINGS = (
    "enable_x64",
    "default_prng_impl",
    "threefry_partitionable",
    "default_matmul_precision",
    "numpy_dtype_promotion",
    "numpy_rank_promotion",
)


class JaxModel(Model):
    """A loss function and its parameters, as a Trainer takes them. The function is differentiated and jitted here.

    With ``state``, all functions get it as their second argument, and loss_fn returns its new value. It is for values
    that computing a gradient changes, such as the means of batch normalisation. Each shard starts from the version's
    state, and the next version has the mean over the shards, weighted by their examples; an array without floats takes
    the value of the first shard.

    JAX gives a parameter that the loss does not reach a gradient of zero, so decay and momentum go on for it.

    Args:
        loss_fn: ``loss_fn(params, batch[, key])``, a loss or (loss, metrics): means over the batch, metrics a dict of
            numbers. With state: ``loss_fn(params, state, batch[, key])``, (loss, state) or (loss, state, metrics).
            key is a jax.random.key that belongs to (seed, step, shard). If it has a default, it must be called "key"
            or "rng", and is not passed in Trainer.evaluate, so that a function can tell that it does not train.
        params: a pytree of float32 and float64 arrays of JAX or NumPy. It is not changed; Trainer.module() returns the
            trained one, a pytree like this. If one is float64, the functions run with jax_enable_x64.
        predict: ``predict(params, x)`` or ``predict(params, state, x)``, for Trainer.predict: an array with one row
            per example; jitted.
        state: a pytree of arrays of numbers and random keys; Trainer.module() is then (params, state). The keys, such
            as those of Flax's nnx.Rngs, are folded with (seed, step, shard) for each gradient, and stay as they are.
        has_aux: whether loss_fn returns metrics; by default this is determined from its return value.

    Raises:
        TypeError: an argument is not a function, or a leaf is not an array of these dtypes; the message names its path.
        ValueError: params has no numbers.

    Example::

        import jax.numpy as jnp, numpy as np
        from untorn import SGD, Trainer
        from untorn.jax import JaxModel

        def loss_fn(params, batch):
            x, y = batch
            return jnp.mean((x @ params["w"] + params["b"] - y) ** 2)

        x = np.random.default_rng(0).normal(size=(256, 2)).astype(np.float32)
        params = {"w": jnp.zeros(2), "b": jnp.zeros(())}
        with Trainer(JaxModel(loss_fn, params), optimizer=SGD(0.1), engine="serial") as trainer:
            trainer.fit((x, x @ np.float32([1, -2])), epochs=10, batch_size=32)
            print(trainer.module()["w"].round(2))  # [ 1. -2.]
    """

    def __init__(
        self,
        loss_fn: Callable[..., Any],
        params: Any,
        *,
        predict: Callable[..., Any] | None = None,
        state: Any = None,
        has_aux: bool | None = None,
    ) -> None:
        if not callable(loss_fn):
            raise TypeError(f"loss_fn: expected a function (params, batch) -> loss, found {type(loss_fn).__name__}")
        if predict is not None and not callable(predict):
            raise TypeError(f"predict: expected a function (params, x) -> outputs, found {type(predict).__name__}")
        self.loss_fn: _Function = _Function(loss_fn)
        self.predict: _Function | None = None if predict is None else _Function(predict)
        self.has_aux = has_aux
        self.has_state: bool = state is not None
        self._state = _Tree("state", state, taken=set())
        self._params = _Tree("params", params, taken=set(self._state.names))
        if not any(array.size for array in self._params.arrays):
            raise ValueError("params: there is nothing to train; expected a pytree with at least one number in it")
        self._settings = {name: getattr(jax.config, f"jax_{name}") for name in _SETTINGS}
        self._settings["enable_x64"] |= any(array.dtype == np.float64 for array in self._params.arrays)

    def parts(self, params: Any = None) -> Parts:
        """See Model. Views."""
        check_no_params(self, params)
        state, trained = (dict(zip(tree.names, tree.arrays, strict=True)) for tree in (self._state, self._params))
        return Parts({}, state, trained)

    def arrays(self, data: Any) -> Any:
        """See Model."""
        return jax.tree_util.tree_map(lambda leaf: np.asarray(leaf) if isinstance(leaf, jax.Array) else leaf, data)

    def for_workers(self) -> Self:
        """See Model."""
        model = copy.copy(self)
        model.__dict__.update(_state=self._state.without_arrays(), _params=self._params.without_arrays())
        return model

    def replica(self, threads: int | None) -> Replica:
        """See Model."""
        return _JaxReplica(self, self._state, self._params, self._set, threads)

    def module(self, params: Any) -> Any:
        """See Model."""
        with self._set():
            trained = self._params.filled_like_given(params)
            return (trained, self._state.filled_like_given(params)) if self.has_state else trained

    @contextlib.contextmanager
    def _set(self) -> Iterator[None]:
        """JAX's settings as they were when the model was made."""
        with contextlib.ExitStack() as stack:
            for name, value in self._settings.items():
                if getattr(jax.config, f"jax_{name}") != value:
                    stack.enter_context(getattr(jax, name)(value))
            yield


class _JaxReplica(Replica):
    """The functions, jitted."""

    def __init__(
        self,
        model: JaxModel,
        state: _Tree,
        params: _Tree,
        settings: Callable[[], AbstractContextManager[None]],
        threads: int | None,
    ) -> None:
        self._model = model
        self._state = state
        self._params = params
        self._settings = settings
        first = 3 if model.has_state else 2
        self._wants_key, self._key_has_default = _third(model.loss_fn.call, first)
        self.takes_rng = self._wants_key or state.has_keys
        self._state_names, self._names = state.names, params.names
        with settings():
            self._key_shape = jax.random.key_data(jax.random.key(0)).shape
        # on flat lists of arrays: the fastest way into jit, which reads aligned NumPy arrays where they lie
        options: Any = {"xla_cpu_multi_thread_eigen": False} if threads == 1 else None
        self._jitted_gradient = jax.jit(jax.value_and_grad(self._loss, has_aux=True), compiler_options=options)
        self._jitted_loss = jax.jit(partial(self._loss, trains=False))
        self._jitted_predict = jax.jit(self._outputs)

    def __call__(self, params: Any, batch: Any, rng: np.random.Generator | None) -> Gradient:
        """See Replica."""
        with self._computing():
            (loss, (state, metrics)), grads = self._jitted_gradient(*self._leaves(params), batch, self._key_of(rng))
            leaves = [np.asarray(leaf) for leaf in (*state, *grads)]
        return Gradient(checked_loss(loss.item()), leaves, _numbers(metrics))

    def measure(self, params: Any, batch: Any, rng: np.random.Generator | None) -> Gradient:
        """See Replica."""
        key = None if self._key_has_default else self._key_of(rng)
        with self._computing():
            loss, (_, metrics) = self._jitted_loss(*self._leaves(params), batch, key)
            return Gradient(checked_loss(loss.item()), [], _numbers(metrics))

    def predict(self, params: Any, x: Any) -> Any:
        """See Replica."""
        if self._model.predict is None:
            raise TypeError("predict: the model has no such function; give JaxModel predict=, a function (params, x)")
        with self._computing():
            outputs = self._jitted_predict(*self._leaves(params), x)
            if not all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(outputs)):
                raise TypeError(f"predict: expected a function that returns arrays, found {type(outputs).__name__}")
            return jax.tree.map(np.array, outputs)

    @contextlib.contextmanager
    def _computing(self) -> Iterator[None]:
        """Run with the model's settings, and on the CPU, whose memory holds the weights."""
        with self._settings():
            if jax.default_backend() == "cpu":
                yield
            else:
                with jax.default_device(jax.local_devices(backend="cpu")[0]):
                    yield

    def _leaves(self, params: Any) -> tuple[list[Any], list[Any]]:
        return [params[name] for name in self._names], [params[name] for name in self._state_names]

    def _key_of(self, rng: np.random.Generator | None) -> NDArray[np.uint32] | None:
        return rng.integers(2**32, size=self._key_shape, dtype=np.uint32) if self.takes_rng and rng else None

    # -- what JAX traces

    def _loss(
        self, trained: list[Any], kept: list[Any], batch: Any, key: Any, *, trains: bool = True
    ) -> tuple[Any, tuple[Any, Any]]:
        """(loss, (leaves of the state, metrics))."""
        arguments = (*self._trees(trained, kept, key if trains else None), batch)
        if key is not None and self._wants_key:
            arguments += (jax.random.wrap_key_data(key),)
        loss, state, metrics = self._taken_apart(self._model.loss_fn.call(*arguments))
        dtype, shape = jnp.result_type(loss), jnp.shape(loss)
        if shape != () or not jnp.issubdtype(dtype, jnp.floating):
            raise TypeError(
                f"loss_fn: expected a loss that is one real number, the mean over the batch, found an array of {dtype} "
                f"of shape {shape}"
            )
        leaves = self._state.leaves_of(state, kept) if self._model.has_state else []
        return loss, (leaves, metrics)

    def _outputs(self, trained: list[Any], kept: list[Any], x: Any) -> Any:
        assert self._model.predict is not None
        return self._model.predict.call(*self._trees(trained, kept), x)

    def _trees(self, trained: list[Any], kept: list[Any], key: Any = None) -> tuple[Any, ...]:
        params = self._params.filled(trained)
        return (params, self._state.filled(self._state.wrapped(kept, key))) if self._model.has_state else (params,)

    def _taken_apart(self, answer: Any) -> tuple[Any, Any, Any]:
        """(loss, state, metrics)."""
        fewest = 2 if self._model.has_state else 1
        parts = answer if isinstance(answer, tuple) else (answer,)
        has_aux = len(parts) == fewest + 1 if self._model.has_aux is None else self._model.has_aux
        if len(parts) != fewest + has_aux:
            expected = "(loss, state" if self._model.has_state else "(loss" if has_aux else "a loss"
            expected += f"{', metrics' if has_aux else ''}{')' if '(' in expected else ''}"
            found = f"a tuple of length {len(parts)}" if isinstance(answer, tuple) else type(answer).__name__
            raise TypeError(f"loss_fn: expected {expected}, found {found}")
        metrics = parts[-1] if has_aux else {}
        if not isinstance(metrics, Mapping):
            raise TypeError(f"loss_fn: expected a dict of metrics by name, found {type(metrics).__name__}")
        for name, metric in metrics.items():
            if jnp.shape(metric) != ():
                raise TypeError(f"metric {name!r}: expected one number, found an array of shape {jnp.shape(metric)}")
        return parts[0], parts[1] if self._model.has_state else None, dict(metrics)


class _Tree:
    """A pytree, apart: the arrays, their names, and a tree of the same structure whose leaves are their numbers.

    It is this tree that is sent to workers. JAX's own description of a structure cannot always be pickled.
    """

    def __init__(self, what: str, tree: Any, *, taken: set[str]) -> None:
        found, structure = jax.tree_util.tree_flatten_with_path(tree)
        self.what = what
        self.names: list[str] = []
        for path, _ in found:
            name = ".".join(_word(key) for key in path) or what
            while name in taken:
                name += "_"
            taken.add(name)
            self.names.append(name)
        #: for each leaf that is a random key, or an array of them, its kind; else None
        self._kinds = [
            str(jax.random.key_impl(leaf)) if what == "state" and _is_key(leaf) else None for _, leaf in found
        ]
        self.has_keys = any(self._kinds)
        leaves = [
            jax.random.key_data(leaf) if kind else leaf for kind, (_, leaf) in zip(self._kinds, found, strict=True)
        ]
        self.arrays = [_array_of(what, name, leaf) for name, leaf in zip(self.names, leaves, strict=True)]
        self.shapes = [(array.shape, array.dtype) for array in self.arrays]
        self._of_jax = [isinstance(leaf, jax.Array) for _, leaf in found]
        self._numbered = jax.tree_util.tree_unflatten(structure, range(len(found)))

    def without_arrays(self) -> Self:
        tree = copy.copy(self)
        tree.arrays = []
        return tree

    def filled(self, leaves: list[Any]) -> Any:
        """The pytree with these leaves."""
        return jax.tree_util.tree_unflatten(jax.tree_util.tree_structure(self._numbered), leaves)

    def filled_like_given(self, arrays: Any) -> Any:
        """The pytree with copies of these arrays by name: of JAX where they were that."""
        pairs = zip(self.names, self._of_jax, strict=True)
        leaves = [jnp.array(arrays[name]) if of_jax else arrays[name].copy() for name, of_jax in pairs]
        return self.filled(self.wrapped(leaves, None))

    def wrapped(self, leaves: list[Any], key: Any) -> list[Any]:
        """The leaves with random keys in place of their numbers; folded with this one, unless it is None."""
        if not self.has_keys:
            return leaves
        number = None if key is None else jax.random.bits(jax.random.wrap_key_data(key))
        made = list(leaves)
        for index, kind in enumerate(self._kinds):
            if kind is not None:
                own = jax.random.wrap_key_data(jnp.asarray(leaves[index]), impl=kind)
                made[index] = own if number is None else _folded(own, number)
        return made

    def leaves_of(self, tree: Any, kept: list[Any]) -> list[Any]:
        """The leaves of another tree, with the random keys ``kept``. Raises ValueError unless it has this structure and
        these shapes."""
        leaves, structure = jax.tree_util.tree_flatten(tree)
        expected: Any = jax.tree_util.tree_structure(self._numbered)
        if structure != expected:
            raise ValueError(f"loss_fn: the {self.what} that it returns: expected {expected}, found {structure}")
        leaves = [old if kind else new for kind, old, new in zip(self._kinds, kept, leaves, strict=True)]
        for name, (shape, dtype), leaf in zip(self.names, self.shapes, leaves, strict=True):
            found = jnp.result_type(leaf)
            if jnp.shape(leaf) != shape or not np.can_cast(found, dtype, "same_kind"):
                raise ValueError(
                    f"loss_fn: the {self.what} that it returns: {name}: expected {dtype} of shape {shape}, "
                    f"found {found} of shape {jnp.shape(leaf)}"
                )
        return leaves


def _is_key(leaf: Any) -> bool:
    return isinstance(leaf, jax.Array) and bool(jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key))


def _folded(keys: Any, number: Any) -> Any:
    """Fold a number into a random key, or into each of an array of them."""
    if keys.ndim == 0:
        return jax.random.fold_in(keys, number)
    flat = jax.vmap(jax.random.fold_in, (0, None))(keys.reshape(-1), number)
    return flat.reshape(keys.shape)


def _word(key: Any) -> str:
    """A step on the path of a leaf, as people write it."""
    for attribute in ("key", "name", "idx"):
        if hasattr(key, attribute):
            return str(getattr(key, attribute))
    return str(key)


def _array_of(what: str, name: str, leaf: Any) -> NDArray[Any]:
    """Its numbers, without a copy where possible. Raises TypeError for what cannot be trained, or published."""
    is_array = isinstance(leaf, jax.Array | np.ndarray | np.generic) and not isinstance(leaf, jax.core.Tracer)
    dtype = leaf.dtype if is_array else None
    if what == "params" and (dtype is None or dtype not in _TRAINABLE):
        raise TypeError(
            f"params: {name}: expected an array of float32 or float64, found {_described(leaf, dtype)}; convert it, "
            "or keep what is not trained out of params, as equinox.partition and flax.nnx.split do"
        )
    if not isinstance(dtype, np.dtype) or dtype.kind not in "biufc":
        raise TypeError(f"{what}: {name}: expected an array of numbers, found {_described(leaf, dtype)}")
    return np.asarray(leaf, order="C")


def _described(leaf: Any, dtype: Any) -> str:
    return f"a {type(leaf).__name__}" if dtype is None else f"an array of {dtype}"


def _numbers(metrics: Mapping[str, Any]) -> dict[str, float]:
    return checked_metrics({name: value.item() for name, value in metrics.items()})


def _third(function: Callable[..., Any], first: int) -> tuple[bool, bool]:
    """Return whether it has a parameter for random numbers after the first two (three with state), and whether that
    has a default."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        return False, False
    positional = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    if len(positional) <= first:
        return False, False
    key = positional[first]
    has_default = key.default is not key.empty
    return not has_default or key.name in ("key", "rng"), has_default


class _Function:
    """A function that can be pickled though jax.jit made it: by its name, or else as what was given to jax.jit."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.call = function

    def __reduce__(self) -> Any:
        function: Any = self.call
        if not isinstance(function, _JITTED):
            return _Function, (function,)
        module, name = function.__module__, function.__qualname__
        if can_import(module):
            with contextlib.suppress(AttributeError):
                if operator.attrgetter(name)(sys.modules[module]) is function:
                    return _function_of, (module, name)
        return _Function, (function.__wrapped__,)


_JITTED: Any = type(jax.jit(len))


def _function_of(module: str, name: str) -> _Function:
    return _Function(operator.attrgetter(name)(import_module(module)))
