"""Local steps: groups that make some steps by themselves, and are averaged then."""

from __future__ import annotations

import numpy as np
import pytest

import networks
from untorn.train import SGD, AdamW, LocalSteps, Trainer, weights_sha256
from untorn.train.data.sampler import epoch_order

DATA = networks.classes_of(152, 12, 3, seed=6)


def line_data(examples: int = 96) -> tuple[np.ndarray, np.ndarray]:
    x = np.random.default_rng(3).normal(size=(examples, 5))
    return x, x @ np.arange(5.0)


def line(params, batch):
    x, y = batch
    error = x @ params["w"] - y
    return (error**2).mean(), {"w": 2 * x.T @ error / len(x)}


def trained(optimizer, *, epochs=2, batch_size=8, engine=None, **more):
    engine = engine or {"engine": "serial"}
    with Trainer(line, {"w": np.zeros(5)}, optimizer=optimizer, seed=7, **engine, **more) as trainer:
        history = trainer.fit(line_data(), epochs=epochs, batch_size=batch_size)
        return trainer.params["w"], history.history["loss"], trainer.step


def by_hand(groups, steps, *, batch_size=8, epochs=2, rate=0.05, momentum=0.0, outer=1.0, outer_momentum=0.0):
    """Local SGD, written down from its description."""
    x, y = line_data()
    weights, average, way = np.zeros(5), np.zeros(5), np.zeros(5)
    rounds = 0
    for epoch in range(epochs):
        order = epoch_order(7, epoch, len(x))
        for start in range(0, len(x), batch_size * steps):
            batch = order[start : start + batch_size * steps]
            ends, speeds, sizes = [], [], []
            for group in range(groups):
                own = batch[len(batch) * group // groups : len(batch) * (group + 1) // groups]
                w, m = weights.copy(), average.copy()
                for step in range(steps):
                    some = own[len(own) * step // steps : len(own) * (step + 1) // steps]
                    if len(some):
                        _, gradient = line({"w": w}, (x[some], y[some]))
                        m = momentum * m + gradient["w"]
                        w = w - rate * m
                ends.append(w)
                speeds.append(m)
                sizes.append(len(own))
            share = np.array(sizes) / sum(sizes)
            average = share @ np.array(speeds)
            way = outer_momentum * way + (weights - share @ np.array(ends))
            weights = weights - outer * way
            rounds += 1
    return weights, rounds


@pytest.mark.parametrize("groups", [1, 2, 3])
@pytest.mark.parametrize("steps", [1, 3, 5])
@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_it_is_local_sgd(groups, steps, momentum):
    found, _, rounds = trained(LocalSteps(SGD(0.05, momentum=momentum), steps=steps, groups=groups))
    expected, expected_rounds = by_hand(groups, steps, momentum=momentum)
    np.testing.assert_allclose(found, expected, rtol=1e-9)
    assert rounds == expected_rounds


def test_an_outer_optimizer():
    optimizer = LocalSteps(SGD(0.05), steps=3, groups=2, outer=SGD(0.7, momentum=0.5))
    expected, _ = by_hand(2, 3, outer=0.7, outer_momentum=0.5)
    np.testing.assert_allclose(trained(optimizer)[0], expected, rtol=1e-9)


def test_a_schedule_gets_the_number_of_the_inner_step():
    seen = []

    def rate(step):
        seen.append(step)
        return 0.05

    trained(LocalSteps(SGD(rate), steps=3, groups=2), epochs=1)
    assert sorted(set(seen)) == list(range(12))


def test_a_gradient_is_clipped_in_each_inner_step():
    clipped = trained(LocalSteps(SGD(1.0), steps=1, groups=1, clip_norm=0.01), epochs=1)
    assert abs(clipped[0]).max() <= 0.01 * 12
    assert abs(clipped[0]).max() > 0


@pytest.mark.parametrize("inner", [SGD(0.05, momentum=0.9), AdamW(0.01)], ids=["sgd", "adamw"])
@pytest.mark.parametrize(
    "engine", [{"engine": "processes", "workers": 2}, {"engine": "loopback", "nodes": 2, "workers": 1}]
)
def test_the_same_bits_whoever_computes(inner, engine):
    optimizer = LocalSteps(inner, steps=3, outer=SGD(0.7, momentum=0.9, nesterov=True))
    results = []
    for each in ({"engine": "serial"}, engine):
        model, params = networks.mlp_with_dropout, networks.mlp_params((12, 16, 3))
        with Trainer(model, params, optimizer=optimizer, shards=4, seed=7, **each) as trainer:
            history = trainer.fit(DATA, epochs=2, batch_size=16)
            results.append((weights_sha256(trainer.params), history.history))
    assert results[0] == results[1]


def test_a_module_with_buffers_learns():
    torch = pytest.importorskip("torch")
    from untorn.torch import TorchModel

    torch.manual_seed(1)
    nn = torch.nn
    module = nn.Sequential(nn.Linear(12, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 3))
    module[0].bias.requires_grad_(False)
    results = []
    for engine in ({"engine": "serial"}, {"engine": "processes", "workers": 2}):
        model = TorchModel(module, nn.CrossEntropyLoss())
        with Trainer(model, optimizer=LocalSteps(AdamW(0.02), steps=4, groups=2), seed=7, **engine) as trainer:
            history = trainer.fit(DATA, epochs=15, batch_size=16)
            trained_module = trainer.module()
            assert trained_module[1].num_batches_tracked > 0
            assert set(trainer.params) == set(module.state_dict())
            results.append((weights_sha256(trainer.params), history.history))
            assert trainer.evaluate(DATA)["loss"] < history.history["loss"][0] / 2
    assert results[0] == results[1]


def test_it_resumes_with_the_inner_state(tmp_path):
    pytest.importorskip("safetensors")

    def run(epochs, **more):
        optimizer = LocalSteps(SGD(0.05, momentum=0.9), steps=3, groups=2)
        with Trainer(line, {"w": np.zeros(5)}, optimizer=optimizer, seed=7, engine="serial") as trainer:
            trainer.fit(line_data(), epochs=epochs, batch_size=8, **more)
            return trainer.params["w"].tobytes()

    run(2, checkpoint_dir=tmp_path)
    assert run(4, checkpoint_dir=tmp_path, resume=True) == run(4)


def test_weights_are_set_and_inner_state_stays():
    optimizer = LocalSteps(SGD(0.05, momentum=0.9), steps=3, groups=2)
    with Trainer(line, {"w": np.zeros(5)}, optimizer=optimizer, seed=7, engine="serial") as trainer:
        trainer.fit(line_data(), epochs=1, batch_size=8)
        trainer.params = {"w": np.ones(5)}
        assert trainer.params["w"].tolist() == [1.0] * 5


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: LocalSteps(SGD, steps=2), TypeError, "inner: expected untorn.SGD(...)"),
        (lambda: LocalSteps(SGD(0.1), steps=0), ValueError, "steps: expected 1 to"),
        (lambda: LocalSteps(SGD(0.1), steps=2, outer=0.7), TypeError, "outer: expected untorn.SGD(...)"),
        (lambda: LocalSteps(SGD(0.1), steps=2, groups=0), ValueError, "groups: expected 1 to"),
        (lambda: trained(LocalSteps(SGD(0.1), steps=2, groups=2), shards=3), ValueError, "the groups of LocalSteps"),
        (lambda: trained(LocalSteps(SGD(0.1), steps=2), mode="async"), ValueError, "mode='sync'"),
    ],
)
def test_wrong_arguments(make, error, message):
    with pytest.raises(error) as caught:
        make()
    assert message in str(caught.value)
