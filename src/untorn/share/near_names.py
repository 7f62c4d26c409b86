"""Names that somebody may have meant who asked for one that does not exist."""

from __future__ import annotations

import difflib
import itertools
import os

__all__ = ["near_names"]

#: how many files of a directory are looked at, and how many names are told
_FILES, _TOLD = 512, 3
#: how much two names must have in common, from 0 to 1
_COMMON = 0.7


def near_names(path: str) -> str:
    """Return what to add to an error about a channel's file that is not there: "; there is 'policy'", or nothing.

    A queue of the same name is told, too.
    """
    folder, file = os.path.split(path)
    name, ending = os.path.splitext(file)
    try:
        with os.scandir(folder) as entries:
            found = {entry.name for entry in itertools.islice(entries, _FILES)}
    except OSError:
        return ""
    if name + ".queue" in found:
        return f"; there is a queue of that name: untorn.queue(name={name!r})"
    names = sorted(each.removesuffix(ending) for each in found if each.endswith(ending))
    near = difflib.get_close_matches(name, names, _TOLD, _COMMON)
    return f"; there is {' and '.join(map(repr, near))}" if near else ""
