"""Kill writers and readers of untorn and its peers, and check what the surviving processes get.

``python -m benchmarks.survival [PEER ...]`` prints a table in Markdown. Each of the three trials runs many
times, each time from scratch:

- *writer, system calls*: the writer is killed before and after each system call of one write.
- *writer, any moment*: the writer writes one version after the other, and is killed at a random moment.
- *reader, any moment*: a reader reads, holds the value, and is killed at a random moment.

Afterwards the trial checks the value that a reader held; the attached reader and a new reader read; a new writer
writes; and both readers read again. The table counts the trials in which

- *torn*: a reader got a mixture of two versions, or the value that it held changed;
- *hung*: one of these steps had not ended after HANG_S seconds;
- *lost*: the attached reader got no value, or an older one than the newest that was written completely;
- *gone*: the same happened to a new reader;
- *leaked*: a third or more of 60 further writes, none of which a living process holds, stayed in memory.

Each library is used as its documentation shows (peers/surviving.py).
"""

from __future__ import annotations

import argparse
import datetime
import gc
import importlib.metadata
import mmap
import os
import platform
import random
import shutil
import signal
import struct
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.peers.surviving import NBYTES, PEERS, SIZE, Lost, Peer

sys.path[:0] = [str(Path(__file__).parents[1] / "tests"), str(Path(__file__).parents[1] / "tests" / "faults")]
from sweep import tracer  # noqa: E402
from sweep.tracer import Failure, Plan, Victim, watched  # noqa: E402

HANG_S = 2.0
#: trials at random moments
TRIALS = 60
#: at most this number of a write's system calls are tried
CALLS = 60
LONGEST_WAIT_S = 0.004
AFTERWARDS = 60
WORDS = ("torn", "hung", "lost", "gone", "leaked")
TRIAL_NAMES = ("writer, system calls", "writer, any moment", "reader, any moment")


def version_in(array: Any) -> int:
    """Return the version of an array; raise ValueError for a mixture."""
    first = int(array[0])
    if not np.array_equiv(array, first):
        raise ValueError(f"torn: {np.unique(array)[:5]}")
    return first


def array_of(version: int) -> Any:
    return np.full(SIZE, version, "i8")


class Shared:
    """Numbers that survive all processes: the newest version that was written completely, and the current activity."""

    def __init__(self) -> None:
        self._memory = mmap.mmap(-1, mmap.PAGESIZE)

    def set(self, at: int, value: int) -> None:
        struct.pack_into("q", self._memory, 8 * at, value)

    def get(self, at: int) -> int:
        return struct.unpack_from("q", self._memory, 8 * at)[0]


