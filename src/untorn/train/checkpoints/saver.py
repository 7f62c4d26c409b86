"""The checkpoints of one training: list them, keep some of them, and write new ones in a thread.

A checkpoint is written while training continues. The weights and the optimizer's state of one step are one version, so
a snapshot of it can be written at any speed. Training waits for the disk only if that is slower than an epoch::

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
#: one checkpoint that is being written, and one that waits
_AT_ONCE = 2
#: the errors of a file system without locks
_NO_LOCKS = (errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL, errno.ENOLCK)


def newest(directory: Path) -> Checkpoint | None:
    """Return the newest complete checkpoint, read and checked; None if the directory has no checkpoint.

    Warns about each damaged checkpoint that it skips, and says what is wrong with it. Raises FormatError if all are
    damaged, and OSError if one cannot be read, since that one may be complete.
    """
    damaged: list[Exception] = []
    for _, path in sorted(_checkpoints(directory).items(), reverse=True):
        try:
            found = checkpoint.read(path)
        except (FormatError, FileNotFoundError) as error:  # the latter for a broken link
            damaged.append(error)
            continue
        for each in damaged:
            warnings.warn(f"{each}; resuming from {path.name}, the previous one", RuntimeWarning, stacklevel=4)
        return found
    if damaged:
        raise FormatError(
            f"{directory}: none of the {len(damaged)} checkpoints can be read ({damaged[0]}); "
            "remove them to start from the beginning"
        )
    return None


def make_saver(directory: str | os.PathLike[str] | None, *, resume: bool, every_s: float | None, keep: int) -> Saver:
    """Return the saver for these arguments of fit. Raises ValueError or TypeError."""
    if resume and directory is None:
        raise ValueError("resume=True needs checkpoint_dir=: the directory to resume from")
    if every_s is not None and not every_s >= 0:
        raise ValueError(f"checkpoint_every_s: expected 0 or more seconds, or None, found {every_s}")
    if isinstance(keep, bool) or not isinstance(keep, int):
        raise TypeError(f"keep: expected an int, found {type(keep).__name__}")
    if keep < 1:
        raise ValueError(f"keep: expected 1 or more, found {keep}")
    return Saver(None if directory is None else Path(directory).absolute(), every_s=every_s, keep=keep)


def steps_to_keep(scores: dict[int, float | None], keep: int) -> set[int]:
    """Return the steps of the checkpoints to keep: the last ``keep``, and the first with the lowest score."""
    known = [(score, step) for step, score in scores.items() if score is not None and not math.isnan(score)]
    return set(sorted(scores)[-keep:]) | {step for _, step in sorted(known)[:1]}


class Saver:
    """Writes the checkpoints of one fit into a directory. Use it as a context manager.

    Makes the directory if it does not exist, and holds a lock on it. Raises BusyError if another training writes
    checkpoints there.

    Args:
        directory: the directory; None to write nothing.
        every_s: the shortest time between two checkpoints during an epoch, in seconds; None to write only after epochs.
        keep: the number of checkpoints to keep, in addition to the best.
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
        """Prepare for a training that begins at this step. If it resumes, later checkpoints are damaged, and removed.
        Otherwise they belong to another training, and FileExistsError is raised."""
        if self.directory is None:
            return
        for entry in self.directory.iterdir():
            if _SCRATCH.fullmatch(entry.name):  # left by a process that was killed
                checkpoint.remove_scratch(entry)
        for at, path in sorted(_checkpoints(self.directory).items(), reverse=True):
            if at > step and not resume:
                raise FileExistsError(
                    f"checkpoint_dir {self.directory} has a checkpoint of step {at}, but this training is at step "
                    f"{step}; use resume=True to resume from it, or another directory"
                )
            if at > step:
                if not path.is_dir():  # a folder is not a checkpoint
                    path.unlink()
                continue
            self._scores[at] = None
            with contextlib.suppress(FormatError, FileNotFoundError):
                self._scores[at] = checkpoint.read_progress(path).score

    def due(self) -> bool:
        """Return whether it is time for a checkpoint during an epoch. Raises the errors of earlier ones."""
        self._settle()
        return not self._running and time.monotonic() - self._began_at >= self._every_s

    def save(self, snapshot: Snapshot, progress: Progress, records: NDArray[Any]) -> None:
        """Write a checkpoint in the background. Blocks only if another one is waiting already. Raises the errors of
        earlier ones."""
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
                params=lowlevel.read_value(snapshot, arrays=True),
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
        """Wait until all checkpoints are on the disk. Raises their errors."""
        while self._running:
            self._running.pop(0).result()

    def __exit__(self, *_: object) -> None:
        if os.getpid() != self._owner:
            return  # a forked copy of the process that trains has neither the thread nor the lock
        if self._thread is not None:
            self._thread.shutdown()
        self._running.clear()
        if self._lock >= 0:
            _core.own_descriptor_end(self._lock)
            os.close(self._lock)


def _checkpoints(directory: Path) -> dict[int, Path]:
    """Return the files of checkpoints by step; empty if there is no such directory."""
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
