"""One process: the training loop of PyTorch's tutorials. Torch shares the work out among threads by itself."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from benchmarks.peers.torch_case import Case
from benchmarks.peers.torch_crew import Crew, Seat, Work, updates


def contestant(threads: int) -> Crew:
    """One process with so many threads."""
    return Crew(stepping, processes=1, threads=threads)


@contextmanager
def stepping(seat: Seat, case: Case, shared: None) -> Iterator[Work]:
    """See torch_crew.Stepping."""
    yield updates(case.module(), case)
