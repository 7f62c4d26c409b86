"""Private mounts of a process, for tests of file systems. They need root, and end with the process."""

from __future__ import annotations

import ctypes
import os

_CLONE_NEWNS, _MS_REC, _MS_PRIVATE = 0x20000, 0x4000, 0x40000


def mount(kind: str, target, *, options: str = "", flags: int = 0) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    arguments = (kind.encode(), os.fsencode(target), kind.encode(), ctypes.c_ulong(flags), options.encode())
    if libc.mount(*arguments) != 0:
        raise OSError(ctypes.get_errno(), f"mount {kind}: {os.strerror(ctypes.get_errno())}")


def own_mounts() -> None:
    """Hide what this process mounts from now on from all others; the mounts end with it."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(_CLONE_NEWNS) != 0:
        raise OSError(ctypes.get_errno(), "no mount name space of one's own")
    mount("none", "/", flags=_MS_REC | _MS_PRIVATE)
