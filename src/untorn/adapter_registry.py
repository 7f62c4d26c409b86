"""The registry of adapters, which convert values of other libraries to trees and back.

An *adapter* consists of two pure functions and a name for the schema. share itself does not know any adapter: those in
``untorn.adapters`` are registered under the name of their library, and their module is imported when a value of that
library is published or read. So sharing a sparse matrix imports scipy only in processes that have one, and reading it
never imports anything but the library that this table names. FrozenDict is registered in the same way.
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
        meta: the properties of the value that are not data: plain values and tuples that JSON can hold. Versions with
            other meta have another schema, so it must not contain anything that changes with every version.
        children: the data, by name, of any type that can be shared.
    """

    meta: Any
    children: dict[str, Any]


@dataclass(frozen=True)
class Adapter:
    """The functions that share one kind of value.

    Attributes:
        name: ``library.kind``, as in the schema; it never changes.
        matches: returns whether the adapter is for values of this class.
        take_apart: value -> Parts. Copies nothing if possible; raises ValueError or TypeError for unsupported values.
        put_together: (meta, with lists for tuples; children by name) -> value, over the children's memory.
        private: whether the library may write even to read-only memory, so that it gets a private copy-on-write
            mapping.
        unpickles: whether the value may contain pickles; put_together then gets the reader's allow_pickle as a third
            argument.
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
    """Register the adapters in ``module`` for values whose class, or a base of it, comes from ``library``."""
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
    """Return the adapter for values of this class, or None."""
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
    """Return the adapter that the schema names. Raises ImportError if its library is missing here, FormatError if there
    is no such adapter."""
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
