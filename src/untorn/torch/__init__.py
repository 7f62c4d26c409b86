"""PyTorch modules as models of a Trainer.

::

    Trainer(TorchModel(module, nn.CrossEntropyLoss()), optimizer=SGD(0.1), workers=4)

    version (shared memory) ── parameters: read where they lie ──> module.forward, loss, backward ──> gradients
                            └─ buffers: copied ─────────────────>        changes them           ──> new values

What is published is one dict of arrays with the names of the state_dict: parameters that are not trained, buffers
(those that are not persistent too), parameters that are trained. Tied parameters are there once, under their first
name.

A buffer that forward changes, such as BatchNorm's running mean, starts in each shard from the version's value, and the
next version has the mean over the shards, weighted by their examples; an element that every shard left with the same
bits keeps these bits. Buffers that are not float32, float64 or complex (a counter, a mask) take the value of the first
shard: a counter counts up once per step.

Gradients: ``.grad`` is None before backward, and what backward leaves there is copied into the gradient buffer once.
With a ``.grad`` over that buffer, autograd adds to it in place, so it must be zeroed, read and written: more traffic.
"""

from __future__ import annotations

import os
import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any, Self, TypeVar

import numpy as np
import torch
from numpy.lib.array_utils import byte_bounds
from numpy.typing import NDArray
from torch import nn

from untorn.share.quiet import silenced
from untorn.torch.aliases import Alias, move
from untorn.torch.copies import Stale, copied, hooks_of, pickler_of, recompute, register_hooks
from untorn.torch.random import SeededRandom, generators_of, seed_generators
from untorn.train.models.base import Gradient, Model, Parts, Replica, check_no_params
from untorn.train.models.checks import checked_loss, checked_metrics
from untorn.train.models.function import takes_rng
from untorn.train.models.trees import mapped

__all__ = ["TorchModel"]

_T = TypeVar("_T")
_TRAINABLE = (torch.float32, torch.float64)


