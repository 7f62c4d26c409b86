"""Every error that untorn raises on purpose, named by who is at fault.

::

    UntornError
    ├── ClosedError               you closed it, or this process may not use it
    ├── BusyError                 another publisher is alive
    ├── BrokenChannelError        the other side is gone
    ├── ChannelNotFoundError      no such channel (also a FileNotFoundError)
    ├── FormatError               the bytes are not what they should be
    ├── CapacityError             no memory, no slot or no reader row: says who holds them
    ├── UnsupportedTypeError      a value that cannot be shared (also a TypeError): says where in the tree
    ├── NonFiniteLossError        a loss became NaN or infinite (also a FloatingPointError)
    └── WorkerError               a model function failed, or a worker died: the worker's traceback is inside

Wrong arguments are Python's own ``ValueError`` and ``TypeError``; a wait that ends is Python's ``TimeoutError``.
"""

from __future__ import annotations

__all__ = [
    "BrokenChannelError",
    "BusyError",
    "CapacityError",
    "ChannelNotFoundError",
    "ClosedError",
    "FormatError",
    "NonFiniteLossError",
    "UnsupportedTypeError",
    "UntornError",
    "WorkerError",
]


class UntornError(Exception):
    """The root of all errors of this package."""


class ClosedError(UntornError):
    """The object was closed before, or was inherited by a process that may not use it."""


class BusyError(UntornError):
    """Somebody else is doing what only one can do at a time, such as publishing to a channel."""


class BrokenChannelError(UntornError):
    """The process at the other end is gone, so what was asked for can never come."""


class ChannelNotFoundError(UntornError, FileNotFoundError):
    """There is no channel of that name or at that place."""

    def __str__(self) -> str:
        # FileNotFoundError would show its own (errno, message) form.
        return str(self.args[0]) if self.args else ""


class FormatError(UntornError):
    """The bytes are not a channel, or not one that this version can read."""


class CapacityError(UntornError):
    """There is not enough of something: memory, slots or reader rows."""


class UnsupportedTypeError(UntornError, TypeError):
    """The value, or something inside it, is of a type that cannot be shared."""


class NonFiniteLossError(UntornError, FloatingPointError):
    """A loss or a gradient became NaN or infinite. The weights of the step before are kept."""


class WorkerError(UntornError):
    """A worker failed for good: its model function raised, or it died again and again.

    Attributes:
        worker_traceback: the traceback as the worker printed it, or an empty string.
    """

    def __init__(self, message: str, worker_traceback: str = "") -> None:
        super().__init__(message, worker_traceback)
        self.worker_traceback = worker_traceback

    def __str__(self) -> str:
        message: str = self.args[0]
        return f"{message}\n\n{self.worker_traceback.rstrip()}" if self.worker_traceback else message
