"""DistributedDataParallel with gloo over loopback: gradients are averaged while backward runs."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager

from benchmarks.peers.torch_case import Case
from benchmarks.peers.torch_crew import Crew, Seat, Work, updates


def contestant(ranks: int) -> Crew:
    """Return a contestant of several processes with one thread each."""
    return Crew(stepping, processes=ranks, share=free_port)


def free_port(case: Case) -> int:
    """Return a free port for the rendezvous of the ranks of a case."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


@contextmanager
def stepping(seat: Seat, case: Case, port: int) -> Iterator[Work]:
    """See torch_crew.Stepping."""
    from torch import distributed
    from torch.nn.parallel import DistributedDataParallel

    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    meet = f"tcp://127.0.0.1:{port}"
    distributed.init_process_group("gloo", init_method=meet, rank=seat.rank, world_size=seat.processes)
    try:
        yield updates(DistributedDataParallel(case.module()), case)
    finally:
        distributed.destroy_process_group()
