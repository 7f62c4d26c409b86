"""The nodes of the Ray cluster, and where this process is among them."""

from __future__ import annotations

import os
import socket
from typing import Any, NamedTuple

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

__all__ = ["Node", "ensure_ray", "living_nodes", "on_node", "own_address", "own_node"]

#: how long a cluster may take to accept a connection
_ANSWER_TIMEOUT_S = 10.0


class Node(NamedTuple):
    """A living node.

    Attributes:
        id: as Ray has it.
        address: its IP address.
        name: its host name.
    """

    id: str
    address: str
    name: str

    def __str__(self) -> str:
        return f"{self.name} ({self.address})"


def ensure_ray(options: dict[str, Any] | None = None) -> None:
    """Call ``ray.init(**options)`` if nobody has. It joins the cluster that RAY_ADDRESS or ``options`` name, or one
    that runs on this machine, and otherwise starts one. Raises ConnectionError, which names the address, if there is no
    cluster at it."""
    if ray.is_initialized():
        return
    address = str((options or {}).get("address") or os.environ.get("RAY_ADDRESS") or "")
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


def living_nodes() -> list[Node]:
    """Return the nodes that are alive, according to Ray."""
    return [
        Node(str(node["NodeID"]), str(node["NodeManagerAddress"]), str(node["NodeManagerHostname"]))
        for node in ray.nodes()  # type: ignore[no-untyped-call]  # Ray's
        if node["Alive"]
    ]


def own_node() -> str:
    """Return the id of the node that this process runs on."""
    return str(ray.get_runtime_context().get_node_id())


def own_address() -> str:
    """Return the IP address of this node at which other nodes reach it."""
    return str(ray.util.get_node_ip_address())  # type: ignore[no-untyped-call]  # Ray's


def on_node(node: Node) -> NodeAffinitySchedulingStrategy:
    """Return the strategy that places an actor on this node, or not at all."""
    return NodeAffinitySchedulingStrategy(node.id, soft=False)
