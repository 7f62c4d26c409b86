"""JaxModel: random keys in the state, as Flax's nnx modules keep them."""

import numpy as np
import pytest

pytest.importorskip("jax")
import jax
import jax.numpy as jnp

from untorn import SGD, Trainer
from untorn.jax import JaxModel

X = np.random.default_rng(0).normal(size=(64, 3)).astype(np.float32)
Y = X @ np.float32([1, -2, 0.5])


def initial_state():
    return {
        "key": jax.random.key(3),
        "keys": jax.random.split(jax.random.key(4), (2, 2)),
        "count": jnp.zeros((), jnp.uint32),
    }


def loss_fn(params, state, batch):
    x, y = batch
    keep = jax.random.bernoulli(jax.random.fold_in(state["key"], state["count"]), 0.8, x.shape)
    noise = jax.random.normal(state["keys"][1, 0], ())
    loss = jnp.mean((jnp.where(keep, x, 0) @ params["w"] - y) ** 2)
    return loss, state | {"count": state["count"] + 1}, {"noise": noise}


def trained(**how):
    model = JaxModel(loss_fn, {"w": jnp.zeros(3)}, state=initial_state())
    with Trainer(model, optimizer=SGD(0.1), shards=2, **how) as trainer:
        history = trainer.fit((X, Y), epochs=2, batch_size=16, shuffle=False)
        first, second = trainer.evaluate((X, Y)), trainer.evaluate((X, Y))
        assert first == second
        return trainer.module(), history.history


def test_keys_in_the_state():
    (params, state), history = trained(engine="serial")
    for name in ("key", "keys"):
        assert (jax.random.key_data(state[name]) == jax.random.key_data(initial_state()[name])).all()
    assert state["keys"].shape == (2, 2) and int(state["count"]) == 8
    again, _ = trained(engine="serial")
    assert (params["w"] == again[0]["w"]).all()
    assert history["noise"][0] != history["noise"][1]  # keys of other steps


def test_keys_do_not_depend_on_the_workers():
    (one, _), _ = trained(engine="serial")
    (two, _), _ = trained(workers=2)
    assert (one["w"] == two["w"]).all()


def test_a_module_of_flax_that_keeps_its_rngs():
    nnx = pytest.importorskip("flax.nnx")

    class MLP(nnx.Module):
        def __init__(self, rngs):
            self.a = nnx.Linear(3, 16, rngs=rngs)
            self.drop = nnx.Dropout(0.2, rngs=rngs)
            self.b = nnx.Linear(16, 1, rngs=rngs)

        def __call__(self, x):
            return self.b(self.drop(nnx.relu(self.a(x))))[:, 0]

    graph, params, state = nnx.split(MLP(nnx.Rngs(0)), nnx.Param, ...)

    def natural(params, state, batch):
        model = nnx.merge(graph, params, state)
        loss = jnp.mean((model(batch[0]) - batch[1]) ** 2)
        return loss, nnx.state(model, nnx.Not(nnx.Param))

    with Trainer(JaxModel(natural, params, state=state), optimizer=SGD(0.05), engine="serial", shards=2) as trainer:
        history = trainer.fit((X, Y), epochs=5, batch_size=16)
        made = nnx.merge(graph, *trainer.module())
    assert history.history["loss"][-1] < history.history["loss"][0] / 2
    assert made(X).shape == (64,)


def test_keys_are_not_trained():
    with pytest.raises(TypeError, match="params: key: expected an array of float32 or float64"):
        JaxModel(lambda params, batch: 0.0, {"w": jnp.zeros(3), "key": jax.random.key(0)})
