"""Optimizers of torch.optim and of optax: every engine compared with the serial one and with plain loops of these
libraries; kills; checkpoints.

JAX starts threads with its first array, and warns at every fork after that, while other tests fork. So the
functions named ``jax_...`` run in their own process.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
import math
import os
import signal
import subprocess
import sys

import numpy as np
import pytest

pytest.importorskip("torch")

import torch
from torch import nn

import networks
from untorn.torch import TorchModel
from untorn.train import SGD, Callback, Trainer, weights_sha256
from untorn.train.data.sampler import epoch_order

SEED = 4
DATA = networks.classes_of(150, 12, 4, seed=6)
BATCH = 16  # 10 steps an epoch, the last of 6 examples
ENGINES = ({"workers": 1}, {"workers": 3})  # two are killed below


def grouped(parameters):
    """Return an optimizer with two groups of different learning rates."""
    biases = [p for p in parameters if p.ndim == 1]
    return torch.optim.AdamW(
        [{"params": [p for p in parameters if p.ndim > 1]}, {"params": biases, "lr": 1e-2, "weight_decay": 0.0}]
    )


class Counting(torch.optim.SGD):
    """An optimizer with its own state: a number for each parameter, and one for a group."""

    def __init__(self, params):
        super().__init__(params, lr=0.1)
        self.param_groups[0]["made"] = 0

    @torch.no_grad()
    def step(self):
        group = self.param_groups[0]
        group["made"] += 1
        for parameter in group["params"]:
            state = self.state[parameter]
            state["seen"] = state.get("seen", 0.5) + 1
            parameter.add_(parameter.grad, alpha=-group["lr"] / (group["made"] * state["seen"]))


OPTIMIZERS = {
    "sgd": functools.partial(torch.optim.SGD, lr=0.1),
    "momentum": functools.partial(torch.optim.SGD, lr=0.05, momentum=0.9, nesterov=True),
    "adam": torch.optim.Adam,
    "nadam": functools.partial(torch.optim.NAdam, lr=1e-2, decoupled_weight_decay=True, weight_decay=0.1),
    "radam": torch.optim.RAdam,
    "adagrad": functools.partial(torch.optim.Adagrad, initial_accumulator_value=0.5),
    "rprop": torch.optim.Rprop,
    "asgd": torch.optim.ASGD,
    "adafactor": torch.optim.Adafactor,
    "groups": grouped,
    "numbers": Counting,
}


def module_of(*, normalised: bool = False) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        first = [nn.Linear(12, 16), nn.BatchNorm1d(16)] if normalised else [nn.Linear(12, 16)]
        module = nn.Sequential(*first, nn.Tanh(), nn.Linear(16, 8), nn.Linear(8, 4))
        module[-2].requires_grad_(not normalised)
        return module


def torch_trainer(name: str, *, normalised: bool = False, shards: int = 3, **engine) -> Trainer:
    model = TorchModel(module_of(normalised=normalised), nn.functional.cross_entropy)
    engine = engine or {"engine": "serial"}
    return Trainer(model, optimizer=OPTIMIZERS[name], shards=shards, seed=SEED, **engine)


def trained(trainer: Trainer, epochs: int = 2, **options) -> str:
    with trainer:
        trainer.fit(DATA, epochs=epochs, batch_size=BATCH, **options)
        return weights_sha256(trainer.params)


# -- every engine


@pytest.mark.parametrize("name", ["nadam", "numbers"])
def test_the_number_of_workers_changes_no_bit(name):
    expected = trained(torch_trainer(name, normalised=True))
    for engine in ENGINES:
        assert trained(torch_trainer(name, normalised=True, **engine)) == expected, engine


def test_clipping_and_accumulation_change_no_bit_either():
    digests = {
        trained(
            Trainer(
                networks.mlp,
                networks.mlp_params((12, 16, 4)),
                optimizer=OPTIMIZERS["nadam"],
                shards=3,
                clip_norm=0.1,
                accumulate=2,
                **engine,
            )
        )
        for engine in ({"engine": "serial"}, {"workers": 2})
    }
    assert len(digests) == 1


class Killing(Callback):
    """Kills a worker from time to time, the first one after the first step."""

    def __init__(self) -> None:
        self.kills = 0

    def on_batch_end(self, batch, logs):
        if batch % 4 == 0:
            pids = self.trainer.pids
            os.kill(pids[self.kills % len(pids)], signal.SIGKILL)
            self.kills += 1


def test_killed_workers_change_no_bit():
    killing = Killing()
    digest = trained(torch_trainer("nadam", normalised=True, workers=2), callbacks=[killing])
    assert killing.kills == 6
    assert digest == trained(torch_trainer("nadam", normalised=True))


# -- a plain loop


def plain(name: str, shards: int, *, epochs: int, clip_norm: float | None = None) -> nn.Module:
    """Train with PyTorch only, in untorn's order of the examples, accumulating gradients over the shards."""
    module = module_of()
    optimizer = OPTIMIZERS[name](list(module.parameters()))
    x, y = DATA
    for epoch in range(epochs):
        order = epoch_order(SEED, epoch, len(x))
        for start in range(0, len(x), BATCH):
            indices = order[start : start + BATCH]
            optimizer.zero_grad()
            for part in np.array_split(indices, shards):
                loss = nn.functional.cross_entropy(module(torch.from_numpy(x[part])), torch.from_numpy(y[part]))
                (loss * (len(part) / len(indices)) if shards > 1 else loss).backward()
            if clip_norm is not None:
                nn.utils.clip_grad_norm_(module.parameters(), clip_norm)
            optimizer.step()
    return module


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_one_shard_equals_a_plain_loop_bit_for_bit(name):
    with torch_trainer(name, shards=1, engine="serial", threads_per_worker=torch.get_num_threads()) as trainer:
        trainer.fit(DATA, epochs=2, batch_size=BATCH)
        found = trainer.params
    for key, tensor in plain(name, 1, epochs=2).state_dict().items():
        np.testing.assert_array_equal(found[key], tensor.numpy(), err_msg=key)