class TorchModel(Model):
    """A torch.nn.Module and its loss, as a Trainer takes them.

    Data are NumPy arrays or tensors in CPU memory, one example per row. Of a tuple or list, the last part is the target
    and the others are the module's inputs: ``loss(module(*inputs), target)``. Of a dict, the target is the part named
    "target", or else the last one, and the others are keyword arguments: ``loss(module(**inputs), target)``.

    In training the module is in training mode; in Trainer.evaluate and Trainer.predict it is in evaluation mode,
    without gradients. Torch's random numbers, such as dropout's, are keyed by (seed, step, shard), and the state of its
    generator in this process stays as it is. Parameters without requires_grad are not trained;
    those that the loss does not depend on get a gradient of zero. A forward that writes to a parameter is an error.
    BatchNorm wants two examples at least: a last batch with fewer for each shard is cut into fewer shards, and a single
    example is refused before training begins.

    Args:
        module: float32 and float64 parameters in CPU memory. It is not changed; Trainer.module() gives the trained one.
        loss: ``loss(outputs, target[, rng])``, a tensor with one number: the mean over the batch. rng is a NumPy
            generator. May be None if there is forward.
        metrics: functions ``(outputs, target) -> number``, means over the batch, by name.
        forward: ``forward(module, batch[, rng]) -> loss`` or ``(loss, outputs)`` in place of the above; batch is the
            data's tree, of tensors. Metrics need the outputs.
        sample_weight: the data has one more part, a number per example: the last of a tuple or list, the part named
            "sample_weight" of a dict. ``loss`` then gives a number per example (reduction="none"), and trained is
            ``(sample_weight * losses).mean()``: divided by the number of examples, as Keras does. Metrics are not
            weighted.

    Raises:
        TypeError: the module, or one of these functions, is none.

    Example:
        >>> import numpy as np, torch
        >>> from untorn import SGD, Trainer
        >>> from untorn.torch import TorchModel
        >>> x = np.random.default_rng(0).normal(size=(256, 2)).astype(np.float32)
        >>> y = x @ np.float32([[1.0], [-2.0]])
        >>> model = TorchModel(torch.nn.Linear(2, 1), torch.nn.MSELoss())
        >>> with Trainer(model, optimizer=SGD(0.1), engine="serial") as trainer:
        ...     history = trainer.fit((x, y), epochs=10, batch_size=32)
        ...     trainer.module().weight.detach().numpy().round(2)
        array([[ 1., -2.]], dtype=float32)
    """

    def __init__(
        self,
        module: nn.Module,
        loss: Callable[..., Any] | None,
        *,
        metrics: Mapping[str, Callable[[Any, Any], Any]] | None = None,
        forward: Callable[..., Any] | None = None,
        sample_weight: bool = False,
    ) -> None:
        if not isinstance(module, nn.Module):
            raise TypeError(f"module: expected a torch.nn.Module, found {type(module).__name__}")
        for path, each in module.named_modules():
            if isinstance(each, nn.parallel.DistributedDataParallel):
                raise TypeError(
                    f"module{f'.{path}' if path else ''}: a DistributedDataParallel, which sums gradients itself, over "
                    "processes of its own; give its .module"
                )
        if isinstance(loss, type):
            raise TypeError(
                "loss: expected a function (outputs, target) -> loss, found the class "
                f"{loss.__name__}; make one: {loss.__name__}()"
            )
        if not callable(loss) and (loss is not None or forward is None):
            raise TypeError(f"loss: expected a function (outputs, target) -> loss, found {type(loss).__name__}")
        if forward is not None and not callable(forward):
            raise TypeError(f"forward: expected a function (module, batch) -> loss, found {type(forward).__name__}")
        if forward is not None and sample_weight:
            raise TypeError(
                "sample_weight: forward computes the loss itself, and weights it itself; leave one of them out"
            )
        if metrics is not None and not isinstance(metrics, Mapping):
            raise TypeError(f"metrics: expected a dict of functions by name, found {type(metrics).__name__}")
        for name, metric in (metrics or {}).items():
            if not callable(metric):
                raise TypeError(f"metrics[{name!r}]: expected a function, found {type(metric).__name__}")
        self._module = module
        self.loss = loss
        self.metrics = dict(metrics or {})
        self.forward = forward
        self.sample_weight = sample_weight
        self._stale: list[Stale] = []
        self._aliases: list[Alias] = []

    def parts(self, params: Any = None) -> Parts:
        """See Model. Views of the parameters, copies of the buffers."""
        check_no_params(self, params)
        kept, trained = {}, {}
        for name, parameter in self._module.named_parameters():
            array = _array_of(f"parameter {name!r}", parameter)
            if not parameter.requires_grad:
                kept[name] = array
            elif parameter.dtype not in _TRAINABLE:
                way = (
                    "keep it as real numbers (torch.view_as_real) and compute the complex ones in forward "
                    "(torch.view_as_complex)"
                    if parameter.is_complex()
                    else "convert the module with .float()"
                )
                raise TypeError(
                    f"parameter {name!r}: expected float32 or float64, found {parameter.dtype}; {way}, or freeze it "
                    "with requires_grad_(False)"
                )
            else:
                trained[name] = array
        if not any(array.size for array in trained.values()):
            raise ValueError("module: there is nothing to train; expected at least one parameter with requires_grad")
        # copies: a tensor whose memory NumPy has had can never be resized again, as a forward may do with its buffers
        buffers = {
            name: _array_of(f"buffer {name!r}", buffer, copied=True) for name, buffer in self._module.named_buffers()
        }
        views = {
            name: np.from_dlpack(b.detach().resolve_conj().resolve_neg()) for name, b in self._module.named_buffers()
        }
        _check_apart(trained, kept | views)
        return Parts(kept, buffers, trained)

    def arrays(self, data: Any) -> Any:
        """See Model."""
        return mapped(data, lambda leaf: _array_of("data", leaf) if isinstance(leaf, torch.Tensor) else leaf)

    def for_workers(self) -> Self:
        """See Model."""
        functions = {"loss": self.loss, "metrics": self.metrics, "forward": self.forward}
        model = object.__new__(type(self))
        made = copied(self._module, functions, self._stale, self._aliases, values=False)
        inside = {"_module": made.module, "_stale": made.stale, "_aliases": made.aliases}
        model.__dict__.update(self.__dict__ | made.functions | inside)
        return model

    def pickler(self, base: Any) -> Any:
        """See Model."""
        return pickler_of(base, self)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"hooks": hooks_of(self._module)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        register_hooks(state.pop("hooks"))
        self.__dict__.update(state)

    def replica(self, threads: int | None) -> Replica:
        """See Model."""
        model: TorchModel = self.for_workers()
        return _TorchReplica(model, model._module, model._stale, model._aliases)

    def module(self, params: Any) -> nn.Module:
        """See Model."""
        made = copied(self._module, {}, [], [], values=True)
        module, tensors = made.module, dict([*made.module.named_parameters(), *made.module.named_buffers()])
        with torch.no_grad():
            for name, tensor in tensors.items():
                tensor.copy_(torch.from_numpy(params[name]))
        move(made.aliases, tensors)
        recompute(module)
        return module


