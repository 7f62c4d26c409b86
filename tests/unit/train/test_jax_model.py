"""JaxModel: accepted params, compared with a plain JAX loop, and the errors for others.

JAX warns at every fork in a process that used it, while other tests fork. So the functions named ``jax_...`` run in
their own process. tests/conformance/test_jax_training.py tests JaxModel in workers.
"""

import copy
import dataclasses
import inspect
import os
import pickle
import subprocess
import sys
import textwrap
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from networks import data_of
from untorn import SGD, NonFiniteLossError, Trainer, WorkerError
from untorn.jax import JaxModel
from untorn.train.data.sampler import epoch_order, shard_rng

pytestmark = pytest.mark.early


def test_jax_in_a_process_of_its_own():
    command = [sys.executable, "-m", "pytest", "-q", "-o", "python_functions=jax_*", __file__]
    environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stdout + ended.stderr


SEED = 1
x, y = data_of(44, 3, dtype=np.float32)


def start(seed=0):
    rng = np.random.default_rng(seed)
    return {"w": jnp.array(rng.normal(size=(3, 4)), jnp.float32), "v": jnp.ones(4), "b": jnp.zeros(())}


def loss_fn(params, batch):
    x, y = batch
    return jnp.mean((jnp.tanh(x @ params["w"]) @ params["v"] + params["b"] - y) ** 2)


def with_metrics(params, batch):
    return loss_fn(params, batch), {"rows": len(batch[0]), "bias": params["b"]}


def with_key(params, batch, key):
    return loss_fn(params, (batch[0] * jax.random.bernoulli(key, 0.5, batch[0].shape), batch[1]))


def sometimes_with_key(params, batch, key=None):
    return loss_fn(params, batch) if key is None else with_key(params, batch, key)


def trained(model, data=(x, y), *, epochs=2, batch_size=22, **arguments):
    """Return (the trained pytree, the params, the history)."""
    given = {"optimizer": SGD(0.1), "engine": "serial", "shards": 2, "seed": SEED} | arguments
    with Trainer(model, **given) as trainer:
        history = trainer.fit(data, epochs=epochs, batch_size=batch_size)
        return trainer.module(), trainer.params, history.history


