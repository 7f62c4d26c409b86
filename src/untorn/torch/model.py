"""TorchModel: a module and its loss, and how they are sent to workers."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Self, overload

import numpy as np
import torch
from torch import nn

from untorn import trees
from untorn.torch.aliases import Alias, move
from untorn.torch.copies import Stale, copied, hooks_of, pickler_of, recompute, register_hooks
from untorn.torch.loss import Loss, check_mean
from untorn.torch.replica import TorchReplica
from untorn.torch.tables import tables_of
from untorn.torch.tensors import TRAINABLE, array_of, check_apart
from untorn.train.models.base import Model, Parts, Replica, check_no_params
from untorn.train.models.carried import check_buffers, checked_names
from untorn.train.models.turns import checked_functions
from untorn.typevars import TypeVar

__all__ = ["TorchModel"]


_ModuleT_co = TypeVar("_ModuleT_co", bound=nn.Module, default=nn.Module, covariant=True)


_M = TypeVar("_M", bound=nn.Module, default=nn.Module)

#: the shape, dtype and requires_grad of parameters and buffers, by name
Shapes = dict[str, tuple[tuple[int, ...], torch.dtype, bool]]


class TorchModel(Model[_ModuleT_co]):
    """A torch.nn.Module and its loss, as a Trainer takes them.

    Data are NumPy arrays or tensors in CPU memory, one example per row. In a tuple or list, the last part is the target
    and the others are the module's inputs: ``loss(module(*inputs), target)``. In a dict, the target is the part named
    "target", or else the last one, and the others are keyword arguments: ``loss(module(**inputs), target)``.

    In training the module is in training mode, except for the parts that are in evaluation mode while the module itself
    is not, such as a frozen BatchNorm; in Trainer.evaluate and Trainer.predict it is in evaluation mode,
    without gradients. Torch's random numbers, such as dropout's, are keyed by (seed, step, shard), and the state of its
    generator in this process stays as it is. Parameters without requires_grad are not trained;
    those that the loss of a batch does not depend on have no gradient in its step, and are skipped as torch.optim does:
    no weight decay, no momentum, no step counted. A forward that writes to a parameter is an error.
    BatchNorm needs at least two examples: a last batch with fewer for each shard is cut into fewer shards, and a single
    example is refused before training begins.

    Args:
        module: a module with float32 and float64 parameters in CPU memory. It is not changed; Trainer.module() returns
            the trained one. Or a function without arguments that makes one, such as its class: then each process makes
            its own, and none is copied or pickled, which some cannot be (scripted or compiled ones). The trained values
            begin with those of this process. It must make modules that are alike.
        loss: ``loss(outputs, target[, rng])``, a tensor with one number: the mean over the batch. rng is a NumPy
            generator. May be None if there is forward.
        metrics: functions ``(outputs, target) -> number``, means over the batch, by name.
        forward: ``forward(module, batch[, rng]) -> loss`` or ``(loss, outputs)`` in place of the above; batch is the
            data's tree, of tensors. Metrics need the outputs.
            A dict of such functions by name for losses that take turns: see untorn.Turns.
        predict: ``predict(module, x) -> outputs`` in place of ``module(*inputs)``, for Trainer.predict: to choose among
            several outputs, or to generate. x is the data's tree, of tensors; outputs are a tensor with a row per
            example, or a dict or tuple of such.
        sample_weight: the data has one more part, a number per example: the last of a tuple or list, the part named
            "sample_weight" of a dict. ``loss`` then gives a number per example (reduction="none"), and trained is
            ``(sample_weight * losses).mean()``: divided by the number of examples, as Keras does. Metrics are not
            weighted.
        reduction_scale: the loss is a sum over the examples (reduction="sum"), and this number times the mean is
            trained and reported: the sum is divided by the rows of the batch's first tensor. With ``batch_size``, steps
            are those of a plain loop with the sum, to rounding, except in a last batch with fewer examples; 1.0 gives
            the mean.
        carried: the names of buffers whose state goes on from step to step, such as that of an LSTM: of shape (batch,
            ...), with a row for each example. A module sees the rows of its shard, and leaves new ones, with the same
            shape. See docs/guide/carried.md.

    Raises:
        TypeError: the module is not a torch.nn.Module, or one of the others is not a function.

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

    @overload
    def __init__(
        self,
        module: _ModuleT_co,
        loss: Callable[..., Any] | None,
        *,
        metrics: Mapping[str, Callable[[Any, Any], Any]] | None = None,
        forward: Callable[..., Any] | Mapping[str, Callable[..., Any]] | None = None,
        predict: Callable[[Any, Any], Any] | None = None,
        sample_weight: bool = False,
        reduction_scale: float | None = None,
        carried: Iterable[str] = (),
    ) -> None: ...

    @overload
    def __init__(
        self,
        module: Callable[[], _ModuleT_co],
        loss: Callable[..., Any] | None,
        *,
        metrics: Mapping[str, Callable[[Any, Any], Any]] | None = None,
        forward: Callable[..., Any] | Mapping[str, Callable[..., Any]] | None = None,
        predict: Callable[[Any, Any], Any] | None = None,
        sample_weight: bool = False,
        reduction_scale: float | None = None,
        carried: Iterable[str] = (),
    ) -> None: ...

    def __init__(
        self,
        module: _ModuleT_co | Callable[[], _ModuleT_co],
        loss: Callable[..., Any] | None,
        *,
        metrics: Mapping[str, Callable[[Any, Any], Any]] | None = None,
        forward: Callable[..., Any] | Mapping[str, Callable[..., Any]] | None = None,
        predict: Callable[[Any, Any], Any] | None = None,
        sample_weight: bool = False,
        reduction_scale: float | None = None,
        carried: Iterable[str] = (),
    ) -> None:
        self._make: Callable[[], _ModuleT_co] | None = None
        if not isinstance(module, nn.Module) and callable(module):
            if isinstance(module, type) and not _needs_nothing(module):
                raise TypeError(
                    f"module: expected a torch.nn.Module, found type {module.__name__}, which needs arguments; make "
                    f"one, or write functools.partial({module.__name__}, ...), which makes one in each process"
                )
            self._make, module = module, module()
            if not isinstance(module, nn.Module):
                raise TypeError(
                    "module: expected a function that makes a torch.nn.Module, found one that makes a "
                    f"{type(module).__name__}"
                )
        if not isinstance(module, nn.Module):
            raise TypeError(f"module: expected a torch.nn.Module, or a function that makes one, found {_found(module)}")
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
            raise TypeError(
                "loss: expected a function (outputs, target) -> loss, such as torch.nn.CrossEntropyLoss(), found "
                f"{type(loss).__name__}"
            )
        if isinstance(forward, Mapping):
            forward = checked_functions("forward", forward)
            if metrics:
                raise TypeError("metrics: losses that take turns have none; leave metrics or the dict forward out")
        elif forward is not None and not callable(forward):
            raise TypeError(f"forward: expected a function (module, batch) -> loss, found {type(forward).__name__}")
        if predict is not None and not callable(predict):
            raise TypeError(f"predict: expected a function (module, x) -> outputs, found {type(predict).__name__}")
        if reduction_scale is None:
            check_mean(loss)
        else:
            reduction_scale = _checked_scale(reduction_scale)
            if sample_weight:
                raise TypeError("reduction_scale: with sample_weight the loss is no sum; leave one of them out")
        if forward is not None and sample_weight:
            raise TypeError(
                "sample_weight: forward computes the loss itself, and weights it itself; leave one of them out"
            )
        if metrics is not None and not isinstance(metrics, Mapping):
            raise TypeError(
                "metrics: expected a dict of functions (outputs, target) -> number, such as {'accuracy': lambda "
                f"outputs, y: (outputs.argmax(1) == y).float().mean()}}, found {type(metrics).__name__}"
            )
        for name, metric in (metrics or {}).items():
            if not callable(metric):
                raise TypeError(f"metrics[{name!r}]: expected a function, found {type(metric).__name__}")
        self._module: nn.Module = module
        self._shapes = {} if self._make is None else _shapes_of(module)
        self.loss = loss
        self.metrics: dict[str, Callable[[Any, Any], Any]] = dict(metrics or {})
        self.forward = forward
        self.predict = predict
        self.sample_weight = sample_weight
        self.reduction_scale = reduction_scale
        self.carried: tuple[str, ...] = checked_names(carried)
        self._stale: list[Stale] = []
        self._aliases: list[Alias] = []

    @property
    def losses(self) -> tuple[str, ...]:
        """See Model."""
        return tuple(self.forward) if isinstance(self.forward, dict) else ()

    def parts(self, params: Any = None) -> Parts:
        """See Model. Views of the parameters, copies of the buffers."""
        check_no_params(self, params)
        kept, trained = {}, {}
        for name, parameter in self._module.named_parameters():
            array = array_of(f"parameter {name!r}", parameter)
            if not parameter.requires_grad:
                kept[name] = array
            elif parameter.dtype not in TRAINABLE:
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
            name: array_of(f"buffer {name!r}", buffer, copied=True) for name, buffer in self._module.named_buffers()
        }
        views = {
            name: np.from_dlpack(b.detach().resolve_conj().resolve_neg()) for name, b in self._module.named_buffers()
        }
        check_apart(trained, kept | views)
        check_buffers(self.carried, buffers)
        tables = frozenset(name for name in tables_of(self._module) if trained[name].flags.c_contiguous)
        return Parts(kept, buffers, trained, _tensors_over, self.carried, tables)

    def arrays(self, data: Any) -> Any:
        """See Model."""
        return trees.map(lambda leaf: array_of("data", leaf) if isinstance(leaf, torch.Tensor) else leaf, data)

    def for_workers(self) -> Self:
        """See Model."""
        if self._make is not None:
            made_there = object.__new__(type(self))
            made_there.__dict__.update(self.__dict__ | {"_module": _NOT_MADE})
            return made_there
        functions = {"loss": self.loss, "metrics": self.metrics, "forward": self.forward, "predict": self.predict}
        model = object.__new__(type(self))
        made = copied(self._module, functions, self._stale, self._aliases, values=False)
        inside = {"_module": made.module, "_stale": made.stale, "_aliases": made.aliases}
        model.__dict__.update(self.__dict__ | made.functions | inside)
        return model

    def pickler(self, base: Any) -> Any:
        """See Model."""
        return pickler_of(base, self)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"hooks": [] if self._make is not None else hooks_of(self._module)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        register_hooks(state.pop("hooks"))
        self.__dict__.update(state)

    def replica(self, threads: int | None) -> Replica:
        """See Model."""
        model: TorchModel = self.for_workers()
        named = model.forward if isinstance(model.forward, dict) else {"": model.forward}
        losses = {
            name: Loss(
                model.loss,
                model.metrics,
                forward,
                sample_weight=model.sample_weight,
                reduction_scale=model.reduction_scale,
            )
            for name, forward in named.items()
        }
        module = model._module if self._make is None else _made(self._make, self._shapes)
        carried, tables = frozenset(self.carried), tables_of(module)
        return TorchReplica(losses, module, model._stale, model._aliases, model.predict, carried, tables)

    def module(self, params: Any) -> _ModuleT_co:
        """See Model."""
        if self._make is not None:
            return _filled(_made(self._make, self._shapes), params)
        made = copied(self._module, {}, [], [], values=True)
        module: _ModuleT_co = made.module  # type: ignore[assignment]  # a copy, of the same class
        tensors = dict([*module.named_parameters(), *module.named_buffers()])
        with torch.no_grad():
            for name, tensor in tensors.items():
                tensor.copy_(torch.as_tensor(params[name]))
        move(made.aliases, tensors)
        recompute(module)
        return module


