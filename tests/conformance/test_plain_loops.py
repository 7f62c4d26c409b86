"""Training compared with plain PyTorch loops, as in tutorials, on scikit-learn's digits: 100 to 400 steps.

The loops use only documented facts about untorn: the order of an epoch (``epoch_order``), and, for dropout, the seed of
torch's generator. Both sides compute with one thread.

=========  =====================================  ====================================================================
shards     the plain loop                         compared
=========  =====================================  ====================================================================
1          zero_grad, backward, step              bit for bit, BatchNorm's buffers and dropout included, with
                                                  torch.optim; to rounding with the fused optimizers
2          accumulates gradients over two halves  bit for bit: a + b has one order, and a half is a power of two
3 and 4    accumulates over the parts             to rounding: a loop adds (a + b) + c + d, untorn (a + b) + (c + d)
4          adds the parts in pairs                bit for bit
=========  =====================================  ====================================================================

With several shards BatchNorm's buffers are not compared: a plain loop updates them once per part, one after another.
"""

from __future__ import annotations

import functools

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from torch import nn

from untorn.torch import TorchModel
from untorn.train import SGD, Adagrad, Adam, AdamW, RMSprop, Trainer
from untorn.train.data.sampler import epoch_order, shard_rng

SEED = 7
ENGINES = ({"engine": "serial"}, {"workers": 2})
ENGINES = ({"engine": "serial"}, {"workers": 2})
EXAMPLES, BATCH = 1500, 60  # 25 steps an epoch

TORCH_OPTIMIZERS = {
    "sgd": functools.partial(torch.optim.SGD, lr=0.05, momentum=0.9),
    "adamw": functools.partial(torch.optim.AdamW, lr=1e-3),
    "nadam": functools.partial(torch.optim.NAdam, lr=2e-3),
    "radam": functools.partial(torch.optim.RAdam, lr=1e-2),
}
#: pairs of untorn's optimizer and torch's
FUSED_OPTIMIZERS = {
    "sgd": (SGD(0.05), functools.partial(torch.optim.SGD, lr=0.05)),
    "nesterov": (
        SGD(0.05, momentum=0.9, nesterov=True, weight_decay=1e-4),
        functools.partial(torch.optim.SGD, lr=0.05, momentum=0.9, nesterov=True, weight_decay=1e-4),
    ),
    "adam": (Adam(1e-3), functools.partial(torch.optim.Adam, lr=1e-3)),
    "adamw": (AdamW(1e-3, weight_decay=0.1), functools.partial(torch.optim.AdamW, lr=1e-3, weight_decay=0.1)),
    "rmsprop": (RMSprop(1e-3), functools.partial(torch.optim.RMSprop, lr=1e-3)),
    "adagrad": (Adagrad(0.02), functools.partial(torch.optim.Adagrad, lr=0.02)),
}


pytestmark = pytest.mark.usefixtures("one_torch_thread")


@functools.cache
def digits() -> tuple[np.ndarray, np.ndarray]:
    x, y = load_digits(return_X_y=True)
    return (x[:EXAMPLES] / 16).astype(np.float32), y[:EXAMPLES]


def perceptron() -> nn.Module:
    return nn.Sequential(nn.Linear(64, 32), nn.Tanh(), nn.Linear(32, 10))


def convolutional() -> nn.Module:
    features = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten())
    return nn.Sequential(nn.Unflatten(1, (1, 8, 8)), features, nn.Dropout(0.2), nn.Linear(144, 10))


def made(function) -> nn.Module:
    torch.manual_seed(1)
    return function()


# -- the plain loops


def batches(epochs):
    """Yield (step, indices) of every batch."""
    orders = [torch.from_numpy(epoch_order(SEED, epoch, EXAMPLES)) for epoch in range(epochs)]
    return enumerate(indices for order in orders for indices in order.split(BATCH))


def seed_dropout(step, shard=0, shards=1):
    torch.manual_seed(int(shard_rng(SEED, step, shard, shards).integers(2**63)))


def plain_loop(module, optimizer, *, epochs):
    """Train with zero_grad, forward, backward, step. Return the mean loss of each epoch."""
    x, y = map(torch.from_numpy, digits())
    losses = []
    for step, indices in batches(epochs):
        seed_dropout(step)
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(module(x[indices]), y[indices])
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return np.reshape(losses, (epochs, -1)).mean(axis=1)


def accumulating_loop(module, optimizer, *, epochs, parts):
    """Train as usual with a batch that does not fit into memory: several backward passes, one step."""
    x, y = map(torch.from_numpy, digits())
    for step, indices in batches(epochs):
        optimizer.zero_grad()
        for number, part in enumerate(indices.chunk(parts)):  # BATCH / parts examples each
            seed_dropout(step, number, parts)
            loss = nn.functional.cross_entropy(module(x[part]), y[part])
            (loss / parts).backward()
        optimizer.step()


