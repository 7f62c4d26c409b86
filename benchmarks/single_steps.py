"""Compare single steps, trainer.step(batch), with the steps inside an epoch of fit over the same batches.

The model is the MLP of train_step; one turn makes the same steps in both ways, with two trainers that take turns.
`python -m benchmarks single_steps` takes half a minute.
"""

from __future__ import annotations

import time

from benchmarks.measure import Row, interleaved, row
from benchmarks.train_step import examples, init

NAME = "single_steps"
QUESTION = "What does trainer.step(batch) cost, compared with a step inside an epoch?"

# hidden width, batch, steps per turn, workers
CASES = [(64, 32, 400, 2), (64, 256, 200, 2), (512, 256, 60, 2)]
TURNS, WARM_UP = 9, 2
AIM = 1.3


class Steps:
    """A trainer that makes the steps of a turn in one of two ways."""

    def __init__(self, width: int, batch: int, steps: int, workers: int, *, single: bool) -> None:
        from untorn import SGD, Trainer
        from untorn.jobs.digits import loss_and_grad

        self.batch, self.steps, self.single = batch, steps, single
        self.x, self.y = examples(batch * steps)
        self.trainer = Trainer(loss_and_grad, init(width), optimizer=SGD(1e-4, momentum=0.9), workers=workers)

    def turn(self) -> float:
        """Return the seconds per step."""
        if not self.single:
            history = self.trainer.fit((self.x, self.y), epochs=1, batch_size=self.batch, shuffle=False)
            return history.seconds[0] / self.steps
        start = time.perf_counter()
        for first in range(0, len(self.x), self.batch):
            self.trainer.step((self.x[first : first + self.batch], self.y[first : first + self.batch]))
        return (time.perf_counter() - start) / self.steps


def measure(width: int, batch: int, steps: int, workers: int) -> list[Row]:
    ways = {single: Steps(width, batch, steps, workers, single=single) for single in (False, True)}
    times = interleaved({str(single): way.turn for single, way in ways.items()}, turns=TURNS, warm_up=WARM_UP)
    for way in ways.values():
        way.trainer.close()
    epoch, single = times.values()
    case = f"h={width}, batch {batch}, {workers} workers"
    return [
        row(f"{case}: a step inside an epoch", epoch, unit="ms"),
        row(f"{case}: trainer.step", single, unit="ms", to=epoch, ratio_to="inside an epoch", ratio_at_most=AIM),
    ]


def run() -> list[Row]:
    return [each for case in CASES for each in measure(*case)]
