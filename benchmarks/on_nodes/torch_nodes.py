"""PyTorch on nodes, one process on each: DistributedDataParallel, and the limit without communication."""

from __future__ import annotations

import itertools
from functools import partial

from benchmarks.on_nodes.launching import launch_on
from benchmarks.peers import torch_ddp, torch_no_communication
from benchmarks.peers.torch_case import Case
from benchmarks.peers.torch_crew import Crew, take_part
from virtual_nodes import VirtualNodes

_ports = itertools.count(20_000)


def no_communication(nodes: VirtualNodes) -> Crew:
    """Return the contestant whose processes exchange nothing and update nothing."""
    member = partial(take_part, torch_no_communication.stepping)
    return Crew(member, processes=len(nodes), launch=launch_on(nodes))


def ddp(nodes: VirtualNodes) -> Crew:
    """Return DistributedDataParallel with gloo."""

    def meeting(case: Case) -> torch_ddp.Meeting:
        return torch_ddp.Meeting("eth0", nodes[0].address, next(_ports))

    member = partial(take_part, torch_ddp.stepping)
    return Crew(member, processes=len(nodes), share=meeting, launch=launch_on(nodes))
