"""Copy objects that ``copy`` and ``pickle`` refuse, such as a model's attributes on their way to workers.

Some objects belong to one process. They are sent as an object that does the same elsewhere:

================================ =====================================================================
lock, thread-local, queue, pool  a new one
weak reference                   one of the target's copy
open file                        the same file, opened again: read from the same place, or appended to
module, a cached function        the same one, imported or created again
anything else that is refused    an ``Absent``, which raises an error when it is used, naming it and its place
================================ =====================================================================

``remade`` decides this. It returns a pickle reduction, so that any kind of pickler can use it.
"""

from __future__ import annotations

import contextlib
import copyreg
import functools
import importlib
import io
import os
import queue
import stat
import sys
import threading
import types
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from untorn.descriptors import opener

__all__ = ["Absent", "Reduction", "path_to", "reduction", "remade", "within"]

#: the pickle reduction of an object: see object.__reduce__
Reduction = tuple[Any, ...]


class Absent:
    """Stands in for an object that belongs to another process. Using it raises RuntimeError with this message."""

    def __init__(self, message: str) -> None:
        self.__dict__["message"] = message

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        raise RuntimeError(self.__dict__["message"])

    def __reduce__(self) -> Reduction:
        return Absent, (self.__dict__["message"],)

    def __repr__(self) -> str:
        return f"<absent: {self.__dict__['message']}>"

    def _refuse(self, *_: Any, **__: Any) -> Any:
        raise RuntimeError(self.__dict__["message"])

    __call__ = __iter__ = __next__ = __len__ = __bool__ = __getitem__ = __setitem__ = __contains__ = _refuse
    __enter__ = __exit__ = __setattr__ = __delattr__ = __int__ = __float__ = __index__ = __array__ = _refuse
    __add__ = __radd__ = __sub__ = __rsub__ = __mul__ = __rmul__ = __lt__ = __gt__ = __le__ = __ge__ = _refuse


_FRESH: dict[type, Callable[[], Any]] = {
    type(threading.Lock()): threading.Lock,
    type(threading.RLock()): threading.RLock,
    threading.local: threading.local,
    queue.SimpleQueue: queue.SimpleQueue,
}
_STREAMS = ("stdin", "stdout", "stderr")


def remade(value: Any) -> Reduction | None:
    """Return how this is made again in another process, or None if it needs nothing special."""
    kind = type(value)
    if kind in _FRESH:
        return _FRESH[kind], ()
    if kind is weakref.ref:
        return _weak, (value(),)
    if kind is weakref.ProxyType:
        return weakref.proxy, (value.__init__.__self__,)
    if kind in (weakref.WeakKeyDictionary, weakref.WeakValueDictionary):
        return kind, (dict(value),)
    if kind is weakref.WeakSet:
        return kind, (list(value),)
    if kind is types.MappingProxyType:
        return kind, (dict(value),)
    if isinstance(value, types.ModuleType) and sys.modules.get(value.__name__) is value:
        return importlib.import_module, (value.__name__,)
    if kind is ThreadPoolExecutor:
        return kind, (value._max_workers, value._thread_name_prefix, value._initializer, value._initargs)  # noqa: SLF001 (Python has no public name for these)
    if kind is functools._lru_cache_wrapper and _found(value) is not value:  # noqa: SLF001 (Python has no public name for it)
        return _cached, (value.__wrapped__, value.cache_parameters())
    if isinstance(value, io.IOBase):
        return _remade_file(value)
    return None


def reduction(value: Any, registered: dict[type, Any]) -> Reduction | None:
    """Return the pickle reduction of an instance; None if pickle does not ask the instance. Raises the instance's
    errors, and TypeError for one that runs on a thread of this process: its copy would wait for that thread forever."""
    if type(value) in registered or type(value) in copyreg.dispatch_table:
        return None
    if isinstance(value, type | types.FunctionType | types.BuiltinFunctionType | types.MethodType):
        return None
    parts = [value, *getattr(value, "__dict__", {}).values()]
    if any(isinstance(part, threading.Thread) and part.is_alive() for part in parts):
        raise TypeError("it runs on a thread of this process")
    found = value.__reduce_ex__(5)
    return found if isinstance(found, tuple) else None  # a str is the name of a global


