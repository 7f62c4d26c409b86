"""The callbacks, called by hand as a Trainer calls them."""

from __future__ import annotations

import io
import json
import math
import re
import sys
from types import SimpleNamespace

import numpy as np
import pytest

from untorn.train.callbacks import Callback, EarlyStopping, ProgressBar, early_stopping, progress_bar


def epochs_until_stop(stop: EarlyStopping, values: list[float]) -> int:
    """Return the number of epochs of a training with these values of the metric."""
    trainer = SimpleNamespace(stop_training=False)
    stop.set_trainer(trainer)
    stop.on_train_begin({})
    for epoch, value in enumerate(values):
        stop.on_epoch_end(epoch, {"loss": 1.0, stop.monitor: value})
        if trainer.stop_training:
            return epoch + 1
    return len(values)


class Recording(SimpleNamespace):
    """A trainer whose weights are the number of the newest epoch."""

    def __init__(self):
        super().__init__(stop_training=False, params=np.array([-1.0]))

    def after(self, epoch):
        self.params = np.array([float(epoch)])


def best_weights_after(stop: EarlyStopping, values, end=None) -> float:
    """Return the epoch whose weights the trainer has at the end."""
    trainer = Recording()
    stop.set_trainer(trainer)
    stop.on_train_begin({})
    for epoch, value in enumerate(values):
        trainer.after(epoch)
        stop.on_epoch_end(epoch, {stop.monitor: value})
    stop.on_train_end(end or {})
    return trainer.params[0]


def test_the_base_class_does_nothing_and_knows_its_trainer():
    callback = Callback()
    trainer = SimpleNamespace(stop_training=False)
    callback.set_trainer(trainer)
    assert callback.trainer is trainer
    callback.on_train_begin({})
    callback.on_epoch_begin(0, {})
    callback.on_batch_end(0, {})
    callback.on_epoch_end(0, {})
    assert callback.on_error(ValueError()) is False
    callback.on_train_end({})
    assert callback.state_dict() == {}
    callback.load_state_dict({})
    assert trainer.stop_training is False


