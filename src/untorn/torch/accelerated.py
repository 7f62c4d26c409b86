"""Accelerated: a training loop that keeps its own module, optimizer and scheduler, and whose gradients workers compute.

::

    the loop                                   Trainer.step
    module ──── weights, buffers ────────────> next version ──> workers: forward, loss, backward of each shard
    .grad  <─── mean of the gradients ──────── sums         <── added in a fixed tree
    optimizer.step(), scheduler.step()

The weights are in the loop's module, and only there are they changed. Each call of ``backward`` copies them once into
shared memory, and the gradients once out of it. The Trainer's optimizer is a LoopOptimizer, which makes no step itself.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from untorn.engines import StartMethod
from untorn.torch.model import TorchModel
from untorn.torch.tensors import array_of
from untorn.train.models.base import Parts
from untorn.train.optim.base import LoopOptimizer
from untorn.train.trainer import Trainer

__all__ = ["Accelerated"]

_Array = NDArray[Any]


class Accelerated:
    """Compute the gradients of an existing training loop in several worker processes.

    ``backward(batch)`` takes the place of forward, loss and ``loss.backward()``: it adds the mean gradient of the batch
    to the ``.grad`` of the module's parameters. All else in the loop stays: its optimizer, its scheduler, clipping,
    evaluation with ``module(x)``, ``torch.save(module.state_dict())``. The gradients have the same bits for any number
    of workers, and after any kills of them: they depend on ``seed`` and ``shards`` alone. With ``shards=1`` they have
    the bits of the plain loop, if that computes with one thread.

    The workers compute with copies of the module, so that they need the loss as a function. They copy it when the
    first batch comes; after that only the values of parameters and buffers reach them, and these do with each batch.
    BatchNorm's running means come back with the gradients. See docs/guide/own-loop.md for the limits.

    Args:
        module: the module of the loop, with float32 and float64 parameters in CPU memory. Each ``backward`` reads its
            parameters and buffers, and writes to its ``.grad`` and buffers.
        loss: ``loss(outputs, target[, rng])``, the mean over the batch: see TorchModel, also for ``metrics``,
            ``forward``, ``sample_weight`` and ``reduction_scale``.
        metrics: functions ``(outputs, target) -> number``, by name; after ``backward`` they are in ``metrics``.
        forward: ``forward(module, batch[, rng]) -> loss`` in place of the loss, for other batches and other losses.
        sample_weight: a batch has one more part, a number per example.
        reduction_scale: the loss is a sum over the examples, and this number times the mean is trained.
        workers: the number of worker processes; by default one per ``threads_per_worker`` processors.
        engine: "processes", or "serial", which computes in this process, without workers.
        shards: the number of parts that every batch is cut into; by default ``workers`` if that is a number, else the
            number of processors. The result depends on it, and on no number of workers.
        accumulate: the number of parts that every shard is cut into, computed one after another to save memory.
        seed: the seed of dropout and other random numbers, which are keyed by (seed, number of the call, shard).
        threads_per_worker: the number of threads of each worker.
        max_restarts: how often one shard's gradient may kill its worker before WorkerError is raised.
        start_method: how workers start, as for a Trainer.

    Attributes:
        module: the module.
        metrics: the metrics of the last call of ``backward``, by name.

    Raises TypeError or ValueError for an argument that is wrong; the message names it.

    Example:
        >>> import torch
        >>> from untorn.torch import Accelerated
        >>> _ = torch.manual_seed(0)
        >>> module = torch.nn.Linear(2, 1)
        >>> optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
        >>> x = torch.randn(256, 2)
        >>> y = x @ torch.tensor([[1.0], [-2.0]])
        >>> with Accelerated(module, torch.nn.MSELoss(), engine="serial", shards=2) as accelerated:
        ...     for batch in list(zip(x.split(32), y.split(32))) * 10:
        ...         optimizer.zero_grad()
        ...         loss = accelerated.backward(batch)
        ...         optimizer.step()
        >>> module.weight.detach().numpy().round(2)
        array([[ 1., -2.]], dtype=float32)
    """

    metrics: dict[str, float]

    def __init__(
        self,
        module: nn.Module,
        loss: Callable[..., Any] | None = None,
        *,
        metrics: Mapping[str, Callable[[Any, Any], Any]] | None = None,
        forward: Callable[..., Any] | None = None,
        sample_weight: bool = False,
        reduction_scale: float | None = None,
        workers: int | None = None,
        engine: Literal["processes", "serial"] = "processes",
        shards: int | None = None,
        accumulate: int = 1,
        seed: int = 0,
        threads_per_worker: int = 1,
        max_restarts: int = 3,
        start_method: StartMethod = "forkserver",
    ) -> None:
        if not isinstance(module, nn.Module):
            hint = "; the loop keeps it, so give the optimizer to nobody" if hasattr(module, "param_groups") else ""
            raise TypeError(f"module: expected a torch.nn.Module, found {type(module).__name__}{hint}")
        if isinstance(loss, torch.optim.Optimizer):
            raise TypeError(
                f"loss: expected a function (outputs, target) -> loss, found the optimizer {type(loss).__name__}, "
                "which stays in the loop: call its zero_grad() and step() around accelerated.backward(batch)"
            )
        if isinstance(forward, Mapping):
            raise TypeError(
                "forward: expected a function (module, batch) -> loss, found a dict, as losses that take turns have "
                "it; make an Accelerated of the module for each loss"
            )
        if engine not in ("processes", "serial"):
            raise ValueError(
                f"engine: expected 'processes' or 'serial', found {engine!r}; a loop of its own runs on one machine, "
                "and a Trainer also on several"
            )
        if workers is not None and (isinstance(workers, bool) or not isinstance(workers, int)):
            raise TypeError(f"workers: expected a number, found {workers!r}")
        model = TorchModel(
            module, loss, metrics=metrics, forward=forward, sample_weight=sample_weight, reduction_scale=reduction_scale
        )
        self.module = module
        self.metrics = {}
        self._values = _ModuleOfLoop(module, model.parts())
        optimizer: Any = self._values  # a Trainer takes any Optimizer, and its users need to know of no such
        self._trainer = Trainer(
            model, optimizer=optimizer, workers=workers, engine=engine, shards=shards, accumulate=accumulate, seed=seed,
            threads_per_worker=threads_per_worker, max_restarts=max_restarts, start_method=start_method,
        )  # fmt: skip

    def backward(self, batch: Any) -> torch.Tensor:
        """Add the mean gradient of a batch to the ``.grad`` of the module's parameters, as ``loss.backward()`` does;
        return the loss, a float64 tensor with one number and without a graph. Blocks until the gradient is there.

        Like autograd it adds: call ``zero_grad()`` before, or call it for several batches to accumulate them. A
        parameter that the loss does not depend on keeps its ``.grad``. The module's buffers get their new values, means
        over the shards. ``metrics`` has the metrics.

        Args:
            batch: a tuple, list or dict of tensors or arrays with one example per row, as for a TorchModel; copied.
                Batches may differ in size.

        Raises:
            WorkerError: forward, loss or backward failed in a worker, with its traceback; or workers died repeatedly.
            NonFiniteLossError: the loss is NaN or infinite.
            ValueError, TypeError: the batch does not fit; a part of the module is in evaluation mode; or parameters
                were added, replaced, frozen or unfrozen since the Accelerated was made.
            ClosedError: the Accelerated is closed.
            CapacityError: there is no memory.

            After an error, ``.grad`` and buffers are as before.
        """
        self._values.check()
        measured = self._trainer.step(batch)
        loss = measured.pop("loss")
        self.metrics = measured
        return torch.tensor(loss, dtype=torch.float64)

    @property
    def calls(self) -> int:
        """The number of calls of ``backward``, without those that failed."""
        return int(self._trainer.step)

    @property
    def workers(self) -> int:
        """The target number of workers; resize() changes it."""
        return self._trainer.workers

    @property
    def shards(self) -> int:
        """The number of parts that every batch is cut into."""
        return self._trainer.shards

    @property
    def pids(self) -> list[int]:
        """The process ids of the workers, by index; empty before the first batch."""
        return self._trainer.pids

    @property
    def restarts(self) -> int:
        """The number of workers that have been replaced so far."""
        return self._trainer.restarts

    def resize(self, workers: int) -> None:
        """Set the number of workers, from the next batch on; the bits stay the same. Returns at once. Raises ValueError
        for less than 1, for more than the maximum, and with engine="serial"."""
        self._trainer.resize(workers)

    def close(self) -> None:
        """End the workers. The module stays as it is. Closing twice is allowed."""
        self._trainer.close()

    def __repr__(self) -> str:
        return (
            f"<Accelerated {type(self.module).__name__}, {self.workers} workers, {self.shards} shards, "
            f"{self.calls} calls>"
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class _ModuleOfLoop(LoopOptimizer):
    """The values and the gradients of the loop's module.

    Args:
        module: the module.
        parts: its parts at the beginning.
    """

    def __init__(self, module: nn.Module, parts: Parts) -> None:
        super().__init__("Accelerated")
        self._module = module
        self._buffers = list(parts.buffers)
        self._names = [*parts.kept, *self._buffers, *parts.trained]
        arrays = {**parts.kept, **parts.buffers, **parts.trained}
        self._kinds = {name: (array.shape, array.dtype) for name, array in arrays.items()}
        self._parameters = dict(module.named_parameters())
        self._trained = [self._parameters[name] for name in parts.trained]
        self._tensors: dict[str, torch.Tensor] = {}

    def check(self) -> None:
        """Raise ValueError if the module is not as it was at the beginning, except for its values, or if a part of it
        is in evaluation mode."""
        for name, module in self._module.named_modules():
            if not module.training:
                raise ValueError(
                    f"module{f'.{name}' if name else ''}: it is in evaluation mode, and workers compute in training "
                    "mode; call module.train() after an evaluation. A part that shall stay in evaluation mode, such as "
                    "a frozen BatchNorm, cannot be trained here"
                )
        found = dict(self._module.named_parameters())
        for name in found.keys() | self._parameters.keys():
            if found.get(name) is not self._parameters.get(name):
                what = "it is new" if name not in self._parameters else "it is gone"
                what = "it was replaced by another parameter" if name in found and name in self._parameters else what
                raise _changed(name, what)
        trained = {id(parameter) for parameter in self._trained}
        for name, parameter in found.items():
            if parameter.requires_grad != (id(parameter) in trained):
                raise _changed(name, f"requires_grad is {parameter.requires_grad} now")
        tensors = found | dict(self._module.named_buffers())
        if tensors.keys() != self._kinds.keys():
            raise _changed(sorted(tensors.keys() ^ self._kinds.keys())[0], "buffers were added or removed")
        for name, (shape, dtype) in self._kinds.items():
            array = array_of(repr(name), tensors[name])
            if (array.shape, array.dtype) != (shape, dtype):
                raise _changed(name, f"expected {dtype} of shape {shape}, found {array.dtype} of shape {array.shape}")
        self._tensors = tensors

    def values(self) -> list[_Array]:
        """See LoopOptimizer. Views."""
        return [array_of(repr(name), self._tensors[name]) for name in self._names]

    def take(self, buffers: list[_Array], gradients: list[_Array | None]) -> None:
        """See LoopOptimizer."""
        with torch.no_grad():
            for name, buffer in zip(self._buffers, buffers, strict=True):
                self._tensors[name].copy_(torch.from_numpy(buffer))
            for parameter, gradient in zip(self._trained, gradients, strict=True):
                if gradient is None:
                    continue
                if parameter.grad is None:
                    parameter.grad = torch.from_numpy(np.array(gradient, order="K"))
                else:
                    parameter.grad.add_(torch.from_numpy(gradient))


def _changed(name: str, what: str) -> ValueError:
    return ValueError(
        f"module: {name!r}: {what}; the workers' copies are as the module was when the Accelerated was made. Close it, "
        "and make another one"
    )
