"""Show the progress of training on stderr: a live bar on a terminal, a line per epoch elsewhere.

On a terminal with rich installed, the running epoch is a bar with its step, the means so far, the number of restarted
workers if there are any, examples per second, the learning rate, and the version of the weights. On a narrow terminal
the last of these are left out. A finished epoch leaves one plain line, the same line that a pipe, a log file or a
terminal without rich gets::

    epoch  2/20  loss 0.3121  val_loss 0.2410  val_accuracy 0.9417  52,381 examples/s  lr 0.01  version 46

In a cell of a notebook the line of the running epoch is text, too. It is written again and again, after a carriage
return, which is all that Jupyter and its descendants understand.

A failure to write (the pipe is closed, the terminal is gone) does not end training; no more is written then. There is
no thread: ``on_batch_end`` draws the bar, at most ten times a second.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, TextIO

from untorn.train.callbacks.base import Callback, Logs
from untorn.train.history import number_text

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress, TaskID

__all__ = ["ProgressBar"]

_REDRAW_INTERVAL_S = 0.1
#: of a line that is written again; a shorter epoch writes its last line only
_REWRITE_INTERVAL_S = 0.5
_REWRITTEN_COLUMNS = 100
# Entries in the logs of a step or an epoch that are not metrics.
_NOT_METRICS = frozenset(
    {
        "examples", "version", "restarts", "learning_rate", "staleness", "examples_per_s", "seconds", "steps", "epochs",
        "step", "epoch",
    }
)  # fmt: skip
_GAP = "  "
_BAR_WIDTH = 24
_NARROW_BAR_WIDTH = 10  # on a terminal of less than 100 columns


class ProgressBar(Callback):
    """Show progress on stderr: a bar on a terminal (needs rich: ``untorn[cli]``), else one line per epoch.

    Args:
        file: a stream to write to; by default, ``sys.stderr`` as it is when training begins.
        rich: True always draws bars (ImportError without rich), False always prints lines; None draws bars if possible.
        rewrite: where no bars are drawn, show the running epoch in its line, which is written again after a carriage
            return: for a cell of a notebook. ``fit`` does so there.

    Example:
        >>> import sys
        >>> bar = ProgressBar(file=sys.stdout, rich=False)
        >>> bar.on_train_begin({})
        >>> bar.on_epoch_begin(0, {"steps": 1, "examples": 64, "epochs": 20})
        >>> bar.on_batch_end(0, {"loss": 2.5, "examples": 64, "version": 2, "restarts": 0})
        >>> bar.on_epoch_end(0, {"loss": 2.5, "val_loss": 2.25, "examples_per_s": 5200.0, "learning_rate": 0.1})
        epoch  1/20  loss 2.5000  val_loss 2.2500  5,200 examples/s  lr 0.1  version 2

    """

    def __init__(self, *, file: TextIO | None = None, rich: bool | None = None, rewrite: bool = False) -> None:
        self._file = file
        self._rewrite = rewrite
        self._rich = rich
        self._out: TextIO | None = None
        self._console: Console | None = None
        self._bar: Progress | None = None
        self._task: TaskID | None = None
        self._epoch = 0
        self._begin_epoch({})
        self._forget()

    def _forget(self) -> None:
        self._version: int | None = None
        self._restarts = 0
        self._learning_rate = self._staleness = math.nan

    def _begin_epoch(self, logs: Logs) -> None:
        self._steps = int(logs.get("steps", 0))
        self._epochs = int(logs.get("epochs", 0))
        self._sums: dict[str, float] = {}
        self._examples = 0
        self._began_at = time.monotonic()
        self._drawn_at = -math.inf
        self._drawn_columns = 0  # of a line that is written again

    def on_train_begin(self, logs: Logs) -> None:
        """Choose the stream and the form of output."""
        self._forget()
        self._out = self._file if self._file is not None else sys.stderr
        self._console = None if self._out is None else _console(self._out, wanted=self._rich)

    def on_epoch_begin(self, epoch: int, logs: Logs) -> None:
        """Start a bar."""
        self._begin_epoch(logs)
        self._epoch = epoch
        if self._console is not None:
            self._safely(lambda: self._start_bar(epoch))

    def on_batch_end(self, batch: int, logs: Logs) -> None:
        """Count the step, and redraw the bar if it is time."""
        count = int(logs.get("examples", 1))
        self._examples += count
        for name in logs:
            if name not in _NOT_METRICS:
                self._sums[name] = self._sums.get(name, 0.0) + float(logs[name]) * count
        self._note(logs)
        now = time.monotonic()
        if self._bar is not None and now - self._drawn_at >= _REDRAW_INTERVAL_S:
            self._drawn_at = now
            self._safely(lambda: self._draw(batch + 1, now))
        elif self._rewrite and self._console is None:
            self._safely(lambda: self._draw_line(batch + 1, now))

    def _note(self, logs: Logs) -> None:
        self._version = logs.get("version", self._version)
        self._restarts = int(logs.get("restarts", self._restarts))
        self._learning_rate = float(logs.get("learning_rate", self._learning_rate))
        self._staleness = float(logs.get("staleness", self._staleness))

    def on_epoch_end(self, epoch: int, logs: Logs) -> None:
        """Remove the bar and print the epoch's line."""
        self.close()
        self._note(logs)
        line, again = self._line(epoch, logs), "\r" if self._drawn_columns else ""
        self._safely(lambda: self._write(f"{again}{line.ljust(self._drawn_columns)}\n"))

    def on_train_end(self, logs: Logs) -> None:
        """Restore the terminal."""
        self.close()

    def close(self) -> None:
        """Remove the bar, if there is one, and show the terminal's cursor again. May be called at any time."""
        bar, self._bar, self._task = self._bar, None, None
        if bar is not None:
            self._safely(bar.stop)

    def _start_bar(self, epoch: int) -> None:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
        from rich.table import Column

        self.close()
        self._bar = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=self._bar_width()),
            MofNCompleteColumn(),
            TextColumn("{task.fields[numbers]}", markup=False, table_column=Column(no_wrap=True)),
            console=self._console,
            auto_refresh=False,
            transient=True,
        )
        self._task = self._bar.add_task(self._title(epoch), total=self._steps or None, numbers="")
        self._bar.start()
        self._bar.refresh()

    def _draw(self, steps_done: int, now: float) -> None:
        if self._bar is None or self._task is None:
            return
        means = self._means()
        speed = self._examples / max(now - self._began_at, 1e-9)
        # the bar's columns: title, bar, step/steps, numbers, with a blank between them
        taken = len(self._bar.tasks[0].description) + self._bar_width() + 2 * len(str(self._steps)) + 1 + 3
        numbers = _fitting(self._numbers(means, speed), self._columns() - taken)
        self._bar.update(self._task, completed=steps_done, numbers=numbers)
        self._bar.refresh()

    def _draw_line(self, steps_done: int, now: float) -> None:
        if now - max(self._drawn_at, self._began_at) < _REWRITE_INTERVAL_S:
            return
        self._drawn_at = now
        parts = [self._title(self._epoch)]
        if self._steps:
            done = _NARROW_BAR_WIDTH * steps_done // self._steps
            parts.append("━" * done + "─" * (_NARROW_BAR_WIDTH - done))
        parts.append(f"{steps_done}/{self._steps}" if self._steps else f"step {steps_done}")
        numbers = self._numbers(self._means(), self._examples / (now - self._began_at))
        line = _fitting([*parts, *numbers], _REWRITTEN_COLUMNS)
        self._write("\r" + line.ljust(self._drawn_columns))
        self._drawn_columns = max(self._drawn_columns, len(line))

    def _means(self) -> dict[str, float]:
        return {name: total / max(self._examples, 1) for name, total in self._sums.items()}

    def _columns(self) -> int:
        return 10_000 if self._console is None else self._console.width

    def _bar_width(self) -> int:
        return _BAR_WIDTH if self._columns() >= 100 else _NARROW_BAR_WIDTH

    def _line(self, epoch: int, logs: Logs) -> str:
        metrics = {name: float(logs[name]) for name in logs if name not in _NOT_METRICS}
        numbers = self._numbers(metrics, float(logs.get("examples_per_s", math.nan)))
        return _fitting([self._title(epoch), *numbers], self._columns())

    def _title(self, epoch: int) -> str:
        if not self._epochs:
            return f"epoch {epoch + 1}"
        return f"epoch {epoch + 1:{len(str(self._epochs))}}/{self._epochs}"

    def _numbers(self, metrics: dict[str, float], examples_per_s: float) -> list[str]:
        parts = [f"{name} {number_text(value)}" for name, value in metrics.items()]
        if self._restarts:
            parts.append(f"restarts {self._restarts}")
        if math.isfinite(examples_per_s):
            parts.append(f"{examples_per_s:,.0f} examples/s")
        if math.isfinite(self._learning_rate):
            parts.append(f"lr {self._learning_rate:.3g}")
        if math.isfinite(self._staleness):
            parts.append(f"staleness {self._staleness:g}")
        if self._version is not None:
            parts.append(f"version {self._version}")
        return parts

    def _write(self, text: str) -> None:
        if self._out is not None:
            self._out.write(text)
            self._out.flush()

    def _safely(self, action: Callable[[], object]) -> None:
        """Run the action. If the stream is gone, write nothing for the rest of this training."""
        try:
            action()
        except (OSError, ValueError):  # a broken pipe, a terminal that hung up, a closed file
            self._out = self._console = self._bar = self._task = None


def _fitting(parts: list[str], columns: int) -> str:
    """Return the parts on one line, without the last ones if the line would be too long."""
    while len(parts) > 1 and len(_GAP.join(parts)) > columns:
        parts = parts[:-1]
    return _GAP.join(parts)


def _console(out: TextIO, *, wanted: bool | None) -> Console | None:
    """Return a rich console if bars are wanted and can be drawn, else None."""
    if wanted is False or (wanted is None and not _is_terminal(out)):
        return None
    try:
        from rich.console import Console
    except ImportError:
        if wanted:
            raise ImportError("ProgressBar(rich=True) needs rich; pip install 'untorn[cli]'") from None
        return None

    class BarConsole(Console):
        """Raises BrokenPipeError, which ProgressBar handles, where rich would end the process."""

        def on_broken_pipe(self) -> None:
            raise  # noqa: PLE0704 - rich calls this from its `except BrokenPipeError`

    console = BarConsole(file=out, force_terminal=True if wanted else None)
    return console if console.is_terminal and not console.is_dumb_terminal else None


def _is_terminal(out: TextIO) -> bool:
    try:
        return out.isatty()
    except (AttributeError, OSError, ValueError):
        return False
