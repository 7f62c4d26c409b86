"""The limit: processes that compute the gradients of their parts for fixed weights, and exchange nothing.

No scheme that gives every process its part of each batch can be faster, because it must do this work too.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

from benchmarks.peers.torch_case import Case
from benchmarks.peers.torch_crew import Crew, Seat, Work, gradients, take_part


def contestant(processes: int) -> Crew:
    """Return a contestant of several processes with one thread each."""
    return Crew(partial(take_part, stepping), processes=processes)


@contextmanager
def stepping(seat: Seat, case: Case, shared: None) -> Iterator[Work]:
    """See torch_crew.Stepping."""
    yield gradients(case.module())
