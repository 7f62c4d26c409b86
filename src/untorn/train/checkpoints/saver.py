"""The checkpoints of one training: which there are, which stay, and the thread that writes the next.

A checkpoint is written while training goes on: the weights and the optimizer's state of one step are one version, so
whoever holds a snapshot of it may take any time. Nothing waits for the disk, unless it is slower than an epoch::

    fit ── snapshot of step 120, progress ──> writing ──> step-000000000120.safetensors
        ── snapshot of step 160, progress ──> waiting
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import math
import os
import re
import time
import warnings
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from untorn import _core
from untorn.descriptors import keep
from untorn.errors import BusyError, FormatError
from untorn.share import Snapshot, lowlevel
from untorn.train.checkpoints import checkpoint
from untorn.train.checkpoints.checkpoint import Checkpoint, Progress

__all__ = ["Saver", "make_saver", "newest", "steps_to_keep"]

_NAME = re.compile(r"step-(\d{12})\.safetensors")
_SCRATCH = re.compile(r"\.step-\d{12}\.safetensors\.writing")
#: one that is being written, and one that waits for it
_AT_ONCE = 2
#: what a file system without locks says
_NO_LOCKS = (errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL, errno.ENOLCK)


def newest(directory: Path) -> Checkpoint | None:
    """The newest checkpoint that is whole, read and checked; None if there is none at all.

    Warns of damaged ones that it passes over, naming each and what is wrong with it. Raises FormatError if all are
    damaged; OSError if one cannot be read, since it may be whole.
    """
    damaged: list[Exception] = []
    for _, path in sorted(_checkpoints(directory).items(), reverse=True):
        try:
            found = checkpoint.read(path)
        except (FormatError, FileNotFoundError) as error:  # the latter of a link that leads nowhere
            damaged.append(error)
            continue
        for each in damaged:
            warnings.warn(f"{each}; going on from {path.name}, the one before", RuntimeWarning, stacklevel=4)
        return found
    if damaged:
        raise FormatError(
            f"{directory}: none of the {len(damaged)} checkpoints can be read ({damaged[0]}); "
            "remove them to begin again"
        )
    return None


def make_saver(directory: str | os.PathLike[str] | None, *, resume: bool, every_s: float | None, keep: int) -> Saver:
    """The saver that these arguments of fit ask for. Raises ValueError or TypeError."""
    if resume and directory is None:
        raise ValueError("resume=True needs checkpoint_dir=: the directory to go on from")
    if every_s is not None and not every_s >= 0:
        raise ValueError(f"checkpoint_every_s: expected 0 or more seconds, or None, found {every_s}")
    if isinstance(keep, bool) or not isinstance(keep, int):
        raise TypeError(f"keep: expected an int, found {type(keep).__name__}")
    if keep < 1:
        raise ValueError(f"keep: expected 1 or more, found {keep}")
    return Saver(None if directory is None else Path(directory).absolute(), every_s=every_s, keep=keep)


def steps_to_keep(scores: dict[int, float | None], keep: int) -> set[int]:
    """Of the checkpoints at these steps, the last ``keep``, and the one with the lowest score (the first of equals)."""
    known = [(score, step) for step, score in scores.items() if score is not None and not math.isnan(score)]
    return set(sorted(scores)[-keep:]) | {step for _, step in sorted(known)[:1]}


class Saver:
    """Writes the checkpoints of one fit into one directory. Use as a context manager.

    The directory is made if it is not there. It is locked until the end, by the kernel: raises BusyError if another
    process writes checkpoints there.

    Args:
        directory: where; None writes nothing.
        every_s: seconds between two checkpoints inside an epoch, at least; None for none inside.
        keep: how many stay, beside the best.
    """

    def __init__(self, directory: Path | None, *, every_s: float | None, keep: int) -> None:
        self.directory = directory
        self._every_s = math.inf if every_s is None or directory is None else every_s
        self._keep = keep
        self._scores: dict[int, float | None] = {}
        self._lock, self._owner = -1, os.getpid()
        self._thread: ThreadPoolExecutor | None = None
        self._running: list[Future[None]] = []
        self._began_at = time.monotonic()

    def __enter__(self) -> Saver:
        if self.directory is None:
            return self
        checkpoint.check_installed()
        self.directory.mkdir(parents=True, exist_ok=True)
        self._lock = _locked(self.directory)
        self._thread = ThreadPoolExecutor(1, "untorn-checkpoint")
        return self

    def begin(self, step: int, *, resume: bool) -> None:
        """Training begins at this step. What is later is damaged, if this resumes; else it is of another training, and
        FileExistsError says so."""
        if self.directory is None:
            return
        for entry in self.directory.iterdir():
            if _SCRATCH.fullmatch(entry.name):  # of a process that was killed
                checkpoint.remove_scratch(entry)
        for at, path in sorted(_checkpoints(self.directory).items(), reverse=True):
            if at > step and not resume:
                raise FileExistsError(
                    f"checkpoint_dir {self.directory} has a checkpoint of step {at}, and this training is at step "
                    f"{step}; resume=True goes on from there, another directory keeps them apart"
                )
            if at > step:
                if not path.is_dir():  # which is nobody's checkpoint
                    path.unlink()
                continue
            self._scores[at] = None
            with contextlib.suppress(FormatError, FileNotFoundError):
                self._scores[at] = checkpoint.read_progress(path).score

    def due(self) -> bool:
        """Is it time for one inside an epoch? Raises what went wrong with those before."""
        self._settle()
        return not self._running and time.monotonic() - self._began_at >= self._every_s

    def save(self, snapshot: Snapshot, progress: Progress, records: NDArray[Any]) -> None:
        """Write a checkpoint in the background; waits only if one waits already. Raises what went wrong with those
        before."""
        assert self._thread is not None
        self._settle()
        while len(self._running) >= _AT_ONCE:
            self._running.pop(0).result()
        self._began_at = time.monotonic()
        self._running.append(self._thread.submit(self._write, snapshot, progress, records))

    def _settle(self) -> None:
        while self._running and self._running[0].done():
            self._running.pop(0).result()

    def _write(self, snapshot: Snapshot, progress: Progress, records: NDArray[Any]) -> None:
        with snapshot:
            checkpoint.write(
                self._path(progress.step),
                progress,
                params=snapshot.value,
                state=lowlevel.extra(snapshot),
                records=records,
            )
        self._scores[progress.step] = progress.score
        for step in self._scores.keys() - steps_to_keep(self._scores, self._keep):
            del self._scores[step]
            self._path(step).unlink(missing_ok=True)

    def _path(self, step: int) -> Path:
        assert self.directory is not None
        return self.directory / f"step-{step:012}.safetensors"

    def finish(self) -> None:
        """Wait until all is on the disk. Raises what went wrong."""
        while self._running:
            self._running.pop(0).result()

    def __exit__(self, *_: object) -> None:
        if os.getpid() != self._owner:
            return  # a forked copy of the process that trains: it has neither the thread nor the lock
        if self._thread is not None:
            self._thread.shutdown()
        self._running.clear()
        if self._lock >= 0:
            _core.own_descriptor_end(self._lock)
            os.close(self._lock)


def _checkpoints(directory: Path) -> dict[int, Path]:
    """By step; nothing where there is no such directory."""
    try:
        entries = list(directory.iterdir())
    except FileNotFoundError:
        return {}
    return {int(found[1]): entry for entry in entries if (found := _NAME.fullmatch(entry.name))}


def _locked(directory: Path) -> int:
    """Return a descriptor that holds the directory's lock until it is closed or this process ends, even after forks."""
    fd = keep(os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC))
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(fd)
        raise BusyError(f"checkpoint_dir {directory}: another training writes its checkpoints there") from None
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            os.close(fd)
            raise OSError(
                error.errno, f"checkpoint_dir {directory} cannot be locked: {os.strerror(error.errno or 0)}"
            ) from None
    _core.own_descriptor(fd)
    return fd
