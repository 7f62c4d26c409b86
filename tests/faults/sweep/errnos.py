"""The plausible errors of each system call, and the outcomes that an operation may have then.

The contract: an operation that meets an error either succeeds all the same, or raises an error of untorn or an OSError
whose errno, cause or words are the error that the kernel gave. It leaves no descriptor and no mapping behind.
"""

from __future__ import annotations

import errno
import gc
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field

from helpers import descriptors, untorn_mappings
from sweep.tracer import FAIL_CALL, Plan

__all__ = ["Outcome", "broken", "name_of", "plans_of"]

_OPEN = "EACCES EMFILE ENFILE EIO ENOMEM ENOSPC EINTR EPERM EROFS"
_NAMES = "EACCES EPERM EIO ENOSPC EDQUOT EROFS ENOMEM"
_SYNC = "EIO ENOSPC EINTR"

#: by system call; those that are not here cannot fail, or fail only where the program is wrong, or are asyncio's own,
#: asyncio wakes its loop with sendto() and ignores its errors
ERRNOS = {
    "open": _OPEN,
    "openat": _OPEN,
    "memfd_create": "EMFILE ENFILE ENOMEM",
    "close": "EIO EINTR ENOSPC",
    "fcntl": "ENOLCK ENOMEM EINTR EIO EPERM",
    "flock": "ENOLCK EIO EINTR",
    "fallocate": "ENOSPC EDQUOT EIO EINTR EFBIG EOPNOTSUPP EPERM ENOMEM",
    "ftruncate": "EIO EINTR EFBIG EPERM ENOSPC",
    "mmap": "ENOMEM EAGAIN EACCES EPERM",
    "mprotect": "ENOMEM",
    "mremap": "ENOMEM",
    "madvise": "EAGAIN EIO ENOMEM EINVAL",
    "linkat": _NAMES + " EMLINK EOPNOTSUPP",
    "renameat2": _NAMES + " EINVAL ENOSYS",
    "rename": _NAMES,
    "renameat": _NAMES,
    "unlink": "EACCES EPERM EIO EROFS EBUSY",
    "unlinkat": "EACCES EPERM EIO EROFS EBUSY",
    "rmdir": "EACCES EPERM EIO EROFS EBUSY",
    "mkdir": _NAMES,
    "mkdirat": _NAMES,
    "fsync": _SYNC,
    "fdatasync": _SYNC,
    "msync": "EIO ENOMEM EBUSY",
    "futex": "EINTR EAGAIN",
    "futex_waitv": "EINTR EAGAIN ENOMEM ENOSYS EPERM",
    "clone": "EAGAIN ENOMEM",
    "clone3": "EAGAIN ENOMEM ENOSYS",
    "fork": "EAGAIN ENOMEM",
    "vfork": "EAGAIN ENOMEM",
    "read": "EIO EINTR",
    "pread64": "EIO EINTR",
    "write": "EIO EINTR ENOSPC EDQUOT",
    "pwrite64": "EIO EINTR ENOSPC EDQUOT",
    "pidfd_open": "EMFILE ENFILE ENOMEM ENOSYS EPERM",
    "waitid": "EINTR",
    "setsockopt": "ENOBUFS ENOMEM",
    "stat": "EACCES EIO ENOMEM",
    "lstat": "EACCES EIO ENOMEM",
    "newfstatat": "EACCES EIO ENOMEM",
    "fstat": "EIO ENOMEM",
    "statx": "EACCES EIO ENOMEM",
    "fstatfs": "EIO EINTR ENOSYS",
    "statfs": "EIO EINTR ENOSYS",
    "readlink": "EACCES EIO ENOMEM",
    "readlinkat": "EACCES EIO ENOMEM",
    "getdents64": "EIO ENOMEM",
    "eventfd2": "EMFILE ENFILE ENOMEM",
    "pipe2": "EMFILE ENFILE",
    "epoll_create1": "EMFILE ENFILE ENOMEM",
    "epoll_ctl": "ENOMEM ENOSPC",
    "socketpair": "EMFILE ENFILE ENOBUFS",
    "chmod": "EPERM EIO EROFS",
    "fchmod": "EPERM EIO EROFS",
    "getrandom": "EINTR",
    "memfd_secret": "EMFILE",
}
#: the kernel does what it was asked to, and only then says that it failed
_DONE_ALL_THE_SAME = {"close"}
#: there is no room: a CapacityError says so in its own words
_NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.ENOMEM, errno.EFBIG}
#: a call that asks for memory; malloc's own, too, which Python reports in its own words
_MEMORY = {"mmap", "mremap", "brk", "mprotect", "munmap"}
_THREADS = {"clone", "clone3"}


