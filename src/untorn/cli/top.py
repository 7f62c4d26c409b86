"""``untorn top``: watch channels: versions and bytes per second, and how far their readers are behind. jobs.py has the
view of a running job.

::

    look() ──> Sample ──┐                       terminal: rich.live on the alternate screen, q quits
    look() ──> Sample ──┴── rates() ──> Line ──> pipe: a table or a JSON line per refresh

Each look opens the files again, so channels may come and go.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import click
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.text import Text

from untorn.cli.errors import reported
from untorn.cli.jobs import job_views
from untorn.cli.keys import keys
from untorn.cli.listing import list_channels
from untorn.cli.ls import publisher_of
from untorn.cli.queues import QueueLine, list_queues, means_queue, queue_rates, rate_tables
from untorn.cli.tables import age, grid, json_line, plain, say, size
from untorn.control import is_running, running_jobs
from untorn.errors import ChannelNotFoundError, UntornError
from untorn.share.lowlevel import ChannelState, ChannelView, QueueState, QueueView, files_of, queue_files_of

__all__ = ["Line", "Sample", "look", "rates", "top"]

_COLUMNS = ("CHANNEL", "VERSION", "VERSIONS/S", "BYTES/S", "SIZE", "READERS", "PUBLISHER", "AGE")
_NUMBERS = frozenset({"VERSION", "VERSIONS/S", "BYTES/S", "SIZE", "READERS", "AGE"})
_OPTIONAL = ("AGE", "SIZE", "PUBLISHER", "BYTES/S", "READERS", "VERSION")
#: the number of readers shown below their channel
_MAX_READERS = 4
_ASCII_LINES = str.maketrans("│┤─", "||-")


@dataclass(frozen=True)
class Sample:
    """The state of channels at one time.

    Attributes:
        at: the time by the monotonic clock, in seconds.
        states: the state of each channel, by its requested name.
        problems: for each requested name that could not be read, the reason.
        jobs: the names of the running jobs; empty unless all channels were requested.
        queues: the state of each queue, by its requested name.
    """

    at: float
    states: Mapping[str, ChannelState]
    problems: Mapping[str, str]
    jobs: Sequence[str] = ()
    queues: Mapping[str, QueueState] = field(default_factory=dict)


@dataclass(frozen=True)
class Line:
    """One channel between two samples; the rates are None in its first one."""

    name: str
    state: ChannelState
    versions_per_s: float | None
    bytes_per_s: float | None


def look(channels: Sequence[str]) -> Sample:
    """Sample these channels, or all of this user's channels."""
    states, problems, queues = {}, {}, {}
    for name in channels:
        try:
            if means_queue(name):
                with QueueView.open(queue_files_of(name)) as queue:
                    queues[name] = queue.state()
                continue
            with ChannelView.open(files_of(name)) as view:
                states[name] = view.state()
        except ChannelNotFoundError as error:
            problems[name] = f"{error}; shown here once it is published, or a job of this name runs"
        except (UntornError, OSError, ValueError) as error:
            problems[name] = str(error)
    if not channels:
        states = {found.name: found.state for found in list_channels() if found.state is not None}
        queues = {found.name: found.state for found in list_queues() if found.state is not None}
    return Sample(time.monotonic(), states, problems, [] if channels else running_jobs(), queues)


def rates(before: Sample | None, now: Sample) -> list[Line]:
    """Return the rates between two samples. Bytes count as if all versions were as large as the newest."""
    lines = []
    for name, state in now.states.items():
        known = before.states.get(name) if before is not None else None
        if known is None or before is None or known.id != state.id:  # new, or created again under its old name
            lines.append(Line(name, state, None, None))
            continue
        per_s = max(0, state.version - known.version) / max(now.at - before.at, 1e-9)
        lines.append(Line(name, state, per_s, per_s * state.nbytes))
    return lines


