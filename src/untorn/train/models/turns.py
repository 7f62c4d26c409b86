"""Models with several losses, which take turns: see optim/turns.py."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from untorn.train.models.base import Gradient, Model, Turn

__all__ = ["check_losses", "checked_functions", "no_metrics", "of_all", "only_trained"]


def check_losses(model: Model, turns: Sequence[Turn], *, is_async: bool) -> None:
    """Raise TypeError or ValueError unless the model has a loss for each turn, and no other."""
    wanted, found = list(dict.fromkeys(turn.name for turn in turns)), list(model.losses)
    if not turns and not found:
        return
    if not turns:
        raise TypeError(
            f"optimizer: the model has several losses, {', '.join(found)}, which take turns; expected "
            f"untorn.Turns({', '.join(f'{name}=...' for name in found)})"
        )
    if not found:
        raise TypeError(
            f"model: expected a loss for each turn, {', '.join(wanted)}, found a single one; give "
            "TorchModel(module, None, forward={name: function}), or Trainer({name: loss_and_grad}, params)"
        )
    if sorted(wanted) != sorted(found):
        raise ValueError(
            f"model: expected a loss for each turn, {', '.join(sorted(wanted))}, found {', '.join(sorted(found))}"
        )
    if is_async:
        raise ValueError("optimizer: Turns need mode='sync': each turn begins with the weights of the one before")


def checked_functions(where: str, given: Mapping[Any, Any]) -> dict[str, Any]:
    """Return the functions of a dict by name. Raises TypeError or ValueError."""
    if not given:
        raise ValueError(f"{where}: the dict is empty; expected a function for each turn, by name")
    for name, function in given.items():
        if not isinstance(name, str):
            raise TypeError(f"{where}: expected functions by name, found the key {name!r}")
        if not callable(function):
            raise TypeError(f"{where}[{name!r}]: expected a function, found {type(function).__name__}")
    return dict(given)


def no_metrics(turn: Turn | None, metrics: Mapping[str, float]) -> None:
    """Raise ValueError if the loss of a turn comes with metrics."""
    if turn is not None and metrics:
        raise ValueError(
            f"{turn.name}: expected no metrics of a loss that takes turns, found {', '.join(metrics)}; the history has "
            "the mean loss of each turn"
        )


def only_trained(leaves: list[Any], turn: Turn | None) -> list[Any]:
    """Return the gradients, with None in the place of those that the turn does not train."""
    if turn is None:
        return leaves
    return [leaf if trained else None for leaf, trained in zip(leaves, turn.trained, strict=True)]


def of_all(losses: Mapping[str, float]) -> Gradient:
    """Return the answer of evaluation: the mean of the losses, and each of them as a metric."""
    mean = sum(losses.values()) / len(losses)
    return Gradient(mean, [], {f"{name}_loss": loss for name, loss in losses.items()})
