"""Compare well-known example programs trained with two workers with their plain loops on two threads.

Before it is timed, each is trained for some steps on the serial engine with one shard, and the losses must be those of
the plain loop to rounding; a note says the largest difference, relative to the loss. Batches are made by the program
and trained by ``trainer.step``, so that an actor can use the newest weights. `python -m benchmarks originals` takes two
to three minutes.
"""

from __future__ import annotations

from contextlib import ExitStack
from types import ModuleType
from typing import Any

from benchmarks.measure import Row, interleaved, row
from benchmarks.peers import flax_originals, torch_originals
from benchmarks.peers.flax_originals import FlaxCase
from benchmarks.peers.torch_crew import Crew
from benchmarks.peers.torch_originals import OriginalCase

NAME = "originals"
QUESTION = "How fast are well-known examples with two workers, compared with their loops, and are their losses equal?"

CASES: list[tuple[ModuleType, Any]] = [
    *(
        (torch_originals, OriginalCase(name, steps))
        for name, steps in (
            ("ConvNet", 4),
            ("Vae", 10),
            ("TextLstm", 6),
            ("CharGpt", 6),
            ("ActorCritic", 20),
            ("GraphNet", 10),
        )
    ),
    (flax_originals, FlaxCase(4)),
]
TURNS, WARM_UP = 5, 1
UNTORN, THREADS = "untorn, 2 workers", "1 process, 2 threads"
#: of the losses, relative: float32 has 1.2e-7, and the fused kernels round in another order than torch
TOLERANCE = 1e-5


def difference(peer: ModuleType, case: Any) -> float:
    """Return the largest difference of the losses of a step, relative to the loss of the plain loop."""
    plain, found = peer.curves(case)
    return max(abs(one - other) / abs(one) for one, other in zip(plain, found, strict=True))


def measure(peer: ModuleType, case: Any) -> list[Row]:
    apart = difference(peer, case)
    with ExitStack() as stack:
        crew = stack.enter_context(Crew(peer.take_part, processes=1, threads=2))
        turns = {THREADS: stack.enter_context(crew.training(case)), UNTORN: stack.enter_context(peer.training(case, 2))}
        times = interleaved(turns, turns=TURNS, warm_up=WARM_UP)
    note = f"losses apart by {apart:.1e} of the loss in {case.steps} steps{'' if apart <= TOLERANCE else ': NOT equal'}"
    return [
        row(f"{case.name}: {UNTORN}", times[UNTORN], unit="ms", to=times[THREADS], ratio_to=THREADS, note=note),
        row(f"{case.name}: {THREADS}", times[THREADS], unit="ms"),
    ]


def run() -> list[Row]:
    return [each for peer, case in CASES for each in measure(peer, case)]
