"""Compare FrozenDict, dict, shelve and Manager().dict() with a million entries.

All contestants look keys up in the same random order, with 20,000 hits and 20,000 misses per turn. The key of a hit is
equal to the stored key but another object, as for keys from an external source. FrozenDict is read in shared memory,
through a snapshot of a channel. shelve (on tmpfs) and Manager().dict() have the same entries, but get fewer calls per
turn because they are slow. Memory is the private memory of a child that looks up keys, minus that of a child that does
not.
"""

from __future__ import annotations

import multiprocessing
import shelve
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

import untorn
from benchmarks.measure import Row, interleaved, row

NAME = "frozen_dict"
QUESTION = "How do FrozenDict, dict, shelve and Manager().dict() compare, with a million entries (str to int)?"

ENTRIES = 1_000_000
CALLS = 20_000
SLOW_CALLS = 200
TURNS = 40
DICT = "dict: hit"


def entries() -> dict[str, int]:
    return {f"key-{i:08d}": i * 3 for i in range(ENTRIES)}


def lookups(mapping, keys) -> Callable[[], float]:
    get = mapping.get

    def call() -> float:
        start = time.perf_counter()
        for key in keys:
            get(key)
        return (time.perf_counter() - start) / len(keys)

    return call


def run() -> list[Row]:
    dice = np.random.default_rng(0)
    plain = entries()
    picked = dice.integers(0, ENTRIES, CALLS)
    hits = [f"key-{i:08d}" for i in picked]
    misses = [f"nokey-{i:08d}" for i in picked]
    for key in hits + misses:
        hash(key)  # a str keeps its hash; the first call would pay for it

    start = time.perf_counter()
    frozen = untorn.FrozenDict(plain)
    build = time.perf_counter() - start
    with (
        untorn.publish({"table": frozen}) as publisher,
        tempfile.TemporaryDirectory(dir="/dev/shm") as folder,
        multiprocessing.get_context("spawn").Manager() as manager,
        shelve.open(str(Path(folder) / "table")) as shelf,
    ):
        shelf_keys = hits[:SLOW_CALLS]
        shelf.update(plain)
        managed = manager.dict(plain)
        snapshot = publisher.subscriber().snapshot()
        shared = snapshot.value["table"]
        contestants = {
            DICT: lookups(plain, hits),
            "dict: miss": lookups(plain, misses),
            "FrozenDict: hit": lookups(shared, hits),
            "FrozenDict: miss": lookups(shared, misses),
            "shelve: hit": lookups(shelf, shelf_keys),
            "Manager().dict(): hit": lookups(managed, shelf_keys),
        }
        times = interleaved(contestants, turns=TURNS, warm_up=2)
        rows = [row(DICT, times[DICT], unit="ns"), row("dict: miss", times["dict: miss"], unit="ns")]
        for what, to in (("FrozenDict: hit", DICT), ("FrozenDict: miss", "dict: miss")):
            rows.append(row(what, times[what], to=times[to], ratio_to=to, unit="ns", ratio_at_most=5))
        for what in ("shelve: hit", "Manager().dict(): hit"):
            rows.append(row(what, times[what], to=times["FrozenDict: hit"], ratio_to="FrozenDict: hit", unit="ns"))
        rows.append(Row("FrozenDict(dict): build", build, "s", aim="at most 2 s", reached=build <= 2))
        rows.append(_one_process_more(publisher.subscriber()))
    return rows


def _child(pipe, subscriber) -> None:
    before = private_bytes()
    if subscriber is not None:
        table = subscriber.snapshot().value["table"]
        for i in range(0, ENTRIES, 7):
            table[f"key-{i:08d}"]
    pipe.send(private_bytes() - before)
    pipe.recv()


def private_bytes() -> int:
    """Return the size of this process's private pages."""
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith(("Private_Clean", "Private_Dirty")))


def _one_process_more(subscriber) -> Row:
    context = multiprocessing.get_context("spawn")
    sizes = []
    for handed in (None, subscriber):
        ours, theirs = context.Pipe()
        process = context.Process(target=_child, args=(theirs, handed))
        process.start()
        sizes.append(ours.recv())
        ours.send(None)
        process.join()
    megabytes = (sizes[1] - sizes[0]) / 1e6
    return Row(
        "FrozenDict: one process more, its private memory", megabytes, "MB", aim="under 1 MB", reached=megabytes < 1
    )
