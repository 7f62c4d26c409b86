"""predict with several outputs: joined arrays in the same dicts and tuples, with every engine."""

from __future__ import annotations

from collections import OrderedDict, namedtuple
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from untorn.torch import TorchModel
from untorn.train import SGD, Trainer
from untorn.train.run import evaluation

X = np.random.default_rng(0).normal(size=(50, 3)).astype(np.float32)
Y = X.sum(1, keepdims=True)
Pair = namedtuple("Pair", "mean spread")


@pytest.fixture(autouse=True)
def always_worth_it(monkeypatch):
    monkeypatch.setattr(evaluation, "_WORTH_S", 0.0)


class ModelOutput(OrderedDict):
    """Outputs as in Hugging Face: a dict and a dataclass, without None, with tuples and caches beside the tensors."""

    def __init__(self, **parts):
        super().__init__({name: part for name, part in parts.items() if part is not None})
        self.__dict__.update(parts)


@dataclass
class Answer:
    logits: Any
    loss: Any = None
    cache: Any = None


class Several(nn.Module):
    def __init__(self, form):
        super().__init__()
        self.line = nn.Linear(3, 2)
        self.form = form

    def forward(self, x):
        y = self.line(x)
        return self.form(y, x)


FORMS = {
    "dict": lambda y, x: {"y": y, "x": x},
    "nested": lambda y, x: {"y": (y, None), "deep": {"x": [x, y > 0]}},
    "named": lambda y, x: Pair(y, x.double()),
    "single dict": lambda y, x: {"y": y},
    "object": lambda y, x: ModelOutput(loss=None, logits=y),
    "object of several": lambda y, x: ModelOutput(
        loss=y.mean(), logits=y, hidden_states=(x, y), cache=object(), attentions=None
    ),
    "dataclass": lambda y, x: Answer(y),
    "bfloat16": lambda y, x: y.bfloat16(),
}


def expected_of(name, module):
    with torch.no_grad():
        x = torch.from_numpy(X)
        y = module.line(x)
    y = y.numpy()
    return {
        "dict": {"y": y, "x": X},
        "nested": {"y": (y, None), "deep": {"x": (X, y > 0)}},
        "named": Pair(y, X.astype(np.float64)),
        "single dict": {"y": y},
        "object": y,
        "object of several": {"logits": y, "hidden_states": (X, y)},
        "dataclass": y,
        "bfloat16": torch.from_numpy(y).bfloat16().float().numpy(),
    }[name]


def assert_same(got, expected):
    assert type(got) is type(expected)
    if isinstance(expected, dict):
        assert list(got) == list(expected)
        for key, part in expected.items():
            assert_same(got[key], part)
    elif isinstance(expected, tuple):
        assert len(got) == len(expected)
        for one, other in zip(got, expected, strict=True):
            assert_same(one, other)
    elif expected is not None:
        assert got.dtype == expected.dtype
        np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-6)


def trainer_of(form, **arguments):
    torch.manual_seed(0)
    module = Several(form)
    model = TorchModel(module, None, forward=lambda module, batch: module.line(batch[0]).square().mean())
    arguments = arguments or {"engine": "serial"}
    return Trainer(model, optimizer=SGD(0.1), **arguments), module


@pytest.mark.parametrize("name", FORMS)
def test_outputs_keep_their_form(name):
    trainer, module = trainer_of(FORMS[name])
    with trainer:
        for batch_size in (50, 7):
            assert_same(trainer.predict(X, batch_size=batch_size), expected_of(name, module))


def test_workers_give_the_same():
    def form(y, x):
        return {"y": y, "many": (x.double(), [y[:, :1] > 0]), "none": None, "empty": x[:, :0]}

    trainer, _ = trainer_of(form)
    with trainer:
        trainer.fit((X, Y), epochs=1, batch_size=25)
        expected = trainer.predict(X, batch_size=7)
    trainer, _ = trainer_of(form, workers=2, shards=trainer.shards)
    with trainer:
        trainer.fit((X, Y), epochs=1, batch_size=25)
        got = trainer.predict(X, batch_size=7)
    assert got["many"][1][0].tobytes() == expected["many"][1][0].tobytes()
    assert got["y"].tobytes() == expected["y"].tobytes()
    assert_same(got, expected)


@pytest.mark.parametrize(
    ("form", "error", "message"),
    [
        (lambda y, x: {"y": y, "text": "a"}, TypeError, "found str as output ['text']"),
        (lambda y, x: object(), TypeError, "found object"),
        (lambda y, x: ModelOutput(loss=y.mean()), TypeError, "found ModelOutput"),
        (lambda y, x: {"y": y, "loss": y.mean()}, TypeError, "output ['loss'] too, with one row per example"),
        (lambda y, x: {"y": y} | ({"x": x} if len(x) < 7 else {}), ValueError, "['y'], for examples 49 to 49 they are"),
        (lambda y, x: {"y": y[:, : len(x)]}, ValueError, "output ['y'] was float32 of shape (2,)"),
    ],
)
def test_what_cannot_be_joined_is_named(form, error, message):
    trainer, _ = trainer_of(form)
    with trainer, pytest.raises(error) as caught:
        trainer.predict(X, batch_size=7)
    assert message in str(caught.value)


def test_a_dataset_with_text_says_what_to_do():
    class Texts:
        def __len__(self):
            return 8

        def __getitem__(self, index):
            return {"text": "some", "input_ids": X[index], "labels": Y[index]}

    trainer, _ = trainer_of(FORMS["dict"])
    with trainer, pytest.raises(Exception, match=r"\['text'\]: .*found builtins.str; leave it out.*collate_fn"):
        trainer.fit(Texts(), epochs=1, batch_size=4)


def test_a_model_of_transformers():
    pytest.importorskip("datasets")
    transformers = pytest.importorskip("transformers")
    from untorn import Examples

    def collate(items):
        ids = nn.utils.rnn.pad_sequence([torch.as_tensor(item["input_ids"]) for item in items], batch_first=True)
        labels = torch.tensor([item["labels"] for item in items])
        return {"input_ids": ids, "attention_mask": (ids != 0).long(), "labels": labels}

    config = transformers.BertConfig(
        vocab_size=50, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32,
        max_position_embeddings=16,
    )  # fmt: skip
    rows = [[5 + (7 * row + at) % 40 for at in range(3 + row % 5)] for row in range(24)]
    import datasets

    data = datasets.Dataset.from_dict({"text": list(map(str, rows)), "input_ids": rows, "labels": [0, 1] * 12})
    torch.manual_seed(0)
    model = TorchModel(
        transformers.BertForSequenceClassification(config), None, forward=lambda module, batch: module(**batch).loss
    )
    with Trainer(model, optimizer=SGD(0.1), engine="serial", shards=2) as trainer:
        trainer.fit(Examples(data, collate), epochs=1, batch_size=8)
        batch = {name: part.numpy() for name, part in collate([data[0], data[1]]).items() if name != "labels"}
        assert trainer.predict(batch).shape == (2, 2)
