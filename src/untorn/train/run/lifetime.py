"""The lifetime of a trainer: whether this process may use it."""

from __future__ import annotations

import os

from untorn.errors import ClosedError

__all__ = ["Lifetime"]


class Lifetime:
    """Tells whether a trainer is closed, and whether this process is a forked copy of the one that trains.

    Attributes:
        closed: whether close() was called.
        fitting: whether fit runs.
        owner: the id of the process that opened the trainer; None before. A forked copy of that process may read the
            weights, and must not end the workers.
    """

    def __init__(self) -> None:
        self.closed = False
        self.fitting = False
        self.owner: int | None = None

    @property
    def is_copy(self) -> bool:
        """Whether this process was forked from the one that trains."""
        return self.owner is not None and self.owner != os.getpid()

    def check(self) -> None:
        """Raise ClosedError after close(), and in a forked copy."""
        self.check_open()
        self.check_owner()

    def check_open(self) -> None:
        """Raise ClosedError after close()."""
        if self.closed:
            raise ClosedError("this trainer was closed while it trained" if self.fitting else "this trainer is closed")

    def check_owner(self) -> None:
        """Raise ClosedError in a forked copy of the process that trains."""
        if self.is_copy:
            raise ClosedError(
                f"this trainer is process {self.owner}'s, and this process was forked from it: here only its weights "
                "can be read. A child that a callback forks must end with os._exit()"
            )
