"""TorchModel: predict= in place of the module's outputs, and losses that are sums."""

from functools import partial

import numpy as np
import pytest

pytest.importorskip("torch")
import torch
from torch import nn
from torch.nn import functional

from untorn import SGD, Trainer
from untorn.torch import TorchModel
from untorn.train.data.sampler import epoch_order

X = np.random.default_rng(0).normal(size=(64, 4)).astype(np.float32)
Y = (X.sum(1) > 0).astype(np.int64)


class Two(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(4, 2), nn.Linear(4, 1)

    def forward(self, x):
        return self.a(x), self.b(x)


def loss(outputs, target):
    return functional.cross_entropy(outputs[0], target)


def best_class(module, x):
    assert isinstance(x, torch.Tensor) and not module.training
    return module(x)[0].argmax(1)


def by_name(module, x):
    return {"logits": module.a(x["x"]), "twice": 2 * module.b(x["x"])}


@pytest.mark.parametrize("how", [{"engine": "serial"}, {"workers": 2}], ids=["serial", "processes"])
def test_predict_takes_the_place_of_the_modules_outputs(how):
    model = TorchModel(Two(), loss, predict=best_class)
    with Trainer(model, optimizer=SGD(0.5), shards=2, **how) as trainer:
        trainer.fit((X, Y), epochs=20, batch_size=16)
        found = trainer.predict(X)
        assert found.shape == (64,) and found.dtype == np.int64 and (found == Y).mean() > 0.9
        with torch.no_grad():
            assert (found == trainer.module()(torch.from_numpy(X))[0].argmax(1).numpy()).all()


def test_without_predict_there_are_all_outputs():
    with Trainer(TorchModel(Two(), loss), optimizer=SGD(0.1), engine="serial", shards=2) as trainer:
        first, second = trainer.predict(X)
    assert first.shape == (64, 2) and second.shape == (64, 1)


def test_predict_gets_the_tree_of_the_data_and_may_return_one():
    with Trainer(TorchModel(Two(), loss, predict=by_name), optimizer=SGD(0.1), engine="serial", shards=2) as trainer:
        found = trainer.predict({"x": X})
    assert found["logits"].shape == (64, 2) and found["twice"].shape == (64, 1)


def test_predict_must_be_a_function():
    with pytest.raises(TypeError, match=r"predict: expected a function \(module, x\) -> outputs, found int"):
        TorchModel(Two(), loss, predict=1)


@pytest.mark.parametrize(
    "summed", [nn.CrossEntropyLoss(reduction="sum"), partial(functional.cross_entropy, reduction="sum")]
)
def test_a_sum_is_seen(summed):
    with pytest.raises(
        ValueError,
        match=r"(?i)cross_?entropy.* has reduction='sum'; expected the mean.*learning rate.*reduction_scale=batch_size",
    ):
        TorchModel(nn.Linear(4, 2), summed)


def summed_loop(batch_size):
    module, rate = made_linear(), 0.01
    x, y = torch.from_numpy(X), torch.from_numpy(Y)
    for indices in torch.from_numpy(epoch_order(0, 0, len(X))).split(batch_size):
        module.zero_grad()
        functional.cross_entropy(module(x[indices]), y[indices], reduction="sum").backward()
        with torch.no_grad():
            for parameter in module.parameters():
                parameter.sub_(rate * parameter.grad)
    return module.state_dict()


def made_linear():
    torch.manual_seed(3)
    return nn.Linear(4, 2)


def forward(module, batch):
    x, y = batch
    return functional.cross_entropy(module(x), y, reduction="sum")


@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize("how", ["loss", "forward"])
def test_a_sum_is_scaled(how, shards):
    given = {"loss": nn.CrossEntropyLoss(reduction="sum")} if how == "loss" else {"loss": None, "forward": forward}
    model = TorchModel(made_linear(), reduction_scale=16, **given)
    with Trainer(model, optimizer=SGD(0.01), engine="serial", shards=shards) as trainer:
        trainer.fit((X, Y), epochs=1, batch_size=16)
        for name, expected in summed_loop(16).items():
            np.testing.assert_allclose(trainer.params[name], expected.numpy(), rtol=1e-4, atol=1e-6)
        mean = functional.cross_entropy(trainer.module()(torch.from_numpy(X)), torch.from_numpy(Y)).item()
        assert trainer.evaluate((X, Y))["loss"] == pytest.approx(16 * mean, rel=1e-5)


@pytest.mark.parametrize(
    ("scale", "error", "message"),
    [
        (0, ValueError, "reduction_scale: expected a finite number greater than 0, found 0"),
        (True, TypeError, "reduction_scale: expected a number, such as the batch size, found bool"),
        ("16", TypeError, "found str"),
    ],
)
def test_a_scale_is_a_number(scale, error, message):
    with pytest.raises(error, match=message):
        TorchModel(nn.Linear(4, 2), nn.CrossEntropyLoss(reduction="sum"), reduction_scale=scale)


def test_a_scale_and_weights_exclude_each_other():
    with pytest.raises(TypeError, match="reduction_scale: with sample_weight the loss is no sum"):
        TorchModel(nn.Linear(4, 2), nn.CrossEntropyLoss(reduction="none"), sample_weight=True, reduction_scale=2)


def test_other_reductions_are_taken():
    TorchModel(nn.Linear(4, 2), nn.CrossEntropyLoss())
    TorchModel(nn.Linear(4, 2), partial(functional.cross_entropy, label_smoothing=0.1))
    TorchModel(nn.Linear(4, 2), nn.CrossEntropyLoss(reduction="none"), sample_weight=True)
