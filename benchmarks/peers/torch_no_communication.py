"""The limit: processes that compute the gradients of fixed weights, each of its part, and exchange nothing.

No scheme that gives every process its part of each batch can be faster, for it has to do this too.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from benchmarks.peers.torch_case import Case
from benchmarks.peers.torch_crew import Crew, Seat, Work, gradients


def contestant(processes: int) -> Crew:
    """So many processes with one thread each."""
    return Crew(stepping, processes=processes)


@contextmanager
def stepping(seat: Seat, case: Case, shared: None) -> Iterator[Work]:
    """See torch_crew.Stepping."""
    yield gradients(case.module())
