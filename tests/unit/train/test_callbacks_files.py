"""The callbacks that write files: CSVLogger, TensorBoard, ModelCheckpoint."""

from __future__ import annotations

import math
import sys
from types import SimpleNamespace

import numpy as np
import pytest

import networks
from untorn.train import SGD, CSVLogger, ModelCheckpoint, TensorBoard, Trainer, weights_sha256

DATA = networks.data_of(64, 5)  # 4 steps of 16


def make():
    return Trainer(networks.line, networks.line_params(5), optimizer=SGD(0.05), engine="serial", shards=2)


def run(callback, *epochs, begin=0, state=None):
    """Call the callback as a training does whose epochs have these logs."""
    callback.on_train_begin({})
    if state is not None:
        callback.load_state_dict(state)
    for epoch, logs in enumerate(epochs, begin):
        callback.on_epoch_end(epoch, logs)
    callback.on_train_end({})


# -- CSVLogger


def test_a_line_per_epoch(tmp_path):
    path = tmp_path / "new" / "log.csv"
    run(CSVLogger(path), {"loss": 2.5, "val_loss": 3.0}, {"loss": 0.1, "val_loss": math.nan})
    assert path.read_text().splitlines() == ["epoch,loss,val_loss", "0,2.5,3.0", "1,0.1,nan"]


def test_a_line_is_there_when_its_epoch_is_over(tmp_path):
    log = CSVLogger(tmp_path / "log.csv")
    log.on_train_begin({})
    for epoch in range(3):
        log.on_epoch_end(epoch, {"loss": 1.0})
        assert len((tmp_path / "log.csv").read_text().splitlines()) == 2 + epoch


def test_a_separator(tmp_path):
    run(CSVLogger(tmp_path / "log", separator="\t"), {"loss": 1.5})
    assert (tmp_path / "log").read_text().splitlines() == ["epoch\tloss", "0\t1.5"]
    with pytest.raises(ValueError, match="separator=';;'"):
        CSVLogger(tmp_path / "log", separator=";;")


def test_a_second_training_replaces_the_file_or_appends(tmp_path):
    path = tmp_path / "log.csv"
    log = CSVLogger(path)
    run(log, {"loss": 1.0})
    run(log, {"loss": 2.0})
    assert path.read_text().splitlines() == ["epoch,loss", "0,2.0"]
    run(CSVLogger(path, append=True), {"accuracy": 0.5, "loss": 3.0}, {}, begin=1)
    assert path.read_text().splitlines() == ["epoch,loss", "0,2.0", "1,3.0", "2,NA"]


def test_it_does_not_append_to_what_it_did_not_write(tmp_path):
    path = tmp_path / "log.csv"
    path.write_text("a;b\n1;2\n")
    with pytest.raises(ValueError, match=r"log.csv: expected a first line that begins with 'epoch', found \['a;b'\]"):
        run(CSVLogger(path, append=True), {"loss": 1.0})
    assert path.read_text() == "a;b\n1;2\n"


@pytest.mark.parametrize("append", [False, True])
@pytest.mark.parametrize("cut", [0, 1, 2])
def test_a_resumed_training_goes_on_where_its_checkpoint_was_made(tmp_path, append, cut):
    path = tmp_path / "log.csv"
    if append:
        path.write_text("epoch,loss\n7,7.0\n")
    log, epochs = CSVLogger(path, append=append), [{"loss": float(epoch)} for epoch in range(4)]
    log.on_train_begin({})
    for epoch in range(cut):
        log.on_epoch_end(epoch, epochs[epoch])
    state = log.state_dict()
    for epoch in range(cut, 3):  # these are lost
        log.on_epoch_end(epoch, {"loss": -1.0})
    run(CSVLogger(path, append=append), *epochs[cut:], begin=cut, state=state)
    lines = ["epoch,loss", *(["7,7.0"] if append else []), "0,0.0", "1,1.0", "2,2.0", "3,3.0"]
    assert path.read_text().splitlines() == lines


# -- TensorBoard


def events(directory):
    """Return {tag: [(step, value)]} from an event file."""
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    found = accumulator.EventAccumulator(str(directory)).Reload()
    return {tag: [(e.step, round(e.value, 6)) for e in found.Scalars(tag)] for tag in found.Tags()["scalars"]}


def test_epochs_for_tensorboard(tmp_path):
    pytest.importorskip("tensorboard")
    with make() as trainer:
        history = trainer.fit(
            DATA, epochs=2, batch_size=16, validation_data=DATA, callbacks=[TensorBoard(tmp_path / "logs")]
        )
    train, validation = events(tmp_path / "logs" / "train"), events(tmp_path / "logs" / "validation")
    assert set(train) == {"epoch_loss", "epoch_learning_rate", "epoch_examples_per_s", "epoch_seconds"}
    assert [step for step, _ in train["epoch_loss"]] == [0, 1]
    np.testing.assert_allclose([loss for _, loss in train["epoch_loss"]], history.history["loss"], rtol=1e-5)
    assert train["epoch_learning_rate"] == [(0, 0.05), (1, 0.05)]
    assert set(validation) == {"epoch_loss"}
    np.testing.assert_allclose([loss for _, loss in validation["epoch_loss"]], history.history["val_loss"], rtol=1e-5)


@pytest.mark.parametrize(("update_freq", "steps"), [("batch", list(range(8))), (3, [0, 3, 6]), ("epoch", [])])
def test_steps_for_tensorboard(tmp_path, update_freq, steps):
    pytest.importorskip("tensorboard")
    with make() as trainer:
        trainer.fit(DATA, epochs=2, batch_size=16, callbacks=[TensorBoard(tmp_path, update_freq=update_freq)])
    found = events(tmp_path / "train")
    assert [step for step, _ in found.get("batch_loss", [])] == steps
    assert ("batch_learning_rate" in found) == bool(steps)
    assert not (tmp_path / "validation").exists()


