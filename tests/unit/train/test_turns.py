"""Losses that take turns: which part a step trains, with which rate, on every engine, over kills, resumes and steps."""

from __future__ import annotations

import os
import signal

import numpy as np
import pytest

import untorn
from untorn import SGD, Adam, Callback, Trainer, Turns
from untorn.train.data.sampler import epoch_order, shard_rng
from untorn.train.schedules import Linear

RNG = np.random.default_rng(11)
DATA = (RNG.normal(size=(40, 3)), RNG.normal(size=40))
PARAMS = {"actor": {"w": RNG.normal(size=3), "b": np.zeros(1)}, "critic": RNG.normal(size=3)}


def critic_loss(params, batch):
    """Mean squared error of the critic. The actor gets a gradient that is no number, which nobody reads."""
    x, y = batch
    error = x @ params["critic"] - y
    return float((error**2).mean()), {
        "actor": {"w": np.full(3, np.nan), "b": np.full(1, np.nan)},
        "critic": x.T @ error / len(x),
    }


def actor_loss(params, batch, rng):
    """Mean squared distance of the actor from the critic, and noise."""
    x, _ = batch
    error = x @ (params["actor"]["w"] - params["critic"]) + params["actor"]["b"] + rng.normal() / 10
    return float((error**2).mean()), {
        "actor": {"w": x.T @ error / len(x), "b": error.mean(keepdims=True)},
        "critic": np.zeros(3),
    }


MODEL = {"critic": critic_loss, "actor": actor_loss}
ORDER = ["critic", "critic", "actor"]


def turns(**others):
    groups = [{"params": "*/b", "weight_decay": 0.0}]
    parts = {"critic": SGD(0.01, momentum=0.9), "actor": Adam(Linear(0.05, 20), weight_decay=0.1, groups=groups)}
    return Turns(**parts | others, order=ORDER)


def trainer(optimizer=None, *, model=None, **settings):
    settings = {"engine": "serial", "shards": 2, "clip_norm": 2.0} | settings
    return Trainer(model or MODEL, PARAMS, optimizer=optimizer or turns(), **settings)


def leaves(params):
    return np.concatenate([params["actor"]["w"], params["actor"]["b"], params["critic"]])


@pytest.fixture(scope="module")
def whole():
    """The weights after four epochs of five steps, which is no multiple of the three turns."""
    with trainer() as made:
        made.fit(DATA, epochs=4, batch_size=8)
        return leaves(made.params)


