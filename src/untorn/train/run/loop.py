"""One call of fit: its board, its epochs and their steps. The workers work; this watches, and tells callbacks.

::

    run_epochs ── one board with the workers at it ──> epoch ──> steps: progress, deaths, failures, checkpoints
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from untorn import _core
from untorn.board import Board, BoardSpec
from untorn.engines import Death, ProcessEngine
from untorn.errors import CapacityError
from untorn.share import lowlevel
from untorn.share.lowlevel import shortage
from untorn.train.callbacks.calls import training
from untorn.train.checkpoints.resuming import Part, give_states_back, rest_of
from untorn.train.data import SharedData, Source, Stream, sampler
from untorn.train.run import evaluation
from untorn.train.run.running import Fit, Running
from untorn.train.run.small_batches import least_examples
from untorn.train.run.step_log import NO_RECORDS, Records, failure, means_of
from untorn.train.run.steps import Driver, driver_of
from untorn.train.run.worker import Job, ShardWorker

if TYPE_CHECKING:
    from untorn.train.trainer import Trainer

__all__ = ["run_epochs"]


def run_epochs(trainer: Trainer, fit: Fit, epochs: int, states: dict[str, Any]) -> None:
    """Run so many epochs, or what is left of one and then so many, after giving callbacks their ``states`` back."""
    with training(fit.callbacks, trainer._check_owner):
        give_states_back(fit.callbacks, states)
        if states and trainer.stop_training:
            return  # it had been stopped early
        try:
            with contextlib.ExitStack() as job:
                _run_all(trainer, fit, epochs, job)
        except BaseException as error:
            if not fit.running.is_copy:
                _keep_place(trainer, fit, error)
            raise


def _run_all(trainer: Trainer, fit: Fit, epochs: int, job: contextlib.ExitStack) -> None:
    driver = None
    for _ in range(epochs):
        trainer._check_open()
        trainer._check_owner()
        fit.skipped = fit.part.progress.step_in_epoch if fit.part else 0
        if fit.stream is not None:
            _fit_stream(trainer, fit, fit.stream)
        else:
            piece = _rest_of(fit)
            if driver is None and piece is not None:
                driver = job.enter_context(_job(trainer, fit, piece))
            _fit_epoch(trainer, fit, driver)
        if fit.part is not None:  # it is over, and its board was made for the rest of it alone
            fit.part = driver = None
            job.close()
        if trainer.stop_training:
            break


class _Piece(NamedTuple):
    """What one board is for: examples of this source, in batches of this size."""

    source: Source
    examples: int
    batch_size: int


def _rest_of(fit: Fit) -> _Piece | None:
    """Return an epoch, or what is left of one; None if that is nothing but its end."""
    assert fit.data is not None
    examples = len(rest_of(np.arange(fit.examples), fit.batch_size, fit.part))
    return _Piece(fit.data, examples, min(fit.batch_size, examples)) if examples else None


@contextlib.contextmanager
def _job(trainer: Trainer, fit: Fit, piece: _Piece) -> Iterator[Driver]:
    """A board for a piece, with the workers at it."""
    running, team = fit.running, trainer._team
    sizes = {"examples": piece.examples, "batch_size": piece.batch_size}
    running.least = least_examples(trainer, piece.source, **sizes, cut=fit.stream is None)
    version = running.weights.version
    server = running.server_steps(trainer.clip_norm, trainer.threads_per_worker)
    with _make_board(trainer, running, piece, clips=server is None) as board:
        try:
            team.begin(board)
            driver = driver_of(board, running, trainer.max_staleness, server)
            running.engine.resize(team.wanted)
            local = not isinstance(running.engine, ProcessEngine)
            with piece.source.shared(max_readers=fit.max_readers, local=local) as shared:
                job = _make_job(trainer, running, shared)
                threads = trainer.threads_per_worker
                payload = {} if local else trainer._payload(job, board)
                try:
                    running.engine.begin(
                        board,
                        payload,
                        lambda index: ShardWorker(job, index, board, trainer._sent.replica(threads)),
                    )
                    trainer._at_work = True
                    yield driver
                finally:
                    # what was left in the middle must not publish its step when others have begun the next job
                    running.engine.end(abandon=not driver.at_rest)
                    trainer._at_work = False
                    # after a failure, there are steps that nobody has counted
                    trainer.step = job.first_step + running.weights.version - version
        finally:
            team.end()


def _make_board(trainer: Trainer, running: Running, piece: _Piece, *, clips: bool) -> Board:
    """A board for the steps of a piece."""
    plan, team = running.plan, trainer._team
    is_async = trainer.mode == "async"
    spec = BoardSpec(
        shards=trainer.max_staleness + 1 if is_async else trainer.shards,
        max_workers=team.most,
        workers=team.wanted,
        is_async=is_async,
        steps=sampler.steps_per_epoch(piece.examples, piece.batch_size),
        examples=piece.examples,
        batch_size=piece.batch_size,
        gradient_nbytes=plan.nbytes,
        state_stride=plan.state_stride,
        first_version=running.target.version,
        kernel=running.optimizer.kernel,
        clip_norm=trainer.clip_norm or 0.0 if clips else 0.0,
        ranges=plan.ranges(),
    )
    try:
        return Board.create(spec)
    except (_core.StatusError, OSError) as error:
        if not shortage(error):
            raise
        raise CapacityError(
            f"no memory for {spec.shards + spec.workers} gradient buffers of {plan.nbytes:,} bytes "
            f"({shortage(error)}); use fewer {'workers' if is_async else 'shards or workers'}"
        ) from None


def _make_job(trainer: Trainer, running: Running, data: SharedData) -> Job:
    return Job(
        weights=running.weights.subscriber().address,
        target=running.target.subscriber().address,
        data=data,
        plan=running.plan,
        seed=trainer.seed,
        first_step=trainer.step,
        accumulate=trainer.accumulate,
        least=running.least,
    )


def _fit_epoch(trainer: Trainer, fit: Fit, driver: Driver | None) -> None:
    """An epoch, or what is left of one, on one board."""
    epoch = _begin_epoch(trainer, fit, steps=fit.skipped + (driver.board.steps if driver else 0))
    if driver is not None:
        order = rest_of(fit.order(trainer.seed, trainer.epoch), fit.batch_size, fit.part)
        _run_piece(trainer, fit, driver, epoch, order)
    _end_epoch(trainer, fit, epoch)


def _fit_stream(trainer: Trainer, fit: Fit, stream: Stream) -> None:
    """An epoch of batches as they come: one board after the other."""
    epoch = _begin_epoch(trainer, fit, steps=stream.steps_per_epoch or 0)
    fit.examples = int(epoch.rows[:, 0].sum())
    behind, fit.behind = fit.behind, 0
    for source, batch_size in stream.windows(trainer.epoch, skip=fit.skipped, late=epoch.late, behind=behind):
        with _job(trainer, fit, _Piece(source, source.examples, batch_size)) as driver:
            _run_piece(trainer, fit, driver, epoch, np.arange(source.examples))
        fit.skipped += driver.board.steps
        fit.examples += source.examples
    _end_epoch(trainer, fit, epoch)


class _Run(NamedTuple):
    """A piece that runs: the version of the weights that it began with, and the steps of the epoch before it."""

    version: int
    before: int
    driver: Driver
    log: Records


@dataclass
class _Epoch:
    """What the pieces of one epoch add up to.

    Attributes:
        started: when, by the clock of perf_counter.
        rows: what the steps before the piece that runs measured.
        names: of the rows' columns, from the third.
        begun: steps of it that were made before this fit.
        late: batches among the first that these steps have left out, see Progress.
        run: the piece that runs, or was the last.
        learning_rate: of the last step.
    """

    started: float
    rows: NDArray[np.float64]
    names: list[str]
    begun: int
    late: list[int]
    run: _Run | None = None
    learning_rate: float = math.nan

    def place(self, version: int) -> tuple[int, list[int]]:
        """Return how many steps are made with weights of this version, and which batches are late."""
        if self.run is None:
            return self.begun, self.late
        made = version - self.run.version
        first = self.run.before - self.begun  # of the batches that this fit was to do, the piece's first
        pending = self.run.driver.pending(made)
        taken = first + made + len(pending)
        late = [self._batch(first + index) for index in pending] + self.late[taken:]
        return self.run.before + made, sorted(late)

    def _batch(self, index: int) -> int:
        """Return the number in the epoch of a batch of this fit: first the late ones, and then those that follow."""
        return self.late[index] if index < len(self.late) else self.begun + index

    def measured(self, version: int) -> tuple[list[str], NDArray[np.float64]]:
        """Return the names of the metrics, and what was measured up to weights of this version."""
        if self.run is None or version == self.run.version:
            return self.names, self.rows
        return self.run.log.names, self.run.log.until(version - self.run.version)


def _begin_epoch(trainer: Trainer, fit: Fit, *, steps: int) -> _Epoch:
    progress = fit.part.progress if fit.part else None
    started = time.perf_counter() - (progress.seconds if progress else 0.0)
    epoch = _Epoch(started, NO_RECORDS, [], 0, [])
    if progress is not None and fit.part is not None:
        epoch = _Epoch(started, fit.part.records, progress.metrics, progress.step_in_epoch, progress.late)
    fit.epoch, fit.inside_epoch, trainer._part = epoch, True, None
    for callback in fit.callbacks:
        logs = {"steps": steps, "examples": 0 if fit.stream else fit.examples, "epochs": fit.epochs}
        callback.on_epoch_begin(trainer.epoch, logs)
        trainer._check_owner()
    fit.rate = trainer._rate.override
    if progress is not None:
        fit.rate = progress.rate_of_epoch  # what callbacks set now, they had set when the epoch began
        trainer._rate.override = progress.settings["learning_rate"]  # set in the first part of it, for the next
    return epoch


def _keep_place(trainer: Trainer, fit: Fit, error: BaseException) -> None:
    """Keep the place where an error or Ctrl-C ended fit inside an epoch: save() and the next fit() go on from it."""
    if not fit.inside_epoch or fit.epoch is None:
        return
    version = fit.running.weights.version
    made, late = fit.epoch.place(version)
    names, rows = fit.epoch.measured(version)
    if fit.epoch.run is None:
        trainer._part = fit.part
    elif made:
        try:
            progress = trainer._progress(
                step_in_epoch=made,
                late=late,
                seconds=time.perf_counter() - fit.epoch.started,
                rate_of_epoch=fit.rate,
                metrics=names,
            )
        except Exception as another:  # a callback's state_dict()
            error.add_note(f"and where the epoch was left is not known: {type(another).__name__}: {another}")
        else:
            trainer._part = Part(progress, rows, fit.data_ref)
    fit.inside_epoch = False


def _run_piece(trainer: Trainer, fit: Fit, driver: Driver, epoch: _Epoch, order: NDArray[np.int64]) -> None:
    """Put a piece of the epoch on its board, and run its steps."""
    board = driver.board
    board.order[:] = order
    with trainer._rate.as_it_was(fit.rate):
        rates = trainer._rate.rates(trainer.step, board.steps)
        shown = [trainer._rate.at(trainer.step + step) for step in range(board.steps)] if fit.listeners else []
        epoch.learning_rate = trainer._rate.at(trainer.step + board.steps - 1)
    board.rates[:] = rates
    log = Records(board, epoch.rows, clips=trainer.clip_norm is not None)
    epoch.run = _Run(fit.running.weights.version, fit.skipped, driver, log)
    fit.status.begin_epoch(board, log)
    fit.stepping = True
    try:
        _run_steps(trainer, fit, driver, log, epoch.started, shown)
    finally:
        fit.stepping = False
    epoch.names, epoch.rows = log.names, log.until(board.steps)


def _end_epoch(trainer: Trainer, fit: Fit, epoch: _Epoch) -> None:
    seconds = time.perf_counter() - epoch.started
    metrics = means_of(epoch.rows, epoch.names)
    if fit.validation_data is not None:
        share = fit.share_validation
        validated = evaluation.evaluate(trainer, fit.validation_data, evaluation.EVALUATION_BATCH_SIZE, share)
        metrics |= {f"val_{name}": value for name, value in validated.items()}
    fit.status.end_epoch(metrics)
    rate = fit.examples / seconds
    for history in (trainer._history, fit.history):
        history.append(trainer.epoch, metrics, seconds=seconds, examples_per_s=rate)
    trainer.epoch += 1
    fit.inside_epoch = False
    ended = metrics | {"learning_rate": epoch.learning_rate, "examples_per_s": rate, "seconds": seconds}
    for callback in fit.callbacks:
        callback.on_epoch_end(trainer.epoch - 1, ended)
        trainer._check_owner()
    if fit.saver.directory is not None:
        score = metrics.get("val_loss", metrics["loss"])
        fit.saver.save(trainer.snapshot(), trainer._progress(score=score), NO_RECORDS)


def _run_steps(trainer: Trainer, fit: Fit, driver: Driver, log: Records, started: float, rates: list[float]) -> None:
    running, board, listeners = fit.running, driver.board, fit.listeners
    steps, version = board.steps, running.weights.version
    driver.begin(steps)
    if trainer.tuner is not None:
        trainer.tuner.begin_epoch(time.monotonic(), trainer.step)
    seen = 0
    while seen < steps:
        deaths = running.engine.advance(driver.until)
        trainer._check_open()
        trainer._check_owner()
        _supervise(trainer, fit, board, deaths)
        done = max(seen, driver.move())
        snapshot = None
        if fit.saver.due() and driver.settled():
            newest = trainer.snapshot()
            if max(seen, 1) <= newest.version - version < steps:
                snapshot = newest
                done = snapshot.version - version  # so that callbacks have seen what is saved, and no more
            driver.go_on()
        trainer.step += done - seen
        if listeners:
            for step in range(seen, done):
                logs = log.row(step) | {"version": running.weights.version, "restarts": trainer.restarts}
                logs["learning_rate"] = rates[step]
                for callback in listeners:
                    callback.on_batch_end(fit.skipped + step, logs)
                    trainer._check_owner()
        if snapshot is not None:
            progress = trainer._progress(
                step_in_epoch=fit.skipped + done,
                seconds=time.perf_counter() - started,
                rate_of_epoch=fit.rate,
                metrics=log.names,
            )
            fit.saver.save(snapshot, progress, log.until(done))
        seen = done
        _follow(trainer, fit, board, seen)


def _follow(trainer: Trainer, fit: Fit, board: Board, done: int) -> None:
    """Answer who asks from outside, and have as many workers as are wanted by now."""
    fit.status.saw(done)
    if fit.running.control is not None:
        fit.running.control.poll(fit.status)
        lowlevel.look_after_name(fit.running.weights)
    tuner = trainer.tuner
    if tuner is not None and not tuner.found:
        wanted = tuner.saw(time.monotonic(), trainer.step, board.commits)
        if wanted != trainer.workers:
            trainer.resize(wanted)
    trainer._team.follow(fit.running.engine, board)


def _supervise(trainer: Trainer, fit: Fit, board: Board, deaths: list[Death]) -> None:
    running = fit.running
    for death in deaths:
        running.count_death(death, trainer.max_restarts, board, trainer.epoch, fit.skipped)
    if board.failed:
        raise failure(board, trainer.epoch, fit.skipped, least=fit.running.least)
    if board.need_slot:
        running.find_slot(board)
    if board.refused:
        raise running.no_mapping(board)