@click.command(short_help="Watch channels or a running job.")
@click.argument("channels", nargs=-1, metavar="[NAME]...")
@click.option(
    "--interval",
    "interval_s",
    type=click.FloatRange(min=0.01),
    default=1.0,
    show_default=True,
    help="Seconds between refreshes.",
)
@click.option("--count", type=click.IntRange(min=1), help="Exit after this number of refreshes.")
@click.option(
    "--wait",
    "wait_s",
    type=click.FloatRange(min=0),
    default=10.0,
    show_default=True,
    help="Into a pipe: how many seconds to wait for a NAME that is not there yet. A terminal waits until q.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one line of JSON per refresh.")
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
def top(
    *, channels: tuple[str, ...], interval_s: float, count: int | None, wait_s: float, as_json: bool, debug: bool
) -> None:
    """Watch the running job NAME, the channels with these names, or all of this user's channels. Press q to quit.

    For a job, started with Trainer(name=NAME) or untorn train --name NAME, show its progress, losses and workers.

    A NAME that is neither is waited for: once its job starts, or its channel is published, it is shown.

    For channels, BYTES/S is VERSIONS/S times the size of the newest version. Below each channel are its readers, those
    furthest behind first, with the number of versions between the one they hold and the newest. Watching takes no
    reader row and disturbs no process. A queue's line has the items that wait. Below are the processes that wait
    for one, or have some.
    """
    with reported(debug=debug):
        views = _views_of_one(channels[0]) if len(channels) == 1 else _channel_views(channels)
        if not as_json and sys.stdout.isatty():
            _show_live(views, interval_s, count)
            return
        if not _print_lines(views, interval_s, count, wait_s if channels else None, as_json=as_json):
            names = ", ".join(map(repr, channels))
            raise ChannelNotFoundError(
                f"no job and no channel {names}; `untorn ls` shows the channels, `untorn top` also the running jobs"
            )


class View(Protocol):
    """One refresh, in each of the forms of output."""

    @property
    def shown(self) -> Collection[str]:
        """The names of the channels, or of the job, that it shows."""
        ...

    def document(self) -> dict[str, Any]:
        """Return the JSON document."""
        ...

    def printed(self, *, first: bool) -> Sequence[RenderableType]:
        """Return the text for a pipe."""
        ...

    def picture(self, width: int, height: int) -> Sequence[RenderableType]:
        """Return the view for a terminal of this many characters and lines."""
        ...


@dataclass(frozen=True)
class ChannelsView:
    """Channels between two samples."""

    lines: Sequence[Line]
    queues: Sequence[QueueLine]
    sample: Sample

    @property
    def shown(self) -> Collection[str]:
        """The names of the channels and queues."""
        return self.sample.states.keys() | self.sample.queues.keys()

    def document(self) -> dict[str, Any]:
        """Return the rates, in versions and bytes per second, and the state of each channel and its readers."""
        return _json(self.lines, self.queues, self.sample)

    def printed(self, *, first: bool) -> list[RenderableType]:
        """Return the whole table, after an empty line unless it is the first."""
        return [*([] if first else [""]), *_parts(self.lines, self.queues, self.sample)]

    def picture(self, width: int, height: int) -> list[RenderableType]:
        """Return the whole table; grid() finds out the width itself."""
        return [*_parts(self.lines, self.queues, self.sample)]


def _views_of_one(name: str) -> Iterator[View]:
    """Yield views of a job if one of that name runs, or as soon as it does, and of a channel until then."""
    channels = _channel_views([name])
    while not is_running(name):
        yield next(channels)
    yield from job_views(name)


def _channel_views(channels: Sequence[str]) -> Iterator[View]:
    return (ChannelsView(*each) for each in _samples(channels))


def _samples(channels: Sequence[str]) -> Iterator[tuple[list[Line], list[QueueLine], Sample]]:
    before = None
    while True:
        now = look(channels)
        seconds = 1.0 if before is None else max(now.at - before.at, 1e-9)
        queues = queue_rates({} if before is None else before.queues, now.queues, seconds)
        yield rates(before, now), queues, now
        before = now


def _print_lines(
    views: Iterator[View], interval_s: float, count: int | None, wait_s: float | None, *, as_json: bool
) -> bool:
    """Print a view per interval, except the first, which has no rates yet. Ends after ``count`` views, or if there was
    nothing to show within ``wait_s``; then returns False."""
    found = wait_s is None
    until = time.monotonic() + (wait_s or 0)
    found |= bool(next(views).shown)
    shown = 0
    while (count is None or shown < count) and (found or time.monotonic() < until):
        time.sleep(interval_s)
        view = next(views)
        found |= bool(view.shown)
        say(*([json_line(view.document())] if as_json else view.printed(first=shown == 0)))
        shown += 1
    return found