def plain(loss_fn, params, data=(x, y), *, shards=2, epochs=2, batch_size=22, keys=False):
    """Return the same from a loop in plain JAX, which accumulates the gradients of the shards."""
    gradient, step = jax.jit(jax.grad(loss_fn)), 0
    for epoch in range(epochs):
        order = epoch_order(SEED, epoch, len(data[0]))
        for first in range(0, len(order), batch_size):
            batch = order[first : first + batch_size]
            total = jax.tree.map(jnp.zeros_like, params)
            for shard in range(shards):
                part = batch[len(batch) * shard // shards : len(batch) * (shard + 1) // shards]
                rng = shard_rng(SEED, step, shard, shards)
                key = jax.random.wrap_key_data(rng.integers(2**32, size=2, dtype=np.uint32))
                examples = jax.tree.map(lambda each, part=part: each[part], data)
                grads = gradient(params, examples, *([key] if keys else []))
                total = jax.tree.map(partial(_add, share=len(part) / len(batch)), total, grads)
            params = jax.tree.map(lambda param, grad: param - 0.1 * grad, params, total)
            step += 1
    return params


def _add(total, grad, *, share):
    return total + share * grad


def assert_close(got, expected):
    assert jax.tree.structure(got) == jax.tree.structure(expected)
    for mine, other in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        assert mine.dtype == other.dtype
        np.testing.assert_allclose(mine, other, rtol=1e-4, atol=1e-6)


# -- against a plain loop


@pytest.mark.parametrize("shards", [1, 2, 3])
def jax_equals_a_plain_loop(shards):
    got, _, history = trained(JaxModel(loss_fn, start()), shards=shards, batch_size=14)
    assert_close(got, plain(loss_fn, start(), shards=shards, batch_size=14))
    assert history["loss"][1] < history["loss"][0]


def jax_accumulation_equals_a_plain_loop():
    got, _, _ = trained(JaxModel(loss_fn, start()), shards=2, accumulate=2)
    assert_close(got, plain(loss_fn, start(), shards=1))


@pytest.mark.parametrize("function", [with_key, sometimes_with_key])
def jax_keys_belong_to_seed_step_and_shard(function):
    got, _, _ = trained(JaxModel(function, start()))
    assert_close(got, plain(with_key, start(), keys=True))


def jax_a_key_with_a_default_is_left_out_in_evaluation():
    with Trainer(JaxModel(sometimes_with_key, start()), optimizer=SGD(0.1), engine="serial") as trainer:
        assert trainer.evaluate((x, y))["loss"] == pytest.approx(float(loss_fn(start(), (x, y))), rel=1e-5)
    with Trainer(JaxModel(with_key, start()), optimizer=SGD(0.1), engine="serial") as trainer:
        assert trainer.evaluate((x, y))["loss"] != pytest.approx(float(loss_fn(start(), (x, y))), rel=1e-5)


def jax_keys_of_another_kind():
    with jax.default_prng_impl("rbg"):
        model = JaxModel(with_key, start())
    first, second = (trained(model)[0] for _ in range(2))
    assert first["w"].tobytes() == second["w"].tobytes()
    assert first["w"].tobytes() != trained(JaxModel(with_key, start()))[0]["w"].tobytes()


def jax_metrics_and_predictions():
    model = JaxModel(with_metrics, start(), predict=lambda params, x: jnp.tanh(x @ params["w"]) @ params["v"])
    with Trainer(model, optimizer=SGD(0.1), engine="serial", shards=2) as trainer:
        history = trainer.fit((x, y), epochs=1, batch_size=44, validation_data=(x, y)).history
        assert history["rows"] == [22]
        assert history["val_rows"] == [44]
        got = trainer.predict(x, batch_size=20)
        params = trainer.params
    np.testing.assert_allclose(got, np.tanh(x @ params["w"]) @ params["v"], rtol=1e-4)


# -- params


class Line(NamedTuple):
    w: object
    b: object


@partial(jax.tree_util.register_dataclass, data_fields=["w", "b"], meta_fields=["name"])
@dataclasses.dataclass
class Named:
    w: object
    b: object
    name: str


@jax.tree_util.register_pytree_node_class
class Own:
    def __init__(self, parts):
        self.parts = parts

    def tree_flatten(self):
        return self.parts, None

    @classmethod
    def tree_unflatten(cls, _, parts):
        return cls(tuple(parts))


w, b = np.float32([0.1, 0.2, 0.3]), np.zeros((), np.float32)
LINES = {
    "dict": (lambda: {"w": jnp.array(w), "b": jnp.array(b)}, ["b", "w"], lambda p: (p["w"], p["b"])),
    "tuple": (lambda: (jnp.array(w), jnp.array(b)), ["0", "1"], lambda p: p),
    "nested": (lambda: [{"w": jnp.array(w)}, (None, jnp.array(b))], ["0.w", "1.1"], lambda p: (p[0]["w"], p[1][1])),
    "named tuple": (lambda: Line(jnp.array(w), jnp.array(b)), ["w", "b"], lambda p: (p.w, p.b)),
    "dataclass": (lambda: Named(jnp.array(w), jnp.array(b), "a line"), ["w", "b"], lambda p: (p.w, p.b)),
    "own class": (lambda: Own((jnp.array(w), jnp.array(b))), ["0", "1"], lambda p: p.parts),
    "one array": (lambda: jnp.array(w), ["params"], lambda p: (p, 0)),
    "same words": (
        lambda: {"a": {"b": jnp.array(w)}, "a.b": jnp.array(b)},
        ["a.b", "a.b_"],
        lambda p: (p["a"]["b"], p["a.b"]),
    ),
}


@pytest.mark.parametrize("name", LINES)
def jax_every_kind_of_pytree(name):
    make, names, parts_of = LINES[name]
    params = make()

    def line(params, batch):
        w, b = parts_of(params)
        return jnp.mean((batch[0] @ w + b - batch[1]) ** 2)

    got, published, _ = trained(JaxModel(line, params))
    assert list(published) == names
    assert_close(got, plain(line, params))
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(got))