@pytest.mark.parametrize("name", ["sgd", "momentum", "nadam", "groups"])
def test_several_shards_equal_a_plain_loop_within_rounding(name):
    with torch_trainer(name) as trainer:
        trainer.fit(DATA, epochs=2, batch_size=BATCH)
        found = trainer.params
    for key, tensor in plain(name, 3, epochs=2).state_dict().items():
        np.testing.assert_allclose(found[key], tensor.numpy(), rtol=1e-4, atol=1e-6, err_msg=key)


def test_clipping_equals_a_plain_loop_s():
    model = TorchModel(module_of(), nn.functional.cross_entropy)
    with Trainer(
        model, optimizer=OPTIMIZERS["momentum"], shards=1, seed=SEED, clip_norm=0.05, engine="serial"
    ) as trainer:
        history = trainer.fit(DATA, epochs=2, batch_size=BATCH)
        found = trainer.params
    for key, tensor in plain("momentum", 1, epochs=2, clip_norm=0.05).state_dict().items():
        np.testing.assert_allclose(found[key], tensor.numpy(), rtol=1e-5, atol=1e-7, err_msg=key)
    assert min(history.history["grad_norm"]) > 0.05


def test_the_norm_before_clipping_is_that_of_the_fused_optimizers():
    norms = []
    for optimizer in (SGD(0.1), OPTIMIZERS["sgd"]):
        arguments = {"optimizer": optimizer, "clip_norm": 0.05, "engine": "serial", "shards": 3}
        with Trainer(networks.mlp, networks.mlp_params((12, 16, 4)), **arguments) as trainer:
            norms.append(trainer.fit(DATA, epochs=1, batch_size=BATCH).history["grad_norm"])
    np.testing.assert_allclose(norms[0], norms[1], rtol=1e-6)


# -- checkpoints


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_going_on_from_a_file_is_as_if_training_had_never_stopped(name, tmp_path):
    pytest.importorskip("safetensors")
    straight = trained(torch_trainer(name), 4)
    with torch_trainer(name) as trainer:
        trainer.fit(DATA, epochs=2, batch_size=BATCH)
        trainer.save(tmp_path / "half")
        trainer.fit(DATA, epochs=2, batch_size=BATCH)
        assert weights_sha256(trainer.params) == straight
    with torch_trainer(name) as trainer:
        trainer.load(tmp_path / "half")
        assert trainer.step == 20
        trainer.fit(DATA, epochs=2, batch_size=BATCH)
        assert weights_sha256(trainer.params) == straight


class StopAt(Callback):
    """Ends training with an error at a step of the second epoch."""

    def __init__(self, batch: int) -> None:
        self.batch = batch

    def on_batch_end(self, batch, logs):
        if self.trainer.epoch == 1 and batch == self.batch:
            raise InterruptedError


@pytest.mark.parametrize("engine", [{"engine": "serial"}, {"workers": 2}])
def test_resuming_in_the_middle_of_an_epoch(engine, tmp_path):
    pytest.importorskip("safetensors")
    expected = trained(torch_trainer("nadam", normalised=True), 3)
    options = {"checkpoint_dir": tmp_path, "checkpoint_every_s": 0.0}
    with torch_trainer("nadam", normalised=True, **engine) as trainer:
        with pytest.raises(InterruptedError):
            trainer.fit(DATA, epochs=3, batch_size=BATCH, callbacks=[StopAt(6)], **options)
        assert trainer.step == trainer.snapshot().version - 1
    assert trained(torch_trainer("nadam", normalised=True, **engine), 3, resume=True, **options) == expected


