"""Processes that train with plain PyTorch, one turn at a time; the peers say what a step is.

::

    Crew ── (case, what is shared) ──> process 0, process 1: stepping() ──> step, module
       │ ── go ──────────────────────> every step: its part of the batch, step(x, y)
       │ <──────────────────── seconds
       │ ── over ────────────────────> is the module trained?
       └ <─────────────────────── done
                                       read from their pipes between turns: asleep

A process ends when its pipe is closed, also by the kernel.
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
    """A process's place among those of its crew, and its threads."""

    rank: int
    processes: int
    threads: int


class Work(NamedTuple):
    """What a process does in a case."""

    step: Step
    module: nn.Module
    trains: bool = True
    """Does a step change the module?"""


#: how a peer begins a case in one of its processes, with what all of them share, and ends it
Stepping = Callable[[Seat, Case, Any], AbstractContextManager[Work]]


class Crew:
    """A contestant: processes that live as long as this context, with the same malloc as untorn's workers.

    Args:
        stepping: see Stepping; a function at the top of a module.
        processes: each takes its part of every batch.
        threads: of each process.
        share: makes what the processes of a case share; it is sent to each.
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
        """Be ready to train this case. What is given makes a turn, and returns the seconds per step of the slowest.
        Raises RuntimeError in the end if a process has not done its work; after an error there is no other case."""
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
    """The life of a process: cases, and their turns."""
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
    """A step leaves the gradients of these examples in ``.grad``."""
    criterion = loss()

    def step(x: Tensor, y: Tensor) -> None:
        module.zero_grad()
        criterion(module(x), y).backward()

    return Work(step, module, trains=False)


def updates(module: nn.Module, case: Case) -> Work:
    """A step takes the gradients, and moves the parameters with an optimizer of this process."""
    optimizer, take_gradients = case.torch_optimizer(module.parameters()), gradients(module).step

    def step(x: Tensor, y: Tensor) -> None:
        take_gradients(x, y)
        optimizer.step()

    return Work(step, module)


@contextmanager
def _interrupts_blocked() -> Iterator[None]:
    """Ctrl-C goes to every process of a terminal; those started here inherit this mask, and leave it to the parent."""
    resource_tracker.ensure_running()  # multiprocessing starts it with the first process, and then unblocks SIGINT
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
