"""Processes that train, one turn at a time; with plain PyTorch the peers define a step.

::

    Crew ── (case, what is shared) ──> process 0, process 1: stepping() ──> step, module
       │ ── go ──────────────────────> every step: its part of the batch, step(x, y)
       │ <──────────────────── seconds
       │ ── over ────────────────────> check that the module was trained
       └ <─────────────────────── done
                                       sleep in a read of their pipes between turns

A process ends when its pipe is closed, even if the kernel closes it.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from benchmarks.measure import environment
from benchmarks.peers.torch_case import Case, loss
from untorn.engines.processes import worker_variables

if TYPE_CHECKING:
    from torch import Tensor, nn

_JOIN_S = 10.0

Step = Callable[["Tensor", "Tensor"], None]


@dataclass(frozen=True)
class Seat:
    """The index of a process in its crew, and its number of threads."""

    rank: int
    processes: int
    threads: int


class Work(NamedTuple):
    """The work of a process in a case."""

    step: Step
    module: nn.Module
    trains: bool = True
    """Whether a step changes the module."""


#: begins a case in a process of a peer, with the object that all processes share, and ends it
Stepping = Callable[[Seat, Case, Any], AbstractContextManager[Work]]

#: the work of one process of a contestant, which obeys what comes through its connection: for each case (case, shared),
#: answered by a number; any number of True, each a turn answered by its seconds; and False, answered by a number
Member = Callable[[Seat, Connection], None]


class Process(Protocol):
    """A process of a contestant, as in multiprocessing."""

    def join(self, timeout: float | None = None) -> None: ...

    def kill(self) -> None: ...

    def close(self) -> None: ...


#: starts a process that runs a member; returns it and this side of its connection
Launch = Callable[[Member, Seat], tuple[Process, Connection]]


class Crew:
    """A contestant: processes that live as long as this context, with the same malloc as untorn's workers.

    Args:
        member: what each process does; picklable. ``partial(take_part, stepping)`` trains with PyTorch.
        processes: their number; each takes its part of every batch.
        threads: number of threads of each process.
        share: creates the object that the processes of a case share; it is sent to each.
        launch: starts a process; by default with multiprocessing, on this machine.
    """

    def __init__(
        self,
        member: Member,
        *,
        processes: int,
        threads: int = 1,
        share: Callable[[Case], Any] = lambda case: None,
        launch: Launch | None = None,
    ) -> None:
        self._member = member
        self._seats = [Seat(rank, processes, threads) for rank in range(processes)]
        self._share = share
        self._launch = launch or launch_here
        self._members: list[tuple[Process, Connection]] = []

    def __enter__(self) -> Crew:
        with contextlib.ExitStack() as unless_started:
            unless_started.push(self)
            for seat in self._seats:
                self._members.append(self._launch(self._member, seat))
            unless_started.pop_all()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        for _, connection in self._members:
            connection.close()
        for process, _ in self._members:
            process.join(_JOIN_S if kind is None else 0)
            process.kill()
            process.join()
            process.close()
        self._members.clear()

    @contextmanager
    def training(self, case: Case) -> Iterator[Callable[[], float]]:
        """Prepare to train this case. The function that it yields runs a turn and returns the seconds per step of the
        slowest process. Raises RuntimeError on exit if a process has not done its work; no case may follow an error."""
        shared = self._share(case)
        self._tell((case, shared))
        self._answers()

        def turn() -> float:
            self._tell(True)
            return max(self._answers()) / case.steps

        yield turn
        self._tell(False)
        self._answers()

    def _tell(self, message: Any) -> None:
        for _, connection in self._members:
            connection.send(message)

    def _answers(self) -> list[float]:
        try:
            return [connection.recv() for _, connection in self._members]
        except EOFError:
            raise RuntimeError(f"{self._member}: a process died; its error is above") from None


def launch_here(member: Member, seat: Seat) -> tuple[Process, Connection]:
    """Start a process on this machine."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=member, args=(seat, theirs), daemon=True)
    with environment(worker_variables(seat.threads)), _interrupts_blocked():
        process.start()
    theirs.close()
    return process, ours


def take_part(stepping: Stepping, seat: Seat, connection: Connection) -> None:
    """Train with PyTorch: the Member that makes the steps of ``stepping``."""
    import torch

    torch.set_num_threads(seat.threads)
    with contextlib.suppress(EOFError, ConnectionError):  # the benchmark is over, or interrupted
        while True:
            case, shared = connection.recv()
            with stepping(seat, case, shared) as work:
                _take_turns(seat, case, work.step, connection)
                case.check(work.module, trains=work.trains)
            connection.send(0.0)


def _take_turns(seat: Seat, case: Case, step: Step, connection: Connection) -> None:
    import torch

    x, y = (torch.from_numpy(part) for part in case.data())
    share = case.batch // seat.processes
    connection.send(0.0)
    turn = 0
    while connection.recv():
        start = time.perf_counter()
        order = torch.from_numpy(case.order(turn))
        for first in range(seat.rank * share, case.examples, case.batch):
            mine = order[first : first + share]
            step(x[mine], y[mine])
        connection.send(time.perf_counter() - start)
        turn += 1


def gradients(module: nn.Module) -> Work:
    """Return a step that leaves the gradients of its examples in ``.grad``."""
    criterion = loss()

    def step(x: Tensor, y: Tensor) -> None:
        module.zero_grad()
        criterion(module(x), y).backward()

    return Work(step, module, trains=False)


def updates(module: nn.Module, case: Case) -> Work:
    """Return a step that computes the gradients and updates the parameters with an optimizer of this process."""
    optimizer, take_gradients = case.torch_optimizer(module.parameters()), gradients(module).step

    def step(x: Tensor, y: Tensor) -> None:
        take_gradients(x, y)
        optimizer.step()

    return Work(step, module)


@contextmanager
def _interrupts_blocked() -> Iterator[None]:
    """Block SIGINT for the processes started in the block, so that only the parent handles Ctrl-C."""
    resource_tracker.ensure_running()  # multiprocessing starts it with the first process, and then unblocks SIGINT
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
