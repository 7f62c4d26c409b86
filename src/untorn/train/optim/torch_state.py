"""The state of an optimizer of torch as arrays: where it lies, how to read it, and how to begin with it.

::

    Places       entries of .state for each parameter, and numbers of the parameter groups: torch.optim keeps all there
    StateDict    all tensors and numbers of state_dict(), for optimizers that keep more, and have methods of their own
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["Form", "Places", "StateDict"]

_Array = NDArray[Any]


class Form(ABC):
    """The form in which the state of an optimizer is published. It is pickled. Abstract."""

    @property
    @abstractmethod
    def names(self) -> list[str]:
        """The names of the arrays."""

    @abstractmethod
    def arrays(self, optimizer: Any, parameters: list[Any]) -> list[_Array | None]:
        """Return the state as arrays, in the order of the names: over the optimizer's memory, if possible. None for
        what it has not made yet. Raises TypeError for state that no array can have."""

    @abstractmethod
    def restore(self, optimizer: Any, parameters: list[Any], state: dict[str, _Array]) -> None:
        """Have a new optimizer begin with this state, whose arrays it owns from now on; it lacks those that had not
        been made yet. Raises RuntimeError if it cannot begin without these."""


@dataclass(frozen=True)
class _Place:
    """The place of a tensor or a number in an optimizer."""

    of_group: bool
    index: int
    key: str
    is_number: bool

    @property
    def name(self) -> str:
        return f"{'group.' if self.of_group else ''}{self.index}.{self.key}"

    def holder(self, optimizer: Any, parameters: list[Any]) -> Any:
        """Return the dict that holds the value."""
        return optimizer.param_groups[self.index] if self.of_group else optimizer.state[parameters[self.index]]

    def value(self, optimizer: Any, parameters: list[Any]) -> Any:
        """Return the value; None if the optimizer has not made it yet: it may do so with the first gradient."""
        if self.of_group:
            return optimizer.param_groups[self.index].get(self.key)
        return optimizer.state.get(parameters[self.index], {}).get(self.key)


@dataclass(frozen=True)
class Places(Form):
    """Entries of .state, and numbers of the groups. See Form."""

    places: tuple[_Place, ...]

    @classmethod
    def of(cls, optimizer: Any, parameters: list[Any], groups: list[dict[str, Any]]) -> Places:
        """Return the places after a step. ``groups`` are copies of the parameter groups before it."""
        of_state = [
            _Place(False, index, key, isinstance(value, int | float))
            for index, parameter in enumerate(parameters)
            for key, value in optimizer.state.get(parameter, {}).items()
            if value is not None
        ]
        of_groups = [
            _Place(True, index, key, True)
            for index, group in enumerate(optimizer.param_groups)
            for key, value in group.items()
            if key not in ("params", "lr") and isinstance(value, int | float) and value != groups[index].get(key)
        ]
        return cls((*of_state, *of_groups))

    @property
    def names(self) -> list[str]:
        """See Form."""
        return [place.name for place in self.places]

    def arrays(self, optimizer: Any, parameters: list[Any]) -> list[_Array | None]:
        """See Form."""
        name = type(optimizer).__name__
        return [
            _array_of(f"{each.key!r} in the state of {name}", each.value(optimizer, parameters)) for each in self.places
        ]

    def restore(self, optimizer: Any, parameters: list[Any], state: dict[str, _Array]) -> None:
        """See Form."""
        import torch

        for place in self.places:
            if place.name not in state:
                continue
            array = state[place.name]  # load_state_dict would convert to the parameters' dtype, and so round
            value = array.item() if place.is_number else torch.from_numpy(array)
            place.holder(optimizer, parameters)[place.key] = value


@dataclass(frozen=True)
class StateDict(Form):
    """The tensors and numbers of state_dict(). See Form.

    Attributes:
        leaves: the paths of the tensors and numbers, and whether each is a number.
        rest: everything else, by path, which never changes.
    """

    leaves: tuple[tuple[tuple[Any, ...], bool], ...]
    rest: dict[tuple[Any, ...], Any]

    @classmethod
    def of(cls, optimizer: Any) -> StateDict:
        """Return the form of an optimizer's state_dict."""
        leaves, rest = _taken_apart(optimizer.state_dict())
        return cls(tuple((path, isinstance(leaf, int | float)) for path, leaf in leaves.items()), rest)

    @property
    def names(self) -> list[str]:
        """See Form."""
        return ["state_dict." + ".".join(map(str, path)) for path, _ in self.leaves]

    def arrays(self, optimizer: Any, parameters: list[Any]) -> list[_Array | None]:
        """See Form. It has all of them, or none."""
        leaves, rest = _taken_apart(optimizer.state_dict())
        if list(leaves) != [path for path, _ in self.leaves] or rest != self.rest:
            return [None] * len(self.leaves)
        name = type(optimizer).__name__
        return [_array_of(f"{path[-1]!r} in the state_dict of {name}", leaf) for path, leaf in leaves.items()]

    def restore(self, optimizer: Any, parameters: list[Any], state: dict[str, _Array]) -> None:
        """See Form."""
        import torch

        if len(state) < len(self.leaves):
            raise RuntimeError(
                f"optimizer: state_dict() of {type(optimizer).__name__} did not have all of its entries yet, so it "
                "cannot continue from there; take a checkpoint later"
            )
        values = dict(self.rest)
        for name, (path, is_number) in zip(self.names, self.leaves, strict=True):
            values[path] = state[name].item() if is_number else torch.from_numpy(state[name])
        optimizer.load_state_dict(_put_together(values))


