"""Argument and result types of a Trainer of a function or of a method."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, assert_type

import numpy as np
from numpy.typing import NDArray

import untorn
from untorn import SGD, Adam, AdamW, Callback, EarlyStopping, Examples, History, Snapshot, Subscriber, Trainer
from untorn.typing import LossAndGrad, ModelLike, OptimizerLike

Array = NDArray[np.float64]
Params = dict[str, Array]


def linear(params: Params, batch: tuple[Array, Array]) -> tuple[float, Params]:
    x, y = batch
    error = x @ params["w"] - y
    return float((error**2).mean()), {"w": 2 * x.T @ error / len(x)}


def with_metrics(params: Params, batch: dict[str, Array]) -> tuple[np.float64, Params, dict[str, float]]:
    return np.float64(0), params, {"accuracy": float(len(batch))}


def with_rng(params: Params, batch: Array, rng: np.random.Generator) -> tuple[np.floating[Any], Params]:
    return rng.normal(size=batch.shape).mean(), params


def with_optional_rng(params: Params, batch: Array, rng: np.random.Generator | None = None) -> tuple[float, Params]:
    return 0.0 if rng is None else rng.normal(), params


def without_gradients(params: Params, batch: Array) -> float:
    return float(batch @ params["w"])


def with_one_parameter(params: Params) -> tuple[float, Params]:
    return 0.0, params


class Linear:
    bias = 0.0

    def loss_and_grad(self, params: Params, batch: tuple[Array, Array]) -> tuple[float, Params]:
        return linear(params, batch)

    def predict(self, params: Params, x: Array) -> Array:
        return x @ params["w"]


class Forgetful:
    def predict(self, params: Params, x: Array) -> Array:
        return x @ params["w"]


class StopAtZero(Callback):
    def on_epoch_end(self, epoch: int, logs: Mapping[str, Any]) -> None:
        assert_type(self.trainer.learning_rate, float)
        self.trainer.stop_training = logs["loss"] < 1e-6
        self.trainer.stop_trainning = True  # refused


def fits(x: Array, y: Array) -> History:
    with Trainer(Linear(), {"w": np.zeros(2)}, optimizer=SGD(0.1), workers=4) as trainer:
        assert_type(trainer, Trainer[Linear])
        assert_type(trainer.model, Linear)
        assert_type(trainer.model.bias, float)
        trainer.model.weights  # refused
        history = trainer.fit((x, y), epochs=5, batch_size=32, callbacks=[StopAtZero(), EarlyStopping(patience=2)])
        assert_type(history, History)
        assert_type(history.history["loss"], list[float])
        assert_type(history.epoch, list[int])
        assert_type(trainer.evaluate((x, y)), dict[str, float])
        assert_type(trainer.subscriber(), Subscriber[Any])
        assert_type(trainer.snapshot(), Snapshot[Any])
        assert_type(trainer.workers, int)
        assert_type(trainer.step + 1, int)
        assert_type(trainer.step((x, y)), dict[str, float])
        trainer.learning_rate = 0.01
        trainer.learning_rate = "small"  # refused
        trainer.fit((x, y), epochs=1, callbacks=[StopAtZero])  # refused
        trainer.fit((x, y))  # refused
        trainer.module()  # refused
        return history


def takes_every_kind_of_function(params: Params) -> None:
    function = Trainer(linear, params, optimizer=Adam())
    assert_type(function.model(params, (params["w"], params["w"])), tuple[float, Params])
    Trainer(with_metrics, params, optimizer=Adam())
    Trainer(with_rng, params, optimizer=AdamW(1e-4), engine="serial")
    Trainer(with_optional_rng, params, optimizer=SGD(lambda step: 0.1 * 0.9**step), workers="auto")
    Trainer(linear, params, optimizer=SGD(0.1), mode="async", max_staleness=2)


def is_refused(params: Params) -> None:
    Trainer("not a model", 3, optimizer="no", workers="many")  # refused
    Trainer("not a model", params, optimizer=SGD(0.1))  # refused
    Trainer(without_gradients, params, optimizer=SGD(0.1))  # refused
    Trainer(with_one_parameter, params, optimizer=SGD(0.1))  # refused
    Trainer(Forgetful(), params, optimizer=SGD(0.1))  # refused
    Trainer(linear, params)  # refused
    Trainer(linear, params, optimizer="no")  # refused
    Trainer(linear, params, optimizer=SGD)  # refused
    Trainer(linear, params, optimizer=SGD(0.1), workers="many")  # refused
    Trainer(linear, params, optimizer=SGD(0.1), engine="threads")  # refused
    Trainer(linear, params, optimizer=SGD(0.1), mode="asynchronous")  # refused
    Trainer(linear, params, optimizer=SGD("fast"))  # refused
    Trainer(linear, params, SGD(0.1))  # refused


def passes_on(model: ModelLike, optimizer: OptimizerLike, params: Params) -> Trainer[ModelLike]:
    return Trainer(model, params, optimizer=optimizer, seed=7)


def narrows(trainer: Trainer[Linear]) -> Trainer[ModelLike]:
    return trainer  # a trainer of a certain model is a trainer of any model


def takes_a_protocol(function: LossAndGrad, trainer: Trainer) -> None:
    assert_type(Trainer(function, {"w": np.zeros(2)}, optimizer=SGD(0.1)).model, LossAndGrad)
    assert_type(trainer, Trainer[Any])
    assert_type(trainer.model, Any)


class Digits:
    def __len__(self) -> int:
        return 10

    def __getitem__(self, index: int) -> tuple[Array, int]:
        return np.zeros(64), index


def stacked(items: list[tuple[Array, int]]) -> tuple[Array, list[int]]:
    return np.stack([x for x, _ in items]), [y for _, y in items]


def of_texts(items: list[str]) -> list[int]:
    return [len(item) for item in items]


def has_examples(trainer: Trainer[Linear]) -> None:
    examples = Examples(Digits(), stacked)
    assert_type(examples, Examples[tuple[Array, int]])
    assert_type(examples[3], tuple[Array, int])
    assert_type(len(examples), int)
    assert_type(Examples([1.0, 2.0]), Examples[float])
    trainer.fit(examples, epochs=3, batch_size=32)
    trainer.fit(batches(), epochs=3, steps_per_epoch=100)
    Examples(3)  # refused
    Examples(Digits(), of_texts)  # refused


def batches() -> Iterator[tuple[Array, Array]]:
    while True:
        yield np.zeros((32, 2)), np.zeros(32)


def gives_itself_to_callbacks(trainer: Trainer[Linear], callback: StopAtZero) -> None:
    callback.set_trainer(trainer)


def schedule(step: int) -> float:
    return 0.1 / (1 + step)


def has_schedules() -> None:
    assert_type(SGD(schedule, momentum=0.9).momentum, float)
    rate: float | Callable[[int], float] = SGD(0.1).learning_rate
    untorn.LearningRateScheduler(lambda epoch, rate: rate * 0.9)
    untorn.ReduceLROnPlateau(mode="lowest")  # refused
    print(rate)
