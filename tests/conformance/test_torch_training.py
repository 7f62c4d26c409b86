"""TorchModel compared with a plain PyTorch loop, and every engine compared with the serial one.

The plain loop uses only the order of an epoch, the division of a batch into shards, and the seeds of their random
numbers. It accumulates gradients over the shards, as is usual in PyTorch, and averages their buffers.
"""

from __future__ import annotations

import contextlib
import copy
import os
import signal
import threading

import numpy as np
import pytest
import torch
from torch import nn

from untorn.torch import TorchModel
from untorn.train import SGD, Callback, Trainer, weights_sha256
from untorn.train.data.sampler import epoch_order, shard_rng

SEED = 3


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(12, 16), nn.Tanh(), nn.Linear(16, 4))


def convolutional() -> nn.Module:
    features = nn.Sequential(nn.Conv2d(3, 5, 2, padding=1), nn.BatchNorm2d(5), nn.ReLU(), nn.Flatten())
    return nn.Sequential(nn.Unflatten(1, (3, 2, 2)), features, nn.Linear(45, 4))


class Everything(nn.Module):
    """A module with batch normalisation, dropout, tied, frozen and unused parameters, two dtypes, and a mask."""

    def __init__(self) -> None:
        super().__init__()
        self.frozen = nn.Linear(12, 8).requires_grad_(False)
        self.norm = nn.BatchNorm1d(8)
        self.drop = nn.Dropout(0.3)
        self.first = nn.Linear(8, 8)
        self.second = nn.Linear(8, 8)
        self.second.weight = self.first.weight
        self.scale = nn.Parameter(torch.ones((), dtype=torch.float64))
        self.last = nn.Linear(8, 4)
        self.unused = nn.Parameter(torch.ones(3))
        self.register_buffer("mask", torch.tensor([0.0, -float("inf"), float("nan"), -0.0]), persistent=False)
        self.register_buffer("largest", torch.zeros(()))

    def forward(self, x):
        with torch.no_grad():
            self.largest = torch.maximum(self.largest, x.max())
        x = self.drop(self.norm(self.frozen(x)))
        x = self.second(torch.tanh(self.first(x)))
        return self.last((x * self.scale).float())


MODULES = {"mlp": mlp, "convolutional": convolutional, "everything": Everything}


def module_of(name: str) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return MODULES[name]()


def data() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(5)
    x = rng.normal(size=(100, 12)).astype(np.float32)
    return x, (x @ rng.normal(size=(12, 4))).argmax(1)


def accuracy(outputs, target):
    return (outputs.argmax(1) == target).float().mean()


def buffers_of(module: nn.Module) -> dict[str, torch.Tensor]:
    return {name: buffer.clone() for name, buffer in module.named_buffers()}


def merged(parts: list[tuple[float, dict[str, torch.Tensor]]]) -> dict[str, torch.Tensor]:
    """Merge the buffers of the shards, each weighted by its share of the examples."""
    result = {}
    for name, first in parts[0][1].items():
        values = [part[name] for _, part in parts]
        alike = all(torch.equal(value.nan_to_num(), first.nan_to_num()) for value in values)
        if alike or not first.is_floating_point():
            result[name] = first
        else:
            result[name] = sum(share * value for (share, _), value in zip(parts, values, strict=True))
    return result


