"""Change 1,000 keys of a dictionary of a million entries that other processes look up.

One process changes 1,000 random keys per turn and publishes them at once: as one version of a FrozenDict, or as one
transaction. Then 1,000 random keys are looked up. All contestants keep their data in memory (on tmpfs, without
flushes). A FrozenDict gives consistent snapshots, as LMDB and SQLite do; the others do not. shelve and Manager().dict()
get fewer lookups per turn, because they are slow.

A version of the FrozenDict contains all changes since the table was last written as a whole, which a thread does again
now and then. So publishing is also measured over many versions, one after the other without a pause, until that has
happened. Memory is that of the channel after each version; while the table is written again, there are two of it. At
this rate that is the case for much of the time, at a thousand keys a second for a fraction of a second in a minute.
"""

from __future__ import annotations

import importlib
import itertools
import multiprocessing
import random
import shelve
import sqlite3
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import untorn
from benchmarks.measure import Row, interleaved, row

NAME = "changing_dict"
QUESTION = "What does it cost to change 1,000 keys of a dictionary of a million entries, and then to look keys up?"

ENTRIES = 1_000_000
CHANGES = 1_000
LOOKUPS = 1_000
SLOW_LOOKUPS = 100
TURNS = 15
WARM_UP = 2
VERSIONS = 200
OURS = "FrozenDict"
#: the size of a channel, in those of the table, from which on it has two of them
TWO_TABLES = 1.8


def key_of(number: int) -> str:
    return f"key-{number:08d}"


class Contestant:
    """A dictionary that others can look up: ``change`` publishes new values of some keys, ``get`` looks one up."""

    def __init__(self, change: Callable[[dict[str, int]], object], get: Callable[[str], object], lookups: int) -> None:
        self.change = change
        self.get = get
        self.lookups = lookups


@contextmanager
def frozen(entries: dict[str, int], folder: Path) -> Iterator[Contestant]:
    with untorn.publish(untorn.FrozenDict(entries)) as publisher, publisher.subscriber() as reader:
        found: list[Any] = []

        def change(changes: dict[str, int]) -> None:
            publisher.patch(changes)
            found[:] = [reader.snapshot().value]

        change({key_of(0): 0})
        yield Contestant(change, lambda key: found[0][key], LOOKUPS)


@contextmanager
def lmdb(entries: dict[str, int], folder: Path) -> Iterator[Contestant]:
    library = importlib.import_module("lmdb")
    with library.open(str(folder / "lmdb"), map_size=1 << 30, sync=False, writemap=True) as database:

        def change(changes: dict[str, int]) -> None:
            with database.begin(write=True) as transaction:
                for key, value in changes.items():
                    transaction.put(key.encode(), value.to_bytes(8, "little"))

        def get(key: str) -> int:
            with database.begin(buffers=True) as transaction:
                return int.from_bytes(transaction.get(key.encode()), "little")

        change(entries)
        yield Contestant(change, get, LOOKUPS)


@contextmanager
def sqlite(entries: dict[str, int], folder: Path) -> Iterator[Contestant]:
    database = sqlite3.connect(folder / "sqlite", isolation_level=None)
    database.execute("PRAGMA journal_mode = WAL")
    database.execute("PRAGMA synchronous = OFF")
    database.execute("CREATE TABLE entries (key TEXT PRIMARY KEY, value INTEGER) WITHOUT ROWID")

    def change(changes: dict[str, int]) -> None:
        database.execute("BEGIN")
        database.executemany("INSERT OR REPLACE INTO entries VALUES (?, ?)", changes.items())
        database.execute("COMMIT")

    def get(key: str) -> int:
        return database.execute("SELECT value FROM entries WHERE key = ?", (key,)).fetchone()[0]

    change(entries)
    yield Contestant(change, get, LOOKUPS)
    database.close()


@contextmanager
def shelf(entries: dict[str, int], folder: Path) -> Iterator[Contestant]:
    with shelve.open(str(folder / "shelve")) as opened:
        opened.update(entries)
        yield Contestant(opened.update, opened.__getitem__, SLOW_LOOKUPS)


@contextmanager
def diskcache(entries: dict[str, int], folder: Path) -> Iterator[Contestant]:
    library = importlib.import_module("diskcache")
    with library.Cache(str(folder / "diskcache"), eviction_policy="none", size_limit=1 << 34) as cache:

        def change(changes: dict[str, int]) -> None:
            with cache.transact():
                for key, value in changes.items():
                    cache.set(key, value)

        change(entries)
        yield Contestant(change, cache.__getitem__, SLOW_LOOKUPS)


