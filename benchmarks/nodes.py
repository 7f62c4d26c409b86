"""Compare a training step on two machines with PyTorch's DistributedDataParallel, Ray Train and a parameter server.

The machines are virtual nodes of this one (tests/virtual_nodes) with one training process each, on two networks: with a
delay of 1 ms each way and 1 Gbit/s, and without a limit. All contestants train the same MLP 64-h-h-10 on the same
batches of 256 examples with SGD. All of them are alive at the same time; those that are not measured sleep. It takes
less than four minutes, and needs root, PyTorch and Ray (pip install 'untorn[bench]'). UNTORN_BENCH_TURNS=2 measures
less, and less exactly.

The ratio of a contestant is its time per step divided by that of DistributedDataParallel in the same turn. The rows of
the processor time compare that of all processes of the nodes, less what they use while no contestant has a turn; the
switch between the nodes is not counted. The note of a row gives the bytes that the node which sent most sent in a step,
without headers, as a multiple of the bytes of the parameters.
"""

from __future__ import annotations

import importlib.util
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial

from benchmarks.measure import Row, environment, interleaved, row
from benchmarks.peers.torch_case import Case, mlp, vectors
from benchmarks.peers.torch_crew import Crew
from untorn.engines.processes import worker_variables

NAME = "nodes"
QUESTION = "How fast is a training step on two machines, compared with DistributedDataParallel, Ray Train and others?"

TURNS, WARM_UP, NODES, IDLE_S = 5, 1, 2, 0.2
LIMIT, DDP, RAY_TRAIN, SERVER = (
    "no communication",
    "DistributedDataParallel, gloo",
    "Ray Train, DDP",
    "Ray's parameter-server example",
)
SUM, UNTORN, IDLE = "a sum over untorn's link", "untorn", "idle"

CASES = [
    Case("MLP, h=64", partial(mlp, 64), vectors, batch=256, steps=100),
    Case("MLP, h=512", partial(mlp, 512), vectors, batch=256, steps=20),
    Case("MLP, h=2048", partial(mlp, 2048), vectors, batch=256, steps=3),
]


@dataclass(frozen=True)
class Network:
    """A network between the nodes, and the ratios of untorn's times per step, one per case.

    Attributes:
        name: for the table.
        delay_ms: of a packet, one way.
        rate_mbit: of each node, in 10**6 bits per second; None for no limit.
        to_ddp: the largest ratios to DistributedDataParallel that are aimed at.
        to_server: the same for the parameter server.
    """

    name: str
    delay_ms: float
    rate_mbit: float | None
    to_ddp: tuple[float, ...]
    to_server: tuple[float, ...] = (0.35, 0.4, 0.65)


NETWORKS = [
    Network("1 ms, 1 Gbit/s", 1, 1000, to_ddp=(0.45, 0.8, 0.95)),
    Network("no limit", 0, None, to_ddp=(0.6, 0.9, 1.05)),
]
CPU_TO_DDP = 1.2
#: of each node: a worker of Ray Train and one of untorn
RAY_CPUS = 2


@dataclass
class Used:
    """What the turns of a contestant used.

    Attributes:
        cpu_s: seconds of processors, a number per turn.
        wall_s: the length of each turn, with what surrounds it.
        payload: bytes that the node which sent most sent, a number per turn.
    """

    cpu_s: list[float] = field(default_factory=list)
    wall_s: list[float] = field(default_factory=list)
    payload: list[int] = field(default_factory=list)


def missing() -> str:
    """Return why this benchmark cannot run here, or an empty text."""
    from benchmarks.on_nodes import virtual_nodes

    for library, package in {"torch": "torch", "ray": "ray[train]", "pydantic": "ray[train]"}.items():
        if importlib.util.find_spec(library) is None:
            return f"{library} is not installed (pip install '{package}')"
    return virtual_nodes.missing()


def contestants(nodes, cluster) -> dict[str, Crew]:
    """Return the contestants by name."""
    from benchmarks.on_nodes import link_sum, ray_parameter_server, ray_train, torch_nodes, untorn_nodes
    from benchmarks.on_nodes.driving import on_ray

    return {
        LIMIT: torch_nodes.no_communication(nodes),
        DDP: torch_nodes.ddp(nodes),
        RAY_TRAIN: on_ray(ray_train.driving, nodes, cluster),
        SERVER: on_ray(ray_parameter_server.driving, nodes, cluster),
        SUM: link_sum.contestant(nodes),
        UNTORN: on_ray(untorn_nodes.driving, nodes, cluster),
    }


