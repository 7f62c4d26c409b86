"""Bound the gain of an exchange that begins during the backward pass: PyTorch has gradients layer by layer.

An exchange of a parameter's gradient could begin when backward has computed it. The bound assumes that it does, for
every parameter by itself, at no cost: the parameters' bytes then pass one after the other, each as fast as in an
exchange of everything at once, and what is left after the backward pass is the wait. The times are those of one process
that computes one of two nodes' part of a batch, and of an exchange between two virtual nodes (exchange.py). A node with
several shards could overlap its last one only, so the bound is that of one shard. It takes half a minute.

The ratio is the step with the overlap divided by the step without.
"""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from benchmarks import exchange
from benchmarks.measure import Row
from benchmarks.nodes import CASES
from benchmarks.peers.torch_case import Case, vectors
from benchmarks.peers.torch_crew import gradients

if TYPE_CHECKING:
    from torch import nn

NAME = "overlap"
QUESTION = "How much could a step gain if the exchange of gradients began during the backward pass?"

REPEATS, WARM_UP, NODES = 30, 5, 2


def deep() -> nn.Module:
    """Create an MLP with 16 hidden layers of one size, whose gradients come evenly."""
    from torch import nn

    hidden = [layer for _ in range(16) for layer in (nn.Linear(512, 512), nn.ReLU())]
    return nn.Sequential(nn.Linear(64, 512), nn.ReLU(), *hidden, nn.Linear(512, 10))


#: each case with the key of the exchange of about its size
EXCHANGES = dict(zip(CASES, exchange.SIZES, strict=True)) | {
    Case("MLP of 17 layers, h=512", deep, vectors, batch=256, steps=3): "17.4 MB"
}


@dataclass(frozen=True)
class Backward:
    """One step's gradients.

    Attributes:
        seconds: from the beginning of the forward pass to the end of the backward pass.
        ready: for each parameter, in the order in which backward computes them: (when it is ready, bytes).
    """

    seconds: float
    ready: list[tuple[float, int]]


def backward(case: Case) -> Backward:
    """Time one node's part of a batch; return the step that took the median time."""
    import torch

    torch.set_num_threads(1)
    module = case.module()
    work = gradients(module)
    found: list[tuple[float, int]] = []
    for parameter in module.parameters():
        nbytes = parameter.nbytes
        parameter.register_post_accumulate_grad_hook(
            lambda _, nbytes=nbytes: found.append((time.perf_counter(), nbytes))
        )
    x, y = (torch.from_numpy(part[: case.batch // NODES]) for part in case.data())
    steps = []
    for _ in range(WARM_UP + REPEATS):
        found.clear()
        start = time.perf_counter()
        work.step(x, y)
        steps.append(Backward(time.perf_counter() - start, [(at - start, nbytes) for at, nbytes in found]))
    return sorted(steps[WARM_UP:], key=lambda each: each.seconds)[REPEATS // 2]


def overlapped_s(ready: Sequence[tuple[float, int]], exchange_s: float, latency_s: float) -> float:
    """Return when the last gradient is exchanged.

    Args:
        ready: when each parameter's gradient is ready, and its bytes.
        exchange_s: of an exchange of all at once.
        latency_s: the part of it that does not depend on the bytes.
    """
    total = sum(nbytes for _, nbytes in ready)
    free = 0.0
    for at, nbytes in ready:
        free = max(free, at) + (exchange_s - latency_s) * nbytes / total
    return free + latency_s


def rows_of(case: Case, size: str, nodes: object) -> Iterator[Row]:
    """Yield the rows of a case on both networks."""
    computed = backward(case)
    first, last = computed.ready[0][0], computed.ready[-1][0]
    for each in exchange.measure(nodes, NODES, size):
        latency = exchange.DELAY_MS * 1e-3 if each.limited else 0.0
        sent = max((each.seconds - each.worker_s) * 4 * case.parameters() / each.nbytes, latency)
        without = computed.seconds + sent
        bound = min(without, overlapped_s(computed.ready, sent, latency) + computed.seconds - last)
        network = "1 ms, 1 Gbit/s" if each.limited else "no limit"
        yield Row(
            f"{network}: {case.name} ({case.parameters():,} parameters)",
            without * 1e3,
            "ms",
            ratio=bound / without,
            ratio_to="no overlap",
            note=f"gradients {computed.seconds * 1e3:.3g} ms, the first of them {(last - first) * 1e3:.3g} ms before"
            f" the last; exchange {sent * 1e3:.3g} ms",
        )


def run() -> list[Row]:
    from benchmarks.on_nodes import virtual_nodes

    if importlib.util.find_spec("torch") is None:
        return [Row("a step in PyTorch", None, note="PyTorch is not installed (pip install torch)")]
    if reason := virtual_nodes.missing():
        return [Row("an exchange between nodes", None, note=reason)]
    rows = []
    with virtual_nodes.VirtualNodes(NODES) as nodes:
        for case, size in EXCHANGES.items():
            rows += rows_of(case, size, nodes)
    return rows
