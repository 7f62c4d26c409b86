"""Checks of parameters, and of the loss and the metrics that a model returns."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from untorn import _core
from untorn.errors import NonFiniteLossError
from untorn.share.lowlevel import flatten
from untorn.trees import Spec, leaf_specs, path_of

__all__ = ["check_metric_names", "check_parameters", "checked_loss", "checked_metrics"]

_TRAINABLE = (np.dtype(np.float32), np.dtype(np.float64))


def check_parameters(params: Any) -> None:
    """Raise TypeError or ValueError, naming the place, unless params is a tree of float32 and float64 arrays."""
    spec, leaves = flatten(params)
    for path, leaf in leaf_specs(spec):
        if leaf.kind != "array" or leaf.detail[0] not in _TRAINABLE:
            found, advice = _found(leaf)
            raise TypeError(
                f"params: {path_of(path)}: expected an array of float32 or float64, found {found}; {advice}"
            )
    if sum(leaf.size for leaf in leaves) == 0:
        raise ValueError("params: there is nothing to train; expected a tree with at least one number in its arrays")


def _found(spec: Spec) -> tuple[str, str]:
    """Return what is in the place of an array of numbers, and advice."""
    if spec.kind == "adapter":
        library = str(spec.detail[0]).partition(".")[0]
        models = {"torch": "untorn.torch.TorchModel", "jax": "untorn.jax.JaxModel"}
        other = f", or give Trainer {models[library]}, which brings its own" if library in models else ""
        return f"a {spec.detail[0]}", f"convert it with numpy.asarray(){other}"
    if spec.kind == "array":
        found = f"an array of {spec.detail[0]}"
    elif spec.kind == "numpy":
        found = f"a single numpy.{spec.detail.type.__name__}"
    else:
        found = "None" if spec.kind == "none" else f"{'an' if spec.kind[0] in 'aeiou' else 'a'} {spec.kind}"
    return found, "convert it, or keep what is not trained out of params"


def checked_loss(value: Any) -> float:
    """Return the loss as a float. Raises TypeError unless it is one number, NonFiniteLossError unless it is finite."""
    loss = value if type(value) is float else _scalar("the loss", value)
    if not math.isfinite(loss):
        raise NonFiniteLossError(f"the loss is {loss}")
    return loss


def checked_metrics(found: Any) -> dict[str, float]:
    """Return the metrics as floats, in the order in which every worker records them. Raises TypeError or ValueError."""
    if not isinstance(found, Mapping):
        raise TypeError(f"the metrics must be a dict of numbers by name, found {type(found).__name__}")
    metrics = {str(name): _metric(name, value) for name, value in found.items()}
    if len(metrics) > _core.BOARD_METRICS:
        raise ValueError(f"{len(metrics)} metrics: at most {_core.BOARD_METRICS} are supported")
    return dict(sorted(metrics.items())) if len(metrics) > 1 else metrics


def check_metric_names(expected: Iterable[str], found: Iterable[str]) -> None:
    """Raise ValueError unless the metrics of a batch have the names that those of another batch had, in this order."""
    expected, found = tuple(expected), tuple(found)
    if found != expected:
        raise ValueError(
            f"metrics: expected those of another batch, {', '.join(expected) or 'none'}; "
            f"found {', '.join(found) or 'none'}; return the same names for every batch"
        )


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