def jax_numpy_arrays_come_back_as_numpy_arrays():
    params = {"w": np.asfortranarray(start()["w"]), "v": jnp.ones(4), "b": b}
    got, _, _ = trained(JaxModel(loss_fn, params))
    assert [type(got[name]) for name in "wb"] == [np.ndarray] * 2
    assert isinstance(got["v"], jax.Array)
    assert_close(got, plain(loss_fn, jax.tree.map(jnp.asarray, params)))
    got["b"] += 1


def jax_params_that_were_given_are_not_changed():
    params = jax.tree.map(np.array, start())
    before = copy.deepcopy(params)
    trained(JaxModel(loss_fn, params))
    assert all((params[name] == before[name]).all() for name in params)


def jax_float64():
    data = data_of(44, 3)
    wide = {name: np.asarray(value, np.float64) for name, value in start().items()}
    assert not jax.config.jax_enable_x64
    got, _, _ = trained(JaxModel(loss_fn, wide), data)
    assert got["w"].dtype == np.float64
    with jax.enable_x64(True):
        expected = plain(loss_fn, wide, data)
        np.testing.assert_allclose(got["w"], expected["w"], rtol=1e-12)
        again, _, _ = trained(JaxModel(loss_fn, jax.tree.map(jnp.asarray, wide)), data)
        assert again["w"].dtype == jnp.float64
    np.testing.assert_array_equal(np.asarray(again["w"]), got["w"])


def jax_data_of_jax():
    got, _, _ = trained(JaxModel(loss_fn, start()), (jnp.array(x), jnp.array(y)))
    assert_close(got, plain(loss_fn, start()))


def jax_old_versions_are_let_go_of():
    with Trainer(JaxModel(loss_fn, start()), optimizer=SGD(0.1), engine="serial") as trainer:
        for _ in range(8):
            trainer.fit((x, y), epochs=1, batch_size=22)
        assert sum(len(info.versions) for info in trainer._open().weights.channel.readers()) <= 3


# -- flax and equinox


def jax_flax_linen():
    linen = pytest.importorskip("flax.linen")
    from flax.core import freeze

    module = linen.Sequential([linen.Dense(4), linen.tanh, linen.Dense(1)])
    params = module.init(jax.random.key(0), x[:1])

    def loss_of(params, batch):
        return jnp.mean((module.apply(params, batch[0])[:, 0] - batch[1]) ** 2)

    for given in (params, freeze(params)):
        got, published, _ = trained(JaxModel(loss_of, given))
        assert "params.layers_0.kernel" in published
        assert type(got) is type(given)
        assert_close(got, plain(loss_of, given))


def jax_batch_statistics_are_a_state():
    linen = pytest.importorskip("flax.linen")
    module = linen.BatchNorm(momentum=0.9)
    variables = module.init(jax.random.key(0), x[:1], use_running_average=False)

    def loss_of(params, state, batch):
        variables = {"params": params, "batch_stats": state}
        outputs, new = module.apply(variables, batch[0], use_running_average=False, mutable=["batch_stats"])
        return jnp.mean((outputs.sum(1) - batch[1]) ** 2), new["batch_stats"], {"mean": jnp.mean(outputs)}

    def predict(params, state, x):
        return module.apply({"params": params, "batch_stats": state}, x, use_running_average=True)

    model = JaxModel(loss_of, variables["params"], state=variables["batch_stats"], predict=predict)
    with Trainer(model, optimizer=SGD(0.1), engine="serial", shards=2) as trainer:
        history = trainer.fit((x, y), epochs=2, batch_size=44)
        params, state = trainer.module()
        assert trainer.predict(x).shape == x.shape
    assert set(history.history) >= {"loss", "mean"}
    np.testing.assert_allclose(state["mean"], 0.19 * x.mean(0), rtol=1e-4, atol=1e-6)
    assert not jnp.array_equal(params["scale"], variables["params"]["scale"])


