"""Measure when untorn pays, and draw it: docs/pays.md, docs/comparison.md and their pictures.

    python -m benchmarks.curves --write                measures everything (three minutes), writes tables and pictures
    python -m benchmarks.curves sizes --json FILE      measures one of: sizes, tables, workers
    python -m benchmarks.curves --from FILE --write    writes from what --json wrote

- *sizes*: publish and read against the size of an array, for untorn and the competitors in peers/. The reader is
  another process; each turn calls every operation of every contestant for a few milliseconds, in a shuffled order.
- *tables*: a lookup in a dict and in a FrozenDict against the number of entries, and the time until one more process
  has the table: unpickling the dict, or attaching to the channel and the first lookup.
- *workers*: a training step against the number of parameters, for the ways to use two processors.

The pictures show medians. The tables show medians, and ratios with their quartiles of interleaved turns.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import multiprocessing
import pickle
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

import untorn
from benchmarks.__main__ import machine
from benchmarks.curves_drawing import draw, tables
from benchmarks.frozen_dict import lookups
from benchmarks.measure import interleaved
from benchmarks.peers import COMPARED, attach
from benchmarks.scale import write

DOCS = Path(__file__).parents[1] / "docs"
SIZES = (1_000, 10_000, 100_000, 1_000_000, 10_000_000, 40_000_000)
SIZE_TURNS = 15
TURN_S = 0.004
#: no more than this number of calls in a turn
CALLS = 500
ENTRIES = (1_000, 10_000, 100_000, 1_000_000)
LOOKUPS = 5_000
TABLE_TURNS = 15
#: hidden units of the MLP, and steps in a turn
WIDTHS = {16: 200, 64: 200, 256: 60, 512: 30, 1024: 10, 2048: 4}
WORKER_TURNS = 7


# -- publish and read against the size


def serve_reads(pipe: Any, addresses: dict[tuple[str, int], Any]) -> None:
    """Run the reader process: answer (contestant and size, calls) with the seconds of a call."""
    readers, held = attach(pipe, addresses)
    while (task := pipe.recv()) is not None:
        key, calls = task
        read = readers[key].read
        held[key] = view = read()
        start = time.perf_counter()
        for _ in range(calls):
            view = read()
        pipe.send((time.perf_counter() - start) / calls)
        held[key] = view
        del view
    held.clear()
    for reader in readers.values():
        reader.close()


def measure_sizes() -> dict[str, Any]:
    """Return the seconds of each turn, by operation, contestant and size."""
    there = [peer for peer in COMPARED if not peer.missing()]
    arrays = {nbytes: np.ones(nbytes, np.uint8) for nbytes in SIZES}
    targets = {nbytes: np.zeros(nbytes, np.uint8) for nbytes in SIZES}
    with contextlib.ExitStack() as stack:
        writers = {}
        for peer in there:
            for nbytes, array in arrays.items():
                writers[peer.NAME, nbytes] = peer.Writer(array)
                stack.callback(writers[peer.NAME, nbytes].close)
        context = multiprocessing.get_context("spawn")  # LMDB does not allow an environment on both sides of a fork
        pipe, theirs = context.Pipe()
        addresses = {key: writer.address for key, writer in writers.items()}
        process = context.Process(target=serve_reads, args=(theirs, addresses), daemon=True)
        process.start()
        theirs.close()
        pipe.recv()
        for (_, nbytes), writer in writers.items():
            writer.publish(arrays[nbytes])  # iceoryx2 gives nothing to a reader before the next send
        pipe.send("published")

        def publish(key: tuple[str, int], calls: int) -> float:
            call, array = writers[key].publish, arrays[key[1]]
            start = time.perf_counter()
            for _ in range(calls):
                call(array)
            return (time.perf_counter() - start) / calls

        def copy(nbytes: int, calls: int) -> float:
            target, array = targets[nbytes], arrays[nbytes]
            start = time.perf_counter()
            for _ in range(calls):
                np.copyto(target, array)
            return (time.perf_counter() - start) / calls

        def read(key: tuple[str, int], calls: int) -> float:
            pipe.send((key, calls))
            return pipe.recv()

        contestants: dict[tuple[str, str, int], Callable[[], float]] = {}
        for nbytes in SIZES:
            contestants["publish", "memcpy", nbytes] = calibrated(partial(copy, nbytes))
        for key in writers:
            contestants["publish", *key] = calibrated(partial(publish, key))
            contestants["read", *key] = calibrated(partial(read, key))
        times = interleaved({"|".join(map(str, key)): call for key, call in contestants.items()},
                            turns=SIZE_TURNS, warm_up=1)  # fmt: skip
        pipe.send(None)
        process.join()
    return {"times": times, "missing": {peer.NAME: peer.missing() for peer in COMPARED if peer.missing()}}


def calibrated(call: Callable[[int], float]) -> Callable[[], float]:
    """Return a turn of about TURN_S seconds."""
    call(1)
    return partial(call, max(1, min(CALLS, int(TURN_S / call(1)))))


# -- a dict against a FrozenDict


def measure_tables() -> dict[str, Any]:
    """Return the seconds of each turn: of a lookup, and until another process has the table, by kind and entries."""
    times = {}
    for entries in ENTRIES:
        plain = {f"key-{i:08d}": i * 3 for i in range(entries)}
        keys = [f"key-{i:08d}" for i in np.random.default_rng(0).integers(0, entries, LOOKUPS)]
        for key in keys:
            hash(key)  # a str keeps its hash
        pickled = pickle.dumps(plain, protocol=5)
        with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
            frozen = untorn.FrozenDict(plain)
            with untorn.publish(frozen, name="table", directory=folder) as publisher:
                shared = publisher.subscriber().snapshot().value

                def attach(folder: str = folder) -> float:
                    start = time.perf_counter()
                    with untorn.subscribe("table", directory=folder) as reader:
                        _ = reader.snapshot().value["key-00000007"]
                        return time.perf_counter() - start

                def unpickle(pickled: bytes = pickled) -> float:
                    start = time.perf_counter()
                    _ = pickle.loads(pickled)["key-00000007"]
                    return time.perf_counter() - start

                contestants = {
                    "lookup|dict": lookups(plain, keys),
                    "lookup|FrozenDict": lookups(shared, keys),
                    "attach|dict": unpickle,
                    "attach|FrozenDict": attach,
                }
                found = interleaved(contestants, turns=TABLE_TURNS, warm_up=1)
                del shared
        times |= {f"{what}|{entries}": seconds for what, seconds in found.items()}
    return {"times": times}


# -- workers against the size of the model


def measure_workers() -> dict[str, Any]:
    """Return the seconds of a step of each turn, by contestant and number of parameters."""
    from benchmarks.peers import torch_ddp, torch_loop, untorn_torch
    from benchmarks.peers.torch_case import Case, mlp, vectors

    made = {
        "untorn, 2 workers": untorn_torch.contestant(workers=2),
        "untorn, 1 worker": untorn_torch.contestant(workers=1),
        "1 process, 1 thread": torch_loop.contestant(threads=1),
        "1 process, 2 threads": torch_loop.contestant(threads=2),
        "DistributedDataParallel, 2 ranks": torch_ddp.contestant(ranks=2),
    }
    times = {}
    with contextlib.ExitStack() as stack:
        trainings = {name: stack.enter_context(each) for name, each in made.items()}
        for width, steps in WIDTHS.items():
            case = Case(f"MLP, h={width}", partial(mlp, width), vectors, batch=256, steps=steps)
            with contextlib.ExitStack() as turns:
                running = {name: turns.enter_context(each.training(case)) for name, each in trainings.items()}
                found = interleaved(running, turns=WORKER_TURNS, warm_up=1)
            times |= {f"{name}|{case.parameters()}": seconds for name, seconds in found.items()}
    return {"times": times}


MEASURES = {"sizes": measure_sizes, "tables": measure_tables, "workers": measure_workers}


def main() -> None:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("killed"))  # so that the peers end their processes
    parser = argparse.ArgumentParser(prog="python -m benchmarks.curves", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(MEASURES)} (default: all)")
    parser.add_argument("--from", dest="source", type=Path, metavar="FILE", help="measure nothing; read this file")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write what was measured to this file")
    parser.add_argument("--write", action="store_true", help="write the pages' tables and pictures")
    parser.add_argument("--into", type=Path, default=DOCS, metavar="FOLDER", help="where the pages are (default: docs)")
    options = parser.parse_args()
    unknown = [name for name in options.names if name not in MEASURES]
    if unknown:
        parser.error(f"no measurement {', '.join(unknown)}; there are: {', '.join(MEASURES)}")
    if options.source:
        measured = json.loads(options.source.read_text())
    else:
        measured = {}
        for name in options.names or MEASURES:
            began = time.monotonic()
            measured[name] = MEASURES[name]() | {"how": f"{machine()}, `python -m benchmarks.curves {name}`"}
            print(f"{name}: {time.monotonic() - began:.0f} s", flush=True)
    if options.json:
        options.json.write_text(json.dumps(measured) + "\n")
    for page, sections in tables(measured).items():
        if options.write:
            write(options.into / page, sections)
        else:
            print(*(f"{name}:\n\n{text}\n" for name, text in sections.items()), sep="\n")
    if options.write:
        draw(measured, options.into)


if __name__ == "__main__":
    main()
