"""Measure how long it takes until a worker is at work, and the memory that it takes.

Every turn runs a program that trains a small PyTorch network twice, once with each start method: with workers that are
forks of a process that has imported what they need, and with workers that are new interpreters. Times go from the call,
or from the kill, to the worker's first gradient. A worker's memory is the growth of the sum of the proportional set
sizes of the program and all its children, so pages that processes share count once.

The first workers are compared with ``python -c "import torch"`` in the same turn, which they cannot beat: the forks'
server imports torch too. The others are compared with spawned ones.
"""

from __future__ import annotations

import json
import os
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from benchmarks.measure import Row, row
from untorn import SGD, Callback, Trainer

NAME = "starting"
QUESTION = "How long does it take until a worker is at work, and how much memory does it take?"

TURNS = 5
AIM_MS, AIM_MB = 60, 30
METHODS = ("forkserver", "spawn")
_MOMENTS = {
    "first": "the first 2 workers of a program",
    "more": "one more worker",
    "replacement": "the replacement of a killed worker",
    "next": "the 2 workers of the next Trainer",
}


class _Clock(Callback):
    """Lets events happen at steps, and takes the time to the first gradient of a worker."""

    def __init__(self, trainer: Trainer) -> None:
        self.trainer = trainer
        self.begun_s = time.perf_counter()
        self.found: dict[str, float] = {}
        self._waits: tuple[str, int, int, float] | None = None
        self._before_mb = 0.0

    def on_batch_end(self, step: int, logs: dict) -> None:
        self.found.setdefault("first", time.perf_counter() - self.begun_s)
        if self._waits is None:
            self._begin()
            return
        name, index, not_pid, begun_s = self._waits
        for worker, pid, state in self.trainer._pool._engine.members():  # noqa: SLF001 (what `untorn top` shows)
            if worker == index and pid != not_pid and state == "running":
                self.found[name], self._waits = time.perf_counter() - begun_s, None
                if name == "more":
                    self.found["mb"] = _memory_mb() - self._before_mb

    def _begin(self) -> None:
        if "more" not in self.found:
            self._before_mb = _memory_mb()
            self._waits = "more", 2, 0, time.perf_counter()
            self.trainer.resize(3)
        elif "replacement" not in self.found:
            pid = self.trainer.pids[1]
            self._waits = "replacement", 1, pid, time.perf_counter()
            os.kill(pid, signal.SIGKILL)
        else:
            self.trainer.stop_training = True


def _memory_mb() -> float:
    """Return the sum of the proportional set sizes of this process and its children."""
    children = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
    total = 0
    for pid in ("self", *children):
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
        total += next(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
    return total * 1024 / 1e6


def _train(method: str) -> None:
    """Train twice with this start method, and print the times in seconds and the memory in MB."""
    import torch

    from untorn.torch import TorchModel

    x = np.random.default_rng(0).normal(size=(6400, 64)).astype(np.float32)
    y = (x.sum(1) > 0).astype(np.int64)
    found: dict[str, float] = {}
    for name in ("first", "next"):
        torch.manual_seed(0)
        module = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.ReLU(), torch.nn.Linear(64, 2))
        model = TorchModel(module, torch.nn.CrossEntropyLoss())
        with Trainer(model, optimizer=SGD(0.1), workers=2, shards=4, start_method=method) as trainer:  # type: ignore[arg-type]
            clock = _Clock(trainer)
            if name == "next":
                clock.found = dict.fromkeys(("more", "replacement"), 0.0)
            trainer.fit((x, y), epochs=1000, batch_size=64, callbacks=[clock])
            found |= clock.found if name == "first" else {"next": clock.found["first"]}
    print(json.dumps(found))


def _seconds_of_import() -> float:
    begun_s = time.perf_counter()
    subprocess.run([sys.executable, "-c", "import torch"], check=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    return time.perf_counter() - begun_s


def run() -> list[Row]:
    found: dict[str, list[dict[str, float]]] = {method: [] for method in METHODS}
    imports = []
    for _ in range(TURNS):
        imports.append(_seconds_of_import())
        for method in METHODS:
            command = [sys.executable, "-m", "benchmarks.starting", method]
            ran = subprocess.run(command, check=True, capture_output=True, text=True)
            found[method].append(json.loads(ran.stdout))
    rows = [row('python -c "import torch"', imports, unit="ms")]
    for key, what in _MOMENTS.items():
        of = {method: [each[key] for each in found[method]] for method in METHODS}
        if key == "first":
            more = {"to": imports, "ratio_to": "import torch"}
            rows.append(row(f"{what}: spawn", of["spawn"], unit="ms", **more))  # type: ignore[arg-type]
            rows.append(row(f"{what}: forkserver", of["forkserver"], unit="ms", ratio_at_most=1.1, **more))  # type: ignore[arg-type]
            continue
        rows.append(row(f"{what}: spawn", of["spawn"], unit="ms"))
        forked = row(f"{what}: forkserver", of["forkserver"], unit="ms", to=of["spawn"], ratio_to="spawn")
        reached = forked.median is not None and forked.median <= AIM_MS
        rows.append(Row(**(vars(forked) | {"aim": f"at most {AIM_MS} ms", "reached": reached})))
    for method in METHODS:
        memory = statistics.median(each["mb"] for each in found[method])
        aim = f"under {AIM_MB} MB" if method == "forkserver" else ""
        rows.append(Row(f"memory of one more worker: {method}", memory, "MB", aim=aim, reached=memory < AIM_MB))
    return rows


if __name__ == "__main__":
    _train(sys.argv[1])
