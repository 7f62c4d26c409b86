"""Read the files of this process's control groups: limits and event counts.

Version 2 has one tree under /sys/fs/cgroup; version 1 has one per controller, or per pair of controllers. A limit may
be set at any level, so the files of the process's own group and of all its visible ancestors are read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

__all__ = ["Read", "group_files", "read_text"]

_ROOT = "/sys/fs/cgroup"
_MEMBERSHIP = "/proc/self/cgroup"

#: a file's text, or None if it cannot be read
Read = Callable[[str], str | None]


def read_text(path: str) -> str | None:
    """Return the text of a file under /proc or /sys; None if it cannot be read."""
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read()
    except OSError:
        return None


def group_files(controller: str, *, v1: str, v2: str, read: Read = read_text) -> Iterator[tuple[str, str]]:
    """Yield (path, text) for each readable file with the name ``v1`` or ``v2``, depending on the tree's version. The
    process's own group comes first, then its ancestors."""
    for line in (read(_MEMBERSHIP) or "").splitlines():
        controllers, _, group = line.partition(":")[2].partition(":")
        if controllers == "":
            trees, name = [_ROOT], v2
        elif controller in controllers.split(","):
            trees, name = [f"{_ROOT}/{controllers}", f"{_ROOT}/{controller}"], v1  # either may exist
        else:
            continue
        parts = [part for part in group.split("/") if part not in ("", "..")]
        for depth in range(len(parts), -1, -1):
            for tree in dict.fromkeys(trees):
                path = "/".join([tree, *parts[:depth], name])
                text = read(path)
                if text is not None:
                    yield path, text
                    break