class _TorchReplica(Replica):
    """A module whose parameters are moved to a version's memory for each batch, and away again."""

    def __init__(self, model: TorchModel, module: nn.Module, stale: list[Stale], aliases: list[Alias]) -> None:
        self._model = model
        self._module = module
        self._stale = stale
        self._aliases = aliases
        self._modules = list(module.modules())
        self._modes: list[bool] = []
        self._parameters = dict(module.named_parameters())
        self._trained = [p for p in self._parameters.values() if p.requires_grad]
        self._buffers = {name: _Buffer(module, name, tensor) for name, tensor in module.named_buffers()}
        self._aliases_of_parameters = [alias.tensor for alias in aliases if alias.name in self._parameters]
        self._away = {p.dtype: torch.empty(0, dtype=p.dtype) for p in self._parameters.values()}
        self._loss_takes_rng = model.forward is None and model.loss is not None and takes_rng(model.loss)
        self._forward_takes_rng = model.forward is not None and takes_rng(model.forward)
        self._written_to_untested = True
        self.free()
        _replicas.add(self)
        self._random, self._random_in_evaluation = SeededRandom(), SeededRandom()
        self._random_in_prediction = SeededRandom()
        self._generators = generators_of(self._modules)
        self.takes_rng = True
        self.needs_several = any(map(_is_batch_norm, self._modules))

    def __call__(self, params: Any, batch: Any, rng: np.random.Generator | None) -> Gradient:
        """See Replica."""
        compute = self._test_written_to if self._written_to_untested else self._gradient
        with self._in_use:
            try:
                with _unoptimized():
                    return self._random(*self._seeded(rng, lambda: compute(params, batch, rng)))
            finally:
                self._move_away()

    def free(self) -> None:
        """Let any thread compute with the module, which has one version's values at a time."""
        self._in_use = threading.RLock()

    def _seeded(
        self, rng: np.random.Generator | None, compute: Callable[[], _T]
    ) -> tuple[int, Callable[[], _T], Callable[[], None]]:
        """Torch's seed, rng.integers(2**63), which takes longer; what to call; and what to do before the next call."""
        assert rng is not None
        numbers = rng.bit_generator
        seed = numbers.random_raw() >> 1
        state = numbers.state if self._loss_takes_rng or self._forward_takes_rng else None
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
        versions, addresses = self._traces()
        loss, outputs, tensors = self._loss_of(batch, rng)
        metrics = self._metrics_of(outputs, tensors)
        if not loss.requires_grad:
            raise ValueError(
                "the loss does not depend on any parameter that is trained; look for a .detach(), an .item() or a "
                "torch.no_grad() between them"
            )
        number = checked_loss(loss.item())
        _backward(loss)
        del loss, outputs
        if (versions, addresses) != self._traces():
            raise self._written_to()
        self._check_not_stale()
        leaves = [buffer.taken() for buffer in self._buffers.values()]
        leaves += [self._gradient_of(parameter) for parameter in self._trained]
        return Gradient(number, leaves, metrics)

    def _train(self) -> None:
        """Be in training mode: as train() leaves it, which takes longer than looking."""
        if self._modes != [module.training for module in self._modules]:
            self._module.train()
            self._modes = [module.training for module in self._modules]

    def _gradient_of(self, parameter: nn.Parameter) -> NDArray[Any]:
        gradient = parameter.grad
        if gradient is None:  # the loss of this batch does not depend on it
            return torch.zeros_like(parameter).detach().numpy()
        if gradient.layout != torch.strided:
            gradient = gradient.to_dense()
        array: NDArray[Any] = (gradient.detach() if gradient.requires_grad else gradient).numpy()
        return array

    def _traces(self) -> tuple[list[int], list[int]]:
        """What in-place operations, and assigning to .data, leave behind."""
        parameters = [*self._parameters.values(), *self._aliases_of_parameters]
        return [p._version for p in parameters], [p.data_ptr() for p in parameters]  # noqa: SLF001 (documented)

    def _test_written_to(self, params: Any, batch: Any, rng: np.random.Generator | None) -> Gradient:
        """The first gradient of a job is computed on a copy: writes through .data leave no trace but what they did."""
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
        self._written_to_untested = False
        return gradient

    def _written_to(self) -> Exception:
        return RuntimeError(
            "the module writes to its own parameters in forward or backward; expected parameters that only the "
            "optimizer changes, for every worker reads the same memory. Compute from a parameter what forward uses (as "
            "torch.nn.utils.parametrize does), or make it a buffer"
        )

    def _check_not_stale(self) -> None:
        for path, tensor in self._stale:
            if tensor.grad is not None:
                raise RuntimeError(
                    f"module{path}: it was computed from parameters before training, and forward uses it without "
                    "computing it anew, so that they would get no gradient of it; compute it in forward, or in a "
                    "forward pre-hook"
                )

    def _move_to(self, params: Any) -> None:
        for name, parameter in self._parameters.items():
            parameter.data = torch.from_numpy(params[name])
        for name, buffer in self._buffers.items():
            buffer.start_from(params[name])
        if self._aliases:
            move(self._aliases, self._parameters | dict(self._module.named_buffers()))

    def _move_away(self) -> None:
        """Let the version go, so that its memory can be used for a new one."""
        for parameter in self._parameters.values():
            parameter.grad = None
            parameter.data = self._away[parameter.dtype]
        for tensor in self._aliases_of_parameters:
            tensor.grad = None
            tensor.data = self._away[tensor.dtype]

    def _loss_of(self, batch: Any, rng: np.random.Generator | None) -> tuple[torch.Tensor, Any, Any]:
        """(loss, outputs or _NONE, the batch as tensors, without weights)."""
        tensors = mapped(batch, _tensor)
        outputs: Any = _NONE
        if self._model.forward is not None:
            answer = self._model.forward(self._module, tensors, *((rng,) if self._forward_takes_rng else ()))
            loss, outputs = answer if isinstance(answer, tuple) and len(answer) == 2 else (answer, _NONE)
            name = "forward"
        else:
            weight: torch.Tensor | None = None
            if self._model.sample_weight:
                tensors, weight = _without_weight(tensors)
            inputs, named, target = _split(tensors)
            outputs = self._module(*inputs, **named)
            assert self._model.loss is not None
            loss = self._model.loss(outputs, target, *((rng,) if self._loss_takes_rng else ()))
            if weight is not None:
                loss = _weighted(loss, weight)
            name = "the loss function"
        if not isinstance(loss, torch.Tensor) or loss.numel() != 1:
            what = f"a tensor of shape {tuple(loss.shape)}" if isinstance(loss, torch.Tensor) else type(loss).__name__
            raise TypeError(
                f"{name}: expected a tensor with one number, the mean over the batch, found {what}; "
                "losses of torch.nn give it with reduction='mean'"
            )
        return loss, outputs, tensors

    def _metrics_of(self, outputs: Any, tensors: Any) -> dict[str, float]:
        if not self._model.metrics:
            return {}
        if outputs is _NONE:
            raise TypeError("forward: expected (loss, outputs), for there are metrics; found the loss alone")
        target = _split(tensors)[2]
        with torch.no_grad():
            return checked_metrics({name: metric(outputs, target) for name, metric in self._model.metrics.items()})

    def failure(self, params: Any, batch: Any, rng: np.random.Generator) -> Exception | None:
        """See Replica."""

        def compute() -> None:
            with torch.no_grad(), _unoptimized():
                self._move_to(params)
                self._train()
                self._loss_of(batch, rng)

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
            with torch.no_grad(), _unoptimized(), self._evaluating(params):
                loss, outputs, tensors = self._loss_of(batch, rng)
                return Gradient(checked_loss(loss.item()), [], self._metrics_of(outputs, tensors))

        with self._in_use:
            return self._random_in_evaluation(*self._seeded(rng, compute))

    def predict(self, params: Any, x: Any) -> Any:
        """See Replica. Returns what the module returns, as arrays; x is its input, a tuple of its inputs, or a dict."""
        inputs = mapped(x if isinstance(x, tuple | list | dict) else (x,), _tensor)

        def compute() -> Any:
            with torch.no_grad(), _unoptimized(), self._evaluating(params):
                seed_generators(self._generators, 0)
                outputs = self._module(**inputs) if isinstance(inputs, dict) else self._module(*inputs)
                return _predicted(outputs, "")

        with self._in_use:
            return self._random_in_prediction(0, compute, lambda: None)

    @contextmanager
    def _evaluating(self, params: Any) -> Iterator[None]:
        try:
            self._move_to(params)
            self._module.eval()
            yield
        finally:
            self._move_away()


