"""Interrupt a call: at every line of untorn's Python code, when the garbage collector runs, or with an exception where
CPython handles signals. There are no timers, so every run of a test does the same.

    at_every_line      the action runs once before each line that the call reaches, as a signal handler would
    at_each_line       the call is repeated, and the action runs once in each call, before another line: for an action
                       that cannot run twice, such as close()
    in_finalizers      the action runs in __del__ of garbage that is created all the time
    raised_everywhere  the call is repeated, and each raises KeyboardInterrupt at another place: at the start of a
                       function, or after a C function has returned

An action is not interrupted itself.
"""

from __future__ import annotations

import faulthandler
import gc
import random
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import untorn
from helpers import WATCHDOG_S, start

_PACKAGE = str(Path(untorn.__file__).parent)

Action = Callable[[], object]


def at_every_line(call: Action, action: Action, seen: set[Any] | None = None) -> int:
    """Return how often the action ran. Lines in ``seen`` are skipped, and new ones are added to it."""
    seen = set() if seen is None else seen
    before = len(seen)

    def visit(point: Any) -> None:
        if point not in seen:
            seen.add(point)
            action()

    _traced(call, visit)
    return len(seen) - before


def at_each_line(make: Callable[[], tuple[Action, Action]], *, most: int | None = None, rng: random.Random) -> int:
    """Return the number of lines. ``make()`` returns the next call and its action. At most ``most`` lines are drawn."""
    lines: list[Any] = []
    call, _ = make()
    _traced(call, lambda point: lines.append(point) if point not in lines else None)
    chosen = lines if most is None or len(lines) <= most else rng.sample(lines, most)
    for line in chosen:
        call, action = make()
        _traced(call, _once(line, action))
    return len(chosen)


def _once(line: Any, action: Action) -> Callable[[Any], None]:
    todo = [action]

    def visit(point: Any) -> None:
        if point == line and todo:
            todo.pop()()

    return visit


def _traced(call: Action, visit: Callable[[Any], None]) -> None:
    """Call it, and visit each line of untorn's code that it reaches."""

    def trace(frame: Any, event: str, _: Any) -> Any:
        if not frame.f_code.co_filename.startswith(_PACKAGE):
            return None
        if event == "line":
            visit((frame.f_code, frame.f_lineno))
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        call()
    finally:
        sys.settrace(before)


class _Garbage:
    """Runs the action when it is collected, and creates its successor."""

    def __init__(self, action: Action, errors: list[BaseException], counter: list[int]) -> None:
        self.myself = self
        self.rest = action, errors, counter

    def __del__(self) -> None:
        action, errors, counter = self.rest
        if counter[0] < 0:  # the call is over, or an action runs now
            return
        count, counter[0] = counter[0], -1
        try:
            action()
        except BaseException as error:  # __del__ could only print it
            errors.append(error)
        counter[0] = count + 1
        _Garbage(action, errors, counter)


def in_finalizers(call: Action, action: Action) -> int:
    """Return how often the action ran. Raises the first error of an action."""
    errors: list[BaseException] = []
    counter = [0]
    thresholds = gc.get_threshold()
    gc.collect()
    gc.freeze()  # without this, each collection would visit all objects
    gc.set_threshold(1)
    try:
        _Garbage(action, errors, counter)
        call()
    finally:
        gc.set_threshold(*thresholds)
        count, counter[0] = counter[0], -1
        gc.collect()
    if errors:
        raise errors[0]
    return count


def raised_everywhere(
    make: Callable[[], Action], check: Callable[[BaseException], object], *, most: int | None = None, rng: random.Random
) -> int:
    """Return the number of exceptions raised. ``make()`` returns the next call. Each exception goes to ``check``,
    and keeps the frames that it passed through. At most ``most`` places are drawn."""
    places: dict[Any, None] = {}
    _profiled(make(), places.setdefault)
    chosen = list(places) if most is None or len(places) <= most else rng.sample(list(places), most)
    raised = 0
    for place in chosen:
        try:
            _profiled(make(), _raise_at(place))
        except KeyboardInterrupt as error:
            raised += 1
            check(error)
    return raised


def _raise_at(place: Any) -> Callable[[Any], None]:
    def visit(point: Any) -> None:
        if point == place:
            sys.setprofile(None)
            raise KeyboardInterrupt(f"{place[0]} in {place[1].co_qualname}, at {place[2]}")

    return visit


def _profiled(call: Action, visit: Callable[[Any], object]) -> None:
    """Call it, and visit each place where CPython would handle a signal: (event, code, instruction)."""

    def profile(frame: Any, event: str, _: Any) -> None:
        if event in ("call", "c_return") and frame.f_code.co_filename.startswith(_PACKAGE):
            visit((event, frame.f_code, frame.f_lasti))

    sys.setprofile(profile)
    try:
        call()
    finally:
        sys.setprofile(None)


def public_calls(layer: str) -> Iterator[str]:
    """Yield the names in untorn.__all__ of functions, of classes other than errors, and of their methods, from "share"
    or from "train"."""
    for name in untorn.__all__:
        thing = getattr(untorn, name)
        if isinstance(thing, type):
            if issubclass(thing, BaseException) or (thing.__module__.split(".")[1] == "train") == (layer == "share"):
                continue
            yield name
            members = {each for cls in thing.__mro__ if cls.__module__.startswith("untorn") for each in vars(cls)}
            yield from sorted(f"{name}.{each}" for each in members if not each.startswith("_"))
        elif layer == "share":
            yield name


def in_a_child(body: Callable[..., Any], *args: Any) -> Any:
    """Run it in its own process and return its result. A hang is a failure, which shows its place."""
    with start(_child, body, args) as child:
        result = child.get()
        assert child.join() == 0
        return result


def _child(pipe: Any, body: Callable[..., Any], args: tuple[Any, ...]) -> None:
    faulthandler.dump_traceback_later(WATCHDOG_S - 5, exit=True)
    pipe.put(body(*args))
    faulthandler.cancel_dump_traceback_later()
