"""Set the number of threads that numerical libraries use in this process while a trainer computes in it.

The number can change the last bit of a matrix product, so where this process computes (the serial engine, evaluation, a
step of torch.optim) it must be that of the worker processes. When the last computation ends the number must be as
before, even if several threads have trainers of their own. Libraries keep the number in two ways:

==================== =============================================================================================
per thread           OpenMP, and with it PyTorch and its MKL: each thread sets and restores its own. PyTorch's
                     set_num_threads() is not used, because it also sets the number of threads that start later
per process          OpenBLAS, MKL, BLIS: the first thread that computes sets it and the last one restores it. Two
                     threads that need different numbers take turns: one waits until no thread computes with the other
==================== =============================================================================================

Other computations of the program that run meanwhile use this number too, in libraries of the second kind.
"""

from __future__ import annotations

import ctypes
import os
import sys
import threading
import time
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import cache
from typing import Any

__all__ = ["threads_limited", "use_threads"]

#: the age up to which the list of loaded libraries is used if no module was imported meanwhile
_LIST_AGE_S = 1.0
#: how long a thread lets threads go first that wait for their turn with another number
_COURTESY_S = 1.0
#: how long a computation inside another one, with another number, waits for other threads
_NESTED_S = 10.0


@contextmanager
def threads_limited(threads: int) -> Iterator[None]:
    """Have BLAS libraries, and PyTorch if it is loaded, use this number of threads in the block. Blocks while other
    threads are inside with another number. Raises RuntimeError if this thread is inside already and they do not leave
    in time."""
    libraries = _libraries()
    with ExitStack() as stack:
        torch = sys.modules.get("torch")
        if torch is not None and hasattr(torch, "get_num_threads"):  # not one that is being imported
            torch.get_num_threads()  # a thread's first call gives it the process's number, over what was set before
            stack.enter_context(_mkl_of_torch_limited(torch, threads))
        own = [library for library in libraries if "openmp" in (library.user_api, _layer_of(library))]
        for library in own:
            stack.callback(library.set_num_threads, library.num_threads)
        stack.enter_context(_turns.taken(threads, [library for library in libraries if library not in own]))
        for library in own:
            library.set_num_threads(threads)
        if torch is not None and hasattr(torch, "get_num_threads") and torch.get_num_threads() != threads:
            # it was built with threads of its own, or threadpoolctl is missing
            stack.callback(torch.set_num_threads, torch.get_num_threads())
            torch.set_num_threads(threads)
        yield