def test_a_step_trains_its_part_alone_and_each_part_counts_its_own_steps():
    params = {"actor": {"w": PARAMS["actor"]["w"].copy(), "b": np.zeros(1)}, "critic": PARAMS["critic"].copy()}
    velocity, means, squares, count = np.zeros(3), np.zeros(4), np.zeros(4), 0
    with trainer(shards=1, clip_norm=None) as made:
        history = made.fit(DATA, epochs=2, batch_size=8).history
        found = made.params
    losses = {"critic": [], "actor": []}
    for step in range(10):
        order = epoch_order(0, step // 5, 40)
        batch = tuple(part[order[step % 5 * 8 :][:8]] for part in DATA)
        if ORDER[step % 3] == "critic":
            loss, grads = critic_loss(params, batch)
            velocity = 0.9 * velocity + grads["critic"]
            params["critic"] -= 0.01 * velocity
        else:
            loss, grads = actor_loss(params, batch, shard_rng(0, step, 0, 1))
            rate, count = Linear(0.05, 20)(count), count + 1
            weights = np.concatenate([params["actor"]["w"], params["actor"]["b"]])
            gradient = np.concatenate([grads["actor"]["w"], grads["actor"]["b"]]) + [0.1, 0.1, 0.1, 0] * weights
            means, squares = 0.9 * means + 0.1 * gradient, 0.999 * squares + 0.001 * gradient**2
            weights -= rate * (means / (1 - 0.9**count)) / (np.sqrt(squares / (1 - 0.999**count)) + 1e-8)
            params["actor"] = {"w": weights[:3], "b": weights[3:]}
        losses[ORDER[step % 3]].append((step // 5, loss))
    np.testing.assert_allclose(leaves(found), leaves(params), rtol=1e-9)
    for name, expected in losses.items():
        means_of_epochs = [np.mean([loss for epoch, loss in expected if epoch == number]) for number in range(2)]
        assert history[f"{name}_loss"] == pytest.approx(means_of_epochs)


@pytest.mark.parametrize("settings", [{"engine": "processes", "workers": 2}, {"engine": "loopback", "nodes": 2}])
def test_turns_have_the_same_bits_on_every_engine(settings, whole):
    class Kill(Callback):
        """Kills a worker in an epoch. On nodes, whose workers are not this process's, it kills none."""

        def on_epoch_begin(self, epoch, logs):
            if epoch == 1 and self.trainer.pids:
                os.kill(self.trainer.pids[0], signal.SIGKILL)

    with trainer(**{"workers": 1} | settings) as made:
        made.fit(DATA, epochs=4, batch_size=8, callbacks=[Kill()])
        assert np.array_equal(leaves(made.params), whole)


def test_four_calls_of_fit_and_a_resumed_one_go_on_with_the_turn(tmp_path, whole):
    with trainer() as made:
        for _ in range(4):
            made.fit(DATA, epochs=1, batch_size=8)
        assert np.array_equal(leaves(made.params), whole)
    for epochs in (1, 4):
        with trainer() as made:
            made.fit(DATA, epochs=epochs, batch_size=8, checkpoint_dir=tmp_path, resume=True)
            found = leaves(made.params)
    assert np.array_equal(found, whole)
    with (
        trainer(Turns(critic=SGD(0.01, momentum=0.9), actor=Adam(0.05))) as made,
        pytest.raises(ValueError, match=r"optimizer=Turns\(order=\['critic', 'critic', 'actor'\]"),
    ):
        made.fit(DATA, epochs=5, batch_size=8, checkpoint_dir=tmp_path, resume=True)


def test_single_steps_take_turns_with_the_batches_that_they_are_given(whole):
    with trainer() as made:
        for step in range(20):
            order = epoch_order(0, step // 5, 40)
            measured = made.step(tuple(part[order[step % 5 * 8 :][:8]] for part in DATA))
            assert list(measured) == ["loss", "grad_norm", f"{ORDER[step % 3]}_loss"]
        assert np.array_equal(leaves(made.params), whole)


def test_accumulated_parts_are_those_of_one():
    found = []
    for accumulate in (1, 2):
        with trainer(Turns(critic=SGD(0.01), actor=SGD(0.01)), accumulate=accumulate, shards=1) as made:
            made.fit((DATA[0], DATA[1]), epochs=1, batch_size=8)
            found.append(leaves(made.params)[4:])
    np.testing.assert_allclose(*found, rtol=1e-12)


def test_callbacks_and_evaluation_see_the_loss_of_each_turn():
    seen = []

    class Seen(Callback):
        def on_batch_end(self, batch, logs):
            seen.append([name for name in logs if name.endswith("_loss")])
            assert logs[seen[-1][0]] == logs["loss"]

    with trainer() as made:
        history = made.fit(DATA, epochs=1, batch_size=8, validation_data=DATA, callbacks=[Seen()]).history
        found = made.evaluate(DATA)
    assert seen == [[f"{ORDER[step % 3]}_loss"] for step in range(5)]
    assert found["loss"] == pytest.approx((found["critic_loss"] + found["actor_loss"]) / 2)
    assert history["val_critic_loss"] == [found["critic_loss"]]


def test_a_rate_that_is_set_scales_those_of_all_parts():
    with trainer() as made:
        rates = made._state.learning_rate
        before = rates.rates(0, 3).reshape(3, 3, -1)[..., 0]
        np.testing.assert_array_equal(before, [[0.01, np.nan, np.nan]] * 2 + [[np.nan, *[before[2, 1]] * 2]])
        made.learning_rate = 0.02
        np.testing.assert_allclose(rates.rates(0, 3).reshape(3, 3, -1)[..., 0], 2 * before)


def test_a_gan_is_the_plain_loop():
    torch = pytest.importorskip("torch")
    nn, bce = torch.nn, torch.nn.BCEWithLogitsLoss()

    def net_d(gan, batch):
        real, fake = gan.netD(batch[0]), gan.netD(gan.netG(torch.randn(len(batch[0]), 4)))
        return bce(real, torch.ones_like(real)) + bce(fake, torch.zeros_like(fake))

    def net_g(gan, batch):
        fake = gan.netD(gan.netG(torch.randn(len(batch[0]), 4)))
        return bce(fake, torch.ones_like(fake))

    def gan():
        torch.manual_seed(0)
        made = nn.Module()
        made.netG = nn.Sequential(nn.Linear(4, 8, bias=False), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 2))
        made.netD = nn.Sequential(nn.Linear(2, 8), nn.LeakyReLU(0.2), nn.Linear(8, 1))
        return made

    images = RNG.normal(size=(64, 2)).astype(np.float32)
    model = untorn.torch.TorchModel(gan(), None, forward={"netD": net_d, "netG": net_g})
    optimizer = Turns(netD=SGD(0.1, momentum=0.5), netG=SGD(0.2))
    with Trainer(model, optimizer=optimizer, engine="serial", shards=1) as made:
        made.fit((images,), epochs=2, batch_size=16)
        found = made.params
    plain, losses = gan(), (net_d, net_g)
    optimizers = [
        torch.optim.SGD(plain.netD.parameters(), lr=0.1, momentum=0.5),
        torch.optim.SGD(plain.netG.parameters(), lr=0.2),
    ]
    with torch.random.fork_rng(devices=[]):
        for step in range(8):
            batch = epoch_order(0, step // 4, 64)[step % 4 * 16 :][:16]
            torch.manual_seed(int(shard_rng(0, step, 0, 1).integers(2**63)))
            plain.zero_grad()
            losses[step % 2](plain, (torch.from_numpy(images[batch]),)).backward()
            optimizers[step % 2].step()
    for name, tensor in [*plain.named_parameters(), *plain.named_buffers()]:  # BatchNorm's, as its module has run
        np.testing.assert_allclose(found[name], tensor.detach().numpy(), rtol=2e-4, atol=1e-6, err_msg=name)
    with pytest.raises(ValueError, match=r"Turns: parameter netG\.0\.weight is in no part; expected each one in netD"):
        Trainer(model, optimizer=Turns(netD=(["netD", "netG.3"], SGD(0.1))), engine="serial")


def one(params, batch):
    return 0.0, params


def with_metrics(params, batch):
    return 0.0, params, {"accuracy": 1.0}


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (Turns, TypeError, "Turns: expected the optimizer of each part by name"),
        (lambda: Turns(a=0.1), TypeError, "Turns: a: expected untorn.SGD(...), Adam, AdamW, RMSprop or Adagrad, or"),
        (lambda: Turns(a=SGD), TypeError, "found SGD; optimizers of other libraries take no turns"),
        (lambda: Turns(a=("w", SGD(1), 3)), TypeError, "Turns: a: expected (paths, optimizer), found a tuple of 3"),
        (lambda: Turns(a=SGD(1), order=["b"]), ValueError, "Turns: order: expected names of parts, a; found 'b'"),
        (lambda: Turns(a=SGD(1), order="a"), TypeError, "Turns: order: expected a list of names of parts, found str"),
        (lambda: Turns(a=SGD(1), b=SGD(1), order=["a"]), ValueError, "Turns: order: the part b has no turn"),
        (lambda: trainer(SGD(1.0)), TypeError, "expected untorn.Turns(critic=..., actor=...)"),
        (lambda: trainer(model=one), TypeError, "model: expected a loss for each turn, critic, actor, found a single"),
        (lambda: trainer(model={"critic": one}), ValueError, "a loss for each turn, actor, critic, found critic"),
        (lambda: trainer(model={"critic": 3}), TypeError, "model: expected a function loss_and_grad"),
        (lambda: trainer(mode="async", shards=None), ValueError, "optimizer: Turns need mode='sync'"),
        (lambda: trainer(turns(critic=("critc", SGD(1)))), ValueError, "Turns: critic: no parameter that is trained"),
        (lambda: trainer(turns(critic=("*", SGD(1)))), ValueError, "Turns: actor: parameter actor/w matches 'actor'"),
        (
            lambda: trainer(turns(actor=SGD(1, groups=[{"params": "critic", "momentum": 0.5}]))),
            ValueError,
            "groups[0]: no parameter that is trained matches 'critic'; there are actor/w, actor/b",
        ),
    ],
)
def test_a_wrong_argument_is_named(make, error, message):
    with pytest.raises(error) as caught:
        make()
    assert message in str(caught.value)


def test_a_loss_of_a_turn_has_no_metrics():
    with trainer(model=MODEL | {"critic": with_metrics}) as made, pytest.raises(untorn.WorkerError, match="accuracy"):
        made.fit(DATA, epochs=1, batch_size=8)


def test_turns_say_what_they_are():
    assert repr(Turns(a=SGD(0.5))).startswith("Turns(a=(('a',), SGD(learning_rate=0.5")