def _array_of(what: str, value: Any) -> _Array | None:
    """Return a value as an array over its memory; None for None. Raises TypeError for other types than numbers and
    tensors."""
    if value is None:
        return None
    if isinstance(value, int | float):
        return np.asarray(value)
    try:
        array: _Array = value.detach().numpy()
    except (AttributeError, TypeError, RuntimeError):
        raise TypeError(
            f"optimizer: {what}: expected a number or a tensor of a dtype that NumPy has, found "
            f"{getattr(value, 'dtype', type(value).__name__)}"
        ) from None
    return array


_CONTAINERS = "(dict)", "(list)", "(tuple)"


def _taken_apart(tree: Any) -> tuple[dict[tuple[Any, ...], Any], dict[tuple[Any, ...], Any]]:
    """Return the tensors and numbers of a tree, by path, and everything else: other leaves, and the containers."""
    leaves: dict[tuple[Any, ...], Any] = {}
    rest: dict[tuple[Any, ...], Any] = {}

    def walk(path: tuple[Any, ...], value: Any) -> None:
        if isinstance(value, dict | list | tuple):
            kind = next(
                name for name, cls in zip(_CONTAINERS, (dict, list, tuple), strict=True) if isinstance(value, cls)
            )
            items = list(value.items() if isinstance(value, dict) else enumerate(value))
            rest[(*path, kind)] = [key for key, _ in items]
            for key, item in items:
                walk((*path, key), item)
        elif isinstance(value, int | float) or hasattr(value, "data_ptr"):
            leaves[path] = value
        else:
            rest[path] = value

    walk((), tree)
    return leaves, rest


def _put_together(values: dict[tuple[Any, ...], Any]) -> Any:
    """Return the tree that _taken_apart() has taken apart."""

    def made(path: tuple[Any, ...]) -> Any:
        if path in values:
            return values[path]
        kind = next(name for name in _CONTAINERS if (*path, name) in values)
        keys = values[(*path, kind)]
        if kind == "(dict)":
            return {key: made((*path, key)) for key in keys}
        parts = [made((*path, key)) for key in keys]
        return parts if kind == "(list)" else tuple(parts)

    return made(())
