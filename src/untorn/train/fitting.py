"""One call of fit: its board, its epochs and their steps. The workers work; this watches, and tells callbacks.

::

    run_epochs ── one board with the workers at it ──> epoch ──> steps: progress, deaths, failures, checkpoints
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from untorn import _core
from untorn.engines import Death, ProcessEngine
from untorn.errors import CapacityError
from untorn.share.views import array_over
from untorn.train import measuring, sampler
from untorn.train.callbacks import Callback
from untorn.train.callbacks.calls import training
from untorn.train.data import SharedData
from untorn.train.driving import Driver, driver_of
from untorn.train.model import replica_of
from untorn.train.records import NO_RECORDS, Records, failure
from untorn.train.resuming import give_states_back
from untorn.train.running import Fit, Running
from untorn.train.worker import Job, ShardWorker

if TYPE_CHECKING:
    from untorn.train.trainer import Trainer

__all__ = ["run_epochs"]


def run_epochs(trainer: Trainer, fit: Fit, epochs: int, states: dict[str, Any]) -> None:
    """Run so many epochs, or what is left of one and then so many, after giving callbacks their ``states`` back."""
    with training(fit.callbacks), contextlib.ExitStack() as job:
        give_states_back(fit.callbacks, states)
        if states and trainer.stop_training:
            return  # it had been stopped early
        driver = job.enter_context(_job(trainer, fit))
        for _ in range(epochs):
            if fit.part is not None and trainer._part is None:  # it is over
                fit.part = None
                job.close()
                driver = job.enter_context(_job(trainer, fit))
            _fit_epoch(trainer, fit, driver)
            if trainer.stop_training:
                break


@contextlib.contextmanager
def _job(trainer: Trainer, fit: Fit) -> Iterator[Driver]:
    """A board for one fit, or for what is left of an epoch, with the workers at it."""
    running, team = fit.running, trainer._team
    fd = os.memfd_create("untorn-board", os.MFD_CLOEXEC)
    try:
        server = running.server_steps(trainer.clip_norm, trainer.threads_per_worker)
        board = _make_board(trainer, fit, fd, clips=server is None)
        team.begin(board, fd)
        driver = driver_of(board, running, trainer.max_staleness, server)
        running.engine.resize(team.wanted)
        local = not isinstance(running.engine, ProcessEngine)
        with fit.data.shared(max_readers=fit.max_readers, local=local) as shared:
            job = _make_job(trainer, running, shared)
            threads = trainer.threads_per_worker
            payload = {} if local else trainer._payload(job, fd)
            try:
                running.engine.begin(
                    board,
                    payload,
                    lambda index: ShardWorker(job, index, board, replica_of(trainer._sent, threads=threads)),
                )
                trainer._at_work = True
                yield driver
            finally:
                running.engine.end()
                trainer._at_work = False
                # after a failure, there are steps that nobody has counted
                trainer.step = job.first_step + driver.made
    finally:
        team.end()
        os.close(fd)


def _make_board(trainer: Trainer, fit: Fit, fd: int, *, clips: bool) -> _core.Board:
    """A board for the steps of an epoch, or of what is left of one, in this empty file."""
    running, plan, team = fit.running, fit.running.plan, trainer._team
    examples = fit.examples - fit.skipped * fit.batch_size
    batch_size = min(fit.batch_size, examples)
    steps = sampler.steps_per_epoch(examples, batch_size)
    lanes = trainer.mode == "async"
    shards = trainer.max_staleness + 1 if lanes else trainer.shards
    sizes = (
        shards, team.most, team.wanted, int(lanes), steps, examples, batch_size, plan.nbytes, plan.state_stride,
        running.target.version,
    )  # fmt: skip
    clip_norm = trainer.clip_norm or 0.0 if clips else 0.0
    try:
        _core.format_board(fd, sizes, running.optimizer.hyper, clip_norm, plan.ranges())
    except _core.StatusError as error:
        raise CapacityError(
            f"no memory for {shards + team.wanted} gradient buffers of {plan.nbytes:,} bytes "
            f"({os.strerror(error.args[1])}); use fewer {'workers' if lanes else 'shards or workers'}"
        ) from None
    return _core.Board(fd)


def _make_job(trainer: Trainer, running: Running, data: SharedData) -> Job:
    return Job(
        weights=running.weights.subscriber().address,
        target=running.target.subscriber().address,
        data=data,
        plan=running.plan,
        seed=trainer.seed,
        first_step=trainer.step,
        accumulate=trainer.accumulate,
    )


def _fit_epoch(trainer: Trainer, fit: Fit, driver: Driver) -> None:
    board = driver.board
    fit.inside_epoch, trainer._part = True, None
    started = time.perf_counter() - fit.seconds_before
    order = fit.order(trainer.seed, trainer.epoch)
    array_over(board, np.int64, board.examples, board.order_at)[:] = order[fit.skipped * fit.batch_size :]
    for callback in fit.callbacks:
        logs = {"steps": fit.skipped + board.steps, "examples": fit.examples, "epochs": fit.epochs}
        callback.on_epoch_begin(trainer.epoch, logs)
    if fit.part is not None:  # what callbacks set now, they had set when the epoch began
        trainer._rate.changed = fit.part.progress.rate_of_epoch
    fit.rate = trainer._rate.changed
    rates = trainer._rate.rates(trainer.step, board.steps)
    array_over(board, np.float64, rates.shape, board.rates_at)[:] = rates
    learning_rate = trainer._rate.at(trainer.step + board.steps - 1)
    log = Records(board, fit.part.records if fit.part else None, clips=trainer.clip_norm is not None)
    fit.status.begin_epoch(board, log)
    _run_steps(trainer, fit, driver, log, started)
    seconds = time.perf_counter() - started
    metrics = log.means()
    if fit.validation_data is not None:
        metrics |= {
            f"val_{name}": value
            for name, value in measuring.evaluate(
                trainer, fit.validation_data, measuring.EVALUATION_BATCH_SIZE, fit.share_validation
            ).items()
        }
    fit.status.end_epoch(metrics)
    rate = fit.examples / seconds
    for history in (trainer._history, fit.history):
        history.append(trainer.epoch, metrics, seconds=seconds, examples_per_s=rate)
    trainer.epoch += 1
    fit.inside_epoch = False
    ended = metrics | {"learning_rate": learning_rate, "examples_per_s": rate, "seconds": seconds}
    for callback in fit.callbacks:
        callback.on_epoch_end(trainer.epoch - 1, ended)
    if fit.saver.directory is not None:
        score = metrics.get("val_loss", metrics["loss"])
        fit.saver.save(trainer.snapshot(), trainer._progress(score=score), NO_RECORDS)


def _run_steps(trainer: Trainer, fit: Fit, driver: Driver, log: Records, started: float) -> None:
    running, board = fit.running, driver.board
    steps, version = board.steps, running.weights.version
    # a row per step costs this process time that the workers could use
    listeners = [each for each in fit.callbacks if type(each).on_batch_end is not Callback.on_batch_end]
    rates = [trainer._rate.at(trainer.step + step) for step in range(steps)] if listeners else []
    if fit.part is not None:  # set in the first part of the epoch, for the next
        trainer._rate.changed = fit.part.progress.settings["learning_rate"]
    driver.begin(steps)
    if trainer.tuner is not None:
        trainer.tuner.begin_epoch(time.monotonic(), trainer.step)
    seen = 0
    while seen < steps:
        deaths = running.engine.advance(driver.until)
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


def _follow(trainer: Trainer, fit: Fit, board: _core.Board, done: int) -> None:
    """Answer who asks from outside, and have as many workers as are wanted by now."""
    fit.status.saw(done)
    if fit.running.control is not None:
        fit.running.control.poll(fit.status)
    tuner = trainer.tuner
    if tuner is not None and not tuner.found:
        wanted = tuner.saw(time.monotonic(), trainer.step, board.commits)
        if wanted != trainer.workers:
            trainer.resize(wanted)
    trainer._team.follow(fit.running.engine, board)


def _supervise(trainer: Trainer, fit: Fit, board: _core.Board, deaths: list[Death]) -> None:
    running = fit.running
    for death in deaths:
        running.count_death(death, trainer.max_restarts, board, trainer.epoch, fit.skipped)
    if board.failed:
        raise failure(board, trainer.epoch, fit.skipped)
    if board.need_slot:
        running.find_slot(board)