@pytest.mark.parametrize("pure", [False, True])
def jax_flax_nnx(pure):
    nnx = pytest.importorskip("flax.nnx")

    class Network(nnx.Module):
        def __init__(self, rngs):
            self.first, self.second = nnx.Linear(3, 4, rngs=rngs), nnx.Linear(4, 1, rngs=rngs)

        def __call__(self, x):
            return self.second(jnp.tanh(self.first(x)))[:, 0]

    graph, state = nnx.split(Network(nnx.Rngs(0)), nnx.Param)
    params = nnx.to_pure_dict(state) if pure else state

    def loss_of(params, batch):
        return jnp.mean((nnx.merge(graph, params)(batch[0]) - batch[1]) ** 2)

    got, _, _ = trained(JaxModel(loss_of, params))
    assert type(got) is type(params)
    assert_close(got, plain(loss_of, params))
    assert nnx.merge(graph, got)(x).shape == y.shape


def jax_equinox():
    equinox = pytest.importorskip("equinox")
    network = equinox.nn.MLP(3, "scalar", 4, 1, key=jax.random.key(0))
    params, static = equinox.partition(network, equinox.is_inexact_array)

    def loss_of(params, batch):
        return jnp.mean((jax.vmap(equinox.combine(params, static))(batch[0]) - batch[1]) ** 2)

    got, published, _ = trained(JaxModel(loss_of, params))
    assert next(iter(published)) == "layers.0.weight"
    assert type(got) is type(params)
    assert_close(got, plain(loss_of, params))
    with pytest.raises(TypeError, match=r"params: activation: expected an array.*equinox\.partition"):
        JaxModel(loss_of, network)


# -- pickling for workers


@jax.jit
def jitted(params, batch):
    return loss_fn(params, batch)


def jax_what_is_sent_has_no_arrays():
    big = start() | {"unused": jnp.zeros(100_000)}
    sent = pickle.dumps(JaxModel(loss_fn, big).for_workers())
    assert len(sent) < 3000
    replica = pickle.loads(sent).replica(None)
    params = {name: np.asarray(value) for name, value in big.items()}
    assert replica(params, (x, y), None).loss == pytest.approx(float(loss_fn(start(), (x, y))), rel=1e-5)


def jax_a_jitted_function_can_be_sent():
    again = pickle.loads(pickle.dumps(JaxModel(jitted, start()).for_workers()))
    assert again.loss_fn.call is jitted
    assert pickle.loads(pickle.dumps(JaxModel(jax.jit(loss_fn), start()))).loss_fn.call is loss_fn
    again = copy.copy(again)
    assert again.replica(None)({n: np.asarray(v) for n, v in start().items()}, (x, y), None).loss > 0
    assert_close(trained(JaxModel(jitted, start()))[0], plain(loss_fn, start()))


# -- errors


@pytest.mark.parametrize(
    ("params", "message"),
    [
        (
            lambda: {"a": {"n": jnp.arange(3)}},
            r"^params: a\.n: expected an array of float32 or float64, found an array of int32",
        ),
        (lambda: {"n": np.arange(3)}, r"^params: n: .*found an array of int64"),
        (lambda: {"h": jnp.zeros(3, jnp.bfloat16)}, r"^params: h: .*found an array of bfloat16"),
        (lambda: {"k": jax.random.key}, r"^params: k: .*found a function"),
        (lambda: [0.5], r"^params: 0: .*found a float"),
    ],
)
def jax_params_that_cannot_be_trained(params, message):
    with pytest.raises(TypeError, match=message):
        JaxModel(loss_fn, params())


def jax_other_arguments():
    for params in ({}, {"a": None, "b": jnp.zeros(0)}):
        with pytest.raises(ValueError, match=r"^params: there is nothing to train"):
            JaxModel(loss_fn, params)
    with pytest.raises(TypeError, match=r"^loss_fn: expected a function"):
        JaxModel(start(), loss_fn)
    with pytest.raises(TypeError, match=r"^predict: expected a function"):
        JaxModel(loss_fn, start(), predict=1)
    with pytest.raises(TypeError, match=r"^state: k: expected an array of numbers"):
        JaxModel(loss_fn, start(), state={"k": "text"})
    with pytest.raises(TypeError, match="brings its own parameters"):
        Trainer(JaxModel(loss_fn, start()), start(), optimizer=SGD(0.1))