def name_of(number: int) -> str:
    """ENOSPC for 28."""
    return errno.errorcode.get(number, str(number))


def plans_of(call: str, at: int, *, follow_child: bool, keep_failing: bool) -> Iterator[Plan]:
    """A plan for each error that the ``at``-th call of this name may have; EINTR and EAGAIN do not stay."""
    for name in ERRNOS.get(call, "").split():
        if not (keep_failing and name in ("EINTR", "EAGAIN")):
            yield Plan(
                FAIL_CALL,
                at,
                call=call,
                error=getattr(errno, name),
                keep_failing=keep_failing,
                do_call=call in _DONE_ALL_THE_SAME,
                follow_child=follow_child,
            )


@dataclass
class Outcome:
    """The end of an operation, as the victim reports it.

    Attributes:
        kind: "value", or the class of the error.
        numbers: the errno of the error and of its causes.
        texts: their messages.
    """

    kind: str = "value"
    numbers: list[int] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    is_known: bool = True
    descriptors: list[int] = field(default_factory=list)
    mappings: int = 0
    value: str = ""

    @property
    def failed(self) -> bool:
        """Whether it raised an error."""
        return self.kind != "value"

    @classmethod
    def of(cls, error: BaseException | None) -> Outcome:
        """Return what an error was, without keeping it."""
        from untorn import UntornError

        if error is None:
            return cls()
        outcome = cls(kind=f"{type(error).__module__}.{type(error).__name__}".removeprefix("builtins."))
        outcome.is_known = isinstance(error, UntornError | OSError)
        each: BaseException | None = error
        while each is not None:
            outcome.add(str(each))
            if isinstance(each, OSError) and each.errno:
                outcome.numbers.append(each.errno)
            each = each.__cause__ or (None if each.__suppress_context__ else each.__context__)
        return outcome

    def add(self, text: str) -> None:
        """Add what the error says, or something that belongs to it."""
        self.texts.append(text)
        self.numbers += map(int, re.findall(r"\[Errno (\d+)\]", text))

    def look_for_leaks(self, fds: set[int], mappings: int) -> None:
        """Compare what this process has open with what it had."""
        gc.collect()
        self.descriptors = sorted(set(descriptors()) - fds)
        self.mappings = len(untorn_mappings()) - mappings


def broken(outcome: Outcome, error: int, call: str) -> list[str]:
    """Return how this outcome breaks the contract; ``error`` is 0 where no call failed."""
    problems = []
    said = f"{outcome.kind}: {' / '.join(outcome.texts)}"
    if outcome.descriptors:
        problems.append(f"descriptors {outcome.descriptors} stay open ({said})")
    if outcome.mappings > 0:
        problems.append(f"{outcome.mappings} mappings stay ({said})")
    if not outcome.failed:
        return problems
    if not error:
        return [*problems, said]
    out_of_memory = outcome.kind == "MemoryError" and (error == errno.ENOMEM or call in _MEMORY)
    out_of_memory |= outcome.kind == "RuntimeError" and call in _THREADS  # "can't start new thread"
    if not outcome.is_known and not out_of_memory:
        problems.append(f"not an error of untorn or of the system: {said}")
    if not out_of_memory and not _tells(outcome, error, call):
        problems.append(f"does not say the cause: {said}")
    return problems


def _tells(outcome: Outcome, error: int, call: str) -> bool:
    if error in outcome.numbers or any(os.strerror(error) in text for text in outcome.texts):
        return True
    return outcome.kind == "untorn.errors.CapacityError" and (error in _NO_ROOM or call in _THREADS)
