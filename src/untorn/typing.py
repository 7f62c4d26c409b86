"""The types of a Trainer's arguments, for annotations in programs that use untorn.

>>> from untorn.typing import ModelLike, OptimizerLike
>>> def trained(model: ModelLike, optimizer: OptimizerLike) -> dict[str, float]: ...
"""

from untorn.train.callbacks.base import Logs
from untorn.train.data.items import Dataset
from untorn.train.interfaces import (
    Answer,
    EngineName,
    GradientTransformation,
    LossAndGrad,
    LossAndGradWithRng,
    LossModel,
    Mode,
    ModelLike,
    OptimizerLike,
    TorchOptimizer,
)

__all__ = [
    "Answer",
    "Dataset",
    "EngineName",
    "GradientTransformation",
    "Logs",
    "LossAndGrad",
    "LossAndGradWithRng",
    "LossModel",
    "Mode",
    "ModelLike",
    "OptimizerLike",
    "TorchOptimizer",
]
