"""One worker of a job: take a shard, compute its gradient, commit it. The same code in a process or in place.

What a worker needs travels in a ``Job``: where the board is, how to reach the weights and the data, the model. Results
travel through shared memory alone, so a killed worker leaves nothing half-sent behind.
"""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import time
import traceback
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from untorn import _core
from untorn.board import Board
from untorn.engines import Worker
from untorn.engines.threads import use_threads
from untorn.engines.worker_logs import set_levels
from untorn.errors import BrokenChannelError, CapacityError, NonFiniteLossError, UntornError
from untorn.share import Subscriber
from untorn.share.lowlevel import Address, Decoder, attach_writer, decoder_of
from untorn.train.data import SharedData, sampler
from untorn.train.models.base import Gradient, Model, Replica
from untorn.train.run.parameter_layout import ParameterPlan

__all__ = ["Job", "Reporter", "ShardWorker", "worker_main"]

#: how long a worker waits for work before it looks whether its server lives
WAIT_S = 0.1
_RETRY_S = 0.01
#: what callbacks and the history find beside the model's metrics
_RESERVED_NAMES = ("loss", "learning_rate", "examples", "examples_per_s", "seconds", "version", "restarts")


@dataclass(frozen=True)
class Job:
    """All that a worker must know to take part in one fit, beside the board and the model. What updates make goes to
    ``target``: the next weights, or what the server makes them of. A shard has ``least`` examples at least."""

    weights: Address
    target: Address
    data: SharedData
    plan: ParameterPlan
    seed: int
    first_step: int
    accumulate: int = 1
    least: int = 1

    def begin(self, index: int, board: Board, model: Replica) -> ShardWorker:
        """The worker for it."""
        return ShardWorker(self, index, board, model)


class _Buffer(NamedTuple):
    """A gradient buffer: number of examples, loss and metrics, the version that the gradient is of, where the gradients
    go, and writable views of them."""

    count: Any
    measured: Any
    version: Any
    places: tuple[tuple[int, int, str], ...]
    views: list[Any]


