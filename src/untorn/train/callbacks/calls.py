"""Call the callbacks of ``fit``: all of them, in the order of the list, even if one of them raises an error.

A callback may fork. No more callbacks are called in the child, which is a copy of the process that trains.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Sequence

from untorn.train.callbacks.base import Callback

__all__ = ["training"]


@contextlib.contextmanager
def training(callbacks: Sequence[Callback], check_owner: Callable[[], None]) -> Iterator[None]:
    """Call on_train_begin before the block, and on_train_end after it. ``check_owner`` raises an error in a forked copy
    of this process.

    on_train_end is called for each callback whose on_train_begin was called, even after an error. The error that ended
    training is raised unless a callback's on_error returned True; errors that callbacks raise afterwards are in its
    notes.
    """
    begun: list[Callback] = []
    owner = os.getpid()
    try:
        for callback in callbacks:
            callback.on_train_begin({})
            check_owner()
            begun.append(callback)
        yield
    except BaseException as error:
        if os.getpid() != owner:
            raise
        quiet, later = _tell(begun, error)
        later += _end(begun, {} if quiet else {"error": error})
        if quiet:
            _raise_first(later)
            return
        for each in later:
            error.add_note(f"then a callback failed as well: {type(each).__name__}: {each}")
        raise
    _raise_first(_end(begun, {}))


def _tell(callbacks: Sequence[Callback], error: BaseException) -> tuple[bool, list[Exception]]:
    """Call every on_error. Returns whether one of them returned True, and the errors that they raised."""
    quiet, raised = False, []
    for callback in callbacks:
        try:
            quiet = bool(callback.on_error(error)) or quiet
        except Exception as another:
            raised.append(another)
    return quiet, raised


def _end(callbacks: Sequence[Callback], logs: dict[str, BaseException]) -> list[Exception]:
    """Call every on_train_end. Returns the errors that they raised."""
    raised = []
    for callback in callbacks:
        try:
            callback.on_train_end(logs)
        except Exception as error:
            raised.append(error)
    return raised


def _raise_first(errors: Sequence[Exception]) -> None:
    if errors:
        for each in errors[1:]:
            errors[0].add_note(f"then another callback failed as well: {type(each).__name__}: {each}")
        raise errors[0]