class _Buffer:
    """A buffer of a replica's module, in memory of its own, wherever the module has it."""

    def __init__(self, module: nn.Module, name: str, tensor: torch.Tensor) -> None:
        self._name = name
        self._owners = [(m, key) for m in module.modules() for key, each in m._buffers.items() if each is tensor]  # noqa: SLF001 (named_buffers() lists a shared one once)
        self._memory: torch.Tensor | None = None
        self._shape = tensor.shape

    def start_from(self, value: NDArray[Any]) -> None:
        """Copy this value, and undo whatever the last batch put in place of the tensor."""
        given = torch.from_numpy(value)
        self._shape = given.shape
        fits = self._memory is not None and self._memory.shape == self._shape  # forward may have used resize_()
        self._memory = self._memory.detach() if self._memory is not None and fits else torch.empty_like(given)
        self._memory.copy_(given)
        for owner, key in self._owners:
            owner._buffers[key] = self._memory  # noqa: SLF001 (setattr is slow, and may be overridden)

    def taken(self) -> NDArray[Any]:
        """The value now. Raises ValueError if forward put a tensor of another shape there."""
        owner, key = self._owners[0]
        found = owner._buffers[key]  # noqa: SLF001 (likewise)
        assert self._memory is not None
        if found is None or found.shape != self._shape:
            raise ValueError(
                f"buffer {self._name!r}: expected shape {tuple(self._shape)}, as before forward, found "
                f"{None if found is None else tuple(found.shape)}; if it has its shape from the first batch, run one "
                "through the module before it is trained, or else keep it in a plain attribute"
            )
        if found is not self._memory:
            self._memory.copy_(found.detach())
        taken: NDArray[Any] = self._memory.detach().numpy()
        return taken


