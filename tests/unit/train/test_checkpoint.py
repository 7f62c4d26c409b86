"""Checkpoints: the contents of the file, refused files, and bit-identical weights after resuming."""

from __future__ import annotations

import ctypes
import errno
import itertools
import math
import os
import select
import shutil
import signal
import stat
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("safetensors")
from safetensors.numpy import load_file, save_file

import helpers
import networks
from untorn.engines import SerialEngine
from untorn.errors import BusyError, FormatError, WorkerError
from untorn.share.lowlevel import extra
from untorn.train import (
    SGD,
    Adagrad,
    Adam,
    AdamW,
    Callback,
    EarlyStopping,
    RMSprop,
    Trainer,
    weights_sha256,
)
from untorn.train.checkpoints import checkpoint
from untorn.train.checkpoints.saver import Saver, steps_to_keep
from untorn.train.run.evaluation import Evaluator

DATA = networks.classes_of(70, 6, 3, seed=4)  # 5 batches of 16, of which the last has 6
HELD_OUT = networks.classes_of(30, 6, 3, seed=5)
STEPS = 5


def make(model=networks.mlp_with_dropout, **arguments):
    arguments = {"optimizer": SGD(0.1, momentum=0.9), "shards": 3, "seed": 8, "engine": "serial"} | arguments
    return Trainer(model, networks.mlp_params((6, 8, 3)), **arguments)


def fit(trainer, epochs, directory=None, **arguments):
    arguments = {"validation_data": HELD_OUT, "checkpoint_every_s": None} | arguments
    return trainer.fit(DATA, epochs=epochs, batch_size=16, checkpoint_dir=directory, **arguments)


@pytest.fixture(scope="module")
def unstopped():
    """Return (digest of the weights, digest of the momentum, history) after three epochs in one call of fit."""
    with make() as trainer:
        history = fit(trainer, 3)
        with trainer.snapshot() as snapshot:
            return weights_sha256(snapshot.value), weights_sha256(extra(snapshot)), history


def check_is_unstopped(trainer, history, unstopped):
    with trainer.snapshot() as snapshot:
        assert weights_sha256(snapshot.value) == unstopped[0]
        assert weights_sha256(extra(snapshot)) == unstopped[1]
    assert (trainer.step, trainer.epoch) == (3 * STEPS, 3)
    assert (history.epoch, history.history) == (unstopped[2].epoch, unstopped[2].history)  # every bit


def save_every_step(patch) -> None:
    """Make the serial engine write a checkpoint after each step with checkpoint_every_s=0, and skip none."""
    one_at_a_time(patch)
    due = Saver.due
    patch.setattr(Saver, "due", lambda self: self.finish() or due(self))


def one_at_a_time(patch) -> None:
    """Advance the serial engine one step at a time."""
    advance = SerialEngine.advance
    patch.setattr(SerialEngine, "advance", lambda self, until: advance(self, min(until, self._board.step + 1)))


@pytest.fixture(scope="module")
def every_step(tmp_path_factory):
    """Return a directory with a checkpoint of every step of three epochs."""
    directory = tmp_path_factory.mktemp("every-step")
    with pytest.MonkeyPatch.context() as patch, make() as trainer:
        save_every_step(patch)
        fit(trainer, 3, directory, checkpoint_every_s=0, keep=100)
    assert steps_in(directory) == list(range(1, 3 * STEPS + 1))
    return directory


def file_of(step: int) -> str:
    return f"step-{step:012}.safetensors"


def steps_in(directory: Path) -> list[int]:
    """Return the steps of the checkpoints; fail if the directory has other files."""
    return sorted(int(path.name.removeprefix("step-").removesuffix(".safetensors")) for path in directory.iterdir())


# -- the same bits


@pytest.mark.parametrize("step", range(1, 3 * STEPS + 1))
def test_resuming_at_any_step_gives_the_bits_of_never_having_stopped(step, every_step, unstopped, tmp_path):
    shutil.copy(every_step / file_of(step), tmp_path)
    with make() as trainer:
        history = fit(trainer, 3, tmp_path, resume=True)
        check_is_unstopped(trainer, history, unstopped)
    for again in (1, 2, 3):
        shutil.copy(every_step / file_of(again * STEPS), tmp_path / "theirs")
        if again * STEPS >= step:
            ours = checkpoint.read(tmp_path / file_of(again * STEPS))
            theirs = checkpoint.read(tmp_path / "theirs")
            assert ours.progress.sha256 == theirs.progress.sha256
            assert ours.progress.history["history"] == theirs.progress.history["history"]


