"""The pool of nodes: what a trainer needs of its workers, with a WorkerPool on each node.

::

    FitLoop ── NodePool.train(plan) ──> Coordinator ── messages ──> Replica on each node
       ^                                    │
       └── the driver's board: step log <───┘    weights: only when somebody here asks for them

The driver computes no gradients and takes part in no sum. Its board has the order, the rates and the step log of an
epoch, and no tasks.
"""

from __future__ import annotations

import os
import queue
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from untorn.board import Board, BoardSpec
from untorn.engines.nodes import Cluster
from untorn.engines.nodes.wire import Blob
from untorn.engines.worker_logs import levels_here
from untorn.share import Snapshot
from untorn.share.lowlevel import raw_version, update_raw
from untorn.train.data import SharedData, Source
from untorn.train.models.base import Model, Parts
from untorn.train.models.pickling import pickled
from untorn.train.nodes.coordinator import Coordinator
from untorn.train.nodes.copies import Position
from untorn.train.nodes.jobs import NodeEvaluation, NodeJob
from untorn.train.optim.base import Optimizer
from untorn.train.run.chunks import Answer, Evaluation
from untorn.train.run.job import pickled_model
from untorn.train.run.plan import Plan
from untorn.train.run.pool import Pool
from untorn.train.run.steps import StepStrategy
from untorn.train.run.supervisor import Tasks
from untorn.train.run.tasks import GradientTasks
from untorn.train.run.weights import Weights
from untorn.train.settings import Settings

__all__ = ["DriverWeights", "NodePool"]

_POLL_INTERVAL_S = 0.05
#: the number of readers of the driver's copy of the data: it is sent on, and read by nobody
_READERS = 8


class DriverWeights(Weights):
    """The weights as the driver has them: a copy that is as new as the last question for it.

    Attributes:
        known: the newest version that the nodes are known to have.
        fetch: returns a version that is at least as new as the known one, and its number; None while no job runs.
        token: changes when the weights are replaced by others.
    """

    known = 0
    fetch: Callable[[], tuple[int, Blob]] | None = None
    token = b""

    @property
    def version(self) -> int:
        """The newest version that the nodes are known to have."""
        return max(self.channel.version, self.known)

    def refresh(self) -> None:
        """Copy the newest version from a node, if it is newer than the driver's. Blocks."""
        if self.fetch is not None and self.known > self.channel.version:
            self.take(self.fetch())

    def take(self, found: tuple[int, Blob] | None) -> None:
        """Publish a version of a node here."""
        if found is not None and found[0] > self.channel.version:
            update_raw(self.channel, found[1], found[0])

    def snapshot(self) -> Snapshot:
        """See Weights. Blocks while a newer version is copied from a node."""
        self.refresh()
        return super().snapshot()

    def replace(self, fill: Callable[[Any, Any], None]) -> None:
        """See Weights."""
        super().replace(fill)
        self.token = os.urandom(16)