def _predicted(outputs: Any, name: str) -> Any:
    """Return a module's outputs as arrays of their own: dicts stay dicts, tuples and lists are tuples. An object with
    attributes, as Hugging Face's models give it, is a dict of those with a row per example; a single one by itself."""
    if isinstance(outputs, torch.Tensor):
        array: NDArray[Any] = (outputs.float() if outputs.dtype == torch.bfloat16 else outputs).numpy().copy()
        return array
    if type(outputs) in (dict, OrderedDict):
        return {key: _predicted(part, f"{name}[{key!r}]") for key, part in outputs.items()}
    if isinstance(outputs, tuple | list):
        parts = [_predicted(part, f"{name}[{index}]") for index, part in enumerate(outputs)]
        return type(outputs)(*parts) if hasattr(outputs, "_fields") else tuple(parts)
    if outputs is None and name:
        return None
    found = dict(outputs) if isinstance(outputs, Mapping) else getattr(outputs, "__dict__", {})
    rows = {key: part for key, part in found.items() if _has_rows(part)}
    if not rows:
        raise TypeError(
            f"predict: expected a module that returns tensors, or a dict, tuple or object of them, found "
            f"{type(outputs).__name__}{f' as output {name}' if name else ''}"
        )
    made = {key: _predicted(part, f"{name}[{key!r}]") for key, part in rows.items()}
    return made if len(made) > 1 else next(iter(made.values()))


