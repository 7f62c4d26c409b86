"""Training on several nodes gives the weights of the serial engine, bit for bit, whoever computes which shard.

The nodes are processes of this machine (the loopback cluster), so nothing but the network between them is simulated.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import pytest

import networks
from untorn import trees
from untorn.train import SGD, AdamW, Callback, Trainer, weights_sha256

DATA = networks.classes_of(152, 12, 3, seed=6)
BATCH = 16  # 10 steps an epoch, the last of 8 examples
NODES = {
    "1 node": (1, 1),
    "1 of 2 workers": (1, 2),
    "2 nodes": (2, 1),
    "2 of 2": (2, 2),
    "3 nodes": (3, 1),
    "4 nodes": (4, 1),
}


def numpy_model() -> tuple[Any, Any]:
    return networks.mlp_with_dropout, networks.mlp_params((12, 16, 3))


def torch_model() -> tuple[Any, Any]:
    torch = pytest.importorskip("torch")
    from untorn.torch import TorchModel

    torch.manual_seed(1)
    nn = torch.nn
    module = nn.Sequential(
        nn.Linear(12, 16),
        nn.BatchNorm1d(16),
        nn.ReLU(),
        nn.Dropout(0.3),
        nn.Linear(16, 16),
        nn.Tanh(),
        nn.Linear(16, 3),
    )
    return TorchModel(module, nn.CrossEntropyLoss()), None


MODELS = {"numpy": numpy_model, "torch": torch_model}


def train(model: str, optimizer: Any, *, shards: int = 4, epochs: int = 2, callbacks: Any = (), **engine: Any) -> Any:
    """Return what must be the same: the digest of the weights, and the history."""
    made, params = MODELS[model]()
    with Trainer(made, params, optimizer=optimizer, shards=shards, seed=7, **engine) as trainer:
        history = trainer.fit(DATA, epochs=epochs, batch_size=BATCH, callbacks=callbacks)
        return weights_sha256(trainer.params), history.history, trainer.step


@functools.cache
def serial(model: str, optimizer: str, shards: int = 4) -> Any:
    return train(model, OPTIMIZERS[optimizer](), shards=shards, engine="serial")


OPTIMIZERS = {
    "sgd": lambda: SGD(0.1, momentum=0.9),
    "adamw": lambda: AdamW(0.01),
}


#: the others are for the soak
QUICK = {("1 of 2 workers", "sgd"), ("2 nodes", "adamw"), ("2 of 2", "sgd"), ("3 nodes", "adamw"), ("4 nodes", "sgd")}


@pytest.mark.parametrize(
    ("nodes", "optimizer"),
    [
        pytest.param(nodes, optimizer, marks=() if (nodes, optimizer) in QUICK else pytest.mark.soak)
        for nodes in NODES
        for optimizer in OPTIMIZERS
    ],
)
def test_any_number_of_nodes_and_workers(nodes, optimizer):
    count, workers = NODES[nodes]
    found = train("numpy", OPTIMIZERS[optimizer](), engine="loopback", nodes=count, workers=workers)
    assert found == serial("numpy", optimizer)


@pytest.mark.parametrize("shards", [1, 5, *(pytest.param(n, marks=pytest.mark.soak) for n in (2, 3, 7))])
def test_uneven_shards(shards):
    found = train("numpy", SGD(0.1, momentum=0.9), shards=shards, engine="loopback", nodes=3, workers=1)
    assert found == serial("numpy", "sgd", shards)


@pytest.mark.parametrize("nodes", [2, 3])
def test_a_module_with_batch_normalisation_and_dropout(nodes):
    assert train("torch", AdamW(0.01), engine="loopback", nodes=nodes, workers=1) == serial("torch", "adamw")


@pytest.mark.parametrize("clip_norm", [0.5])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_clipping_and_accumulation(clip_norm, accumulate):
    results = [
        _clipped(clip_norm, accumulate, **engine)
        for engine in ({"engine": "serial"}, {"engine": "loopback", "nodes": 3, "workers": 1})
    ]
    assert results[0] == results[1]


def _clipped(clip_norm: float, accumulate: int, **engine: Any) -> Any:
    model, params = numpy_model()
    given = {"optimizer": SGD(0.1, momentum=0.9), "clip_norm": clip_norm, "accumulate": accumulate}
    with Trainer(model, params, shards=4, seed=7, **given, **engine) as trainer:
        history = trainer.fit(DATA, epochs=2, batch_size=BATCH)
        return weights_sha256(trainer.params), history.history


@pytest.mark.parametrize("nodes", [1, 2])
def test_an_optimizer_of_torch(nodes):
    torch = pytest.importorskip("torch")
    optimizer = functools.partial(torch.optim.NAdam, lr=0.01)
    results = [
        train("torch", optimizer, **engine)
        for engine in ({"engine": "serial"}, {"engine": "loopback", "nodes": nodes, "workers": 1})
    ]
    assert results[0] == results[1]


class Steps(Callback):
    """Records the steps, and what they measured."""

    def __init__(self) -> None:
        self.rows: list[Any] = []

    def on_batch_end(self, step, logs):
        self.rows.append((step, logs["loss"], logs["examples"], logs["learning_rate"]))


def test_callbacks_see_every_step():
    seen = []
    for engine in ({"engine": "serial"}, {"engine": "loopback", "nodes": 2, "workers": 1}):
        steps = Steps()
        train("numpy", SGD(lambda step: 0.1 / (1 + step)), callbacks=[steps], **engine)
        seen.append(steps.rows)
    assert seen[0] == seen[1]
    assert len(seen[0]) == 20


def test_evaluation_and_predictions_on_the_nodes(monkeypatch):
    from untorn.train.run import evaluation

    monkeypatch.setattr(evaluation, "_WORTH_S", 0.0)
    results = []
    for engine in ({"engine": "serial"}, {"engine": "loopback", "nodes": 2, "workers": 1}):
        model, params = numpy_model()
        with Trainer(model, params, optimizer=SGD(0.1), shards=4, seed=7, **engine) as trainer:
            history = trainer.fit(DATA, epochs=2, batch_size=BATCH, validation_data=DATA)
            results.append((history.history, trainer.evaluate(DATA, batch_size=20)))
    assert results[0] == results[1]


def test_data_in_batches_from_an_iterable():
    x, y = DATA

    class Batches:
        def __iter__(self):
            return ((x[at : at + 16], y[at : at + 16]) for at in range(0, 144, 16))

    results = []
    for engine in ({"engine": "serial"}, {"engine": "loopback", "nodes": 2, "workers": 1}):
        model, params = numpy_model()
        with Trainer(model, params, optimizer=SGD(0.1), shards=4, seed=7, **engine) as trainer:
            trainer.fit(Batches(), epochs=2)
            results.append(weights_sha256(trainer.params))
    assert results[0] == results[1]


def test_weights_are_set_and_training_goes_on():
    results = []
    for engine in ({"engine": "serial"}, {"engine": "loopback", "nodes": 2, "workers": 1}):
        model, params = numpy_model()
        with Trainer(model, params, optimizer=SGD(0.1, momentum=0.9), shards=4, seed=7, **engine) as trainer:
            trainer.fit(DATA, epochs=1, batch_size=BATCH)
            trainer.params = trees.map(lambda value: value * np.float32(0.5), trainer.params)
            trainer.fit(DATA, epochs=1, batch_size=BATCH)
            results.append((weights_sha256(trainer.params), trainer.step, trainer.snapshot().version))
    assert results[0] == results[1]
