"""A module as one process computes with it: gradients, losses and outputs of batches."""

from __future__ import annotations

import importlib
import os
import threading
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from operator import attrgetter
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from untorn import trees
from untorn.quiet import silenced
from untorn.torch.aliases import Alias, move
from untorn.torch.buffers import Buffer
from untorn.torch.copies import Stale
from untorn.torch.hints import explain
from untorn.torch.loss import Loss
from untorn.torch.outputs import predicted
from untorn.torch.random import SeededRandom, generators_of, seed_generators
from untorn.torch.tables import rows_of
from untorn.torch.tensors import TRAINABLE, tensors_of
from untorn.train.models.base import Gradient, Replica, Rows, Turn
from untorn.train.models.checks import checked_loss
from untorn.train.models.turns import of_all, only_trained

__all__ = ["TorchReplica"]

# torch imports it when it unpickles a tensor for the first time: so a fork server has it for all workers
with suppress(ImportError):
    importlib.import_module("torch.utils.serialization.config")

_T = TypeVar("_T")


class TorchReplica(Replica):
    """A module whose parameters are moved to a version's memory for each batch, and away again."""

    def __init__(
        self,
        losses: Mapping[str, Loss],
        module: nn.Module,
        stale: list[Stale],
        aliases: list[Alias],
        predict: Callable[[Any, Any], Any] | None = None,
        carried: frozenset[str] = frozenset(),
        tables: frozenset[str] = frozenset(),
    ) -> None:
        self._losses = losses
        self._loss = next(iter(losses.values()))
        self._turn: Turn | None = None
        self._carried = carried
        self._rows = slice(0, 0)
        self._predict = predict
        self._module = module
        self._stale = stale
        self._aliases = aliases
        self._modules = list(module.modules())
        self._modes: list[bool] = []
        #: the parts that stay in evaluation mode, such as a frozen BatchNorm
        self._evaluated = [part for part in self._modules if not part.training] if module.training else []
        self._parameters = dict(module.named_parameters())
        self._trained = [p for p in self._parameters.values() if p.requires_grad]
        #: of each trained parameter, whether it is a table
        self._tables = [name in tables for name, p in self._parameters.items() if p.requires_grad]
        self._buffers = {name: Buffer(module, name, tensor) for name, tensor in module.named_buffers()}
        self._aliases_of_parameters = [alias.tensor for alias in aliases if alias.name in self._parameters]
        #: the tensors whose memory is a version's, which nobody may write to
        self._watched = [*self._parameters.values(), *self._aliases_of_parameters]
        away = {p.dtype: torch.empty(0, dtype=p.dtype) for p in self._watched}
        self._moves = [(p, away[p.dtype]) for p in self._watched]
        #: the losses whose first gradient is still to be computed
        self._untested = set(losses)
        self.free()
        _replicas.add(self)
        self._random, self._random_in_evaluation = SeededRandom(), SeededRandom()
        self._random_in_prediction = SeededRandom()
        self._generators = generators_of(self._modules)
        self._dtypes = [p.dtype for p in self._trained]
        #: the parameters' versions after the last gradient; None if something else has computed since
        self._versions: list[int] | None = None
        self.takes_rng = True
        self.needs_several = any(_is_batch_norm(part) for part in self._modules if not self._stays(part))

    def __call__(self, params: Any, batch: Any, rng: np.random.Generator | None) -> Gradient:
        """See Replica."""
        name = "" if self._turn is None else self._turn.name
        compute = self._test_written_to if name in self._untested else self._gradient
        with self._in_use:
            try:
                with _Unoptimized():
                    return self._random(*self._seeded(rng, lambda: compute(params, batch, rng)))
            except Exception as error:
                explain(error)
                raise
            finally:
                self._move_away()

    def free(self) -> None:
        """Let any thread compute with the module, which has one version's values at a time."""
        self._in_use = threading.RLock()

    def take_rows(self, start: int, stop: int) -> None:
        """See Replica."""
        self._rows = slice(start, stop)

    def take_turn(self, turn: Turn) -> None:
        """See Replica."""
        if turn is self._turn:
            return
        with self._in_use:
            self._turn, self._loss = turn, self._losses[turn.name]
            for parameter, trained in zip(self._trained, turn.trained, strict=True):
                parameter.requires_grad_(trained)

    def _seeded(
        self, rng: np.random.Generator | None, compute: Callable[[], _T]
    ) -> tuple[int, Callable[[], _T], Callable[[], None]]:
        """Return torch's seed, rng.integers(2**63) computed faster; the function to call; and one to call before a
        repetition."""
        assert rng is not None
        numbers = rng.bit_generator
        seed = numbers.random_raw() >> 1
        state = numbers.state if self._loss.takes_rng else None
        seed_generators(self._generators, seed)

        def start_again() -> None:
            self._move_away()
            seed_generators(self._generators, seed)
            if state is not None:
                numbers.state = state

        return seed, compute, start_again

    def _gradient(self, params: Any, batch: Any, rng: np.random.Generator | None) -> Gradient:
        self._move_to(params)
        self._train()
        versions, self._versions = self._versions or list(map(_version_of, self._watched)), None
        places = list(map(_address_of, self._watched))
        loss, outputs, tensors = self._loss(self._module, batch, rng)
        metrics = self._loss.metrics_of(outputs, tensors)
        if not loss.requires_grad:
            raise ValueError(
                "the loss does not depend on any parameter that is trained; look for a .detach(), an .item() or a "
                "torch.no_grad() between them"
            )
        number = checked_loss(loss.item())
        _backward(loss)
        del loss, outputs
        # the traces that in-place operations, and assignments to .data, leave behind
        if versions != list(map(_version_of, self._watched)) or places != list(map(_address_of, self._watched)):
            raise self._written_to()
        self._versions = versions
        if self._stale:
            self._check_not_stale()
        gradients = [parameter.grad for parameter in self._trained]
        if not self._buffers and self._turn is None:
            addresses = _addresses_of(gradients, self._dtypes)
            if addresses is not None:
                return Gradient(number, lambda: _gradients_of(gradients, self._tables), metrics, addresses)
        leaves: list[Any] = [buffer.taken() for buffer in self._buffers.values()]
        leaves += only_trained(_gradients_of(gradients, self._tables), self._turn)
        return Gradient(number, leaves, metrics)

    def _train(self) -> None:
        """Set training mode as train() does, except for the parts that stay in evaluation mode; unless it is set
        already, which is faster to check."""
        if self._modes != [module.training for module in self._modules]:
            self._module.train()
            for part in self._evaluated:
                part.training = False
            self._modes = [module.training for module in self._modules]

    def _stays(self, part: nn.Module) -> bool:
        return any(part is each for each in self._evaluated)

    def _test_written_to(self, params: Any, batch: Any, rng: np.random.Generator | None) -> Gradient:
        """Compute the first gradient of a job on a copy, since a write through .data shows only in the values."""
        copies = {name: params[name].copy(order="K") for name in self._parameters}
        gradient = self._gradient(params | copies, batch, rng)
        if any(copies[name].tobytes() != params[name].tobytes() for name in self._parameters):
            raise self._written_to()
        now = dict(self._module.named_parameters())
        for name, parameter in self._parameters.items():
            if now.get(name) is not parameter:
                raise RuntimeError(
                    f"the module puts another parameter in the place of {name!r} in forward or backward; expected the "
                    "one that is trained to stay. Compute from it what forward uses, as torch.nn.utils.parametrize does"
                )
        self._untested.discard("" if self._turn is None else self._turn.name)
        return gradient

    def _written_to(self) -> Exception:
        return RuntimeError(
            "the module writes to its own parameters in forward or backward; expected parameters that only the "
            "optimizer changes, since all workers read the same memory. Compute from a parameter what forward uses (as "
            "torch.nn.utils.parametrize does), or make it a buffer"
        )

    def _check_not_stale(self) -> None:
        for path, tensor in self._stale:
            if tensor.grad is not None:
                raise RuntimeError(
                    f"module{path}: it was computed from parameters before training, and forward uses it without "
                    "computing it again, so that they would get no gradient of it; compute it in forward, or in a "
                    "forward pre-hook"
                )

    def _move_to(self, params: Any, *, batch: Any = None) -> None:
        """Move the module to these values. State that is carried is that of the shard's rows, or, for a batch that no
        step is made of, zeros for each example."""
        from_numpy = torch.from_numpy
        for name, parameter in self._parameters.items():
            parameter.data = from_numpy(params[name])
        for name, buffer in self._buffers.items():
            value = params[name]
            if name in self._carried:
                value = value[self._rows] if batch is None else _zeros(value, batch)
            buffer.start_from(value)
        if self._aliases:
            move(self._aliases, self._parameters | dict(self._module.named_buffers()))

    def _move_away(self) -> None:
        """Release the version, so that its memory can be used for a new one."""
        for tensor, away in self._moves:
            tensor.grad = None
            tensor.data = away

    def failure(self, params: Any, batch: Any, rng: np.random.Generator) -> Exception | None:
        """See Replica."""

        def compute() -> None:
            with torch.no_grad(), _Unoptimized():
                self._versions = None
                self._move_to(params, batch=batch)
                self._train()
                self._loss(self._module, batch, rng)

        with self._in_use:
            try:
                SeededRandom()(*self._seeded(rng, compute))
            except Exception as error:
                return error
            finally:
                self._move_away()
        return None

    def measure(self, params: Any, batch: Any, rng: np.random.Generator | None) -> Gradient:
        """See Replica."""

        def compute() -> Gradient:
            with torch.no_grad(), _Unoptimized(), self._evaluating(params, batch):
                if "" not in self._losses:
                    found = {name: each(self._module, batch, rng)[0] for name, each in self._losses.items()}
                    return of_all({name: checked_loss(loss.item()) for name, loss in found.items()})
                loss, outputs, tensors = self._loss(self._module, batch, rng)
                return Gradient(checked_loss(loss.item()), [], self._loss.metrics_of(outputs, tensors))

        with self._in_use:
            return self._random_in_evaluation(*self._seeded(rng, compute))

    def predict(self, params: Any, x: Any) -> Any:
        """See Replica. Returns what the module returns, as arrays; x is its input, a tuple of its inputs, or a dict."""
        inputs = tensors_of(x)

        def compute() -> Any:
            with torch.no_grad(), _Unoptimized(), self._evaluating(params, x, predicting=True):
                seed_generators(self._generators, 0)
                return predicted(self._outputs(inputs), "")

        with self._in_use:
            return self._random_in_prediction(0, compute, lambda: None)

    def _outputs(self, inputs: Any) -> Any:
        if self._predict is not None:
            return self._predict(self._module, inputs)
        if isinstance(inputs, Mapping):
            return self._module(**inputs)
        return self._module(*(inputs if isinstance(inputs, tuple | list) else (inputs,)))

    @contextmanager
    def _evaluating(self, params: Any, batch: Any, *, predicting: bool = False) -> Iterator[None]:
        self._versions = None
        try:
            self._move_to(params, batch=batch)
            self._module.eval()
            yield
        except Exception as error:
            explain(error, predicting=predicting)
            raise
        finally:
            self._move_away()


