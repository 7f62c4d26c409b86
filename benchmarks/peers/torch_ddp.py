"""DistributedDataParallel with gloo: gradients are averaged while backward runs."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import NamedTuple

from benchmarks.peers.torch_case import Case
from benchmarks.peers.torch_crew import Crew, Seat, Work, take_part, updates


class Meeting(NamedTuple):
    """Where the ranks of a case meet, and the network device that they use."""

    device: str
    host: str
    port: int


def contestant(ranks: int) -> Crew:
    """Return a contestant of several processes with one thread each."""
    return Crew(partial(take_part, stepping), processes=ranks, share=meeting)


def meeting(case: Case) -> Meeting:
    """Return a meeting on this machine."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return Meeting("lo", "127.0.0.1", server.getsockname()[1])


@contextmanager
def stepping(seat: Seat, case: Case, where: Meeting) -> Iterator[Work]:
    """See torch_crew.Stepping."""
    from torch import distributed
    from torch.nn.parallel import DistributedDataParallel

    os.environ["GLOO_SOCKET_IFNAME"] = where.device
    meet = f"tcp://{where.host}:{where.port}"
    distributed.init_process_group("gloo", init_method=meet, rank=seat.rank, world_size=seat.processes)
    try:
        yield updates(DistributedDataParallel(case.module()), case)
    finally:
        distributed.destroy_process_group()