def _show_live(views: Iterator[View], interval_s: float, count: int | None) -> None:
    console = Console(highlight=False)
    with keys() as pressed, Live(console=console, screen=True, auto_refresh=False) as live:
        shown = 0
        while count is None or shown < count:
            view = next(views)
            parts = view.picture(console.width, _room(console))
            live.update(_fitted(parts, console, interval_s), refresh=True)
            shown += 1
            if pressed(interval_s) == "q":
                return


# -- formatting


def _parts(lines: Sequence[Line], queues: Sequence[QueueLine], sample: Sample) -> list[RenderableType]:
    parts: list[RenderableType] = []
    if sample.jobs:
        names = ", ".join(map(plain, sample.jobs))
        parts += [Text(f"running jobs: {names} (untorn top NAME shows one)"), Text()]
    if lines:
        rows = [row for line in lines for row in _rows(line)]
        parts.append(grid(_COLUMNS, rows, right=_NUMBERS, optional=_OPTIONAL))
    if queues:
        parts += [*([Text()] if lines else []), *rate_tables(queues)]
    elif not lines and not sample.problems:
        parts.append(Text("no channels; they appear here once they are published"))
    return parts + [Text(f"{plain(name)}: {plain(problem)}") for name, problem in sample.problems.items()]


def _rows(line: Line) -> Iterator[list[str | Text]]:
    state = line.state
    cells: list[str | Text] = [
        Text(plain(line.name), style="" if state.publisher == "alive" else "dim"),
        str(state.version),
        "-" if line.versions_per_s is None else f"{line.versions_per_s:,.1f}",
        "-" if line.bytes_per_s is None else size(line.bytes_per_s),
        size(state.nbytes),
        str(len(state.readers)),
        publisher_of(state),
        age(state.age_s),
    ]
    yield cells
    readers = sorted(state.readers, key=lambda reader: -1 if reader.behind is None else reader.behind, reverse=True)
    for reader in readers[:_MAX_READERS]:
        lag = "holds nothing" if reader.behind is None else f"{reader.behind} behind"
        yield _below(f"  pid {reader.pid}  {lag}")
    if len(readers) > _MAX_READERS:
        yield _below(f"  and {len(readers) - _MAX_READERS} more")


def _below(text: str) -> list[str | Text]:
    return [Text(text, style="dim", no_wrap=True), *("" for _ in _COLUMNS[1:])]


def _room(console: Console) -> int:
    """Return the number of lines for the view. The last two are the footer's, unless there is no room for it."""
    return console.height - 2 if console.height > 3 else console.height


def _fitted(parts: Sequence[RenderableType], console: Console, interval_s: float) -> Group:
    """Return the view cut to the terminal's height, with the footer."""
    room = _room(console)
    lines = [line for part in parts for line in console.render_lines(part)]
    converted = _in_ascii if console.options.ascii_only else str
    texts = [Text.assemble(*((converted(s.text), s.style or "") for s in line)) for line in lines]
    if len(texts) > room:
        texts = [*texts[: room - 1], Text(f"... {len(texts) - room + 1} more lines")]
    if room < console.height:
        foot = f"q quits  {time.strftime('%H:%M:%S')}  every {interval_s:g} s"
        texts += [Text(), Text(foot, style="dim", no_wrap=True, overflow="crop")]
    return Group(*texts)


def _in_ascii(text: str) -> str:
    """Replace Unicode characters for a terminal without them; a curve then consists of stars."""
    return "".join(each if each.isascii() else "*" for each in text.translate(_ASCII_LINES))


def _json(lines: Sequence[Line], queues: Sequence[QueueLine], sample: Sample) -> dict[str, Any]:
    return {
        "at": time.time(),
        "jobs": list(sample.jobs),
        "channels": [
            {
                "name": line.name,
                "version": line.state.version,
                "versions_per_s": line.versions_per_s,
                "bytes_per_s": line.bytes_per_s,
                "nbytes": line.state.nbytes,
                "reserved_nbytes": line.state.reserved_nbytes,
                "publisher": line.state.publisher,
                "publisher_pid": line.state.publisher_pid,
                "age_s": line.state.age_s,
                "readers": [
                    {"pid": reader.pid, "versions": reader.versions, "behind": reader.behind, "age_s": reader.age_s}
                    for reader in line.state.readers
                ],
            }
            for line in lines
        ],
        "queues": [line.as_json() for line in queues],
        "problems": dict(sample.problems),
    }