class NodePool(Pool):
    """The nodes, from the first job to close().

    Args:
        settings: the settings of the trainer.
        model: the model, as it is sent to the workers.
        optimizer: the optimizer.
        cluster: starts the nodes; this object owns it.
    """

    def __init__(self, settings: Settings, model: Model, optimizer: Optimizer, cluster: Cluster) -> None:
        super().__init__(settings, server_works=optimizer.server_steps)
        self._settings = settings
        self._model = model
        self._optimizer = optimizer
        self._cluster = cluster
        self._coordinator: Coordinator | None = None
        #: the number of the newest data on the nodes, and the data to evaluate that they have
        self._keys = 0
        self._evaluated: list[tuple[SharedData, int]] = []

    needs_equal_batches = True

    @property
    def is_local(self) -> bool:
        """See Pool."""
        return False

    @property
    def restarts(self) -> int:
        """See Pool. A node that was replaced counts as one."""
        if self._coordinator is None:
            return 0
        return self._coordinator.restarts + sum(int(node["restarts"]) for node in self._coordinator.nodes())

    @property
    def pids(self) -> list[int]:
        """See Pool. The workers of nodes may be on other machines: nodes() has their pids."""
        return []

    def members(self) -> list[dict[str, Any]]:
        """See Pool."""
        return [worker | {"node": node["number"]} for node in self.nodes() for worker in node["workers"]]

    def nodes(self) -> list[dict[str, Any]]:
        """See Pool."""
        return [] if self._coordinator is None else self._coordinator.nodes()

    def resize(self, workers: int) -> None:
        """See Pool."""
        self.count.set(self._settings.check_workers(workers))
        if self._coordinator is not None and self._coordinator.workers != self.count.wanted:
            self._coordinator.set_workers(self.count.wanted)

    def resize_nodes(self, nodes: int) -> None:
        """See Pool. A running job adopts it soon."""
        self._cluster.resize(nodes)
        if self._coordinator is not None:
            self._coordinator.look()

    @property
    def wanted_nodes(self) -> int:
        """See Pool."""
        return self._cluster.wanted()

    def first_weights(self, parts: Parts, optimizer: Optimizer, name: str | None) -> DriverWeights:
        """See Pool."""
        weights = DriverWeights.begin(parts, optimizer, name, shards=self.shards)
        weights.token = os.urandom(16)
        return weights

    @contextmanager
    def train(self, plan: Plan, source: Source, weights: Weights, optimizer: Optimizer) -> Iterator[StepStrategy]:
        """See Pool."""
        assert isinstance(weights, DriverWeights)
        coordinator = self._open(weights)
        with (
            self.make_board(_driver_board(plan), advice="use a smaller part of the data") as board,
            source.shared(max_readers=_READERS, local=False) as shared,
            shared.channel.snapshot() as data,
            weights.snapshot() as first,
        ):
            self._keys += 1
            coordinator.begin_job(
                NodeJob(
                    plan=plan,
                    board=board,
                    key=self._keys,
                    read=shared.read,
                    raw=raw_version(data),
                    base=first.version,
                    token=weights.token,
                    first=raw_version(first),
                    first_version=first.version,
                    examples=max(plan.min_examples, min(plan.batch_size, plan.examples) // plan.settings.shards),
                    name=weights.channel.name,
                )
            )
            weights.fetch = coordinator.copy
            self.at_work = True
            try:
                tasks = GradientTasks(board, plan.min_examples)
                yield _NodeSteps(board, tasks, coordinator, weights, shared if plan.one_by_one else None)
                weights.take(coordinator.copy())
            finally:
                self.at_work = False
                weights.fetch = None
                try:
                    weights.take(coordinator.end_job())
                finally:
                    weights.known = 0
                    self._forget_evaluated()

    def _open(self, weights: DriverWeights) -> Coordinator:
        if self._coordinator is None:
            settings = self._settings
            target = None
            if weights.target is not weights.channel:
                with weights.target.subscriber() as reader, reader.snapshot() as sums:
                    target = bytes(raw_version(sums))
            setup = {
                "settings": settings,
                "form": weights.form,
                "target": target,
                "same_bits": self._cluster.same_bits,
                "levels": levels_here(),
            }
            optimizer = b""
            if self._optimizer.server_steps:
                otherwise = "define it at the top of a module that the nodes can import"
                optimizer = pickled("optimizer: it", self._optimizer, otherwise=otherwise)
            self._coordinator = Coordinator(
                self._cluster,
                setup,
                [pickled_model(self._model), optimizer],
                workers=self.count.wanted,
                max_restarts=settings.max_restarts,
            )
        return self._coordinator

    @contextmanager
    def idle_processes(self) -> Iterator[bool]:
        """See Pool."""
        yield self._coordinator is not None and not self.stepping and bool(self._coordinator.nodes())

    def answers(
        self,
        evaluation: Evaluation,
        weights: Weights,
        data: SharedData,
        chunks: Sequence[int],
        while_waiting: Callable[[], None],
    ) -> Iterator[tuple[int, Answer]]:
        """See Pool."""
        assert isinstance(weights, DriverWeights)
        assert self._coordinator is not None
        key = self._key_of(data)
        found: queue.SimpleQueue[tuple[int, Answer]] = queue.SimpleQueue()
        with data.channel.snapshot() as snapshot:
            work = NodeEvaluation(
                evaluation=evaluation,
                key=key,
                read=data.read,
                raw=raw_version(snapshot),
                position=Position(weights.token, weights.version),
                chunks=list(chunks),
            )
            future = self._coordinator.evaluate(work, found.put)
            try:
                while not (future.done() and found.empty()):
                    try:
                        yield found.get(timeout=_POLL_INTERVAL_S)
                    except queue.Empty:
                        while_waiting()
                future.result()
            finally:
                future.cancel()
                if not self.at_work:
                    self._forget_evaluated()

    def _key_of(self, data: SharedData) -> int:
        """Return the number of this data on the nodes, which keep it until the job ends."""
        for kept, key in self._evaluated:
            if kept is data:
                return key
        self._keys += 1
        self._evaluated.append((data, self._keys))
        return self._keys

    def _forget_evaluated(self) -> None:
        evaluated, self._evaluated = self._evaluated, []
        if self._coordinator is not None:
            self._coordinator.forget([key for _, key in evaluated])

    def advance(self, board: Board, tasks: Tasks, until: int, check: Callable[[], None]) -> None:
        """See Pool."""
        assert self._coordinator is not None
        try:
            self._coordinator.wait(_POLL_INTERVAL_S)
        finally:
            check()

    def begin_epoch(self, step: int) -> None:
        """See Pool."""

    def follow(self, board: Board, step: int) -> None:
        """See Pool. The coordinator follows by itself."""

    def close(self) -> None:
        """See Pool."""
        coordinator, self._coordinator = self._coordinator, None
        if coordinator is not None:
            coordinator.close()
        self._cluster.close()


def _driver_board(plan: Plan) -> BoardSpec:
    """Return a board with the order, the rates and the step log of an epoch."""
    return BoardSpec(
        shards=plan.settings.shards,
        max_workers=1,
        workers=1,
        is_async=False,
        steps=plan.steps,
        examples=plan.examples,
        batch_size=plan.batch_size,
        gradient_nbytes=0,
        kernels=plan.kernels,
    )


class _NodeSteps(StepStrategy):
    """The nodes make the steps, and the coordinator tells how many.

    Args:
        board: the driver's board.
        tasks: describes its tasks in errors.
        coordinator: runs the nodes.
        weights: the driver's weights.
        feed: the data that is to be sent anew for each epoch, that is each single step; None if it never changes.
    """

    def __init__(
        self,
        board: Board,
        tasks: GradientTasks,
        coordinator: Coordinator,
        weights: DriverWeights,
        feed: SharedData | None,
    ) -> None:
        super().__init__(board, tasks)
        self._feed = feed
        self._coordinator = coordinator
        self._weights = weights
        self._base = weights.channel.version

    @property
    def made(self) -> int:
        """See StepStrategy."""
        made = self._coordinator.made
        self._weights.known = self._base + made
        return made

    @property
    def until(self) -> int:
        """See StepStrategy."""
        return self.first + self.steps

    def _go(self) -> None:
        epoch = {"number": self.tasks.epoch, "skipped": self.tasks.skipped}
        batch = b""
        if self._feed is not None:
            with self._feed.channel.snapshot() as snapshot:
                batch = bytes(raw_version(snapshot))
        self._coordinator.begin_epoch(self.first, self.until, epoch, batch)
