"""A parameter that the loss of a step does not reach has no gradient in it, and is skipped, as in a plain loop.

The module has a head that is always used, one that only some batches use, and one that none uses.

==============================  ======================================================================================
an optimizer of torch, 1 shard  the bits of a plain loop, which leaves ``.grad`` None
fused, 1 shard                  a plain loop's weights to rounding; what it does not train keeps its bits
several shards                  skipped if no shard has a gradient; the same bits on every engine
==============================  ======================================================================================
"""

from __future__ import annotations

import functools
import os
import signal

import numpy as np
import pytest

pytest.importorskip("torch")

import torch
from torch import nn

from untorn.torch import TorchModel
from untorn.train import SGD, Adagrad, Adam, AdamW, Callback, LocalSteps, RMSprop, Trainer, weights_sha256
from untorn.train.data.sampler import epoch_order

SEED, BATCH, EXAMPLES = 5, 12, 96
RARE = 9.0  # of three examples


pytestmark = pytest.mark.usefixtures("one_torch_thread")


class Heads(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(6, 90)
        self.middle = nn.Linear(90, 100)  # 36 kB, of which an update has several ranges
        self.never = nn.Linear(100, 8)
        self.head = nn.Linear(100, 3)
        self.rare = nn.Linear(100, 3)

    def forward(self, x):
        hidden = torch.tanh(self.middle(torch.tanh(self.body(x))))
        logits = self.head(hidden)
        return logits + self.rare(hidden) if x[:, 0].max() > RARE else logits


def made() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Heads()


@functools.cache
def data() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(2)
    x = rng.normal(size=(EXAMPLES, 6)).astype(np.float32)
    x[[7, 40, 80], 0] = 10
    return x, rng.integers(0, 3, EXAMPLES)


def plain_loop(make, *, epochs=2, clip_norm=None) -> dict[str, np.ndarray]:
    module, (x, y) = made(), map(torch.from_numpy, data())
    optimizer = make(list(module.parameters()))
    used = 0
    for epoch in range(epochs):
        for indices in torch.from_numpy(epoch_order(SEED, epoch, EXAMPLES)).split(BATCH):
            optimizer.zero_grad()
            nn.functional.cross_entropy(module(x[indices]), y[indices]).backward()
            used += module.rare.weight.grad is not None
            if clip_norm is not None:
                nn.utils.clip_grad_norm_(module.parameters(), clip_norm)
            optimizer.step()
    assert 0 < used < epochs * EXAMPLES // BATCH
    return {name: tensor.numpy() for name, tensor in module.state_dict().items()}


def trainer_of(optimizer, *, shards=1, model=None, **engine) -> Trainer:
    model = model or TorchModel(made(), nn.functional.cross_entropy)
    engine = engine if "workers" in engine or "engine" in engine else engine | {"engine": "serial"}
    return Trainer(model, optimizer=optimizer, shards=shards, seed=SEED, **engine)


def trained(optimizer, *, epochs=2, callbacks=(), **arguments) -> dict[str, np.ndarray]:
    with trainer_of(optimizer, **arguments) as trainer:
        trainer.fit(data(), epochs=epochs, batch_size=BATCH, callbacks=callbacks)
        return trainer.params


def assert_close(name, found, expected):
    """Check that they agree within 1e-4 of the largest number; to count one step wrongly gives 1e-2."""
    assert np.abs(found - expected).max() < 1e-4 * np.abs(expected).max(), name


TORCH = {
    "adamw": functools.partial(torch.optim.AdamW, lr=0.01, weight_decay=0.1),
    "momentum": functools.partial(torch.optim.SGD, lr=0.1, momentum=0.9, weight_decay=0.01),
    "adagrad": functools.partial(torch.optim.Adagrad, lr=0.05, lr_decay=0.01, initial_accumulator_value=0.1),
    "nadam": functools.partial(torch.optim.NAdam, lr=0.01, weight_decay=0.1),
    "radam": functools.partial(torch.optim.RAdam, lr=0.01),
}
#: pairs of untorn's optimizer and torch's
FUSED = {
    "adamw": (AdamW(0.01, weight_decay=0.1), TORCH["adamw"]),
    "amsgrad": (
        Adam(0.01, weight_decay=0.1, amsgrad=True),
        functools.partial(torch.optim.Adam, lr=0.01, weight_decay=0.1, amsgrad=True),
    ),
    "momentum": (SGD(0.1, momentum=0.9, weight_decay=0.01), TORCH["momentum"]),
    "adagrad": (Adagrad(0.05, lr_decay=0.01, initial_accumulator_value=0.1), TORCH["adagrad"]),
    "rmsprop": (
        RMSprop(0.002, momentum=0.5, weight_decay=0.01),
        functools.partial(torch.optim.RMSprop, lr=0.002, momentum=0.5, weight_decay=0.01),
    ),
}


@pytest.mark.parametrize("name", TORCH)
def test_an_optimizer_of_torch_gives_the_bits_of_a_plain_loop(name):
    expected = plain_loop(TORCH[name])
    for key, found in trained(TORCH[name]).items():
        np.testing.assert_array_equal(found, expected[key], err_msg=key)


@pytest.mark.parametrize("name", FUSED)
def test_a_fused_one_gives_a_plain_loops_weights_to_rounding(name):
    ours, theirs = FUSED[name]
    expected, start = plain_loop(theirs, clip_norm=0.5), made().state_dict()
    for key, found in trained(ours, clip_norm=0.5).items():
        assert_close(key, found, expected[key])
        if key.startswith("never"):
            np.testing.assert_array_equal(found, start[key].numpy(), err_msg=key)


class Killing(Callback):
    def on_batch_end(self, batch, logs):
        if batch % 4 == 0:
            os.kill(self.trainer.pids[0], signal.SIGKILL)


ENGINES = {
    "killed workers": {"workers": 2, "callbacks": [Killing()]},
    "2 nodes": {"engine": "loopback", "nodes": 2, "workers": 1, "epochs": 1},
}


@pytest.mark.parametrize(
    ("engine", "optimizer"),
    [
        pytest.param(ENGINES["killed workers"], AdamW(0.01, weight_decay=0.1), id="fused, killed workers"),
        pytest.param(ENGINES["2 nodes"], AdamW(0.01, weight_decay=0.1), id="fused, 2 nodes"),
        pytest.param(ENGINES["killed workers"], TORCH["adamw"], id="torch, killed workers", marks=pytest.mark.soak),
        pytest.param(ENGINES["2 nodes"], TORCH["adamw"], id="torch, 2 nodes", marks=pytest.mark.soak),
    ],
)
def test_every_engine_gives_the_same_bits(engine, optimizer):
    options = {"shards": 5, "clip_norm": 0.5, "accumulate": 2 if "nodes" in engine else 1}
    expected = trained(optimizer, **options, epochs=engine.get("epochs", 2))
    assert weights_sha256(trained(optimizer, **options | engine)) == weights_sha256(expected)
    assert (expected["never.weight"] == made().never.weight.detach().numpy()).all()
    assert (expected["rare.weight"] != made().rare.weight.detach().numpy()).any()


@pytest.mark.parametrize("optimizer", [AdamW(0.01, weight_decay=0.1), TORCH["adamw"]], ids=["fused", "torch"])
def test_a_resumed_training_has_the_same_bits(optimizer, tmp_path):
    expected = trained(optimizer, shards=2, epochs=3)
    for epochs in (1, 3):
        with trainer_of(optimizer, shards=2) as trainer:
            trainer.fit(data(), epochs=epochs, batch_size=BATCH, checkpoint_dir=tmp_path, resume=epochs == 3)
            found = trainer.params
    assert weights_sha256(found) == weights_sha256(expected)


def test_async_training_skips_too():
    found = trained(AdamW(0.01, weight_decay=0.1), mode="async", max_staleness=0, shards=None)
    expected = trained(AdamW(0.01, weight_decay=0.1))
    assert weights_sha256(found) == weights_sha256(expected)


def test_groups_of_local_steps_skip_too():
    optimizer = LocalSteps(AdamW(0.01, weight_decay=0.1), steps=3, outer=SGD(0.7, momentum=0.9, weight_decay=0.1))
    found = trained(optimizer, shards=2)
    assert (found["never.weight"] == made().never.weight.detach().numpy()).all()
    alone = trained(LocalSteps(AdamW(0.01, weight_decay=0.1), steps=8), shards=1)
    for key, expected in plain_loop(TORCH["adamw"]).items():  # a group of its own is a plain loop
        assert_close(key, alone[key], expected)


# -- a function


def two(params, batch):
    """Only the examples of the first half of the data reach "b", and none reaches "c"; integers are converted."""
    x, late = batch
    loss = float(((params["a"] - x.mean()) ** 2).sum())
    grads = {"a": 2 * (params["a"] - x.mean()), "b": None, "c": None}
    if not late.any():
        grads["b"] = np.ones(3, np.int64)
    return loss, grads


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_function_may_return_none(accumulate):
    params = {"a": np.ones(2), "b": np.ones(3), "c": np.ones(4, np.float32)}
    late = np.arange(8) % 4 == 3
    with Trainer(
        two, params, optimizer=SGD(0.5, weight_decay=0.5), shards=2, accumulate=accumulate, engine="serial"
    ) as trainer:
        trainer.fit((np.ones(8), late), epochs=1, batch_size=8)
        found = trainer.params
    assert (found["c"] == 1).all()
    assert (found["a"] == 0.75).all()
    order = epoch_order(0, 0, 8)
    parts = order.reshape(2 * accumulate, -1)
    share = np.mean([not late[part].any() for part in parts])
    assert (found["b"] == (1 - 0.5 * (share + 0.5) if share else 1)).all()


def test_no_gradient_at_all_changes_nothing():
    with Trainer(
        lambda params, batch: (1.0, {"w": None}), {"w": np.ones(3)}, optimizer=AdamW(0.1), engine="serial"
    ) as trainer:
        trainer.fit((np.ones(8),), epochs=1, batch_size=4)
        assert (trainer.params["w"] == 1).all()


def test_a_whole_part_of_the_tree_cannot_be_none():
    with (
        Trainer(
            lambda params, batch: (1.0, {"w": None}), {"w": {"x": np.ones(3)}}, optimizer=SGD(0.1), engine="serial"
        ) as trainer,
        pytest.raises(Exception, match=r"the gradient tree differs from the parameters at w: expected dict"),
    ):
        trainer.fit((np.ones(8),), epochs=1, batch_size=4)
