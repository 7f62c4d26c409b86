"""The figures of a training as metrics of Ray, for its dashboard and for Prometheus.

==============================  ============================================================
``untorn_steps``                counter: steps made
``untorn_examples``             counter: examples trained on
``untorn_sent_bytes``           counter: bytes of sums that a node sent to its peers, by node
``untorn_received_bytes``       counter: the same received, by node
``untorn_restarts``             counter: nodes and workers that were lost and replaced
``untorn_examples_per_second``  gauge: the rate since the last time, about a second
``untorn_nodes``                gauge: nodes that take part
``untorn_workers``              gauge: workers on them
==============================  ============================================================

Each has the tag ``training``: the name of the trainer, or the driver's process id. Ray puts ``ray_`` before the names.
"""

from __future__ import annotations

import os
import time

from ray.util.metrics import Counter, Gauge

from untorn.engines.nodes import Figures

__all__ = ["INTERVAL_S", "TrainingMetrics"]

#: how often the metrics are set
INTERVAL_S = 1.0


class TrainingMetrics:
    """Sets the metrics of one training."""

    def __init__(self) -> None:
        by_training, by_node = ("training",), ("training", "node")
        self._steps = Counter("untorn_steps", "Steps made", by_training)
        self._examples = Counter("untorn_examples", "Examples trained on", by_training)
        self._restarts = Counter("untorn_restarts", "Nodes and workers that were lost and replaced", by_training)
        self._sent = Counter("untorn_sent_bytes", "Bytes of sums that a node sent to its peers", by_node)
        self._received = Counter("untorn_received_bytes", "Bytes of sums that a node received from its peers", by_node)
        self._rate = Gauge("untorn_examples_per_second", "Examples trained on per second", by_training)
        self._nodes = Gauge("untorn_nodes", "Nodes that take part", by_training)
        self._workers = Gauge("untorn_workers", "Workers on the nodes", by_training)
        self._last: Figures | None = None
        self._at = 0.0

    def show(self, figures: Figures) -> None:
        """Set the metrics, at most once in ``INTERVAL_S``."""
        now, last = time.monotonic(), self._last
        if now - self._at < INTERVAL_S:
            return
        tags = {"training": figures.name or str(os.getpid())}
        running = [node for node in figures.nodes if node["state"] == "running"]
        self._nodes.set(len(running), tags)
        self._workers.set(sum(len(node["workers"]) for node in running), tags)
        if last is not None:
            steps = figures.step - last.step
            _count(self._steps, steps, tags)
            _count(self._examples, steps * figures.batch_size, tags)
            _count(self._restarts, figures.restarts - last.restarts, tags)
            self._rate.set(max(0, steps) * figures.batch_size / (now - self._at), tags)
        before = {node["number"]: node for node in last.nodes} if last is not None else {}
        for node in figures.nodes:
            of_node = {**tags, "node": str(node["number"])}
            for counter, key in ((self._sent, "sent"), (self._received, "received")):
                so_far = before.get(node["number"], {}).get(key, 0)
                # each session of nodes counts from 0
                _count(counter, node[key] - so_far if node[key] >= so_far else node[key], of_node)
        self._last, self._at = figures, now


def _count(counter: Counter, more: int, tags: dict[str, str]) -> None:
    """Add to a counter. Steps can be made again, after all nodes were lost; Ray refuses to add nothing."""
    if more > 0:
        counter.inc(more, tags)
