"""Ray Train's TorchTrainer, which runs DistributedDataParallel with gloo in an actor on each node.

The training function waits at a gate, an actor, for the driver's orders.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Thread
from typing import Any

from benchmarks.on_nodes.driving import Training
from benchmarks.peers.torch_case import Case
from benchmarks.peers.torch_crew import Seat, updates


class Gate:
    """Where the workers wait for their orders: a Case begins, True is a turn, False ends the case."""

    def __init__(self, workers: int) -> None:
        self._orders = [asyncio.Queue[Case | bool]() for _ in range(workers)]
        self._seconds = asyncio.Queue[float]()

    async def order(self, rank: int) -> Case | bool:
        """Return the next order of a worker."""
        return await self._orders[rank].get()

    async def done(self, seconds: float) -> None:
        """Note that a worker has followed its order."""
        self._seconds.put_nowait(seconds)

    async def give(self, order: Case | bool) -> float:
        """Give all workers an order; return the seconds of the slowest once all have followed it."""
        for orders in self._orders:
            orders.put_nowait(order)
        return max([await self._seconds.get() for _ in self._orders])


def train(config: dict[str, Any]) -> None:
    """Train one case after the other: the function of each worker."""
    import ray
    import torch
    from ray import train as ray_train

    torch.set_num_threads(1)
    gate, context = config["gate"], ray_train.get_context()
    seat = Seat(context.get_world_rank(), context.get_world_size(), 1)
    while True:
        case = ray.get(gate.order.remote(seat.rank))
        train_case(seat, case, gate)
        ray.get(gate.done.remote(0.0))


def train_case(seat: Seat, case: Case, gate: Any) -> None:
    """Run the turns of a case."""
    import ray
    import torch
    from ray.train.torch import prepare_model

    work = updates(prepare_model(case.module()), case)
    x, y = (torch.from_numpy(part) for part in case.data())
    share, turns = case.batch // seat.processes, itertools.count()
    ray.get(gate.done.remote(0.0))
    while ray.get(gate.order.remote(seat.rank)):
        start = time.perf_counter()
        order = torch.from_numpy(case.order(next(turns)))
        for first in range(seat.rank * share, case.examples, case.batch):
            mine = order[first : first + share]
            work.step(x[mine], y[mine])
        ray.get(gate.done.remote(time.perf_counter() - start))
    case.check(work.module)


@contextmanager
def driving(nodes: int) -> Iterator[Training]:
    """See driving.Driving. The training ends with the driver."""
    import ray
    from ray.train import RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    gate = ray.remote(Gate).options(num_cpus=0, resources={"node0": 1}).remote(nodes)
    trainer = TorchTrainer(
        train,
        train_loop_config={"gate": gate},
        scaling_config=ScalingConfig(num_workers=nodes, placement_strategy="STRICT_SPREAD"),
        run_config=RunConfig(storage_path=os.environ["UNTORN_BENCH_STORAGE"]),
    )
    fit = Fit(trainer)
    fit.start()

    @contextmanager
    def training(case: Case) -> Iterator[Callable[[], float]]:
        fit.wait_for(gate.give.remote(case))
        yield lambda: fit.wait_for(gate.give.remote(True))
        fit.wait_for(gate.give.remote(False))

    yield training


class Fit(Thread):
    """A thread in which the trainer's ``fit`` blocks."""

    def __init__(self, trainer: Any) -> None:
        super().__init__(daemon=True)
        self._trainer = trainer
        self._error: BaseException | None = None

    def run(self) -> None:
        try:
            self._trainer.fit()
        except BaseException as error:
            self._error = error

    def check(self) -> None:
        """Raise the error of ``fit``."""
        if self._error is not None:
            raise self._error

    def wait_for(self, answer: Any) -> Any:
        """Return the value of a reference of Ray, unless ``fit`` ends before. Raises its error."""
        import ray

        while not ray.wait([answer], timeout=1.0)[0]:
            if not self.is_alive():
                self.check()
                raise RuntimeError("the training ended before its last turn")
        return ray.get(answer)
