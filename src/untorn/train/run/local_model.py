"""The model as the process computes with it that has the Trainer."""

from __future__ import annotations

from typing import Any

from untorn.share import Snapshot
from untorn.share.lowlevel import private_value
from untorn.train.models.base import Model, Replica

__all__ = ["LocalModel"]


class LocalModel:
    """A replica of the model, and the way in which it reads weights.

    Attributes:
        model: the model.
        replica: computes.
    """

    def __init__(self, model: Model) -> None:
        self.model = model
        self.replica: Replica = model.replica(None)

    def params(self, snapshot: Snapshot) -> Any:
        """Return the weights as the model reads them: a framework knows no read-only memory."""
        return private_value(snapshot) if self.model.private_params else snapshot.value
