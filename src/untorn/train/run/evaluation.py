"""evaluate and predict: the data in chunks, each measured by whoever is free, put together in the order of the chunks.

::

    measure ──┬── little to do, or no workers: here
              └── much: a board with lanes ── a chunk per lane ──> workers: loss and metrics, or outputs ──> here

A chunk's answer depends on the weights and on the chunk alone, and the answers are put together in order: so the result
has the same bits, whoever computed what. Workers that are in the middle of a fit leave its board for a moment, and go
back to it (ProcessEngine.interrupt).
"""

from __future__ import annotations

import contextlib
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from untorn import _core
from untorn.board import Board, BoardSpec
from untorn.engines import Death, ProcessEngine
from untorn.engines.threads import threads_limited
from untorn.errors import CapacityError, NonFiniteLossError, WorkerError
from untorn.share import Snapshot
from untorn.share.lowlevel import Address, attach_writer, decoder_of, shortage
from untorn.train.data import SharedData, Source, sampler
from untorn.train.models.base import Replica
from untorn.train.models.outputs import Form, flattened
from untorn.train.run.running import how_it_died
from untorn.train.run.worker import Reporter

if TYPE_CHECKING:
    from untorn.train.trainer import Trainer

__all__ = ["EVALUATION_BATCH_SIZE", "MeasuringJob", "evaluate", "predict"]

_Array = NDArray[Any]
EVALUATION_BATCH_SIZE = 1024
#: what takes less time than this is not worth the way to the workers
_WORTH_S = 0.1
#: a model's random numbers, while it is evaluated, are those of a step that no training comes to
_STEP_OF_EVALUATION = 2**40
_LANES_PER_WORKER = 2


_Share = Callable[[], SharedData]


def evaluate(trainer: Trainer, source: Source, batch_size: int, share: _Share | None = None) -> dict[str, float]:
    """Loss and metrics, means over all examples. ``share`` gives the data to workers, for longer than this call."""
    cut = _Cut(source.examples, batch_size)
    means = _Means(cut)
    _measure(trainer, source, cut, means, share)
    return means.result()


def predict(trainer: Trainer, source: Source, batch_size: int) -> Any:
    """The model's outputs for all examples, in order."""
    cut = _Cut(source.examples, batch_size)
    outputs = _Outputs(cut)
    _measure(trainer, source, cut, outputs, None)
    return outputs.result()


