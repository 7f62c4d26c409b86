"""Groups of parameters: which parameters a pattern stands for, and the settings of each group.

::

    groups=[{"params": "*.bias", "weight_decay": 0.0}] ── checked_groups ──> in the optimizer
    names of the parameters ──────── assigned ─────────> the group of each parameter
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from untorn.share.lowlevel import flatten
from untorn.trees import path_of, paths

__all__ = ["Pattern", "assigned", "checked_groups", "checked_patterns", "names_and_arrays"]

Pattern: TypeAlias = str | Callable[[str, NDArray[Any]], bool]
"""A path, with ``*`` for any characters, or a function of the name and the array."""

#: what may follow the path of a module, dict or list in that of a parameter below it
_SEPARATORS = "./["
_SHOWN = 6


class _Group(dict[str, Any]):
    """The settings of a group, in an optimizer, which is a value."""

    def __hash__(self) -> int:  # type: ignore[override]  # nobody changes it
        return hash(repr(self))


def checked_groups(given: Any) -> tuple[Mapping[str, Any], ...]:
    """Return the groups of an optimizer, each a dict with ``params``. Raises TypeError or ValueError."""
    if isinstance(given, Mapping | str) or not isinstance(given, Iterable):
        raise TypeError(
            'groups: expected a list of dicts such as {"params": "*.bias", "weight_decay": 0.0}, found '
            f"{type(given).__name__}"
        )
    groups = []
    for index, group in enumerate(given):
        if not isinstance(group, Mapping) or "params" not in group:
            found = f"a dict of {', '.join(map(str, group))}" if isinstance(group, Mapping) else type(group).__name__
            raise TypeError(
                f'groups[{index}]: expected a dict with the key "params", such as {{"params": "*.bias", '
                f'"weight_decay": 0.0}}, found {found}'
            )
        groups.append(_Group({**group, "params": checked_patterns(f'groups[{index}]["params"]', group["params"])}))
    return tuple(groups)


def checked_patterns(where: str, given: Any) -> tuple[Pattern, ...]:
    """Return these patterns, one or several. Raises TypeError or ValueError."""
    patterns = (given,) if isinstance(given, str) or callable(given) else given
    if not isinstance(patterns, Sequence) or not all(isinstance(each, str) or callable(each) for each in patterns):
        raise TypeError(
            f'{where}: expected a path such as "head" or "*.bias", a function (name, array) -> bool, or a list of '
            f"these; found {_described(given)}. The Trainer has the parameters themselves"
        )
    if not patterns:
        raise ValueError(f"{where}: the list is empty; expected at least one path")
    return tuple(patterns)


def _described(given: Any) -> str:
    if isinstance(given, Sequence):
        return f"a {type(given).__name__} with a {next(type(each).__name__ for each in given if type(each) is not str)}"
    return type(given).__name__


def names_and_arrays(trained: Any) -> tuple[list[str], list[NDArray[Any]]]:
    """Return the path of each parameter, and the parameters."""
    spec, leaves = flatten(trained)
    return [path_of(path) for path in paths(spec)], [np.asarray(leaf) for leaf in leaves]


def assigned(
    patterns_of: Mapping[str, Sequence[Pattern]], names: Sequence[str], arrays: Sequence[NDArray[Any]]
) -> list[int | None]:
    """Return for each parameter which of these has a pattern that it matches, or None.

    Raises ValueError for a pattern that no parameter matches, and for a parameter that two of these match.
    """
    found: list[int | None] = [None] * len(names)
    owners = list(patterns_of)
    for index, owner in enumerate(owners):
        for pattern in patterns_of[owner]:
            matches = _matching(owner, pattern, names, arrays)
            if not matches:
                raise _no_match(owner, pattern, names)
            for position in matches:
                other = found[position]
                if other not in (None, index):
                    assert other is not None
                    raise ValueError(
                        f"{owner}: parameter {names[position]} matches {_shown(pattern)}, and it is in {owners[other]} "
                        "too; expected it in one of them"
                    )
                found[position] = index
    return found


def _matching(owner: str, pattern: Pattern, names: Sequence[str], arrays: Sequence[NDArray[Any]]) -> list[int]:
    if not isinstance(pattern, str):
        answers = [pattern(name, array) for name, array in zip(names, arrays, strict=True)]
        for name, answer in zip(names, answers, strict=True):
            if not isinstance(answer, bool | np.bool_):
                raise TypeError(
                    f"{owner}: {_shown(pattern)}: expected True or False for parameter {name}, found "
                    f"{type(answer).__name__}"
                )
        return [index for index, answer in enumerate(answers) if answer]
    path = pattern.strip("/") or pattern
    below = tuple(path + separator for separator in _SEPARATORS)
    literal = [index for index, name in enumerate(names) if name == path or name.startswith(below)]
    if literal or not set("*?") & set(path):
        return literal
    text = "".join({"*": ".*", "?": "."}.get(character, re.escape(character)) for character in path)
    expression = re.compile(f"(?:{text})(?:[{re.escape(_SEPARATORS)}].*)?", re.DOTALL)
    return [index for index, name in enumerate(names) if expression.fullmatch(name)]


def _no_match(owner: str, pattern: Pattern, names: Sequence[str]) -> ValueError:
    similar = difflib.get_close_matches(pattern, names, n=3) if isinstance(pattern, str) else []
    if similar:
        there = f"similar ones are {', '.join(similar)}"
    else:
        there = f"there are {', '.join(names[:_SHOWN])}{', ...' if len(names) > _SHOWN else ''}"
    return ValueError(f"{owner}: no parameter that is trained matches {_shown(pattern)}; {there}")


def _shown(pattern: Pattern) -> str:
    return repr(pattern) if isinstance(pattern, str) else getattr(pattern, "__qualname__", repr(pattern))
