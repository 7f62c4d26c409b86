"""Warnings that are not for the user, silenced for a moment.

The filters of warnings are the whole process's. Two threads that change and restore them at the same time leave those
of one behind, so ours do it one after the other; where it can be avoided, it is.
"""

from __future__ import annotations

import os
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["silenced"]


class _Turn:
    """Held by the thread that has changed the filters. Reentrant: a finalizer may come in."""

    def __init__(self) -> None:
        self.lock = threading.RLock()


_turn = _Turn()
os.register_at_fork(after_in_child=_turn.__init__)  # type: ignore[misc]


@contextmanager
def silenced(message: str = "", category: type[Warning] = Warning) -> Iterator[None]:
    """Hide warnings of this category whose text begins with ``message``, a regular expression, in the block."""
    with _turn.lock, warnings.catch_warnings():
        warnings.filterwarnings("ignore", message, category)
        yield