@dataclass(frozen=True)
class _Cut:
    """How so many examples are cut into chunks."""

    examples: int
    size: int

    @property
    def chunks(self) -> int:
        return -(-self.examples // self.size)

    def indices(self, chunk: int) -> NDArray[np.int64]:
        return np.arange(chunk * self.size, min(self.examples, (chunk + 1) * self.size))

    def named(self, chunk: int) -> str:
        indices = self.indices(chunk)
        return f"examples {indices[0]} to {indices[-1]}"


# -- what is asked for


class _Question(ABC):
    """What is asked about each chunk, and what its answers make together. Abstract."""

    #: does it ask for the model's outputs?
    outputs: bool

    def __init__(self, cut: _Cut) -> None:
        self.cut = cut

    @abstractmethod
    def begin(self, chunk: int, answer: Any) -> int:
        """Take the first answer, which was computed here. How many bytes workers need for one; -1: do all here."""

    @abstractmethod
    def take(self, chunk: int, answer: Any) -> None:
        """Take an answer that was computed here."""

    @abstractmethod
    def take_from(self, board: Board, buffer_at: int, chunk: int) -> None:
        """Take an answer that a worker left in a buffer of this board."""

    @abstractmethod
    def result(self) -> Any:
        """What all answers make together."""


class _Means(_Question):
    outputs = False

    def __init__(self, cut: _Cut) -> None:
        super().__init__(cut)
        self._answers: dict[int, dict[str, float]] = {}

    def begin(self, chunk: int, answer: Any) -> int:
        self.take(chunk, answer)
        return 8

    def take(self, chunk: int, answer: Any) -> None:
        self._answers[chunk] = {"loss": answer.loss} | dict(answer.metrics)

    def take_from(self, board: Board, buffer_at: int, chunk: int) -> None:
        names = ["loss", *board.metric_names]
        values = board.buffer(buffer_at).measured[: len(names)]
        self._answers[chunk] = dict(zip(names, map(float, values), strict=True))

    def result(self) -> dict[str, float]:
        totals: dict[str, float] = {}
        for chunk in range(self.cut.chunks):
            for name, value in self._answers[chunk].items():
                totals[name] = totals.get(name, 0.0) + value * len(self.cut.indices(chunk))
        return {name: total / self.cut.examples for name, total in totals.items()}


class _Outputs(_Question):
    outputs = True

    def __init__(self, cut: _Cut) -> None:
        super().__init__(cut)
        self.form = Form(None, (), ())
        self._whole: list[_Array] | None = None
        self._answers: list[list[Any]] = []

    def begin(self, chunk: int, answer: Any) -> int:
        parts, tree = flattened(answer)
        for name, part in parts:
            if np.ndim(part) == 0:
                raise TypeError(
                    f"predict: expected {f'arrays, as output {name} too,' if name else 'an array'} with one row per "
                    f"example, found a single {type(part).__name__}"
                )
        count = len(self.cut.indices(chunk))
        plain = all(isinstance(part, np.ndarray) and not part.dtype.hasobject for _, part in parts)
        names = tuple(name for name, _ in parts)
        if not plain or any(part.shape[:1] != (count,) for _, part in parts):
            self.form = Form(tree, names, ())
            self._answers.append([part for _, part in parts])
            return -1
        self.form = Form(tree, names, tuple((part.shape[1:], part.dtype) for _, part in parts))
        self._whole = self.form.empty(self.cut.examples)
        self.take(chunk, answer)
        return self.form.nbytes(self.cut.size)

    def take(self, chunk: int, answer: Any) -> None:
        if self._whole is None:
            self._answers.append([part for _, part in flattened(answer)[0]])
            return
        indices = self.cut.indices(chunk)
        for whole, part in zip(self._whole, self.form.checked(answer, self.cut.named(chunk)), strict=True):
            whole[indices] = part

    def take_from(self, board: Board, buffer_at: int, chunk: int) -> None:
        assert self._whole is not None
        indices = self.cut.indices(chunk)
        places = self.form.places(self.cut.size, len(indices))
        for whole, (dtype, shape, offset) in zip(self._whole, places, strict=True):
            whole[indices] = board.payload_array(buffer_at, dtype, shape, offset)

    def result(self) -> Any:
        if self._whole is None:
            return self.form.built([np.concatenate(parts) for parts in zip(*self._answers, strict=True)])
        return self.form.built(self._whole)


# -- the server's side


def _measure(trainer: Trainer, source: Source, cut: _Cut, question: _Question, share: _Share | None) -> None:
    with trainer.snapshot() as snapshot:
        here = _Here(trainer, snapshot, source, question)
        began = time.perf_counter()
        nbytes = question.begin(0, here.answer(0))
        rest = range(1, cut.chunks)
        worth_it = nbytes >= 0 and (time.perf_counter() - began) * len(rest) >= _WORTH_S
        with _idle_workers(trainer) if worth_it else contextlib.nullcontext() as engine:
            if engine is None:
                for chunk in rest:
                    question.take(chunk, here.answer(chunk))
                return
            with contextlib.ExitStack() as stack:
                if share is None:
                    sharing = source.shared(max_readers=trainer._team.max_readers, local=False)
                    shared = stack.enter_context(sharing)
                else:
                    shared = share()
                _Workers(trainer, engine, question, nbytes).run(shared)


@contextlib.contextmanager
def _idle_workers(trainer: Trainer) -> Iterator[ProcessEngine | None]:
    """The engine, if it has worker processes that can be interrupted: not while they make steps, for then the newest
    weights are others for each of them, and not for a thread beside the one that trains."""
    engine = trainer._running().engine
    if not isinstance(engine, ProcessEngine) or not engine.has_workers:
        yield None
        return
    taken: list[bool] = []
    try:
        # in one call, so that no Ctrl-C can come after the lock is taken and before that is noted
        taken.extend(map(trainer._using.acquire, [False]))
        fit = trainer._fit
        yield engine if taken[0] and not (fit is not None and fit.stepping) else None
    finally:
        if any(taken):
            trainer._using.release()


class _Here:
    """Answers in this process."""

    def __init__(self, trainer: Trainer, snapshot: Snapshot, source: Source, question: _Question) -> None:
        self._source = source
        self._threads = trainer.threads_per_worker
        self._ask = Asker(trainer._replica, trainer._params_of(snapshot), trainer.seed, outputs=question.outputs)
        self._cut = question.cut

    def answer(self, chunk: int) -> Any:
        with threads_limited(self._threads):
            return self._ask(self._source.take(self._cut.indices(chunk)))


class Asker:
    """A model with the weights that it is asked about."""

    def __init__(self, model: Replica, params: Any, seed: int, *, outputs: bool) -> None:
        self._model, self._params, self._seed, self._outputs = model, params, seed, outputs

    def __call__(self, batch: Any) -> Any:
        if self._outputs:
            return self._model.predict(self._params, batch)
        takes_rng = self._model.takes_rng
        rng = sampler.shard_rng(self._seed, _STEP_OF_EVALUATION, 0, 1) if takes_rng else None
        return self._model.measure(self._params, batch, rng)


class _Workers:
    """Has the workers answer all chunks but the first."""

    def __init__(self, trainer: Trainer, engine: ProcessEngine, question: _Question, nbytes: int) -> None:
        self._trainer = trainer
        self._engine = engine
        self._question = question
        self._nbytes = nbytes
        self._deaths: dict[int, int] = {}

    def run(self, shared: SharedData) -> None:
        trainer, cut, team = self._trainer, self._question.cut, self._trainer._team
        with self._make_board() as board:
            board.set_workers(team.wanted, team.spin_s)
            job = MeasuringJob(
                weights=trainer._running().weights.subscriber().address,
                data=shared,
                private=trainer._model.private_params,
                size=cut.size,
                examples=cut.examples,
                seed=trainer.seed,
                form=getattr(self._question, "form", None),
                outputs=self._question.outputs,
            )
            payload = trainer._payload(job, board, within=self._engine.job_number)
            with self._engine.interrupt(board, payload, team.spin_s):
                self._collect(board)

    def _make_board(self) -> Board:
        team = self._trainer._team
        lanes = min(self._question.cut.chunks - 1, _LANES_PER_WORKER * team.wanted)
        spec = BoardSpec(
            shards=lanes,
            max_workers=team.most,
            workers=team.wanted,
            is_async=True,
            steps=1,
            examples=1,
            batch_size=1,
            gradient_nbytes=self._nbytes,
        )
        try:
            return Board.create(spec)
        except (_core.StatusError, OSError) as error:
            if not shortage(error):
                raise
            raise CapacityError(
                f"no memory for {lanes + team.wanted} buffers of {self._nbytes:,} bytes "
                f"({shortage(error)}); use a smaller batch_size"
            ) from None

    def _collect(self, board: Board) -> None:
        chunks = iter(range(1, self._question.cut.chunks))
        under_way = dict(zip(range(board.shards), chunks, strict=False))
        for lane, chunk in under_way.items():
            board.inflight_open(lane, chunk)
        while under_way:
            self._supervise(board, self._engine.advance(0))
            for lane, chunk in list(under_way.items()):
                batch = board.in_flight(lane)
                if batch.state != _core.TASK_DONE:
                    continue
                self._question.take_from(board, batch.buffer_at, chunk)
                board.inflight_empty(lane)
                del under_way[lane]
                following = next(chunks, None)
                if following is not None:
                    under_way[lane] = following
                    board.inflight_open(lane, following)

    def _supervise(self, board: Board, deaths: list[Death]) -> None:
        cut = self._question.cut
        for death in deaths:
            chunk = death.step if death.shard >= 0 else -1
            self._deaths[chunk] = self._deaths.get(chunk, 0) + 1
            if self._deaths[chunk] > self._trainer.max_restarts:
                where = f"at {cut.named(chunk)}" if chunk >= 0 else "before they could take part"
                raise WorkerError(
                    f"{self._deaths[chunk]} workers died one after the other {where}; the last {how_it_died(death)}. "
                    f"max_restarts is {self._trainer.max_restarts}"
                )
        report = board.failure
        if report is not None:
            where = cut.named(report.step)
            if report.non_finite:
                raise NonFiniteLossError(f"{report.summary.split(': ', 1)[-1]} for {where}")
            raise WorkerError(f"failed in worker {report.worker}, at {where}: {report.summary}", report.traceback)
        fit = self._trainer._fit
        if fit is not None and fit.inside_epoch and fit.running.control is not None:
            fit.running.control.poll(fit.status)


# -- the worker's side


@dataclass(frozen=True)
class MeasuringJob:
    """What a worker must know to answer.

    Attributes:
        private: read the weights through a private mapping: a framework may write to them.
        form: of the outputs, if it asks for them.
    """

    weights: Address
    data: SharedData
    private: bool
    size: int
    examples: int
    seed: int
    form: Form | None
    outputs: bool

    def begin(self, index: int, board: Board, model: Replica) -> _Measurer:
        """The worker for it."""
        return _Measurer(self, index, board, model)


class _Measurer:
    """Evaluates one chunk at a time."""

    def __init__(self, job: MeasuringJob, index: int, board: Board, model: Replica) -> None:
        self.board = board
        self._job = job
        self._index = index
        self._cut = _Cut(job.examples, job.size)
        self._weights = attach_writer(job.weights)
        self._data = job.data.open()
        self._hold = self._weights.pin()
        params = decoder_of(self._hold).value(self._hold.private() if job.private else self._hold)
        self._ask = Asker(model, params, job.seed, outputs=job.outputs)
        self._reporter = Reporter(board, index)
        self._spin = True

    def run_once(self, wait_s: float) -> int:
        """See Worker."""
        kind, chunk, _, buffer_at = self.board.next(self._weights, self._index, self._spin, wait_s)
        self._spin = kind != _core.TURN_IDLE
        if kind != _core.TURN_GRADIENT:
            return kind
        try:
            answer = self._ask(self._data.take(self._cut.indices(chunk)))
            if self._job.outputs:
                self._write_outputs(chunk, buffer_at, answer)
            else:
                self._write_measured(buffer_at, answer)
        except Exception as error:
            if not self.board.still_claimed():
                return kind
            self._reporter.report(error, chunk, 0)
            return _core.TURN_STOP
        self.board.commit(self._index)
        return kind

    def _write_measured(self, buffer_at: int, answer: Any) -> None:
        self._reporter.name_metrics(tuple(answer.metrics))
        self.board.buffer(buffer_at).measured[: 1 + len(answer.metrics)] = [answer.loss, *answer.metrics.values()]

    def _write_outputs(self, chunk: int, buffer_at: int, answer: Any) -> None:
        form = self._job.form
        assert form is not None
        parts = form.checked(answer, self._cut.named(chunk))
        places = form.places(self._cut.size, len(self._cut.indices(chunk)))
        for part, (dtype, shape, offset) in zip(parts, places, strict=True):
            np.copyto(self.board.payload_array(buffer_at, dtype, shape, offset), part)
