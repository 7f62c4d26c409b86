"""The loss and the metrics of a batch, from the user's functions."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import nn

from untorn import trees
from untorn.torch.tensors import tensors_of
from untorn.train.models.checks import checked_metrics
from untorn.train.models.function import takes_rng

__all__ = ["Loss", "check_mean"]

_NO_OUTPUTS = object()


def check_mean(loss: Any) -> None:
    """Raise ValueError for a loss that is visibly a sum over the batch: the gradient of a batch is the mean of those of
    its shards, so a sum would depend on their number."""
    made = getattr(loss, "keywords", {})  # of a functools.partial
    reduction = made.get("reduction") if isinstance(made, dict) and made else getattr(loss, "reduction", None)
    if reduction == "sum":
        name = getattr(getattr(loss, "func", loss), "__name__", type(loss).__name__)
        raise ValueError(
            f"loss: {name} has reduction='sum'; expected the mean over the batch, since it is cut into shards whose "
            "gradients are averaged. Write reduction='mean', and for the same steps multiply the learning rate by the "
            "batch size; or TorchModel(..., reduction_scale=batch_size)"
        )


class Loss:
    """The user's functions: see TorchModel.

    Attributes:
        takes_rng: whether the function that computes the loss takes random numbers.
    """

    def __init__(
        self,
        loss: Callable[..., Any] | None,
        metrics: Mapping[str, Callable[[Any, Any], Any]],
        forward: Callable[..., Any] | None,
        *,
        sample_weight: bool,
        reduction_scale: float | None = None,
    ) -> None:
        self._loss = loss
        self._metrics = metrics
        self._forward = forward
        self._sample_weight = sample_weight
        self._reduction_scale = reduction_scale
        function = loss if forward is None else forward
        self.takes_rng = function is not None and takes_rng(function)

    def __call__(self, module: nn.Module, batch: Any, rng: np.random.Generator | None) -> tuple[torch.Tensor, Any, Any]:
        """Return the loss of a batch, the outputs (or _NO_OUTPUTS), and the batch as tensors, without weights."""
        tensors = tensors_of(batch)
        outputs: Any = _NO_OUTPUTS
        if self._forward is not None:
            answer = self._forward(module, tensors, *((rng,) if self.takes_rng else ()))
            loss, outputs = answer if isinstance(answer, tuple) and len(answer) == 2 else (answer, _NO_OUTPUTS)
            name = "forward"
        else:
            weight: torch.Tensor | None = None
            if self._sample_weight:
                tensors, weight = _without_weight(tensors)
            inputs, named, target = _split(tensors)
            outputs = module(*inputs, **named)
            assert self._loss is not None
            loss = self._loss(outputs, target, *((rng,) if self.takes_rng else ()))
            if weight is not None:
                loss = _weighted(loss, weight)
            name = "the loss function"
        if not isinstance(loss, torch.Tensor) or loss.numel() != 1:
            what = f"a tensor of shape {tuple(loss.shape)}" if isinstance(loss, torch.Tensor) else type(loss).__name__
            raise TypeError(
                f"{name}: expected a tensor with one number, the mean over the batch, found {what}; "
                "losses of torch.nn give it with reduction='mean'"
            )
        if self._reduction_scale is not None:
            loss = loss * (self._reduction_scale / _examples_of(tensors))
        return loss, outputs, tensors

    def metrics_of(self, outputs: Any, tensors: Any) -> dict[str, float]:
        """Return the metrics of the call's outputs."""
        if not self._metrics:
            return {}
        if outputs is _NO_OUTPUTS:
            raise TypeError("forward: expected (loss, outputs), since there are metrics; found only the loss")
        target = _split(tensors)[2]
        with torch.no_grad():
            return checked_metrics({name: metric(outputs, target) for name, metric in self._metrics.items()})


def _examples_of(batch: Any) -> int:
    """Return the number of examples of a batch: the rows of its first tensor."""
    for leaf in trees.flatten(batch, kinds=trees.BATCH)[1]:
        if isinstance(leaf, torch.Tensor) and leaf.ndim:
            return len(leaf)
    raise TypeError(
        "reduction_scale: expected a batch with a tensor that has a row per example, by which the sum is divided; "
        f"found a {type(batch).__name__} without one. Divide in forward, and leave reduction_scale out"
    )


def _split(batch: Any) -> tuple[tuple[Any, ...], dict[str, Any], Any]:
    """Return the positional inputs, the named inputs and the target of a batch."""
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
    """Return inputs and target, and the weights, of a batch."""
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
    """Return the mean over the examples of each one's loss times its weight."""
    if not isinstance(losses, torch.Tensor) or weight.ndim != 1 or losses.shape[:1] != weight.shape:
        found = f"shape {tuple(losses.shape)}" if isinstance(losses, torch.Tensor) else type(losses).__name__
        raise TypeError(
            "the loss function: with sample_weight=True expected a loss for each example, as losses of torch.nn give "
            f"with reduction='none', and a weight for each; found {found}, and weights of shape {tuple(weight.shape)}"
        )
    each = losses.flatten(1).mean(1) if losses.ndim > 1 else losses
    return (each * weight.to(each.dtype)).mean()
