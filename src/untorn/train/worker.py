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
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from untorn import _core
from untorn.errors import BrokenChannelError, NonFiniteLossError, UntornError
from untorn.share import storage
from untorn.share.layout import Decoder
from untorn.share.storage import Address
from untorn.share.subscriber import Subscriber
from untorn.share.views import array_over
from untorn.train import sampler
from untorn.train.data import SharedData
from untorn.train.model import Gradient, replica_of
from untorn.train.plan import ParameterPlan

__all__ = ["Job", "ShardWorker", "worker_main"]

#: how long a worker waits for work before it looks whether its server lives
WAIT_S = 0.1
_NAMES_NBYTES = 4096


@dataclass(frozen=True)
class Job:
    """All that a worker must know to take part in one fit. What updates make goes to ``target``: the next weights, or
    what the server makes them of."""

    number: int
    board_path: str
    weights: Address
    target: Address
    data: SharedData
    model: Any
    plan: ParameterPlan
    seed: int
    first_step: int
    threads: int = 1
    accumulate: int = 1


class _Buffer(NamedTuple):
    """A gradient buffer: number of examples, loss and metrics, the version that the gradient is of, where the gradients
    go, and writable views of them."""

    count: Any
    measured: Any
    version: Any
    places: tuple[tuple[int, int, str], ...]
    views: list[Any]


class ShardWorker:
    """Takes part in one job. ``turn`` does one thing and says what it was."""

    def __init__(self, job: Job, index: int, board: _core.Board | None = None) -> None:
        self.job = job
        self.index = index
        self.board = open_board(job.board_path) if board is None else board
        self.steps = self.board.steps
        self._lanes = bool(self.board.lanes)  # whose gradients are those of whole batches
        self.cut = {
            "shards": 1 if self._lanes else self.board.shards,
            "examples": self.board.examples,
            "batch_size": self.board.batch_size,
        }
        self.target = _attached(job.target)
        self.weights = self.target if job.weights == job.target else _attached(job.weights)
        self.data = job.data.open()
        self.model = replica_of(job.model, threads=job.threads)
        self.order = array_over(self.board, np.int64, self.board.examples, self.board.order_at)
        self._decoder: Decoder | None = None
        self._buffers: dict[int, _Buffer] = {}
        self._named = False
        self._spin = True

    def turn(self, wait_s: float = WAIT_S) -> int:
        """Take the next task and finish it, whatever is due on the way; the kind of turn that it was."""
        kind, step, shard, buffer_at = self.board.next(self.target, self.index, self._spin, wait_s)
        self._spin = kind != _core.TURN_IDLE  # whoever waited in vain has nothing to gain from spinning
        if kind != _core.TURN_GRADIENT:
            return kind
        if self._lanes:
            shard = 0
        try:
            self._compute(step, shard, buffer_at)
        except Exception as error:
            if not self.board.stands():  # we were stopped, and the others went on without us
                return kind
            self.report(error, step, shard)
            return _core.TURN_STOP
        self.board.commit(self.index)
        return kind

    def _compute(self, step: int, shard: int, buffer_at: int) -> None:
        start, stop = sampler.shard_bounds(step % self.steps, shard, **self.cut)
        if start == stop:
            self._buffer(buffer_at)[0][0] = 0
            return
        hold = self.weights.pin()
        if self._decoder is None:
            schema = bytes(memoryview(hold)[_core.HEADER_NBYTES : _core.HEADER_NBYTES + hold.schema_nbytes])
            self._decoder = Decoder(schema, hold.nbytes)
        rng = None
        if self.model.takes_rng:
            rng = sampler.shard_rng(self.job.seed, self.job.first_step + step, shard, self.cut["shards"])
        params = self._decoder.value(hold)
        buffer = self._buffer(buffer_at)
        buffer.count[0] = examples = stop - start
        buffer.version[0] = hold.version
        parts = self.job.accumulate
        if parts == 1:
            self._write(self.model(params, self.data.take(self.order[start:stop]), rng), buffer)
            return
        for part in range(parts):
            first, last = sampler.shard_bounds(0, part, shards=parts, examples=examples, batch_size=examples)
            if first < last:
                batch = self.data.take(self.order[start + first : start + last])
                gradient = self.model(params, batch, rng)
                self._add(gradient, (last - first) / examples, buffer, begin=first == 0)
                if self.job.plan.buffers:  # the next part goes on with what this one made of them
                    names = list(params)[-len(buffer.views) :]
                    params = params | dict(zip(names[: self.job.plan.buffers], buffer.views, strict=False))

    def _write(self, gradient: Gradient, buffer: _Buffer) -> None:
        buffer.measured[0] = gradient.loss
        if not self._named:
            self._name_metrics(tuple(gradient.metrics))
        for index, value in enumerate(gradient.metrics.values()):
            buffer.measured[1 + index] = value
        for index in _core.copy_leaves(self.board, buffer.places, gradient.leaves):  # those that need conversion
            np.copyto(buffer.views[index], gradient.leaves[index], casting="same_kind")

    def _add(self, gradient: Gradient, share: float, buffer: _Buffer, *, begin: bool) -> None:
        """Add one part of a shard, which has this share of its examples. Loss, metrics and gradients add up to means;
        of the model's own buffers, which come first, the last part's values stand."""
        if not self._named:
            self._name_metrics(tuple(gradient.metrics))
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
            count = array_over(self.board, np.uint64, 1, buffer_at)
            measured = array_over(self.board, np.float64, 1 + _core.BOARD_METRICS, buffer_at + 8)
            version = array_over(self.board, np.uint64, 1, buffer_at + 16 + 8 * _core.BOARD_METRICS)
            places, gradients = plan.gradient_places(buffer_at), plan.gradient_views(self.board, buffer_at)
            views = _Buffer(count, measured, version, places, gradients)
            self._buffers[buffer_at] = views
        return views

    def _name_metrics(self, names: tuple[str, ...]) -> None:
        """Every worker writes the same names; whoever is first, the server finds them whole after a step."""
        text = json.dumps(names).encode()
        if len(text) >= _NAMES_NBYTES:
            raise ValueError(f"the names of the metrics are too long: {names}")
        _core.copy(self.board, self.board.names_at, text + b"\0")
        self._named = True

    def report(self, error: Exception, step: int, shard: int) -> None:
        """Tell the server what went wrong, with the traceback as the user's own code would show it."""
        trace = error.__traceback__
        while trace is not None and _is_ours(trace.tb_frame.f_code.co_filename):
            trace = trace.tb_next
        lines = traceback.format_exception(type(error), error, trace)
        report_failure(self.board, self.index, step, shard, error, "".join(lines))


