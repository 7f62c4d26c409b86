"""Groups of parameters of the fused optimizers: their settings, patterns and rates, and torch.optim's groups."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

import untorn
from untorn import SGD, Adagrad, Adam, AdamW, LocalSteps, RMSprop, Trainer
from untorn.train.data.sampler import epoch_order
from untorn.train.schedules import Linear

RNG = np.random.default_rng(5)
X = RNG.normal(size=(96, 6)).astype(np.float32)
Y = (X.sum(1) > 0).astype(np.int64)
NO_DECAY = {"params": ["*.bias", "1"], "weight_decay": 0.0}


PARAMS = {"body": {"w": RNG.normal(size=(3, 2)), "b": np.zeros(2)}, "head": [np.ones(2, np.float32)]}


def linear(params, batch):
    """Mean squared error of a small network on (x, y)."""
    x, y = batch
    hidden = np.tanh(x @ params["body"]["w"] + params["body"]["b"])
    error = hidden @ params["head"][0] - y
    back = np.outer(error, params["head"][0]) * (1 - hidden**2) * (2 / len(x))
    grads = {"body": {"w": x.T @ back, "b": back.sum(0)}, "head": [hidden.T @ error * (2 / len(x))]}
    return float((error**2).mean()), grads


DATA = (RNG.normal(size=(40, 3)), RNG.normal(size=40))


def same(one, other):
    leaves = zip([*one["body"].values(), *one["head"]], [*other["body"].values(), *other["head"]], strict=True)
    return all(np.array_equal(a, b) for a, b in leaves)


def trained(optimizer, *, model=linear, params=PARAMS, data=DATA, epochs=2, **settings):
    settings = {"engine": "serial", "shards": 2} | settings
    with Trainer(model, params, optimizer=optimizer, **settings) as trainer:
        trainer.fit(data, epochs=epochs, batch_size=16)
        return trainer.params


@pytest.mark.parametrize("settings", [{"engine": "processes", "workers": 2}, {"engine": "loopback", "nodes": 2}])
def test_groups_have_the_same_bits_on_every_engine(settings):
    optimizer = AdamW(
        Linear(0.1, 20), groups=[{"params": "body/b", "weight_decay": 0}, {"params": "head", "lr_scale": 3}]
    )
    workers = {"workers": 1} | settings
    assert same(trained(optimizer, clip_norm=1.0), trained(optimizer, clip_norm=1.0, **workers))


def test_in_async_mode_groups_are_those_of_sync_mode_if_nothing_is_stale():
    optimizer = AdamW(0.1, groups=[{"params": "body", "weight_decay": 0.5}])
    found = trained(optimizer, mode="async", max_staleness=0, shards=None)
    assert same(found, trained(optimizer, shards=1))


def test_one_group_of_everything_is_none():
    whole = trained(SGD(0.1, groups=[{"params": "*", "momentum": 0.9}]))
    assert same(whole, trained(SGD(0.1, momentum=0.9)))


def test_patterns_are_paths_or_functions():
    frozen = {"body": ["body"], "body/b": ["body/b", "*/b"], "head/0": ["head", "head/0", "h*", "/head"]}
    frozen["body/b"] += [
        ["body/b"],
        lambda name, array: name.endswith("b"),
        lambda name, array: array.shape == (2,) and array.dtype == np.float64,
    ]
    for where, patterns in frozen.items():
        for pattern in patterns:
            found = trained(SGD(0.1, groups=[{"params": pattern, "lr_scale": 0}]))
            leaves = {"body/w": found["body"]["w"], "body/b": found["body"]["b"], "head/0": found["head"][0]}
            before = {"body/w": PARAMS["body"]["w"], "body/b": PARAMS["body"]["b"], "head/0": PARAMS["head"][0]}
            stayed = [name for name, leaf in leaves.items() if np.array_equal(leaf, before[name])]
            assert stayed == [name for name in leaves if name == where or name.startswith(where + "/")], pattern


def test_rates_of_groups_follow_the_optimizer_s():
    groups = [{"params": "body", "lr_scale": 0.5}, {"params": "head", "learning_rate": lambda step: 1.0 + step}]
    with Trainer(linear, PARAMS, optimizer=SGD(Linear(8.0, 8), groups=groups), engine="serial", shards=1) as trainer:
        rate = trainer._state.learning_rate
        assert rate.rates(0, 2).reshape(2, 3, 5)[..., 0].tolist() == [[8, 4, 1], [7, 3.5, 2]]
        trainer.learning_rate = 2.0
        assert rate.rates(0, 2).reshape(2, 3, 5)[..., 0].tolist() == [[2, 1, 0.25], [1.75, 0.875, 0.5]]


def test_a_checkpoint_resumes_with_its_groups_alone(tmp_path):
    optimizer = SGD(0.1, momentum=0.9, groups=[{"params": "head", "weight_decay": 0.1}])
    whole = trained(optimizer, epochs=4)
    for _ in range(2):
        with Trainer(linear, PARAMS, optimizer=optimizer, engine="serial", shards=2) as trainer:
            trainer.fit(DATA, epochs=2 + 2 * _, batch_size=16, checkpoint_dir=tmp_path, resume=True)
            found = trainer.params
    assert same(found, whole)
    other = dataclasses.replace(optimizer, groups=[{"params": "head", "weight_decay": 0.2}])
    with (
        Trainer(linear, PARAMS, optimizer=other, engine="serial", shards=2) as trainer,
        pytest.raises(ValueError, match=r"groups=.*0\.1"),
    ):
        trainer.fit(DATA, epochs=5, batch_size=16, checkpoint_dir=tmp_path, resume=True)


@pytest.mark.parametrize(
    ("groups", "error", "message"),
    [
        ({"params": "head"}, TypeError, 'groups: expected a list of dicts such as {"params": "*.bias"'),
        ([{"weight_decay": 0}], TypeError, 'groups[0]: expected a dict with the key "params"'),
        ([{"params": np.zeros(2)}], TypeError, 'groups[0]["params"]: expected a path such as "head"'),
        ([{"params": [np.zeros(2)]}], TypeError, "found a list with a ndarray. The Trainer has the parameters"),
        ([{"params": []}], ValueError, 'groups[0]["params"]: the list is empty'),
        ([{"params": "xyz"}], ValueError, "groups[0]: no parameter that is trained matches 'xyz'; there are body/w"),
        ([{"params": "body/v"}], ValueError, "matches 'body/v'; similar ones are body/"),
        (
            [{"params": "body"}, {"params": ["head", "*/b"]}],
            ValueError,
            "groups[1]: parameter body/b matches '*/b', and it is in groups[0] too; expected it in one of them",
        ),
        ([{"params": "head", "lr": 1}], TypeError, "groups[0]: SGD() has no argument 'lr': write learning_rate="),
        ([{"params": "head", "betas": (0, 0)}], TypeError, "groups[0]: SGD() has no argument 'betas'"),
        ([{"params": "head", "momentum": 1}], ValueError, "groups[0]: SGD: momentum must be below 1"),
        ([{"params": "head", "groups": []}], TypeError, "groups[0]: a group has no groups of its own"),
        ([{"params": "head", "lr_scale": -1}], ValueError, "groups[0]: lr_scale: expected a finite number"),
        ([{"params": "head", "lr_scale": 2, "learning_rate": 1}], ValueError, "groups[0]: it has a learning_rate and"),
        ([{"params": lambda name, array: 1}], TypeError, "expected True or False for parameter body/w, found int"),
    ],
)
def test_a_wrong_group_is_named(groups, error, message):
    with pytest.raises(error) as caught:
        Trainer(linear, PARAMS, optimizer=SGD(0.1, groups=groups), engine="serial")
    assert message in str(caught.value)


def test_a_number_beside_a_schedule_and_groups_of_local_steps_are_refused():
    with pytest.raises(ValueError, match=r"groups\[0\]: learning_rate=1\.0 is a number, and the optimizer's is a func"):
        Trainer(
            linear, PARAMS, optimizer=SGD(Linear(1.0, 9), groups=[{"params": "head", "learning_rate": 1.0}]),
            engine="serial",
        )  # fmt: skip
    with pytest.raises(ValueError, match="LocalSteps: inner: expected an optimizer without groups="):
        LocalSteps(SGD(0.1, groups=[{"params": "head"}]), steps=2)


def test_an_optimizer_with_groups_is_a_value():
    optimizer = AdamW(1e-3, groups=[NO_DECAY])
    assert optimizer == AdamW(1e-3, groups=[NO_DECAY]) != AdamW(1e-3)
    assert len({optimizer, AdamW(1e-3, groups=[NO_DECAY])}) == 1
    assert "groups=({'params': ('*.bias', '1'), 'weight_decay': 0.0},)" in repr(optimizer)
    assert repr(SGD(0.5)) == "SGD(learning_rate=0.5, momentum=0.0, nesterov=False, weight_decay=0.0)"


@pytest.mark.parametrize(
    ("fused", "made", "own"),
    [
        (AdamW(1e-2, weight_decay=0.1), "AdamW", {"lr": 3e-2, "betas": (0.8, 0.9)}),
        (Adam(1e-2, weight_decay=0.1), "Adam", {"lr": 3e-2, "eps": 1e-3, "amsgrad": True}),
        (SGD(1e-2, weight_decay=0.1), "SGD", {"lr": 3e-2, "momentum": 0.9, "nesterov": True}),
        (RMSprop(1e-2, weight_decay=0.1), "RMSprop", {"momentum": 0.5, "alpha": 0.9, "centered": True}),
        (Adagrad(1e-2, weight_decay=0.1), "Adagrad", {"lr": 3e-2, "initial_accumulator_value": 0.25}),
    ],
)
def test_groups_are_those_of_torch(fused, made, own):
    torch = pytest.importorskip("torch")
    made = getattr(torch.optim, made)
    options = {"learning_rate" if key == "lr" else key: value for key, value in own.items()}
    fused = dataclasses.replace(fused, groups=[NO_DECAY, {"params": "3.weight", **options}])

    def module():
        torch.manual_seed(0)
        nn = torch.nn
        return nn.Sequential(nn.Linear(6, 12), nn.LayerNorm(12), nn.Tanh(), nn.Linear(12, 2))

    loss = torch.nn.CrossEntropyLoss()
    found = trained(fused, model=untorn.torch.TorchModel(module(), loss), params=None, data=(X, Y), seed=3)

    reference = module()
    named = dict(reference.named_parameters())
    none = [name for name in named if name.endswith("bias") or name.startswith("1.")]
    rest = [named[name] for name in named if name not in none and name != "3.weight"]
    groups = [
        {"params": rest},
        {"params": [named[name] for name in none], "weight_decay": 0.0},
        {"params": [named["3.weight"]], **own},
    ]
    if made is torch.optim.Adagrad:  # torch has no initial value for a group
        groups[2].pop("initial_accumulator_value")
    optimizer = made(groups, lr=1e-2, weight_decay=0.1)
    if made is torch.optim.Adagrad:
        optimizer.state[named["3.weight"]]["sum"].fill_(0.25)
    for epoch in range(2):
        order = epoch_order(3, epoch, len(X))
        for batch in np.split(order, range(16, len(X), 16)):
            optimizer.zero_grad()
            loss(reference(torch.from_numpy(X[batch])), torch.from_numpy(Y[batch])).backward()
            optimizer.step()
    for name, parameter in named.items():
        np.testing.assert_allclose(found[name], parameter.detach().numpy(), rtol=2e-4, atol=2e-6, err_msg=name)
