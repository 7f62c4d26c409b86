"""A running job as ``untorn top NAME`` shows it: its progress, its losses as a curve, its nodes and its workers.

::

    look() ──> Look ──┐                           terminal: picture(), cut to its height
    look() ──> Look ──┴── paces() ──> JobView ──> pipe: printed() or document() per refresh
                          node_paces()

If a job is busy or has ended, its last answer is shown.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import RenderableType
from rich.text import Text

from untorn.cli.curve import framed_curve
from untorn.cli.tables import count, grid, plain, size
from untorn.control import ask
from untorn.errors import BrokenChannelError, ChannelNotFoundError, UntornError

__all__ = [
    "JobView",
    "Look",
    "NodePace",
    "Pace",
    "job_views",
    "look",
    "node_paces",
    "paces",
    "resize",
    "resize_nodes",
]

_COLUMNS = ("WORKER", "PID", "STATE", "GRADIENTS", "GRADIENTS/S", "SHARE")
_NUMBERS = frozenset({"WORKER", "PID", "GRADIENTS", "GRADIENTS/S", "SHARE"})
_OPTIONAL = ("GRADIENTS", "SHARE", "PID")
_NODE_COLUMNS = ("NODE", "HOST", "STATE", "WORKERS", "STEP", "SENT/S", "RECEIVED/S", "WAITS")
_NODE_NUMBERS = frozenset(_NODE_COLUMNS) - {"HOST", "STATE"}
_NODE_OPTIONAL = ("STEP", "RECEIVED/S", "HOST", "WAITS")
#: short, because keys are not read meanwhile
_TIMEOUT_S = 0.5
#: the height of the curve in lines, and its largest width
_CURVE_LINES = range(6, 11)
_CURVE_WIDTH = 110
#: the number of lines for metrics
_MAX_LINES = 3
#: the height of the view without workers
_LINES = 18
_STYLES = {"running": "green", "starting": "yellow", "dead": "red", "stopped": "dim", "leaving": "dim"}
_STYLES |= {"joining": "yellow", "lost": "red"}


@dataclass(frozen=True)
class Look:
    """A job at one time.

    Attributes:
        name: the requested name.
        at: the time of its last answer, or of the first request, by the monotonic clock in seconds.
        status: its last answer; None if it has never answered.
        problem: why it did not answer this time, or an empty string.
    """

    name: str
    at: float
    status: dict[str, Any] | None
    problem: str = ""


@dataclass(frozen=True)
class Pace:
    """A worker's gradients per second between two answers, and its share of all workers' gradients. None in its first
    answer, and for the share if no worker computed any."""

    gradients_per_s: float | None
    share: float | None


@dataclass(frozen=True)
class NodePace:
    """The bytes per second that a node has sent to its peers and received from them between its last two reports, and
    the part of that time in which it only waited for them. None before its second report."""

    sent_per_s: float | None = None
    received_per_s: float | None = None
    waits: float | None = None


def resize(name: str, by: int, timeout_s: float) -> dict[str, Any]:
    """Ask a job for ``by`` more workers, or fewer if negative. Returns its ``name``, the new number ``workers`` and
    the old number ``was``; of a job on nodes, those of each of the ``nodes``."""
    return {"name": name} | ask(name, {"do": "resize", "by": by}, timeout_s=timeout_s)


def resize_nodes(name: str, by: int, timeout_s: float) -> dict[str, Any]:
    """Ask a job for ``by`` more nodes, or fewer if negative. Returns its ``name``, the new number ``nodes`` and the old
    number ``was``."""
    return {"name": name} | ask(name, {"do": "resize", "nodes_by": by}, timeout_s=timeout_s)


def look(name: str, before: Look | None = None) -> Look:
    """Ask a job for its status. If there is no answer, keep that of ``before``."""
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
    """Yield a view of the job per request, without end. While the job is busy, the last paces stay."""
    answered: Look | None = None
    now, shown, of_nodes = look(name), list[Pace](), list[NodePace]()
    while True:
        if not now.problem:
            shown, of_nodes, answered = paces(answered, now), node_paces(answered, now, of_nodes), now
        yield JobView(now, shown, of_nodes)
        now = look(name, now)


def paces(before: Look | None, now: Look) -> list[Pace]:
    """Return each worker's pace between two answers. Index and pid identify a worker."""
    known = {_identity(worker): worker.get("gradients", 0) for worker in (_workers_of(before) if before else [])}
    done = [
        max(0, worker.get("gradients", 0) - known[_identity(worker)]) if _identity(worker) in known else None
        for worker in _workers_of(now)
    ]
    seconds = max(now.at - before.at, 1e-9) if before else math.inf
    total = sum(filter(None, done))
    return [
        Pace(None, None) if each is None else Pace(each / seconds, each / total if total else None) for each in done
    ]


