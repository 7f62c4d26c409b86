"""The History: lists per metric, the table, the picture."""

from __future__ import annotations

import io
import math
import sys

import pytest

from untorn.train.history import History


@pytest.fixture
def history() -> History:
    made = History()
    for epoch in range(3):
        made.append(
            epoch,
            {"loss": 2.0 / (epoch + 1), "accuracy": 0.5 + epoch / 8, "val_loss": 2.5, "val_accuracy": 0.5},
            seconds=0.5,
            examples_per_s=1000.0 + epoch,
        )
    return made


def test_lists_as_keras_taught(history):
    assert history.epoch == [0, 1, 2]
    assert list(history.history) == ["loss", "accuracy", "val_loss", "val_accuracy"]
    assert history.history["accuracy"] == [0.5, 0.625, 0.75]
    assert history.seconds == [0.5] * 3
    assert history.examples_per_s == [1000.0, 1001.0, 1002.0]
    assert len(history) == 3


def test_a_metric_that_comes_and_goes_is_nan_elsewhere():
    history = History()
    history.append(0, {"loss": 1.0}, seconds=1, examples_per_s=1)
    history.append(1, {"loss": 1.0, "f1": 0.5}, seconds=1, examples_per_s=1)
    history.append(2, {"f1": 0.75}, seconds=1, examples_per_s=1)
    assert history.history["loss"][:2] == [1.0, 1.0]
    assert math.isnan(history.history["loss"][2])
    assert math.isnan(history.history["f1"][0])
    assert history.history["f1"][1:] == [0.5, 0.75]


def test_the_table_has_aligned_columns(history):
    lines = str(history).splitlines()
    assert lines[0].split() == ["epoch", "loss", "accuracy", "val_loss", "val_accuracy", "seconds", "examples/s"]
    assert len(lines) == 4
    assert len({len(line) for line in lines}) == 1
    assert lines[3].split() == ["3", "0.6667", "0.7500", "2.5000", "0.5000", "0.50", "1,002"]
    assert "3 epochs" in repr(history)
    assert "loss=0.6667" in repr(history)


def test_without_epochs():
    history = History()
    assert str(history).split() == ["epoch", "seconds", "examples/s"]
    assert "no epochs" in repr(history)
    with pytest.raises(ValueError, match="no epochs"):
        history.plot()


def test_tiny_and_infinite_numbers_stay_readable():
    history = History()
    history.append(0, {"loss": 1.5e-7, "ppl": math.inf}, seconds=0, examples_per_s=0)
    assert "1.50e-07" in str(history)
    assert "inf" in str(history)


@pytest.fixture(scope="module")
def fonts() -> None:
    """Let matplotlib open its font files, which it keeps open, before a test counts descriptors."""
    pytest.importorskip("matplotlib")
    history = History()
    history.append(0, {"loss": 1.0}, seconds=1, examples_per_s=1)
    history.plot(io.BytesIO())


@pytest.mark.usefixtures("fonts")
class TestPlot:
    def test_one_subplot_per_metric_with_whole_epochs(self, history):
        figure = history.plot()
        assert [axes.get_ylabel() for axes in figure.axes] == ["loss", "accuracy"]
        for axes in figure.axes:
            assert axes.get_xlabel() == "epoch"
            assert axes.get_title()
            assert [line.get_label() for line in axes.lines] == ["training", "validation"]
            assert all(float(tick).is_integer() for tick in axes.get_xticks())
        assert figure.get_suptitle()

    def test_chosen_metrics_in_the_order_given(self, history):
        figure = history.plot(metrics=["accuracy", "val_accuracy"])
        assert [axes.get_ylabel() for axes in figure.axes] == ["accuracy"]
        with pytest.raises(ValueError, match=r"'f1'.*loss, accuracy"):
            history.plot(metrics=["f1"])
        with pytest.raises(TypeError, match=r"\['loss'\]"):
            history.plot(metrics="loss")

    @pytest.mark.parametrize("ending", ["png", "svg"])
    def test_writes_the_file(self, history, tmp_path, ending):
        path = tmp_path / f"curve.{ending}"
        history.plot(path)
        assert path.stat().st_size > 1000

    def test_leaves_pyplot_alone(self, history, monkeypatch):
        monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)  # importing it would raise
        history.plot()


@pytest.mark.usefixtures("fonts")
def test_notebooks_show_a_picture(history):
    assert history.plot()._repr_png_().startswith(b"\x89PNG")


def test_without_matplotlib_it_names_the_extra(history, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    monkeypatch.delitem(sys.modules, "untorn.train.picture", raising=False)  # a test before has imported it
    with pytest.raises(ImportError, match=r"untorn\[plot\]"):
        history.plot()
