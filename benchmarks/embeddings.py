"""Compare skip-gram (word2vec) on two workers with its plain loop, which has sparse gradients and updates only rows.

Words are drawn from Zipf's law, so a batch reaches a few hundred of the 20,000 rows of each table. The plain loop has
``nn.Embedding(sparse=True)`` and torch.optim.SGD or SparseAdam. untorn trains the same module; only the rows that a
batch reaches travel and are updated. A fit of 200 steps is measured: a fit begins with new buffers and whole copies of
the tables, which take half of the time of a fit of 20 steps.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from benchmarks.measure import Row, interleaved, row
from benchmarks.peers import torch_embeddings
from benchmarks.peers.torch_crew import Crew
from benchmarks.peers.torch_embeddings import EmbeddingsCase

NAME = "embeddings"
QUESTION = "How fast is skip-gram with two workers, compared with a plain loop whose gradients are sparse?"

CASES = [
    EmbeddingsCase(words=20_000, width=100, batch=512, negatives=5, steps=200, optimizer=optimizer)
    for optimizer in ("sgd", "adam")
]
TURNS, WARM_UP = 5, 1
UNTORN, THREAD = "untorn, 2 workers", "1 process, 1 thread"


@contextmanager
def training(case: EmbeddingsCase, workers: int) -> Iterator[Callable[[], float]]:
    """Yield a function that makes the steps of a turn with untorn, and returns its seconds per step."""
    from untorn import SGD, Adam, Trainer
    from untorn.torch import TorchModel

    optimizer: Any = SGD(case.rate) if case.optimizer == "sgd" else Adam(case.rate)
    model = TorchModel(case.module(), None, forward=torch_embeddings.loss_of)
    pairs = case.pairs()
    with Trainer(model, optimizer=optimizer, workers=workers, shards=workers) as trainer:

        def turn() -> float:
            start = time.perf_counter()
            trainer.fit(pairs, epochs=1, batch_size=case.batch, verbose=False)
            return (time.perf_counter() - start) / case.steps

        yield turn


def measure(case: EmbeddingsCase, crew: Crew) -> list[Row]:
    with ExitStack() as stack:
        turns = {THREAD: stack.enter_context(crew.training(case))}
        turns |= {f"untorn, {count} workers": stack.enter_context(training(case, count)) for count in (2, 1)}
        times = interleaved(turns, turns=TURNS, warm_up=WARM_UP)
    what = f"{case.words} x {case.width}, batch {case.batch}, {case.optimizer}"
    rows = [
        row(f"{what}: {UNTORN}", times[UNTORN], unit="ms", to=times[THREAD], ratio_to=THREAD, ratio_at_most=1 / 1.2)
    ]
    return rows + [row(f"{what}: {name}", seconds, unit="ms") for name, seconds in times.items() if name != UNTORN]


def run() -> list[Row]:
    with Crew(torch_embeddings.take_part, processes=1, threads=1) as crew:
        return [each for case in CASES for each in measure(case, crew)]
