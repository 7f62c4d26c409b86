"""Resume from a checkpoint: the rest of its epoch, the settings that must agree, and the states of callbacks.

A training that resumes has the bits of one that was never interrupted. So check_settings() refuses other settings, and
the first steps of a partial epoch are not made again::

    order of the epoch   | b0 b1 b2 b3 | b4 b5 b6 b7 b8 |
                           completed     rest_of(): a job of its own
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from untorn.train.callbacks import Callback
from untorn.train.checkpoints.checkpoint import Checkpoint, Progress
from untorn.train.data.epochs import DataRef

__all__ = ["PartialEpoch", "callback_states", "check_settings", "described", "give_states_back", "rest_of"]


class PartialEpoch(NamedTuple):
    """The completed part of an epoch, from a checkpoint inside it or from an error that ended it. The rest runs as a
    job of its own: batches are slices of the epoch's order, and random numbers are keyed by the step since training
    began.

    Attributes:
        progress: the progress of the epoch.
        records: the step log of the completed steps.
        data: the data of the interrupted fit in this process; None for a checkpoint.
    """

    progress: Progress
    records: NDArray[np.float64]
    data: DataRef | None = None

    def with_rate(self, override: float | None) -> PartialEpoch:
        """Return this part with this override of the learning rate, which applies to the rest of the epoch."""
        settings = self.progress.settings
        if settings["learning_rate"] == override:
            return self
        settings = settings | {"learning_rate": override}
        return self._replace(progress=dataclasses.replace(self.progress, settings=settings, rate_of_epoch=override))

    def why_not(self, batching: dict[str, int], data: Any) -> str:
        """Return why an epoch that was interrupted in this process cannot continue with this data; "" if it can."""
        then = {name: self.progress.settings.get(name) for name in batching}
        if then != batching:
            return f"it was begun with {_listed(then)}, and this fit has {_listed(batching)}"
        if isinstance(data, Iterator):
            return "its batches come from an iterator, which cannot be read again"
        if self.data is None or not self.data.is_of(data):
            return "it was begun with other data, or with copies of this data"
        return ""

    def check_batching(self, batching: dict[str, Any]) -> None:
        """Raise ValueError unless the rest of the epoch is cut into batches as its completed part was."""
        then = {name: self.progress.settings.get(name) for name in batching}
        if then != batching:
            raise ValueError(
                f"the weights that were loaded are from the middle of epoch {self.progress.epoch}, which was made with "
                f"{_listed(then)}; found {_listed(batching)}. Give fit the same, or load a checkpoint of an epoch's end"
            )


def rest_of(order: NDArray[np.int64], batch_size: int, partial: PartialEpoch | None) -> NDArray[np.int64]:
    """Return the order of an epoch without the examples of its completed steps. Batches that were late come first."""
    if partial is None:
        return order
    late, made = partial.progress.late, partial.progress.step_in_epoch
    late_batches = [order[batch * batch_size : (batch + 1) * batch_size] for batch in late]
    return np.concatenate([*late_batches, order[(made + len(late)) * batch_size :]])


def described(value: Any) -> Any:
    """Return a setting, such as an optimizer, as JSON values. Functions and classes are described by their names."""
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, tuple | list):
        return [described(part) for part in value]
    if isinstance(value, Mapping):
        return {str(name): described(part) for name, part in value.items()}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {field.name: described(getattr(value, field.name)) for field in dataclasses.fields(value)}
        return {"name": type(value).__name__, **fields}
    named = value if hasattr(value, "__qualname__") else type(value)
    return f"{named.__module__}.{named.__qualname__}"


def check_settings(found: Checkpoint, settings: dict[str, Any], *, only: Iterable[str] | None = None) -> None:
    """Raise ValueError if settings differ from the checkpoint's; the message names all that do. ``only`` limits the
    comparison to these settings."""
    then = found.progress.settings
    names = [name for name in (settings if only is None else only) if name in then]
    differing = [name for name in names if json.dumps(then[name]) != json.dumps(settings[name])]
    if differing:
        raise ValueError(
            f"checkpoint {found.path} was made with {_listed({name: then[name] for name in differing})}; found "
            f"{_listed({name: settings[name] for name in differing})}. Training can resume exactly only with the same "
            "settings"
        )


def _listed(values: dict[str, Any]) -> str:
    return ", ".join(f"{name}={_shown(value)}" for name, value in values.items())


def _shown(value: Any) -> str:
    if isinstance(value, dict) and "name" in value:
        return f"{value['name']}({', '.join(f'{name}={part}' for name, part in value.items() if name != 'name')})"
    return str(value)


def callback_states(callbacks: Iterable[Callback]) -> dict[str, Any]:
    """Return the states of callbacks, keyed by class and position among the callbacks of that class."""
    states: dict[str, Any] = {}
    for name, callback in _numbered(callbacks):
        state = callback.state_dict()
        if state:
            try:
                states[name] = json.loads(json.dumps(state))  # a copy, in the form in which it will be restored
            except TypeError as error:
                raise TypeError(
                    f"{type(callback).__name__}.state_dict(): expected numbers, str, lists and dicts ({error})"
                ) from None
    return states


def give_states_back(callbacks: Iterable[Callback], states: dict[str, Any]) -> None:
    """Restore the states of callbacks. A callback without a stored state is not changed."""
    for name, callback in _numbered(callbacks):
        if name in states:
            callback.load_state_dict(states[name])


def _numbered(callbacks: Iterable[Callback]) -> Iterable[tuple[str, Callback]]:
    seen: dict[str, int] = {}
    for callback in callbacks:
        kind = type(callback).__name__
        seen[kind] = seen.get(kind, -1) + 1
        yield f"{kind} {seen[kind]}", callback
