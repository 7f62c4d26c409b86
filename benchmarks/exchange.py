"""Measure the exchange of a step between 2, 3, 4 and 8 machines, and the costs that docs/scale.md is computed from.

The machines are virtual nodes of this one (tests/virtual_nodes). Each has one process with a board and a link
(on_nodes/link_node.py) and gradients that cost nothing, so that a step is an exchange and an update. The ratio of the
bytes compares what the node that sends most sends, without the headers of IP and TCP, with 2 P (N - 1) / N, the least
with which N nodes can get a sum of P bytes. The ratio of a time compares it with the simulation's (exchange_model.py).

The costs are fitted to the processor time of the links' threads (least squares of the relative errors). That of the
switch between the nodes is counted as theirs: a node with a real network card takes in its packets itself. Adding is
not fitted: it is NumPy's time for two arrays of a chunk's size. It takes a minute, and needs root.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any, NamedTuple

import numpy as np

from benchmarks.exchange_model import Costs, Counts, Network, counts, exchange_s, is_one_hop, on_one_machine_s
from benchmarks.measure import Row, seconds

NAME = "exchange"
QUESTION = "What do nodes send in a step, what does it cost them, and does the simulation predict its time?"

NODES = (2, 3, 4, 8)
#: number of float32 parameters, and steps of a turn
SIZES = {"36 KB": (9_000, 200), "1.2 MB": (301_000, 20), "17.4 MB": (4_350_000, 3)}
TURNS = 3
BYTES_AT_MOST = 1.03
DELAY_MS, RATE_MBIT = 1.0, 1000.0
CORES = 2


class Turn(NamedTuple):
    """What one node took for a step: seconds, processor time of its link, and of its worker."""

    seconds: float
    link_s: float
    worker_s: float


@dataclass(frozen=True)
class Measurement:
    """The steps of some nodes with one size, on one network.

    Attributes:
        nodes: their number.
        size: a key of SIZES.
        limited: whether the network has a delay and a rate.
        turns: for each turn, what each node took.
        payload: the bytes that each node sent in a step.
        switch_s: the processor time of the switch for a step.
    """

    nodes: int
    size: str
    limited: bool
    turns: list[list[Turn]]
    payload: list[float]
    switch_s: float

    @property
    def nbytes(self) -> int:
        """Bytes of the parameters."""
        return 4 * SIZES[self.size][0]

    @property
    def least(self) -> float:
        """The least bytes that each node has to send."""
        return 2 * self.nbytes * (self.nodes - 1) / self.nodes

    @property
    def seconds(self) -> float:
        """The median of the slowest node's time."""
        return statistics.median(max(node.seconds for node in turn) for turn in self.turns)

    @property
    def link_s(self) -> float:
        """The median processor time of a link, with its share of the switch's."""
        return statistics.median(node.link_s for turn in self.turns for node in turn) + self.switch_s / self.nodes

    @property
    def worker_s(self) -> float:
        """The median processor time of a worker."""
        return statistics.median(node.worker_s for turn in self.turns for node in turn)


def member(connection: Connection, place: Any, numbers: int) -> None:
    """Run one node; True is a turn, False the end."""
    from benchmarks.on_nodes.link_node import LinkNode

    def fill(params: list[Any], views: list[Any]) -> None:
        """Leave the gradients as they are: zero."""

    with LinkNode.open(place, [np.zeros(numbers, np.float32)], rate=0.1) as node:
        connection.send(True)
        while steps := connection.recv():
            start, link, worker = time.perf_counter(), node.link_cpu_s(), time.thread_time()
            for _ in range(steps):
                node.step(fill)
            taken = time.perf_counter() - start, node.link_cpu_s() - link, time.thread_time() - worker
            connection.send(Turn(*(each / steps for each in taken)))


@contextmanager
def running(nodes: Any, count: int, numbers: int) -> Iterator[list[Connection]]:
    """Start nodes for a model of this number of parameters; yield the connections to them."""
    from benchmarks.on_nodes.launching import call_on
    from benchmarks.on_nodes.link_node import places

    made = places([nodes[index].address for index in range(count)])
    started = [call_on(nodes, index, member, place, numbers) for index, place in enumerate(made)]
    connections = [connection for _, connection in started]
    for connection in connections:
        connection.recv()
    yield connections
    for process, connection in started:
        connection.send(0)
        process.join()
        connection.close()


