"""The errors that untorn raises, each named after its cause.

::

    UntornError
    ├── ClosedError               the object was closed, or this process may not use it
    ├── BusyError                 another publisher is alive
    ├── BrokenChannelError        the other side is gone
    ├── ChannelNotFoundError      no such channel (also a FileNotFoundError)
    ├── FormatError               the bytes are not a channel, or are damaged
    ├── CapacityError             no memory, slot or reader row is left; the message says which processes hold them
    ├── FullError                 a queue has no room for another item (also a queue.Full)
    ├── EmptyError                no item waits in a queue (also a queue.Empty)
    ├── UnsupportedTypeError      a value cannot be shared (also a TypeError); the message says where in the tree
    ├── NonFiniteLossError        a loss became NaN or infinite (also a FloatingPointError)
    └── WorkerError               a model function failed, or a worker died; has the worker's traceback

Wrong arguments raise Python's own ``ValueError`` and ``TypeError``, and a timeout raises its ``TimeoutError``.
"""

from __future__ import annotations

from queue import Empty, Full

__all__ = [
    "BrokenChannelError",
    "BusyError",
    "CapacityError",
    "ChannelNotFoundError",
    "ClosedError",
    "EmptyError",
    "FormatError",
    "FullError",
    "NonFiniteLossError",
    "UnsupportedTypeError",
    "UntornError",
    "WorkerError",
]


class UntornError(Exception):
    """The base class of all errors of this package."""


class ClosedError(UntornError):
    """The object was closed, or was inherited by a process that may not use it."""


class BusyError(UntornError):
    """Another process or thread is doing what only one can do at a time, such as publishing to a channel."""


class BrokenChannelError(UntornError):
    """The process at the other end is gone, so the awaited version or answer can never arrive."""


class ChannelNotFoundError(UntornError, FileNotFoundError):
    """No channel has that name, or exists at that place."""

    def __str__(self) -> str:
        # FileNotFoundError would show its own (errno, message) form.
        return str(self.args[0]) if self.args else ""


class FormatError(UntornError):
    """The bytes are not a channel, or not one that this version of untorn can read."""


class CapacityError(UntornError):
    """Not enough memory, slots or reader rows are left."""


class FullError(UntornError, Full):
    """A queue has no room for another item now, or had none in time.

    Attributes:
        put_count: how many of the items that were to be put are in the queue: 0, except for ``put_many``.
    """

    put_count = 0


class EmptyError(UntornError, Empty):
    """No item waits in a queue now, or came in time."""


class UnsupportedTypeError(UntornError, TypeError):
    """The value, or a part of it, has a type that cannot be shared."""


class NonFiniteLossError(UntornError, FloatingPointError):
    """A loss or a gradient became NaN or infinite. The weights of the previous step are kept."""


class WorkerError(UntornError):
    """A worker failed for good: its model function raised an exception, or it died repeatedly.

    Attributes:
        worker_traceback: the traceback that the worker reported, or an empty string.
    """

    def __init__(self, message: str, worker_traceback: str = "") -> None:
        super().__init__(message, worker_traceback)
        self.worker_traceback = worker_traceback

    def __str__(self) -> str:
        message: str = self.args[0]
        return f"{message}\n\n{self.worker_traceback.rstrip()}" if self.worker_traceback else message
