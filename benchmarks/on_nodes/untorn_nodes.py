"""untorn's Trainer on a Ray cluster, with one worker on each node."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from benchmarks.on_nodes.driving import Training
from benchmarks.peers import untorn_torch
from benchmarks.peers.torch_case import Case


@contextmanager
def driving(nodes: int) -> Iterator[Training]:
    """See driving.Driving."""

    @contextmanager
    def training(case: Case) -> Iterator[Callable[[], float]]:
        contestant = untorn_torch.contestant(workers=1, engine="ray", nodes=nodes, shards=nodes)
        with contestant.training(case) as turn:
            yield lambda: turn() * case.steps

    yield training
