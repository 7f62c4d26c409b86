"""Errors for names that people try first, which say the right word.

A class or a function lists the guesses that it knows: guessed name -> what to write instead. Names that only cost a
second word are not made to work, since two words for one thing cost every reader of a program.

A function that gives such errors for its arguments collects those that it does not have, annotated with ``Never``, so
that type checkers refuse them, and is decorated with ``only_known_arguments``, so that nobody sees them in its
signature.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Never, TypeVar

__all__ = [
    "note_parameters",
    "only_known_arguments",
    "unknown_arguments",
    "unknown_attribute",
    "unknown_first",
    "words",
]

_F = TypeVar("_F", bound=Callable[..., Any])
#: the names of the parameters of each function that gives such errors, for names that are misspelled
_parameters: dict[str, set[str]] = {}


def words(*groups: tuple[str, str]) -> Mapping[str, str]:
    """Return a table of guesses. Each group is guessed names, separated by spaces, and what to write
    instead, with ``{}`` for the name itself."""
    return {name: instead.replace("{}", name) for names, instead in groups for name in names.split()}


def unknown_attribute(owner: object, name: str, guesses: Mapping[str, str]) -> AttributeError:
    """Return the error for an attribute that ``owner`` does not have."""
    text = f"{type(owner).__name__!r} object has no attribute {name!r}"
    if name in guesses:
        text += f": {guesses[name]}"
    return AttributeError(text, name=name, obj=owner)


def unknown_arguments(
    function: str,
    positional: Sequence[object] = (),
    keywords: Iterable[str] = (),
    *,
    guesses: Mapping[str, str],
    instead: str = "",
) -> TypeError:
    """Return the error for arguments that a function does not have.

    Args:
        function: its name.
        positional: the arguments by position that are too many.
        keywords: the unknown names.
        guesses: what to write for a guessed name.
        instead: what to write for the arguments by position.
    """
    for name in keywords:
        advice = guesses.get(name) or _spelled_alike(name, _parameters.get(function, ()))
        return TypeError(f"{function}() has no argument {name!r}" + (f": {advice}" if advice else ""))
    found = ", ".join(type(argument).__name__ for argument in positional)
    return TypeError(f"{function}() got more arguments by position than it takes ({found}): {instead}")


def _spelled_alike(name: str, known: Iterable[str]) -> str:
    """Return what to write for a misspelled name; empty if it is like none."""
    import difflib

    near = difflib.get_close_matches(name, sorted(known), 2)
    return f"write {' or '.join(f'{each}=' for each in near)}" if near else ""


def note_parameters(function: str, names: Iterable[str]) -> None:
    """Note the names that unknown_arguments() can advise for this function. Functions of one name share them."""
    _parameters.setdefault(function, set()).update(names)


def unknown_first(function: _F) -> _F:
    """Have the function raise its error for an argument that it does not have, also where others are missing: they are
    often the same argument by two names. For functions that begin with this check, and are not called often."""
    signature = inspect.signature(function)
    kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    known = {name: each for name, each in signature.parameters.items() if each.kind in kinds}

    @functools.wraps(function)
    def call(*args: Any, **given: Any) -> Any:
        if not given.keys() <= known.keys():
            by_position = set(list(known)[: len(args)])
            missing = [name for name, each in known.items() if each.default is each.empty and name not in by_position]
            given = dict.fromkeys(missing) | given
        return function(*args, **given)

    return call  # type: ignore[return-value]  # it takes the same arguments


def only_known_arguments(function: _F) -> _F:
    """Hide the parameters that collect unknown arguments from the function's signature."""
    signature = inspect.signature(function)
    known = [each for each in signature.parameters.values() if each.annotation not in ("Never", Never)]
    function.__signature__ = signature.replace(parameters=known)  # type: ignore[attr-defined]  # inspect reads it
    owner, _, name = function.__qualname__.rpartition(".")
    by_name = [each.name for each in known if each.kind in (each.POSITIONAL_OR_KEYWORD, each.KEYWORD_ONLY)]
    note_parameters(owner if name == "__init__" else name, set(by_name) - {"self"})
    return function