def node_paces(before: Look | None, now: Look, shown: Sequence[NodePace]) -> list[NodePace]:
    """Return each node's pace between its reports in two answers; ``shown`` has those of the first of them. Number and
    pid identify a node. Nodes report twice a second by their own clocks: without a new report, the pace stays."""
    nodes = _nodes_of(before) if before else []
    known = {_identity(node): (node, pace) for node, pace in zip(nodes, shown, strict=True)}
    return [
        _node_pace(*known[_identity(node)], node) if _identity(node) in known else NodePace() for node in _nodes_of(now)
    ]


def _node_pace(before: dict[str, Any], shown: NodePace, now: dict[str, Any]) -> NodePace:
    if before.get("at") is None or now.get("at") is None:
        return NodePace()
    seconds = now["at"] - before["at"]
    if seconds <= 0:
        return shown
    sent, received, waited = (
        max(0, now.get(key, 0) - before.get(key, 0)) / seconds for key in ("sent", "received", "waited_s")
    )
    return NodePace(sent, received, min(1.0, waited))


def _identity(one: dict[str, Any]) -> tuple[Any, ...]:
    """Return what tells a worker, or a node, from others: nodes may have workers with the same index and pid."""
    return one.get("node"), one.get("index"), one.get("number"), one.get("pid")


def _workers_of(look: Look) -> list[dict[str, Any]]:
    return list((look.status or {}).get("workers") or [])


def _nodes_of(look: Look) -> list[dict[str, Any]]:
    return list((look.status or {}).get("nodes") or [])


@dataclass(frozen=True)
class JobView:
    """A job and the pace of each of its workers and nodes, in each of the forms of output."""

    look: Look
    paces: Sequence[Pace]
    node_paces: Sequence[NodePace] = ()

    @property
    def shown(self) -> Collection[str]:
        """The name of the job, once it has answered."""
        return [] if self.look.status is None else [self.look.name]

    def document(self) -> dict[str, Any]:
        """Return the JSON document: the job's answer, with the pace of each worker and node."""
        status = self.look.status
        if status is not None:
            workers = [
                worker | {"gradients_per_s": pace.gradients_per_s, "share": pace.share}
                for worker, pace in zip(_workers_of(self.look), self.paces, strict=True)
            ]
            status = status | {"workers": workers}
            if "nodes" in status:
                of_nodes = zip(_nodes_of(self.look), self.node_paces, strict=True)
                status["nodes"] = [_without_workers(node) | dataclasses.asdict(pace) for node, pace in of_nodes]
        return {"at": time.time(), "job": status, "problem": self.look.problem or None}

    def printed(self, *, first: bool) -> list[RenderableType]:
        """Return one line with the most important numbers, for a pipe."""
        parts, status = [plain(self.look.name)], self.look.status
        if status is not None:
            working = sum(worker.get("state") in ("starting", "running") for worker in _workers_of(self.look))
            parts += [_epoch(status), f"step {status.get('step', 0):,}", f"version {status.get('version', 0):,}"]
            parts += [*_measured(status), *_nodes_counted(status), count(working, "worker"), *_faults(status)]
        return ["  ".join(parts + ([plain(self.look.problem)] if self.look.problem else []))]

    def picture(self, width: int, height: int) -> list[RenderableType]:
        """Return the parts of the view, the most important first, for this many characters and lines."""
        status, problem = self.look.status, plain(self.look.problem)
        if status is None:
            return [Text(plain(self.look.name), style="bold"), Text(problem, style="yellow")]
        head = [*_head(status, width)]
        # on a narrow terminal the head has more lines than two, which a low one does not have to spare
        has_room = height >= _LINES + len(_workers_of(self.look))
        most = _MAX_LINES if has_room else max(1, _MAX_LINES + 2 - len(head))
        if problem:
            head.append(_cropped(f"{problem}; last answer {time.monotonic() - self.look.at:.0f} s ago", "yellow"))
        facts = [*_flowing(_measured(status), width, most)]
        facts += _flowing([*_faults(status), *_nodes_counted(status)], width)
        workers = [(worker, pace) for worker, pace in zip(_workers_of(self.look), self.paces, strict=True)]
        nodes = [_node_row(node, pace) for node, pace in zip(_nodes_of(self.look), self.node_paces, strict=True)]
        tables: list[RenderableType] = [_worker_table(workers, width, with_nodes=bool(nodes))]
        if nodes:
            table = grid(_NODE_COLUMNS, nodes, right=_NODE_NUMBERS, optional=_NODE_OPTIONAL, width=width)
            tables = [table, Text(), *tables]
        # the other lines: the curve's axis, the tables' headings, and the empty ones before each of them
        room = height - len(head) - len(facts) - len(workers) - 4 - (len(nodes) + 2 if nodes else 0)
        lines = min(max(room, _CURVE_LINES.start), _CURVE_LINES.stop - 1)
        curve_lines = framed_curve(status.get("losses") or [], min(width, _CURVE_WIDTH), lines)
        return [*head, Text(), *curve_lines, *facts, Text(), *tables]


# -- formatting


