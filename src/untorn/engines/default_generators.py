"""The generators of random numbers that a process has one of: torch's, NumPy's and Python's default ones.

What must draw from them, seeded, and put them back, does so one thread after the other. Threads of the program that
draw meanwhile cannot be kept out.
"""

from __future__ import annotations

import os
import threading
from contextlib import AbstractContextManager

__all__ = ["turn"]


class _Turn:
    def __init__(self) -> None:
        self.lock = threading.RLock()


_turn = _Turn()
#: in a child that was just forked, the thread that held it may not be there
os.register_at_fork(after_in_child=_turn.__init__)  # type: ignore[misc]


def turn() -> AbstractContextManager[object]:
    """Held by the thread that uses them. Reentrant."""
    return _turn.lock
