"""Simulate the exchange of a step between any number of nodes, from costs that `benchmarks/exchange.py` measures.

A node has one thread for its link, and a cable in each direction. The thread sends one frame after the other, which
costs processor time per frame and per byte; the cable carries a frame in its bytes / rate; the frame arrives a latency
later, occupies the receiver's cable for as long, and costs the receiver's thread the same as the sender's. A byte of a
sum costs as much again to add. All nodes do this at the same time, and may begin at different times. The schemes:

    one_hop       everyone sends its whole sum to everyone: the fewest messages one after the other, the most bytes
    all_to_all    reduce-scatter and all-gather: everyone sends each node its part, which that node adds up and sends
                  to everyone. The bytes are the least possible, 2 P (N - 1) / N for each node
    two_levels    the same in groups of about the square root of N nodes, then across the groups, and back: the same
                  bytes, few messages for each node, and twice as many latencies
    ring          reduce-scatter and all-gather along a ring, as libraries for GPUs do it: 2 (N - 1) latencies
    one_owner     a parameter server: one node gets everything and sends everything

The nodes lie in an array with an axis for each level; a message to the peer at distance r along an axis is a roll.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

_Times = np.ndarray[Any, np.dtype[np.float64]]
_MESSAGES_MAX = 512
_CHUNKS, _CHUNK_MIN, _CHUNK_MAX, _ONE_HOP_MAX = 8, 32 * 1024, 256 * 1024, 64 * 1024


@dataclass(frozen=True)
class Costs:
    """Processor time of a node's link.

    Attributes:
        step_s: of a step, whatever is exchanged.
        frame_s: of a frame, at each of its two ends.
        byte_s: of a byte, at each of its two ends.
        add_s: to add a byte of one sum to another.
    """

    step_s: float
    frame_s: float
    byte_s: float
    add_s: float


@dataclass(frozen=True)
class Network:
    """What every cable has.

    Attributes:
        latency_s: of a frame, one way.
        byte_s: seconds per byte: 8 / (bits per second), 0 without a limit.
    """

    latency_s: float
    byte_s: float


class Message(NamedTuple):
    """Frames that are simulated as one."""

    nbytes: float
    frames: float


class Nodes:
    """When each node's link thread and cables are free.

    Args:
        shape: how many nodes there are along each axis.
        begin_s: when each node has its gradients; of this shape, or one number.
    """

    def __init__(self, shape: tuple[int, ...], costs: Costs, network: Network, begin_s: Any = 0.0) -> None:
        self.costs, self.network = costs, network
        self.thread: _Times = np.zeros(shape) + begin_s + costs.step_s
        self._out: _Times = np.zeros(shape)
        self._in: _Times = np.zeros(shape)

    def send(self, message: Message, axis: int, distance: int) -> _Times:
        """Let every node send a message to the peer at this distance; return when each node has what was sent to it."""
        self.thread = self.thread + self._handling_s(message)
        takes = message.nbytes * self.network.byte_s
        self._out = np.maximum(self._out, self.thread) + takes
        first = np.roll(self._out - takes, distance, axis) + self.network.latency_s
        self._in = np.maximum(self._in, first) + takes
        return self._in

    def receive(self, arrives: _Times, message: Message, *, add: bool) -> None:
        """Let every node take a message in, and add it to a sum."""
        takes = self._handling_s(message) + (message.nbytes * self.costs.add_s if add else 0.0)
        self.thread = np.maximum(self.thread, arrives) + takes

    def _handling_s(self, message: Message) -> float:
        return message.frames * self.costs.frame_s + message.nbytes * self.costs.byte_s

    @property
    def ends_s(self) -> float:
        """When the last node is ready."""
        return float(self.thread.max())


def messages(nbytes: float, peers: int) -> list[Message]:
    """Cut what goes to each peer into frames, and bundle these where there are very many, to have less to simulate."""
    frames = frame_count(nbytes)
    bundles = min(frames, max(1, _MESSAGES_MAX // max(1, peers)))
    return [Message(nbytes / bundles, frames / bundles)] * bundles


def frame_count(nbytes: float) -> int:
    """Return the number of frames that these bytes go to a peer in, as in csrc/exchange_plan.c."""
    chunk = min(max(nbytes / _CHUNKS, _CHUNK_MIN), _CHUNK_MAX)
    return max(1, math.ceil(nbytes / chunk))


def is_one_hop(nodes: int, nbytes: float) -> bool:
    """Return whether nodes send each other everything, as in csrc/exchange_plan.c; if not, all to all."""
    return nodes <= 2 or nbytes * (nodes - 1) <= _ONE_HOP_MAX


def reduce_scatter(nodes: Nodes, nbytes: float, axis: int) -> None:
    """Leave on each node the sum of one part, of the nodes along this axis."""
    distances = range(1, nodes.thread.shape[axis])
    parts = messages(nbytes / nodes.thread.shape[axis], len(distances))
    sent = [(part, nodes.send(part, axis, distance)) for part in parts for distance in distances]
    for part, arrives in sent:
        nodes.receive(arrives, part, add=True)


def all_gather(nodes: Nodes, nbytes: float, axis: int) -> None:
    """Give each node the parts of the others along this axis."""
    distances = range(1, nodes.thread.shape[axis])
    parts = messages(nbytes / nodes.thread.shape[axis], len(distances))
    sent = [(part, nodes.send(part, axis, distance)) for part in parts for distance in distances]
    for part, arrives in sent:
        nodes.receive(arrives, part, add=False)


def scatter_and_gather(nodes: Nodes, nbytes: float, axis: int) -> None:
    """Do both; a frame's sum is sent as soon as it is complete."""
    distances = range(1, nodes.thread.shape[axis])
    parts = messages(nbytes / nodes.thread.shape[axis], len(distances))
    roots = [[nodes.send(part, axis, distance) for distance in distances] for part in parts]
    sums = []
    for part, frames in zip(parts, roots, strict=True):
        for arrives in frames:
            nodes.receive(arrives, part, add=True)
        sums += [(part, nodes.send(part, axis, distance)) for distance in distances]
    for part, arrives in sums:
        nodes.receive(arrives, part, add=False)


