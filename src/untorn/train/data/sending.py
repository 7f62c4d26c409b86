"""A dataset on its way to the workers: a pickle whose arrays and tensors lie beside it in shared memory.

So a dataset that holds its examples in memory is there once, not once per worker. Each worker reads it through a
private mapping: what its ``__getitem__`` writes is its own.
"""

from __future__ import annotations

import io
import pickle
import sys
from typing import Any

import numpy as np
from numpy.typing import NDArray

from untorn.share import Snapshot

__all__ = ["received", "sendable"]


def sendable(what: str, value: Any) -> list[NDArray[np.uint8]]:
    """The value as arrays of bytes: the pickle first. What plain pickle cannot send, such as a lambda or a class of a
    notebook, goes through cloudpickle if it is installed. Raises TypeError saying why it cannot be sent."""
    reason: object = "it is defined in an interactive session"
    if hasattr(sys.modules["__main__"], "__file__"):
        try:
            return _pickled(value, pickle.Pickler)
        except Exception as error:  # whatever the dataset's own methods raise
            reason = error
    try:
        import cloudpickle

        return _pickled(value, cloudpickle.Pickler)
    except ImportError:
        advice = "define it at the top of a module, or install cloudpickle: pip install 'untorn[train]'"
    except Exception as error:
        reason, advice = error, "open files, connections and the like in __getitem__, or use engine='serial'"
    raise TypeError(f"{what}: the dataset cannot be sent to worker processes ({reason}); {advice}")


def received(snapshot: Snapshot) -> Any:
    """The value again, on memory of the version. Loads a pickle: for jobs alone, whose server this process obeys."""
    hold = snapshot._held()
    stream, *buffers = snapshot._attached.decoder(hold).value(hold.private())
    return pickle.loads(stream, buffers=buffers)


def _pickled(value: Any, base: Any) -> list[NDArray[np.uint8]]:
    class Pickler(base):  # type: ignore[misc]  # of a class that is known at run time
        def reducer_override(self, part: Any) -> Any:
            array = _memory(part)
            if array is not None:
                return _tensor, (array,)
            return super().reducer_override(part) if hasattr(base, "reducer_override") else NotImplemented

    stream, buffers = io.BytesIO(), list[NDArray[np.uint8]]()

    def keep(buffer: pickle.PickleBuffer) -> bool:
        try:
            buffers.append(np.frombuffer(buffer.raw(), np.uint8))
        except BufferError:
            return True  # not one piece of memory: into the stream
        return False

    Pickler(stream, protocol=5, buffer_callback=keep).dump(value)
    return [np.frombuffer(stream.getbuffer(), np.uint8), *buffers]


def _memory(part: Any) -> NDArray[Any] | None:
    """The memory of a plain tensor: torch itself would put it into the stream, and into every worker."""
    cls = type(part)
    if cls.__module__ != "torch" or cls.__name__ != "Tensor" or part.requires_grad:
        return None
    try:
        array: NDArray[Any] = part.numpy()
    except (RuntimeError, TypeError):
        return None
    return array


def _tensor(array: NDArray[Any]) -> Any:
    import torch

    return torch.from_numpy(array)
