"""Callbacks: when EarlyStopping ends training, and what ProgressBar writes where."""

from __future__ import annotations

import builtins
import io
import math
import sys

import pytest

from untorn import Callback, EarlyStopping, ProgressBar


class Trainer:
    """What a callback sees of a trainer."""

    def __init__(self) -> None:
        self.stop_training = False


def stopped_after(callback: EarlyStopping, values: list[float], name: str | None = None) -> int | None:
    """The epoch after which it ended training; None if it never did."""
    trainer = Trainer()
    callback.set_trainer(trainer)
    callback.on_train_begin({})
    for epoch, value in enumerate(values):
        callback.on_epoch_end(epoch, {name or callback.monitor: value, "seconds": 1.0})
        if trainer.stop_training:
            return epoch
    return None


def test_the_base_class_does_nothing_and_knows_its_trainer():
    callback, trainer = Callback(), Trainer()
    callback.set_trainer(trainer)
    assert callback.trainer is trainer
    callback.on_train_begin({})
    callback.on_epoch_begin(0, {})
    callback.on_batch_end(0, {})
    callback.on_epoch_end(0, {})
    callback.on_train_end({})
    assert not trainer.stop_training


class TestEarlyStopping:
    @pytest.mark.parametrize(
        ("patience", "values", "epoch"),
        [
            (0, [3, 2, 1], None),
            (0, [3, 2, 2], 2),
            (1, [3, 2, 2], 2),
            (2, [3, 2, 2], None),
            (2, [3, 2, 2.5, 2.1], 3),
            (2, [3, 2, 2.5, 1.9, 2, 2], 5),  # getting better starts the count anew
            (2, [3, 2, 2.5, 2.4, 1], 3),  # better than the epoch before is not better than the best
        ],
    )
    def test_patience_counts_epochs_since_the_best(self, patience, values, epoch):
        assert stopped_after(EarlyStopping(patience=patience), values) == epoch

    def test_it_remembers_the_best_and_where_it_stopped(self):
        callback = EarlyStopping(patience=2)
        stopped_after(callback, [3, 1, 2, 2])
        assert (callback.best, callback.best_epoch, callback.stopped_epoch) == (1, 1, 3)

    def test_min_delta_is_what_counts_as_better(self):
        assert stopped_after(EarlyStopping(min_delta=0.5), [3, 2.6]) == 1
        assert stopped_after(EarlyStopping(min_delta=0.5), [3, 2.4]) is None

    @pytest.mark.parametrize("monitor", ["val_accuracy", "accuracy", "val_acc", "auc", "val_f1", "top5_accuracy"])
    def test_auto_takes_more_for_better_where_the_name_says_so(self, monitor):
        assert EarlyStopping(monitor).mode == "max"
        assert stopped_after(EarlyStopping(monitor), [0.1, 0.2, 0.3, 0.2]) == 3

    @pytest.mark.parametrize("monitor", ["val_loss", "loss", "val_mse", "perplexity"])
    def test_auto_takes_less_for_better_elsewhere(self, monitor):
        assert EarlyStopping(monitor).mode == "min"

    def test_mode_overrules_the_name(self):
        assert stopped_after(EarlyStopping("accuracy", mode="min"), [1, 2]) == 1

    def test_nan_is_never_better(self):
        assert stopped_after(EarlyStopping(patience=2), [math.nan, math.nan]) == 1
        assert stopped_after(EarlyStopping(patience=2), [math.nan, 5.0, 4.0]) is None
        assert stopped_after(EarlyStopping(patience=2), [5.0, math.nan, math.nan]) == 2

    def test_one_object_serves_several_trainings(self):
        callback = EarlyStopping()
        assert stopped_after(callback, [1, 1]) == 1
        assert stopped_after(callback, [9, 8, 7]) is None
        assert callback.stopped_epoch is None

    def test_a_missing_metric_names_those_that_there_are(self):
        with pytest.raises(ValueError, match=r"'val_loss'.*loss.*validation_data"):
            stopped_after(EarlyStopping(), [1.0], name="loss")

    @pytest.mark.parametrize(
        "wrong", [{"mode": "best"}, {"patience": -1}, {"min_delta": -0.1}, {"min_delta": math.nan}]
    )
    def test_wrong_arguments_are_refused_at_once(self, wrong):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            EarlyStopping(**wrong)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class Broken(io.StringIO):
    """A pipe that nobody reads any more."""

    def write(self, text: str) -> int:
        raise BrokenPipeError(32, "Broken pipe")

    def flush(self) -> None:
        raise BrokenPipeError(32, "Broken pipe")


