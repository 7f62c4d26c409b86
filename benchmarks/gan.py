"""Compare a DCGAN whose two losses take turns on two workers with its plain loop in one process.

Both make the same number of steps of both networks on the same images. The plain loop makes the images for both turns
once, and untorn once for each; the plain loop computes gradients of the discriminator in the generator's turn, which it
throws away, and untorn none. `python -m benchmarks gan` takes about three minutes.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

from benchmarks.measure import Row, interleaved, row
from benchmarks.peers import torch_gan
from benchmarks.peers.torch_crew import Crew
from benchmarks.peers.torch_gan import BETAS, RATE, GanCase

NAME = "gan"
QUESTION = "How fast is a GAN whose losses take turns on two workers, compared with its loop on two threads?"

CASES = [GanCase(width=16, edge=32, batch=64, steps=4), GanCase(width=64, edge=64, batch=64, steps=1)]
TURNS, WARM_UP = 7, 1
UNTORN, THREADS = "untorn, 2 workers", "1 process, 2 threads"


@contextmanager
def training(case: GanCase, workers: int) -> Iterator[Callable[[], float]]:
    """Yield a function that makes the steps of a turn with untorn, and returns its seconds per batch."""
    from untorn import Adam, Trainer, Turns
    from untorn.torch import TorchModel

    forward = {"netD": torch_gan.discriminate, "netG": torch_gan.generate}
    model = TorchModel(case.module(), None, forward=forward)
    optimizer = Turns(netD=Adam(RATE, BETAS), netG=Adam(RATE, BETAS))
    images = case.images().reshape(case.steps, case.batch, 3, case.edge, case.edge)
    with Trainer(model, optimizer=optimizer, workers=workers, shards=workers) as trainer:

        def turn() -> float:
            start = time.perf_counter()
            for batch in images:
                for _ in forward:
                    trainer.step(batch)
            return (time.perf_counter() - start) / case.steps

        yield turn


def measure(case: GanCase, crews: dict[str, Crew]) -> list[Row]:
    with ExitStack() as stack:
        turns = {name: stack.enter_context(each.training(case)) for name, each in crews.items()}
        turns |= {f"untorn, {count} workers": stack.enter_context(training(case, count)) for count in (2, 1)}
        times = interleaved(turns, turns=TURNS, warm_up=WARM_UP)
    what = f"DCGAN, {case.edge} x {case.edge}, width {case.width}, batch {case.batch}"
    rows = [row(f"{what}: {UNTORN}", times[UNTORN], unit="ms", to=times[THREADS], ratio_to=THREADS, ratio_at_most=1.0)]
    return rows + [row(f"{what}: {name}", seconds, unit="ms") for name, seconds in times.items() if name != UNTORN]


def run() -> list[Row]:
    with ExitStack() as stack:
        crews = {
            name: stack.enter_context(Crew(torch_gan.take_part, processes=1, threads=threads))
            for name, threads in ((THREADS, 2), ("1 process, 1 thread", 1))
        }
        return [each for case in CASES for each in measure(case, crews)]
