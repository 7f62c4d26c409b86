"""JaxModel: every engine gives the bits of the serial one, also when workers are killed.

JAX warns at every fork in a process that used it, while other tests fork. So the functions named ``jax_...`` run in a
process of their own, with the same number of XLA threads as the workers.
"""

import contextlib
import os
import signal
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from networks import classes_of, work
from untorn import SGD, Callback, Trainer, WorkerError
from untorn.jax import JaxModel
from untorn.train import weights_sha256

pytestmark = pytest.mark.early


def test_jax_in_a_process_of_its_own():
    command = [sys.executable, "-m", "pytest", "-q", "-o", "python_functions=jax_*", __file__]
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "PJRT_NPROC": "2"}
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stdout + ended.stderr


DATA = classes_of(100, 48, 4)


def params_and_state():
    rng = np.random.default_rng(1)
    sizes = {"filters": (2, 2, 3, 6), "hidden": (96, 150), "last": (150, 4)}
    params = {name: jnp.array(rng.normal(size=size) / 10, jnp.float32) for name, size in sizes.items()}
    return (params, {"scale": jnp.ones(6)}), {"mean": jnp.zeros(6), "calls": np.zeros((), np.int32)}


@jax.jit
def network(params, state, batch, key=None):
    """A network with a convolution, batch normalisation, dropout and two layers."""
    (x, labels), (layers, norm) = batch, params
    maps = jax.lax.conv_general_dilated(
        x.reshape(-1, 4, 4, 3), layers["filters"], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    mean = maps.mean((0, 1, 2)) if key is not None else state["mean"]
    hidden = jnp.tanh((maps - mean) * norm["scale"]).reshape(len(x), -1)
    if key is not None:
        hidden *= jax.random.bernoulli(key, 0.8, hidden.shape)
    logits = jax.nn.log_softmax(jnp.tanh(hidden @ layers["hidden"]) @ layers["last"])
    loss = -jnp.take_along_axis(logits, labels[:, None], 1).mean()
    state = {"mean": 0.9 * state["mean"] + 0.1 * mean, "calls": state["calls"] + 1}
    return loss, state, {"accuracy": (logits.argmax(1) == labels).mean()}


def small(params, state, batch, key=None):
    """A network of one layer and dropout, which compiles fast."""
    x, labels = batch
    if key is not None:
        x = x * jax.random.bernoulli(key, 0.8, x.shape)
    logits = jax.nn.log_softmax(x @ params[0]["last"][:48])
    loss = -jnp.take_along_axis(logits, labels[:, None], 1).mean()
    return loss, {"mean": state["mean"] + loss, "calls": state["calls"] + 1}


def slow(params, state, batch, key=None):
    loss, state = small(params, state, batch, key)
    number = jax.pure_callback(_work, jax.ShapeDtypeStruct((), np.float32), jax.lax.stop_gradient(loss))
    return loss, state, {"number": number}


def _work(_):
    work(10)  # so that a kill lands inside a gradient
    return np.float32(0)


def model_of(function=network):
    params, state = params_and_state()
    return JaxModel(function, params, state=state)


def run(function=network, *, epochs=3, callbacks=(), **engine):
    optimizer = SGD(0.05, momentum=0.9, weight_decay=0.01)
    with Trainer(model_of(function), optimizer=optimizer, shards=4, seed=3, max_restarts=1000, **engine) as trainer:
        history = trainer.fit(DATA, epochs=epochs, batch_size=32, validation_data=DATA, callbacks=callbacks)
        params = trainer.params
        assert params["calls"] == trainer.step == 4 * epochs
        return weights_sha256(params), history.history, trainer.restarts


@pytest.fixture(scope="module")
def expected():
    return run(small, engine="serial")


@pytest.mark.parametrize("workers", [1, 3])  # two are killed below
def jax_any_number_of_processes_gives_the_same_bits(workers, expected):
    assert run(small, workers=workers) == expected


def jax_nodes_give_the_same_bits(expected):
    assert run(small, engine="loopback", nodes=2, workers=1) == expected


def jax_convolutions_and_reductions_give_the_same_bits():
    assert run(workers=2) == run(engine="serial")


class Kill(Callback):
    """Kills a worker after some steps of an epoch, while the others compute gradients or wait."""

    def on_batch_end(self, step, logs):
        if step == 1:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.trainer.pids[self.trainer.epoch % 2], signal.SIGKILL)


def jax_killed_workers_change_no_bit():
    sha256, _, restarts = run(slow, epochs=2, workers=2, callbacks=[Kill()])
    assert restarts >= 1
    assert sha256 == run(slow, epochs=2, engine="serial")[0]


def jax_workers_have_the_settings_of_this_process():
    """JAX uses the same 64-bit setting and the same kind of random keys in workers."""
    with jax.enable_x64(True), jax.default_prng_impl("rbg"):
        expected = run(small, engine="serial", epochs=1)
        assert run(small, workers=1, epochs=1) == expected
    assert expected[0] != run(small, engine="serial", epochs=1)[0]


def broken(params, state, batch):
    raise ValueError("no such thing")


def jax_an_error_in_a_worker_says_where():
    with pytest.raises(WorkerError, match=r"(?s)in broken\n.*ValueError: no such thing"):
        run(broken, workers=1)
