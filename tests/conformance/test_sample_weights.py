"""Sample weights: their meaning, for any number of shards and workers."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

import networks
from untorn import SGD, Trainer
from untorn.torch import TorchModel
from untorn.train.data.sampler import epoch_order

X, Y = networks.classes_of(90, 6, 3)
W = np.random.default_rng(2).uniform(0, 3, 90).astype(np.float32)


def module_of() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))


def trained(data, loss, *, batch_size=20, **arguments):
    """Return (parameters, losses), of batches of 20 and one of 10, whose 4 shards differ in size."""
    model = TorchModel(module_of(), loss, sample_weight=arguments.pop("sample_weight", True))
    arguments = arguments if "workers" in arguments else {"engine": "serial"} | arguments
    with Trainer(model, optimizer=SGD(0.1, momentum=0.9), **arguments) as trainer:
        history = trainer.fit(data, epochs=4, batch_size=batch_size)
        return trainer.params, history.history["loss"]


def plain_loop(batch_size=20):
    """Compute the loss of Keras' fit(x, y, sample_weight=w), which is divided by the number of examples."""
    module = module_of()
    optimizer = torch.optim.SGD(module.parameters(), 0.1, momentum=0.9)
    x, y, w = map(torch.from_numpy, (X, Y, W))
    for epoch in range(4):
        for part in torch.from_numpy(epoch_order(0, epoch, len(x))).split(batch_size):
            optimizer.zero_grad()
            losses = nn.functional.cross_entropy(module(x[part]), y[part], reduction="none")
            ((losses * w[part]).sum() / len(part)).backward()
            optimizer.step()
    return {name: tensor.numpy() for name, tensor in module.state_dict().items()}


def assert_close(found, expected):
    for name, array in expected.items():
        np.testing.assert_allclose(found[name], array, rtol=1e-4, atol=1e-6, err_msg=name)


NAMED = {"input": X, "sample_weight": W, "target": Y}


@pytest.mark.parametrize(
    ("data", "arguments"),
    [
        ((X, Y, W), {"shards": 1}),
        ((X, Y, W), {"shards": 4}),
        (NAMED, {"shards": 4}),
        (NAMED, {"workers": 1, "shards": 4}),
    ],
)
def test_any_shards_give_the_weighted_mean_over_the_batch(data, arguments):
    found, _ = trained(data, nn.CrossEntropyLoss(reduction="none"), **arguments)
    assert_close(found, plain_loop())


def test_weights_of_one_change_nothing():
    ones, losses = trained((X, Y, np.ones(90)), nn.CrossEntropyLoss(reduction="none"), shards=4)
    without, others = trained((X, Y), nn.CrossEntropyLoss(), shards=4, sample_weight=False)
    assert_close(ones, without)
    np.testing.assert_allclose(losses, others, rtol=1e-5)


def test_a_weight_of_two_is_the_example_twice():
    doubled = np.concatenate([X, X[:30]]), np.concatenate([Y, Y[:30]])
    weights = np.where(np.arange(90) < 30, 2.0, 1.0) * (90 / 120)  # the mean is over 90 examples, not 120
    found, _ = trained((X, Y, weights), nn.CrossEntropyLoss(reduction="none"), batch_size=90, shards=3)
    expected, _ = trained(doubled, nn.CrossEntropyLoss(), batch_size=120, shards=3, sample_weight=False)
    assert_close(found, expected)


def weighted_line(params, batch):
    x, y, w = batch
    error = x @ params["w"] + params["b"] - y
    grads = {"w": 2 * x.T @ (w * error) / len(x), "b": 2 * (w * error).mean()}
    return (w * error**2).mean(), grads


def test_a_function_of_ones_own():
    x, y = networks.data_of(90, 3)
    results = []
    for shards in (1, 4):
        with Trainer(
            weighted_line, networks.line_params(3), optimizer=SGD(0.05), engine="serial", shards=shards
        ) as trainer:
            trainer.fit((x, y, W), epochs=3, batch_size=20)
            results.append(trainer.params)
    np.testing.assert_allclose(results[0]["w"], results[1]["w"], rtol=1e-12)


def test_evaluate_is_weighted_and_metrics_are_not():
    accuracy = {"accuracy": lambda outputs, target: (outputs.argmax(1) == target).float().mean()}
    model = TorchModel(module_of(), nn.CrossEntropyLoss(reduction="none"), metrics=accuracy, sample_weight=True)
    with Trainer(model, optimizer=SGD(0.1), engine="serial") as trainer:
        found = trainer.evaluate((X, Y, W))
        outputs = torch.from_numpy(trainer.predict(X))
    target = torch.from_numpy(Y)
    losses = nn.functional.cross_entropy(outputs, target, reduction="none").numpy()
    assert found["loss"] == pytest.approx((W * losses).mean(), rel=1e-5)
    assert found["accuracy"] == pytest.approx((outputs.argmax(1) == target).float().mean().item())


def test_losses_over_several_outputs_are_averaged_for_each_example():
    y = np.c_[X[:, 0], X[:, 1]]
    model = TorchModel(nn.Linear(6, 2), nn.MSELoss(reduction="none"), sample_weight=True)
    with Trainer(model, optimizer=SGD(0.1), engine="serial") as trainer:
        error = (trainer.predict(X) - y) ** 2
        assert trainer.evaluate((X, y, W))["loss"] == pytest.approx((W * error.mean(1)).mean(), rel=1e-5)


@pytest.mark.parametrize(
    ("data", "loss", "message"),
    [
        ((X, Y), nn.CrossEntropyLoss(reduction="none"), r"expected inputs, a target and weights.*found a tuple of 2"),
        ({"input": X, "target": Y}, nn.CrossEntropyLoss(reduction="none"), r"found a dict without it"),
        ((X, Y, W), nn.CrossEntropyLoss(), r"a loss for each example.*found shape \(\)"),
        ((X, Y, W[:, None]), nn.CrossEntropyLoss(reduction="none"), r"weights of shape \(90, 1\)"),
    ],
)
def test_what_does_not_fit_is_named(data, loss, message):
    model = TorchModel(module_of(), loss, sample_weight=True)
    with (
        Trainer(model, optimizer=SGD(0.1), engine="serial") as trainer,
        pytest.raises(TypeError, match=message),
    ):
        trainer.evaluate(data)


def test_forward_weights_by_itself():
    with pytest.raises(TypeError, match="sample_weight: forward computes the loss itself"):
        TorchModel(module_of(), None, forward=lambda module, batch: module(batch[0]).mean(), sample_weight=True)
