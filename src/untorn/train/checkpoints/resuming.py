"""Resume from a checkpoint: the rest of its epoch, the settings that must agree, and the states of callbacks."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from untorn.train.callbacks import Callback
from untorn.train.checkpoints.checkpoint import Checkpoint, Progress
from untorn.train.data.epochs import DataRef

__all__ = ["PartialEpoch", "callback_states", "check_settings", "described", "give_states_back", "rest_of"]


class PartialEpoch(NamedTuple):
    """The first part of an epoch, as a checkpoint made in the middle of it has it, or as it was left by an error. The
    rest is a job of its own: batches are slices of the epoch's order, and random numbers are keyed by the step since
    training began.

    Attributes:
        progress: where the epoch stands.
        records: what its steps measured.
        data: what it was left with in this process; None: it was loaded.
    """

    progress: Progress
    records: NDArray[np.float64]
    data: DataRef | None = None

    def with_rate(self, changed: float | None) -> PartialEpoch:
        """Return this part, for the same learning rate. A rate that was set since then counts for the rest."""
        settings = self.progress.settings
        if settings["learning_rate"] == changed:
            return self
        settings = settings | {"learning_rate": changed}
        return self._replace(progress=dataclasses.replace(self.progress, settings=settings, rate_of_epoch=changed))

    def why_not(self, cut: dict[str, int], data: Any) -> str:
        """Return why an epoch that was left in this process cannot go on with this data; empty if it can."""
        then = {name: self.progress.settings.get(name) for name in cut}
        if then != cut:
            return f"it was begun with {_listed(then)}, and this fit has {_listed(cut)}"
        if isinstance(data, Iterator):
            return "its batches come from an iterator, which cannot be read again"
        if self.data is None or not self.data.is_of(data):
            return "it was begun with other data, or with copies of this data"
        return ""

    def check_cut(self, cut: dict[str, Any]) -> None:
        """Raises ValueError unless the epoch is cut into batches as its first part was."""
        then = {name: self.progress.settings.get(name) for name in cut}
        if then != cut:
            raise ValueError(
                f"the weights that were loaded are from the middle of epoch {self.progress.epoch}, which was made with "
                f"{_listed(then)}; found {_listed(cut)}. Give fit the same, or load a checkpoint of an epoch's end"
            )


def rest_of(batches: NDArray[np.int64], batch_size: int, part: PartialEpoch | None) -> NDArray[np.int64]:
    """Return the examples that are left of an epoch with this order, without those of the completed steps."""
    if part is None:
        return batches
    late, made = part.progress.late, part.progress.step_in_epoch
    parts = [batches[batch * batch_size : (batch + 1) * batch_size] for batch in late]
    return np.concatenate([*parts, batches[(made + len(late)) * batch_size :]])


def described(value: Any) -> Any:
    """Return an optimizer, or another setting, as JSON values. Code is described by its name."""
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, tuple | list):
        return [described(part) for part in value]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {field.name: described(getattr(value, field.name)) for field in dataclasses.fields(value)}
        return {"name": type(value).__name__, **fields}
    named = value if hasattr(value, "__qualname__") else type(value)
    return f"{named.__module__}.{named.__qualname__}"


def check_settings(found: Checkpoint, settings: dict[str, Any], *, only: Iterable[str] | None = None) -> None:
    """Raise ValueError, which names every setting that differs from the checkpoint's. ``only`` limits the comparison to
    these settings."""
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
    """Return the states of callbacks, by class and position among the callbacks of that class."""
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
    """Restore the states of callbacks. A callback without a stored state is left alone."""
    for name, callback in _numbered(callbacks):
        if name in states:
            callback.load_state_dict(states[name])


def _numbered(callbacks: Iterable[Callback]) -> Iterable[tuple[str, Callback]]:
    seen: dict[str, int] = {}
    for callback in callbacks:
        kind = type(callback).__name__
        seen[kind] = seen.get(kind, -1) + 1
        yield f"{kind} {seen[kind]}", callback
