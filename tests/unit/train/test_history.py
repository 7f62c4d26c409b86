"""History: lists of equal length, a table, and a picture without a display."""

from __future__ import annotations

import builtins
import math
import pickle
import sys

import pytest

from untorn import History


def history_of(epochs: int) -> History:
    history = History()
    for epoch in range(epochs):
        metrics = {"loss": 2.0 / (epoch + 1), "accuracy": 1 - 0.5 / (epoch + 1)}
        metrics |= {f"val_{name}": value * 0.9 for name, value in metrics.items()}
        history.append(epoch, metrics, seconds=0.5, examples_per_s=2000.0 + epoch)
    return history


def test_metrics_are_lists_with_one_value_per_epoch_and_speed_is_kept_apart():
    history = history_of(3)
    assert history.epoch == [0, 1, 2]
    assert list(history.history) == ["loss", "accuracy", "val_loss", "val_accuracy"]
    assert history.history["loss"] == [2.0, 1.0, 2.0 / 3]
    assert history.seconds == [0.5] * 3
    assert history.examples_per_s == [2000.0, 2001.0, 2002.0]


def test_a_metric_that_comes_late_or_stays_away_is_nan_there():
    history = History()
    history.append(0, {"loss": 3.0}, seconds=1, examples_per_s=1)
    history.append(1, {"loss": 2.0, "val_loss": 2.5}, seconds=1, examples_per_s=1)
    history.append(2, {"val_loss": 1.5}, seconds=1, examples_per_s=1)
    assert all(len(values) == 3 for values in history.history.values())
    assert math.isnan(history.history["val_loss"][0])
    assert math.isnan(history.history["loss"][2])
    assert history.history["val_loss"][1:] == [2.5, 1.5]


def test_the_table_has_a_line_per_epoch_and_columns_that_line_up():
    title, *rows = str(history_of(12)).splitlines()
    assert title.split() == ["epoch", "loss", "accuracy", "val_loss", "val_accuracy", "seconds", "examples/s"]
    assert len(rows) == 12
    assert {len(row) for row in rows} == {len(title)}
    assert rows[1].split() == ["1", "1.0000", "0.7500", "0.9000", "0.6750", "0.50", "2,001"]


def test_small_and_missing_values_stay_readable():
    history = History()
    history.append(0, {"loss": 1.5e-7, "val_loss": math.nan}, seconds=1, examples_per_s=1)
    assert str(history).splitlines()[1].split()[1:3] == ["1.50e-07", "nan"]


def test_repr_is_short_and_an_empty_history_can_be_shown():
    assert "3 epochs" in repr(history_of(3))
    assert len(repr(history_of(300))) < 200
    assert "no epochs" in repr(History())
    assert str(History()).startswith("epoch")


def test_it_pickles():
    copy = pickle.loads(pickle.dumps(history_of(2)))
    assert copy.history == history_of(2).history
    assert copy.epoch == [0, 1]


@pytest.fixture(scope="module")
def fonts(tmp_path_factory):
    """matplotlib keeps the fonts open that it has used once; the check for descriptors left behind comes after."""
    pytest.importorskip("matplotlib")
    history_of(2).plot(tmp_path_factory.mktemp("plot") / "first.png")


@pytest.mark.usefixtures("fonts")
class TestPlot:
    def test_one_subplot_per_metric_with_training_and_validation(self):
        figure = history_of(5).plot()
        assert [axes.get_ylabel() for axes in figure.axes] == ["loss", "accuracy"]
        for axes in figure.axes:
            assert axes.get_xlabel() == "epoch"
            assert axes.get_title()
            assert [line.get_label() for line in axes.lines] == ["training", "validation"]
            assert axes.get_legend() is not None

    @pytest.mark.parametrize("epochs", [1, 2, 7, 100])
    def test_ticks_are_whole_epochs(self, epochs: int):
        figure = history_of(epochs).plot()
        figure.canvas.draw()
        for tick in figure.axes[0].get_xticks():
            assert tick == int(tick)

    @pytest.mark.parametrize("ending", ["png", "svg", "pdf"])
    def test_it_writes_without_a_display_and_without_pyplot(self, tmp_path, monkeypatch, ending: str):
        monkeypatch.delenv("DISPLAY", raising=False)
        pyplot_before = sys.modules.get("matplotlib.pyplot")
        path = tmp_path / f"curve.{ending}"
        history_of(3).plot(path)
        assert path.stat().st_size > 1000
        assert sys.modules.get("matplotlib.pyplot") is pyplot_before

    def test_metrics_chooses_and_orders(self):
        figure = history_of(3).plot(metrics=["accuracy"])
        assert [axes.get_ylabel() for axes in figure.axes] == ["accuracy"]
        figure = history_of(3).plot(metrics=["val_accuracy", "loss"])
        assert [axes.get_ylabel() for axes in figure.axes] == ["accuracy", "loss"]

    def test_an_unknown_metric_names_those_that_there_are(self):
        with pytest.raises(ValueError, match=r"'f1'.*loss, accuracy"):
            history_of(3).plot(metrics=["f1"])

    def test_a_string_instead_of_a_list_is_refused(self):
        with pytest.raises(TypeError, match=r"\['loss'\]"):
            history_of(3).plot(metrics="loss")

    def test_there_must_be_something_to_plot(self):
        with pytest.raises(ValueError, match="nothing to plot"):
            History().plot()

    def test_nan_leaves_a_gap_and_no_warning(self, tmp_path):
        history = history_of(2)
        history.append(2, {"loss": math.nan}, seconds=1, examples_per_s=1)
        history.plot(tmp_path / "gap.png")


def test_without_matplotlib_the_error_names_the_extra(monkeypatch):
    real = builtins.__import__

    def without_matplotlib(name, *rest, **more):
        if name.partition(".")[0] == "matplotlib":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return real(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", without_matplotlib)
    with pytest.raises(ImportError, match=r"untorn\[plot\]"):
        history_of(1).plot()
