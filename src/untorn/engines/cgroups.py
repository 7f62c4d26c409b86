"""Files of the control groups that this process is in: the kernel's word on what it may use, and what happened to it.

Version 2 has one tree under /sys/fs/cgroup; version 1 has one per controller. A limit may be set at any level, so each
question is asked of the process's own group and of all above it, as far as this process sees them.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path, PurePosixPath

__all__ = ["group_files"]

_ROOT = Path("/sys/fs/cgroup")
_MEMBERSHIP = Path("/proc/self/cgroup")


def group_files(
    controller: str, *, v1: str, v2: str, root: Path = _ROOT, membership: Path = _MEMBERSHIP
) -> Iterator[Path]:
    """The files of this name, ``v1`` or ``v2`` by the tree's version, of all the groups. Those that exist."""
    try:
        lines = membership.read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            tree, name = root, v2
        elif controller in controllers.split(","):
            tree, name = root / controller, v1
        else:
            continue
        group = PurePosixPath(path.strip("/"))
        for each in (group, *group.parents):
            if (tree / each / name).is_file():
                yield tree / each / name