def _one_hop(nodes: Nodes, nbytes: float) -> None:
    distances = range(1, nodes.thread.size)
    wholes = messages(nbytes, len(distances))
    sent = [(whole, nodes.send(whole, 0, distance)) for whole in wholes for distance in distances]
    for part, arrives in sent:
        nodes.receive(arrives, part, add=True)


def _all_to_all(nodes: Nodes, nbytes: float) -> None:
    scatter_and_gather(nodes, nbytes, 0)


def _two_levels(nodes: Nodes, nbytes: float) -> None:
    members = nodes.thread.shape[1]
    reduce_scatter(nodes, nbytes, 1)
    scatter_and_gather(nodes, nbytes / members, 0)
    all_gather(nodes, nbytes, 1)


def _ring(nodes: Nodes, nbytes: float) -> None:
    count = nodes.thread.size
    parts = messages(nbytes / count, 1)
    for add in [True] * (count - 1) + [False] * (count - 1):
        for part, arrives in [(part, nodes.send(part, 0, 1)) for part in parts]:
            nodes.receive(arrives, part, add=add)


def _one_owner(nodes: Nodes, nbytes: float) -> None:
    """Compute in closed form, since the owner's thread and cable are always the last ones."""
    others, costs, network = nodes.thread.size - 1, nodes.costs, nodes.network
    frames, cable = frame_count(nbytes), nbytes * network.byte_s
    end = frames * costs.frame_s + nbytes * costs.byte_s
    gets = max(others * (end + nbytes * costs.add_s), others * cable)
    sends = max(others * end, others * cable)
    nodes.thread = nodes.thread + 2 * (end + network.latency_s) + gets + sends


SCHEMES: dict[str, Callable[[Nodes, float], None]] = {
    "one owner": _one_owner,
    "one hop": _one_hop,
    "ring": _ring,
    "all to all": _all_to_all,
    "two levels": _two_levels,
}


def exchange_s(scheme: str, nodes: int, nbytes: float, costs: Costs, network: Network, begin_s: Any = 0.0) -> float:
    """Return when the last node has the sum of all, in seconds.

    Args:
        scheme: a key of SCHEMES.
        nodes: their number.
        nbytes: of the gradients, which is that of the parameters.
        begin_s: when the nodes have their gradients: one number, or one for each node.
    """
    if nodes == 1:
        return float(np.max(begin_s)) + costs.step_s
    shape = group_shape(nodes) if scheme == "two levels" else (nodes,)
    begin_s = np.reshape(begin_s, shape) if np.size(begin_s) > 1 else begin_s
    simulated = Nodes(shape, costs, network, begin_s)
    SCHEMES[scheme](simulated, nbytes)
    return simulated.ends_s


def group_shape(nodes: int) -> tuple[int, int]:
    """Return the number of groups and that of their members, the divisors of ``nodes`` next to its square root."""
    members = next(each for each in itertools.count(math.isqrt(nodes), -1) if nodes % each == 0)
    return members, nodes // members


@dataclass(frozen=True)
class Counts:
    """What one node's link handles in a step.

    Attributes:
        ends: frames that it sends, and frames that it receives.
        nbytes: bytes of both.
        added: bytes that it adds up.
    """

    ends: int
    nbytes: float
    added: float


def counts(nodes: int, nbytes: float, *, one_hop: bool) -> Counts:
    """Count for the exchange among this number of nodes."""
    peers = nodes - 1
    part = nbytes if one_hop else nbytes / nodes
    frames = frame_count(part)
    rounds = 1 if one_hop else 2
    measurements = 1  # a frame with the shards' losses, to each peer and from each
    return Counts(2 * peers * (rounds * frames + measurements), 2 * rounds * peers * part, peers * part)


def on_one_machine_s(seconds: float, nodes: int, processor_s: float, cores: int) -> float:
    """Return the time of an exchange between virtual nodes, which share the processors of one machine: no less than the
    processor time of all nodes divided by the number of processors."""
    return max(seconds, nodes * processor_s / cores)
