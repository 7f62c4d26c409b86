"""The learning rate: changes by callbacks, and the values that a trainer accepts."""

from __future__ import annotations

import math
from types import SimpleNamespace

import numpy as np
import pytest

import networks
from untorn.train import SGD, AdamW, Callback, LearningRateScheduler, ReduceLROnPlateau, Trainer, weights_sha256
from untorn.train.optim.learning_rate import LearningRate

DATA = networks.data_of(64, 5)  # 4 steps of 16


def make(learning_rate=0.05, **arguments):
    optimizer = arguments.pop("optimizer", None) or SGD(learning_rate, momentum=0.5)
    arguments = {"engine": "serial", "shards": 2} | arguments
    return Trainer(networks.line, networks.line_params(5), optimizer=optimizer, **arguments)


class Rates(Callback):
    """Keeps the learning rates in the logs."""

    def __init__(self):
        self.steps, self.epochs = [], []

    def on_batch_end(self, batch, logs):
        self.steps.append(logs["learning_rate"])

    def on_epoch_end(self, epoch, logs):
        self.epochs.append(logs["learning_rate"])


# -- LearningRate


def test_a_rate_that_is_set_is_that_number():
    rate = LearningRate(SGD(0.1))
    assert rate.at(7) == 0.1
    rate.set(0.03, step=7)
    assert (rate.at(7), rate.at(1000)) == (0.03, 0.03)
    assert rate.rates(0, 3)[:, 0].tolist() == [0.03] * 3


def test_of_a_schedule_all_later_rates_keep_their_ratio():
    rate = LearningRate(SGD(lambda step: 0.5 / (step + 1)))
    assert rate.at(1) == 0.25
    rate.set(0.125, step=1)
    assert [rate.at(step) for step in range(3)] == [0.25, 0.125, 0.25 / 3]


def test_setting_what_it_is_already_changes_no_bit():
    rate = LearningRate(SGD(lambda step: 0.1 / 3 + step))
    rate.set(rate.at(2), step=2)
    assert rate.override is None


def test_the_other_numbers_of_an_optimizer_follow_the_rate():
    rate = LearningRate(AdamW(0.1, weight_decay=0.5))
    rate.set(0.02, step=0)
    np.testing.assert_array_equal(rate.rates(3, 5), AdamW(0.02, weight_decay=0.5).rates(3, 5))


def test_zero_is_a_rate():
    with make() as trainer:
        trainer.learning_rate = 0
        trainer.fit(DATA, epochs=1, batch_size=16)
        assert weights_sha256(trainer.params) == weights_sha256(networks.line_params(5))


@pytest.mark.parametrize(
    ("wrong", "error"), [(-0.1, ValueError), (math.nan, ValueError), (math.inf, ValueError), ("1", TypeError)]
)
def test_a_wrong_rate_is_named(wrong, error):
    with make() as trainer, pytest.raises(error, match="learning_rate: expected a"):
        trainer.learning_rate = wrong


def test_no_factor_lifts_a_schedule_from_zero():
    with make(lambda step: 0.0) as trainer, pytest.raises(ValueError, match="gives 0 at step 0"):
        trainer.learning_rate = 0.1


# -- LearningRateScheduler


def test_the_scheduler_gets_epoch_and_rate_and_sets_the_epochs_rate():
    asked, rates = [], Rates()

    def halve(epoch, rate):
        asked.append((epoch, rate))
        return rate / 2

    with make(0.5) as trainer:
        trainer.fit(DATA, epochs=3, batch_size=32, callbacks=[LearningRateScheduler(halve), rates])
        assert trainer.learning_rate == 0.0625
    assert asked == [(0, 0.5), (1, 0.25), (2, 0.125)]
    assert rates.epochs == [0.25, 0.125, 0.0625]
    assert rates.steps == [0.25, 0.25, 0.125, 0.125, 0.0625, 0.0625]