def _checked_scale(given: Any) -> float:
    """Return a reduction_scale. Raises TypeError or ValueError."""
    if isinstance(given, bool) or not isinstance(given, int | float):
        raise TypeError(f"reduction_scale: expected a number, such as the batch size, found {type(given).__name__}")
    if not 0 < given < math.inf:
        raise ValueError(f"reduction_scale: expected a finite number greater than 0, found {given}")
    return float(given)


#: in a model for workers: each makes its module
_NOT_MADE = nn.Identity()


def _tensors_over(arrays: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    return {name: torch.from_numpy(array) for name, array in arrays.items()}


def _needs_nothing(cls: type) -> bool:
    """Return whether an object of this class can be made without arguments, as far as its signature tells."""
    try:
        inspect.signature(cls).bind()
    except TypeError:
        return False
    except ValueError:  # it has no signature
        return True
    return True


def _found(module: Any) -> str:
    return type(module).__name__


def _made(make: Callable[[], _M], shapes: Shapes) -> _M:
    """Return a new module. The random numbers of this process stay as they are. Raises ValueError if it has not these
    parameters and buffers."""
    with torch.random.fork_rng(devices=[]):
        module = make()
    found = _shapes_of(module)
    if found != shapes:
        unlike = sorted(name for name in found.keys() | shapes.keys() if found.get(name) != shapes.get(name))
        raise ValueError(f"module: the function makes modules that are not alike: they differ in {', '.join(unlike)}")
    return module


def _shapes_of(module: nn.Module) -> Shapes:
    tensors = [*module.named_parameters(), *module.named_buffers()]
    return {name: (tuple(tensor.shape), tensor.dtype, tensor.requires_grad) for name, tensor in tensors}


def _filled(module: _M, params: Mapping[str, Any]) -> _M:
    """Return the module with copies of these values."""
    tensors = dict([*module.named_parameters(), *module.named_buffers()])
    with torch.no_grad():
        for name, tensor in tensors.items():
            tensor.copy_(torch.as_tensor(params[name]))
    return module
