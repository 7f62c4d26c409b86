"""untorn: consistent shared-memory snapshots, and data-parallel training on top of them, for Python processes.

    >>> import numpy as np, untorn
    >>> with untorn.publish({"w": np.zeros(3)}) as weights:     # any number of processes may read
    ...     reader = weights.subscriber()                       # give this to them
    ...     version = weights.update({"w": np.ones(3)})
    ...     with reader.snapshot() as snap:                     # whole, zero-copy, read-only, never torn
    ...         print(snap.version, snap.value["w"])
    2 [1. 1. 1.]

share (publish, subscribe) needs only NumPy. train (Trainer, SGD, Adam) builds on it and is imported on first use.
"""

from __future__ import annotations

import sys as _sys
from typing import TYPE_CHECKING

if _sys.platform != "linux" or _sys.maxsize < 2**32:
    raise ImportError(
        "untorn runs only on 64-bit Linux (x86-64, aarch64), since it needs memfds, futexes and open-file-description "
        f"locks; this is {_sys.platform}"
    )

from untorn import adapters as _adapters  # noqa: F401 (registers them)
from untorn.errors import *
from untorn.first_guesses import words as _words
from untorn.share import *

__version__ = "0.1.0"

#: the public names; those of train are imported on first use
__all__ = [
    "SGD",
    "Adagrad",
    "Adam",
    "AdamW",
    "BrokenChannelError",
    "BusyError",
    "CSVLogger",
    "Callback",
    "CapacityError",
    "ChannelNotFoundError",
    "ClosedError",
    "EarlyStopping",
    "EmptyError",
    "Examples",
    "FormatError",
    "FrozenDict",
    "FullError",
    "History",
    "Item",
    "LearningRateScheduler",
    "LocalSteps",
    "MLflow",
    "ModelCheckpoint",
    "NonFiniteLossError",
    "ProgressBar",
    "Publisher",
    "Queue",
    "QueueProcess",
    "RMSprop",
    "ReaderInfo",
    "ReduceLROnPlateau",
    "Snapshot",
    "Subscriber",
    "TensorBoard",
    "TerminateOnNaN",
    "TorchSchedule",
    "Trainer",
    "Turns",
    "UnsupportedTypeError",
    "UntornError",
    "WandB",
    "WorkerError",
    "publish",
    "queue",
    "subscribe",
]


_FRAMEWORKS = ("torch", "jax", "sklearn")
_GUESSES = _words(
    (
        "create put share broadcast write save Channel SharedValue SharedMemory SharedArray",
        "write untorn.publish(value)",
    ),
    ("connect attach open get read load receive", "write untorn.subscribe(name)"),
    ("TorchModel", "write untorn.torch.TorchModel"),
    ("JaxModel", "write untorn.jax.JaxModel"),
    ("Model Sequential", "write untorn.torch.TorchModel or untorn.jax.JaxModel, or give Trainer a function"),
    ("fit", "write untorn.Trainer(model, ...).fit(data)"),
    (
        "NAdam RAdam Adamax Adadelta Lion Lamb LBFGS Momentum RMSProp",
        "the fused optimizers are SGD, Adam, AdamW, RMSprop "
        "and Adagrad; Trainer takes those of torch.optim and optax, too",
    ),
    ("remove delete unlink", "write publisher.unlink(), or `untorn rm NAME`"),
)

if TYPE_CHECKING:  # with __getattr__ in sight, a type checker takes any name for one that is here
    from untorn.train import *
else:

    def __getattr__(name: str) -> object:
        """Import the training layer, and the models of frameworks, on first use."""
        if name in _FRAMEWORKS:
            import importlib

            return importlib.import_module(f"untorn.{name}")
        if name not in __all__:
            text = f"module {__name__!r} has no attribute {name!r}"
            raise AttributeError(f"{text}: {_GUESSES[name]}" if name in _GUESSES else text)
        from untorn import train

        found = globals()[name] = getattr(train, name)
        return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