@pytest.mark.parametrize("engine", ["serial", "processes"])
def test_it_trains_as_an_optimizer_with_that_schedule(engine):
    with make(lambda step: 0.05 / (1 + step // 4)) as trainer:
        trainer.fit(DATA, epochs=3, batch_size=16)
        expected = weights_sha256(trainer.params)
    with make(0.05, engine=engine, workers=2) as trainer:
        schedule = LearningRateScheduler(lambda epoch, rate: 0.05 / (1 + epoch))
        trainer.fit(DATA, epochs=3, batch_size=16, callbacks=[schedule])
        assert weights_sha256(trainer.params) == expected


@pytest.mark.parametrize(("answer", "error"), [(None, TypeError), (True, TypeError), (-1, ValueError)])
def test_a_wrong_answer_of_the_schedule_ends_training(answer, error):
    with make() as trainer, pytest.raises(error, match=r"schedule\(0, ...\) must"):
        trainer.fit(DATA, epochs=1, batch_size=16, callbacks=[LearningRateScheduler(lambda epoch, rate: answer)])


def test_the_scheduler_says_what_it_does(capsys):
    scheduler = LearningRateScheduler(lambda epoch, rate: 0.25, verbose=1)
    scheduler.set_trainer(SimpleNamespace(learning_rate=1.0))
    scheduler.on_epoch_begin(4, {})
    assert capsys.readouterr().err == "epoch 5: learning rate 0.25\n"


# -- ReduceLROnPlateau


def rates_after(lower: ReduceLROnPlateau, values, rate=1.0) -> list[float]:
    """Return the learning rate after each epoch with these values of the metric."""
    lower.set_trainer(SimpleNamespace(learning_rate=rate))
    lower.on_train_begin({})
    found = []
    for epoch, value in enumerate(values):
        lower.on_epoch_end(epoch, {lower.monitor: value})
        found.append(lower.trainer.learning_rate)
    return found


@pytest.mark.parametrize(
    ("arguments", "values", "expected"),
    [
        ({"patience": 2}, [3, 3, 3, 3, 3], [1, 1, 0.5, 0.5, 0.25]),
        ({"patience": 0}, [3, 3, 2, 2], [1, 0.5, 0.5, 0.25]),
        ({"patience": 1, "min_lr": 0.3}, [3, 3, 3, 3], [1, 0.5, 0.3, 0.3]),
        ({"patience": 1, "cooldown": 2}, [3, 3, 3, 3, 3], [1, 0.5, 0.5, 0.25, 0.25]),
        ({"patience": 1, "min_delta": 0.5}, [3, 2.75, 2], [1, 0.5, 0.5]),
        ({"patience": 2}, [3, math.nan, math.nan], [1, 1, 0.5]),
        ({"patience": 1, "monitor": "val_accuracy"}, [0.5, 0.75, 0.75], [1, 1, 0.5]),
        ({"patience": 1, "mode": "max"}, [3, 4, 2], [1, 1, 0.5]),
    ],
)
def test_plateaus(arguments, values, expected):
    assert rates_after(ReduceLROnPlateau(factor=0.5, **arguments), values) == expected


def test_the_best_value_is_forgotten_between_trainings():
    lower = ReduceLROnPlateau(factor=0.5, patience=1)
    rates_after(lower, [1, 2])
    assert rates_after(lower, [9, 8, 7]) == [1, 1, 1]


def test_its_state_goes_on_counting():
    values = [3, 3, 3, 2, 2, 2, 2, 2]
    whole = rates_after(ReduceLROnPlateau(factor=0.5, patience=2, cooldown=1), values)
    for cut in range(len(values)):
        first = ReduceLROnPlateau(factor=0.5, patience=2, cooldown=1)
        rate = [1.0, *rates_after(first, values[:cut])][-1]
        second = ReduceLROnPlateau(factor=0.5, patience=2, cooldown=1)
        second.set_trainer(SimpleNamespace(learning_rate=rate))
        second.on_train_begin({})
        second.load_state_dict(first.state_dict())
        for epoch in range(cut, len(values)):
            second.on_epoch_end(epoch, {"val_loss": values[epoch]})
            assert second.trainer.learning_rate == whole[epoch]


def test_it_lowers_a_schedule_as_a_whole():
    rates = Rates()
    lower = ReduceLROnPlateau("loss", factor=0.5, patience=1, min_delta=1e9)
    with make(lambda step: 1e-3 * (step + 1)) as trainer:
        trainer.fit(DATA, epochs=3, batch_size=32, callbacks=[lower, rates])
    assert rates.steps == pytest.approx([1e-3, 2e-3, 3e-3, 4e-3, 2.5e-3, 3e-3], rel=1e-12)


def test_a_missing_metric_names_those_there_are():
    lower = ReduceLROnPlateau()
    with pytest.raises(ValueError, match=r"ReduceLROnPlateau.*'val_loss'.*loss, accuracy.*validation_data"):
        lower.on_epoch_end(0, {"loss": 1.0, "accuracy": 0.5})


@pytest.mark.parametrize(
    "wrong",
    [{"factor": 1.0}, {"factor": 0}, {"patience": -1}, {"patience": 1.5}, {"cooldown": -1}, {"min_lr": -1},
     {"min_delta": math.inf}, {"mode": "less"}],
)  # fmt: skip
def test_wrong_arguments(wrong):
    with pytest.raises((ValueError, TypeError), match=f"ReduceLROnPlateau: {next(iter(wrong))}="):
        ReduceLROnPlateau(**wrong)


def test_it_says_what_it_does(capsys):
    rates_after(ReduceLROnPlateau(factor=0.5, patience=1, verbose=1), [1, 1])
    assert capsys.readouterr().err == "epoch 2: learning rate lowered from 1 to 0.5\n"


def test_a_schedule_is_a_function():
    with pytest.raises(TypeError, match=r"LearningRateScheduler: schedule: expected a function .* found 0\.1"):
        LearningRateScheduler(0.1)


def test_a_rate_may_be_a_number_of_numpy():
    with make(np.float32(0.25)) as trainer:
        trainer.fit(DATA, epochs=1, batch_size=16)
        expected = weights_sha256(trainer.params)
    with make(0.25) as trainer:
        trainer.fit(DATA, epochs=1, batch_size=16)
        assert weights_sha256(trainer.params) == expected
