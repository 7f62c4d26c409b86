"""Callbacks in a training: calls after errors, and state that survives resuming."""

from __future__ import annotations

import math

import numpy as np
import pytest

import networks
from untorn.engines import SerialEngine
from untorn.errors import NonFiniteLossError
from untorn.share.lowlevel import extra
from untorn.train import (
    SGD,
    Callback,
    EarlyStopping,
    LearningRateScheduler,
    ReduceLROnPlateau,
    TerminateOnNaN,
    Trainer,
    weights_sha256,
)
from untorn.train.checkpoints.saver import Saver

DATA = networks.data_of(64, 5)  # 4 steps of 16
ENGINES = pytest.mark.parametrize("engine", ["serial", "processes"])


def make(learning_rate=0.05, model=networks.line, **arguments):
    arguments = {"engine": "serial", "shards": 2, "workers": 2} | arguments
    return Trainer(model, networks.line_params(5), optimizer=SGD(learning_rate, momentum=0.5), **arguments)


def fit(trainer, epochs, *callbacks, **arguments):
    return trainer.fit(DATA, epochs=epochs, batch_size=16, callbacks=callbacks, **arguments)


class Weights(Callback):
    """The digest of the weights after each epoch."""

    def __init__(self):
        self.digests = []

    def on_epoch_end(self, epoch, logs):
        self.digests.append(weights_sha256(self.trainer.params))


class Told(Callback):
    """Raises in the given methods, and records all calls."""

    def __init__(self, raises=(), quiet=False):
        self.raises, self.quiet, self.calls, self.ended_with = raises, quiet, [], None

    def _called(self, name):
        self.calls.append(name)
        if name in self.raises:
            raise LookupError(name)

    def on_train_begin(self, logs):
        self._called("train_begin")

    def on_epoch_begin(self, epoch, logs):
        self._called("epoch_begin")

    def on_batch_end(self, batch, logs):
        self._called("batch_end")

    def on_epoch_end(self, epoch, logs):
        self._called("epoch_end")

    def on_error(self, error):
        self._called("error")
        return self.quiet

    def on_train_end(self, logs):
        self.ended_with = logs.get("error")
        self._called("train_end")


# -- errors


@ENGINES
@pytest.mark.parametrize("place", ["epoch_begin", "batch_end", "epoch_end"])
def test_an_error_ends_training_for_all_and_is_the_one_that_is_raised(engine, place):
    failing, other = Told([place]), Told()
    with make(engine=engine) as trainer:
        with pytest.raises(LookupError, match=place) as caught:
            fit(trainer, 3, other, failing)
        for each in (failing, other):
            assert each.calls[-2:] == ["error", "train_end"]
            assert each.ended_with is caught.value
        assert len(fit(trainer, 1)) == 1  # the trainer continues


def test_an_error_in_on_train_begin_ends_those_that_had_begun():
    first, failing, last = Told(), Told(["train_begin"]), Told()
    with make() as trainer, pytest.raises(LookupError, match="train_begin"):
        fit(trainer, 1, first, failing, last)
    assert first.calls == ["train_begin", "error", "train_end"]
    assert failing.calls == ["train_begin"]
    assert last.calls == []


def test_errors_on_top_of_an_error_are_in_its_notes():
    with make() as trainer, pytest.raises(LookupError, match="epoch_end") as caught:
        fit(trainer, 1, Told(["epoch_end", "error", "train_end"]), Told(["train_end"]))
    assert [note.rpartition(" ")[2] for note in caught.value.__notes__] == ["error", "train_end", "train_end"]


def test_an_error_in_on_train_end_does_not_keep_the_others_from_it():
    failing, other = Told(["train_end"]), Told()
    with make() as trainer, pytest.raises(LookupError, match="train_end"):
        fit(trainer, 1, failing, other)
    assert other.calls[-1] == "train_end"
    assert other.ended_with is None


def test_ctrl_c_is_an_error_too():
    class Interrupted(Callback):
        def on_epoch_end(self, epoch, logs):
            raise KeyboardInterrupt

    other = Told()
    with make() as trainer, pytest.raises(KeyboardInterrupt):
        fit(trainer, 3, Interrupted(), other)
    assert isinstance(other.ended_with, KeyboardInterrupt)


def test_a_callback_may_end_training_quietly():
    quiet = Told(["epoch_end"], quiet=True)
    with make() as trainer:
        assert fit(trainer, 3, quiet).epoch == [0]
    assert quiet.calls[-2:] == ["error", "train_end"]
    assert quiet.ended_with is None


# -- TerminateOnNaN


def bad_example(at):
    x, y = DATA[0].copy(), DATA[1].copy()
    x[at] = math.nan
    return x, y


@ENGINES
def test_a_loss_that_is_no_number_ends_training_quietly(engine):
    safely, other = TerminateOnNaN(), Told()
    with make(engine=engine) as trainer:
        with pytest.raises(NonFiniteLossError):
            trainer.fit(bad_example(3), epochs=3, batch_size=16)
        expected = weights_sha256(trainer.params)
    with make(engine=engine) as trainer:
        history = trainer.fit(bad_example(3), epochs=3, batch_size=16, callbacks=[safely, other])
        assert weights_sha256(trainer.params) == expected
        assert np.isfinite(trainer.params["w"]).all()
        assert trainer.stop_training
    assert len(history) == 0
    assert "epoch 0" in str(safely.error)
    assert other.ended_with is None


def test_other_errors_are_raised():
    safely = TerminateOnNaN()
    with make() as trainer, pytest.raises(LookupError):
        fit(trainer, 1, safely, Told(["epoch_end"]))
    assert safely.error is None