def _found(value: Any) -> Any:
    found: Any = sys.modules.get(getattr(value, "__module__", ""))
    for name in getattr(value, "__qualname__", "").split("."):
        found = getattr(found, name, None)
    return found


def _weak(target: Any) -> weakref.ref[Any]:
    return weakref.ref(target if target is not None else _Gone())


class _Gone:
    pass


def _cached(function: Any, parameters: dict[str, Any]) -> Any:
    return functools.lru_cache(**parameters)(function)


def _remade_file(file: Any) -> Reduction | None:
    """Return how to open the file again at its position; None if it has no path, is closed, or is not a file."""
    for name in _STREAMS:
        if file is getattr(sys, name, None) or file is getattr(sys, f"__{name}__"):
            return _stream, (name,)
    if not isinstance(file, io.TextIOWrapper | io.BufferedReader | io.BufferedWriter | io.BufferedRandom | io.FileIO):
        return None
    if file.closed or not isinstance(file.name, str) or not _can_open(file.name):
        return None
    binary, text = "b", {}
    if isinstance(file, io.TextIOWrapper):
        binary, text = "", {"encoding": file.encoding, "errors": file.errors}
    if not file.writable():
        place = 0
        with contextlib.suppress(OSError):  # while its lines are iterated over, it does not tell
            place = file.tell()
        return _opened, (os.path.abspath(file.name), f"r{binary}", place, text)
    return _opened, (os.path.abspath(file.name), f"a{'+' if file.readable() else ''}{binary}", None, text)


def _can_open(path: str) -> bool:
    """Return whether it is a file, or a device such as /dev/null. Opening a FIFO may wait forever."""
    try:
        mode = os.stat(path).st_mode
    except OSError:
        return False
    return stat.S_ISREG(mode) or stat.S_ISCHR(mode)


def _opened(path: str, mode: str, place: int | None, text: dict[str, Any]) -> Any:
    file = open(path, mode, opener=opener, **text)  # noqa: SIM115  # it is the copy's
    if place is not None:
        file.seek(place)
    return file


def _stream(name: str) -> Any:
    return getattr(sys, name)


def path_to(root: Any, value: Any, *, among: int = 100_000) -> str:
    """Return the place of an object inside another as a Python expression, such as ``.encoder.log['file']``; "" if it
    is not found ``among`` that number of parts. The nearest parts are searched first."""
    paths: list[tuple[Any, str]] = [(root, "")]
    seen = {id(root)}
    for holder, path in paths:
        if len(paths) > among:
            break
        for name, part in within(holder):
            if part is value:
                return path + name
            if id(part) not in seen:
                seen.add(id(part))
                paths.append((part, path + name))
    return ""


def within(holder: Any) -> Iterator[tuple[str, Any]]:
    """Yield the parts of an object, each with the text that leads from the object to it. torch's modules keep their
    attributes in registries, whose names are left out."""
    if isinstance(holder, dict):
        yield from ((f"[{key!r}]", part) for key, part in list(holder.items()))
    elif isinstance(holder, list | tuple | set | frozenset):
        yield from ((f"[{index}]", part) for index, part in enumerate(holder))
    elif isinstance(holder, types.FunctionType):
        for name, cell in zip(holder.__code__.co_freevars, holder.__closure__ or (), strict=False):
            with contextlib.suppress(ValueError):  # an empty cell
                yield f" (the {name!r} of {holder.__qualname__})", cell.cell_contents
        for part in (*(holder.__defaults__ or ()), *(holder.__kwdefaults__ or {}).values()):
            yield f" (a default of {holder.__qualname__})", part
        yield from vars(holder).items()
    elif isinstance(holder, types.MethodType):
        yield ".__self__", holder.__self__
    elif isinstance(holder, functools.partial):
        yield ".func", holder.func
        yield from ((".args", part) for part in holder.args)
        yield from ((f".keywords[{name!r}]", part) for name, part in holder.keywords.items())
    elif not isinstance(holder, type | types.ModuleType | Absent):
        attributes = getattr(holder, "__dict__", None)
        for name, part in list(attributes.items()) if isinstance(attributes, dict) else ():
            if name in ("_modules", "_parameters", "_buffers") and isinstance(part, dict):
                yield from ((f".{key}", inner) for key, inner in part.items())
            else:
                yield f".{name}", part
