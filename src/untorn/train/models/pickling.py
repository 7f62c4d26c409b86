"""Pickles for worker processes: by name what a worker can import, by value what it cannot.

Plain pickle sends a function or a class by its name. A worker can find it if it can import the module, which it cannot
where that was loaded from a file outside of sys.path, or made on the fly, or lost its file, or is the ``__main__`` of
an interactive session. Such functions and classes, and lambdas, go by value, through cloudpickle if it is installed.
"""

from __future__ import annotations

import io
import pickle
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FunctionType, MethodType, ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from untorn.engines.importable import can_import, why_not

__all__ = ["pickled", "pickled_apart"]

#: held by the thread that has modules registered with cloudpickle, which keeps them for the whole process
_registering = threading.RLock()
Derive = Callable[[Any], Any]


def pickled(what: str, value: Any, *, otherwise: str, derive: Derive | None = None) -> bytes:
    """Return the pickle of this value for workers.

    Args:
        what: the name of the value in errors.
        otherwise: the advice in the error for a value that cannot be pickled.
        derive: returns a class derived from a class of picklers, pickle's or cloudpickle's.

    Raises TypeError that says why it cannot be sent, and what to do.
    """
    return _pickled(what, value, otherwise, derive or (lambda base: base), None)


def pickled_apart(
    what: str, value: Any, *, otherwise: str, reduce: Callable[[Any], Any]
) -> tuple[bytes, list[NDArray[np.uint8]]]:
    """Return the same, with the memory of large parts beside it: views. ``reduce`` is as pickle's reducer_override."""

    def derive(base: Any) -> Any:
        class Reducing(base):  # type: ignore[misc]  # of a class that is known at run time
            def reducer_override(self, part: Any) -> Any:
                answer = reduce(part)
                if answer is NotImplemented and hasattr(base, "reducer_override"):
                    answer = super().reducer_override(part)
                return answer

        return Reducing

    apart: list[NDArray[np.uint8]] = []
    return _pickled(what, value, otherwise, derive, apart), apart


def _pickled(what: str, value: Any, otherwise: str, derive: Derive, apart: list[NDArray[np.uint8]] | None) -> bytes:
    try:
        return _dumped(value, derive(pickle.Pickler), _refuse, apart)
    except Exception as error:  # whatever methods of the value raise
        reason = error
    try:
        import cloudpickle
    except ImportError:
        raise TypeError(
            f"{what} cannot be sent to worker processes ({reason}); define it at the top of a module that they can "
            "import, or install cloudpickle, which sends it by value: pip install 'untorn[train]'"
        ) from None
    try:
        with _registered(cloudpickle) as register:
            return _dumped(value, derive(cloudpickle.Pickler), register, apart)
    except Exception as error:
        because = f"{reason}, and by value: {error}" if isinstance(reason, _UnreachableError) else str(error)
        raise TypeError(f"{what} cannot be sent to worker processes ({because}); {otherwise}") from None


class _UnreachableError(Exception):
    """A part belongs to a module that workers cannot import."""


def _dumped(value: Any, base: Any, unreachable: Callable[[str], None], apart: list[NDArray[np.uint8]] | None) -> bytes:
    """Return the pickle. Calls ``unreachable`` with the name of each needed module that workers cannot import."""
    known: set[str] = set()
    buffers: list[NDArray[np.uint8]] = []

    def keep(buffer: pickle.PickleBuffer) -> bool:
        try:
            buffers.append(np.frombuffer(buffer.raw(), np.uint8))
        except BufferError:
            return True  # not one piece of memory: into the stream
        return False

    class Pickler(base):  # type: ignore[misc]  # of a class that is known at run time
        def reducer_override(self, part: Any) -> Any:
            if isinstance(part, FunctionType | type | ModuleType):
                name = part.__name__ if isinstance(part, ModuleType) else part.__module__
                if name not in known and isinstance(name, str):
                    known.add(name)
                    if not can_import(name):
                        unreachable(name)
            if isinstance(part, MethodType) and not _is_of_its_class(part):
                return MethodType, (part.__func__, part.__self__)
            return super().reducer_override(part) if hasattr(base, "reducer_override") else NotImplemented

    stream = io.BytesIO()
    Pickler(stream, protocol=5, buffer_callback=None if apart is None else keep).dump(value)
    if apart is not None:
        apart[:] = buffers
    return stream.getvalue()


def _is_of_its_class(method: MethodType) -> bool:
    """Return whether its class gives it under its name. That is where pickle looks for it: it would find another one,
    or none, for what an object has as an attribute of its own, or has from super()."""
    holder = method.__self__
    if isinstance(holder, type):
        return True
    return getattr(type(holder), getattr(method, "__name__", ""), None) is method.__func__


def _refuse(name: str) -> None:
    raise _UnreachableError(why_not(name))


@contextmanager
def _registered(cloudpickle: Any) -> Iterator[Callable[[str], None]]:
    """Give a function that makes cloudpickle send the contents of a module by value, until the block ends."""
    with _registering:
        ours: list[ModuleType] = []

        def register(name: str) -> None:
            module = sys.modules[name]
            if name != "__main__" and name not in cloudpickle.list_registry_pickle_by_value():
                cloudpickle.register_pickle_by_value(module)
                ours.append(module)

        try:
            yield register
        finally:
            for module in ours:
                cloudpickle.unregister_pickle_by_value(module)