def plain_loop(module, *, shards, epochs, batch_size, accumulate=1, **sgd):
    module = copy.deepcopy(module).train()
    optimizer = torch.optim.SGD([p for p in module.parameters() if p.requires_grad], **sgd)
    x, y = map(torch.from_numpy, data())
    step = 0
    with torch.random.fork_rng(devices=[]):
        for epoch in range(epochs):
            order = epoch_order(SEED, epoch, len(x))
            for start in range(0, len(x), batch_size):
                batch = order[start : start + batch_size]
                before, parts = buffers_of(module), []
                optimizer.zero_grad()
                for shard in range(shards):
                    part = batch[len(batch) * shard // shards : len(batch) * (shard + 1) // shards]
                    rng = shard_rng(SEED, step, shard, shards)
                    with torch.no_grad():
                        for name, buffer in module.named_buffers():
                            buffer.copy_(before[name])
                    for i in range(accumulate):
                        piece = part[len(part) * i // accumulate : len(part) * (i + 1) // accumulate]
                        if len(piece) == 0:
                            continue
                        torch.manual_seed(int(rng.integers(2**63)))
                        loss = nn.functional.cross_entropy(module(x[piece]), y[piece])
                        (loss * (len(piece) / len(batch))).backward()
                    if len(part):
                        parts.append((len(part) / len(batch), buffers_of(module)))
                with torch.no_grad():
                    for name, value in merged(parts).items():
                        module.get_buffer(name).copy_(value)
                optimizer.step()
                step += 1
    return module


def trainer_of(name: str, *, optimizer: SGD, **arguments) -> Trainer:
    model = TorchModel(module_of(name), nn.CrossEntropyLoss(), metrics={"accuracy": accuracy})
    return Trainer(model, optimizer=optimizer, seed=SEED, **arguments)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize(("shards", "accumulate"), [(1, 1), (3, 1), (2, 2)])
@pytest.mark.parametrize("name", MODULES)
def test_the_weights_are_those_of_a_plain_loop(name, shards, accumulate, momentum):
    optimizer = SGD(0.05, momentum=momentum, nesterov=momentum > 0)
    with trainer_of(name, optimizer=optimizer, shards=shards, engine="serial", accumulate=accumulate) as trainer:
        trainer.fit(data(), epochs=3, batch_size=30)
        got, params = trainer.module(), trainer.params
    arguments = {"lr": 0.05, "momentum": momentum, "nesterov": momentum > 0, "accumulate": accumulate}
    expected = plain_loop(module_of(name), shards=shards, epochs=3, batch_size=30, **arguments)
    assert got.state_dict().keys() == expected.state_dict().keys()
    for key, value in expected.state_dict().items():
        torch.testing.assert_close(got.state_dict()[key], value, rtol=2e-4, atol=2e-6, equal_nan=True)
    wanted = dict(expected.named_parameters()) | dict(expected.named_buffers())
    assert params.keys() == wanted.keys()
    before = dict(module_of(name).named_parameters()) | dict(module_of(name).named_buffers())
    for key in {"mask", "frozen.weight", "frozen.bias", "unused"} & params.keys():
        assert params[key].tobytes() == before[key].detach().numpy().tobytes()


# -- every engine, bit for bit


def run(shards=4, **engine):
    optimizer = SGD(0.05, momentum=0.9, weight_decay=0.01)
    with trainer_of("everything", optimizer=optimizer, shards=shards, **engine) as trainer:
        history = trainer.fit(data(), epochs=3, batch_size=30, validation_data=data())
        return weights_sha256(trainer.params), history.history


@pytest.fixture(scope="module")
def expected():
    return run(engine="serial")


@pytest.mark.parametrize("workers", [1, 3])  # two are killed below
def test_any_number_of_processes_gives_the_same_bits(workers, expected):
    assert run(workers=workers) == expected


def test_a_serial_run_does_not_depend_on_the_number_of_threads_outside(expected):
    before = torch.get_num_threads()
    torch.set_num_threads(before + 1)
    try:
        assert run(engine="serial") == expected
        assert torch.get_num_threads() == before + 1
    finally:
        torch.set_num_threads(before)


class Kill(Callback):
    """Kills a worker in the middle of each of the first epochs, and all workers before the last epoch."""

    def __init__(self, rng) -> None:
        self._rng = rng
        self._timer = None

    def on_epoch_begin(self, epoch, logs):
        self._timer = threading.Timer(self._rng.random() * 0.02, self._kill, [2 if epoch == 2 else 1])
        self._timer.start()

    def on_epoch_end(self, epoch, logs):
        self._timer.join()

    def _kill(self, count):
        for pid in self._rng.sample(self.trainer.pids, count):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def test_killed_workers_change_no_bit(rng):
    def train(callbacks=(), **engine):
        optimizer = SGD(0.05, momentum=0.9)
        with trainer_of("everything", optimizer=optimizer, shards=4, max_restarts=1000, **engine) as trainer:
            trainer.fit(data(), epochs=1, batch_size=10)
            trainer.fit(data(), epochs=3, batch_size=10, callbacks=callbacks)
            trainer.fit(data(), epochs=1, batch_size=10)
            return weights_sha256(trainer.params), trainer.restarts

    got, restarts = train([Kill(rng)], workers=2)
    assert restarts >= 2
    assert got == train(engine="serial")[0]
