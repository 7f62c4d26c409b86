"""The plain loops of the original programs, and the same trained by untorn: curves and turns.

torch is imported inside functions, so that the benchmarks can be listed where it is not installed.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.peers.torch_crew import Seat

if TYPE_CHECKING:
    from torch import nn

    from benchmarks.peers.original_models import Original

SEED = 0


@dataclass(frozen=True)
class OriginalCase:
    """A program, by the name of its class, and its number of steps per turn."""

    name: str
    steps: int

    def original(self) -> Original:
        """Return the program."""
        from benchmarks.peers.original_models import ORIGINALS

        made = ORIGINALS[self.name]()
        made.steps = self.steps
        return made


def plain_step(original: Original, module: nn.Module) -> Callable[[Any], float]:
    """Return the step of the plain loop: batch -> loss."""
    import torch

    optimizer = original.torch_optimizer(module)

    def step(batch: Any) -> float:
        optimizer.zero_grad()
        loss = original.loss(module, tuple(map(torch.from_numpy, batch)))
        loss.backward()
        if original.clip_norm is not None:
            torch.nn.utils.clip_grad_norm_(module.parameters(), original.clip_norm)
        optimizer.step()
        return float(loss.detach())

    return step


def curves(case: OriginalCase, **settings: Any) -> tuple[list[float], list[float]]:
    """Return the losses of the plain loop, and those of untorn on the serial engine with one shard by default."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as untorn's workers have
    try:
        with torch.random.fork_rng(devices=[]):
            return plain_curve(case), untorn_curve(case, **{"engine": "serial", "shards": 1} | settings)
    finally:
        torch.set_num_threads(threads)


def plain_curve(case: OriginalCase) -> list[float]:
    """Return the loss of each step of the plain loop, with the random numbers that untorn draws for one shard."""
    import torch

    from untorn.train.data.sampler import shard_rng

    original = case.original()
    module = original.module()
    step, curve = plain_step(original, module), []
    for number, batch in enumerate(original.batches(module)):
        torch.manual_seed(int(shard_rng(SEED, number, 0, 1).integers(2**63)))
        curve.append(step(batch))
    return curve


@contextmanager
def untorn_step(original: Original, **settings: Any) -> Iterator[tuple[Callable[[Any], float], nn.Module]]:
    """Yield a step of untorn, batch -> loss, and a module that has the newest weights if the program acts."""
    from untorn import Trainer
    from untorn.torch import TorchModel

    acting = original.module()
    model = TorchModel(original.module(), None, forward=original.loss, carried=list(original.carried))
    with Trainer(model, optimizer=original.optimizer(), seed=SEED, clip_norm=original.clip_norm, **settings) as trainer:

        def step(batch: Any) -> float:
            loss = trainer.step(batch)["loss"]
            if original.acts:
                newest = trainer.params
                for name, parameter in acting.named_parameters():
                    np.copyto(parameter.detach().numpy(), newest[name])
            return loss

        yield step, acting


def untorn_curve(case: OriginalCase, **settings: Any) -> list[float]:
    """Return the loss of each step of untorn."""
    original = case.original()
    with untorn_step(original, **settings) as (step, module):
        return [step(batch) for batch in original.batches(module)]


@contextmanager
def training(case: OriginalCase, workers: int) -> Iterator[Callable[[], float]]:
    """Yield a function that makes the steps of a turn with untorn, and returns its seconds per step."""
    original = case.original()
    with untorn_step(original, workers=workers, shards=workers) as (step, module):

        def turn() -> float:
            start = time.perf_counter()
            for batch in original.batches(module):
                step(batch)
            return (time.perf_counter() - start) / case.steps

        yield turn


def take_part(seat: Seat, connection: Connection) -> None:
    """Train with PyTorch: see torch_crew.Member."""
    import torch

    torch.set_num_threads(seat.threads)
    with contextlib.suppress(EOFError, ConnectionError):  # the benchmark is over, or interrupted
        while True:
            case, _ = connection.recv()
            original = case.original()
            module = original.module()
            step = plain_step(original, module)
            connection.send(0.0)
            while connection.recv():
                start = time.perf_counter()
                for batch in original.batches(module):
                    step(batch)
                connection.send(time.perf_counter() - start)
            connection.send(0.0)
