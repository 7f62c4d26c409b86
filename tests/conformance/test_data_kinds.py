"""One suite over every kind of data: the same numbers give the same weights, for every kind and every engine."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import networks
from untorn import SGD, Trainer, WorkerError
from untorn.train import weights_sha256
from untorn.train.data import Examples
from untorn.train.data.sampler import epoch_order

# the kind of data is independent of the number of workers; test_engines.py has more numbers
ENGINES = {
    "serial": {"engine": "serial"},
    "processes-2": {"engine": "processes", "workers": 2},
}
X, Y = networks.classes_of(203, 17, 5)
PARAMS = networks.mlp_params((17, 23, 5))


class Items:
    """A dataset with single examples, as tensors or as arrays and numbers."""

    def __init__(self, *, tensors: bool = False) -> None:
        self.tensors = tensors

    def __len__(self) -> int:
        return len(X)

    def __getitem__(self, index: int) -> Any:
        if not self.tensors:
            return X[index], int(Y[index])
        import torch

        return torch.from_numpy(X[index]), torch.tensor(Y[index])


class Table(Items):
    """A dataset that returns many examples at a time."""

    def __getitems__(self, indices: list[int]) -> list[Any]:
        return [(X[index], Y[index]) for index in indices]


def joined(items: list[Any]) -> Any:
    """A collate_fn."""
    return np.stack([x for x, _ in items]), np.array([y for _, y in items])


def mapped(directory) -> Any:
    np.save(directory / "x.npy", X)
    np.save(directory / "y.npy", Y)
    return np.load(directory / "x.npy", mmap_mode="r"), np.load(directory / "y.npy", mmap_mode="r")


def tensors(_) -> Any:
    torch = pytest.importorskip("torch")
    return torch.from_numpy(X), torch.from_numpy(Y)


def tensor_dataset(_) -> Any:
    return pytest.importorskip("torch.utils.data").TensorDataset(*tensors(_))


def loader(_) -> Any:
    return pytest.importorskip("torch.utils.data").DataLoader(Items(tensors=True), batch_size=7, shuffle=True)


def frame(_) -> Any:
    pandas = pytest.importorskip("pandas")
    return pandas.DataFrame(X), pandas.Series(Y)


KINDS = {
    "a list of arrays": lambda _: [X, Y],
    "mapped files": mapped,
    "a mapped file and an array": lambda directory: (mapped(directory)[0], Y),
    "tensors": tensors,
    "a table": frame,
    "a dataset": lambda _: Items(),
    "a dataset of many at a time": lambda _: Table(),
    "a list of examples": lambda _: Examples([(X[i], Y[i]) for i in range(len(X))]),
    "a collate_fn": lambda _: Examples(Items(), joined),
    "a TensorDataset": tensor_dataset,
    "a DataLoader": loader,
}


def trained(data, *, model=networks.mlp, engine, **options):
    with Trainer(model, PARAMS, optimizer=SGD(0.05, momentum=0.9), shards=4, seed=3, **engine) as trainer:
        history = trainer.fit(data, epochs=2, batch_size=32, **options)
        return weights_sha256(trainer.params), history.history, trainer.evaluate(data, batch_size=64)


@pytest.fixture(scope="module")
def expected():
    """Return the weights of the serial engine for a tuple of arrays."""
    return trained((X, Y), engine=ENGINES["serial"])


@pytest.mark.parametrize("engine", ENGINES.values(), ids=ENGINES)
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_data_gives_the_same_weights(kind, engine, expected, tmp_path):
    assert trained(KINDS[kind](tmp_path), engine=engine) == expected


@pytest.mark.parametrize("engine", ENGINES.values(), ids=ENGINES)
@pytest.mark.parametrize("data", [(X, Y), Items()], ids=["arrays", "dataset"])
def test_order_and_last_batch_are_as_asked_for(data, engine):
    used = len(X) // 32 * 32
    ordered = trained(data, engine=engine, shuffle=False, drop_last=True)
    assert ordered[:2] == trained((X[:used], Y[:used]), engine=ENGINES["serial"], shuffle=False)[:2]
    whole = trained(data, engine=engine, shuffle=False)
    assert whole[0] != ordered[0]
    assert whole == trained((X, Y), engine=ENGINES["serial"], shuffle=False)


@pytest.mark.parametrize("engine", ENGINES.values(), ids=ENGINES)
def test_what_is_dropped_is_another_part_in_each_epoch(engine):
    """The gradient is the mean of the examples, so the weight is their sum; each epoch drops its last 3."""
    numbers = 2.0 ** np.arange(11)
    with Trainer(mean, {"w": np.zeros(())}, optimizer=SGD(1.0), shards=2, seed=5, **engine) as trainer:
        for epoch in range(3):
            before = trainer.params["w"]
            trainer.fit(numbers, epochs=1, batch_size=4, drop_last=True)
            assert (before - trainer.params["w"]) * 4 == numbers[epoch_order(5, epoch, 11)[:8]].sum()


def mean(params, batch):
    """A model whose gradient is the mean of the numbers."""
    return 0.0, {"w": batch.mean()}


def test_drop_last_needs_a_whole_batch():
    with (
        Trainer(networks.mlp, PARAMS, optimizer=SGD(0.1), engine="serial") as trainer,
        pytest.raises(ValueError, match="drop_last: no batch is left; expected at least batch_size=300 examples"),
    ):
        trainer.fit((X, Y), epochs=1, batch_size=300, drop_last=True)


class Weak(Items):
    """A dataset with an example that cannot be read."""

    def __getitem__(self, index: int) -> Any:
        if index == 13:
            raise OSError("the disk is full of holes")
        return super().__getitem__(index)


@pytest.mark.parametrize("engine", ENGINES.values(), ids=ENGINES)
def test_an_example_that_cannot_be_read_is_named(engine):
    with pytest.raises(WorkerError) as caught:
        trained(Weak(), engine=engine)
    assert "data[13]: OSError: the disk is full of holes" in str(caught.value)
    assert 'raise OSError("the disk is full of holes")' in caught.value.worker_traceback


def test_validation_and_prediction_take_every_kind(expected, tmp_path):
    model = Classifier()
    with Trainer(model, PARAMS, optimizer=SGD(0.05), engine="serial") as trainer:
        history = trainer.fit((X, Y), epochs=1, batch_size=32, validation_data=Items()).history
        assert history["val_loss"] == [trainer.evaluate((X, Y))["loss"]]
        outputs = trainer.predict(X)
        assert trainer.predict(mapped(tmp_path)[0], batch_size=1024).tolist() == outputs.tolist()
        assert trainer.predict(Examples(list(X))).tolist() == outputs.tolist()


class Classifier:
    """The perceptron, with predict."""

    def loss_and_grad(self, params, batch):
        return networks.mlp(params, batch)

    def predict(self, params, x):
        return x @ params[0].w


@pytest.mark.parametrize("engine", [{"engine": "serial"}, {"workers": 1}])
def test_a_torch_model_takes_datasets_too(engine):
    torch = pytest.importorskip("torch")
    from untorn.torch import TorchModel

    digests = set()
    for data in ((X, Y), tensors(None), Items(tensors=True), loader(None)):
        torch.manual_seed(0)
        model = TorchModel(torch.nn.Linear(17, 5), torch.nn.CrossEntropyLoss())
        with Trainer(model, optimizer=SGD(0.05), shards=4, **engine) as trainer:
            trainer.fit(data, epochs=2, batch_size=32)
            digests.add(weights_sha256(trainer.params))
    assert len(digests) == 1
