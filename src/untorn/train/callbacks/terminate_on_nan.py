"""End training quietly when the loss is no longer a number."""

from __future__ import annotations

from untorn.errors import NonFiniteLossError
from untorn.train.callbacks.base import Callback, Logs

__all__ = ["TerminateOnNaN"]


class TerminateOnNaN(Callback):
    """``fit`` returns, instead of raising NonFiniteLossError, when a loss becomes NaN or infinite.

    The weights are those of the step before, with this callback and without it. The history has the epochs that were
    over by then.

    Attributes:
        error: the NonFiniteLossError that ended training, with the step and the examples; None when it did not.

    Example:
        >>> safely = TerminateOnNaN()
        >>> safely.error is None
        True

    """

    def __init__(self) -> None:
        self.error: NonFiniteLossError | None = None

    def on_train_begin(self, logs: Logs) -> None:
        """Forget the run before."""
        self.error = None

    def on_error(self, error: BaseException) -> bool:
        """Keep a loss that is no number; everything else is not for this callback."""
        if not isinstance(error, NonFiniteLossError):
            return False
        self.error = error
        self.trainer.stop_training = True
        return True
