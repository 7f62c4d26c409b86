"""The nodes of the Ray cluster, and where this process is among them."""

from __future__ import annotations

import os
import socket
from typing import Any, NamedTuple

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

__all__ = ["Machine", "ensure_ray", "machines", "on_node", "own_address", "own_node"]

#: how long a cluster may take to accept a connection
_ANSWER_TIMEOUT_S = 10.0


class Machine(NamedTuple):
    """A living node of the Ray cluster. It is called a machine here, since several nodes of a training may run on it.

    Attributes:
        id: as Ray has it.
        address: its IP address.
        name: its host name.
        total: its resources, by name.
        free: those of them that nobody uses.
    """

    id: str
    address: str
    name: str
    total: dict[str, float]
    free: dict[str, float]

    def __str__(self) -> str:
        return f"{self.name} ({self.address})"


def ensure_ray(options: dict[str, Any] | None = None) -> None:
    """Call ``ray.init(**options)`` if nobody has. It joins the cluster that RAY_ADDRESS or ``options`` name, or one
    that runs on this machine, and otherwise starts one. Raises ConnectionError, which names the address, if there is no
    cluster at it."""
    if ray.is_initialized():
        return
    address = str((options or {}).get("address") or os.environ.get("RAY_ADDRESS") or "")
    if address.startswith("ray://"):
        raise ConnectionError(
            f"{address} is for Ray Client, whose program runs outside the cluster, where nodes cannot connect to it; "
            "run the program on a node of the cluster, such as with `ray job submit`"
        )
    _check_answers(address)
    try:
        ray.init(**(options or {}))
    except ConnectionError as error:
        raise _no_cluster(address or "this machine", error) from error


def _check_answers(address: str) -> None:
    """Check that somebody listens at HOST:PORT, since Ray takes minutes to find out that nobody does."""
    host, colon, port = address.rpartition(":")
    if not colon or "/" in address or not port.isdecimal():
        return  # "auto", "local", ray://...
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_ANSWER_TIMEOUT_S).close()
    except OSError as error:
        raise _no_cluster(address, error) from None


def _no_cluster(address: str, error: OSError) -> ConnectionError:
    return ConnectionError(
        f"there is no Ray cluster at {address} ({error.strerror or error}); start one with `ray start --head`, or give "
        "another address as RAY_ADDRESS, or to ray.init()"
    )


def machines() -> list[Machine]:
    """Return the nodes of the cluster that are alive, according to Ray, by name."""
    from ray._private.state import available_resources_per_node  # for developers; what is public has sums only

    free: dict[str, dict[str, float]] = available_resources_per_node()  # type: ignore[no-untyped-call]  # Ray's
    found = [
        Machine(
            str(node["NodeID"]),
            str(node["NodeManagerAddress"]),
            str(node["NodeManagerHostname"]),
            dict(node["Resources"]),
            dict(free.get(node["NodeID"], {})),
        )
        for node in ray.nodes()  # type: ignore[no-untyped-call]  # Ray's
        if node["Alive"]
    ]
    return sorted(found, key=lambda machine: (machine.name, machine.id))


def own_node() -> str:
    """Return the id of the node that this process runs on."""
    return str(ray.get_runtime_context().get_node_id())


def own_address() -> str:
    """Return the IP address of this node at which other nodes reach it."""
    return str(ray.util.get_node_ip_address())  # type: ignore[no-untyped-call]  # Ray's


def on_node(id: str) -> NodeAffinitySchedulingStrategy:
    """Return the strategy that places an actor on the node with this id, or not at all."""
    return NodeAffinitySchedulingStrategy(id, soft=False)
