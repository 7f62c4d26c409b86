"""Measure the gain of async training and the cost of staleness.

4 workers train a perceptron in NumPy on scikit-learn's digits for 8 epochs, always from the same weights. In the first
cases all gradients take equally long; in the others one in eight takes 20 ms longer, as if it read from a slow disk (it
sleeps, and so uses no processor). Sync training waits for a slow gradient in every step that contains one.
`python -m benchmarks staleness` takes two minutes.

The time is that of an epoch, without the first, which starts the workers. The notes give the loss and the accuracy on
held-out examples, as medians over the turns. Those of sync training are the same in every turn.
"""

from __future__ import annotations

import importlib.util
import statistics
import time
from typing import Any

from benchmarks.measure import Row, interleaved, row

NAME = "staleness"
QUESTION = "What is the gain of async training with 4 workers, and what is the cost of staleness?"

TURNS, EPOCHS, BATCH, WORKERS = 5, 8, 32, 4
SLOW_S, ONE_IN = 0.02, 8
BOUNDS = (3, 7, 15)
RATES = (0.05, 0.02)


def gradient(params: Any, batch: Any) -> Any:
    from untorn.jobs.digits import loss_and_grad

    return loss_and_grad(params, batch)


def slow_gradient(params: Any, batch: Any, rng: Any) -> Any:
    if rng.random() < 1 / ONE_IN:
        time.sleep(SLOW_S)
    return gradient(params, batch)


class Training:
    """A contestant whose turn is a whole training; it keeps the results."""

    def __init__(self, model: Any, rate: float, settings: dict[str, Any]) -> None:
        self.model, self.rate, self.settings = model, rate, settings
        self.losses: list[float] = []
        self.accuracies: list[float] = []

    def turn(self) -> float:
        """Train; return the seconds per epoch."""
        from untorn import SGD, Trainer
        from untorn.jobs.digits import init_params, load_data

        data, held_out = load_data(seed=0)
        with Trainer(self.model, init_params(0), optimizer=SGD(self.rate), workers=WORKERS, **self.settings) as trainer:
            history = trainer.fit(data, epochs=EPOCHS, batch_size=BATCH)
            measured = trainer.evaluate(held_out)
        self.losses.append(measured["loss"])
        self.accuracies.append(measured["accuracy"])
        return statistics.mean(history.seconds[1:])

    def __str__(self) -> str:
        return f"loss {statistics.median(self.losses):.3f}, accuracy {statistics.median(self.accuracies):.1%}"


def measure(case: str, model: Any, rate: float) -> list[Row]:
    trainings = {"sync, 4 shards": Training(model, rate, {"shards": 4})}
    for bound in BOUNDS:
        trainings[f"async, staleness up to {bound}"] = Training(model, rate, {"mode": "async", "max_staleness": bound})
    times = interleaved({name: each.turn for name, each in trainings.items()}, turns=TURNS, warm_up=0)
    (sync, reference), *others = times.items()
    rows = [row(f"{case}: {sync}", reference, unit="ms", note=str(trainings[sync]))]
    for name, seconds in others:
        compared = {"to": reference, "ratio_to": "sync"}
        rows.append(row(f"{case}: {name}", seconds, unit="ms", **compared, note=str(trainings[name])))
    return rows


def run() -> list[Row]:
    if importlib.util.find_spec("sklearn") is None:
        return [Row("digits", None, note="scikit-learn is not installed (pip install scikit-learn)")]
    cases = {"even gradients": gradient, "one in eight is 20 ms slow": slow_gradient}
    return [
        line
        for case, model in cases.items()
        for rate in RATES
        for line in measure(f"{case}, learning rate {rate}", model, rate)
    ]