# -- optax


def test_optax_in_a_process_of_its_own():
    pytest.importorskip("optax")
    command = [sys.executable, "-m", "pytest", "-q", "-o", "python_functions=jax_*", __file__]
    environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stdout + ended.stderr


def transformation(name: str):
    import optax

    return {
        "adamw": optax.adamw(1e-2),
        "schedule": optax.chain(
            optax.clip_by_global_norm(0.5), optax.sgd(optax.cosine_decay_schedule(0.1, 40), momentum=0.9)
        ),
        "lion": optax.lion(1e-3),
    }[name]


NAMES = ("adamw", "schedule", "lion")


def optax_trainer(name: str, *, dtype=np.float32, shards: int = 3, **engine) -> Trainer:
    params = networks.mlp_params((12, 16, 4), dtype)
    engine = engine or {"engine": "serial"}
    return Trainer(networks.mlp, params, optimizer=transformation(name), shards=shards, seed=SEED, **engine)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("name", NAMES)
def jax_a_plain_loop_of_optax(name, dtype):
    import jax
    import optax

    with optax_trainer(name, dtype=dtype, shards=1) as trainer:
        trainer.fit(DATA, epochs=2, batch_size=BATCH)
        found = jax.tree.leaves(trainer.params)
    with jax.enable_x64(dtype is np.float64):
        optimizer = transformation(name)
        params = jax.tree.map(jax.numpy.array, networks.mlp_params((12, 16, 4), dtype))
        state = optimizer.init(params)

        @jax.jit
        def step(params, state, gradients):
            updates, state = optimizer.update(gradients, state, params)
            return optax.apply_updates(params, updates), state

        for epoch in range(2):
            order = epoch_order(SEED, epoch, len(DATA[0]))
            for start in range(0, len(order), BATCH):
                indices = order[start : start + BATCH]
                arrays = jax.tree.map(np.asarray, params)
                gradients = networks.mlp(arrays, tuple(part[indices] for part in DATA))[1]
                gradients = jax.tree.map(lambda g, p: np.asarray(g, p.dtype), gradients, arrays)
                params, state = step(params, state, gradients)
    tolerance = 1e-5 if dtype is np.float32 else 1e-12
    for ours, theirs in zip(found, jax.tree.leaves(params), strict=True):
        np.testing.assert_allclose(ours, np.asarray(theirs), rtol=tolerance, atol=tolerance)
        assert ours.dtype == dtype


@pytest.mark.parametrize("name", ["adamw", "schedule"])
def jax_the_number_of_workers_changes_no_bit(name):
    expected = trained(optax_trainer(name))
    for engine in ENGINES:
        assert trained(optax_trainer(name, **engine)) == expected


def jax_killed_workers_change_no_bit():
    assert trained(optax_trainer("adamw", workers=2), callbacks=[Killing()]) == trained(optax_trainer("adamw"))


@pytest.mark.parametrize("name", NAMES)
def jax_going_on_from_a_file_is_as_if_training_had_never_stopped(name, tmp_path):
    straight = trained(optax_trainer(name), 4)
    with optax_trainer(name) as trainer:
        trainer.fit(DATA, epochs=2, batch_size=BATCH)
        trainer.save(tmp_path / "half")
    with optax_trainer(name) as trainer:
        trainer.load(tmp_path / "half")
        trainer.fit(DATA, epochs=2, batch_size=BATCH)
        assert weights_sha256(trainer.params) == straight


def jax_a_module_of_torch_with_an_optimizer_of_optax():
    model = TorchModel(module_of(normalised=True), nn.functional.cross_entropy)
    with Trainer(model, optimizer=transformation("adamw"), shards=2, engine="serial") as trainer:
        before = copy.deepcopy(trainer.params)
        trainer.fit(DATA, epochs=1, batch_size=BATCH)
        after = trainer.params
    changed = {name for name in before if not np.array_equal(before[name], after[name])}
    assert changed == {name for name in before if not name.startswith("3.")}  # the frozen layer


def jax_the_learning_rate_is_not_known_and_cannot_be_set():
    with optax_trainer("adamw") as trainer:
        assert math.isnan(trainer.learning_rate)
        with pytest.raises(AttributeError, match="give it its rates as a schedule"):
            trainer.learning_rate = 0.1


def jax_parameters_that_are_no_pytree():
    with pytest.raises(TypeError, match="params: with an optimizer of optax they must be a pytree of JAX"):
        Trainer(networks.line, NoPytree(np.zeros(3)), optimizer=transformation("adamw"))


@dataclasses.dataclass
class NoPytree:
    w: np.ndarray