def _head(status: dict[str, Any], width: int) -> Iterator[Text]:
    elapsed = _clock(time.time() - status["started_at"]) if status.get("started_at") else "-"
    facts = [f"pid {status.get('pid')}", f"{plain(status.get('mode'))}, {plain(status.get('engine'))}", elapsed]
    what = "  ".join(facts)
    name = Text(plain(status.get("name")), style="bold")
    name.truncate(max(8, width - len(what) - 2), overflow="ellipsis")
    if name.cell_len + 2 + len(what) <= width:
        yield Text.assemble(name, "  ", (what, "dim"), no_wrap=True, overflow="crop")
    else:
        yield from (name, *_flowing(facts, width))
    done, steps = status.get("step_in_epoch") or 0, status.get("steps_per_epoch") or 0
    where = f"{_epoch(status)}  {done:,}/{steps:,}" if steps else f"{_epoch(status)}  {done:,}"
    counts = [f"step {status.get('step', 0):,}", f"version {status.get('version', 0):,}"]
    numbers = "  ".join(counts)
    if len(where) + 2 + len(numbers) > width:
        yield from _flowing([*where.split("  "), *counts], width)
        return
    length = min(40, width - len(where) - len(numbers) - 4)
    bar = ""
    if steps and length >= 8:
        full = min(length, round(length * done / steps))
        bar = f"{'━' * full}{'─' * (length - full)}  "
    yield _cropped(f"{where}  {bar}{numbers}")


def _worker_table(workers: Sequence[tuple[dict[str, Any], Pace]], width: int, *, with_nodes: bool) -> RenderableType:
    rows = [_row(worker, pace) for worker, pace in workers]
    if not with_nodes:
        return grid(_COLUMNS, rows, right=_NUMBERS, optional=_OPTIONAL, width=width)
    rows = [[str(worker.get("node")), *row] for (worker, _), row in zip(workers, rows, strict=True)]
    return grid(("NODE", *_COLUMNS), rows, right=_NUMBERS | {"NODE"}, optional=_OPTIONAL, width=width)


def _node_row(node: dict[str, Any], pace: NodePace) -> list[str | Text]:
    state = plain(node.get("state"))
    step = node.get("step")
    return [
        str(node.get("number")),
        plain(node.get("host")),
        Text(state, style=_STYLES.get(state, "")),
        str(len(node.get("workers") or [])),
        "-" if step is None else f"{step:,}",
        "-" if pace.sent_per_s is None else size(pace.sent_per_s),
        "-" if pace.received_per_s is None else size(pace.received_per_s),
        "-" if pace.waits is None else f"{100 * pace.waits:.0f} %",
    ]


def _nodes_counted(status: dict[str, Any]) -> list[str]:
    """Return how many nodes take part, of how many; nothing for a job of one machine."""
    wanted = status.get("wanted_nodes") or 0
    if not wanted:
        return []
    running = sum(node.get("state") == "running" for node in status.get("nodes") or [])
    return [count(wanted, "node") if running == wanted else f"{running} of {count(wanted, 'node')}"]


def _without_workers(node: dict[str, Any]) -> dict[str, Any]:
    """Return a node with the number of its workers: they are in the list of all workers."""
    return node | {"workers": len(node.get("workers") or [])}


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
    """Return the loss, metrics, learning rate and speed that the status has."""
    named = {"loss": status.get("loss")} | dict(status.get("metrics") or {})
    named["learning rate"] = status.get("learning_rate")
    texts = [f"{plain(name)} {value:.4g}" for name, value in named.items() if value is not None]
    speed = status.get("examples_per_s")
    return texts + ([] if speed is None else [f"{speed:,.0f} examples/s"])


def _epoch(status: dict[str, Any]) -> str:
    if status.get("epochs") is None:
        return "single steps"
    epochs = status.get("epochs") or 0
    return f"epoch {min((status.get('epoch') or 0) + 1, max(epochs, 1))}/{epochs}"


def _faults(status: dict[str, Any]) -> list[str]:
    """Return the number of replaced workers and, in async mode, the staleness of the gradients."""
    texts = [count(status.get("restarts") or 0, "restart")]
    if status.get("mode") == "async":
        mean, largest = status.get("staleness") or (None, None)
        bound = status.get("max_staleness")
        seen = "staleness -" if mean is None else f"staleness {mean:.2f} mean, {largest} max"
        texts.append(seen + ("" if bound is None else f" of at most {bound}"))
    return texts


def _clock(seconds: float) -> str:
    """Return a duration as in ``0:01:05``."""
    whole = max(0, int(seconds))
    return f"{whole // 3600}:{whole // 60 % 60:02}:{whole % 60:02}"


def _cropped(text: str, style: str = "") -> Text:
    return Text(text, style=style, no_wrap=True, overflow="crop")


def _flowing(texts: Iterable[str], width: int, most: int = _MAX_LINES) -> list[Text]:
    """Fill lines with the texts, in their order."""
    lines: list[str] = []
    for text in texts:
        if lines and len(lines[-1]) + 2 + len(text) <= width:
            lines[-1] += f"  {text}"
        else:
            lines.append(text)
    if len(lines) > most:
        lines = [*lines[: most - 1], lines[most - 1][: width - 4] + " ..."]
    return [_cropped(line) for line in lines]
