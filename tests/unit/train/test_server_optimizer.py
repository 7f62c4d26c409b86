"""Optimizers of torch.optim that the server steps: accepted factories, learning rates, state, and clipping."""

from __future__ import annotations

import functools
import math

import numpy as np
import pytest

pytest.importorskip("torch")

import torch

import networks
from untorn import _core
from untorn.share.lowlevel import extra
from untorn.train import SGD, Trainer, weights_sha256
from untorn.train.optim.convert import as_optimizer
from untorn.train.optim.torch import TorchOptimizer
from untorn.train.run.parameter_layout import ParameterLayout
from untorn.train.run.server_steps import _clip

X, Y = networks.data_of(40, 5, seed=2)
TREE = {"w": np.zeros(5), "b": np.zeros(())}


def trainer_of(optimizer, params=None, model=networks.line, **arguments) -> Trainer:
    arguments = {"engine": "serial", "shards": 2} | arguments
    return Trainer(model, networks.line_params(5) if params is None else params, optimizer=optimizer, **arguments)


def sgd(lr: float = 0.1, **more):
    return functools.partial(torch.optim.SGD, lr=lr, **more)


# -- accepted optimizers


def test_an_optimizer_of_untorn_stays_what_it_is():
    fused = SGD(0.1)
    assert as_optimizer(fused, TREE) is fused


@pytest.mark.parametrize(
    ("optimizer", "message"),
    [
        (SGD, "expected untorn.SGD\\(...\\), found the class SGD; make one"),
        (torch.optim.SGD([torch.zeros(1)], lr=0.1), "give what makes one .* functools.partial\\(torch.optim.SGD"),
        (len, "what it made is of type int"),
        (torch.optim.LBFGS, "only a gradient for its step; LBFGS made none"),
        (torch.optim.SparseAdam, "SparseAdam: expected parameters of nn.Embedding"),
        ("adam", "found str"),
    ],
)
def test_what_is_none(optimizer, message):
    with pytest.raises(TypeError, match=f"optimizer: .*{message}"):
        trainer_of(optimizer)


class Listing(torch.optim.SGD):
    """An optimizer whose state cannot be published."""

    def step(self):
        for parameter in self.param_groups[0]["params"]:
            self.state[parameter]["seen"] = [1, 2]


class Growing(torch.optim.SGD):
    """An optimizer that keeps all gradients."""

    def step(self):
        for parameter in self.param_groups[0]["params"]:
            state = self.state[parameter]
            state["all"] = torch.cat([state.get("all", torch.zeros(0)), parameter.grad.reshape(-1)])


def test_state_that_cannot_be_published():
    with pytest.raises(
        TypeError, match=r"'seen' in the state of Listing: expected a number or a tensor .*, found list"
    ):
        trainer_of(Listing)


def test_state_that_changes_its_shape():
    with trainer_of(Growing) as trainer:
        with pytest.raises(
            TypeError, match=r"0\.all: expected float64 of shape \(5,\).* found float64 of shape \(10,\)"
        ):
            trainer.fit((X, Y), epochs=1, batch_size=10)
        assert trainer.step == 1
        assert trainer.snapshot().version == 2


# -- learning rates


def test_the_learning_rate_can_be_read_and_set():
    with trainer_of(sgd(0.25)) as trainer, trainer_of(sgd(0.25)) as other:
        assert trainer.learning_rate == 0.25
        for each in (trainer, other):
            each.fit((X, Y), epochs=1, batch_size=10)
        trainer.learning_rate = 0.0
        before = trainer.params
        trainer.fit((X, Y), epochs=1, batch_size=10)
        assert weights_sha256(trainer.params) == weights_sha256(before)
        trainer.learning_rate = other.learning_rate = 0.125
        trainer._state.history, trainer._state.epoch = (
            other._state.history,
            other.epoch,
        )  # the same order of the examples
        for each in (trainer, other):
            each.fit((X, Y), epochs=1, batch_size=10)
        assert weights_sha256(trainer.params) == weights_sha256(other.params)


def test_groups_keep_their_ratio():
    def make(parameters):
        first, second = parameters
        groups = [{"params": [first]}, {"params": [second], "lr": torch.tensor(0.5, dtype=torch.float64)}]
        return torch.optim.SGD(groups, lr=0.25)

    made = TorchOptimizer(make, TREE)
    session = made.session({"w": np.zeros(5), "b": np.zeros(())}, made.state_for(TREE), threads=1)
    session.step([np.ones(5), np.ones(())], 0.5)
    w, b, steps, *_ = session.values()
    assert (w == -0.5).all()
    assert b == -1.0
    assert steps == 1


