"""The interface of a cluster, which starts node processes and tells which of them have ended.

::

    driver ── start(invitation) ──> Cluster ──> node process, on another machine or on this one
       ^                                             │
       └──────── connects to invitation.address <────┘

A cluster does nothing else: nodes, driver and peers talk to each other over connections of their own. Implementations
are LoopbackCluster, whose nodes are processes of this machine, and untorn.ray.RayCluster.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

__all__ = ["Cluster", "Ended", "Figures", "Invitation"]


@dataclass(frozen=True)
class Invitation:
    """What a node process needs to join. It is pickled, and only shown to the node: it contains the secret.

    Attributes:
        address: the host and port at which the driver listens.
        secret: what all connections of this training are authenticated with.
        number: the number of the node process; no two of a training have the same.
        workers: the number of workers that the node begins with.
        neighbours: the number of nodes that share its machine.
        main: a function at the top of a module, called with the Node: what the node process is for.
    """

    address: tuple[str, int]
    secret: bytes = field(repr=False)
    number: int
    workers: int
    neighbours: int
    main: Callable[[Any], None]


@dataclass(frozen=True)
class Ended:
    """A node process that has ended, or could not be started.

    Attributes:
        number: the number of its invitation.
        reason: why, in words that follow "node 3": "was killed by signal 9".
    """

    number: int
    reason: str


@dataclass(frozen=True)
class Figures:
    """What a training has done so far.

    Attributes:
        name: the name of the trainer, or None.
        step: the number of steps since the training began.
        batch_size: the number of examples of a step.
        restarts: the number of nodes and workers that were lost and replaced.
        nodes: the nodes, as a job's status lists them.
    """

    name: str | None
    step: int
    batch_size: int
    restarts: int
    nodes: list[dict[str, Any]]


class Cluster(ABC):
    """Starts node processes. Its methods are called by one thread at a time. Abstract.

    Attributes:
        name: its name in messages: "ray", "loopback".
        host: the address of this machine, at which nodes reach the driver.
        workers: the number of workers that each node begins with; set by open().
        same_bits: whether a node is refused whose processor gives other bits than that of the first node.
    """

    name: str
    host: str
    workers: int
    same_bits: bool = True

    @abstractmethod
    def open(self, nodes: int | None, workers: int | None) -> None:
        """Prepare to run this number of nodes with this number of workers each; None for what the cluster has: all its
        nodes, and one worker per processor. Called once.

        Raises an error that names what is asked for and what is there: CapacityError for too few resources,
        ConnectionError if there is no cluster, ImportError for a missing library.
        """

    @abstractmethod
    def start(self, invitation: Invitation) -> bool:
        """Start one more node process, which calls ``run_node(invitation)``. Returns at once: False, with nothing
        started, if the cluster has no room for one now."""

    @abstractmethod
    def wanted(self) -> int:
        """Return the number of nodes that there should be now. It changes if open() was asked for all there are."""

    def neighbours(self) -> int:
        """Return the number of nodes that share one machine."""
        return 1

    @abstractmethod
    def resize(self, nodes: int) -> None:
        """Change the number of nodes. Raises ValueError or CapacityError."""

    @abstractmethod
    def ended(self) -> list[Ended]:
        """Return the node processes that have ended since the last call."""

    @abstractmethod
    def stop(self, number: int, *, lost: bool = False) -> None:
        """End a node process, whatever it is doing. Returns at once. ``lost``: it does not answer, or its connections
        broke; perhaps its machine is gone, and another one is better for the next node."""

    def show(self, figures: Figures) -> None:  # noqa: B027 (most clusters show nothing)
        """Show how the training goes where users of the cluster look. Called several times a second while a job runs;
        does nothing by default."""

    @abstractmethod
    def close(self) -> None:
        """End all node processes, and wait until those of this machine have ended."""