class TestEarlyStopping:
    @pytest.mark.parametrize(
        ("patience", "values", "ran"),
        [
            (0, [3, 2, 2, 1], 3),
            (1, [3, 2, 2, 1], 3),
            (2, [3, 2, 2, 1], 4),
            (2, [3, 2, 2, 2, 1], 4),
            (2, [3, 2, 2, 1, 1, 1], 6),
            (0, [1, math.nan, 0], 2),
            (2, [math.nan, 2, 1], 3),
        ],
    )
    def test_patience(self, patience, values, ran):
        assert epochs_until_stop(EarlyStopping(patience=patience), values) == ran

    def test_min_delta(self):
        assert epochs_until_stop(EarlyStopping(min_delta=0.5), [3.0, 2.0, 1.75, 1.0]) == 3

    def test_max_mode(self):
        stop = EarlyStopping("val_accuracy")
        assert epochs_until_stop(stop, [0.5, 0.75, 0.75, 0.875]) == 3
        assert (stop.best, stop.best_epoch, stop.stopped_epoch) == (0.75, 1, 2)

    def test_one_object_serves_two_trainings(self):
        stop = EarlyStopping()
        epochs_until_stop(stop, [1, 2])
        assert epochs_until_stop(stop, [9, 8, 7]) == 3
        assert stop.stopped_epoch is None

    @pytest.mark.parametrize(
        ("monitor", "mode"),
        [
            ("val_loss", "min"),
            ("loss", "min"),
            ("val_error", "min"),
            ("accuracy", "max"),
            ("val_top_5_accuracy", "max"),
            ("val_f1", "max"),
            ("perplexity", "min"),
        ],
    )
    def test_auto_mode(self, monitor, mode):
        assert EarlyStopping(monitor).mode == mode

    def test_a_baseline_must_be_beaten_too(self):
        assert epochs_until_stop(EarlyStopping(patience=2, baseline=1.0), [4, 3, 3]) == 3
        assert (
            epochs_until_stop(EarlyStopping(patience=2, baseline=1.0), [4, 3, 2, 2]) == 4
        )  # an improvement never ends training
        assert epochs_until_stop(EarlyStopping(patience=2, baseline=1.0), [4, 0.5, 2, 2]) == 4

    def test_the_first_epochs_may_be_left_out(self):
        stop = EarlyStopping(patience=1, start_from_epoch=3)
        assert epochs_until_stop(stop, [0, 1, 2, 3, 3, 3]) == 5
        assert (stop.best, stop.best_epoch) == (3, 3)

    def test_the_weights_of_the_best_epoch_come_back(self):
        stop = EarlyStopping(patience=2, restore_best_weights=True)
        assert best_weights_after(stop, [3, 1, 2, 2]) == 1

    def test_without_a_number_the_first_weights_are_the_best(self):
        stop = EarlyStopping(patience=2, restore_best_weights=True)
        assert best_weights_after(stop, [math.nan, math.nan]) == 0
        assert math.isnan(stop.best)

    def test_after_an_error_the_weights_stay(self):
        stop = EarlyStopping(patience=9, restore_best_weights=True)
        assert best_weights_after(stop, [1, 2, 3], {"error": KeyboardInterrupt()}) == 2

    def test_it_says_what_it_does(self, capsys):
        best_weights_after(EarlyStopping(patience=2, restore_best_weights=True, verbose=1), [3, 1, 2, 2])
        assert capsys.readouterr().err.splitlines() == [
            "epoch 4: early stopping",
            "restored the weights of the best epoch, 2",
        ]

    @pytest.mark.parametrize("cut", range(6))
    def test_its_state_goes_on_counting(self, cut):
        values = [3.0, math.nan, 1.0, 2.0, 1.5, 1.25]
        first, second = (EarlyStopping(patience=4, restore_best_weights=True) for _ in range(2))
        if cut:
            best_weights_after(first, values[:cut], {"error": KeyboardInterrupt()})
        second.set_trainer(Recording())
        second.on_train_begin({})
        second.load_state_dict(json.loads(json.dumps(first.state_dict())))
        for epoch in range(cut, len(values)):
            second.trainer.after(epoch)
            second.on_epoch_end(epoch, {"val_loss": values[epoch]})
        second.on_train_end({})
        assert (second.best, second.best_epoch, second._waited) == (1.0, 2, 3)
        assert second.trainer.params[0] == 2

    def test_large_best_weights_are_missed_after_resuming(self, monkeypatch):
        monkeypatch.setattr(early_stopping, "_STORED_NBYTES", 7)
        first, second = (EarlyStopping(patience=4, restore_best_weights=True) for _ in range(2))
        best_weights_after(first, [1.0, 2.0], {"error": KeyboardInterrupt()})
        second.set_trainer(Recording())
        second.on_train_begin({})
        second.load_state_dict(first.state_dict())
        second.on_epoch_end(2, {"val_loss": 3.0})
        with pytest.warns(RuntimeWarning, match="the best epoch, 1, are too large for a callback"):
            second.on_train_end({})

    def test_a_missing_metric_names_those_there_are(self):
        stop = EarlyStopping()
        stop.set_trainer(SimpleNamespace(stop_training=False))
        stop.on_train_begin({})
        with pytest.raises(ValueError, match=r"'val_loss'.*loss, accuracy.*validation_data"):
            stop.on_epoch_end(0, {"loss": 1.0, "accuracy": 0.5})

    @pytest.mark.parametrize("wrong", [{"mode": "best"}, {"min_delta": -1}, {"min_delta": math.nan}, {"patience": -1}])
    def test_wrong_arguments(self, wrong):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            EarlyStopping(**wrong)

    @pytest.mark.parametrize("wrong", [{"monitor": 3}, {"min_delta": "a"}, {"min_delta": True}])
    def test_arguments_of_the_wrong_type(self, wrong):
        with pytest.raises(TypeError, match=f"EarlyStopping: {next(iter(wrong))}="):
            EarlyStopping(**wrong)