def _attached(address: Address) -> _core.Attachment:
    files = storage.open_files(address.places, address.label, writable=True, id=address.id)
    return storage.attach(*files, _core.WRITER, address.label)


def _is_ours(filename: str) -> bool:
    """A file of this folder or of those in it, or of the one above, where the models of frameworks are."""
    here, folder = os.path.dirname(os.path.abspath(__file__)), os.path.dirname(os.path.abspath(filename))
    return folder == os.path.dirname(here) or f"{folder}{os.sep}".startswith(here + os.sep)


def report_failure(board: _core.Board, index: int, step: int, shard: int, error: Exception, text: str) -> None:
    """Write the error where the server looks, newest lines last, and ring."""
    room = _core.BOARD_ERROR_NBYTES - 1024
    document = {
        "step": step,
        "shard": shard,
        "non_finite": isinstance(error, NonFiniteLossError),
        "summary": f"{type(error).__name__}: {error}"[:500],
        "traceback": text[-room // 6 :],  # JSON may need six bytes for a character
    }
    data = json.dumps(document).encode()
    _core.copy(board, board.errors_at + index * _core.BOARD_ERROR_NBYTES, data + b"\0")
    board.fail(index)


def open_board(path: str) -> _core.Board:
    """Attach to the board at this path."""
    fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    try:
        return _core.Board(fd)
    finally:
        os.close(fd)


def worker_main(index: int, jobs: Subscriber) -> None:
    """The life of a worker process: take part in every job that the server publishes, until it is gone."""
    done = 0
    while True:
        try:
            snapshot = jobs.snapshot(newer_than=done)
        except BrokenChannelError:
            return  # the server closed, or is dead: the kernel says so
        done = snapshot.version
        payload = snapshot.value
        snapshot.close()
        if payload is not None and _take_part(index, jobs, done, payload) == _core.TURN_LEAVE:
            return


def _take_part(index: int, jobs: Subscriber, number: int, payload: dict[str, Any]) -> int:
    """Take part in a job until it ends; the kind of the last turn."""
    try:
        board = open_board(payload["board"])
    except OSError:
        return _core.TURN_STOP  # the job ended before we came to it
    try:
        # The path names a descriptor, whose number the next job's board may get when this one is over. The data's
        # channel is closed before that, so a worker that can still attach to the data has opened the right board.
        worker = ShardWorker(pickle.loads(payload["job"]), index, board)
    except Exception as error:
        if not board.stopped and isinstance(error, UntornError | OSError) and jobs.version != number:
            return _core.TURN_STOP
        report_failure(board, index, board.step, 0, error, traceback.format_exc())
        return _core.TURN_STOP
    del board
    return _run(worker, jobs, number)


def _run(worker: ShardWorker, jobs: Subscriber, number: int) -> int:
    looked = time.monotonic()
    with contextlib.suppress(BrokenChannelError):
        while (kind := worker.turn()) not in (_core.TURN_STOP, _core.TURN_LEAVE):
            now = time.monotonic()
            if now - looked < WAIT_S:
                continue
            looked = now
            if jobs.version != number or not jobs.publisher_alive():
                return _core.TURN_STOP
        return kind
    return _core.TURN_STOP
