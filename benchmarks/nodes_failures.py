"""Measure how long training stands still when a node is killed, cut off or added: untorn and Ray Train.

Two virtual nodes (tests/virtual_nodes) train the same MLP with one worker each, on a network with a delay of 1 ms and
1 Gbit/s; node 0 has the head of the Ray cluster and the driver. untorn trains on whatever nodes there are: a third node
joins, then one is killed, then one is cut off. Ray Train has the third node as a spare from the beginning, and a
checkpoint every 50 steps. Both run with Ray's default settings, one after the other.

A gap is the longest time between two steps in the window after the event, which ends some seconds after training went
on. The note gives the median time between two steps before it, and the number of steps that were made again. It takes
less than four minutes, and needs root, PyTorch and Ray (pip install 'untorn[bench]').
"""

from __future__ import annotations

import itertools
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from benchmarks.measure import Row, environment
from benchmarks.nodes import CASES, NETWORKS, missing
from benchmarks.on_nodes.recording import Step, drive_ray_train, drive_untorn
from untorn.engines.processes import worker_variables

NAME = "nodes_failures"
QUESTION = "How long does training stand still when a node is killed, cut off or added?"

CASE = replace(CASES[0], steps=200)
NODES, WORKERS = 4, 2
#: a training that has made no step for so long after an event is given up
GIVE_UP_S = 120.0
STEADY_STEPS, STEADY_S = 100, 2.0
AIMS_S = {"killed": 0.5, "cut off": 5.0}
JOINED_AT_MOST_S = 0.5


class Training:
    """A training on nodes, as its driver records it."""

    def __init__(self, name: str, process: Any, connection: Connection) -> None:
        self.name = name
        self._process, self._connection = process, connection
        self.steps: list[Step] = []

    def read(self) -> None:
        """Get the steps that were made since the last call."""
        self._connection.send(("steps", len(self.steps)))
        self.steps += self._connection.recv()

    def wait_for_nodes(self, nodes: int) -> None:
        """Wait until this number of nodes take part."""
        self._connection.send(("nodes", nodes))
        self._connection.recv()

    def wait_for_steps(self, count: int, since_s: float) -> bool:
        """Wait until this number of steps were made after a time; return False if none is made for GIVE_UP_S."""
        while True:
            self.read()
            after = [step for step in self.steps if step.time_s > since_s]
            if len(after) >= count:
                return True
            newest = after[-1].time_s if after else since_s
            if time.monotonic() - newest > GIVE_UP_S:
                return False
            time.sleep(0.1)

    def end(self) -> None:
        self._connection.close()
        self._process.kill()
        self._process.join()


@contextmanager
def cluster() -> Iterator[tuple[Any, Any]]:
    """Start the nodes and a Ray cluster of the first three; yield both."""
    from benchmarks.on_nodes.driving import RayNodes
    from benchmarks.on_nodes.launching import VirtualNodes

    with ExitStack() as stack:
        storage = stack.enter_context(tempfile.TemporaryDirectory(dir="/var/tmp", prefix="untorn-bench-"))
        stack.enter_context(environment({"UNTORN_BENCH_STORAGE": storage}))
        nodes = stack.enter_context(VirtualNodes(NODES, delay_ms=NETWORKS[0].delay_ms, rate_mbit=NETWORKS[0].rate_mbit))
        ray_nodes = RayNodes(nodes, env=worker_variables(1))
        ray_nodes.start_head(cpus=0)
        ray_nodes.join(1)
        ray_nodes.join(2)
        yield nodes, ray_nodes


@contextmanager
def training(name: str, nodes: Any, ray_nodes: Any, drive: Callable[..., None], *arguments: Any) -> Iterator[Training]:
    """Start a training and wait until it is steady."""
    from benchmarks.on_nodes.launching import call_on

    started = Training(name, *call_on(nodes, 0, drive, CASE, *arguments, env=ray_nodes.driver_environment()))
    try:
        if not started.wait_for_steps(STEADY_STEPS, time.monotonic()):
            raise RuntimeError(f"{name} made no step in {GIVE_UP_S} s")
        yield started
    finally:
        started.end()