def train(bar: ProgressBar, *, epochs: int = 2, steps: int = 3, restarts: int = 0) -> None:
    bar.set_trainer(Trainer())
    bar.on_train_begin({})
    for epoch in range(epochs):
        bar.on_epoch_begin(epoch, {"steps": steps, "examples": steps * 64, "epochs": epochs})
        for step in range(steps):
            version = 2 + epoch * steps + step
            logs = {"loss": 1.5, "accuracy": 0.5, "examples": 64, "version": version, "restarts": restarts}
            bar.on_batch_end(step, logs)
        ended = {"loss": 1.25, "accuracy": 0.75, "val_loss": 1.125, "examples_per_s": 12345.6, "seconds": 0.1}
        bar.on_epoch_end(epoch, ended)
    bar.on_train_end({})


LINES = [
    "epoch 1/2  loss 1.2500  accuracy 0.7500  val_loss 1.1250  12,346 examples/s  version 4",
    "epoch 2/2  loss 1.2500  accuracy 0.7500  val_loss 1.1250  12,346 examples/s  version 7",
]


class TestProgressBar:
    def test_a_pipe_gets_a_plain_line_per_epoch(self):
        out = io.StringIO()
        train(ProgressBar(file=out))
        assert out.getvalue().splitlines() == LINES

    def test_it_writes_to_stderr_as_it_is_when_training_begins(self, capsys):
        bar = ProgressBar()
        train(bar)
        captured = capsys.readouterr()
        assert captured.err.splitlines() == LINES
        assert captured.out == ""

    def test_restarts_are_shown_when_there_are_any(self):
        out = io.StringIO()
        train(ProgressBar(file=out), epochs=1, restarts=2)
        assert out.getvalue().endswith("version 4  restarts 2\n")

    def test_a_terminal_gets_a_bar_that_leaves_the_same_lines(self, monkeypatch):
        pytest.importorskip("rich")
        monkeypatch.setenv("TERM", "xterm-256color")
        monkeypatch.setenv("COLUMNS", "200")
        out = Terminal()
        train(ProgressBar(file=out))
        text = out.getvalue()
        assert "\x1b[" in text
        assert "0/3" in text
        for line in LINES:
            assert line + "\n" in text

    def test_the_cursor_comes_back_when_training_is_broken_off(self, monkeypatch):
        pytest.importorskip("rich")
        monkeypatch.setenv("TERM", "xterm-256color")
        out = Terminal()
        bar = ProgressBar(file=out)
        bar.on_train_begin({})
        bar.on_epoch_begin(0, {"steps": 3, "examples": 192, "epochs": 2})
        bar.close()
        bar.close()
        hide, show = "\x1b[?25l", "\x1b[?25h"
        assert out.getvalue().count(hide) == out.getvalue().count(show) == 1
        assert out.getvalue().rindex(show) > out.getvalue().rindex(hide)

    def test_a_dumb_terminal_gets_lines(self, monkeypatch):
        monkeypatch.setenv("TERM", "dumb")
        out = Terminal()
        train(ProgressBar(file=out))
        assert out.getvalue().splitlines() == LINES

    def test_without_rich_a_terminal_gets_lines(self, monkeypatch):
        real = builtins.__import__

        def without_rich(name, *rest, **more):
            if name.partition(".")[0] == "rich":
                raise ModuleNotFoundError(f"No module named {name!r}", name=name)
            return real(name, *rest, **more)

        monkeypatch.setattr(builtins, "__import__", without_rich)
        out = Terminal()
        train(ProgressBar(file=out))
        assert out.getvalue().splitlines() == LINES
        with pytest.raises(ImportError, match=r"untorn\[cli\]"):
            train(ProgressBar(file=out, rich=True))

    @pytest.mark.parametrize("rich", [False, True])
    def test_a_pipe_that_nobody_reads_ends_nothing(self, rich, monkeypatch):
        monkeypatch.setenv("TERM", "xterm-256color")
        train(ProgressBar(file=Broken(), rich=rich), epochs=3)

    def test_a_closed_stream_ends_nothing(self):
        out = io.StringIO()
        bar = ProgressBar(file=out)
        out.close()
        train(bar)

    def test_no_stderr_at_all_ends_nothing(self, monkeypatch):
        monkeypatch.setattr(sys, "stderr", None)
        train(ProgressBar())
