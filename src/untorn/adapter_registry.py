"""The registry of adapters: how values that are no trees are taken apart into trees, and put together again.

An *adapter* is two pure functions and a name that stands in the schema. share knows no adapter itself: those of
``untorn.adapters`` are registered by the name of the library that they are for, and the module is imported when a value
of that library is published, or read. So sharing a sparse matrix imports scipy in the processes that have one, and
reading one never imports anything but the library that this table names. FrozenDict is registered in the same way.
"""

from __future__ import annotations

import importlib
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

from untorn.errors import FormatError

__all__ = ["Adapter", "Parts", "adapter_for", "adapter_named", "register_library"]


class Parts(NamedTuple):
    """A value taken apart.

    Attributes:
        meta: what distinguishes it from others of its type but is no data: plain values and tuples that JSON can hold.
            Versions with other meta have another schema, so nothing that changes with every version belongs here.
        children: the data, by name: anything that can be shared.
    """

    meta: Any
    children: dict[str, Any]


@dataclass(frozen=True)
class Adapter:
    """How one kind of value is shared.

    Attributes:
        name: ``library.kind``, as the schema has it; it never changes.
        matches: is a value of this class one of these?
        take_apart: value -> Parts. Copies nothing where it can; raises ValueError or TypeError for what it cannot take.
        put_together: (meta, with lists for tuples; children by name) -> value, on the children's memory.
        private: the library may write to the memory that it is given, read-only or not: it gets a private copy-on-write
            mapping instead.
        unpickles: the value may hold pickles: put_together gets the reader's allow_pickle as a third argument.
    """

    name: str
    matches: Callable[[type], bool]
    take_apart: Callable[[Any], Parts]
    put_together: Callable[..., Any]
    private: bool = False
    unpickles: bool = False


#: library (top-level package) -> module of adapters, which has ADAPTERS
_LIBRARIES: dict[str, str] = {}
_known: weakref.WeakKeyDictionary[type, Adapter] = weakref.WeakKeyDictionary()


def register_library(library: str, module: str) -> None:
    """Values whose class, or a base of it, comes from ``library`` are the adapters' of ``module``."""
    _LIBRARIES[library] = module


def _adapters_of(library: str) -> tuple[Adapter, ...]:
    module = importlib.import_module(_LIBRARIES[library])
    adapters: tuple[Adapter, ...] | None = getattr(module, "ADAPTERS", None)
    if adapters is None:
        raise ImportError(
            f"values of {library} cannot be shared yet: {module.__name__} is being imported by the code that this "
            f"signal handler or finalizer interrupts; import {library} and {module.__name__} earlier in the program",
            name=library,
        )
    return adapters


def adapter_for(cls: type) -> Adapter | None:
    """The adapter for values of this class, or None."""
    found = _known.get(cls)
    if found is not None:
        return found
    libraries = {base.__module__.partition(".")[0] for base in cls.__mro__}
    for library in sorted(libraries & _LIBRARIES.keys()):
        for adapter in _adapters_of(library):
            if adapter.matches(cls):
                _known[cls] = adapter
                return adapter
    return None


def adapter_named(name: str) -> Adapter:
    """The adapter that the schema names. Raises ImportError if its library is missing here, FormatError if there is no
    such adapter."""
    library = name.partition(".")[0]
    try:
        if library in _LIBRARIES:
            for adapter in _adapters_of(library):
                if adapter.name == name:
                    return adapter
    except ImportError as error:
        raise ImportError(
            f"the value contains a {name}, and {error.name or library} cannot be imported here ({error}); "
            f"install it in this environment too"
        ) from error
    raise FormatError(
        f"the value contains a {name!r}, which this untorn does not know; a newer one may have written it"
    )
