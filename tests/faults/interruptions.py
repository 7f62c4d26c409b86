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

import gc
import random
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import untorn

_PACKAGE = str(Path(untorn.__file__).parent)

Action = Callable[[], object]


def at_every_line(call: Action, action: Action, seen: set[Any] | None = None) -> int:
    """How often the action ran. ``seen``: lines that were done before, to be done no more."""
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
    """How often the action ran. Raises the first error of one."""
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


def raised_everywhere(make: Callable[[], Action], check: Callable[[BaseException], object]) -> int:
    """``make()`` gives the next call; ``check`` is asked with each exception, which keeps the frames that it went
    through. How often one was raised."""
    seen: set[Any] = set()
    while True:
        call, before = make(), len(seen)
        try:
            _profiled(call, seen)
        except KeyboardInterrupt as error:
            check(error)
        if len(seen) == before:
            return before


def _profiled(call: Action, seen: set[Any]) -> None:
    """Call it, and raise KeyboardInterrupt at the first place that was not seen."""

    def profile(frame: Any, event: str, _: Any) -> None:
        point = event, frame.f_code, frame.f_lasti
        if event in ("call", "c_return") and frame.f_code.co_filename.startswith(_PACKAGE) and point not in seen:
            seen.add(point)
            sys.setprofile(None)
            raise KeyboardInterrupt(f"{event} in {frame.f_code.co_qualname}, line {frame.f_lineno}")

    sys.setprofile(profile)
    try:
        call()
    finally:
        sys.setprofile(None)
