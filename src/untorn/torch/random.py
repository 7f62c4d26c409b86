"""torch's random numbers, seeded for one gradient.

Dropout and most of torch draw from one generator per process. A worker process seeds it, since nothing else draws
there. In the user's process, other threads may draw and seed at any time, and would share their numbers with the
trainer. So if there are other threads, the random operations of this thread use a separate generator with the same
numbers (torch.Generator has the same algorithm as the default one), and the default one is not touched::

    the only thread of its process    the default generator: seeded, used, restored
    other threads exist
        the model draws nothing       no generator; the first gradient shows whether it draws, and later ones check it
        it draws                      a separate generator, through a TorchDispatchMode, which is per thread
        it handles the default generator itself (torch.manual_seed in forward, torch.utils.checkpoint) or calls an
        operation that takes no generator (rand_like)    the default generator, and the threads of untorn take turns

In the last case, other threads of the program that draw meanwhile change the result, and theirs changes, too.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, TypeVar

import numpy as np
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from untorn.engines.default_generators import generators_lock
from untorn.engines.starting import is_worker

__all__ = ["SeededRandom", "generators_of", "seed_generators"]

_T = TypeVar("_T")
_default = torch.default_generator


class SeededRandom:
    """Calls functions that draw torch's random numbers. The same seed gives the same numbers, whatever other threads
    do. Make one for each function that is called repeatedly."""

    def __init__(self) -> None:
        self._draws: bool | None = None
        self._drew = False
        self._needs_default = False
        self._own = torch.Generator()

    def __call__(self, seed: int, function: Callable[[], _T], start_again: Callable[[], None]) -> _T:
        """Return the function's result. If it has to be called again, ``start_again`` is called first."""
        if is_worker() or self._needs_default or len(sys._current_frames()) == 1:  # noqa: SLF001 (documented)
            return _with_the_default(seed, function)
        # the first time it may turn out to handle the default generator itself, and has then touched it
        with generators_lock() if self._draws is None else nullcontext():
            return self._beside_others(seed, function, start_again)

    def _beside_others(self, seed: int, function: Callable[[], _T], start_again: Callable[[], None]) -> _T:
        before = _default.get_state()
        if self._draws is False:
            result = function()
            if torch.equal(before, _default.get_state()):
                return result
            start_again()  # it drew for the first time, or another thread did
        try:
            result = self._with_its_own(seed, function)
            if self._draws is False and self._drew:
                _default.set_state(before)
            self._draws = self._drew or self._draws is not None  # once in doubt, it is not asked again
            return result
        except (_NeedsDefaultError, Exception) as error:
            if not isinstance(error, _NeedsDefaultError) and self._draws is not None:
                raise
            # or there is something that torch does not do in a mode; if it fails for itself, it fails again
            self._needs_default = True
            _default.set_state(before)
        start_again()
        return _with_the_default(seed, function)

    def _with_its_own(self, seed: int, function: Callable[[], _T]) -> _T:
        self._own.manual_seed(seed)
        with nullcontext() if self._draws else _default_watched(), _Mode(self._own) as mode:
            result = function()
        self._drew = mode.drew
        return result


def _with_the_default(seed: int, function: Callable[[], _T]) -> _T:
    with generators_lock():
        before = _default.get_state()
        try:
            _default.manual_seed(seed)
            return function()
        finally:
            _default.set_state(before)


class _NeedsDefaultError(BaseException):
    """Raised through models: a BaseException, so that no except clause of a model catches it."""


class _Mode(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Gives a generator to the operations that draw random numbers."""

    def __init__(self, generator: torch.Generator) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._generator = generator
        self.drew = False

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Return False: True imports torch's compiler, which takes seconds, and nothing is compiled here."""
        return False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if torch.Tag.nondeterministic_seeded in func.tags and kwargs.get("generator") is None:
            func = _taking_a_generator(func)
            kwargs = kwargs | {"generator": self._generator}
            self.drew = True
        return func(*args, **kwargs)


_with_generator: dict[Any, Any] = {}


def _taking_a_generator(operation: Any) -> Any:
    """Return the same operation with an argument for a generator: itself, or one of its overloads."""
    if operation not in _with_generator:
        names = [argument.name for argument in operation._schema.arguments]  # noqa: SLF001 (torch has no public name for it)
        packet = operation.overloadpacket
        found = operation if "generator" in names else None
        for name in packet.overloads() if found is None else ():
            other = getattr(packet, name)
            others = [argument.name for argument in other._schema.arguments]  # noqa: SLF001 (likewise)
            if "generator" in others and [each for each in others if each != "generator"] == names:
                found = other
        _with_generator[operation] = found
    if _with_generator[operation] is None:
        raise _NeedsDefaultError
    return _with_generator[operation]


@contextmanager
def _default_watched() -> Iterator[None]:
    """Raise _NeedsDefaultError at the end if this thread called a method of the default generator. It does so, too,
    where a profiler runs: Python has room for one, and looking takes it."""
    if sys.getprofile() is not None:
        raise _NeedsDefaultError
    touched = False

    def look(frame: Any, event: str, arg: Any) -> None:
        nonlocal touched
        if event == "c_call" and getattr(arg, "__self__", None) is _default:
            touched = True

    sys.setprofile(look)
    try:
        yield
    finally:
        sys.setprofile(None)
        if touched:
            raise _NeedsDefaultError


def generators_of(modules: Iterable[torch.nn.Module]) -> list[Any]:
    """Return the generators of random numbers, of torch, NumPy and Python, that these have as attributes."""
    kinds = (torch.Generator, np.random.Generator, np.random.RandomState, random.Random)
    found = {id(part): part for module in modules for part in vars(module).values() if isinstance(part, kinds)}
    return list(found.values())


def seed_generators(generators: list[Any], seed: int) -> None:
    """Seed each with a seed of its own, made of this one."""
    for index, generator in enumerate(generators):
        own = (seed + index) % 2**63
        if isinstance(generator, torch.Generator):
            generator.manual_seed(own)
        elif isinstance(generator, random.Random):
            generator.seed(own)
        elif isinstance(generator, np.random.RandomState):
            generator.seed(own % 2**32)
        else:
            generator.bit_generator.state = type(generator.bit_generator)(own).state