@pytest.mark.parametrize("workers", [1, 2, 3])
@pytest.mark.parametrize("step", [2, 5, 9])
def test_another_number_of_workers_resumes(step, workers, every_step, unstopped, tmp_path):
    shutil.copy(every_step / file_of(step), tmp_path)
    with make(engine="processes", workers=workers) as trainer:
        history = fit(trainer, 3, tmp_path, resume=True)
        check_is_unstopped(trainer, history, unstopped)


class StopError(Exception):
    pass


class StopAfter(Callback):
    """Ends training in the middle of an epoch, as Ctrl-C does, as soon as there is a new checkpoint."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.before = set(directory.iterdir())

    def on_batch_end(self, batch, logs):
        self.trainer._loop._saver.finish()
        if set(self.directory.glob("step-*")) - self.before:
            raise StopError


def test_resuming_after_every_step_by_turns_of_the_engines(unstopped, tmp_path, monkeypatch):
    one_at_a_time(monkeypatch)
    engines = itertools.cycle([{"engine": "serial"}, {"engine": "serial"}, {"engine": "processes", "workers": 2}])
    starts = 0
    while True:
        starts += 1
        with make(**next(engines)) as trainer:
            try:
                stop = StopAfter(tmp_path)
                history = fit(trainer, 3, tmp_path, resume=True, checkpoint_every_s=0, callbacks=[stop])
            except StopError:
                continue
            check_is_unstopped(trainer, history, unstopped)
            break
    assert starts > 2


@pytest.mark.parametrize("engine", ["serial", "processes"])
def test_stopped_at_the_end_of_an_epoch(engine, unstopped, tmp_path):
    for epochs in (1, 1, 2, 3, 3):
        with make(engine=engine, workers=2) as trainer:
            history = fit(trainer, epochs, tmp_path, resume=True)
            assert trainer.epoch == epochs
    with make() as trainer:
        history = fit(trainer, 2, tmp_path, resume=True)  # it is past that
        assert history.epoch == [0, 1, 2]
        check_is_unstopped(trainer, history, unstopped)
    assert steps_in(tmp_path) == [5, 10, 15]


SETTINGS = {
    "adam": {"optimizer": Adam(0.01)},
    "adamw": {"optimizer": AdamW(0.01, weight_decay=0.1)},
    "rmsprop": {"optimizer": RMSprop(0.001, momentum=0.5)},
    "adagrad": {"optimizer": Adagrad(0.01, lr_decay=0.1)},
    "schedule": {"optimizer": SGD(lambda step: 0.1 / (1 + step), momentum=0.5)},
    "clip_norm": {"clip_norm": 0.5},
    "accumulate": {"accumulate": 2},
}


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_every_setting_resumes_inside_an_epoch(settings, tmp_path, monkeypatch):
    with make(**settings) as trainer:
        expected = fit(trainer, 2)
        digest = weights_sha256(trainer.params)
    with make(**settings) as trainer:
        save_every_step(monkeypatch)
        fit(trainer, 2, tmp_path / "all", checkpoint_every_s=0, keep=100)
        monkeypatch.undo()
    for step in (3, 7):
        (tmp_path / f"{step}").mkdir()
        shutil.copy(tmp_path / "all" / file_of(step), tmp_path / f"{step}")
        with make(**settings) as trainer:
            history = fit(trainer, 2, tmp_path / f"{step}", resume=True)
            assert history.history == expected.history
            assert weights_sha256(trainer.params) == digest


class Rates(Callback):
    """Sets the learning rate in the middle of an epoch, and lowers it at the start of each. Both take effect once."""

    def on_epoch_begin(self, epoch, logs):
        self.trainer.learning_rate *= 0.5

    def on_batch_end(self, batch, logs):
        if batch == 1:
            self.trainer.learning_rate *= 3.0


@pytest.mark.parametrize("optimizer", [SGD(0.1), SGD(lambda step: 0.1 / (1 + step))], ids=["number", "schedule"])
def test_a_learning_rate_that_callbacks_set_resumes(optimizer, tmp_path, monkeypatch):
    with make(optimizer=optimizer) as trainer:
        save_every_step(monkeypatch)
        expected = fit(trainer, 3, tmp_path / "all", checkpoint_every_s=0, keep=100, callbacks=[Rates()])
        monkeypatch.undo()
        digest = weights_sha256(trainer.params)
    for step in range(1, 2 * STEPS + 1):
        (tmp_path / f"{step}").mkdir()
        shutil.copy(tmp_path / "all" / file_of(step), tmp_path / f"{step}")
        with make(optimizer=optimizer) as trainer:
            save_every_step(monkeypatch)  # one step at a time, so that the rate is set at the same step
            history = fit(trainer, 3, tmp_path / f"{step}", resume=True, callbacks=[Rates()])
            monkeypatch.undo()
            assert history.history == expected.history
            assert weights_sha256(trainer.params) == digest


def test_a_smaller_batch_alone_is_left(every_step, unstopped, tmp_path):
    """The rest of the epoch is its last batch, of 6 examples instead of 16."""
    shutil.copy(every_step / file_of(14), tmp_path)
    seen = []

    class See(Callback):
        def on_epoch_begin(self, epoch, logs):
            seen.append((epoch, dict(logs)))

        def on_batch_end(self, batch, logs):
            seen.append((batch, logs["examples"]))

    with make() as trainer:
        check_is_unstopped(trainer, fit(trainer, 3, tmp_path, resume=True, callbacks=[See()]), unstopped)
    assert seen == [(2, {"steps": 5, "examples": 70, "epochs": 3}), (4, 6)]


@pytest.mark.parametrize("params", [networks.mlp_params((6, 8, 3), np.float64), networks.mlp_params((6, 3))])
def test_arrays_of_any_layout(params, tmp_path):
    params = [networks.Layer(np.asfortranarray(layer.w), layer.b) for layer in params]

    def train(parts, directory):
        for epochs in parts:
            with Trainer(networks.mlp, params, optimizer=SGD(0.1, momentum=0.5), engine="serial", shards=2) as trainer:
                fit(trainer, epochs, directory, resume=directory is not None)
                with trainer.snapshot() as snapshot:
                    strides = [layer.w.strides for layer in snapshot.value]
                    digest = weights_sha256(snapshot.value), weights_sha256(extra(snapshot))
        return digest, strides

    assert train([1, 2], tmp_path) == train([2], None)


# -- the file


def test_what_is_in_the_file(every_step, unstopped):
    path = every_step / file_of(7)
    tensors = load_file(path)  # any reader of safetensors can
    assert tensors["params/0/w"].shape == tensors["optimizer/momentum/0/w"].shape == (6, 8)
    assert tensors["records"].shape == (2, 3)
    found = checkpoint.read(path)
    progress = found.progress
    assert (progress.step, progress.epoch, progress.step_in_epoch) == (7, 1, 2)
    assert progress.history["epoch"] == [0]
    assert progress.settings["batch_size"] == 16
    assert progress.settings["optimizer"]["momentum"] == 0.9
    assert progress.metrics == ["accuracy"]
    assert progress.score is None
    assert checkpoint.read(every_step / file_of(10)).progress.score == unstopped[2].history["val_loss"][1]
    with make() as trainer:
        trainer.load(path)
        assert weights_sha256(trainer.params) == progress.sha256


def test_everybody_may_read_what_the_umask_lets_them(every_step, tmp_path):
    found = checkpoint.read(every_step / file_of(5))
    before = os.umask(0o027)
    try:
        write(tmp_path / "file", found)
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == 0o640


def write(path, found, params=None):
    checkpoint.write(
        path, found.progress, params={"w": np.ones(3)} if params is None else params, state=None, records=found.records
    )


def test_trees_that_are_hard_to_name(every_step, tmp_path):
    found = checkpoint.read(every_step / file_of(5))
    params = {
        1: np.arange(3.0),
        "1": np.arange(4.0),
        "a": {"b": np.zeros((0, 2))},
        "a/b": np.array(5.0),
        "complex": np.array([1 + 2j, 3 - 4j]),
        "bool": np.array([True, False]),
        "gaps": np.arange(12.0)[::3],
        "fortran": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
    }
    write(tmp_path / "file", found, params)
    again = {
        key: {"b": np.ones((0, 2))} if key == "a" else np.zeros_like(np.ascontiguousarray(value).reshape(value.shape))
        for key, value in params.items()
    }
    checkpoint.read(tmp_path / "file").fill(again, None)
    assert weights_sha256(again) == weights_sha256(params)
    write(tmp_path / "one", found, np.arange(3.0))
    alone = np.zeros(3)
    checkpoint.read(tmp_path / "one").fill(alone, None)
    assert alone.tolist() == [0, 1, 2]


# -- damage


def damaged(data: bytes, how: str, rng) -> bytes:
    if how == "empty":
        return b""
    if how == "short":
        return data[: rng.randrange(1, len(data))]
    if how == "long":
        return data + b"more"
    if how == "zeros":
        return bytes(len(data))
    at = rng.randrange(len(data))
    return data[:at] + bytes([data[at] ^ (1 << rng.randrange(8))]) + data[at + 1 :]


@pytest.mark.parametrize("how", ["empty", "short", "long", "zeros", "flipped"])
def test_a_damaged_checkpoint_is_passed_over(how, rng, every_step, unstopped, tmp_path):
    for step in (5, 8, 12):
        shutil.copy(every_step / file_of(step), tmp_path)
    newest_one = tmp_path / file_of(12)
    whole = newest_one.read_bytes()
    for _ in range(20):
        newest_one.write_bytes(damaged(whole, how, rng))
        with pytest.raises(FormatError):
            checkpoint.read(newest_one)
    with make() as trainer:
        with pytest.warns(RuntimeWarning, match=r"step-0*12.safetensors.* resuming from step-0*8.safetensors"):
            history = fit(trainer, 3, tmp_path, resume=True)
        check_is_unstopped(trainer, history, unstopped)
    assert steps_in(tmp_path) == [8, 10, 15]  # the damaged one is removed; with 5 the best one would have been kept


def test_none_that_can_be_read_is_an_error(every_step, tmp_path):
    for step in (5, 8):
        (tmp_path / file_of(step)).write_bytes(b"nothing")
    with make() as trainer:
        with pytest.raises(
            FormatError, match=r"none of the 2 checkpoints can be read .*remove them to start from the beginning"
        ):
            fit(trainer, 3, tmp_path, resume=True)
        assert (trainer.step, trainer.snapshot().version) == (0, 1)
    assert steps_in(tmp_path) == [5, 8]


def test_another_file_is_no_checkpoint(every_step, tmp_path):
    save_file({"w": np.zeros(3)}, tmp_path / "theirs")
    with make() as trainer:
        with pytest.raises(FormatError, match="not a checkpoint of untorn"):
            trainer.load(tmp_path / "theirs")
        with pytest.raises(FileNotFoundError, match="nothing-there"):
            trainer.load(tmp_path / "nothing-there")
        (tmp_path / "empty").mkdir()
        with pytest.raises(FileNotFoundError, match="there is no checkpoint in this directory"):
            trainer.load(tmp_path / "empty")
        assert trainer.step == 0


def test_a_later_format_is_not_passed_over(every_step, tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint, "FORMAT", 2)
    write(tmp_path / file_of(9), checkpoint_of_format_1(every_step, monkeypatch))
    monkeypatch.setattr(checkpoint, "FORMAT", 1)
    with make() as trainer, pytest.raises(ValueError, match="expected format 1, found 2"):
        fit(trainer, 3, tmp_path, resume=True)


def checkpoint_of_format_1(directory, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "FORMAT", 1)
        return checkpoint.read(directory / file_of(5))


# -- checkpoints of other trainings


def test_other_settings_are_named(every_step, tmp_path):
    shutil.copy(every_step / file_of(7), tmp_path)
    cases = [
        ({"seed": 9}, "seed=8; found seed=9"),
        ({"shards": 2}, "shards=3; found shards=2"),
        ({"seed": 9, "shards": 2}, "seed=8, shards=3; found seed=9, shards=2"),
        ({"accumulate": 2}, "accumulate=1; found accumulate=2"),
        ({"clip_norm": 1.0}, "clip_norm=None; found clip_norm=1.0"),
        ({"optimizer": SGD(0.2, momentum=0.9)}, "optimizer=SGD(learning_rate=0.1, momentum=0.9, "),
    ]
    for arguments, message in cases:
        with make(**arguments) as trainer:
            with pytest.raises(ValueError) as caught:
                fit(trainer, 3, tmp_path, resume=True)
            assert message in str(caught.value)
            assert (trainer.step, trainer.snapshot().version) == (0, 1)
    with make() as trainer:
        with pytest.raises(ValueError, match="batch_size=16; found batch_size=8"):
            trainer.fit(DATA, epochs=3, batch_size=8, checkpoint_dir=tmp_path, resume=True)
        with pytest.raises(ValueError, match="examples=70; found examples=30"):
            trainer.fit(HELD_OUT, epochs=3, batch_size=16, checkpoint_dir=tmp_path, resume=True)
    assert steps_in(tmp_path) == [7]


@pytest.mark.parametrize(
    ("params", "optimizer", "message"),
    [
        (networks.mlp_params((6, 8, 4)), SGD(0.1, momentum=0.9),
         r"expected params/1/w to be float32 of shape \(8, 4\), .*found float32 of shape \(8, 3\)"),
        (networks.mlp_params((6, 8, 3), np.float64), SGD(0.1, momentum=0.9), "expected params/0/w to be float64"),
        (networks.mlp_params((6, 3)), SGD(0.1, momentum=0.9), "has optimizer/momentum/1/b, which this trainer lacks"),
        (networks.mlp_params((6, 8, 3)), SGD(0.1), "has optimizer/momentum/0/b, which"),
    ],
)  # fmt: skip
def test_other_parameters_are_named(params, optimizer, message, every_step):
    with Trainer(networks.mlp, params, optimizer=optimizer, engine="serial", shards=3, seed=8) as trainer:
        before = weights_sha256(trainer.params)
        with pytest.raises(ValueError, match=message):
            trainer.load(every_step / file_of(5))
        assert (weights_sha256(trainer.params), trainer.snapshot().version, trainer.epoch) == (before, 1, 0)


def test_a_half_done_epoch_needs_the_batches_it_was_begun_with(every_step, unstopped):
    with make() as trainer:
        trainer.load(every_step / file_of(7))
        with pytest.raises(ValueError, match=r"epoch 1.* batch_size=16, examples=70.*; found batch_size=8"):
            trainer.fit(DATA, epochs=1, batch_size=8)
        history = fit(trainer, 2)
        assert history.epoch == [1, 2]
        assert weights_sha256(trainer.params) == unstopped[0]
        assert {name: values[1:] for name, values in unstopped[2].history.items()} == history.history


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"resume": True}, ValueError, "resume=True needs checkpoint_dir="),
        ({"keep": 0}, ValueError, "keep: expected 1 or more, found 0"),
        ({"keep": 1.5}, TypeError, "keep: expected an int, found float"),
        ({"checkpoint_every_s": -1}, ValueError, "checkpoint_every_s: expected 0 or more"),
        ({"checkpoint_every_s": math.nan}, ValueError, "checkpoint_every_s: expected 0 or more"),
    ],
)
def test_a_wrong_argument_is_named(arguments, error, message):
    with make() as trainer:
        with pytest.raises(error, match=message):
            fit(trainer, 1, **arguments)
        assert trainer.step == 0


def test_without_safetensors_it_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "safetensors", None)
    with make() as trainer:
        for call in (
            lambda: fit(trainer, 1, tmp_path),
            lambda: trainer.save(tmp_path / "x"),
            lambda: trainer.load("x"),
        ):
            with pytest.raises(ImportError, match=r"pip install 'untorn\[checkpoint\]'"):
                call()
        assert trainer.step == 0
        assert len(fit(trainer, 1)) == 1


# -- save and load


def test_save_and_load(unstopped, tmp_path):
    path = tmp_path / "model.safetensors"
    with make() as trainer:
        trainer.save(path)
        untrained = weights_sha256(trainer.params)
        fit(trainer, 2)
        trainer.save(path)  # replaces the file
        trained = weights_sha256(trainer.params)
        fit(trainer, 1)
        trainer.load(path)
        assert (trainer.step, trainer.epoch) == (10, 2)
        assert weights_sha256(trainer.params) == trained != untrained
        assert fit(trainer, 1).epoch == [2]
        assert weights_sha256(trainer.params) == unstopped[0]
    with make() as trainer:
        trainer.load(str(path))
        trainer.save(path)
        assert fit(trainer, 1).epoch == [2]
        assert weights_sha256(trainer.params) == unstopped[0]
    assert os.listdir(tmp_path) == ["model.safetensors"]


def test_a_directory_loads_its_newest(every_step, unstopped):
    with make() as trainer:
        trainer.load(every_step)
        assert (trainer.step, trainer.epoch) == (15, 3)
        assert weights_sha256(trainer.params) == unstopped[0]


def test_what_was_loaded_half_done_is_saved_half_done(every_step, unstopped, tmp_path):
    with make() as trainer:
        trainer.load(every_step / file_of(8))
        trainer.save(tmp_path / file_of(8))
        fit(trainer, 0)
        trainer.save(tmp_path / file_of(8))
    with make() as trainer:
        check_is_unstopped(trainer, fit(trainer, 3, tmp_path, resume=True), unstopped)


def test_saving_in_a_callback(unstopped, tmp_path):
    class Save(Callback):
        def on_batch_end(self, batch, logs):
            with pytest.raises(RuntimeError, match="inside an epoch; call it from on_epoch_end"):
                self.trainer.save(tmp_path / "never")
            with pytest.raises(RuntimeError, match="training runs"):
                self.trainer.load(tmp_path / "never")

        def on_epoch_end(self, epoch, logs):
            self.trainer.save(tmp_path / f"{epoch}")

    with make() as trainer:
        fit(trainer, 2, callbacks=[Save()])
    assert sorted(os.listdir(tmp_path)) == ["0", "1"]
    for epoch in (0, 1):
        with make() as trainer:
            trainer.load(tmp_path / f"{epoch}")
            assert trainer.epoch == epoch + 1
            fit(trainer, 2 - epoch)
            assert weights_sha256(trainer.params) == unstopped[0]


def test_a_failed_save_leaves_what_was_there(tmp_path):
    with make() as trainer:
        trainer.save(tmp_path / "x")
        before = (tmp_path / "x").read_bytes()
        with pytest.raises(FileNotFoundError, match="could not be written: No such file or directory"):
            trainer.save(tmp_path / "no" / "x")
        (tmp_path / "x").rename(tmp_path / "y")
        (tmp_path / "x").mkdir()
        with pytest.raises(IsADirectoryError, match="could not be written"):
            trainer.save(tmp_path / "x")
        assert (tmp_path / "y").read_bytes() == before
        assert sorted(os.listdir(tmp_path)) == ["x", "y"]


# -- the directory


@pytest.mark.parametrize(
    ("scores", "keep", "kept"),
    [
        ({}, 3, set()),
        ({5: 0.5}, 1, {5}),
        ({5: 0.5, 10: 0.4, 15: 0.3}, 1, {15}),
        ({5: 0.2, 10: 0.4, 15: 0.3}, 1, {5, 15}),
        ({5: 0.2, 10: 0.2, 15: 0.3, 20: 0.3}, 2, {5, 15, 20}),
        ({5: 0.2, 8: None, 10: 0.1, 12: None, 13: None}, 2, {10, 12, 13}),
        ({5: math.nan, 10: 0.7, 15: None}, 1, {10, 15}),
        ({5: math.nan, 10: None}, 1, {10}),
    ],
)
def test_the_last_and_the_best_stay(scores, keep, kept):
    assert steps_to_keep(scores, keep) == kept


def test_the_best_stays_over_a_resume(tmp_path, monkeypatch):
    """The validation loss is lowest after the first epoch."""
    monkeypatch.setattr(Evaluator, "evaluate", lambda self, *_, **__: {"loss": float(self._weights.version)})
    for epochs in (2, 5):
        with make() as trainer:
            fit(trainer, epochs, tmp_path, resume=True, keep=2)
    assert steps_in(tmp_path) == [5, 20, 25]


def test_without_validation_data_the_loss_decides(tmp_path):
    with make() as trainer:
        fit(trainer, 1, tmp_path, validation_data=None)
    assert (
        checkpoint.read(tmp_path / file_of(5)).progress.score
        == checkpoint.read(tmp_path / file_of(5)).progress.history["history"]["loss"][0]
    )


def test_another_training_is_not_mixed_in(unstopped, tmp_path):
    with make() as trainer:
        fit(trainer, 1, tmp_path)
        fit(trainer, 1, tmp_path)  # allowed, since it continues this training
    with make() as trainer:
        with pytest.raises(
            FileExistsError, match=r"has a checkpoint of step 10, but this training is at step 0; use resume=True"
        ):
            fit(trainer, 1, tmp_path)
        trainer.load(tmp_path)
        fit(trainer, 1, tmp_path)
        assert weights_sha256(trainer.params) == unstopped[0]
    assert steps_in(tmp_path) == [5, 10, 15]


def test_what_a_killed_writer_left_is_removed_and_all_else_stays(tmp_path):
    left = tmp_path / f".{file_of(10)}.writing"
    left.mkdir()
    (left / ".tmpX2").write_bytes(b"half")
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / ".step-7").write_text("mine too")
    with make() as trainer:
        fit(trainer, 1, tmp_path, resume=True)
    assert sorted(os.listdir(tmp_path)) == [".step-7", "notes.txt", file_of(5)]


def write_for_ever(pipe, directory):
    with make() as trainer:

        class Wait(Callback):
            def on_epoch_begin(self, epoch, logs):
                pipe.put("running")
                pipe.get()

        fit(trainer, 1, directory, callbacks=[Wait()])


def test_two_trainings_in_one_directory(tmp_path):
    with helpers.start(write_for_ever, tmp_path) as other:
        assert other.get() == "running"
        with make() as trainer:
            with pytest.raises(BusyError, match="another training writes its checkpoints there"):
                fit(trainer, 1, tmp_path)
            other.kill()
            fit(trainer, 1, tmp_path)
    assert steps_in(tmp_path) == [5]


def fork_in_python() -> int:
    return os.fork()


def fork_in_c() -> int:
    return ctypes.CDLL(None).fork()


def write_and_fork(pipe, directory, fork, gate):
    with Saver(directory, every_s=None, keep=1):
        child = fork()
        if child == 0:
            os.read(gate, 1)
            os._exit(0)
        pipe.put(child)
        pipe.get()


@pytest.mark.parametrize("fork", [fork_in_python, fork_in_c])
def test_the_lock_ends_with_its_process_and_not_with_those_it_forked(fork, tmp_path):
    theirs, ours = os.pipe()
    with helpers.start(write_and_fork, tmp_path, fork, theirs) as server:
        orphan = os.pidfd_open(server.get())
        with pytest.raises(BusyError), Saver(tmp_path, every_s=None, keep=1):
            pass
        server.kill()
        with Saver(tmp_path, every_s=None, keep=1):
            assert not select.select([orphan], [], [], 0)[0]  # it lives
    signal.pidfd_send_signal(orphan, signal.SIGKILL)
    assert select.select([orphan], [], [], helpers.WATCHDOG_S)[0]
    for fd in (orphan, theirs, ours):
        os.close(fd)


def test_a_forked_child_does_not_give_the_lock_up(tmp_path):
    with Saver(tmp_path, every_s=None, keep=1) as saver:
        child = os.fork()
        if child == 0:
            saver.__exit__()
            os._exit(0)
        os.waitpid(child, 0)
        with pytest.raises(BusyError), Saver(tmp_path, every_s=None, keep=1):
            pass


def test_a_directory_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with make() as trainer, pytest.raises(OSError, match="file"):
        fit(trainer, 1, tmp_path / "file" / "inside")


# -- in the background


class Gate:
    """Blocks the writer of checkpoints until it is opened."""

    def __init__(self, monkeypatch) -> None:
        self.opened = threading.Event()
        self.began = threading.Event()
        self._write = checkpoint.write
        monkeypatch.setattr(checkpoint, "write", self.write)

    def write(self, path, progress, **arrays):
        self.began.set()
        assert self.opened.wait(helpers.WATCHDOG_S)
        self._write(path, progress, **arrays)


@pytest.mark.parametrize("engine", ["serial", "processes"])
def test_training_goes_on_while_a_checkpoint_is_written(engine, unstopped, tmp_path, monkeypatch):
    """The checkpoint of the first epoch is written only after the third has begun, and still holds the first."""
    gate = Gate(monkeypatch)

    class Open(Callback):
        def on_epoch_begin(self, epoch, logs):
            if epoch == 2:
                assert gate.began.wait(helpers.WATCHDOG_S)
                assert steps_in(tmp_path) == []
                gate.opened.set()

    with make(engine=engine, workers=2) as trainer:
        check_is_unstopped(trainer, fit(trainer, 3, tmp_path, callbacks=[Open()]), unstopped)
    assert steps_in(tmp_path) == [5, 10, 15]
    shutil.copy(tmp_path / file_of(5), tmp_path / "first")
    with make() as trainer:
        trainer.load(tmp_path / "first")
        fit(trainer, 2)
        assert weights_sha256(trainer.params) == unstopped[0]


def full(*_, **__):
    raise OSError(errno.ENOSPC, "the disk is full")


def test_a_failed_checkpoint_ends_training_at_the_next(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint, "write", full)
    with make() as trainer:
        with pytest.raises(OSError, match="the disk is full"):
            fit(trainer, 10**6, tmp_path)
        assert trainer.step < 20 * STEPS
        trained = weights_sha256(trainer.params)
        monkeypatch.undo()
        fit(trainer, 0, tmp_path)
        assert weights_sha256(trainer.params) == trained
        fit(trainer, 1, tmp_path)
        assert steps_in(tmp_path) == [trainer.step]


def test_a_failed_last_checkpoint_is_an_error_too(unstopped, tmp_path, monkeypatch):
    with make() as trainer:
        fit(trainer, 2, tmp_path)
        monkeypatch.setattr(checkpoint, "write", full)
        with pytest.raises(OSError, match="the disk is full"):
            fit(trainer, 1, tmp_path)
        assert weights_sha256(trainer.params) == unstopped[0]
    assert steps_in(tmp_path) == [5, 10]


def failing_later(params, batch, rng):
    if len(batch[0]) != 6 and (batch[0] == DATA[0][0]).all(1).any() and failing_later.armed:
        raise RuntimeError("mine")
    return networks.mlp_with_dropout(params, batch, rng)


def test_an_error_of_the_model_waits_for_the_checkpoint(unstopped, tmp_path):
    failing_later.armed = False
    with make(failing_later) as trainer:
        fit(trainer, 1, tmp_path)
        failing_later.armed = True
        with pytest.raises(WorkerError, match="mine"):
            fit(trainer, 1, tmp_path)
        assert steps_in(tmp_path) == [5]
        failing_later.armed = False
        check_is_unstopped(trainer, fit(trainer, 3, tmp_path, resume=True), unstopped)


# -- callbacks


class Losses(Callback):
    """A callback whose state is the loss of every step."""

    def __init__(self) -> None:
        self.losses: list[float] = []

    def on_train_begin(self, logs):
        self.losses = []

    def on_batch_end(self, batch, logs):
        self.losses.append(logs["loss"])

    def state_dict(self):
        return {"losses": self.losses}

    def load_state_dict(self, state):
        self.losses = state["losses"]


class Other(Losses):
    pass


def test_callbacks_go_on_from_the_step_that_was_saved(tmp_path, monkeypatch):
    advance = SerialEngine.advance
    whole = [Losses(), Losses()]
    with make() as trainer:
        fit(trainer, 2, callbacks=whole)
    monkeypatch.setattr(SerialEngine, "advance", lambda self, until: advance(self, min(until, self._board.step + 1)))
    for _ in range(2 * STEPS + 1):
        mine = [Losses(), StopAfter(tmp_path), Losses(), Other()]
        with make() as trainer:
            try:
                fit(trainer, 2, tmp_path, callbacks=mine, resume=True, checkpoint_every_s=0)
                break
            except StopError:
                continue
    assert mine[0].losses == mine[2].losses == whole[0].losses == whole[1].losses
    assert mine[3].losses == whole[0].losses
    added = Other()
    with make() as trainer:
        trainer.fit(
            DATA, epochs=2, batch_size=16, checkpoint_dir=tmp_path, resume=True, callbacks=[Losses(), Other(), added]
        )
    assert added.losses == []


@pytest.mark.parametrize("stop", [1, 2, 3, 4, 5, 6])
def test_early_stopping_goes_on_waiting(stop, tmp_path):
    def stopping():
        return EarlyStopping("val_loss", patience=3, min_delta=0.05)

    with make() as trainer:
        expected = fit(trainer, 30, callbacks=[stopping()])
    assert 3 < len(expected) < 30
    for epochs in (stop, 30, 30):
        with make() as trainer:
            history = fit(trainer, epochs, tmp_path, resume=True, callbacks=[stopping()])
    assert (history.epoch, history.history) == (expected.epoch, expected.history)
    with make() as trainer:
        more = fit(trainer, len(expected) + 1, tmp_path, resume=True, callbacks=[EarlyStopping(patience=99)])
    assert len(more) == len(expected) + 1


def test_a_state_that_cannot_be_stored_is_named(tmp_path):
    class Bad(Callback):
        def state_dict(self):
            return {"a": object()}

    with make() as trainer, pytest.raises(TypeError, match=r"Bad\.state_dict\(\): expected numbers"):
        fit(trainer, 1, tmp_path, callbacks=[Bad()])
