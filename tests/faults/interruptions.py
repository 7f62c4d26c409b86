"""Something else happens inside a call: at every line of untorn's Python code, when the garbage collector runs, or as
an exception where CPython handles signals. Without timers, so that every run of a test does the same.

    at_every_line      the action runs once before each line that the call comes to, as a signal handler would
    at_each_line       the call is repeated, and the action runs once in each, before another line: for one that cannot
                       be done twice, such as close()
    in_finalizers      the action runs in __del__ of garbage that is made all the time
    raised_everywhere  the call is repeated, and KeyboardInterrupt is raised in each at another place: where a function
                       begins, and after each call of a C function has done its work

An action that runs is not interrupted itself.
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
    """Return how often the action ran. ``seen``: lines that were done before, to be done no more."""
    seen = set() if seen is None else seen
    before = len(seen)

    def visit(point: Any) -> None:
        if point not in seen:
            seen.add(point)
            action()

    _traced(call, visit)
    return len(seen) - before


def at_each_line(make: Callable[[], tuple[Action, Action]], *, most: int | None = None, rng: random.Random) -> int:
    """``make()`` gives the next call and its action. Of more lines than ``most``, some are chosen. How many it were."""
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
    """Call it, and visit each line of untorn's code that it comes to."""

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
    """Runs the action when it is collected, and leaves the next of its kind."""

    def __init__(self, action: Action, errors: list[BaseException], counter: list[int]) -> None:
        self.myself = self
        self.rest = action, errors, counter

    def __del__(self) -> None:
        action, errors, counter = self.rest
        if counter[0] < 0:  # it is over, or one runs just now
            return
        count, counter[0] = counter[0], -1
        try:
            action()
        except BaseException as error:  # __del__ could only print it
            errors.append(error)
        counter[0] = count + 1
        _Garbage(action, errors, counter)


def in_finalizers(call: Action, action: Action) -> int:
    """Return how often the action ran. Raises the first error of one."""
    errors: list[BaseException] = []
    counter = [0]
    thresholds = gc.get_threshold()
    gc.collect()
    gc.freeze()  # or each collection would look at everything
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
    """``make()`` gives the next call; ``check`` is asked with each exception, which keeps the frames that it went
    through. Of more places than ``most``, some are chosen. How often one was raised."""
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
    """Call it, and visit each place at which CPython would handle a signal: (event, code, instruction)."""

    def profile(frame: Any, event: str, _: Any) -> None:
        if event in ("call", "c_return") and frame.f_code.co_filename.startswith(_PACKAGE):
            visit((event, frame.f_code, frame.f_lasti))

    sys.setprofile(profile)
    try:
        call()
    finally:
        sys.setprofile(None)


def public_calls(layer: str) -> Iterator[str]:
    """The functions of untorn.__all__, and of its classes that are no errors, themselves and what they have, of "share"
    or of "train"."""
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
    """Run it in its own process and return its result. A hang is a failure that shows its place."""
    with start(_child, body, args) as child:
        result = child.get()
        assert child.join() == 0
        return result


def _child(pipe: Any, body: Callable[..., Any], args: tuple[Any, ...]) -> None:
    faulthandler.dump_traceback_later(WATCHDOG_S - 5, exit=True)
    pipe.put(body(*args))
    faulthandler.cancel_dump_traceback_later()