def test_other_settings_do_not_resume(tmp_path):
    pytest.importorskip("safetensors")
    options = {"epochs": 1, "batch_size": 10, "checkpoint_dir": tmp_path}
    with trainer_of(sgd(0.1)) as trainer:
        trainer.fit((X, Y), **options)
    with trainer_of(sgd(0.2)) as trainer, pytest.raises(ValueError, match=r"SGD\(lr=0\.1.*SGD\(lr=0\.2"):
        trainer.fit((X, Y), resume=True, **options)


# -- state


def test_state_is_one_version_with_the_weights():
    with trainer_of(sgd(0.1, momentum=0.5)) as trainer:
        with trainer.snapshot() as snapshot:
            assert extra(snapshot)["steps"] == 0
        trainer.fit((X, Y), epochs=1, batch_size=10)
        with trainer.snapshot() as snapshot:
            assert extra(snapshot)["steps"] == 4
            assert extra(snapshot)["0.momentum_buffer"].shape == (5,)
            assert extra(snapshot)["0.momentum_buffer"].any()


def test_weights_that_are_set_are_trained_on():
    with trainer_of(sgd(0.0, momentum=0.5)) as trainer:
        trainer.fit((X, Y), epochs=1, batch_size=10)
        trainer.params = {"w": np.arange(5.0), "b": np.ones(())}
        trainer.fit((X, Y), epochs=1, batch_size=10)
        np.testing.assert_array_equal(trainer.params["w"], np.arange(5.0))
        with trainer.snapshot() as snapshot:
            assert extra(snapshot)["steps"] == 8


def two_columns(params, batch):
    loss, grads = networks.line({"w": params["w"].sum(1), "b": params["b"]}, batch)
    return loss, {"w": np.stack([grads["w"], grads["w"] / 2], axis=1), "b": grads["b"]}


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_order_of_elements_in_memory_changes_no_bit(dtype):
    found = []
    for order in "CF":
        params = {"w": np.zeros((5, 2), dtype, order=order), "b": np.zeros((), dtype)}
        with trainer_of(torch.optim.Adam, params, two_columns) as trainer:
            trainer.fit((X, Y), epochs=2, batch_size=10)
            found.append(weights_sha256(trainer.params))
            assert trainer.params["w"].flags.f_contiguous == (order == "F")
    assert found[0] == found[1]


# -- sums


class Skipping(torch.optim.SGD):
    """An optimizer that skips gradients that are not finite."""

    def step(self):
        if all(torch.isfinite(p.grad).all() for p in self.param_groups[0]["params"]):
            super().step()


def infinite_for_negative(params, batch):
    loss, grads = networks.line(params, batch)
    return loss, grads if (batch[0][:, 0] >= 0).all() else {"w": grads["w"] + math.inf, "b": grads["b"]}


def test_a_gradient_that_is_not_finite_does_not_stay():
    x = X.copy()
    x[:, 0] = abs(x[:, 0])
    x[7, 0] *= -1
    with trainer_of(functools.partial(Skipping, lr=0.05), model=infinite_for_negative) as trainer:
        trainer.fit((x, Y), epochs=2, batch_size=10)
        assert np.isfinite(trainer.params["w"]).all()
        assert trainer.params["w"].any()


def test_a_plan_of_sums_has_no_step():
    plan = ParameterLayout.of({"w": np.zeros(3), "v": np.zeros(2, np.float32)}, None, sums=True)
    ranges = np.frombuffer(plan.ranges(), np.uint64).reshape(-1, 6)
    assert {int(kind) >> 8 for kind in ranges[:, 3]} == {_core.MERGE_SUM, _core.MERGE_ABSENT}


@pytest.mark.parametrize("norm", [0.5, 1e9])
def test_clipping_is_torch_s(norm):
    rng = np.random.default_rng(3)
    gradients = [rng.normal(size=(7, 3)), rng.normal(size=()), rng.normal(size=11).astype(np.float32)]
    parameters = [torch.nn.Parameter(torch.zeros(g.shape)) for g in gradients]
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.data = torch.from_numpy(gradient.copy())
        parameter.grad = torch.from_numpy(gradient.copy())
    expected = torch.nn.utils.clip_grad_norm_(parameters, norm)
    assert _clip(gradients, norm) == pytest.approx(float(expected), rel=1e-6)
    for parameter, gradient in zip(parameters, gradients, strict=True):
        np.testing.assert_allclose(gradient, parameter.grad.numpy(), rtol=1e-6)


def test_clipping_shows_what_is_not_a_number():
    gradients = [np.array([1.0, math.nan]), np.ones(2)]
    assert math.isnan(_clip(gradients, 1.0))
    assert np.isnan(gradients).all()
