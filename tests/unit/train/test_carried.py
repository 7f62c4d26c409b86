"""State that a module carries from step to step, a row per example: on every engine, over kills, resumes and steps."""

from __future__ import annotations

import os
import signal
from functools import partial

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402

from untorn import SGD, Callback, LocalSteps, Trainer  # noqa: E402
from untorn.torch import TorchModel  # noqa: E402

LANES, STEPS, LENGTH = 7, 4, 3
FIRST = np.repeat(np.arange(STEPS) == 0, LANES).astype(np.float32)
SERIES = np.random.default_rng(3).normal(size=(STEPS * LANES, LENGTH + 1, 1)).astype(np.float32)
DATA = (SERIES[:, :-1], FIRST, SERIES[:, 1:])


class Net(nn.Module):
    """An LSTM that goes on where the batch before has ended, unless an example says that it is the first."""

    def __init__(self):
        super().__init__()
        self.rnn, self.out = nn.LSTM(1, 4, batch_first=True), nn.Linear(4, 1)
        self.register_buffer("h", torch.zeros(LANES, 4))
        self.register_buffer("c", torch.zeros(LANES, 4))
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))

    def forward(self, x, first):
        keep = (1 - first)[:, None]
        hidden, (h, c) = self.rnn(x, ((self.h * keep)[None], (self.c * keep)[None]))
        if self.training:
            self.h, self.c = h[0].detach(), c[0].detach()
            self.calls += 1
        return self.out(hidden)


def net():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Net()


def trainer(optimizer=None, *, carried=("h", "c"), **settings):
    settings = {"engine": "serial", "shards": 3} | settings
    return Trainer(TorchModel(net(), nn.MSELoss(), carried=carried), optimizer=optimizer or SGD(0.1), **settings)


def fit(made, epochs=3, **arguments):
    made.fit(DATA, **{"epochs": epochs, "batch_size": LANES, "shuffle": False} | arguments)
    return {name: np.array(value) for name, value in made.params.items()}


def step(batch):
    with trainer() as made:
        made.step(batch)


def same(one, other):
    return all(np.array_equal(one[name], other[name]) for name in one)


@pytest.fixture(scope="module")
def whole():
    with trainer() as made:
        return fit(made)


@pytest.mark.parametrize(
    ("optimizer", "shards"), [(SGD(0.1), 1), (SGD(0.1), 3), (SGD(0.1), 7), (partial(torch.optim.SGD, lr=0.1), 3)]
)
def test_a_plain_loop_has_the_same_state_for_any_number_of_shards(optimizer, shards):
    with trainer(optimizer, shards=shards) as made:
        found = fit(made)
    plain = net()
    theirs = torch.optim.SGD(plain.parameters(), lr=0.1)
    for step in range(3 * STEPS):
        x, first, y = (torch.from_numpy(part[step % STEPS * LANES :][:LANES]) for part in DATA)
        theirs.zero_grad()
        nn.MSELoss()(plain(x, first), y).backward()
        theirs.step()
    for name, tensor in [*plain.named_parameters(), *plain.named_buffers()]:
        np.testing.assert_allclose(found[name], tensor.detach().numpy(), rtol=1e-4, atol=1e-6, err_msg=name)
    assert np.abs(found["h"]).min() > 1e-6


@pytest.mark.parametrize("settings", [{"engine": "processes", "workers": 2}, {"engine": "loopback", "nodes": 2}])
def test_state_has_the_same_bits_on_every_engine(settings, whole):
    class Change(Callback):
        """Kills a worker and resizes in an epoch. Workers of nodes are not this process's."""

        def on_epoch_begin(self, epoch, logs):
            if epoch == 1 and self.trainer.pids:
                os.kill(self.trainer.pids[0], signal.SIGKILL)
                self.trainer.resize(1)

    with trainer(**{"workers": 1} | settings) as made:
        assert same(fit(made, callbacks=[Change()]), whole)


def test_calls_of_fit_resumes_and_single_steps_go_on_with_the_state(tmp_path, whole):
    with trainer() as made:
        for _ in range(2):
            fit(made, epochs=1)
        for step in range(STEPS):
            made.step(tuple(part[step * LANES :][:LANES] for part in DATA))
        assert same({name: np.array(value) for name, value in made.params.items()}, whole)
    for epochs in (1, 3):
        with trainer() as made:
            found = fit(made, epochs, checkpoint_dir=tmp_path, resume=True)
    assert same(found, whole)


def test_what_is_no_step_begins_with_zeros(whole):
    with trainer() as made:
        fit(made)
        x, first, y = DATA
        plain = net().eval()
        plain.load_state_dict({name: torch.from_numpy(value) for name, value in whole.items()})
        plain.h, plain.c = torch.zeros(5, 4), torch.zeros(5, 4)
        with torch.no_grad():
            expected = plain(torch.from_numpy(x[10:15]), torch.from_numpy(first[10:15])).numpy()
        np.testing.assert_allclose(made.predict((x[10:15], first[10:15])), expected, rtol=1e-5, atol=1e-6)
        assert made.evaluate((x[10:15], first[10:15], y[10:15]))["loss"] == pytest.approx(
            float(((expected - y[10:15]) ** 2).mean()), rel=1e-5
        )
        assert same({name: np.array(value) for name, value in made.params.items()}, whole)


@pytest.mark.parametrize(
    ("run", "message"),
    [
        (lambda: trainer(carried=["x"]), "carried: expected names of the module's buffers (h, c, calls), found 'x'"),
        (lambda: trainer(carried=["calls"]), "carried: buffer 'calls': expected a row for each example of a batch"),
        (lambda: trainer(shards=8), "shards: expected at most 7, the rows of the state that is carried, found 8"),
        (lambda: trainer(mode="async", shards=None), "after the one before; found mode='async'"),
        (lambda: trainer(accumulate=2), "after the one before; found accumulate=2"),
        (lambda: trainer(LocalSteps(SGD(0.1), steps=2, groups=3)), "after the one before; found LocalSteps"),
        (lambda: fit(trainer(), shuffle=True), "as the model carries state; expected shuffle=False"),
        (
            lambda: fit(trainer(), batch_size=4),
            "has 7 rows; expected batches of as many examples, found 28 examples in",
        ),
        (lambda: step(tuple(part[:5] for part in DATA)), "found 5 examples in batches of 5"),
    ],
)
def test_what_cannot_be_carried_is_named(run, message):
    with pytest.raises(Exception, match=r"carried|shards|shuffle") as caught:
        run()
    assert message in str(caught.value)


def test_names_are_a_list():
    with pytest.raises(TypeError, match="carried: expected a list of names of buffers, found str"):
        trainer(carried="h")
