"""The lock around the default random generators of this process: torch's, NumPy's and Python's.

Code that seeds them, draws and restores their state holds the lock meanwhile. Threads of the program that draw without
it cannot be kept out.
"""

from __future__ import annotations

import os
import threading
from contextlib import AbstractContextManager

__all__ = ["generators_lock"]


class _Lock:
    def __init__(self) -> None:
        self.lock = threading.RLock()


_the_lock = _Lock()
#: a forked child may lack the thread that held it
os.register_at_fork(after_in_child=_the_lock.__init__)  # type: ignore[misc]


def generators_lock() -> AbstractContextManager[object]:
    """Return the lock that a thread holds while it uses them. It is reentrant."""
    return _the_lock.lock
