"""Training compared with a plain JAX loop with optax, as in its tutorials: 200 steps on random numbers.

The loop is one jitted function: value_and_grad, update, apply_updates. untorn compiles gradient and update
separately, so XLA may fuse and round differently, and the weights are compared to rounding. A loop that also compiles
the two separately gives the same bits.

JAX warns at every fork in a process that used it, while other tests fork. So the functions named ``jax_...`` run in a
process of their own, with the same number of XLA threads as the workers.
"""

from __future__ import annotations

import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from networks import classes_of
from untorn.jax import JaxModel
from untorn.train import Trainer
from untorn.train.data.sampler import epoch_order

SEED, BATCH, EPOCHS = 5, 50, 10
DATA = classes_of(1000, 20, 4)  # 20 steps an epoch
OPTIMIZERS = {
    "sgd": optax.sgd(0.05, momentum=0.9),
    "adamw": optax.adamw(1e-2),
    "clipped, scheduled": optax.chain(
        optax.clip_by_global_norm(0.5), optax.adam(optax.warmup_cosine_decay_schedule(0.0, 1e-2, 50, 200))
    ),
}


def test_jax_in_a_process_of_its_own():
    command = [sys.executable, "-m", "pytest", "-q", "-o", "python_functions=jax_*", __file__]
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "PJRT_NPROC": "2"}
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stdout + ended.stderr


def initial():
    rng = np.random.default_rng(1)
    sizes = {"hidden": (20, 32), "last": (32, 4)}
    return {name: jnp.array(rng.normal(size=size) / 5, jnp.float32) for name, size in sizes.items()}


def loss_fn(params, batch):
    x, labels = batch
    scores = jax.nn.log_softmax(jnp.tanh(x @ params["hidden"]) @ params["last"])
    return -jnp.take_along_axis(scores, labels[:, None], axis=1).mean()


def batches():
    """Yield the batch of every step."""
    for epoch in range(EPOCHS):
        for indices in epoch_order(SEED, epoch, len(DATA[0])).reshape(-1, BATCH):
            yield tuple(part[indices] for part in DATA)


def plain_loop(optimizer, *, apart=False):
    gradient = jax.value_and_grad(loss_fn)

    def update(grads, state, params):
        updates, state = optimizer.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    if apart:
        gradient, update = jax.jit(gradient), jax.jit(update)

    def step(params, state, batch):
        loss, grads = gradient(params, batch)
        return *update(grads, state, params), loss

    if not apart:
        step = jax.jit(step)
    params = initial()
    state, losses = optimizer.init(params), []
    for batch in batches():
        params, state, loss = step(params, state, batch)
        losses.append(float(loss))
    return params, losses


def accumulating_loop(optimizer, *, parts):
    """Train with optax's own accumulation: the mean over several calls of update."""
    optimizer = optax.MultiSteps(optimizer, every_k_schedule=parts)

    @jax.jit
    def step(params, state, batch):
        updates, state = optimizer.update(jax.grad(loss_fn)(params, batch), state, params)
        return optax.apply_updates(params, updates), state

    params = initial()
    state = optimizer.init(params)
    for x, labels in batches():
        for part in zip(np.split(x, parts), np.split(labels, parts), strict=True):
            params, state = step(params, state, part)
    return params


def trained(optimizer, *, shards):
    with Trainer(
        JaxModel(loss_fn, initial()), optimizer=optimizer, seed=SEED, engine="serial", shards=shards
    ) as trainer:
        history = trainer.fit(DATA, epochs=EPOCHS, batch_size=BATCH)
        return trainer.params, history.history["loss"]


def assert_close(found, expected):
    """Check that the arrays agree within 1e-5 of the largest number of each."""
    for name, array in expected.items():
        worst = np.abs(found[name] - array).max() / np.abs(array).max()
        assert worst < 1e-5, (name, worst)


@pytest.mark.parametrize("name", OPTIMIZERS)
def jax_one_shard_gives_a_plain_loops_weights_to_rounding(name):
    expected, losses = plain_loop(OPTIMIZERS[name])
    found, found_losses = trained(OPTIMIZERS[name], shards=1)
    assert_close(found, expected)
    np.testing.assert_allclose(found_losses, np.reshape(losses, (EPOCHS, -1)).mean(axis=1), rtol=1e-5)
    assert losses[-1] < losses[0] / 2


def jax_one_shard_gives_the_bits_of_a_loop_that_compiles_the_two_apart():
    expected, _ = plain_loop(OPTIMIZERS["adamw"], apart=True)
    found, _ = trained(OPTIMIZERS["adamw"], shards=1)
    for name, array in expected.items():
        np.testing.assert_array_equal(found[name], array, err_msg=name)


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def jax_five_shards_give_an_accumulating_loops_weights_to_rounding(name):
    expected = accumulating_loop(OPTIMIZERS[name], parts=5)
    found, _ = trained(OPTIMIZERS[name], shards=5)
    assert_close(found, expected)
