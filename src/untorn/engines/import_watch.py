"""Watch what modules do while a fork server imports them.

A worker that is spawned imports them itself; forks share what the server's import did. Where that makes a difference
that can be seen, the server is not forked:

=============================== ====================================================================================
a generator seeded from entropy all forks would draw the same numbers from it, spawned workers each other ones
a random identifier, the        all forks would have the same one, as the name of a file, say
process id
a function to call at exit      each fork would call it, for instance to remove the one temporary directory of all
a temporary file or folder      all forks would have the same one
a timer                         forks do not have it
a file that was read            is known by its time and size: the server ends when it has changed
=============================== ====================================================================================

The default generators of Python, NumPy and PyTorch are set in each fork as in a spawned worker: from entropy, unless
the modules have seeded them.
"""

from __future__ import annotations

import atexit
import importlib
import os
import random
import signal
import site
import sys
import sysconfig
import tempfile
import weakref
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

__all__ = ["ImportWatch"]

#: a generator that has moved on by more than this number of blocks, of 624 numbers each, counts as seeded by a module
_MAX_TWISTS = 200
#: modules whose generators are not drawn from unless they are asked for by name, or that make another one in a fork
_HARMLESS = ("scipy.", "tempfile")
#: modules that ask for the id of the process each time they need it
_ASK_ANEW = ("logging", "tempfile")
_NOT_ON_DISK = ("/proc/", "/sys/", "/dev/")
#: PyTorch begins with a seed of 64 random bits
_LARGEST_CHOSEN_SEED = 1 << 32
_Stamp = tuple[int, int, int] | None


