"""untorn's Trainer on nodes with one worker each."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial

from benchmarks.on_nodes.agents import AgentCluster
from benchmarks.on_nodes.driving import Training, drive
from benchmarks.on_nodes.launching import launch_on
from benchmarks.peers import untorn_torch
from benchmarks.peers.torch_case import Case
from benchmarks.peers.torch_crew import Crew
from virtual_nodes import VirtualNodes


def contestant(nodes: VirtualNodes) -> Crew:
    """Return the contestant; agents must run on all nodes. The driver is on node 0, which is a node as well."""
    driving_here = partial(driving, [node.address for node in nodes])
    return Crew(partial(drive, driving_here, len(nodes)), processes=1, launch=launch_on(nodes))


@contextmanager
def driving(addresses: Sequence[str], nodes: int) -> Iterator[Training]:
    """See driving.Driving."""

    @contextmanager
    def training(case: Case) -> Iterator[Callable[[], float]]:
        cluster = AgentCluster(addresses[0], addresses)
        with untorn_torch.contestant(workers=1, engine=cluster, nodes=nodes, shards=nodes).training(case) as turn:
            yield lambda: turn() * case.steps

    yield training