def _has_rows(part: Any) -> bool:
    if isinstance(part, tuple | list):
        return bool(part) and all(map(_has_rows, part))
    return isinstance(part, torch.Tensor) and part.ndim > 0


def _is_batch_norm(module: nn.Module) -> bool:
    """Return whether it is a batch norm: one of torch's, of another library, or a scripted one."""
    names = [getattr(module, "original_name", ""), *(cls.__name__ for cls in type(module).__mro__)]
    return any("batchnorm" in name.lower() for name in names)


_replicas: weakref.WeakSet[_TorchReplica] = weakref.WeakSet()


def _free_replicas() -> None:
    """Free the replicas in a child that was just forked: the threads that used them may not be there."""
    for replica in list(_replicas):
        replica.free()


os.register_at_fork(after_in_child=_free_replicas)

_NONE = object()

#: code of torch.jit is optimized when it has run a few times, and then gives other bits
_unoptimized = partial(torch.jit.optimized_execution, False)  # type: ignore[attr-defined]  # it is documented


_ONE = {dtype: torch.ones((), dtype=dtype) for dtype in _TRAINABLE}
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


def _tensor(leaf: Any) -> torch.Tensor:
    return torch.from_numpy(leaf) if type(leaf) is np.ndarray else torch.as_tensor(leaf)


def _split(batch: Any) -> tuple[tuple[Any, ...], dict[str, Any], Any]:
    """(positional inputs, named inputs, target) of a batch."""
    if isinstance(batch, tuple | list) and len(batch) > 1:
        return tuple(batch[:-1]), {}, batch[-1]
    if isinstance(batch, Mapping) and len(batch) > 1:
        key = "target" if "target" in batch else list(batch)[-1]
        return (), {name: part for name, part in batch.items() if name != key}, batch[key]
    found = f"{type(batch).__name__}{f' of length {len(batch)}' if isinstance(batch, tuple | list | Mapping) else ''}"
    raise TypeError(
        f"data: expected inputs and a target, such as (x, y) or {{'x': x, 'target': y}}, found a {found}; "
        "forward= takes other data"
    )