@pytest.mark.parametrize("wrong", ["step", 0, 1.5, True])
def test_a_wrong_update_freq(wrong):
    with pytest.raises((ValueError, TypeError), match="TensorBoard: update_freq="):
        TensorBoard(update_freq=wrong)


def test_without_tensorboard_training_does_not_begin(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboard.summary.writer.event_file_writer", None)
    with make() as trainer:
        with pytest.raises(ImportError, match=r"pip install 'untorn\[tensorboard\]'"):
            trainer.fit(DATA, epochs=1, batch_size=16, callbacks=[TensorBoard(tmp_path)])
        assert trainer.step == 0


# -- ModelCheckpoint


class SavingTrainer(SimpleNamespace):
    """Records the calls of save."""

    def save(self, path):
        path.write_text(str(self.step))


def saved(tmp_path, values, name="{epoch}", **arguments):
    """Return the files and their steps after epochs of 4 steps with these values of val_loss."""
    pytest.importorskip("safetensors")
    callback = ModelCheckpoint(tmp_path / name, **arguments)
    callback.set_trainer(SavingTrainer(step=0))
    callback.on_train_begin({})
    for epoch, value in enumerate(values):
        callback.trainer.step += 4
        callback.on_epoch_end(epoch, {"loss": 1.0, "val_loss": value})
    return {str(path.relative_to(tmp_path)): path.read_text() for path in tmp_path.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({}, {"1": "4", "2": "8", "3": "12"}),
        ({"name": "last"}, {"last": "12"}),
        ({"name": "a/{epoch:02d}-{val_loss:.1f}"}, {"a/01-3.0": "4", "a/02-4.0": "8", "a/03-2.0": "12"}),
        ({"save_best_only": True}, {"1": "4", "3": "12"}),
        ({"save_best_only": True, "mode": "max"}, {"1": "4", "2": "8"}),
        ({"save_best_only": True, "initial_value_threshold": 2.5}, {"3": "12"}),
        ({"save_freq": 8}, {"2": "8"}),
        ({"save_freq": 5}, {"2": "8"}),
        ({"save_freq": 1}, {"1": "4", "2": "8", "3": "12"}),
    ],
)
def test_what_is_saved(tmp_path, arguments, expected):
    assert saved(tmp_path, [3.0, 4.0, 2.0], **arguments) == expected


def test_nan_is_never_the_best(tmp_path):
    assert saved(tmp_path, [math.nan, 2.0, math.nan], save_best_only=True) == {"2": "8"}


def test_a_name_that_is_not_in_the_logs(tmp_path):
    with pytest.raises(ValueError, match=r"'accuracy' is not in the logs; expected one of epoch, loss, val_loss"):
        saved(tmp_path, [1.0], name="{accuracy}")
    with pytest.raises(ValueError, match=r"ModelCheckpoint\(monitor='f1'\).*expected one of loss, val_loss"):
        saved(tmp_path, [1.0], monitor="f1", save_best_only=True)


@pytest.mark.parametrize("wrong", [{"mode": "best"}, {"save_freq": "batch"}, {"save_freq": 0}])
def test_wrong_arguments(wrong):
    with pytest.raises(ValueError, match=f"ModelCheckpoint: {next(iter(wrong))}="):
        ModelCheckpoint("file", **wrong)


def test_it_says_what_it_saved(tmp_path, capsys):
    saved(tmp_path, [2.0, 3.0], name="best", save_best_only=True, verbose=1)
    assert capsys.readouterr().err == f"epoch 1: saved {tmp_path}/best: val_loss 2 is the best so far\n"


def test_a_file_goes_on_in_another_trainer(tmp_path):
    pytest.importorskip("safetensors")
    path = tmp_path / "best.safetensors"
    best = ModelCheckpoint(path, "loss", save_best_only=True)
    with make() as trainer:
        trainer.fit(DATA, epochs=3, batch_size=16, callbacks=[best])
        expected = weights_sha256(trainer.params)
    with make() as trainer:
        trainer.load(path)
        assert (trainer.epoch, trainer.step) == (3, 12)
        assert weights_sha256(trainer.params) == expected
    assert best.last_path == str(path)


def test_weights_alone(tmp_path):
    numpy = pytest.importorskip("safetensors.numpy")
    with make() as trainer:
        only = ModelCheckpoint(tmp_path / "weights.safetensors", save_weights_only=True)
        trainer.fit(DATA, epochs=1, batch_size=16, callbacks=[only])
        found = numpy.load_file(tmp_path / "weights.safetensors")
        for weight in ("w", "b"):
            np.testing.assert_array_equal(found[weight], trainer.params[weight])
    assert [path.name for path in tmp_path.iterdir()] == ["weights.safetensors"]


def test_the_best_value_survives_being_resumed(tmp_path):
    pytest.importorskip("safetensors")
    first = ModelCheckpoint(tmp_path / "best", save_best_only=True)
    first.best, first.last_path = 0.5, "best"
    second = ModelCheckpoint(tmp_path / "best", save_best_only=True)
    second.set_trainer(SavingTrainer(step=4))
    second.on_train_begin({})
    second.load_state_dict(first.state_dict())
    second.on_epoch_end(1, {"val_loss": 0.75})
    assert not (tmp_path / "best").exists()
    assert (second.best, second.last_path) == (0.5, "best")