def use_threads(threads: int) -> None:
    """Set PyTorch's number of threads in a worker process, in case the program has changed what the environment set."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.get_num_threads() != threads:
        torch.set_num_threads(threads)


class _Turns:
    """The threads that compute, their number of library threads, and the libraries' numbers before.

    Signal handlers and finalizers may enter and leave in the middle of any line, so the lock is reentrant, a thread is
    counted before the libraries are set, and no longer counted before they are restored.
    """

    def __init__(self) -> None:
        self._lock = threading.RLock()  # not taken through Condition, in whose code Ctrl-C could leave it taken
        self._changed = threading.Condition(self._lock)
        self._threads = 0
        #: how often each thread has entered
        self._inside: dict[int, int] = {}
        self._before: dict[str, tuple[Any, int]] = {}
        self._waiting = 0

    @contextmanager
    def taken(self, threads: int, libraries: list[Any]) -> Iterator[None]:
        """Set these libraries to this number of threads in the block."""
        me = threading.get_ident()
        with self._lock:
            outer = None
            if me in self._inside and self._threads != threads:
                outer = (self._threads, self._leave(me))
            try:
                self._enter(me, threads, 1, libraries, nested=outer is not None)
            except BaseException:
                if outer is not None:
                    self._enter(me, *outer, libraries, nested=True)
                raise
        try:
            yield
        finally:
            with self._lock:
                self._leave(me, times=1)
                if outer is not None:
                    self._enter(me, *outer, libraries, nested=True)

    def _enter(self, me: int, threads: int, times: int, libraries: list[Any], *, nested: bool) -> None:
        if me not in self._inside:
            self._wait_for_turn(threads, nested=nested)
        self._threads = threads
        self._inside[me] = self._inside.get(me, 0) + times
        for library in libraries:
            if library.filepath not in self._before:
                self._before[library.filepath] = library, library.num_threads
            if library.num_threads != threads:
                _set(library, threads)

    def _wait_for_turn(self, threads: int, *, nested: bool) -> None:
        if self._waiting and self._inside and not nested:
            self._changed.wait_for(lambda: not self._waiting, _COURTESY_S)
        self._waiting += 1
        try:
            mine = self._changed.wait_for(
                lambda: not self._inside or self._threads == threads, _NESTED_S if nested else None
            )
        finally:
            self._waiting -= 1
            self._changed.notify_all()
        if not mine:
            raise RuntimeError(
                f"threads_per_worker: a computation with {threads} began inside one with another number while other "
                f"threads still compute with {self._threads}; give trainers that compute inside each other the same "
                "number"
            )

    def _leave(self, me: int, times: int | None = None) -> int:
        """Leave ``times`` times, or completely if None. Returns how often the thread was inside."""
        inside = self._inside.pop(me, 0)
        if times is not None and inside > times:
            self._inside[me] = inside - times
        if not self._inside:
            self._put_back()
            self._changed.notify_all()
        return inside

    def _put_back(self) -> None:
        while True:
            try:
                _, (library, threads) = self._before.popitem()
            except KeyError:  # a signal handler may have taken the last one
                return
            _set(library, threads)

    def only_this_thread(self) -> None:
        """Forget the other threads in a child that was just forked: they do not exist there."""
        self._lock, self._waiting = threading.RLock(), 0
        self._changed = threading.Condition(self._lock)
        me = threading.get_ident()
        self._inside = {me: self._inside[me]} if me in self._inside else {}
        if not self._inside:
            self._put_back()


_turns = _Turns()
os.register_at_fork(after_in_child=_turns.only_this_thread)

# -- the libraries


class _Listed:
    """The libraries found by the last search, its time, and the number of modules then."""

    libraries: tuple[Any, ...] = ()
    when_s = 0.0
    modules = 0


def _libraries() -> tuple[Any, ...]:
    """Return threadpoolctl's controllers of the loaded libraries. A search takes a millisecond."""
    if _Listed.modules == len(sys.modules) and time.monotonic() < _Listed.when_s + _LIST_AGE_S:
        return _Listed.libraries
    try:
        from threadpoolctl import ThreadpoolController
    except ImportError:
        warnings.warn(
            "threadpoolctl is not installed, so BLAS libraries choose their number of threads in this process; the "
            "last bits of its results may differ from the workers': pip install 'untorn[train]'",
            RuntimeWarning,
            stacklevel=5,
        )
        return ()
    libraries = tuple(ThreadpoolController().lib_controllers)
    _Listed.libraries, _Listed.when_s, _Listed.modules = libraries, time.monotonic(), len(sys.modules)
    return libraries


def _layer_of(library: Any) -> str:
    """Return which threads an OpenBLAS uses, if threadpoolctl sets their number through it; else an empty string."""
    return str(library.threading_layer) if hasattr(library, "clear_controlling_thread") else ""


def _set(library: Any, threads: int) -> None:
    """Set the number of a library that has one per process. Later versions of threadpoolctl let only the first thread
    that sets OpenBLAS's number change it, and ignore the others, unless that thread releases it."""
    release = getattr(library, "clear_controlling_thread", None)
    if release is not None:
        release(force=True)
    library.set_num_threads(threads)
    if release is not None:
        release()


@contextmanager
def _mkl_of_torch_limited(torch: Any, threads: int) -> Iterator[None]:
    """Limit the MKL inside PyTorch, which threadpoolctl does not see. It follows OpenMP, except in threads that called
    torch.set_num_threads()."""
    set_local = _mkl_set_num_threads_local(torch.__file__)
    if set_local is None:
        yield
        return
    before = set_local(threads)  # 0 if the thread had no number of its own
    try:
        yield
    finally:
        set_local(before)


@cache
def _mkl_set_num_threads_local(torch_file: str) -> Any:
    try:
        library = ctypes.CDLL(os.path.join(os.path.dirname(torch_file), "lib", "libtorch_cpu.so"))
        function = library.MKL_Set_Num_Threads_Local
    except (OSError, AttributeError):
        return None
    function.argtypes, function.restype = [ctypes.c_int], ctypes.c_int
    return function
