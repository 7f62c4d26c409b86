"""Find the modules that a pickle names, so that they can be imported before it is loaded."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator

__all__ = ["modules_named"]

#: protocol 4 and later write a module and a name as two short texts, each followed by its memo's mark, the first time
_GLOBAL = re.compile(rb"\x8c.([A-Za-z_][\w.]*)\x94(?:\x8c.[\w.<>]+\x94|h.|j....)\x93", re.DOTALL)
_OF_THE_PROGRAM = ("__main__", "__mp_main__", "builtins")


def modules_named(content: bytes) -> Iterator[str]:
    """Yield the names of modules of this process that the pickle refers to, in its order. It may miss some."""
    for found in _GLOBAL.finditer(content):
        name = found[1].decode()
        if name in sys.modules and name not in _OF_THE_PROGRAM:
            yield name
