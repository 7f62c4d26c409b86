"""PyTorch's Hogwild example (Niu et al., 2011): parameters in shared memory, updates without synchronisation.

Two things differ from the example. The processes divide the examples among themselves, while in the example each trains
on all of them. And each has one thread. A step is an update by each process, computed on its part of the batch.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING

from benchmarks.peers.torch_case import Case
from benchmarks.peers.torch_crew import Crew, Seat, Work, take_part, updates

if TYPE_CHECKING:
    from torch import nn


def contestant(processes: int) -> Crew:
    """Return a contestant of several processes with one thread each."""
    return Crew(partial(take_part, stepping), processes=processes, share=module_in_shared_memory)


def module_in_shared_memory(case: Case) -> nn.Module:
    """Return the module that all processes train; torch sends it without copying its memory."""
    import torch.multiprocessing  # noqa: F401 - it teaches multiprocessing how to send tensors

    return case.module().share_memory()


@contextmanager
def stepping(seat: Seat, case: Case, module: nn.Module) -> Iterator[Work]:
    """See torch_crew.Stepping."""
    yield updates(module, case)
