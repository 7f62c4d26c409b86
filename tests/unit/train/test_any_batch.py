"""What a collate_fn or an iterable of batches returns reaches forward as it does in a plain loop."""

from __future__ import annotations

import dataclasses
from collections import UserDict

import numpy as np
import pytest

pytest.importorskip("torch")
import torch
from torch import nn
from torch.nn.utils.rnn import PackedSequence, pack_sequence, pad_packed_sequence
from torch.utils.data import DataLoader, IterableDataset

from untorn import SGD, Examples, Trainer
from untorn.torch import TorchModel


class Encoding(UserDict):
    """A Mapping that is no dict, as Hugging Face's BatchEncoding."""

    def __getattr__(self, name):
        try:
            return self.data[name]
        except KeyError:
            raise AttributeError(name) from None


@dataclasses.dataclass
class Batch:
    x: torch.Tensor
    y: torch.Tensor


class Graph:
    """As PyTorch Geometric's Batch: an object that knows itself how to be cut."""

    def __init__(self, x, y):
        self.x, self.y = x, y


ITEMS = [(np.random.default_rng(k).normal(size=(5, 3)).astype(np.float32), k % 2) for k in range(64)]


def stacked(items):
    return torch.stack([torch.as_tensor(x) for x, _ in items]), torch.tensor([y for _, y in items])


def as_encoding(items):
    x, y = stacked(items)
    return Encoding(x=x, y=y)


def as_dataclass(items):
    return Batch(*stacked(items))


def as_graph(items):
    return Graph(*stacked(items))


def with_texts(items):
    x, y = stacked(items)
    return {"x": x, "names": [f"item {label}" for label in y.tolist()], "none": None, "y": y}


def as_packed(items):
    x, y = stacked(items)
    return pack_sequence(list(x), enforce_sorted=False), y


def as_half(items):
    x, y = stacked(items)
    return {"x": x.bfloat16(), "y": y}


def forward(module, batch):
    """The loss, for any of these batches; fails for one that did not arrive as it was made."""
    if isinstance(batch, tuple):
        packed, y = batch
        assert type(packed) is PackedSequence
        x = pad_packed_sequence(packed, batch_first=True)[0]
    elif isinstance(batch, Encoding | Batch | Graph):
        x, y = batch.x, batch.y
    else:
        assert batch.get("names") is None or batch["names"] == [f"item {label}" for label in batch["y"].tolist()]
        x, y = batch["x"].float(), batch["y"]
    assert isinstance(x, torch.Tensor) and isinstance(y, torch.Tensor)
    return nn.functional.cross_entropy(module(x)[:, 0], y)


def plain(collate, batches):
    torch.manual_seed(0)
    module = nn.Linear(3, 2)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    for batch in batches:
        optimizer.zero_grad()
        forward(module, collate(batch)).backward()
        optimizer.step()
    return module.weight.detach().numpy()


def trained(data, **how):
    torch.manual_seed(0)
    model = TorchModel(nn.Linear(3, 2), None, forward=forward)
    with Trainer(model, optimizer=SGD(0.1), **how) as trainer:
        trainer.fit(
            data,
            epochs=1,
            **(
                {}
                if hasattr(data, "__next__") or isinstance(data, DataLoader)
                else {"batch_size": 16, "shuffle": False}
            ),
        )
        return trainer.params["weight"]


KINDS = [as_encoding, as_dataclass, as_graph, with_texts, as_packed, as_half]


@pytest.mark.parametrize(
    ("collate", "how"),
    [
        *((kind, {"engine": "serial", "shards": 2}) for kind in KINDS),
        (as_packed, {"workers": 2, "shards": 2}),
        (as_graph, {"workers": 2, "shards": 2}),
    ],
)
def test_what_a_collate_fn_returns(collate, how):
    batches = [ITEMS[start : start + 16] for start in range(0, 64, 16)]
    np.testing.assert_allclose(
        trained(Examples(ITEMS, collate), **how), plain(collate, batches), rtol=2e-2 if collate is as_half else 1e-5
    )


@pytest.mark.parametrize(
    ("collate", "how"),
    [
        *((kind, {"engine": "serial", "shards": 2}) for kind in KINDS),
        (as_packed, {"workers": 2, "shards": 2}),
        (as_graph, {"workers": 2, "shards": 2}),
    ],
)
def test_what_an_iterable_yields(collate, how):
    batches = [ITEMS[start : start + 16] for start in range(0, 64, 16)]
    found = trained(map(collate, batches), **how)
    np.testing.assert_allclose(found, plain(collate, batches), rtol=2e-2 if collate is as_half else 1e-5)


class Iterable(IterableDataset):
    def __iter__(self):
        return iter(ITEMS)


def test_a_loader_of_an_iterable_dataset():
    loader = DataLoader(Iterable(), batch_size=16, collate_fn=as_graph)
    batches = [ITEMS[start : start + 16] for start in range(0, 64, 16)]
    np.testing.assert_allclose(trained(loader, engine="serial", shards=2), plain(as_graph, batches), rtol=1e-5)


def test_evaluation_and_inputs_by_name():
    def items_of(items):
        x, y = stacked(items)
        return Encoding(input=x[:, 0], target=y)

    model = TorchModel(nn.Linear(3, 2), nn.CrossEntropyLoss(), metrics={"first": lambda outputs, _: outputs[0, 0]})
    with Trainer(model, optimizer=SGD(0.1), engine="serial", shards=2) as trainer:
        history = trainer.fit(
            Examples(ITEMS, items_of), epochs=1, batch_size=16, validation_data=Examples(ITEMS, items_of)
        )
    assert set(history.history) >= {"loss", "val_loss", "first"}