def train_with(bar: ProgressBar, *, epochs: int = 2, restarts: int = 0) -> None:
    bar.on_train_begin({})
    for epoch in range(epochs):
        bar.on_epoch_begin(epoch, {"steps": 3, "examples": 192, "epochs": epochs})
        for batch in range(3):
            bar.on_batch_end(
                batch,
                {"loss": 2.0, "accuracy": 0.5, "examples": 64, "version": 3 * epoch + batch + 2, "restarts": restarts},
            )
        bar.on_epoch_end(epoch, {"loss": 2.0, "accuracy": 0.5, "val_loss": 2.5, "examples_per_s": 5200.4, "seconds": 1})
    bar.on_train_end({})


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class TestProgressBar:
    def test_a_pipe_gets_one_plain_line_per_epoch(self, capsys):
        train_with(ProgressBar())
        captured = capsys.readouterr()
        assert captured.out == ""
        assert captured.err.splitlines() == [
            "epoch 1/2  loss 2.0000  accuracy 0.5000  val_loss 2.5000  5,200 examples/s  version 4",
            "epoch 2/2  loss 2.0000  accuracy 0.5000  val_loss 2.5000  5,200 examples/s  version 7",
        ]

    def test_restarts_are_told_when_there_are_any(self):
        out = io.StringIO()
        train_with(ProgressBar(file=out), restarts=2)
        assert out.getvalue().count("restarts 2") == 2

    def test_learning_rate_and_staleness_are_told_when_they_are_there(self):
        out = io.StringIO()
        bar = ProgressBar(file=out)
        bar.on_train_begin({})
        bar.on_epoch_begin(0, {"steps": 1, "examples": 1, "epochs": 1})
        bar.on_batch_end(0, {"loss": 1.0, "examples": 1, "version": 2, "restarts": 0, "staleness": 3})
        bar.on_epoch_end(0, {"loss": 1e-5, "learning_rate": 0.0125, "examples_per_s": 10.0})
        assert out.getvalue() == "epoch 1/1  loss 1.00e-05  10 examples/s  lr 0.0125  staleness 3  version 2\n"

    @pytest.mark.parametrize("columns", [40, 60, 80, 100, 120])
    def test_no_line_is_longer_than_the_terminal(self, monkeypatch, columns):
        pytest.importorskip("rich")
        monkeypatch.setenv("TERM", "xterm")
        monkeypatch.setenv("COLUMNS", str(columns))
        monkeypatch.setattr(progress_bar, "_REDRAW_INTERVAL_S", 0.0)
        out = Terminal()
        train_with(ProgressBar(file=out, rich=True), restarts=1)
        plain = re.sub(r"\x1b\[[?\d;]*[A-Za-z]", "", out.getvalue())
        lines = re.split(r"[\r\n]+", plain)
        assert max(map(len, lines)) <= columns
        assert any("3/3 loss 2.0000" in line for line in lines)
        assert sum(line.startswith("epoch 1/2  loss 2.0000") for line in lines) == 1

    def test_a_terminal_gets_a_bar_and_keeps_the_same_lines(self, monkeypatch):
        pytest.importorskip("rich")
        monkeypatch.setenv("TERM", "xterm")
        monkeypatch.setenv("COLUMNS", "160")
        out = Terminal()
        train_with(ProgressBar(file=out, rich=True))
        assert "3/3" in out.getvalue() or "1/3" in out.getvalue()
        assert "\x1b[?25l" in out.getvalue()  # the cursor was hidden while the bar was shown
        assert out.getvalue().rindex("\x1b[?25h") > out.getvalue().rindex("\x1b[?25l")
        assert "val_loss 2.5000  5,200 examples/s  version 7\n" in out.getvalue()

    def test_a_notebook_gets_a_line_that_is_written_again(self, monkeypatch):
        monkeypatch.setattr(progress_bar, "_REWRITE_INTERVAL_S", 0.0)
        out = io.StringIO()
        train_with(ProgressBar(file=out, rich=False, rewrite=True))
        first, second = out.getvalue().removesuffix("\n").split("\n")
        assert first.startswith("\repoch 1/2  ━━━───────  1/3  loss 2.0000")
        assert "\repoch 1/2  ━━━━━━━━━━  3/3  loss 2.0000" in first
        for line, version in ((first, 4), (second, 7)):  # as a cell shows them: what was there before is gone
            *before, last = line.split("\r")
            text = f"loss 2.0000  accuracy 0.5000  val_loss 2.5000  5,200 examples/s  version {version}"
            assert last.rstrip().endswith(text)
            assert len(last) >= max(map(len, before))

    def test_closing_in_the_middle_gives_the_cursor_back(self, monkeypatch):
        pytest.importorskip("rich")
        monkeypatch.setenv("TERM", "xterm")
        out = Terminal()
        bar = ProgressBar(file=out, rich=True)
        bar.on_train_begin({})
        bar.on_epoch_begin(0, {"steps": 3, "examples": 192, "epochs": 1})
        bar.close()
        assert out.getvalue().rindex("\x1b[?25h") > out.getvalue().rindex("\x1b[?25l")
        bar.close()

    def test_without_rich_a_terminal_gets_lines(self, monkeypatch):
        monkeypatch.setitem(sys.modules, "rich.console", None)
        out = Terminal()
        train_with(ProgressBar(file=out))
        assert len(out.getvalue().splitlines()) == 2
        with pytest.raises(ImportError, match=r"untorn\[cli\]"):
            ProgressBar(file=out, rich=True).on_train_begin({})

    @pytest.mark.parametrize("error", [BrokenPipeError, OSError, ValueError])
    def test_a_dead_stream_never_ends_training(self, error):
        class Dead(io.StringIO):
            def write(self, text: str) -> int:
                raise error("gone")

        train_with(ProgressBar(file=Dead()))

    def test_a_terminal_that_dies_never_ends_training(self, monkeypatch):
        pytest.importorskip("rich")
        monkeypatch.setenv("TERM", "xterm")

        class Dying(Terminal):
            def write(self, text: str) -> int:
                raise BrokenPipeError("gone")

        train_with(ProgressBar(file=Dying()))

    def test_no_stderr_at_all(self, monkeypatch):
        monkeypatch.setattr(sys, "stderr", None)
        train_with(ProgressBar())