class _CannotMapError(Exception):
    """The kernel maps no more memory into this process, for the cause of this number."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


class ShardWorker:
    """Takes part in one job: ``run_once`` does one task and returns its kind."""

    def __init__(self, job: Job, index: int, board: Board, model: Replica) -> None:
        self.job = job
        self.index = index
        self.board = board
        self.model = model
        self.steps = self.board.steps
        self._whole_batches = self.board.is_async
        self.cut = {
            "shards": 1 if self._whole_batches else self.board.shards,
            "examples": self.board.examples,
            "batch_size": self.board.batch_size,
            "least": job.least,
        }
        self.target = attach_writer(job.target)
        self.weights = self.target if job.weights == job.target else attach_writer(job.weights)
        self.data = job.data.open()
        self.order = self.board.order
        #: the model's buffers may be anything, and an optimizer of another library may take a NaN for a sign
        self._first_checked = len(job.plan.arrays) if job.plan.sums else job.plan.buffers
        self._decoder: Decoder | None = None
        self._buffers: dict[int, _Buffer] = {}
        self._random = sampler.ShardRandom(job.seed, self.cut["shards"])
        self._reporter = Reporter(board, index)
        self._spin = True

    def run_once(self, wait_s: float = WAIT_S) -> int:
        """Take the next task and finish it, with whatever is due on the way. Returns its kind, ``_core.TURN_...``."""
        kind, step, shard, buffer_at = self.board.next(self.target, self.index, self._spin, wait_s)
        self._spin = kind != _core.TURN_IDLE  # whoever waited in vain has nothing to gain from spinning
        if kind != _core.TURN_GRADIENT:
            return kind
        if self._whole_batches:
            shard = 0
        try:
            self._compute(step, shard, buffer_at)
        except _CannotMapError as error:  # another worker may do better, and this one later
            self.board.refuse(self.index, error.number)
            time.sleep(min(wait_s, _RETRY_S))
            return _core.TURN_IDLE
        except Exception as error:
            if not self.board.still_claimed():  # we were stopped, and the others went on without us
                return kind
            self._reporter.report(error, step, shard)
            return _core.TURN_STOP
        self.board.commit(self.index)
        return kind

    def _compute(self, step: int, shard: int, buffer_at: int) -> None:
        start, stop = sampler.shard_bounds(step % self.steps, shard, **self.cut)
        if start == stop:
            self._buffer(buffer_at)[0][0] = 0
            return
        try:
            hold = self.weights.pin()
        except OSError as error:
            raise _CannotMapError(error.errno or 0) from None
        if self._decoder is None:
            self._decoder = decoder_of(hold)
        rng = None
        if self.model.takes_rng:
            rng = self._random.rng(self.job.first_step + step, shard)
        params = self._decoder.value(hold)
        buffer = self._buffer(buffer_at)
        buffer.count[0] = examples = stop - start
        buffer.version[0] = hold.version
        parts = self.job.accumulate
        if parts == 1:
            self._write(self.model(params, self.data.take(self.order[start:stop]), rng), buffer)
            return
        for part in range(parts):
            first, last = sampler.shard_bounds(
                0, part, shards=parts, examples=examples, batch_size=examples, least=self.job.least
            )
            if first < last:
                batch = self.data.take(self.order[start + first : start + last])
                gradient = self.model(params, batch, rng)
                self._add(gradient, (last - first) / examples, buffer, begin=first == 0)
                if self.job.plan.buffers:  # the next part goes on with what this one made of them
                    names = list(params)[-len(buffer.views) :]
                    params = params | dict(zip(names[: self.job.plan.buffers], buffer.views, strict=False))
        self._check_finite(buffer, range(len(buffer.views)))

    def _write(self, gradient: Gradient, buffer: _Buffer) -> None:
        buffer.measured[0] = gradient.loss
        self._reporter.name_metrics(tuple(gradient.metrics))
        for index, value in enumerate(gradient.metrics.values()):
            buffer.measured[1 + index] = value
        missed, bad = _core.copy_leaves(self.board, buffer.places, gradient.leaves, self._first_checked)
        for index in missed:  # those that need conversion
            np.copyto(buffer.views[index], gradient.leaves[index], casting="same_kind")
        self._check_finite(buffer, missed if bad < 0 else [bad])

    def _check_finite(self, buffer: _Buffer, indices: Iterable[int]) -> None:
        """Raises NonFiniteLossError, naming the parameter, if one of these gradients is not finite."""
        plan = self.job.plan
        for index in indices:
            if index >= self._first_checked and not np.isfinite(buffer.views[index]).all():
                raise NonFiniteLossError(
                    f"the gradient of parameter {plan.names[index]} has a NaN or an infinity (the loss is "
                    f"{buffer.measured[0]:.6g})"
                )

    def _add(self, gradient: Gradient, share: float, buffer: _Buffer, *, begin: bool) -> None:
        """Add one part of a shard, which has this share of its examples. Loss, metrics and gradients add up to means;
        of the model's own buffers, which come first, the last part's values stand."""
        self._reporter.name_metrics(tuple(gradient.metrics))
        measured = np.array([gradient.loss, *gradient.metrics.values()])
        buffer.measured[: len(measured)] = share * measured + (0 if begin else buffer.measured[: len(measured)])
        for index, (view, leaf) in enumerate(zip(buffer.views, gradient.leaves, strict=True)):
            if index < self.job.plan.buffers:
                np.copyto(view, leaf)
                continue
            part = np.multiply(leaf, view.dtype.type(share))
            if begin:
                np.copyto(view, part, casting="same_kind")
            else:
                np.add(view, part, out=view, casting="same_kind")

    def _buffer(self, buffer_at: int) -> _Buffer:
        """The views of a buffer; made once."""
        views = self._buffers.get(buffer_at)
        if views is None:
            plan = self.job.plan
            count, measured, version, payload_at = self.board.buffer(buffer_at)
            places, gradients = plan.gradient_places(payload_at), plan.gradient_views(self.board, buffer_at)
            views = _Buffer(count, measured, version, places, gradients)
            self._buffers[buffer_at] = views
        return views


class Reporter:
    """Tells the server, through the board, what the metrics' names are and what went wrong."""

    def __init__(self, board: Board, index: int) -> None:
        self._board = board
        self._index = index
        self._named = False

    def name_metrics(self, names: tuple[str, ...]) -> None:
        """Every worker writes the same names, once; whoever is first, the server finds them whole after a step."""
        if self._named:
            return
        for name in names:
            if name in _RESERVED_NAMES or name.startswith("val_"):
                raise ValueError(
                    f"the metric {name!r}: the trainer gives this name itself, as it does val_... and "
                    f"{', '.join(_RESERVED_NAMES)}; take another"
                )
        self._board.write_metric_names(names)
        self._named = True

    def report(self, error: Exception, step: int, shard: int) -> None:
        """Tell what went wrong, with the traceback as the user's own code would show it."""
        trace = error.__traceback__
        while trace is not None and _is_ours(trace.tb_frame.f_code.co_filename):
            trace = trace.tb_next
        lines = traceback.format_exception(type(error), error, trace)
        self._board.report_failure(self._index, step, shard, error, "".join(lines))


