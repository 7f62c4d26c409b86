"""What is made from a version, kept once per process: an index, a module, a compiled model.

The results belong to the channel in this process (attached.py), so that all its subscribers share them, also those that
the tasks of a pool unpickle. Only results of the newest version that was asked for are kept.

Threads that need a result in the making wait for the thread that makes it. There is no lock, for the reasons in
attached.py: each step is one operation of a dict::

    thread 1   setdefault((7, build), mine) is mine      build(value) ──> done
    thread 2   setdefault((7, build), mine) is another   waits ─────────────────> the same object
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Hashable
from functools import partial
from types import FunctionType
from typing import Any, final

from untorn.errors import BusyError

__all__ = ["Results", "key_of"]

#: the number of results that are kept; others are forgotten, the oldest first
MAX_RESULTS = 16


def key_of(build: Callable[..., Any]) -> Hashable:
    """Return what tells builders apart. Two functions from one lambda expression are the same builder, unless they
    refer to variables of the function around it; so are two partials of the same function and arguments.

    Raises TypeError for a builder that has no hash."""
    if not callable(build):
        raise TypeError(f"cached(): expected a function of the value, found {type(build).__name__}")
    key: Hashable = build
    if isinstance(build, FunctionType) and not (build.__closure__ or build.__defaults__ or build.__kwdefaults__):
        key = (build.__module__, build.__code__)  # equal code means other things in another module
    elif isinstance(build, partial):
        key = (partial, key_of(build.func), build.args, tuple(build.keywords.items()))
    try:
        hash(key)
    except TypeError as error:
        raise TypeError(f"cached(): {build!r} cannot be told apart from other functions ({error})") from None
    return key


@final
class _Result:
    """The result of one builder for one version, which one thread makes."""

    def __init__(self) -> None:
        self.value: Any = None
        self.ok = False
        self.done = threading.Event()
        self.maker = (os.getpid(), threading.get_ident())


@final
class Results:
    """The results of one channel in this process. Threads may share it."""

    def __init__(self) -> None:
        self._results: dict[tuple[int, Hashable], _Result] = {}

    def get(self, key: Hashable, version: int, make: Callable[[], Any]) -> Any:
        """Return the result for this key and version, and make it if there is none. An error of ``make`` is raised in
        the thread that called it; threads that waited then try it themselves.

        Raises BusyError if ``make`` itself asks for the same result."""
        place, mine = (version, key), _Result()
        while True:
            found = self._results.setdefault(place, mine)
            if found is not mine and not found.done.is_set() and found.maker[0] != mine.maker[0]:
                found = self._results[place] = mine  # this is a forked child, without the thread that was making it
            if found is mine:
                return self._made(place, mine, make)
            if not found.done.is_set() and found.maker == mine.maker:
                raise BusyError(
                    "cached(): this builder runs already in this thread, so it asks for its own result, or a signal "
                    "handler does"
                )
            found.done.wait()
            if found.ok:
                return found.value

    def _made(self, place: tuple[int, Hashable], result: _Result, make: Callable[[], Any]) -> Any:
        self._forget_old()
        try:
            result.value = make()
            result.ok = True
        finally:
            if not result.ok:
                self._results.pop(place, None)
            result.done.set()
        self._forget_old()
        return result.value

    def _forget_old(self) -> None:
        """Forget the results of all versions but the newest, and the oldest results if there are too many."""
        places = list(self._results)
        newest = max((version for version, _ in places), default=0)
        kept = [place for place in places if place[0] == newest][-MAX_RESULTS:]
        for place in set(places).difference(kept):
            self._results.pop(place, None)
