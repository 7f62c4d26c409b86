"""One suite over every engine: the weights are those of a plain loop, bit for bit.

The plain loop uses only documented facts about untorn: the order of an epoch, the division of a batch into shards, the
weight of a shard and the tree in which shards are summed.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import pytest

import networks
from untorn.train import SGD, Trainer, weights_sha256
from untorn.train.data.sampler import epoch_order, shard_rng

ENGINES = {
    "serial": {"engine": "serial"},
    "processes-1": {"engine": "processes", "workers": 1},
    "processes-2": {"engine": "processes", "workers": 2},
    "processes-3": {"engine": "processes", "workers": 3},
    "processes-4": {"engine": "processes", "workers": 4},
}
SHARDS = 4


def nested(params, batch):
    """A model of float64 in dicts, lists, tuples and named tuples."""
    x, y = batch["x"], batch["y"]
    scale, (layer,) = params["scale"], params["head"]["layers"]
    features = x * scale[0]
    error = features @ layer.w + layer.b - y
    back = 2 * np.outer(error, layer.w) / len(x)
    layer_grad = networks.Layer(2 * features.T @ error / len(x), 2 * error.mean())
    return (error**2).mean(), {"scale": ((back * x).sum(0),), "head": {"layers": [layer_grad]}}


def mixed(params, batch):
    """A model of float32 and float64, with a scalar, an empty array, odd sizes and a metric."""
    x, y = batch
    hidden = np.tanh(x @ params["a"])
    error = (hidden @ params["b"]).astype(np.float64) * params["c"] + params["d"] - y
    slope = 2 * error / len(x)
    back = (slope * params["c"])[:, None].astype(np.float32)
    grads = {
        "a": x.T @ (back * params["b"] * (1 - hidden**2)),
        "b": (hidden.T @ back)[:, 0],
        "c": float((slope * (hidden @ params["b"])).sum()),
        "d": slope.sum(keepdims=True),
        "none": np.zeros((0, 3)),
    }
    return (error**2).mean(), grads, {"mae": abs(error).mean()}


def wide(params, batch):
    """A model with more parameters than one update task takes, and a trivial gradient."""
    return float(batch.mean()), {"w": params["w"] * np.float32(0.5) + batch.sum(0)[0], "v": params["v"] - batch.sum()}


class Case(NamedTuple):
    model: Any
    params: Any
    data: Any
    batch_size: int
    epochs: int
    optimizer: SGD


def cases() -> dict[str, Case]:
    rng = np.random.default_rng(11)
    x, y = networks.data_of(203, 7)
    head = {"layers": [networks.Layer(rng.normal(size=7), np.zeros(()))]}
    odd = {
        "a": rng.normal(size=(7, 13)).astype(np.float32),
        "b": rng.normal(size=13).astype(np.float32),
        "c": np.ones(()),
        "d": np.zeros(1),
        "none": np.zeros((0, 3)),
    }
    classes = networks.classes_of(301, 17, 5)
    mlp_params = networks.mlp_params((17, 23, 5))
    large = {"w": rng.normal(size=(257, 1001)).astype(np.float32), "v": rng.normal(size=30_001)}
    every = SGD(0.05, momentum=0.9, nesterov=True, weight_decay=0.001)
    return {
        "line": Case(networks.line, networks.line_params(7), (x, y), 20, 3, SGD(0.01)),
        "one example": Case(networks.line, networks.line_params(7), (x[:1], y[:1]), 1, 5, SGD(0.01, momentum=0.5)),
        "batches smaller than shards": Case(networks.line, networks.line_params(7), (x[:10], y[:10]), 3, 4, SGD(0.01)),
        "nested": Case(
            nested, {"scale": (np.ones(7),), "head": head}, {"x": x, "y": y}, 64, 4, SGD(0.01, weight_decay=0.1)
        ),
        "mixed": Case(mixed, odd, (x.astype(np.float32), y), 51, 4, SGD(0.01, momentum=0.9)),
        "mlp": Case(networks.mlp, mlp_params, classes, 32, 4, every),
        "dropout": Case(networks.mlp_with_dropout, mlp_params, classes, 100, 4, every),
        "wide": Case(wide, large, x.astype(np.float32), 50, 2, every),
    }


CASES = cases()


def plain_loop(case: Case, *, shards: int, seed: int):
    """Return the weights after training, by the definition."""
    x = case.data
    leaves = flat(case.params)
    examples = len(flat(x)[0])
    velocities: list[Any] = [np.zeros_like(leaf) for leaf in leaves]
    batch_size = min(case.batch_size, examples)
    step = 0
    for epoch in range(case.epochs):
        order = epoch_order(seed, epoch, examples)
        for start in range(0, examples, batch_size):
            batch = order[start : start + batch_size]
            terms: list[Any] = []
            for shard in range(shards):
                part = batch[len(batch) * shard // shards : len(batch) * (shard + 1) // shards]
                if len(part) == 0:
                    terms.append(None)
                    continue
                rng = (shard_rng(seed, step, shard, shards),) if case.model is networks.mlp_with_dropout else ()
                params = rebuilt(case.params, iter(leaves))
                grads = flat(case.model(params, rebuilt(x, (a[part] for a in flat(x))), *rng)[1])
                terms.append([
                    leaf.dtype.type(len(part) / len(batch)) * np.asarray(grad, leaf.dtype)
                    for leaf, grad in zip(leaves, grads, strict=True)
                ])  # fmt: skip
            for i, leaf in enumerate(leaves):
                gradient = networks.fold([None if term is None else term[i] for term in terms])
                leaves[i], velocities[i] = sgd(case.optimizer, leaf, gradient, velocities[i])
            step += 1
    return rebuilt(case.params, iter(leaves))


def sgd(optimizer: SGD, leaf, gradient, velocity):
    real = leaf.dtype.type
    direction = gradient
    if optimizer.weight_decay:
        direction = direction + real(optimizer.weight_decay) * leaf
    if optimizer.momentum:
        velocity = np.asarray(real(optimizer.momentum) * velocity + direction)
        direction = direction + real(optimizer.momentum) * velocity if optimizer.nesterov else velocity
    return np.asarray(leaf - real(optimizer.learning_rate) * direction), velocity


def flat(tree) -> list[Any]:
    if isinstance(tree, dict):
        return [leaf for child in tree.values() for leaf in flat(child)]
    if isinstance(tree, tuple | list):
        return [leaf for child in tree for leaf in flat(child)]
    return [tree]


def rebuilt(tree, leaves):
    leaves = iter(leaves)
    if isinstance(tree, dict):
        return {key: rebuilt(child, leaves) for key, child in tree.items()}
    if hasattr(tree, "_fields"):
        return type(tree)(*[rebuilt(child, leaves) for child in tree])
    if isinstance(tree, tuple | list):
        return type(tree)([rebuilt(child, leaves) for child in tree])
    return next(leaves)


def trained(case: Case, *, shards: int = SHARDS, seed: int = 3, **engine):
    with Trainer(case.model, case.params, optimizer=case.optimizer, shards=shards, seed=seed, **engine) as trainer:
        history = trainer.fit(case.data, epochs=case.epochs, batch_size=case.batch_size)
        return trainer.params, history


@pytest.fixture(scope="module")
def expected():
    """Return the weights of the plain loop for each case."""
    return {name: weights_sha256(plain_loop(case, shards=SHARDS, seed=3)) for name, case in CASES.items()}


@pytest.fixture(scope="module")
def histories():
    """Return the history of the serial engine."""
    return {name: trained(case, engine="serial")[1].history for name, case in CASES.items()}


@pytest.mark.parametrize("engine", ENGINES.values(), ids=ENGINES)
@pytest.mark.parametrize("name", CASES)
def test_the_weights_are_those_of_the_plain_loop(name, engine, expected, histories):
    params, history = trained(CASES[name], **engine)
    assert weights_sha256(params) == expected[name]
    assert history.history == histories[name]


@pytest.mark.parametrize("shards", [1, 2, 3, 5, 8, 13])
@pytest.mark.parametrize("name", ["mlp", "mixed"])
def test_any_number_of_shards_is_summed_in_the_documented_tree(name, shards):
    params, _ = trained(CASES[name], shards=shards, engine="serial")
    assert weights_sha256(params) == weights_sha256(plain_loop(CASES[name], shards=shards, seed=3))


def test_the_result_depends_on_the_seed_and_on_the_shards():
    digests = {
        weights_sha256(trained(CASES["dropout"], seed=seed, shards=shards, engine="serial")[0])
        for seed in (0, 1)
        for shards in (1, 4)
    }
    assert len(digests) == 4
