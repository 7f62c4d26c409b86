"""End training without an error when the loss becomes NaN or infinite."""

from __future__ import annotations

from untorn.errors import NonFiniteLossError
from untorn.train.callbacks.base import Callback, Logs

__all__ = ["TerminateOnNaN"]


class TerminateOnNaN(Callback):
    """Have ``fit`` return when a loss becomes NaN or infinite, instead of raising NonFiniteLossError.

    The weights are those of the previous step, with or without this callback. The history has the completed epochs.

    Attributes:
        error: the NonFiniteLossError that ended training, which names the step and the examples; None if none did.

    Example:
        >>> safely = TerminateOnNaN()
        >>> safely.error is None
        True

    """

    def __init__(self) -> None:
        self.error: NonFiniteLossError | None = None

    def on_train_begin(self, logs: Logs) -> None:
        """Reset, so that one object can be used for several calls of ``fit``."""
        self.error = None

    def on_error(self, error: BaseException) -> bool:
        """Keep a NonFiniteLossError and return True; return False for any other error."""
        if not isinstance(error, NonFiniteLossError):
            return False
        self.error = error
        self.trainer.stop_training = True
        return True
