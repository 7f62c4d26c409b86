"""The training loop of PyTorch's tutorials in one process. Torch divides the work among threads by itself."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

from benchmarks.peers.torch_case import Case
from benchmarks.peers.torch_crew import Crew, Seat, Work, take_part, updates


def contestant(threads: int) -> Crew:
    """Return a contestant of one process with the given number of threads."""
    return Crew(partial(take_part, stepping), processes=1, threads=threads)


@contextmanager
def stepping(seat: Seat, case: Case, shared: None) -> Iterator[Work]:
    """See torch_crew.Stepping."""
    yield updates(case.module(), case)