class Trial:
    """One trial, in its own process, so that it may hang. ``outcome`` is a set of words."""

    def __init__(self, kind: type[Peer], folder: Path, shared: Shared, seed: int) -> None:
        self.peer = kind(folder)
        self.shared = shared
        self.rng = random.Random(seed)
        self.outcome: set[str] = set()
        self.run: Any = None

    def look(self, read: Callable[[], Any], least: int, missing: str = "lost") -> Any:
        """Read, and classify the result."""
        try:
            array = read()
            if version_in(array) < least:
                self.outcome.add(missing)
            return array
        except Lost:
            self.outcome.add(missing)
        except ValueError:
            self.outcome.add("torn")
        except Exception as error:
            self.outcome |= {missing, f"{type(error).__name__}: {error}"[:200]}
        return None

    def writer_killed(self, plan: Plan | None) -> None:
        """Kill a writer at the system call of ``plan``, or at a random moment if it is None."""
        self.peer.create()
        victim = Victim(self._write_two, self._write_on if plan is None else self._write_once)
        try:
            victim.prepare()
            reader = self.peer.reader()
            held = self._held(reader)
            if plan is None:
                victim.go()
                time.sleep(self.rng.random() * LONGEST_WAIT_S)
            else:
                self.run = victim.run(plan)
        finally:
            victim.end()
        least = self.shared.get(0)
        if held is not None and not np.array_equiv(held, 2):
            self.outcome.add("torn")
        self.look(reader.read, least)
        self._afterwards(reader, least)

    def _held(self, reader: Any) -> Any:
        """Return version 2 as a reader holds it; None if a reader gets only later values."""
        try:
            return reader.read()
        except Lost:
            return None

    def _afterwards(self, reader: Any, least: int) -> None:
        """Run a new reader and a new writer, and write more versions."""
        new = self.peer.reader()
        self.look(new.read, least, "gone")
        writer = self.peer.writer()
        for each in (reader, new):
            getattr(each, "release", lambda: None)()
        before = self.peer.footprint()
        for version in range(least + 2, least + 2 + AFTERWARDS):
            writer.write(array_of(version))
        for each in (reader, new):
            self.look(each.read, version)
        self._grown(before)

    def _grown(self, before: int) -> None:
        """Check after AFTERWARDS writes whether memory leaked; no living process holds an older version then."""
        if self.peer.footprint() - before > AFTERWARDS * NBYTES // 3:
            self.outcome.add("leaked")

    def reader_killed(self) -> None:
        """Kill a reader that reads and holds a value."""
        self.peer.create()
        victim = Victim(lambda: (None, None), self._read_on)
        writer = self.peer.writer()
        for version in (1, 2, 3):
            writer.write(array_of(version))
        reader = self.peer.reader()
        try:
            victim.prepare()
            victim.go()
            while not self.shared.get(1):  # the reader has begun
                writer.write(array_of(3))
            for version in range(4, 4 + AFTERWARDS // 2):
                writer.write(array_of(version))
                self.look(reader.read, version)
            time.sleep(self.rng.random() * LONGEST_WAIT_S)
        finally:
            victim.end()
        before = self.peer.footprint()
        for later in range(version + 1, version + 1 + AFTERWARDS):
            writer.write(array_of(later))
            self.look(reader.read, later)
        new = self.peer.reader()
        writer.write(array_of(later + 1))  # some peers send it to new readers only then
        self.look(new.read, later, "gone")
        self._grown(before)

    # -- in the victim

    def _write_two(self) -> Any:
        writer = self.peer.writer()
        for version in (1, 2):
            writer.write(array_of(version))
        self.shared.set(0, 2)
        gc.disable()
        return writer, None

    def _write_once(self, writer: Any) -> None:
        writer.write(array_of(3))
        self.shared.set(0, 3)
        with watched():
            writer.write(array_of(4))
        self.shared.set(0, 4)

    def _write_on(self, writer: Any) -> None:
        for version in range(3, 1 << 30):
            writer.write(array_of(version))
            self.shared.set(0, version)

    def _read_on(self, state: Any) -> None:
        reader = self.peer.reader()
        while True:
            try:
                held = reader.read()[:5]  # noqa: F841 (a view that is kept until the next one)
            except Lost:
                continue
            self.shared.set(1, 1)


def one(kind: type[Peer], base: Path, work: Callable[[Trial], None], seed: int) -> Trial:
    """Run a trial until it ends or the watchdog stops it; return the Trial with its findings."""
    folder = Path(tempfile.mkdtemp(prefix="survival-", dir=base))
    shared = Shared()
    trial = Trial(kind, folder, shared, seed)

    def go(_: Any) -> Any:
        work(trial)
        return trial.outcome, trial.run

    process = Victim(lambda: (None, None), go)
    before = tracer.WATCHDOG_S
    try:
        process.prepare()
        process.go()
        tracer.WATCHDOG_S = HANG_S
        found = process.hear()
        tracer.WATCHDOG_S = before
        if isinstance(found, Failure):
            text = found.text.strip().splitlines()[-1]
            trial.outcome = {"hung"} if "hung" in text else {"lost", text[:200]}
        else:
            trial.outcome, trial.run = found
    finally:
        tracer.WATCHDOG_S = before
        for pid in _descendants(process.pid):
            os.kill(pid, signal.SIGKILL)
        process.end()
        _remove(kind, folder)
    return trial


def _descendants(pid: int) -> list[int]:
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except FileNotFoundError:
        return []
    return [each for child in children for each in (int(child), *_descendants(int(child)))]


def _remove(kind: type[Peer], folder: Path) -> None:
    kind(folder).remove()
    shutil.rmtree(folder, ignore_errors=True)
    for path in Path("/dev/shm").glob(f"*{folder.name}*"):
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def rows_of(name: str, base: Path, seed: int) -> Iterator[tuple[str, int, Counter[str]]]:
    """Return (trial, kills, number of kills with each outcome) for each trial."""
    kind, _ = PEERS[name]
    rng = random.Random(seed)
    whole = one(kind, base, lambda trial: trial.writer_killed(Plan()), 0)
    if whole.run is None or whole.outcome - {"gone"}:
        raise RuntimeError(f"{name}: without any kill: {whole.outcome}")
    stops = list(range(1, whole.run.stops + 1))
    plans = [Plan(tracer.KILL_AT_STOP, at) for at in sorted(rng.sample(stops, min(CALLS, len(stops))))]
    works: list[tuple[str, list[Callable[[Trial], None]]]] = [
        (TRIAL_NAMES[0], [lambda trial, plan=plan: trial.writer_killed(plan) for plan in plans]),
        (TRIAL_NAMES[1], [lambda trial: trial.writer_killed(None)] * TRIALS),
        (TRIAL_NAMES[2], [lambda trial: trial.reader_killed()] * TRIALS),
    ]
    for what, each in works:
        counted: Counter[str] = Counter()
        for work in each:
            trial = one(kind, base, work, rng.randrange(2**32))
            counted.update(trial.outcome)
        yield what, len(each), counted


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.survival", description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="PEER", help=f"of {', '.join(PEERS)} (default: all)")
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    print(f"{datetime.date.today().isoformat()}, Linux {platform.release()}, Python {platform.python_version()}, "
          f"NumPy {np.__version__}; {SIZE} int64 a version; seed {given.seed}\n")  # fmt: skip
    print("| | killed | kills | " + " | ".join(WORDS) + " |\n" + "| --- " * (3 + len(WORDS)) + "|")
    base = Path(tempfile.mkdtemp(prefix="survival-", dir="/dev/shm"))
    try:
        for name in given.names or PEERS:
            kind, package = PEERS[name]
            kind.load()
            label = f"{kind.name} {importlib.metadata.version(package)}" if package else kind.name
            for what, kills, counted in rows_of(name, base, given.seed):
                figures = " | ".join(str(counted[word]) if kills else "-" for word in WORDS)
                print(f"| {label} | {what} | {kills} | {figures} |", flush=True)
                for text in sorted(set(counted) - set(WORDS)):
                    print(f"  {counted[text]} times {text}", file=sys.stderr)
                label = ""
    finally:
        shutil.rmtree(base)
    print("\n" + "\n".join(f"- {kind.name}: {kind.note}." for kind, _ in PEERS.values()))


if __name__ == "__main__":
    main()
