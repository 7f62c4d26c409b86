"""Channels, queues and jobs of this user as metrics for Prometheus: what ``untorn ls``, ``show`` and ``top`` know.

::

    REGISTRY.register(Collector())     in a service that has metrics of its own already
    untorn export                      a process of its own, for all programs of this user

Each scrape looks anew, as ``untorn top`` does: it takes no reader row and disturbs no process. Needs prometheus_client:
``pip install 'untorn[metrics]'``.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterable, Iterator
from typing import Any

try:
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
    from prometheus_client.registry import Collector as BaseCollector
except ImportError:
    raise ImportError(
        "untorn.prometheus needs prometheus_client, which is not installed: pip install 'untorn[metrics]'"
    ) from None

from untorn.control import ask, running_jobs
from untorn.errors import ChannelNotFoundError, UntornError
from untorn.share.lowlevel import (
    ChannelState,
    ChannelView,
    QueueState,
    QueueView,
    default_path,
    files_of,
    is_there,
    queue_files_of,
)

__all__ = ["Collector"]

#: a value of a state, or None if it has none at the moment
_Value = Callable[[Any], float | None]

#: (name, whether it only grows, help, value) of a ChannelState
_CHANNEL: tuple[tuple[str, bool, str, _Value], ...] = (
    ("versions", True, "Versions published so far.", lambda s: s.version),
    ("age_seconds", False, "Time since the newest version was published.", lambda s: s.age_s),
    ("bytes", False, "Size of the newest version.", lambda s: s.nbytes),
    ("reserved_bytes", False, "Size of all slots.", lambda s: s.reserved_nbytes),
    ("publisher_alive", False, "1 if a living process publishes, else 0.", lambda s: s.publisher == "alive"),
    ("readers", False, "Living readers.", lambda s: len(s.readers)),
    ("readers_max", False, "Readers that the channel has room for.", lambda s: s.max_readers),
    ("slots", False, "Slots that have space.", lambda s: len(s.slots)),
    ("slots_held", False, "Slots that living readers hold.", lambda s: sum(bool(slot.held_by) for slot in s.slots)),
    ("slots_max", False, "Slots that the channel may have.", lambda s: s.max_slots),
    (
        "behind_versions", False, "Versions between the newest one that a reader holds and the newest of all, of the "
        "reader that is furthest behind.", lambda s: max((r.behind or 0 for r in s.readers), default=0),
    ),
    ("held_seconds", False, "Age of the oldest version held.", lambda s: max((r.age_s for r in s.readers), default=0)),
    ("dead_readers", False, "Readers that died holding a version that is not reclaimed yet.", lambda s: s.dead_rows),
)  # fmt: skip

#: likewise of a QueueState
_QUEUE: tuple[tuple[str, bool, str, _Value], ...] = (
    ("put", True, "Items put so far.", lambda s: s.put_count),
    ("taken", True, "Items taken so far.", lambda s: s.taken_count),
    ("items", False, "Items that wait.", lambda s: s.waiting),
    ("capacity", False, "Items that can wait.", lambda s: s.capacity),
    ("bytes", False, "Memory of the items, and kept for the next ones.", lambda s: s.nbytes),
    ("bytes_max", False, "Bound of that memory.", lambda s: s.limit_nbytes),
    ("processes", False, "Living processes that have the queue.", lambda s: len(s.processes)),
    ("waiting_producers", False, "Processes that wait for room.", lambda s: _waiting(s, "room")),
    ("waiting_consumers", False, "Processes that wait for an item.", lambda s: _waiting(s, "item")),
    ("items_taken_unfinished", False, "Items that living processes have.", lambda s: sum(p.taken for p in s.processes)),
    ("dead_slots", False, "Slots that dead processes had, not taken back yet.", lambda s: s.dead_slots),
    ("closed", False, "1 if the queue is closed, else 0.", lambda s: s.closed),
)

#: likewise of the status of a job, a dict
_JOB: tuple[tuple[str, bool, str, _Value], ...] = (
    ("steps", True, "Steps since training began.", lambda s: s["step"]),
    ("epoch", False, "Epoch that runs now, from 0.", lambda s: s["epoch"]),
    ("versions", True, "Version of the newest weights.", lambda s: s["version"]),
    ("loss", False, "Loss of the last step.", lambda s: s["loss"]),
    ("learning_rate", False, "Learning rate of the next step.", lambda s: s["learning_rate"]),
    ("examples_per_second", False, "Examples per second.", lambda s: s["examples_per_s"]),
    ("workers", False, "Workers on this machine.", lambda s: len(s["workers"])),
    ("nodes", False, "Nodes.", lambda s: len(s["nodes"])),
    ("restarts", True, "Workers, and nodes, that were replaced.", lambda s: s["restarts"]),
    ("started_timestamp_seconds", False, "When training began, since the epoch of Unix.", lambda s: s["started_at"]),
)


class Collector(BaseCollector):
    """Collects the channels, queues and jobs of this user on this machine, for a registry of prometheus_client.

    ================================================ =================================================================
    metrics                                          label
    ================================================ =================================================================
    untorn_channel_versions_total, ..._bytes, ...    channel
    untorn_queue_put_total, ..._items, ...           queue
    untorn_job_steps_total, ..._loss, ...            job
    untorn_job_metric                                job, metric: the metrics of the last step, and of validation
    untorn_job_answered                              job: 0 if it was busy, and its other metrics are left out
    untorn_unreadable                                kind, name: 1 for a channel or queue that could not be read
    ================================================ =================================================================

    Rates are Prometheus's work: ``rate(untorn_channel_versions_total[1m])``. No metric has a process id as a label:
    each restart would begin a series.

    Args:
        names: the channels and queues, by name or path; by default all named ones of this user in /dev/shm. One that
            is not there yet, or no more, has no metrics.
        jobs: whether to ask the running jobs, those of a Trainer with a name.
        timeout_s: how long to wait for the answer of a job, in seconds. It answers between two steps.

    Example:
        >>> import untorn
        >>> from prometheus_client import CollectorRegistry
        >>> from untorn.prometheus import Collector
        >>> registry = CollectorRegistry()
        >>> registry.register(Collector(["doctest-metrics"], jobs=False))
        >>> with untorn.publish([1.5], name="doctest-metrics", keep=False) as publisher:
        ...     version = publisher.update([2.5])
        ...     registry.get_sample_value("untorn_channel_versions_total", {"channel": "doctest-metrics"})
        2.0
    """

    def __init__(self, names: Iterable[str] | None = None, *, jobs: bool = True, timeout_s: float = 0.5) -> None:
        if isinstance(names, str):
            raise TypeError(f"names: expected a list of names, found the string {names!r}; write [{names!r}]")
        self._names = None if names is None else list(names)
        self._jobs = jobs
        self._timeout_s = timeout_s

    def describe(self) -> Iterable[Metric]:
        """Return nothing: a registry then does not look while it registers this."""
        return []

    def collect(self) -> Iterator[Metric]:
        """Look, and yield the metrics. Blocks for ``timeout_s`` at most per job that is busy."""
        channels, queues, problems = self._look()
        yield from _families("channel", _CHANNEL, channels)
        yield from _families("queue", _QUEUE, queues)
        unreadable = GaugeMetricFamily(
            "untorn_unreadable", "1 for a channel or queue that could not be read.", labels=["kind", "name"]
        )
        for labels in problems:
            unreadable.add_metric(labels, 1)
        yield unreadable
        if self._jobs:
            yield from self._of_jobs()

    def _look(self) -> tuple[dict[str, ChannelState], dict[str, QueueState], list[tuple[str, str]]]:
        channels: dict[str, ChannelState] = {}
        queues: dict[str, QueueState] = {}
        problems: list[tuple[str, str]] = []
        for kind, name in _found() if self._names is None else _asked_for(self._names):
            try:
                if kind == "channel":
                    with ChannelView.open(files_of(name)) as channel:
                        channels[name] = channel.state()
                else:
                    with QueueView.open(queue_files_of(name)) as queue:
                        queues[name] = queue.state()
            except (ChannelNotFoundError, FileNotFoundError):
                continue
            except (UntornError, OSError, ValueError):
                problems.append((kind, name))
        return channels, queues, problems

    def _of_jobs(self) -> Iterator[Metric]:
        answered = GaugeMetricFamily("untorn_job_answered", "1 if the job answered, 0 if it was busy.", labels=["job"])
        metrics = GaugeMetricFamily(
            "untorn_job_metric", "Metrics of the last step, and of the last validation.", labels=["job", "metric"]
        )
        statuses = {}
        for name in running_jobs():
            try:
                status = ask(name, {"do": "status"}, timeout_s=self._timeout_s)
            except ChannelNotFoundError:  # it has ended meanwhile
                continue
            except (UntornError, OSError, ValueError):
                answered.add_metric([name], 0)
                continue
            statuses[name] = status
            answered.add_metric([name], 1)
            for metric, value in status["metrics"].items():
                metrics.add_metric([name, metric], value)
        yield from _families("job", _JOB, statuses)
        yield answered
        yield metrics


def _families(kind: str, table: Iterable[tuple[str, bool, str, _Value]], states: dict[str, Any]) -> Iterator[Metric]:
    for name, grows, documentation, value_of in table:
        family = (CounterMetricFamily if grows else GaugeMetricFamily)(
            f"untorn_{kind}_{name}", documentation, labels=[kind]
        )
        for label, state in states.items():
            value = value_of(state)
            if value is not None:
                family.add_metric([label], float(value))
        yield family


def _waiting(state: QueueState, what: str) -> int:
    return sum(process.waits_for == what for process in state.processes)


def _found() -> list[tuple[str, str]]:
    """Return (kind, name) of this user's named channels and queues."""
    if not is_there(default_path()):
        return []
    kinds = {".control": "channel", ".queue": "queue"}
    entries = [os.path.splitext(entry) for entry in sorted(os.listdir(default_path())) if not entry.startswith(".")]
    return [(kinds[ending], name) for name, ending in entries if ending in kinds]


def _asked_for(names: Iterable[str]) -> Iterator[tuple[str, str]]:
    for name in names:
        for kind, files in (("channel", files_of), ("queue", queue_files_of)):
            with contextlib.suppress(ChannelNotFoundError):
                if files(name).exists():
                    yield kind, name
