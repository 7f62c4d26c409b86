"""The schedules of untorn.train.schedules: their numbers, against torch's and optax's, and in a training."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest

from untorn import SGD, AdamW, Trainer
from untorn.train.schedules import Cosine, Linear, Stages, Warmup


def of_torch(name, steps, **arguments):
    torch = pytest.importorskip("torch")
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=0.5)
    optimizer._opt_called = True
    schedule, rates = getattr(torch.optim.lr_scheduler, name)(optimizer, **arguments), []
    for _ in range(steps):
        rates.append(schedule.get_last_lr()[0])
        schedule.step()
    return rates


@pytest.mark.parametrize(
    ("schedule", "name", "arguments"),
    [
        (Cosine(0.5, 40), "CosineAnnealingLR", {"T_max": 40}),
        (Cosine(0.5, 40, end=0.125), "CosineAnnealingLR", {"T_max": 40, "eta_min": 0.125}),
        (Linear(0.5, 40, end=0.125), "LinearLR", {"start_factor": 1, "end_factor": 0.25, "total_iters": 40}),
        (Linear(0.125, 30, end=0.5), "LinearLR", {"start_factor": 0.25, "total_iters": 30}),
        (Stages(0.5, [10, 25]), "MultiStepLR", {"milestones": [10, 25]}),
        (Warmup(10, 0.5, start=0.125), "LinearLR", {"start_factor": 0.25, "total_iters": 10}),
    ],
)
def test_they_are_torch_s(schedule, name, arguments):
    assert [schedule(step) for step in range(41)] == pytest.approx(of_torch(name, 41, **arguments), rel=1e-9, abs=1e-12)


def test_a_warm_up_and_a_cosine_are_those_of_optax():
    optax = pytest.importorskip("optax")
    theirs = optax.warmup_cosine_decay_schedule(0.0, 0.5, 10, 50, 0.01)
    ours = Warmup(10, Cosine(0.5, 40, end=0.01))
    np.testing.assert_allclose(
        [ours(step) for step in range(60)], [float(theirs(step)) for step in range(60)], rtol=1e-5, atol=1e-8
    )


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: Cosine("1", 10), TypeError, "Cosine: start: expected a number, found str"),
        (lambda: Cosine(-1, 10), ValueError, "Cosine: start: expected a finite number of at least 0, found -1"),
        (lambda: Linear(1, 0), ValueError, "Linear: steps: expected at least 1, found 0"),
        (lambda: Linear(1, 0.5), TypeError, "Linear: steps: expected a whole number, found float"),
        (lambda: Warmup(5, None), TypeError, "Warmup: then: expected a number, found NoneType"),
        (lambda: Stages(1, 5), TypeError, "Stages: steps: expected a list of steps, found int"),
        (lambda: Stages(1, [5, 3]), ValueError, "Stages: steps: expected whole numbers above 0 in ascending order"),
    ],
)
def test_a_wrong_argument_is_named(make, error, message):
    with pytest.raises(error, match=message):
        make()


def squares(params, batch):
    """Half the mean square of the parameters."""
    return 0.5 * float((params["w"] ** 2).sum()), {"w": params["w"]}


def trained(optimizer, epochs, **arguments):
    with Trainer(squares, {"w": np.ones(3)}, optimizer=optimizer, engine="serial", shards=1) as trainer:
        trainer.fit((np.zeros(8),), epochs=epochs, batch_size=2, **arguments)
        return trainer.params["w"], trainer.learning_rate


@pytest.mark.parametrize("of_torch_optim", [False, True])
def test_it_goes_on_over_calls_of_fit_and_checkpoints(of_torch_optim, tmp_path):
    def optimizer(steps=6):
        schedule = Warmup(2, Cosine(0.5, steps))
        if not of_torch_optim:
            return AdamW(schedule)
        torch = pytest.importorskip("torch")
        return partial(torch.optim.AdamW, lr=schedule)

    whole, rate = trained(optimizer(), 3)
    assert rate == 0
    trained(optimizer(), 1, checkpoint_dir=tmp_path)
    resumed, _ = trained(optimizer(), 3, checkpoint_dir=tmp_path, resume=True)
    assert np.array_equal(whole, resumed)
    with pytest.raises(ValueError, match="steps"):
        trained(optimizer(7), 4, checkpoint_dir=tmp_path, resume=True)


def test_the_rate_of_each_step_is_the_schedule_s():
    w = 1.0
    for step in range(8):
        w -= Stages(0.5, [2, 6], factor=0.5)(step) * w
    assert trained(SGD(Stages(0.5, [2, 6], factor=0.5)), 2)[0].tolist() == [w] * 3
