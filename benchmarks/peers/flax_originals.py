"""A convolutional network of flax with optax, as flax's MNIST example has it: its plain loop, and the same in untorn.

JAX and flax are imported inside functions, so that the benchmarks can be listed where they are not installed.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

import numpy as np

from benchmarks.peers.torch_crew import Seat

BATCH, RATE = 64, 1e-3


@dataclass(frozen=True)
class FlaxCase:
    """A training, by its number of steps per turn."""

    steps: int
    name: str = "flax network"

    def network(self) -> Any:
        """Return the flax module."""
        from flax import linen

        pool = linen.avg_pool
        layers = [linen.Conv(32, (3, 3)), linen.relu, lambda x: pool(x, (2, 2), (2, 2))]
        layers += [linen.Conv(64, (3, 3)), linen.relu, lambda x: pool(x, (2, 2), (2, 2))]
        layers += [lambda x: x.reshape(len(x), -1), linen.Dense(256), linen.relu, linen.Dense(10)]
        return linen.Sequential(layers)

    def params(self) -> Any:
        """Return the initial parameters."""
        import jax
        import jax.numpy as jnp

        return self.network().init(jax.random.key(0), jnp.zeros((1, 28, 28, 1)))

    def loss(self, params: Any, batch: Any) -> Any:
        """Compute the mean cross-entropy."""
        import optax

        x, y = batch
        return optax.softmax_cross_entropy_with_integer_labels(self.network().apply(params, x), y).mean()

    def batches(self) -> Iterator[tuple[Any, Any]]:
        """Yield images and digits."""
        from benchmarks.peers.digits_images import digits

        x, y = digits()
        x, y = x.transpose(0, 2, 3, 1), y.astype(np.int32)
        for first in range(0, self.steps * BATCH, BATCH):
            yield x[first : first + BATCH], y[first : first + BATCH]


def plain_step(case: FlaxCase) -> Callable[[Any], float]:
    """Return the compiled step of the plain loop: batch -> loss."""
    import jax
    import optax

    optimizer, params = optax.adam(RATE), case.params()
    held = [params, optimizer.init(params)]

    @jax.jit
    def update(params: Any, state: Any, batch: Any) -> tuple[Any, Any, Any]:
        loss, gradient = jax.value_and_grad(case.loss)(params, batch)
        updates, state = optimizer.update(gradient, state, params)
        return loss, optax.apply_updates(params, updates), state

    def step(batch: Any) -> float:
        loss, *held[:] = update(*held, batch)
        return float(loss)

    return step


@contextmanager
def untorn_step(case: FlaxCase, **settings: Any) -> Iterator[Callable[[Any], float]]:
    """Yield a step of untorn: batch -> loss."""
    from untorn import Adam, Trainer
    from untorn.jax import JaxModel

    with Trainer(JaxModel(case.loss, case.params()), optimizer=Adam(RATE), **settings) as trainer:
        yield lambda batch: trainer.step(batch)["loss"]


def curves(case: FlaxCase, **settings: Any) -> tuple[list[float], list[float]]:
    """Return the losses of the plain loop, and those of untorn on the serial engine with one shard by default."""
    step = plain_step(case)
    plain = [step(batch) for batch in case.batches()]
    with untorn_step(case, **{"engine": "serial", "shards": 1} | settings) as step:
        return plain, [step(batch) for batch in case.batches()]


@contextmanager
def training(case: FlaxCase, workers: int) -> Iterator[Callable[[], float]]:
    """Yield a function that makes the steps of a turn with untorn, and returns its seconds per step."""
    with untorn_step(case, workers=workers, shards=workers) as step:

        def turn() -> float:
            start = time.perf_counter()
            for batch in case.batches():
                step(batch)
            return (time.perf_counter() - start) / case.steps

        yield turn


def take_part(seat: Seat, connection: Connection) -> None:
    """Train with JAX: see torch_crew.Member."""
    with contextlib.suppress(EOFError, ConnectionError):  # the benchmark is over, or interrupted
        while True:
            case, _ = connection.recv()
            step = plain_step(case)
            connection.send(0.0)
            while connection.recv():
                start = time.perf_counter()
                for batch in case.batches():
                    step(batch)
                connection.send(time.perf_counter() - start)
            connection.send(0.0)
