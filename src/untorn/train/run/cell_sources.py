"""The lines of source in the traceback of a worker, for functions that were sent to it by value.

Such a function comes from a notebook's cell or an interactive session. The worker has neither its file nor its source,
and cloudpickle gives all of them the same file name. This process has both.
"""

from __future__ import annotations

import linecache
import re
import sys
from collections.abc import Iterable, Iterator
from types import CodeType, FunctionType

__all__ = ["with_sources"]

_FRAME = re.compile(r'^  File "<dynamic-code>", line (\d+), in (.+)\n(?!    )', re.MULTILINE)


def with_sources(traceback: str) -> str:
    """Return the traceback with the line of source under each frame that lacks one, if it can be found in the functions
    and classes of the main program. Where two could be meant, nothing is added."""
    if '"<dynamic-code>"' not in traceback:
        return traceback
    codes = set(_codes(getattr(sys.modules.get("__main__"), "__dict__", {}).values()))

    def frame(found: re.Match[str]) -> str:
        number, name = int(found[1]), found[2]
        lines = {
            (code.co_filename, linecache.getline(code.co_filename, number).strip())
            for code in codes
            if code.co_name == name and number in {line for *_, line in code.co_lines()}
        }
        if len(lines) != 1:
            return found[0]
        ((filename, line),) = lines
        return f'  File "{filename}", line {number}, in {name}\n' + (f"    {line}\n" if line else "")

    return _FRAME.sub(frame, traceback)


def _codes(values: Iterable[object]) -> Iterator[CodeType]:
    """Yield the code of these functions, of the methods of these classes, and of functions inside of them."""
    for each in list(values):
        value = each.__func__ if isinstance(each, staticmethod | classmethod) else each
        if isinstance(value, FunctionType) and value.__module__ == "__main__":
            yield from _nested(value.__code__)
        elif isinstance(value, type) and value.__module__ == "__main__":
            yield from _codes(part for part in vars(value).values() if not isinstance(part, type))


def _nested(code: CodeType) -> Iterator[CodeType]:
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _nested(constant)
