"""Silence warnings that are not meant for the user.

The whole process shares the filters of warnings. If two threads change and restore them at the same time, those of one
may stay, so the threads of untorn do it one after the other, and avoid it where possible.
"""

from __future__ import annotations

import os
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["silenced"]


class _Lock:
    """The lock of the thread that has changed the filters. It is reentrant, since a finalizer may run meanwhile."""

    def __init__(self) -> None:
        self.lock = threading.RLock()


_the_lock = _Lock()
os.register_at_fork(after_in_child=_the_lock.__init__)  # type: ignore[misc]


@contextmanager
def silenced(message: str = "", category: type[Warning] = Warning) -> Iterator[None]:
    """Hide warnings of this category whose text begins with ``message``, a regular expression, in the block."""
    with _the_lock.lock, warnings.catch_warnings():
        warnings.filterwarnings("ignore", message, category)
        yield
