"""Compare a training step with two workers with two workers that never communicate.

The limit is two processes, each with half of every batch, that compute gradients of their own fixed weights and
exchange nothing: no scheme that transports gradients and weights can be faster. The model is an MLP 64-h-h-10 in NumPy
with one BLAS thread per process; the optimizer is SGD with momentum. `python -m benchmarks train_step` takes a minute;
with UNTORN_BENCH_LARGE=1 it adds h = 4096 (17 million parameters).
"""

from __future__ import annotations

import itertools
import multiprocessing
import os
import statistics
import threading
import time
from typing import Any

import numpy as np

from benchmarks.measure import Row, environment, interleaved, row
from untorn.engines.processes import worker_variables

NAME = "train_step"
QUESTION = "How fast is a training step with 2 workers, compared with 2 workers without any communication?"

# hidden width, global batch, steps per turn, share of the limit's speed to reach
CASES = [(64, 256, 300, 0.8), (64, 32, 400, 0.8), (512, 256, 100, 0.9), (2048, 256, 12, 0.9)]
LARGE = (4096, 256, 4, 0.9)
TURNS, WARM_UP = 11, 1


def init(width: int) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    params = {}
    for layer, (inputs, outputs) in enumerate(itertools.pairwise([64, width, width, 10])):
        params[f"w{layer}"] = (rng.normal(size=(inputs, outputs)) * np.sqrt(2 / inputs)).astype(np.float32)
        params[f"b{layer}"] = np.zeros(outputs, np.float32)
    return params


def examples(count: int) -> tuple[Any, Any]:
    rng = np.random.default_rng(1)
    return rng.normal(size=(count, 64)).astype(np.float32), rng.integers(0, 10, count)


def gradient_loop(width: int, share: int, steps: int, barrier: Any, seconds: Any) -> None:
    """Run one of the two processes of the limit: compute the gradients of its half, and do not apply them."""
    from untorn.jobs.digits import loss_and_grad
    from untorn.train.data.arrays import take_examples

    params, data = init(width), examples(2 * share * steps)
    order = np.random.default_rng(2).permutation(2 * share * steps)
    for _ in range(TURNS + WARM_UP):
        barrier.wait()
        start = time.perf_counter()
        for step in range(steps):
            loss_and_grad(params, take_examples(data, order[step * share : (step + 1) * share]))
        taken = time.perf_counter() - start
        barrier.wait()
        seconds.put(taken)


class Limit:
    """The limit: two processes that sleep between their turns."""

    def __init__(self, width: int, batch: int, steps: int) -> None:
        context = multiprocessing.get_context("spawn")
        self.steps = steps
        self.barrier, self.seconds = context.Barrier(3), context.SimpleQueue()
        arguments = (width, batch // 2, steps, self.barrier, self.seconds)
        with environment(worker_variables(1)):  # the same threads and the same malloc as untorn's workers
            self.processes = [context.Process(target=gradient_loop, args=arguments) for _ in range(2)]
            for process in self.processes:
                process.start()

    def turn(self) -> float:
        """Return the seconds per step of the slower process."""
        self.barrier.wait()
        self.barrier.wait()
        return max(self.seconds.get() for _ in self.processes) / self.steps

    def close(self) -> None:
        for process in self.processes:
            process.join()


class Training:
    """A trainer in its own thread; one turn is one epoch of `steps` steps."""

    def __init__(self, width: int, batch: int, steps: int, workers: int) -> None:
        self.width, self.batch, self.steps, self.workers = width, batch, steps, workers
        self.go, self.done = threading.Semaphore(0), threading.Semaphore(0)
        self.seconds = 0.0
        self.thread = threading.Thread(target=self._train)
        self.thread.start()
        self.done.acquire()  # the first epoch starts the workers and is not measured

    def _train(self) -> None:
        from untorn import SGD, Callback, Trainer
        from untorn.jobs.digits import loss_and_grad

        outer = self

        class Pace(Callback):
            def on_epoch_end(self, epoch: int, logs: Any) -> None:
                outer.seconds = logs["seconds"] / outer.steps
                outer.done.release()
                if epoch < TURNS + WARM_UP:
                    outer.go.acquire()

        optimizer = SGD(1e-4, momentum=0.9)
        with Trainer(loss_and_grad, init(self.width), optimizer=optimizer, workers=self.workers) as trainer:
            trainer.fit(
                examples(self.batch * self.steps),
                epochs=1 + TURNS + WARM_UP,
                batch_size=self.batch,
                callbacks=[Pace()],
            )

    def turn(self) -> float:
        """Return the seconds per step of one epoch, including its start and end."""
        self.go.release()
        self.done.acquire()
        return self.seconds

    def close(self) -> None:
        self.thread.join()


def measure(width: int, batch: int, steps: int, share_of_limit: float) -> list[Row]:
    contestants = {
        "no communication": Limit(width, batch, steps),
        "2 workers": Training(width, batch, steps, 2),
        "1 worker": Training(width, batch, steps, 1),
    }
    times = interleaved({name: each.turn for name, each in contestants.items()}, turns=TURNS, warm_up=WARM_UP)
    for contestant in contestants.values():
        contestant.close()
    parameters = sum(array.size for array in init(width).values())
    limit, two, one = times.values()
    speed = statistics.median(a / b for a, b in zip(limit, two, strict=True))
    speedup = statistics.median(a / b for a, b in zip(one, two, strict=True))
    case = f"h={width} ({parameters:,} parameters), batch {batch}"
    return [
        row(f"{case}: no communication", limit, unit="ms"),
        row(
            f"{case}: untorn, 2 workers",
            two,
            unit="ms",
            to=limit,
            ratio_to="no communication",
            ratio_at_most=1 / share_of_limit,
            note=f"{speed:.2f} of the limit's speed (aim {share_of_limit:g}); {speedup:.2f} times 1 worker's",
        ),
        row(f"{case}: untorn, 1 worker", one, unit="ms"),
    ]


def run() -> list[Row]:
    cases = [*CASES, LARGE] if os.environ.get("UNTORN_BENCH_LARGE") else CASES
    return [line for case in cases for line in measure(*case)]
