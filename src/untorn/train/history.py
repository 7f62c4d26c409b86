"""The return value of ``fit``: the numbers of every epoch, as a table, a dictionary and a picture.

``History.history`` has the same form as in Keras: a list per metric, with an entry per epoch. Times and speeds are
separate attributes, so that they are not averaged with the metrics::

    History
    ├── epoch                 [0, 1, 2, ...]
    ├── history               {"loss": [...], "accuracy": [...], "val_loss": [...], "val_accuracy": [...]}
    ├── seconds               [0.41, 0.40, ...]       the duration of each epoch
    └── examples_per_s        [3500.0, 3590.0, ...]   training examples per second
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from os import PathLike
from typing import IO, TYPE_CHECKING, Any, NoReturn

from untorn import html
from untorn.first_guesses import unknown_attribute

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["History", "number_text"]

_COLUMN_GAP = "  "
# A line for training and one for validation, in one colour family per metric (dark and light).
_COLOURS = (
    ("#08519c", "#6baed6"),
    ("#006d2c", "#74c476"),
    ("#a63603", "#fd8d3c"),
    ("#54278f", "#9e9ac8"),
)


class History:
    """The metrics of a training run, epoch by epoch.

    Every list is as long as ``epoch``, since a metric is NaN in epochs that do not have it.

    Attributes:
        epoch: the numbers of the epochs, from 0.
        history: for each metric its values, one per epoch. Those of validation data start with ``val_``.
        seconds: the duration of each epoch, in seconds.
        examples_per_s: training examples per second in each epoch.

    Example:
        >>> history = History()
        >>> history.append(0, {"loss": 2.25, "accuracy": 0.5}, seconds=0.5, examples_per_s=2874.0)
        >>> history.append(1, {"loss": 0.75, "accuracy": 0.875}, seconds=0.25, examples_per_s=5748.0)
        >>> history.history["loss"]
        [2.25, 0.75]
        >>> print(history)
        epoch    loss  accuracy  seconds  examples/s
            1  2.2500    0.5000     0.50       2,874
            2  0.7500    0.8750     0.25       5,748

    """

    __slots__ = ("epoch", "examples_per_s", "history", "seconds")

    epoch: list[int]
    history: dict[str, list[float]]
    seconds: list[float]
    examples_per_s: list[float]

    def __init__(self) -> None:
        self.epoch = []
        self.history = {}
        self.seconds = []
        self.examples_per_s = []

    def append(self, epoch: int, metrics: Mapping[str, float], *, seconds: float, examples_per_s: float) -> None:
        """Add the numbers of one epoch.

        Args:
            epoch: its number.
            metrics: its metrics by name; a new name is NaN in the epochs before, a missing one NaN in this epoch.
            seconds: its duration.
            examples_per_s: training examples per second.

        """
        before = len(self.epoch)
        self.epoch.append(int(epoch))
        self.seconds.append(float(seconds))
        self.examples_per_s.append(float(examples_per_s))
        for name in metrics:
            self.history.setdefault(name, [math.nan] * before)
        for name, values in self.history.items():
            values.append(float(metrics.get(name, math.nan)))

    def to_dict(self) -> dict[str, Any]:
        """Return a copy as plain lists and dictionaries."""
        return {
            "epoch": list(self.epoch),
            "history": {name: list(values) for name, values in self.history.items()},
            "seconds": list(self.seconds),
            "examples_per_s": list(self.examples_per_s),
        }

    @classmethod
    def from_dict(cls, document: Mapping[str, Any]) -> History:
        """Return the history from which to_dict() made this document; a copy. An empty document is a history without
        epochs. Raises ValueError for any other document, such as one whose lists differ in length."""
        made = cls()
        made.epoch = list(document.get("epoch", ()))
        made.history = {name: list(values) for name, values in document.get("history", {}).items()}
        made.seconds = list(document.get("seconds", ()))
        made.examples_per_s = list(document.get("examples_per_s", ()))
        columns: list[list[Any]] = [made.epoch, made.seconds, made.examples_per_s, *made.history.values()]
        if {len(column) for column in columns} != {len(made.epoch)} or not all(map(_are_numbers, columns)):
            raise ValueError("expected a history with lists of numbers, one per epoch")
        return made

    if not TYPE_CHECKING:  # a type checker would take every name for one that is here

        def __getattr__(self, name: str) -> NoReturn:
            """Raise the error for an attribute that is not there."""
            metrics = () if name in self.__slots__ else self.history  # a slot may be empty in a copy that is being made
            guesses = {each: f"write history[{each!r}], of the attribute history" for each in metrics}
            raise unknown_attribute(self, name, guesses)

    def __len__(self) -> int:
        return len(self.epoch)

    def __repr__(self) -> str:
        if not self.epoch:
            return "<History: no epochs>"
        last = ", ".join(f"{name}={values[-1]:.4g}" for name, values in self.history.items())
        return f"<History: {len(self.epoch)} epoch{'s' if len(self.epoch) > 1 else ''}; the last: {last}>"

    def _repr_html_(self) -> str:
        """Return the last epochs as a table for notebooks."""
        last = range(max(0, len(self) - html.MAX_ROWS), len(self))
        rows = [
            (
                self.epoch[index] + 1,
                *(number_text(values[index]) for values in self.history.values()),
                f"{self.seconds[index]:.2f}",
                f"{self.examples_per_s[index]:,.0f}",
            )
            for index in last
        ]
        columns = ("epoch", *self.history, "seconds", "examples/s")
        title = f"History of {len(self)} epochs" + (f", the last {len(last)} of them" if len(last) < len(self) else "")
        return html.table(title, columns, rows, total=len(rows))

    def __str__(self) -> str:
        """Return a table with a line per epoch, counted from 1 as in plots and progress bars."""
        columns: list[tuple[str, list[str]]] = [("epoch", [str(epoch + 1) for epoch in self.epoch])]
        columns += [(name, [number_text(value) for value in values]) for name, values in self.history.items()]
        columns.append(("seconds", [f"{value:.2f}" for value in self.seconds]))
        columns.append(("examples/s", [f"{value:,.0f}" for value in self.examples_per_s]))
        widths = [max(len(title), *map(len, cells), 0) for title, cells in columns]
        rows = [[title for title, _ in columns], *zip(*(cells for _, cells in columns), strict=True)]
        return "\n".join(
            _COLUMN_GAP.join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in rows
        )

    def plot(
        self, path: str | PathLike[str] | IO[bytes] | None = None, *, metrics: Sequence[str] | None = None
    ) -> Figure:
        """Draw the learning curves: one subplot per metric, with training and validation in shades of one colour.

        Needs matplotlib (``pip install 'untorn[plot]'``), but no display, and does not use pyplot.

        Args:
            path: the file to write, whose suffix determines the format (.png, .svg, .pdf), or an open binary file for
                a PNG; None writes nothing.
            metrics: the metrics to draw, without ``val_``, in this order; None for all.

        Returns:
            The figure, to show it or change it; the last value of a cell of a notebook is shown as a picture.

        Raises:
            ImportError: matplotlib is not installed.
            ValueError: there are no epochs yet, no such metric, or matplotlib does not know the format.
            OSError: the file cannot be written.

        Example:
            >>> history = History()
            >>> history.append(0, {"loss": 2.0, "val_loss": 2.5}, seconds=1.0, examples_per_s=100.0)
            >>> figure = history.plot()
            >>> [axes.get_ylabel() for axes in figure.axes]
            ['loss']

        """
        names = self._metrics_to_plot(metrics)
        try:
            from matplotlib.ticker import MaxNLocator

            from untorn.train.picture import Picture
        except ImportError as error:
            raise ImportError(
                "History.plot needs matplotlib, which is not installed; pip install 'untorn[plot]'"
            ) from error

        figure = Picture(figsize=(4.8 * len(names), 3.6), dpi=150, layout="constrained")
        figure.suptitle(f"Learning curve, {len(self.epoch)} epoch{'s' if len(self.epoch) > 1 else ''}")
        for index, (axes, name) in enumerate(zip(figure.subplots(1, len(names), squeeze=False)[0], names, strict=True)):
            self._draw(axes, name, _COLOURS[index % len(_COLOURS)])
            axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        if path is not None:
            figure.savefig(path)
        return figure

    def _metrics_to_plot(self, metrics: Sequence[str] | None) -> list[str]:
        known = list(dict.fromkeys(name.removeprefix("val_") for name in self.history))
        if not self.epoch or not known:
            raise ValueError("nothing to plot yet: the history has no epochs with metrics")
        if metrics is None:
            return known
        if isinstance(metrics, str):
            raise TypeError(f"metrics={metrics!r} is one string; expected a list of names: [{metrics!r}]")
        chosen = [name.removeprefix("val_") for name in metrics]
        for name in chosen:
            if name not in known:
                raise ValueError(f"the history has no metric {name!r}; expected some of {', '.join(known)}")
        if not chosen:
            raise ValueError(f"metrics is empty; expected some of {', '.join(known)}")
        return list(dict.fromkeys(chosen))

    def _draw(self, axes: Any, name: str, colours: tuple[str, str]) -> None:
        lines = (("training", name, "-", colours[0]), ("validation", f"val_{name}", "--", colours[1]))
        marker = "o" if len(self.epoch) <= 30 else None  # without markers, a single epoch would be invisible
        for label, key, style, colour in lines:
            if key in self.history:
                axes.plot(
                    [epoch + 1 for epoch in self.epoch],  # as the progress bar counts them
                    self.history[key],
                    style,
                    color=colour,
                    label=label,
                    marker=marker,
                    markersize=3.5,
                    linewidth=1.8,
                )
        axes.set_title(name.replace("_", " ").capitalize(), fontsize=11)
        axes.set_xlabel("epoch")
        axes.set_ylabel(name)
        axes.grid(visible=True, alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False)


def number_text(value: float) -> str:
    """Return a number with four decimals, or with an exponent and three digits if it is very small or large."""
    if value == 0 or not math.isfinite(value) or 1e-3 <= abs(value) < 1e5:
        return f"{value:.4f}"
    return f"{value:.2e}"


def _are_numbers(values: list[Any]) -> bool:
    return all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)
