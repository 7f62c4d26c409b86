"""Every optimizer, with clipping and with a schedule: the same bits from every engine and after kills, and PyTorch's
numbers within rounding.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import signal

import numpy as np
import pytest

import networks
from untorn.train import SGD, Adagrad, Adam, AdamW, Callback, RMSprop, Trainer, weights_sha256
from untorn.train.data.sampler import epoch_order

SHARDS, SEED, EPOCHS, BATCH = 4, 3, 2, 30
CLASSES = networks.classes_of(197, 17, 5)
PARAMS = networks.mlp_params((17, 23, 5))
# the optimizer is independent of the number of workers; test_engines.py has more numbers
ENGINES = {
    "processes-1": {"workers": 1},
    "processes-3": {"workers": 3},
}


def fading(step: int) -> float:
    return 0.02 * 0.9**step


OPTIMIZERS = {
    "sgd": (SGD(0.05, momentum=0.9, nesterov=True, weight_decay=0.001), None),
    "sgd, clipped": (SGD(0.5), 0.2),
    "adam": (Adam(0.01, weight_decay=0.01), None),
    "adam, clipped": (Adam(0.01, eps=1e-3), 0.2),
    "amsgrad": (Adam(0.01, amsgrad=True), None),
    "adamw, scheduled": (AdamW(fading, weight_decay=0.1), None),
    "adamw, scheduled, clipped": (AdamW(fading, weight_decay=0.1, eps=1e-3), 0.5),
    "rmsprop": (RMSprop(0.002, weight_decay=0.01), None),
    "rmsprop, centered": (RMSprop(0.001, momentum=0.5, centered=True, eps=1e-3), None),
    "adagrad": (Adagrad(0.05, lr_decay=0.01, initial_accumulator_value=0.1), None),
}


def trained(case, *, model=networks.mlp, callbacks=(), **engine):
    optimizer, clip_norm = OPTIMIZERS[case]
    arguments = {"optimizer": optimizer, "clip_norm": clip_norm, "shards": SHARDS, "seed": SEED} | engine
    with Trainer(model, PARAMS, max_restarts=10_000, **arguments) as trainer:
        # two fits: the optimizer's step continues
        histories = [
            trainer.fit(CLASSES, epochs=1, batch_size=BATCH, callbacks=callbacks).history for _ in range(EPOCHS)
        ]
        return trainer.params, histories, trainer.restarts


@pytest.fixture(scope="module")
def expected():
    """Return the result of the serial engine for each case."""
    return {case: trained(case, engine="serial") for case in OPTIMIZERS}


@pytest.mark.parametrize("engine", ENGINES.values(), ids=ENGINES)
@pytest.mark.parametrize("case", OPTIMIZERS)
def test_every_engine_gives_the_same_bits(case, engine, expected):
    params, histories, _ = trained(case, **engine)
    assert weights_sha256(params) == weights_sha256(expected[case][0])
    assert histories == expected[case][1]


class Killing(Callback):
    """Kills a worker at the start, and then at some of the steps."""

    def __init__(self, rng):
        self.rng = rng

    def on_epoch_begin(self, epoch, logs):
        self.kill()

    def on_batch_end(self, step, logs):
        if self.rng.random() < 0.3:
            self.kill()

    def kill(self):
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.rng.choice(self.trainer.pids), signal.SIGKILL)


@pytest.mark.parametrize("case", ["adam, clipped", "adamw, scheduled, clipped", "rmsprop, centered", "adagrad"])
def test_kills_change_nothing(case, rng, expected):
    params, _, restarts = trained(case, model=networks.slow_mlp, callbacks=[Killing(rng)], workers=2)
    assert restarts > 0
    assert weights_sha256(params) == weights_sha256(expected[case][0])


def test_the_norm_is_measured_where_it_is_clipped(expected):
    for case, (_, clip_norm) in OPTIMIZERS.items():
        histories = expected[case][1]
        assert all(("grad_norm" in history) == (clip_norm is not None) for history in histories)
    assert expected["sgd, clipped"][1][0]["grad_norm"][0] > 0.2


def mlp_with_a_norm_of_its_own(params, batch):
    loss, grads, _ = networks.mlp(params, batch)
    return loss, grads, {"grad_norm": 7.0}


def test_a_metric_of_that_name_is_the_models():
    histories = trained("sgd, clipped", model=mlp_with_a_norm_of_its_own, engine="serial")[1]
    assert [history["grad_norm"] for history in histories] == [[7.0], [7.0]]


# -- PyTorch


def gradient(params, batch, indices):
    """Return the weighted mean over the shards, summed in the documented tree."""
    terms = []
    for shard in range(SHARDS):
        part = indices[len(indices) * shard // SHARDS : len(indices) * (shard + 1) // SHARDS]
        grads = networks.mlp(params, tuple(array[part] for array in batch))[1]
        weight = np.float32(len(part) / len(indices))
        terms.append([weight * leaf for layer in grads for leaf in layer])
    return [networks.fold([term[i] for term in terms]) for i in range(len(terms[0]))]


def by_torch(case):
    torch = pytest.importorskip("torch")
    optimizer, clip_norm = OPTIMIZERS[case]
    options = {field.name: getattr(optimizer, field.name) for field in dataclasses.fields(optimizer)}
    del options["groups"]  # tests/unit/train/test_groups.py
    schedule = options.pop("learning_rate")
    params = [networks.Layer(*(leaf.copy() for leaf in layer)) for layer in PARAMS]
    leaves = [torch.from_numpy(leaf) for layer in params for leaf in layer]  # shares the memory
    rate = schedule(0) if callable(schedule) else schedule
    other = getattr(torch.optim, type(optimizer).__name__)(leaves, lr=rate, **options)
    norms, step = [], 0
    for epoch in range(EPOCHS):
        order = epoch_order(SEED, epoch, len(CLASSES[0]))
        for start in range(0, len(order), BATCH):
            for leaf, grad in zip(leaves, gradient(params, CLASSES, order[start : start + BATCH]), strict=True):
                leaf.grad = torch.from_numpy(grad)
            if clip_norm is not None:
                norms.append(torch.nn.utils.clip_grad_norm_(leaves, clip_norm).item())
            if callable(schedule):
                other.param_groups[0]["lr"] = schedule(step)
            other.step()
            step += 1
    return params, norms


@pytest.mark.parametrize("case", OPTIMIZERS)
def test_the_weights_are_pytorchs_within_rounding(case, expected):
    params, _ = by_torch(case)
    for got, layer in zip(expected[case][0], params, strict=True):
        for name, one, other in zip(layer._fields, got, layer, strict=True):
            assert one.dtype == np.float32
            np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5, err_msg=name)


@pytest.mark.parametrize("case", [case for case, (_, clip_norm) in OPTIMIZERS.items() if clip_norm is not None])
def test_the_norms_are_pytorchs_within_rounding(case, expected):
    _, norms = by_torch(case)
    sizes = [min(BATCH, len(CLASSES[0]) - start) for start in range(0, len(CLASSES[0]), BATCH)]
    per_epoch = np.average(np.reshape(norms, (EPOCHS, -1)), axis=1, weights=sizes)
    np.testing.assert_allclose([history["grad_norm"][0] for history in expected[case][1]], per_epoch, rtol=1e-4)
