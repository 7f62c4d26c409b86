"""PyTorch's gradients summed over untorn's links, and nothing else of untorn's nodes (link_node.py)."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.on_nodes.launching import launch_on
from benchmarks.on_nodes.link_node import LinkNode, Place, places
from benchmarks.peers.torch_case import LEARNING_RATE, Case
from benchmarks.peers.torch_crew import Crew, Seat, Work, gradients, take_part
from virtual_nodes import VirtualNodes

if TYPE_CHECKING:
    from torch import Tensor, nn


def contestant(nodes: VirtualNodes) -> Crew:
    """Return the contestant, one process on each node."""

    def mesh(case: Case) -> list[Place]:
        return places([node.address for node in nodes])

    return Crew(partial(take_part, stepping), processes=len(nodes), share=mesh, launch=launch_on(nodes))


@contextmanager
def stepping(seat: Seat, case: Case, mesh: Sequence[Place]) -> Iterator[Work]:
    """See torch_crew.Stepping."""
    module = case.module()
    params = [parameter.detach().numpy().copy() for parameter in module.parameters()]
    take_gradients = gradients(module).step

    def fill(x: Tensor, y: Tensor, weights: list[Any], views: list[Any]) -> None:
        point_to(module, weights)
        take_gradients(x, y)
        for parameter, view in zip(module.parameters(), views, strict=True):
            np.copyto(view, parameter.grad.numpy())

    with LinkNode.open(mesh[seat.rank], params, rate=LEARNING_RATE) as node:
        yield Work(lambda x, y: node.step(partial(fill, x, y)), module)
        point_to(module, node.params())


def point_to(module: nn.Module, weights: list[Any]) -> None:
    """Let the parameters be these arrays, without a copy. They are only read."""
    import torch

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that they cannot be written to
        for parameter, array in zip(module.parameters(), weights, strict=True):
            parameter.data = torch.from_numpy(array)