def _addresses_of(gradients: list[torch.Tensor | None], dtypes: list[torch.dtype]) -> list[Any] | None:
    """Return where these lie in memory, None where there is none. Return None if one of them is not, as it lies there,
    an array of this dtype."""
    addresses: list[int | None] = []
    for gradient, dtype in zip(gradients, dtypes, strict=True):
        if gradient is None:
            addresses.append(None)
        elif (
            type(gradient) is not torch.Tensor
            or gradient.layout is not torch.strided
            or gradient.dtype is not dtype
            or not gradient.is_contiguous()
            or gradient.is_neg()
        ):
            return None
        else:
            addresses.append(gradient.data_ptr())
    return addresses


def _gradients_of(gradients: list[torch.Tensor | None], tables: list[bool]) -> list[NDArray[Any] | Rows | None]:
    """Return each as an array or Rows; None where the loss does not depend on it. ``tables`` tells which are tables."""
    try:
        return [None if gradient is None else gradient.numpy() for gradient in gradients]
    except (TypeError, RuntimeError):  # one is sparse, or has a graph of its own
        return [None if each is None else _taken(each, table) for each, table in zip(gradients, tables, strict=True)]


def _taken(gradient: torch.Tensor, is_table: bool) -> NDArray[Any] | Rows:
    if is_table and gradient.layout == torch.sparse_coo and gradient.sparse_dim() == 1:
        return rows_of(gradient)
    array: NDArray[Any] = (gradient if gradient.layout == torch.strided else gradient.to_dense()).detach().numpy()
    return array


