"""Optimizers of optax."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from functools import partial
from importlib import import_module
from typing import Any

import numpy as np
from numpy.typing import NDArray

from untorn.share.lowlevel import flatten
from untorn.train.checkpoints.resuming import described
from untorn.train.optim.base import ServerOptimizer, Session
from untorn.train.optim.outside import changes, record

__all__ = ["OptaxOptimizer"]

_Array = NDArray[Any]


class OptaxOptimizer(ServerOptimizer):
    """An optax.GradientTransformation. It sees the parameters as a pytree: the user's tree, or a dict by name.

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
        leaves = flatten(trained)[1]
        if sorted(map(id, jax.tree_util.tree_leaves(trained))) != sorted(map(id, leaves)):
            raise TypeError(
                "params: with an optimizer of optax they must be a pytree of JAX: dicts, lists, tuples and named "
                "tuples are; register other classes with jax.tree_util"
            )
        self.x64 = any(leaf.dtype == np.float64 for leaf in leaves)
        with self.computing():
            found = jax.tree_util.tree_flatten_with_path(transformation.init(jax.tree.map(jax.numpy.array, trained)))
        self.structure = found[1]
        state = {jax.tree_util.keystr(path): np.array(leaf) for path, leaf in found[0]}
        super().__init__(math.nan, state, {"name": "optax", "init": described(transformation.init)})
        self._compiled: Any = None
        self._check_pure(jax, trained, [leaf for _, leaf in found[0]])

    def _check_pure(self, jax: Any, trained: Any, state: list[Any]) -> None:
        """Raise TypeError if each trace of the step changes something. JAX traces it once for all steps."""
        records = []
        with self.computing():
            params = jax.tree.map(jax.numpy.array, trained)
            leaves = jax.tree_util.tree_unflatten(self.structure, state)
            for _ in range(2):  # the first trace may convert constants
                jax.eval_shape(partial(self._stepped), params, params, leaves)  # a new function is traced again
                records.append(record(self.transformation.update, []))
        changed = changes(*records)
        if changed:
            raise TypeError(
                f"optimizer: its update changes {', '.join(changed[:4])}, beside the state that it returns; JAX traces "
                "it once for all steps, so keep this in the state"
            )

    def __getstate__(self) -> dict[str, Any]:
        """Return what a node gets: it compiles the step itself."""
        return vars(self) | {"_compiled": None}

    @property
    def compiled_step(self) -> Any:
        """The step, a function of gradients, parameters and state, which is compiled once."""
        if self._compiled is None:
            self._compiled = import_module("jax").jit(self._stepped)
        return self._compiled

    def _stepped(self, gradients: Any, params: Any, state: Any) -> tuple[Any, Any]:
        jax: Any = import_module("jax")
        updates, new = self.transformation.update(gradients, state, params)
        # convert to the same dtypes, so that resuming from a checkpoint is exactly the same computation
        convert = jax.lax.convert_element_type
        new = jax.tree.map(lambda after, before: convert(after, before.dtype), new, state)
        return import_module("optax").apply_updates(params, updates), new

    @contextlib.contextmanager
    def computing(self) -> Iterator[None]:
        """Compute on the CPU, with float64 if some parameters have it."""
        import jax

        with jax.default_device(jax.devices("cpu")[0]), jax.enable_x64(True) if self.x64 else contextlib.nullcontext():
            yield

    def session(self, trained: Any, state: dict[str, _Array], *, threads: int) -> Session:
        """See Optimizer. XLA's number of threads is the process's own."""
        return _OptaxSession(self, trained, state)


class _OptaxSession(Session):
    def __init__(self, owner: OptaxOptimizer, trained: Any, state: dict[str, _Array]) -> None:
        jax: Any = import_module("jax")
        self._jax = jax
        self._owner = owner
        leaves, self._structure = jax.tree_util.tree_flatten(trained)
        at = {id(leaf): index for index, leaf in enumerate(leaves)}
        #: the index among JAX's leaves of each parameter, in the order of the channel: JAX sorts the keys of a dict
        self._order = [at[id(leaf)] for leaf in flatten(trained)[1]]
        self._like = flatten(trained)[1]
        with owner.computing():
            self._params = jax.tree.map(jax.numpy.array, trained)
            arrays = [jax.numpy.array(state[name]) for name in state]
        self._state = jax.tree_util.tree_unflatten(owner.structure, arrays)
        self._step = owner.compiled_step

    def step(self, gradients: list[_Array | None], rate: float) -> None:
        """See Session. optax knows no parameters without a gradient: they get one of zero."""
        leaves: list[Any] = [None] * len(gradients)
        for index, gradient, like in zip(self._order, gradients, self._like, strict=True):
            leaves[index] = np.zeros_like(like) if gradient is None else gradient
        tree = self._jax.tree_util.tree_unflatten(self._structure, leaves)
        with self._owner.computing():
            made = self._step(tree, self._params, self._state)
            self._params, self._state = self._jax.block_until_ready(made)  # the gradients' memory is used again

    def values(self) -> list[_Array]:
        """See Session."""
        leaves = self._jax.tree_util.tree_leaves(self._params)
        state = self._jax.tree_util.tree_leaves(self._state)
        return [np.asarray(leaf) for leaf in [*(leaves[index] for index in self._order), *state]]