def answers(answer, **arguments):
    return JaxModel(lambda params, batch: answer(loss_fn(params, batch)), start(), **arguments)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (
            lambda: answers(lambda loss: loss * jnp.ones(3)),
            r"one real number.*found an array of float32 of shape \(3,\)",
        ),
        (lambda: answers(lambda loss: loss > 0), "one real number.*found an array of bool"),
        (lambda: answers(lambda loss: (loss, 1)), "expected a dict of metrics by name, found int"),
        (lambda: answers(lambda loss: (loss, {"m": jnp.ones(2)})), "metric 'm': expected one number"),
        (lambda: answers(lambda loss: (loss, {}, 3)), "expected a loss, found a tuple of length 3"),
        (lambda: answers(lambda loss: (loss, {}), has_aux=False), "expected a loss, found a tuple of length 2"),
        (lambda: answers(lambda loss: loss, has_aux=True), r"expected \(loss, metrics\), found"),
    ],
)
def jax_answers_that_do_not_fit(model, message):
    with pytest.raises(WorkerError, match=message):
        trained(model())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: {"other": state["m"]}, "the state that it returns: expected PyTreeDef"),
        (lambda state: {"m": jnp.zeros(3)}, r"state that it returns: m: expected float32 of shape \(2,\)"),
        (lambda state: {"m": jnp.zeros(2, complex)}, "found complex64 of shape"),
    ],
)
def jax_states_that_do_not_fit(change, message):
    def loss_of(params, state, batch):
        return loss_fn(params, batch), change(state)

    with pytest.raises(WorkerError, match=message):
        trained(JaxModel(loss_of, start(), state={"m": jnp.zeros(2)}))


def jax_a_loss_that_is_not_a_number():
    with Trainer(answers(lambda loss: loss * jnp.nan), optimizer=SGD(0.1), engine="serial") as trainer:
        with pytest.raises(NonFiniteLossError):
            trainer.fit((x, y), epochs=1, batch_size=12)
        assert_close(trainer.module(), start())


def jax_params_of_another_structure_cannot_be_set():
    with Trainer(JaxModel(loss_fn, start()), optimizer=SGD(0.1), engine="serial") as trainer:
        with pytest.raises(ValueError, match="the new weights lack b"):
            trainer.params = {"w": np.zeros((3, 4), np.float32)}
        assert_close(trainer.module(), start())


def jax_predictions_without_a_function():
    trainer = Trainer(JaxModel(loss_fn, start()), optimizer=SGD(0.1), engine="serial")
    with trainer, pytest.raises(TypeError, match="give JaxModel predict="):
        trainer.predict(x)


def jax_a_training_is_followed_by_the_module():
    def squares(params, batch):
        return ((batch @ params["layer"]["w"]) ** 2).mean()

    model = JaxModel(squares, {"layer": {"w": jnp.ones((3, 2))}})
    with Trainer(model, optimizer=SGD(0.1), engine="serial", shards=1) as trainer:
        trainer.fit(x, epochs=1, batch_size=16)
        snapshot = trainer.subscriber().snapshot()
        assert not snapshot.value["layer.w"].flags.writeable
        params = model.module(snapshot.value)
        assert isinstance(params["layer"]["w"], jax.Array)
        donated = jax.jit(lambda tree: jax.tree.map(lambda leaf: leaf + 1, tree), donate_argnums=0)
        assert np.array_equal(donated(snapshot.value)["layer.w"], trainer.params["layer.w"] + 1)
        assert np.array_equal(donated(params)["layer"]["w"], trainer.params["layer.w"] + 1)
        assert np.array_equal(snapshot.value["layer.w"], trainer.params["layer.w"])


def jax_a_right_model_is_found_right():
    with Trainer(JaxModel(loss_fn, start()), optimizer=SGD(0.1), engine="serial", shards=2) as trainer:
        assert trainer.check((x, y), batch_size=16).ok


def jax_the_example_runs(capsys):
    text = inspect.getdoc(JaxModel)
    exec(textwrap.dedent(text[text.index("Example::") + len("Example::") :]), {})  # the class's own documentation
    assert capsys.readouterr().out == "[ 1. -2.]\n"