def _without_weight(batch: Any) -> tuple[Any, torch.Tensor]:
    """(inputs and target, the weights) of a batch."""
    if isinstance(batch, Mapping) and "sample_weight" in batch:
        return {name: part for name, part in batch.items() if name != "sample_weight"}, batch["sample_weight"]
    if isinstance(batch, tuple | list) and len(batch) > 2:
        return batch[:-1], batch[-1]
    what = "a dict without it" if isinstance(batch, Mapping) else f"a {type(batch).__name__} of {len(batch)} parts"
    raise TypeError(
        "data: with sample_weight=True expected inputs, a target and weights, such as (x, y, w) or {'x': x, 'target': "
        f"y, 'sample_weight': w}}, found {what}; validation data has weights too (ones, for none)"
    )


def _weighted(losses: Any, weight: torch.Tensor) -> torch.Tensor:
    """The mean of an example's losses times its weight, over the examples."""
    if not isinstance(losses, torch.Tensor) or weight.ndim != 1 or losses.shape[:1] != weight.shape:
        found = f"shape {tuple(losses.shape)}" if isinstance(losses, torch.Tensor) else type(losses).__name__
        raise TypeError(
            "the loss function: with sample_weight=True expected a loss for each example, as losses of torch.nn give "
            f"with reduction='none', and a weight for each; found {found}, and weights of shape {tuple(weight.shape)}"
        )
    each = losses.flatten(1).mean(1) if losses.ndim > 1 else losses
    return (each * weight.to(each.dtype)).mean()


def _check_apart(trained: dict[str, NDArray[Any]], others: dict[str, NDArray[Any]]) -> None:
    """Raise ValueError if a parameter that is trained shares memory with another one, or with a buffer: in place, the
    optimizer would change both, and here each has memory of its own."""
    arrays = [(name, array, name in trained) for name, array in (others | trained).items() if array.size]
    spans = sorted((*byte_bounds(array), index) for index, (_, array, _) in enumerate(arrays))
    open_spans: list[tuple[int, int]] = []
    for low, high, index in spans:
        open_spans = [(end, other) for end, other in open_spans if end > low]
        name, array, is_trained = arrays[index]
        for _, other in open_spans:
            other_name, other_array, other_is_trained = arrays[other]
            if (is_trained or other_is_trained) and _overlap(array, other_array):
                raise ValueError(
                    f"module: {other_name!r} and {name!r} share memory, so that a plain loop's optimizer changes both "
                    "at once; expected parameters and buffers apart. Make them one (module.b = module.a), compute one "
                    "from the other in forward, or give one memory of its own with .clone()"
                )
        open_spans.append((high, index))


def _overlap(one: NDArray[Any], other: NDArray[Any]) -> bool:
    try:
        return np.shares_memory(one, other, max_work=100_000)  # type: ignore[arg-type]  # any int
    except np.exceptions.TooHardError:
        return True


def _array_of(what: str, tensor: torch.Tensor, *, copied: bool = False) -> NDArray[Any]:
    """Return its memory, or a copy. Raises TypeError if NumPy cannot have it, ValueError if it has no memory."""
    if nn.parameter.is_lazy(tensor):
        raise ValueError(f"{what}: it has no shape yet; run one batch through the module before it is trained")
    if tensor.device.type != "cpu" or tensor.layout != torch.strided:
        raise TypeError(
            f"{what}: expected a dense tensor in CPU memory, found one of layout {tensor.layout} on device "
            f"{str(tensor.device)!r}; workers train on the CPU: module.cpu(), or .to_dense()"
        )
    try:
        bare = tensor.detach().resolve_conj().resolve_neg()
        array: NDArray[Any] = (bare.clone() if copied else bare).numpy()
    except TypeError:
        raise TypeError(f"{what}: expected a dtype that NumPy has, found {tensor.dtype}; convert it") from None
    return array


def _spend_the_warning_of_read_only_memory() -> None:
    """It comes once per process: torch knows no read-only memory. _traces and _test_written_to see to that instead."""
    array = np.zeros(1)
    array.flags.writeable = False
    with silenced():
        torch.from_numpy(array)


_spend_the_warning_of_read_only_memory()  # here, where no trainer runs yet: the filters are the whole process's
