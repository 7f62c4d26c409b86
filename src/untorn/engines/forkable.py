"""Tell why this process must not be forked now, from what the kernel says about it."""

from __future__ import annotations

import os
from collections.abc import Collection
from pathlib import Path

__all__ = ["why_not_forkable"]

#: descriptors that may be shared: they have no position
_HARMLESS = ("/dev/null", "/dev/urandom", "/dev/random")
#: a mapping that several processes may write to, of memory that is not a device for random numbers
_SHARED_AND_WRITABLE = "rw-s"


def why_not_forkable(known: Collection[int]) -> str | None:
    """Return the reason, or None if there is none.

    Args:
        known: the descriptors that this process has for its own purposes.
    """
    threads = os.listdir("/proc/self/task")
    if len(threads) > 1:
        names = sorted(_name_of_thread(each) for each in threads if each != str(os.getpid()))
        return f"it has {len(threads)} threads ({', '.join(names)})"
    if _has_children():
        return "its modules have started a process"
    for name in os.listdir("/proc/self/fd"):
        try:
            target = os.readlink(f"/proc/self/fd/{name}")
        except FileNotFoundError:
            continue  # of the listing itself
        if int(name) not in known and target not in _HARMLESS:
            return f"its modules have opened {target}"
    for line in Path("/proc/self/maps").read_text(errors="replace").splitlines():
        if _SHARED_AND_WRITABLE in line.split(maxsplit=2)[1]:
            return f"its modules have mapped memory that its forks would share ({line.split(maxsplit=5)[-1]})"
    return None


def _name_of_thread(number: str) -> str:
    try:
        return Path(f"/proc/self/task/{number}/comm").read_text().strip()
    except OSError:
        return "ended meanwhile"


def _has_children() -> bool:
    try:
        os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return False
    return True
