"""The model in the process that has the Trainer."""

from __future__ import annotations

from typing import Any

from untorn.share import Snapshot
from untorn.share.lowlevel import private_value, read_value
from untorn.train.models.base import Model, Replica

__all__ = ["LocalModel"]


class LocalModel:
    """A replica of the model in this process, and its access to the weights.

    Attributes:
        model: the model.
        replica: the replica that computes in this process.
    """

    def __init__(self, model: Model) -> None:
        self.model = model
        self.replica: Replica = model.replica(None)

    def params(self, snapshot: Snapshot) -> Any:
        """Return the weights for the model to read: a private mapping if its framework needs writable memory."""
        read = private_value if self.model.private_params else read_value
        return read(snapshot, arrays=True)
