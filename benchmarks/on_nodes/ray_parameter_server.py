"""Ray's example of a parameter server (Ray's documentation, "Parameter Server", the synchronous one).

The server, an actor, sums the gradients and updates the weights; the workers get the weights as a dictionary of tensors
and return their gradients as arrays, all as objects of Ray. The server is on node 0, a worker is on each node.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from benchmarks.on_nodes.driving import Training
from benchmarks.peers.torch_case import Case
from benchmarks.peers.torch_crew import gradients


class Server:
    """The owner of the weights."""

    def begin(self, case: Case, workers: int) -> dict[str, Any]:
        """Begin a case; return its first weights."""
        import torch

        torch.set_num_threads(1)
        self._case = case
        self._module = case.module()
        self._optimizer = case.torch_optimizer(self._module.parameters())
        self._workers = workers
        return self.weights()

    def weights(self) -> dict[str, Any]:
        return dict(self._module.state_dict())

    def apply(self, *grads: list[Any]) -> dict[str, Any]:
        """Update the weights with the mean of the workers' gradients, and return them."""
        import numpy as np
        import torch

        for parameter, parts in zip(self._module.parameters(), zip(*grads, strict=True), strict=True):
            parameter.grad = torch.from_numpy(np.stack(parts).sum(axis=0) / self._workers)
        self._optimizer.step()
        return self.weights()

    def check(self) -> None:
        self._case.check(self._module)


class Worker:
    """Computes the gradients of its part of each batch."""

    def begin(self, case: Case, rank: int, workers: int) -> None:
        """Begin a case."""
        import torch

        torch.set_num_threads(1)
        self._module = case.module()
        self._step = gradients(self._module).step
        self._case, self._rank, self._share = case, rank, case.batch // workers
        self._x, self._y = (torch.from_numpy(part) for part in case.data())

    def gradients(self, weights: dict[str, Any], turn: int, step: int) -> list[Any]:
        import torch

        self._module.load_state_dict(weights)
        if step == 0:
            self._order = torch.from_numpy(self._case.order(turn))
        first = step * self._case.batch + self._rank * self._share
        mine = self._order[first : first + self._share]
        self._step(self._x[mine], self._y[mine])
        return [parameter.grad.numpy() for parameter in self._module.parameters() if parameter.grad is not None]


@contextmanager
def driving(nodes: int) -> Iterator[Training]:
    """See driving.Driving."""
    import ray

    server = ray.remote(Server).options(num_cpus=0, resources={"node0": 1}).remote()
    remote = ray.remote(Worker)
    workers = [remote.options(num_cpus=0, resources={f"node{rank}": 1}).remote() for rank in range(nodes)]

    @contextmanager
    def training(case: Case) -> Iterator[Callable[[], float]]:
        ray.get([worker.begin.remote(case, rank, nodes) for rank, worker in enumerate(workers)])
        yield partial(turn, case, server, workers, [ray.get(server.begin.remote(case, nodes))], itertools.count())
        ray.get(server.check.remote())

    yield training


def turn(case: Case, server: Any, workers: list[Any], newest: list[Any], turns: Iterator[int]) -> float:
    """Run a turn from the newest weights; leave those that come out in their place."""
    import ray

    start, at = time.perf_counter(), next(turns)
    current = newest[0]
    for step in range(case.steps):
        grads = [worker.gradients.remote(current, at, step) for worker in workers]
        current = server.apply.remote(*grads)
    newest[0] = ray.get(current)
    return time.perf_counter() - start
