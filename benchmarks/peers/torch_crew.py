"""Processes that train with plain PyTorch, one turn at a time; the peers define a step.

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
from typing import TYPE_CHECKING, Any, NamedTuple

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


class Crew:
    """A contestant: processes that live as long as this context, with the same malloc as untorn's workers.

    Args:
        stepping: see Stepping; a function at the top level of a module.
        processes: their number; each takes its part of every batch.
        threads: number of threads of each process.
        share: creates the object that the processes of a case share; it is sent to each.
    """

    def __init__(
        self,
        stepping: Stepping,
        *,
        processes: int,
        threads: int = 1,
        share: Callable[[Case], Any] = lambda case: None,
    ) -> None:
        self._stepping = stepping
        self._seats = [Seat(rank, processes, threads) for rank in range(processes)]
        self._share = share
        self._members: list[tuple[multiprocessing.process.BaseProcess, Connection]] = []

    def __enter__(self) -> Crew:
        with contextlib.ExitStack() as unless_started:
            unless_started.push(self)
            self._start()
            unless_started.pop_all()
        return self

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")
        for seat in self._seats:
            ours, theirs = context.Pipe()
            process = context.Process(target=_member, args=(self._stepping, seat, theirs), daemon=True)
            with environment(worker_variables(seat.threads)), _interrupts_blocked():
                process.start()
                self._members.append((process, ours))
            theirs.close()

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
            raise RuntimeError(f"{self._stepping.__module__}: a process died; its error is above") from None


def _member(stepping: Stepping, seat: Seat, connection: Connection) -> None:
    """Run the cases of a process, and their turns."""
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
