"""Modules that ``copy`` and ``pickle`` refuse: every engine trains them like a plain loop, bit for bit."""

from __future__ import annotations

import contextlib
import gc
import warnings

import numpy as np
import pytest
import torch
from torch import nn

import torch_kinds
from untorn.torch import TorchModel
from untorn.train import SGD, Trainer, weights_sha256

EXAMPLES, BATCH = 24, 8


@pytest.fixture(autouse=True)
def open_files():
    """Ignore warnings about unclosed files, which belong to the modules, and about deprecated kinds."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
        gc.collect()


@pytest.fixture(scope="module")
def data():
    random = np.random.default_rng(5)
    return random.normal(size=(EXAMPLES, 6)).astype(np.float32), random.normal(size=(EXAMPLES, 6)).astype(np.float32)


def values(module):
    """Return a copy of the parameters and buffers."""
    return {name: tensor.detach().clone() for name, tensor in [*module.named_parameters(), *module.named_buffers()]}


def assert_close(got, expected):
    assert list(got) == list(expected)
    for name, tensor in expected.items():
        torch.testing.assert_close(got[name], tensor, rtol=2e-5, atol=1e-6, equal_nan=True, msg=name)


def plain_loop(module, data):
    """Train for one epoch and return the module."""
    optimizer = torch.optim.SGD(module.parameters(), lr=0.05)
    module.train()
    for x, y in zip(*(torch.from_numpy(part).split(BATCH) for part in data), strict=True):
        optimizer.zero_grad()
        nn.functional.mse_loss(module(x), y).backward()
        optimizer.step()
    return module


@contextlib.contextmanager
def trained(module, data, **arguments):
    with Trainer(TorchModel(module, nn.MSELoss()), optimizer=SGD(0.05), **arguments) as trainer:
        trainer.fit(data, epochs=1, batch_size=BATCH, shuffle=False)
        yield trainer


@pytest.mark.parametrize("name", torch_kinds.KINDS)
def test_it_is_trained_as_in_a_plain_loop_and_is_not_changed(name, data):
    x = torch.from_numpy(data[0])
    module = torch_kinds.make(name)
    before = values(module)
    with trained(module, data, engine="serial", shards=1) as trainer:
        made = trainer.module()
        predicted = trainer.predict(data[0])
    assert all(torch.equal(tensor, before[name]) for name, tensor in values(module).items())
    expected = plain_loop(module, data)  # the same object, which is as usable as before
    assert_close(values(made), values(expected))
    assert any(not torch.equal(tensor, before[name]) for name, tensor in values(made).items())
    with torch.no_grad():
        outputs = made.eval()(x)
        torch.testing.assert_close(outputs, expected.eval()(x), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(predicted, outputs.numpy(), rtol=1e-5, atol=1e-6)
    other = torch_kinds.make(name)
    other.load_state_dict(made.state_dict())
    assert_close(values(plain_loop(made, data)), values(plain_loop(other, data)))


class Zoo(nn.Module):
    """Several kinds in one module, so that the workers start once: the sum of their outputs."""

    def __init__(self, names) -> None:
        super().__init__()
        self.kinds = nn.ModuleDict({name: torch_kinds.make(name) for name in names})

    def forward(self, x):
        return torch.stack([module(x) for module in self.kinds.values()]).sum(0)


COMPILED = [name for name in torch_kinds.KINDS if name.startswith("compiled")]


@pytest.mark.parametrize(
    "names",
    [
        pytest.param([name for name in torch_kinds.KINDS if name not in COMPILED], id="all"),
        pytest.param(COMPILED, id="compiled", marks=pytest.mark.soak),
    ],
)
def test_workers_give_the_same_bits(names, data):
    with trained(Zoo(names), data, engine="serial", shards=4) as trainer:
        expected = trainer.params
    with trained(Zoo(names), data, workers=2, shards=4) as trainer:
        got = trainer.params
        trainer.evaluate(data)
    assert [name for name in expected if got[name].tobytes() != expected[name].tobytes()] == []
    assert weights_sha256(got) == weights_sha256(expected)