class ImportWatch:
    """Watches the imports in its block; used once.

    Attributes:
        reasons: why this process must not be forked.
    """

    def __init__(self) -> None:
        self.reasons: list[str] = []
        self._active = False
        self._undo: list[Callable[[], None]] = []
        self._files: dict[str, _Stamp] = {}
        self._roots = _library_folders()
        self._finalizers: set[Any] = set()
        self._python_state: Any = None
        self._numpy_state: Any = None
        #: set the generators in a fork
        self._set: list[Callable[[], None]] = []

    def __enter__(self) -> ImportWatch:
        self._finalizers = set(_finalizers())
        self._python_state, self._numpy_state = random.getstate(), np.random.get_state(legacy=False)
        self._replace(np.random.bit_generator, "randbits", self._drawing)
        self._replace(random.Random, "seed", self._seeding)
        self._replace(atexit, "register", self._registering)
        self._replace(os, "getpid", lambda found: self._telling(found, "asked for the id of its process"))
        for holder, name in ((os, "urandom"), (random, "_urandom")):  # the second is that of secrets
            self._replace(holder, name, lambda found: self._telling(found, "made a random identifier"))
        self._active = True
        sys.addaudithook(self._see)  # it stays for the life of the process, and does nothing after the block
        return self

    def __exit__(self, *_: object) -> None:
        self._active = False
        while self._undo:
            self._undo.pop()()
        for module in list(sys.modules.values()):
            file = getattr(module, "__file__", None)
            if isinstance(file, str):
                self._note_file(file)
        self._look_at_generators()
        self._look_at_finalizers()
        if any(signal.getitimer(which)[0] for which in (signal.ITIMER_REAL, signal.ITIMER_VIRTUAL, signal.ITIMER_PROF)):
            self.reasons.append("its modules have set a timer")
        self._files |= {root: _stamp(root) for root in self._roots}

    def import_modules(self, names: Iterable[str]) -> None:
        """Import these modules. One that fails is a reason: a worker would run it again."""
        for name in names:
            try:
                importlib.import_module(name)
            except Exception as error:
                self.reasons.append(f"the module {name} cannot be imported ({type(error).__name__}: {error})")
                return

    def changed_file(self) -> str | None:
        """Return the path of a file that was read at import and has changed since; None if there is none."""
        return next((path for path, stamp in self._files.items() if _stamp(path) != stamp), None)

    def set_generators(self) -> None:
        """Set the default generators in a fork as they would be in a spawned worker."""
        for each in self._set:
            each()

    # -- files

    def _see(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self._active or event not in ("open", "tempfile.mkdtemp", "tempfile.mkstemp"):
            return
        if event != "open":
            self.reasons.append(f"its modules have made {arguments[0]}, which would be that of all forks")
            return
        path, mode, flags = arguments
        reads = mode is None or not set(mode) & set("wax+")
        if reads and (flags is None or flags & os.O_ACCMODE == os.O_RDONLY) and isinstance(path, str | bytes):
            self._note_file(os.fsdecode(path))

    def _note_file(self, path: str) -> None:
        path = os.path.abspath(path)
        if path.endswith(".pyc") or path.startswith(_NOT_ON_DISK) or path in self._files:
            return
        if not self._is_of_a_library(path):
            self._files[path] = _stamp(path)

    def _is_of_a_library(self, path: str) -> bool:
        """Return whether it is below a folder that changes when something is installed there."""
        return path.startswith(tuple(root + os.sep for root in self._roots))

    # -- calls

    def _replace(self, holder: Any, name: str, derive: Callable[[Any], Any]) -> None:
        before = getattr(holder, name)
        setattr(holder, name, derive(before))
        self._undo.append(lambda: setattr(holder, name, before))

    def _drawing(self, randbits: Callable[[int], int]) -> Callable[[int], int]:
        def draw(bits: int) -> int:
            self._note_entropy()
            return randbits(bits)

        return draw

    def _seeding(self, original: Any) -> Any:
        def seed(generator: random.Random, a: Any = None, version: int = 2) -> None:
            if a is None:
                self._note_entropy()
            original(generator, a, version)

        return seed

    def _registering(self, register: Any) -> Any:
        def noted(function: Any, /, *arguments: Any, **more: Any) -> Any:
            if self._active and self._is_of_the_user(caller := _caller()):
                self.reasons.append(f"the module {caller} has registered a function to call at exit")
            return register(function, *arguments, **more)

        return noted

    def _telling(self, function: Any, what: str) -> Any:
        def told(*arguments: Any) -> Any:
            if self._active and (module := self._user_above()) is not None:
                self.reasons.append(f"the module {module} has {what}")
            return function(*arguments)

        return told

    def _user_above(self) -> str | None:
        """Return the name of the module of the user that is being imported and has called the caller's caller, by the
        standard library or by itself; None if it is that of a library."""
        frame = sys._getframe(2)  # noqa: SLF001 (as logging does)
        name = str(frame.f_globals.get("__name__"))
        if name in _ASK_ANEW:
            return None
        while frame.f_back is not None and not name.startswith("importlib."):
            if self._is_of_the_user(name):
                return name
            frame = frame.f_back
            name = str(frame.f_globals.get("__name__"))
        return None

    def _note_entropy(self) -> None:
        if self._active and not (caller := _caller()).startswith(_HARMLESS):
            self.reasons.append(f"the module {caller} has made a random generator without a seed")

    def _is_of_the_user(self, name: str) -> bool:
        if name in ("__main__", "__mp_main__"):
            return True
        file = getattr(sys.modules.get(name), "__file__", None)
        return isinstance(file, str) and not self._is_of_a_library(file) and name.partition(".")[0] != "untorn"

    # -- what is left of them

    def _look_at_finalizers(self) -> None:
        for finalizer, info in _finalizers().items():
            if finalizer in self._finalizers or not info.atexit:
                continue
            module = str(getattr(info.func, "__module__", None))
            if module == tempfile.__name__ or self._is_of_the_user(module):
                self.reasons.append(f"its modules have left a finalizer for its exit, {info.func!r}")
                return

    def _look_at_generators(self) -> None:
        """Find out which of the default generators the modules have seeded. The others get a seed in each fork."""
        state = random.getstate()
        if not _drawn(_words(self._python_state), _words(state)):
            self._set.append(lambda: random.setstate(state))  # otherwise a fork seeds it, by itself
        before, now = self._numpy_state, np.random.get_state(legacy=False)
        is_first = now["bit_generator"] == before["bit_generator"]  # the program may have put another one there
        if is_first and _drawn(before["state"]["key"], now["state"]["key"]):
            self._set.append(np.random.seed)
        generator = getattr(sys.modules.get("torch"), "default_generator", None)
        if generator is not None and generator.initial_seed() > _LARGEST_CHOSEN_SEED:
            self._set.append(generator.seed)


def _caller() -> str:
    """Return the name of the module that called the function that called this one's caller."""
    frame = sys._getframe(2)  # noqa: SLF001 (as logging does)
    while frame.f_back is not None and frame.f_globals.get("__name__") in (__name__, "random"):
        frame = frame.f_back
    return str(frame.f_globals.get("__name__"))


def _words(state: Any) -> Any:
    return np.array(state[1][:-1], np.uint32)


def _drawn(before: Any, now: Any) -> bool:
    """Return whether a Mersenne twister comes from one state to another by drawing a limited number of times."""
    twister, key = np.random.MT19937(0), before
    for _ in range(_MAX_TWISTS):
        if np.array_equal(key, now):
            return True
        twister.state = {"bit_generator": "MT19937", "state": {"key": key, "pos": 624}}
        twister.random_raw()
        key = twister.state["state"]["key"]
    return False


def _finalizers() -> dict[Any, Any]:
    return dict(weakref.finalize._registry)  # type: ignore[attr-defined]  # noqa: SLF001 (there is no other way)


def _stamp(path: str) -> _Stamp:
    """Return what changes with a file; None if it is not there."""
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino


def _library_folders() -> list[str]:
    folders = [*sysconfig.get_paths().values(), site.getusersitepackages()]
    folders += [each for each in sys.path if each.endswith(("site-packages", "dist-packages"))]
    paths = (os.path.abspath(each) for each in folders)
    return sorted({path for path in paths if path.endswith("-packages") or path == sysconfig.get_path("stdlib")})