@contextmanager
def manager(entries: dict[str, int], folder: Path) -> Iterator[Contestant]:
    with multiprocessing.get_context("spawn").Manager() as started:
        managed = started.dict(entries)
        yield Contestant(managed.update, managed.__getitem__, SLOW_LOOKUPS)


CONTESTANTS = {
    OURS: frozen,
    "LMDB": lmdb,
    "SQLite": sqlite,
    "shelve": shelf,
    "diskcache": diskcache,
    "Manager().dict()": manager,
}


def run() -> list[Row]:
    entries = {key_of(i): i * 3 for i in range(ENTRIES)}
    dice = random.Random(0)
    rows, missing = [], []
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(dir="/dev/shm")))
        contestants = {}
        for name, opened in CONTESTANTS.items():
            try:
                contestants[name] = stack.enter_context(opened(entries, folder))
            except ImportError as error:
                missing.append(Row(f"{name}: not measured", None, note=f"{error.name} is not installed"))
        changing = {f"{name}: publish": _changing(made, dice) for name, made in contestants.items()}
        looking = {f"{name}: lookup": _looking(made.get, made.lookups, dice) for name, made in contestants.items()}
        unchanged = untorn.FrozenDict(entries)
        looking["unchanged FrozenDict: lookup"] = _looking(unchanged.__getitem__, LOOKUPS, dice)
        times = interleaved({**changing, **looking}, turns=TURNS, warm_up=WARM_UP)
        ours = f"{OURS}: publish"
        rows.append(row(ours, times[ours], unit="ms", at_most=3))
        for what in list(changing)[1:]:
            rows.append(row(what, times[what], to=times[ours], ratio_to=ours, unit="ms"))
        ours, still = f"{OURS}: lookup", "unchanged FrozenDict: lookup"
        rows.append(row(still, times[still], unit="ns"))
        rows.append(row(ours, times[ours], to=times[still], ratio_to=still, unit="ns", ratio_at_most=2))
        for what in list(looking)[1:-1]:
            rows.append(row(what, times[what], to=times[ours], ratio_to=ours, unit="ns"))
    return [*rows, *missing, *_many_versions(entries)]


def _changing(contestant: Contestant, dice: random.Random) -> Callable[[], float]:
    def call() -> float:
        changes = {key_of(dice.randrange(ENTRIES)): dice.randrange(ENTRIES) for _ in range(CHANGES)}
        start = time.perf_counter()
        contestant.change(changes)
        return time.perf_counter() - start

    return call


def _looking(get: Callable[[str], object], count: int, dice: random.Random) -> Callable[[], float]:
    def call() -> float:
        keys = [key_of(dice.randrange(ENTRIES)) for _ in range(count)]
        start = time.perf_counter()
        for key in keys:
            get(key)
        return (time.perf_counter() - start) / count

    return call


def _many_versions(entries: dict[str, int]) -> list[Row]:
    """Publish until the table was written again at least once."""
    dice = random.Random(1)
    with untorn.publish(untorn.FrozenDict(entries)) as publisher, publisher.subscriber() as reader:
        first_nbytes = publisher.nbytes
        took, processor, shares = [], [], []
        for _ in range(VERSIONS):
            changes = {key_of(dice.randrange(ENTRIES)): dice.randrange(ENTRIES) for _ in range(CHANGES)}
            start, start_processor = time.perf_counter(), time.thread_time()
            publisher.patch(changes)
            processor.append(time.thread_time() - start_processor)
            took.append(time.perf_counter() - start)
            reader.snapshot().close()
            shares.append(publisher.nbytes / first_nbytes)
    is_double = [share > TWO_TABLES for share in shares]
    begun = sum(now and not before for before, now in itertools.pairwise([False, *is_double]))
    what, times = "FrozenDict: publish", f"the table was written again {begun} times"
    memory, note = statistics.median(shares), f"two tables in {sum(is_double)} of {VERSIONS} versions"
    return [
        Row(f"{what}, median of {VERSIONS} versions", statistics.median(took) * 1e3, "ms", note=times),
        Row(f"{what}, mean", statistics.mean(took) * 1e3, "ms"),
        Row(f"{what}, slowest", max(took) * 1e3, "ms"),
        Row(f"{what}, processor time of the caller, median", statistics.median(processor) * 1e3, "ms"),
        Row(f"{what}, processor time of the caller, most", max(processor) * 1e3, "ms"),
        Row("FrozenDict: memory against an unchanged one", memory, "x", aim="at most 1.3", reached=memory <= 1.3),
        Row("the same while it is written again", max(shares), "x", note=note),
    ]