def measure(nodes: Any, count: int, size: str) -> Iterator[Measurement]:
    """Yield the steps on both networks."""
    from benchmarks.on_nodes.meter import cpu_clock

    numbers, steps = SIZES[size]
    with running(nodes, count, numbers) as connections:
        for limited in (False, True):
            nodes.set_delay(DELAY_MS if limited else 0)
            nodes.set_rate(RATE_MBIT if limited else None)
            turn(connections, steps)
            counters, switch = nodes.counters(), time.clock_gettime(cpu_clock(nodes.pid))
            turns = [turn(connections, steps) for _ in range(TURNS)]
            made = steps * TURNS
            sent = [(now - then).sent_payload / made for now, then in zip(nodes.counters(), counters, strict=True)]
            switch_s = (time.clock_gettime(cpu_clock(nodes.pid)) - switch) / made
            yield Measurement(count, size, limited, turns, sent[:count], switch_s)


def turn(connections: list[Connection], steps: int) -> list[Turn]:
    """Let all nodes make their steps."""
    for connection in connections:
        connection.send(steps)
    return [connection.recv() for connection in connections]


# -- costs ------------------------------------------------------------------------------------------------------------


def adding_s() -> float:
    """Return the seconds to add a byte, in arrays of a chunk's size."""
    a, b = np.ones(32 * 1024, np.float32), np.ones(32 * 1024, np.float32)
    return statistics.median(seconds(lambda: np.add(a, b, out=a), number=100) for _ in range(9)) / a.nbytes


def fit(measured: list[Measurement], add_s: float) -> Costs:
    """Return the costs of a link that explain its processor time best."""
    rows, targets = [], []
    for each in measured:
        counted = counted_of(each)
        rest = each.link_s - counted.added * add_s
        rows.append(np.array([1, counted.ends, counted.nbytes]) / each.link_s)
        targets.append(rest / each.link_s)
    found, *_ = np.linalg.lstsq(np.array(rows), np.array(targets), rcond=None)
    step_s, frame_s, byte_s = map(float, np.maximum(found, 0))
    return Costs(step_s=step_s, frame_s=frame_s, byte_s=byte_s, add_s=add_s)


def counted_of(each: Measurement) -> Counts:
    """Return what a link handles in a step."""
    return counts(each.nodes, each.nbytes, one_hop=is_one_hop(each.nodes, each.nbytes))


def predicted_s(each: Measurement, costs: Costs) -> float:
    """Return the simulated time of a step on this machine."""
    network = Network(DELAY_MS * 1e-3, 8 / (RATE_MBIT * 1e6)) if each.limited else Network(0.0, 0.0)
    scheme = "one hop" if is_one_hop(each.nodes, each.nbytes) else "all to all"
    alone = exchange_s(scheme, each.nodes, each.nbytes, costs, network) + each.worker_s
    return on_one_machine_s(alone, each.nodes, each.link_s + each.worker_s, CORES)


# -- rows -------------------------------------------------------------------------------------------------------------


def rows_of(each: Measurement, costs: Costs) -> Iterator[Row]:
    """Yield the rows of one measurement."""
    network = f"{DELAY_MS:g} ms, {RATE_MBIT / 1000:g} Gbit/s" if each.limited else "no limit"
    what = f"{each.nodes} nodes, {each.size}, {network}"
    ratio = each.seconds / predicted_s(each, costs)
    note = f"{each.link_s * 1e3:.3g} ms of a link, {each.worker_s * 1e3:.3g} of a worker"
    yield Row(f"{what}: step", each.seconds * 1e3, "ms", ratio=ratio, ratio_to="simulation", note=note)
    if each.limited:
        most, least = max(each.payload), min(each.payload)
        ratio = most / each.least
        yield Row(
            f"{what}: bytes that a node sends",
            most,
            "bytes",
            ratio=ratio,
            ratio_to="2 P (N - 1) / N",
            aim=f"ratio at most {BYTES_AT_MOST:g}",
            reached=ratio <= BYTES_AT_MOST,
            note=f"the node that sends least: {least / each.least:.4f}",
        )


def run() -> list[Row]:
    from benchmarks.on_nodes import virtual_nodes

    if reason := virtual_nodes.missing():
        return [Row("an exchange between nodes", None, note=reason)]
    with ExitStack() as stack:
        nodes = stack.enter_context(virtual_nodes.VirtualNodes(max(NODES)))
        measured = [each for count in NODES for size in SIZES for each in measure(nodes, count, size)]
    costs = fit([each for each in measured if not each.limited], adding_s())
    updating = [each.worker_s / each.nbytes for each in measured if each.size == "17.4 MB"]
    return [
        *(row for each in measured for row in rows_of(each, costs)),
        Row("cost of a step", costs.step_s * 1e6, "us"),
        Row("cost of a frame, at each end", costs.frame_s * 1e6, "us"),
        Row("cost of a byte, at each end", costs.byte_s * 1e9, "ns"),
        Row("cost of adding a byte", costs.add_s * 1e9, "ns"),
        Row("cost of updating a byte", statistics.median(updating) * 1e9, "ns"),
    ]