# -- setting the weights


@ENGINES
def test_weights_can_be_set_between_two_fits(engine):
    with make(engine=engine) as trainer:
        fit(trainer, 1)
        trainer.params = {"w": np.full(5, 2.0), "b": np.zeros(())}
        np.testing.assert_array_equal(trainer.params["w"], np.full(5, 2.0))
        momentum = extra(trainer.snapshot())["momentum"]["w"]
        assert np.any(momentum != 0)  # it stays
        assert np.isfinite(fit(trainer, 1).history["loss"]).all()


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"w": np.zeros(4), "b": np.zeros(())}, r"w: expected float64 of shape \(5,\), found float64 of shape \(4,\)"),
        ({"w": np.zeros(5, np.float32), "b": np.zeros(())}, "w: expected float64 .* found float32"),
        ({"w": np.zeros(5)}, "the new weights lack b, which this trainer has"),
        ({"w": np.zeros(5), "b": np.zeros(()), "c": np.zeros(1)}, "the new weights have c, which this trainer lacks"),
    ],
)
def test_other_trees_are_refused(value, message):
    with make() as trainer:
        with pytest.raises(ValueError, match=message):
            trainer.params = value
        assert weights_sha256(trainer.params) == weights_sha256(networks.line_params(5))


@pytest.mark.parametrize("place", ["on_epoch_begin", "on_batch_end", "on_epoch_end"])
def test_weights_cannot_be_set_while_workers_work(place):
    class Setting(Callback):
        pass

    setattr(Setting, place, lambda self, number, logs: setattr(self.trainer, "params", self.trainer.params))
    with make() as trainer, pytest.raises(RuntimeError, match="on_train_end"):
        fit(trainer, 1, Setting())


# -- EarlyStopping in a training


def diverging(epoch, rate):
    """A metric that improves for two epochs and then gets worse."""
    return 0.05 if epoch < 2 else 0.9


@ENGINES
def test_the_best_weights_come_back(engine):
    weights = Weights()
    stop = EarlyStopping("loss", patience=2, restore_best_weights=True)
    with make(engine=engine) as trainer:
        history = fit(trainer, 20, LearningRateScheduler(diverging), weights, stop)
        losses = history.history["loss"]
        assert stop.best_epoch == int(np.argmin(losses)) == len(losses) - 3
        assert weights_sha256(trainer.params) == weights.digests[stop.best_epoch]
        trainer.learning_rate = 0.01
        assert np.isfinite(fit(trainer, 1).history["loss"]).all()


def test_after_an_error_the_weights_stay():
    stop = EarlyStopping("loss", restore_best_weights=True)
    with make() as trainer:
        with pytest.raises(LookupError):
            fit(trainer, 2, stop, Told(["batch_end"]))
        assert trainer.snapshot().version > 1


def test_a_quiet_end_brings_the_best_weights_back():
    stop, weights = EarlyStopping("loss", restore_best_weights=True), Weights()
    with make() as trainer:
        fit(trainer, 2, weights, stop, Told(["epoch_end"], quiet=True))
        assert weights_sha256(trainer.params) == weights.digests[0]


# -- resuming


def resumable():
    return [
        LearningRateScheduler(lambda epoch, rate: rate * 0.9 if epoch else rate),
        ReduceLROnPlateau("loss", factor=0.5, patience=1, min_delta=0.1),
        EarlyStopping("loss", patience=100, restore_best_weights=True),
    ]


@pytest.mark.parametrize("stopped_after", [1, 3, 5])
def test_resuming_gives_the_bits_of_never_having_stopped(tmp_path, stopped_after):
    pytest.importorskip("safetensors")
    with make(0.3) as trainer:
        whole = fit(trainer, 6, *resumable())
        expected, rate = weights_sha256(trainer.params), trainer.learning_rate
    with make(0.3) as trainer, pytest.raises(LookupError):

        class Killed(Callback):
            def on_epoch_begin(self, epoch, logs):
                if epoch == stopped_after:
                    raise LookupError

        fit(trainer, 6, *resumable(), Killed(), checkpoint_dir=tmp_path)
    with make(0.3) as trainer:
        history = fit(trainer, 6, *resumable(), checkpoint_dir=tmp_path, resume=True)
        assert weights_sha256(trainer.params) == expected
        assert trainer.learning_rate == rate
    assert history.history == whole.history


@pytest.mark.parametrize("step", [1, 4, 6, 11])
def test_resuming_inside_an_epoch_keeps_its_rate(tmp_path, monkeypatch, step):
    pytest.importorskip("safetensors")
    advance, due = SerialEngine.advance, Saver.due
    monkeypatch.setattr(SerialEngine, "advance", lambda self, until: advance(self, min(until, self._board.step + 1)))
    monkeypatch.setattr(Saver, "due", lambda self: self.finish() or due(self))
    with make(lambda step: 0.1 / (1 + step)) as trainer:
        fit(trainer, 3, *resumable())
        expected, rate = weights_sha256(trainer.params), trainer.learning_rate
    with make(lambda step: 0.1 / (1 + step)) as trainer:
        fit(trainer, 3, *resumable(), checkpoint_dir=tmp_path, checkpoint_every_s=0, keep=100)
    for path in tmp_path.glob("step-*"):
        if int(path.stem.removeprefix("step-")) > step:
            path.unlink()
    with make(lambda step: 0.1 / (1 + step)) as trainer:
        fit(trainer, 3, *resumable(), checkpoint_dir=tmp_path, checkpoint_every_s=None, resume=True)
        assert weights_sha256(trainer.params) == expected
        assert trainer.learning_rate == rate
