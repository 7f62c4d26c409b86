"""The way of PyTorch's Hogwild example (Niu et al., 2011): parameters in shared memory, updates that nobody orders.

Two things differ from the example. The processes divide the examples among themselves; there each trains on all of
them. And each has one thread. A step is an update by each process, made with its part of the batch.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from benchmarks.peers.torch_case import Case
from benchmarks.peers.torch_crew import Crew, Seat, Work, updates

if TYPE_CHECKING:
    from torch import nn


def contestant(processes: int) -> Crew:
    """So many processes with one thread each."""
    return Crew(stepping, processes=processes, share=module_in_shared_memory)


def module_in_shared_memory(case: Case) -> nn.Module:
    """The module that all processes train; torch sends it without copying its memory."""
    import torch.multiprocessing  # noqa: F401 - it teaches multiprocessing how to send tensors

    return case.module().share_memory()


@contextmanager
def stepping(seat: Seat, case: Case, module: nn.Module) -> Iterator[Work]:
    """See torch_crew.Stepping."""
    yield updates(module, case)