def pairwise_loop(module, optimizer, *, epochs):
    """Train with four parts, whose gradients are added in pairs."""
    x, y = map(torch.from_numpy, digits())
    parameters = list(module.parameters())
    for step, indices in batches(epochs):
        gradients = []
        for number, part in enumerate(indices.chunk(4)):
            seed_dropout(step, number, 4)
            loss = nn.functional.cross_entropy(module(x[part]), y[part])
            gradients.append(torch.autograd.grad(loss / 4, parameters))
        for parameter, a, b, c, d in zip(parameters, *gradients, strict=True):
            parameter.grad = (a + b) + (c + d)
        optimizer.step()


# -- untorn


def trained(function, optimizer, *, epochs, **arguments):
    """Return (the parameters and buffers by name, the losses)."""
    arguments = arguments if "workers" in arguments else {"engine": "serial"} | arguments
    with Trainer(TorchModel(made(function), nn.CrossEntropyLoss()), optimizer=optimizer, seed=SEED, **arguments) as t:
        history = t.fit(digits(), epochs=epochs, batch_size=BATCH)
        return t.module().state_dict(), history.history["loss"]


def assert_same_bits(found, expected):
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor), name


def parameters_alone(found, module):
    """Return the state without buffers."""
    names = [name for name, _ in module.named_parameters()]
    return {name: found[name] for name in names}, {name: module.state_dict()[name] for name in names}


def assert_close(found, expected):
    """Check that the tensors agree within 1e-5 of the largest number of each; 3e-7 is usual."""
    for name, tensor in expected.items():
        worst = (found[name] - tensor).abs().max() / tensor.abs().max()
        assert worst < 1e-5, (name, worst)


# -- one shard


@pytest.mark.parametrize("name", TORCH_OPTIMIZERS)
def test_one_shard_gives_the_bits_of_a_plain_loop(name):
    module = made(perceptron)
    losses = plain_loop(module, TORCH_OPTIMIZERS[name](module.parameters()), epochs=8)
    found, found_losses = trained(perceptron, TORCH_OPTIMIZERS[name], epochs=8, shards=1)
    assert_same_bits(found, module.state_dict())
    np.testing.assert_allclose(found_losses, losses, rtol=1e-12)
    assert losses[-1] < losses[0] / 2  # the model has learnt


@pytest.mark.parametrize("engine", ENGINES)
def test_batchnorm_and_dropout_give_the_bits_of_a_plain_loop(engine):
    module = made(convolutional)
    plain_loop(module, TORCH_OPTIMIZERS["adamw"](module.parameters()), epochs=8)
    found, _ = trained(convolutional, TORCH_OPTIMIZERS["adamw"], epochs=8, shards=1, **engine)
    assert_same_bits(found, module.state_dict())


@pytest.mark.parametrize("name", FUSED_OPTIMIZERS)
def test_fused_optimizers_give_a_plain_loops_weights_to_rounding(name):
    ours, theirs = FUSED_OPTIMIZERS[name]
    module = made(perceptron)
    losses = plain_loop(module, theirs(module.parameters()), epochs=16)  # 400 steps
    found, found_losses = trained(perceptron, ours, epochs=16, shards=1)
    assert_close(found, module.state_dict())
    np.testing.assert_allclose(found_losses, losses, rtol=1e-5)
    assert losses[-1] < losses[0] / 2


# -- several shards


def test_two_shards_give_the_bits_of_an_accumulating_loop():
    module = made(convolutional)
    accumulating_loop(module, TORCH_OPTIMIZERS["nadam"](module.parameters()), epochs=8, parts=2)
    found, _ = trained(convolutional, TORCH_OPTIMIZERS["nadam"], epochs=8, shards=2, workers=2)
    assert_same_bits(*parameters_alone(found, module))


@pytest.mark.parametrize("function", [perceptron, convolutional])
def test_four_shards_give_the_bits_of_a_loop_that_adds_in_pairs(function):
    module = made(function)
    pairwise_loop(module, TORCH_OPTIMIZERS["sgd"](module.parameters()), epochs=4)
    found, _ = trained(function, TORCH_OPTIMIZERS["sgd"], epochs=4, shards=4)
    assert_same_bits(*parameters_alone(found, module))


@pytest.mark.parametrize("shards", [3, 4])
@pytest.mark.parametrize("name", ["nesterov", "adamw"])
def test_shards_give_an_accumulating_loops_weights_to_rounding(name, shards):
    ours, theirs = FUSED_OPTIMIZERS[name]
    module = made(perceptron)
    accumulating_loop(module, theirs(module.parameters()), epochs=8, parts=shards)
    found, _ = trained(perceptron, ours, epochs=8, shards=shards)
    assert_close(found, module.state_dict())