def _is_ours(filename: str) -> bool:
    """Return whether a file lies between a worker and the user's code: one of train, or a framework's model."""
    package = Path(__file__).parents[2]
    path = Path(filename).absolute()
    return path.parent == package or any(folder in path.parents for folder in (package / "train", package / "torch"))


def worker_main(index: int, jobs: Subscriber, problem: Exception | None) -> None:
    """Run a worker process: take part in every job that the server publishes, until the server is gone. If there is a
    ``problem``, which came before, each job fails with it."""
    desk, done = _Desk(index, jobs, problem), 0
    own_pid = os.getpid()
    while os.getpid() == own_pid:  # a copy of it that the model forked, and that came back here, has nothing to do
        try:
            snapshot = jobs.snapshot(newer_than=done)
        except BrokenChannelError:
            return  # the server closed, or is dead: the kernel says so
        done = snapshot.version
        payload = snapshot.value
        snapshot.close()
        if payload is None:
            desk.clear()
        elif desk.take_part(done, payload) == _core.TURN_LEAVE and jobs.version == done:
            return  # there are too many of us, and it was not to do something else meanwhile


class _Desk:
    """What a worker process has at hand: the model, and the job that is interrupted by another."""

    def __init__(self, index: int, jobs: Subscriber, problem: Exception | None) -> None:
        self._index = index
        self._jobs = jobs
        self._problem = problem
        self._workers: dict[int, Worker] = {}
        self._model: tuple[bytes, int, Replica] | None = None

    def clear(self) -> None:
        """There is no job: let its memory go."""
        self._workers.clear()

    def take_part(self, version: int, payload: dict[str, Any]) -> int:
        """Take part in a job, published as this version, until it ends; the kind of the last turn."""
        set_levels(json.loads(payload["levels"]))
        number = payload["number"]
        known = {key: self._workers[key] for key in (number, payload["within"]) if key in self._workers}
        self._workers = known
        if number not in known:
            worker = self._begin(version, payload)
            if worker is None:
                return _core.TURN_STOP
            known[number] = worker
        return _run(known[number], self._jobs, version)

    def _begin(self, version: int, payload: dict[str, Any]) -> Worker | None:
        """The worker for this job; None if the job is over, or cannot be begun, and then the server knows why."""
        try:
            board = Board.open(payload["board"])
        except (OSError, _core.StatusError) as error:
            if self._jobs.version != version or not self._jobs.publisher_alive():
                return None  # the job ended before we came to it
            raise CapacityError(
                f"worker {self._index} cannot map the board of its job, {payload['board']}: {error}; look at its "
                "limits (ulimit -v, vm.max_map_count), and at whether it may read /proc"
            ) from error
        if board.job != payload["number"]:
            return None  # likewise: the path names a descriptor, whose number the next job's board has got
        try:
            if self._problem is not None:
                raise self._problem
            model = self._replica(payload["model"], payload["threads"])
            worker: Worker = pickle.loads(payload["job"]).begin(self._index, board, model)
            return worker
        except Exception as error:
            over = isinstance(error, UntornError | OSError) and self._jobs.version != version
            if board.stopped or not over:
                board.report_failure(self._index, board.step, 0, error, traceback.format_exc())
            return None

    def _replica(self, model: bytes, threads: int) -> Replica:
        """What was compiled for one job serves the next."""
        if self._model is None or self._model[:2] != (model, threads):
            given: Model = pickle.loads(model)
            use_threads(threads)
            self._model = (model, threads, given.replica(threads))
        return self._model[2]


def _run(worker: Worker, jobs: Subscriber, version: int) -> int:
    looked = time.monotonic()
    with contextlib.suppress(BrokenChannelError):
        while (kind := worker.run_once(WAIT_S)) not in (_core.TURN_STOP, _core.TURN_LEAVE):
            now = time.monotonic()
            if now - looked < WAIT_S:
                continue
            looked = now
            if jobs.version != version or not jobs.publisher_alive():
                return _core.TURN_STOP
        return kind
    return _core.TURN_STOP
