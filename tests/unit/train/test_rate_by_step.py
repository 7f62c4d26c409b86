"""A learning rate by the step, for optimizers of torch.optim."""

from functools import partial

import numpy as np
import pytest

pytest.importorskip("torch")
import torch
from torch import nn
from torch.optim.lr_scheduler import CosineAnnealingLR, LambdaLR

from untorn import Callback, TorchSchedule, Trainer
from untorn.torch import TorchModel

X = np.random.default_rng(0).normal(size=(64, 4)).astype(np.float32)
Y = (X.sum(1) > 0).astype(np.int64)


def warm_up(step):
    return 0.1 * min(1.0, step / 4)


class Rates(Callback):
    def __init__(self):
        self.seen = []

    def on_batch_end(self, batch, logs):
        self.seen.append(logs["learning_rate"])


def trained(optimizer, epochs=(2,)):
    torch.manual_seed(0)
    rates = Rates()
    with Trainer(
        TorchModel(nn.Linear(4, 2), nn.CrossEntropyLoss()), optimizer=optimizer, engine="serial", shards=1
    ) as t:
        for number in epochs:
            t.fit((X, Y), epochs=number, batch_size=16, shuffle=False, callbacks=[rates])
        return t.params["weight"], rates.seen


def plain(make_schedule, lr):
    torch.manual_seed(0)
    module = nn.Linear(4, 2)
    optimizer = torch.optim.NAdam(module.parameters(), lr=lr)
    schedule = make_schedule(optimizer)
    for start in [*range(0, 64, 16)] * 2:
        optimizer.zero_grad()
        x, y = torch.from_numpy(X[start : start + 16]), torch.from_numpy(Y[start : start + 16])
        nn.functional.cross_entropy(module(x), y).backward()
        optimizer.step()
        schedule.step()
    return module.weight.detach().numpy()


def test_a_function_of_the_step():
    found, rates = trained(partial(torch.optim.NAdam, lr=warm_up))
    assert rates == [warm_up(step) for step in range(8)]
    expected = plain(lambda optimizer: LambdaLR(optimizer, lambda step: min(1.0, step / 4)), 0.1)
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_a_scheduler_of_torch_or_what_makes_one():
    cosine = partial(CosineAnnealingLR, T_max=8)
    expected = plain(cosine, 0.1)
    for schedule in (TorchSchedule(cosine, lr=0.1), TorchSchedule(cosine(torch.optim.SGD([torch.zeros(1)], lr=0.1)))):
        np.testing.assert_allclose(trained(partial(torch.optim.NAdam, lr=schedule))[0], expected, rtol=1e-5)
    with pytest.raises(TypeError, match="needs lr=, the rate that it starts from"):
        TorchSchedule(cosine)


def test_the_schedule_goes_on_over_calls_of_fit():
    _, rates = trained(partial(torch.optim.NAdam, lr=warm_up), epochs=(1, 1))
    assert rates == [warm_up(step) for step in range(8)]


def test_a_function_inside_a_function_names_the_way():
    with pytest.raises(TypeError) as caught:
        trained(lambda parameters: torch.optim.NAdam(parameters, lr=warm_up))
    assert any("functools.partial(torch.optim.NAME, lr=schedule)" in note for note in caught.value.__notes__)


def test_a_schedule_that_returns_no_rate():
    with pytest.raises(ValueError, match=r"learning_rate\(0\) must be finite"):
        trained(partial(torch.optim.NAdam, lr=lambda step: float("nan")))
