"""A driver on node 0: the one process of a contestant that starts its others by itself."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial
from multiprocessing.connection import Connection

from benchmarks.on_nodes.launching import launch_on
from benchmarks.peers.torch_case import Case
from benchmarks.peers.torch_crew import Crew, Seat
from virtual_nodes import VirtualNodes
from virtual_nodes.ray_nodes import RayNodes

#: begins a case, and ends it; yields a function that runs a turn and returns its seconds
Training = Callable[[Case], AbstractContextManager[Callable[[], float]]]
#: starts and ends what trains all cases on this number of nodes
Driving = Callable[[int], AbstractContextManager[Training]]


def on_ray(driving: Driving, nodes: VirtualNodes, cluster: RayNodes) -> Crew:
    """Return a contestant on a Ray cluster."""
    member = partial(drive_on_ray, driving, len(nodes))
    return Crew(member, processes=1, launch=launch_on(nodes, cluster.driver_environment()))


def drive_on_ray(driving: Driving, nodes: int, seat: Seat, connection: Connection) -> None:
    """Join the cluster, and drive."""
    import ray

    ray.init(log_to_driver=False, logging_level="error")
    drive(driving, nodes, seat, connection)


def drive(driving: Driving, nodes: int, seat: Seat, connection: Connection) -> None:
    """Run the cases and their turns: a Member (peers/torch_crew.py)."""
    with driving(nodes) as training:
        while True:
            case, _ = connection.recv()
            with training(case) as turn:
                connection.send(0.0)
                while connection.recv():
                    connection.send(turn())
            connection.send(0.0)