def gap_row(running: Training, event: str, act: Callable[[], None]) -> Row:
    """Let something happen to the nodes; return the row of the gap that follows."""
    start = time.monotonic()
    usual = usual_s(running.steps)
    act()
    happened = time.monotonic()
    what = f"{running.name}: a node is {event}"
    went_on = running.wait_for_steps(STEADY_STEPS, happened)
    if went_on:
        time.sleep(STEADY_S)
        running.read()
    gap, again = longest_gap(running.steps, start)
    aim = AIMS_S.get(event, JOINED_AT_MOST_S) if running.name == "untorn" else None
    return Row(
        what,
        gap if went_on else None,
        "s",
        aim="" if aim is None else f"at most {aim:g} s",
        reached=None if aim is None else went_on and gap <= aim,
        note=f"{again} steps again; otherwise {usual * 1e3:.2g} ms" if went_on else f"no step for {GIVE_UP_S:g} s",
    )


def usual_s(steps: Sequence[Step]) -> float:
    """Return the mean time between two steps of the last STEADY_STEPS."""
    return statistics.mean(b.time_s - a.time_s for a, b in itertools.pairwise(steps[-STEADY_STEPS:]))


def longest_gap(steps: Sequence[Step], since_s: float) -> tuple[float, int]:
    """Return the longest time between two steps that ended after this time, and the number of steps made again."""
    pairs = [(a, b) for a, b in itertools.pairwise(steps) if b.time_s > since_s]
    gap = max(b.time_s - a.time_s for a, b in pairs)
    again = sum(max(0, a.number - b.number + 1) for a, b in pairs)
    return gap, again


def untorn_rows(nodes: Any, ray_nodes: Any) -> Iterator[Row]:
    """Yield the rows of untorn. The third node becomes one of the Ray cluster, and so of the training."""
    with training("untorn", nodes, ray_nodes, drive_untorn) as running:

        def add() -> None:
            ray_nodes.join(3)
            running.wait_for_nodes(NODES - 1)

        running.wait_for_nodes(WORKERS)
        yield gap_row(running, "added", add)
        yield gap_row(running, "killed", nodes[2].kill)
        yield gap_row(running, "cut off", partial(nodes.cut, 3))


def ray_train_rows(nodes: Any, ray_nodes: Any) -> Iterator[Row]:
    """Yield the rows of Ray Train, which keeps a spare node."""
    with training("Ray Train", nodes, ray_nodes, drive_ray_train, WORKERS) as running:
        yield gap_row(running, "killed", nodes[busy(nodes)].kill)
        for node in range(1, NODES):
            if not nodes[node].pids():
                join_again(nodes, ray_nodes, node)
        yield gap_row(running, "cut off", partial(nodes.cut, busy(nodes)))


def busy(nodes: Any) -> int:
    """Return the number of a node that trains with Ray Train."""
    for node in range(1, NODES):
        if any("RayTrainWorker" in Path(f"/proc/{pid}/cmdline").read_text() for pid in nodes[node].pids()):
            return node
    raise RuntimeError("no node trains")


def join_again(nodes: Any, ray_nodes: Any, node: int) -> None:
    """Let a node that was killed or cut off join the cluster again, as a new one."""
    nodes[node].kill()
    nodes.heal(node)
    nodes[node].start()
    ray_nodes.join(node)


def run() -> list[Row]:
    if reason := missing():
        return [Row("a failure of a node", None, note=reason)]
    with cluster() as (nodes, ray_nodes):
        rows = list(untorn_rows(nodes, ray_nodes))
        for node in (2, 3):
            join_again(nodes, ray_nodes, node)
        rows += ray_train_rows(nodes, ray_nodes)
    return rows
