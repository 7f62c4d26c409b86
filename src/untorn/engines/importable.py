"""Tell which modules of the server's program a worker process can import, so that objects can be sent there by name.

It searches the files along the worker's path, as the worker will, and imports nothing.
"""

from __future__ import annotations

import importlib.machinery
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType

__all__ = ["can_import", "main_program", "main_stays_here", "why_not", "worker_path"]

#: the directory that '' in sys.path meant when this program began
try:
    _STARTED_IN: str | None = os.getcwd()
except OSError:
    _STARTED_IN = None


def worker_path() -> list[str]:
    """Return sys.path for a worker. '' becomes the directory where this program began, since the worker's current
    directory may be another."""
    path = []
    for entry in sys.path:
        if entry == "":
            path.append(_STARTED_IN or "")
        elif isinstance(entry, str):
            path.append(_absolute(entry))
    return path


def main_program() -> tuple[str, str] | None:
    """Return how a worker runs the main program again: ("module", name) or ("path", file). None if it cannot (an
    interactive session, a program from stdin or ``-c``, a file that is gone) or should not (the ``__main__`` of a
    package, a folder or a zip file, which seldom has ``if __name__ == "__main__":``)."""
    main = sys.modules["__main__"]
    name = getattr(getattr(main, "__spec__", None), "name", None)
    if name is not None:
        return None if name == "__main__" or name.endswith(".__main__") else ("module", str(name))
    file = getattr(main, "__file__", None)
    if file is None:
        return None
    file = _absolute(file)
    return ("path", file) if os.path.isfile(file) else None


#: how many blocks of main_stays_here() are open
_main_stays: list[None] = []


@contextmanager
def main_stays_here() -> Iterator[None]:
    """In the block, no worker runs the main program again, since some are on machines that may not have it. So what it
    defines is sent by value."""
    _main_stays.append(None)
    try:
        yield
    finally:
        _main_stays.pop()


def can_import(name: str) -> bool:
    """Return whether a worker that imports this loaded module gets the same one."""
    if name in ("__main__", "__mp_main__"):
        return not _main_stays and main_program() is not None
    module = sys.modules.get(name)
    if module is None or name.partition(".")[0] in sys.stdlib_module_names:
        return True  # nothing speaks against it
    parent = name.rpartition(".")[0]
    if parent and parent in sys.modules and not can_import(parent):
        return False
    file = getattr(module, "__file__", None)
    if file is None and parent:
        return True  # made by its parent, or a folder
    path = list(getattr(sys.modules[parent], "__path__", [])) if parent in sys.modules else worker_path()
    return _found_there(name, path, module, file)


def why_not(name: str) -> str:
    """Return the reason why a worker cannot import the module of this name."""
    if name in ("__main__", "__mp_main__"):
        return (
            "a worker process cannot import what is defined in the main program: the worker is on another machine, or "
            "the program is interactive, its file is gone, or it is a __main__.py"
        )
    file = getattr(sys.modules.get(name), "__file__", None)
    if file is None:
        return f"a worker process cannot import the module {name!r}: it has no file"
    if not os.path.exists(file):
        return f"a worker process cannot import the module {name!r}: its file {file} is gone"
    return f"a worker process cannot import the module {name!r}: sys.path does not lead to its file {file}"


def _absolute(path: str | os.PathLike[str]) -> str:
    return os.path.join(_STARTED_IN or "", str(os.fspath(path)))


def _found_there(name: str, path: list[str], module: ModuleType, file: str | None) -> bool:
    specs = [importlib.machinery.PathFinder.find_spec(name, path)]
    for finder in sys.meta_path:  # the finders of editable installs are in every process
        if "editable" in getattr(finder, "__module__", type(finder).__module__):
            specs.append(finder.find_spec(name, None if "." not in name else path))
    for spec in specs:
        if spec is None:
            continue
        if file is None and hasattr(module, "__path__"):
            return True  # a package that is a folder, or several
        if file is not None and spec.origin is not None and _same(spec.origin, file):
            return True
    return False


def _same(one: str, other: str) -> bool:
    try:
        return os.path.samefile(one, other)
    except OSError:
        return one == other and _inside_a_file(one)


def _inside_a_file(path: str) -> bool:
    """Return whether the path names a member of a zip file."""
    while path and path != os.path.dirname(path):
        if os.path.isfile(path):
            return True
        path = os.path.dirname(path)
    return False