@contextmanager
def ray_on_nodes() -> Iterator[tuple]:
    """Start the nodes and a Ray cluster on them; yield both."""
    from benchmarks.on_nodes.driving import RayNodes
    from benchmarks.on_nodes.launching import VirtualNodes

    with ExitStack() as stack:
        storage = stack.enter_context(tempfile.TemporaryDirectory(dir="/var/tmp", prefix="untorn-bench-"))
        stack.enter_context(environment({"UNTORN_BENCH_STORAGE": storage}))
        nodes = stack.enter_context(VirtualNodes(NODES))
        cluster = RayNodes(nodes, env=worker_variables(1))
        cluster.start_head(cpus=RAY_CPUS)
        for node in range(1, NODES):
            cluster.join(node, cpus=RAY_CPUS)
        yield nodes, cluster


def metered(turn: Callable[[], float], meter, used: Used) -> Callable[[], float]:
    """Return a turn that also notes what it uses."""

    def measured() -> float:
        meter.read()
        start = time.perf_counter()
        seconds = turn()
        used.wall_s.append(time.perf_counter() - start)
        use = meter.read()
        used.cpu_s.append(use.cpu_s)
        used.payload.append(max(use.payload))
        return seconds

    return measured


def idle() -> float:
    """Let no contestant have this turn."""
    time.sleep(IDLE_S)
    return IDLE_S


def rows_of(
    case: Case, at: int, network: Network, times: Mapping[str, Sequence[float]], uses: Mapping[str, Used]
) -> Iterator[Row]:
    """Yield the rows of a case on a network."""
    what = f"{network.name}: {case.name} ({case.parameters():,} parameters)"
    idle_rate = statistics.median(uses[IDLE].cpu_s) / IDLE_S
    cpu = {
        name: [(s - idle_rate * wall) / case.steps for s, wall in zip(used.cpu_s, used.wall_s, strict=True)][WARM_UP:]
        for name, used in uses.items()
    }
    for name, seconds in times.items():
        if name == IDLE:
            continue
        sent = statistics.median(uses[name].payload) / case.steps / (4 * case.parameters())
        note = f"{statistics.median(cpu[name]) * 1e3:.3g} ms of processors; sends {sent:.2f} P"
        compared = {} if name == DDP else {"to": times[DDP], "ratio_to": "DDP"}
        aim = network.to_ddp[at] if name == UNTORN else None
        yield row(f"{what}: {name}", seconds, unit="ms", **compared, ratio_at_most=aim, note=note)
    yield row(
        f"{what}: untorn, against the parameter server",
        times[UNTORN],
        unit="ms",
        to=times[SERVER],
        ratio_to="parameter server",
        ratio_at_most=network.to_server[at],
    )
    yield row(
        f"{what}: untorn, processor time per step",
        cpu[UNTORN],
        unit="ms",
        to=cpu[DDP],
        ratio_to="DDP",
        ratio_at_most=CPU_TO_DDP,
    )


def run() -> list[Row]:
    if reason := missing():
        return [Row("a step on two machines", None, note=reason)]
    from benchmarks.on_nodes.meter import Meter

    rows: list[Row] = []
    turns = int(os.environ.get("UNTORN_BENCH_TURNS", TURNS))
    with ray_on_nodes() as (nodes, cluster), ExitStack() as stack:
        crews = {name: stack.enter_context(each) for name, each in contestants(nodes, cluster).items()}
        meter = Meter(nodes)
        for at, case in enumerate(CASES):
            with ExitStack() as trainings:
                each = {name: trainings.enter_context(crew.training(case)) for name, crew in crews.items()}
                for network in NETWORKS:
                    nodes.set_delay(network.delay_ms)
                    nodes.set_rate(network.rate_mbit)
                    uses = {name: Used() for name in [*each, IDLE]}
                    measured = {name: metered(turn, meter, uses[name]) for name, turn in {**each, IDLE: idle}.items()}
                    times = interleaved(measured, turns=turns, warm_up=WARM_UP)
                    rows += rows_of(case, at, network, times, uses)
                nodes.set_delay(0)
                nodes.set_rate(None)
    return rows
