"""Measure the gain of a second process in PyTorch training, for different ways to share the weights.

All contestants train the same network on the same examples, with the same global batch and the same optimizer: untorn
with one worker and with two; one process with one thread and with two; DistributedDataParallel; the Hogwild example;
and the limit, two processes that compute gradients of fixed weights and exchange nothing. All of them are alive at the
same time; those that are not measured sleep. `python -m benchmarks pytorch` takes about four minutes; with
UNTORN_BENCH_LARGE=1 it adds an MLP with 17 million parameters, and takes a minute more.

The ratio of a contestant is its time per step divided by that of untorn with two workers. The ratio of the limit is the
share of the limit's speed that untorn reaches. One process with two threads can be faster than two processes with one
each; then the required ratio is no larger than that of the limit.

A case counts only if the final loss of every contestant is finite and all its parameters were trained (for the limit:
none).
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from functools import partial

from benchmarks.measure import Row, interleaved, ratios, row
from benchmarks.peers import torch_ddp, torch_hogwild, torch_loop, torch_no_communication, untorn_torch
from benchmarks.peers.torch_case import Case, convolutional, images, mlp, sequences, transformer, vectors
from benchmarks.peers.torch_crew import Crew

NAME = "pytorch"
QUESTION = "How much does a second process speed up a training step in PyTorch, by the way to share the weights?"

TURNS, WARM_UP = 11, 1
UNTORN, LIMIT, DDP = "untorn, 2 workers", "no communication, 2 processes", "DistributedDataParallel, gloo, 2 ranks"
THREADS = "1 process, 2 threads"

CASES = [
    Case("MLP, h=64", partial(mlp, 64), vectors, batch=256, steps=250),
    Case("MLP, h=64", partial(mlp, 64), vectors, batch=32, steps=400),
    Case("MLP, h=64", partial(mlp, 64), vectors, batch=256, steps=250, optimizer="Adam"),
    Case("MLP, h=512", partial(mlp, 512), vectors, batch=256, steps=40),
    Case("MLP, h=512", partial(mlp, 512), vectors, batch=256, steps=40, optimizer="Adam"),
    Case("MLP, h=2048", partial(mlp, 2048), vectors, batch=256, steps=4),
    Case("convolutional network", convolutional, images, batch=64, steps=24),
    Case("transformer", transformer, sequences, batch=64, steps=12),
]
LARGE = Case("MLP, h=4096", partial(mlp, 4096), vectors, batch=256, steps=2)


def contestants() -> dict[str, untorn_torch.Training | Crew]:
    """Return the contestants by name."""
    return {
        UNTORN: untorn_torch.contestant(workers=2),
        LIMIT: torch_no_communication.contestant(processes=2),
        DDP: torch_ddp.contestant(ranks=2),
        "Hogwild, 2 processes": torch_hogwild.contestant(processes=2),
        THREADS: torch_loop.contestant(threads=2),
        "1 process, 1 thread": torch_loop.contestant(threads=1),
        "untorn, 1 worker": untorn_torch.contestant(workers=1),
    }


def aims(parameters: int, times: Mapping[str, Sequence[float]]) -> dict[str, float]:
    """Return the required ratio for each contestant."""
    threads = min(1.0, round(ratios(times[THREADS], times[LIMIT])[0], 2))
    if parameters < 10_000:
        return {LIMIT: 0.85, DDP: 4, THREADS: threads}
    return {LIMIT: 0.9, DDP: 1.4, THREADS: threads} if parameters >= 300_000 else {DDP: 1, THREADS: threads}


def measure(case: Case, trainings: dict[str, untorn_torch.Training | Crew]) -> Iterator[Row]:
    """Yield a row for each contestant, in milliseconds per step."""
    with ExitStack() as stack:
        turns = {name: stack.enter_context(each.training(case)) for name, each in trainings.items()}
        times = interleaved(turns, turns=TURNS, warm_up=WARM_UP)
    parameters = case.parameters()
    least = aims(parameters, times)
    what = f"{case.name} ({parameters:,} parameters), {case.optimizer}, batch {case.batch}"
    for name, seconds in times.items():
        compared = {} if name == UNTORN else {"to": times[UNTORN], "ratio_to": UNTORN}
        yield row(f"{what}: {name}", seconds, unit="ms", **compared, ratio_at_least=least.get(name))


def run() -> list[Row]:
    if importlib.util.find_spec("torch") is None:
        return [Row("a step in PyTorch", None, note="PyTorch is not installed (pip install torch)")]
    cases = [*CASES, LARGE] if os.environ.get("UNTORN_BENCH_LARGE") else CASES
    with ExitStack() as stack:
        trainings = {name: stack.enter_context(each) for name, each in contestants().items()}
        return [line for case in cases for line in measure(case, trainings)]
