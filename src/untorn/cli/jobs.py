"""One running job as ``untorn top NAME`` shows it: how far it is, its losses as a curve, and what its workers do.

::

    look() ──> Look ──┐                           terminal: picture(), as many lines as there is room for
    look() ──> Look ──┴── paces() ──> JobView ──> pipe: one_line() or document() per refresh

A job that is busy is shown as it was when it last answered, and so is one that has ended.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import RenderableType
from rich.text import Text

from untorn.cli.tables import count, grid, plain
from untorn.control import ask
from untorn.errors import BrokenChannelError, ChannelNotFoundError, UntornError

__all__ = ["JobView", "Look", "Pace", "curve", "job_views", "look", "paces", "resize"]

_COLUMNS = ("WORKER", "PID", "STATE", "GRADIENTS", "GRADIENTS/S", "SHARE")
_NUMBERS = frozenset({"WORKER", "PID", "GRADIENTS", "GRADIENTS/S", "SHARE"})
_OPTIONAL = ("GRADIENTS", "SHARE", "PID")
#: a look must not keep the keyboard waiting
_TIMEOUT_S = 0.5
#: lines of the curve, and how much of a wide terminal it takes
_CURVE_LINES = range(6, 11)
_CURVE_WIDTH = 110
#: lines of metrics
_MOST_LINES = 3
#: from such a ratio of the largest loss to the smallest on, the curve's axis is logarithmic
_LOG_FROM = 30.0
#: of a braille character, by its dots' row and column
_DOTS = ((0x01, 0x08), (0x02, 0x10), (0x04, 0x20), (0x40, 0x80))
_STYLES = {"running": "green", "starting": "yellow", "dead": "red", "stopped": "dim", "leaving": "dim"}


@dataclass(frozen=True)
class Look:
    """What one look at a job saw.

    Attributes:
        name: that it was asked for under.
        at: by the monotonic clock, in seconds: when it last answered, or was first asked.
        status: what it said then; None if it has never answered.
        problem: why it did not answer this time, or an empty string.
    """

    name: str
    at: float
    status: dict[str, Any] | None
    problem: str = ""


@dataclass(frozen=True)
class Pace:
    """One worker between two answers: gradients per second, and its share of all workers'. None at the first look at
    it, and where nobody has a share."""

    gradients_per_s: float | None
    share: float | None


def resize(name: str, by: int, timeout_s: float) -> dict[str, Any]:
    """Ask a job for so many workers more, or fewer: its ``name``, and ``workers`` as they are and ``was`` before."""
    return {"name": name} | ask(name, {"do": "resize", "by": by}, timeout_s=timeout_s)


def look(name: str, before: Look | None = None) -> Look:
    """Look once; where there is no answer, at what was ``before``."""
    try:
        status = ask(name, {"do": "status"}, timeout_s=_TIMEOUT_S)
        return Look(name, time.monotonic(), status)
    except TimeoutError:
        problem = "busy: validation or a callback may be running"
    except (ChannelNotFoundError, BrokenChannelError) as error:
        problem = str(error) if before is None or before.status is None else "it has ended"
    except (UntornError, OSError, ValueError) as error:
        problem = str(error)
    if before is None:
        return Look(name, time.monotonic(), None, problem)
    return Look(name, before.at, before.status, problem)


def job_views(name: str) -> Iterator[JobView]:
    """Look again and again; the paces of a job that is busy are the last ones."""
    answered: Look | None = None
    now, shown = look(name), list[Pace]()
    while True:
        if not now.problem:
            shown, answered = paces(answered, now), now
        yield JobView(now, shown)
        now = look(name, now)


def paces(before: Look | None, now: Look) -> list[Pace]:
    """What each worker has done from one answer to the next. A worker is known by its index and its pid."""
    known = {_identity(worker): worker.get("gradients", 0) for worker in (_workers_of(before) if before else [])}
    done = [
        max(0, worker.get("gradients", 0) - known[_identity(worker)]) if _identity(worker) in known else None
        for worker in _workers_of(now)
    ]
    seconds = max(now.at - before.at, 1e-9) if before else math.inf
    every = sum(filter(None, done))
    return [
        Pace(None, None) if each is None else Pace(each / seconds, each / every if every else None) for each in done
    ]


def _identity(worker: dict[str, Any]) -> tuple[Any, Any]:
    return worker.get("index"), worker.get("pid")


def _workers_of(look: Look) -> list[dict[str, Any]]:
    return list((look.status or {}).get("workers") or [])


@dataclass(frozen=True)
class JobView:
    """A look, and the pace of each of its workers, in the forms that it is shown in."""

    look: Look
    paces: Sequence[Pace]

    def document(self) -> dict[str, Any]:
        """What scripts get: the job's own words, and each worker's pace."""
        status = self.look.status
        if status is not None:
            workers = [
                worker | {"gradients_per_s": pace.gradients_per_s, "share": pace.share}
                for worker, pace in zip(_workers_of(self.look), self.paces, strict=True)
            ]
            status = status | {"workers": workers}
        return {"at": time.time(), "job": status, "problem": self.look.problem or None}

    def printed(self, *, first: bool) -> list[RenderableType]:
        """What people get from a pipe: one line with the most important."""
        parts, status = [plain(self.look.name)], self.look.status
        if status is not None:
            at_work = sum(worker.get("state") in ("starting", "running") for worker in _workers_of(self.look))
            parts += [_epoch(status), f"step {status.get('step', 0):,}", f"version {status.get('version', 0):,}"]
            parts += [*_measured(status), count(at_work, "worker"), *_mishaps(status)]
        return ["  ".join(parts + ([plain(self.look.problem)] if self.look.problem else []))]

    def picture(self, width: int, height: int) -> list[RenderableType]:
        """The parts of the view, most important first, for so many characters and lines."""
        status, problem = self.look.status, plain(self.look.problem)
        if status is None:
            return [Text(plain(self.look.name), style="bold"), Text(problem, style="yellow")]
        head = [*_head(status, width)]
        if problem:
            head.append(_cropped(f"{problem}; last answer {time.monotonic() - self.look.at:.0f} s ago", "yellow"))
        facts = [*_flowing(_measured(status), width), *_flowing(_mishaps(status), width)]
        workers = [_row(worker, pace) for worker, pace in zip(_workers_of(self.look), self.paces, strict=True)]
        table = grid(_COLUMNS, workers, right=_NUMBERS, optional=_OPTIONAL, width=width)
        # beside these: the curve's axis, the table's heading, and two empty lines
        room = height - len(head) - len(facts) - len(workers) - 4
        lines = min(max(room, _CURVE_LINES.start), _CURVE_LINES.stop - 1)
        curve_lines = _framed(status.get("losses") or [], min(width, _CURVE_WIDTH), lines)
        return [*head, Text(), *curve_lines, *facts, Text(), table]


# -- what it looks like


def _head(status: dict[str, Any], width: int) -> Iterator[Text]:
    elapsed = _clock(time.time() - status["started_at"]) if status.get("started_at") else "-"
    what = f"pid {status.get('pid')}  {plain(status.get('mode'))}, {plain(status.get('engine'))}  {elapsed}"
    name = Text(plain(status.get("name")), style="bold")
    name.truncate(max(8, width - len(what) - 2), overflow="ellipsis")
    yield Text.assemble(name, "  ", (what, "dim"), no_wrap=True, overflow="crop")
    done, steps = status.get("step_in_epoch") or 0, status.get("steps_per_epoch") or 0
    where = f"{_epoch(status)}  {done:,}/{steps:,}"
    numbers = f"step {status.get('step', 0):,}  version {status.get('version', 0):,}"
    length = min(40, width - len(where) - len(numbers) - 4)
    bar = ""
    if steps and length >= 8:
        full = min(length, round(length * done / steps))
        bar = f"{'━' * full}{'─' * (length - full)}  "
    yield _cropped(f"{where}  {bar}{numbers}")


def _row(worker: dict[str, Any], pace: Pace) -> list[str | Text]:
    state = plain(worker.get("state"))
    return [
        str(worker.get("index")),
        str(worker.get("pid") or "-"),
        Text(state, style=_STYLES.get(state, "")),
        f"{worker.get('gradients', 0):,}",
        "-" if pace.gradients_per_s is None else f"{pace.gradients_per_s:,.1f}",
        "-" if pace.share is None else f"{100 * pace.share:.0f} %",
    ]


def _measured(status: dict[str, Any]) -> list[str]:
    """Loss, metrics, learning rate and speed, as far as there are any."""
    named = {"loss": status.get("loss")} | dict(status.get("metrics") or {})
    named["learning rate"] = status.get("learning_rate")
    texts = [f"{plain(name)} {value:.4g}" for name, value in named.items() if value is not None]
    speed = status.get("examples_per_s")
    return texts + ([] if speed is None else [f"{speed:,.0f} examples/s"])


def _epoch(status: dict[str, Any]) -> str:
    epochs = status.get("epochs") or 0
    return f"epoch {min((status.get('epoch') or 0) + 1, max(epochs, 1))}/{epochs}"


def _mishaps(status: dict[str, Any]) -> list[str]:
    """Workers that were replaced; and in async mode, how old the gradients were."""
    texts = [count(status.get("restarts") or 0, "restart")]
    if status.get("mode") == "async":
        mean, most = status.get("staleness") or (None, None)
        bound = status.get("max_staleness")
        seen = "staleness -" if mean is None else f"staleness {mean:.2f} mean, {most} max"
        texts.append(seen + ("" if bound is None else f" of at most {bound}"))
    return texts


def _clock(seconds: float) -> str:
    """``0:01:05``."""
    whole = max(0, int(seconds))
    return f"{whole // 3600}:{whole // 60 % 60:02}:{whole % 60:02}"


def _cropped(text: str, style: str = "") -> Text:
    return Text(text, style=style, no_wrap=True, overflow="crop")


def _flowing(texts: Iterable[str], width: int) -> list[Text]:
    """As many in a line as fit."""
    lines: list[str] = []
    for text in texts:
        if lines and len(lines[-1]) + 2 + len(text) <= width:
            lines[-1] += f"  {text}"
        else:
            lines.append(text)
    if len(lines) > _MOST_LINES:
        lines = [*lines[: _MOST_LINES - 1], lines[_MOST_LINES - 1][: width - 4] + " ..."]
    return [_cropped(line) for line in lines]


# -- the curve


def _framed(losses: Sequence[Sequence[Any]], width: int, height: int) -> list[Text]:
    """The curve with its axes' numbers: ``height`` lines, and one below them."""
    points = [(float(step), float(loss)) for step, loss in losses if loss is not None]
    if not points:
        return [Text("no losses yet", style="dim"), Text()]
    low, high = min(loss for _, loss in points), max(loss for _, loss in points)
    logarithmic = low > 0 and high / low >= _LOG_FROM
    middle = math.sqrt(low * high) if logarithmic else (low + high) / 2
    at = {0: high, height // 2: middle, height - 1: low} if high > low else {height // 2: low}
    numbers = [f"{at[row]:.4g}" if row in at else "" for row in range(height)]
    margin = max(len("loss"), *map(len, numbers))
    across = max(8, width - margin - 2)
    scaled = [(step, math.log(loss)) for step, loss in points] if logarithmic else points
    rows = curve(scaled, width=across, height=height)
    lines = [
        Text.assemble((f"{number:>{margin}} {'┤' if number else '│'}", "dim"), (row, "cyan"))
        for number, row in zip(numbers, rows, strict=True)
    ]
    first, last = f"{points[0][0]:,.0f}", f"step {points[-1][0]:,.0f}"
    kind = "logarithmic" if logarithmic else ""
    axis = f"{first}{kind:^{max(0, across - len(first) - len(last))}}{last}"
    lines.append(_cropped(f"{'loss':>{margin}}  {axis}", style="dim"))
    for line in lines:
        line.no_wrap, line.overflow = True, "crop"
    return lines


def curve(points: Sequence[tuple[float, float]], *, width: int, height: int) -> list[str]:
    """Points joined by straight lines, as ``height`` strings of ``width`` braille characters of 2 x 4 dots each."""
    columns, rows = 2 * width - 1, 4 * height - 1
    (left, *_, right), heights = (points[0][0], points[-1][0]), [y for _, y in points]
    bottom, top = min(heights), max(heights)
    places = [(_scaled(x, left, right, columns, 0.0), rows - _scaled(y, bottom, top, rows, 0.5)) for x, y in points]
    cells = [[0] * width for _ in range(height)]
    for (x0, y0), (x1, y1) in itertools.pairwise([places[0], *places]):
        parts = max(abs(x1 - x0), abs(y1 - y0), 1)
        for part in range(parts + 1):
            x, y = round(x0 + (x1 - x0) * part / parts), round(y0 + (y1 - y0) * part / parts)
            cells[y // 4][x // 2] |= _DOTS[y % 4][x % 2]
    return ["".join(chr(0x2800 + cell) if cell else " " for cell in row).ljust(width) for row in cells]


def _scaled(value: float, low: float, high: float, size: int, otherwise: float) -> int:
    """Where the value is between low and high, as 0 to size."""
    return round(size * ((value - low) / (high - low) if high > low else otherwise))