def _zeros(value: NDArray[Any], batch: Any) -> NDArray[Any]:
    """Return state like this, of zeros, with a row for each example of the batch."""
    leaves = trees.flatten(batch, kinds=trees.BATCH)[1]
    return np.zeros((len(leaves[0]), *value.shape[1:]), value.dtype)


def _is_batch_norm(module: nn.Module) -> bool:
    """Return whether it is a batch norm: one of torch's, of another library, or a scripted one."""
    names = [getattr(module, "original_name", ""), *(cls.__name__ for cls in type(module).__mro__)]
    return any("batchnorm" in name.lower() for name in names)


_version_of = attrgetter("_version")  # a tensor's, which is documented
_address_of = torch.Tensor.data_ptr

_replicas: weakref.WeakSet[TorchReplica] = weakref.WeakSet()


def _free_replicas() -> None:
    """Release the replicas in a child that was just forked, where the threads that used them may not exist."""
    for replica in list(_replicas):
        replica.free()


os.register_at_fork(after_in_child=_free_replicas)


class _Unoptimized:
    """torch.jit.optimized_execution(False), at a third of its cost: code of torch.jit is optimized when it has run a
    few times, and then gives other bits."""

    __slots__ = ("_before",)

    def __enter__(self) -> None:
        self._before = torch._C._get_graph_executor_optimize()  # noqa: SLF001 (what that calls)
        torch._C._set_graph_executor_optimize(False)  # noqa: SLF001 (likewise)

    def __exit__(self, *_: object) -> None:
        torch._C._set_graph_executor_optimize(self._before)  # noqa: SLF001 (likewise)


_ONE = {dtype: torch.ones((), dtype=dtype) for dtype in TRAINABLE}
_run_backward: Any = getattr(getattr(torch.autograd.Variable, "_execution_engine", None), "run_backward", None)


def _backward(loss: torch.Tensor) -> None:
    """torch.autograd.backward([loss]). What that does in Python before it calls torch's engine, for losses of other
    kinds than the usual one, takes a sixth of a small step; so the usual one goes there directly."""
    if _run_backward is None or type(loss) is not torch.Tensor or loss.dim() != 0 or loss.dtype not in _ONE:
        torch.autograd.backward([loss])
        return
    keep_graph = create_graph = False
    _run_backward(
        (loss,), (_ONE[loss.dtype],), keep_graph, create_graph, (), allow_unreachable=True, accumulate_grad=True
    )


def _spend_the_warning_of_read_only_memory() -> None:
    """It comes once per process: torch knows no read-only memory. _gradient and _test_written_to see to
    that instead."""
    array = np.zeros(1)
    array.flags.writeable = False
    with silenced():
        torch.from_numpy(array)


_spend_the_warning_of_read_only_memory()  # here, where no trainer runs yet: the filters are the whole process's
