"""One call of fit: its epochs, their boards, and the steps on each board.

::

    FitLoop.run ─> epoch ─> segment: the part of it on one board ─> steps: failures, checkpoints, callbacks

An epoch of shuffled examples has one segment. An epoch of batches that arrive from an iterable has several.
"""

from __future__ import annotations

import contextlib
import logging
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from untorn.control import Control
from untorn.train.callbacks import Callback
from untorn.train.callbacks.calls import training
from untorn.train.checkpoints.resuming import PartialEpoch, check_settings, give_states_back, rest_of
from untorn.train.checkpoints.saver import Saver, newest
from untorn.train.data import SharedData, Source, Stream
from untorn.train.data.epochs import TrainingData
from untorn.train.history import History
from untorn.train.run.batch_jobs import BatchJob, BatchJobs
from untorn.train.run.epoch import Epoch, Segment
from untorn.train.run.evaluation import Evaluator
from untorn.train.run.lifetime import Lifetime
from untorn.train.run.pool import Pool
from untorn.train.run.status import JobStatus
from untorn.train.run.step_log import NO_STEPS, StepLog, means_of
from untorn.train.run.steps import StepStrategy
from untorn.train.run.training_job import TrainingJobs
from untorn.train.run.weights import Weights
from untorn.train.settings import Settings
from untorn.train.state import TrainingState

__all__ = ["FitLoop"]

_log = logging.getLogger(__name__)


class FitLoop:
    """Runs the epochs of one call of fit: supervises the workers, calls the callbacks and writes the checkpoints.

    It is a context manager, which closes at its end whatever was shared for the duration of fit.

    Args:
        settings: the settings of the trainer.
        state: the state of the training, which the loop updates.
        weights: the channel of the weights.
        pool: the workers.
        evaluator: evaluates the validation data.
        lifetime: tells whether the trainer may still be used.
        jobs: runs the jobs of training.
        data: the training data.
        epochs: the number of epochs, as given.
        validation: data to evaluate after each epoch, or None.
        callbacks: the callbacks to call.
        saver: writes checkpoints.
        control: answers requests of other processes, or None.

    Attributes:
        history: the history that fit returns.
        inside_epoch: True from the start of an epoch until its metrics are in the history.
    """

    def __init__(
        self,
        *,
        settings: Settings,
        state: TrainingState,
        weights: Weights,
        pool: Pool,
        evaluator: Evaluator,
        lifetime: Lifetime,
        jobs: TrainingJobs,
        data: TrainingData,
        epochs: int,
        validation: Source | None,
        callbacks: list[Callback],
        saver: Saver,
        control: Control | None,
    ) -> None:
        self.history = History()
        self.inside_epoch = False
        self.callbacks = callbacks
        self._settings = settings
        self._state = state
        self._weights = weights
        self._pool = pool
        self._evaluator = evaluator
        self._lifetime = lifetime
        self._jobs = jobs
        self._data = data
        self._epochs = epochs
        #: the number of epochs since training began when this call of fit ends
        self._last_epoch = epochs
        self._validation = validation
        self._saver = saver
        self._control = control
        self._status = JobStatus(settings, state, pool, weights, epochs)
        #: the callbacks to call after each step; without any, no time of this process is spent on their logs
        self._listeners = [each for each in callbacks if type(each).on_batch_end is not Callback.on_batch_end]
        #: the completed part of the current epoch, if it was loaded or interrupted before
        self._partial: PartialEpoch | None = None
        self._epoch = Epoch.begin(None)
        #: the steps of the current epoch before those of the current board
        self._skipped = 0
        #: after resuming, the number of batches of earlier epochs to read from an iterator and skip
        self._behind = 0
        self._examples = data.examples
        #: the learning rate that was set when the epoch began
        self._override: float | None = None
        #: closed when fit ends: the validation data that workers read
        self._cleanup = contextlib.ExitStack()
        self._shared_validation: SharedData | None = None

    def __enter__(self) -> FitLoop:
        return self

    def __exit__(self, *_: object) -> None:
        self._cleanup.close()

    # -- all epochs

    def run(self, *, resume: bool) -> History:
        """Run the epochs, from the newest checkpoint if ``resume``. Return their history."""
        state = self._state
        state.stop = False
        states = self._resume() if resume else {}
        self._last_epoch = self._status.epochs = self._epochs if resume else state.epoch + self._epochs
        self._partial = state.partial = self._continued(state.partial)
        state.batching = self._data.batching
        if resume and self._data.goes_on:
            self._behind = (
                state.step - state.single_steps - (self._partial.progress.step_in_epoch if self._partial else 0)
            )
        self._saver.begin(state.step, resume=resume)
        with training(self.callbacks, self._lifetime.check_owner):
            give_states_back(self.callbacks, states)
            if not (states and state.stop):  # a callback may have restored an early stop
                try:
                    self._run_epochs(max(0, self._last_epoch - state.epoch))
                except BaseException as error:
                    if not self._lifetime.is_copy:
                        self._keep_partial(error)
                    raise
        self._saver.finish()
        return self.history

    def _resume(self) -> dict[str, Any]:
        """Resume from the newest checkpoint, if there is one. Return the states of the callbacks."""
        state, directory = self._state, self._saver.directory
        assert directory is not None
        found = newest(directory)
        if found is None:
            _log.info("%s: no checkpoint yet; training begins at step %d", directory, state.step)
            return {}
        check_settings(found, state.settings() | self._data.batching)
        self._weights.replace(found.fill)
        state.restore(found)
        self.history = History.from_dict(found.progress.history)
        _log.info("%s: continuing at step %d, in epoch %d", found.path, state.step, state.epoch)
        return found.progress.callbacks

    def _continued(self, partial: PartialEpoch | None) -> PartialEpoch | None:
        """Return the partial epoch if this fit continues it. Raises ValueError if it was loaded and cannot continue."""
        if partial is None:
            return None
        partial = partial.with_rate(self._state.learning_rate.override)
        if partial.data is None:
            partial.check_batching(self._data.batching)
            return partial
        made, why_not = partial.progress.step_in_epoch, partial.why_not(self._data.batching, self._data.given)
        if why_not:
            _log.warning("epoch %d, which was left after %d steps, starts over: %s", self._state.epoch, made, why_not)
            return None
        _log.info("continuing in epoch %d, which was left after %d steps", self._state.epoch, made)
        return partial

    def _run_epochs(self, epochs: int) -> None:
        with contextlib.ExitStack() as job:
            strategy = None
            for _ in range(epochs):
                self._lifetime.check()
                self._skipped = self._partial.progress.step_in_epoch if self._partial else 0
                if self._data.stream is not None:
                    self._run_stream(self._data.stream)
                else:
                    assert self._data.source is not None
                    examples = len(rest_of(np.arange(self._data.examples), self._data.batch_size, self._partial))
                    if strategy is None and examples:
                        batch_size = min(self._data.batch_size, examples)
                        strategy = job.enter_context(self._job(self._data.source, examples, batch_size))
                    self._run_epoch(strategy)
                if self._partial is not None:  # the epoch is over; its board was made only for the rest of it
                    self._partial = strategy = None
                    job.close()
                if self._state.stop:
                    break

    # -- an epoch

    def _run_epoch(self, strategy: StepStrategy | None) -> None:
        """Run an epoch, or the rest of one, on the strategy's board. None if no step of it is left."""
        self._begin_epoch(steps=self._skipped + (strategy.board.steps if strategy else 0))
        if strategy is not None:
            order = self._data.order(self._settings.seed, self._state.epoch)
            self._run_segment(strategy, rest_of(order, self._data.batch_size, self._partial))
        self._end_epoch()

    def _run_stream(self, stream: Stream) -> None:
        """Run an epoch of batches in the order of their arrival, on one board after another."""
        self._begin_epoch(steps=stream.steps_per_epoch or 0)
        self._examples = int(self._epoch.rows[:, 0].sum())
        behind, self._behind = self._behind, 0
        stream.begin(self._state.epoch, skip=self._skipped, late=self._epoch.late, behind=behind)
        if self._settings.is_async:  # several batches are in flight, so they must be there
            for source, batch_size in stream.windows():
                with self._job(source, source.examples, batch_size) as strategy:
                    self._run_segment(strategy, np.arange(source.examples))
                self._skipped += strategy.board.steps
                self._examples += source.examples
        else:
            self._run_batches(stream)
        self._end_epoch()

    def _run_batches(self, stream: Stream) -> None:
        """Run the batches of an epoch one by one. The next one is asked for when the step before is made."""
        with contextlib.closing(
            BatchJobs(settings=self._settings, pool=self._pool, jobs=self._jobs, single=False)
        ) as jobs:
            for batch in stream.batches():
                if self._saver.due() and self._epoch.segment is not None:
                    progress = self._progress_inside(self._skipped, self._epoch.names)
                    self._saver.save(self._weights.snapshot(), progress, self._epoch.rows)
                job = jobs.opened(batch)
                self._run_segment(job.strategy, None, job)
                self._skipped += 1
                self._examples += batch.examples

    def _begin_epoch(self, *, steps: int) -> None:
        state, partial = self._state, self._partial
        self._epoch, self.inside_epoch, state.partial = Epoch.begin(partial), True, None
        for callback in self.callbacks:
            logs = {"steps": steps, "examples": self._data.examples, "epochs": self._last_epoch}
            callback.on_epoch_begin(state.epoch, logs)
            self._lifetime.check_owner()
        self._override = state.learning_rate.override
        if partial is not None:
            # callbacks have set the rate again as they did when the epoch began
            self._override = partial.progress.rate_of_epoch
            # a rate that was set in the completed part is for the next epoch
            state.learning_rate.override = partial.progress.settings["learning_rate"]

    def _end_epoch(self) -> None:
        state, epoch = self._state, self._epoch
        seconds = epoch.seconds
        metrics = means_of(epoch.rows, epoch.names) | state.losses_of_turns(epoch.rows)
        if self._validation is not None:
            self._lifetime.check_open()
            validated = self._evaluator.evaluate(self._validation, share=self._share_validation)
            metrics |= {f"val_{name}": value for name, value in validated.items()}
        self._status.end_epoch(metrics)
        rate = self._examples / seconds
        for history in (state.history, self.history):
            history.append(state.epoch, metrics, seconds=seconds, examples_per_s=rate)
        state.epoch += 1
        self.inside_epoch = False
        ended = metrics | {"learning_rate": epoch.learning_rate, "examples_per_s": rate, "seconds": seconds}
        for callback in self.callbacks:
            callback.on_epoch_end(state.epoch - 1, ended)
            self._lifetime.check_owner()
        if self._saver.directory is not None:
            self._lifetime.check_open()
            score = metrics.get("val_loss", metrics["loss"])
            self._saver.save(self._weights.snapshot(), state.progress(self.callbacks, score=score), NO_STEPS)

    def _share_validation(self) -> SharedData:
        """Return the validation data, shared with the workers until fit ends."""
        if self._shared_validation is None:
            assert self._validation is not None
            shared = self._validation.shared(max_readers=self._pool.count.max_readers, local=False)
            self._shared_validation = self._cleanup.enter_context(shared)
        return self._shared_validation

    def _keep_partial(self, error: BaseException) -> None:
        """Keep the partial epoch after an error or Ctrl-C inside it: save() and the next fit() continue there."""
        if not self.inside_epoch:
            return
        epoch, version = self._epoch, self._weights.version
        made, late = epoch.position(version)
        names, rows = epoch.measured(version)
        if epoch.segment is None:
            self._state.partial = self._partial
        elif made:
            try:
                progress = self._progress_inside(made, names, late=late)
            except Exception as another:  # from a callback's state_dict()
                error.add_note(f"and the partial epoch was not kept: {type(another).__name__}: {another}")
            else:
                self._state.partial = PartialEpoch(progress, rows, self._data.ref)
        self.inside_epoch = False

    def _progress_inside(self, step_in_epoch: int, names: list[str], **more: Any) -> Any:
        """Return the progress at this step of the epoch."""
        return self._state.progress(
            self.callbacks,
            step_in_epoch=step_in_epoch,
            seconds=self._epoch.seconds,
            rate_of_epoch=self._override,
            metrics=names,
            **more,
        )

    # -- a segment: one board

    def _job(self, source: Source, examples: int, batch_size: int) -> AbstractContextManager[StepStrategy]:
        """Run a job on a board for these examples, in batches of this size. The block gets its step strategy."""
        least = self._jobs.min_examples(source, examples, batch_size, cut=self._data.stream is None)
        return self._jobs.run(source, examples, batch_size, least)

    def _run_segment(
        self, strategy: StepStrategy, order: NDArray[np.int64] | None, job: BatchJob | None = None
    ) -> None:
        """Write the order and the learning rates of a segment to its board, and run its steps. A step that has a batch
        of its own is a segment, too: of this job, and without an order."""
        board, state = strategy.board, self._state
        if order is not None:
            board.order[:] = order
        with state.learning_rate.as_it_was(self._override):
            board.rates[:] = state.learning_rate.rates(state.step, board.steps)
            steps = range(state.step, state.step + board.steps)
            shown = [state.learning_rate.at(step) for step in steps] if self._listeners else []
            self._epoch.learning_rate = state.learning_rate.at(steps[-1])
        if job is None:
            log, examples = StepLog(board, self._epoch.rows, clips=self._settings.clip_norm is not None), None
        else:
            log, examples = job.log, job.feed.examples
            log.continue_after(self._epoch.rows)
        self._epoch.segment = Segment(self._weights.version, self._skipped, strategy, log)
        strategy.tasks.set_epoch(state.epoch, self._skipped, examples)
        if job is None or self._control is not None:
            stream = self._data.stream
            in_epoch = self._skipped + board.steps if stream is None else stream.steps_per_epoch
            self._status.begin_segment(board, log, self._skipped, in_epoch)
        self._pool.stepping = True
        try:
            self._run_steps(self._epoch.segment, shown)
        finally:
            self._pool.stepping = False
        self._epoch.end_segment(board.steps)

    def _run_steps(self, segment: Segment, rates: list[float]) -> None:
        strategy, log, state = segment.strategy, segment.log, self._state
        board, version = strategy.board, segment.version
        strategy.pace(self._pool.pace)
        strategy.begin(board.steps)
        self._pool.begin_epoch(state.step)
        seen = 0
        while seen < board.steps:
            self._pool.advance(board, strategy.tasks, strategy.until, self._lifetime.check)
            if board.need_slot:
                self._weights.make_room(board)
            if board.refused:
                raise self._weights.no_mapping(board)
            done = max(seen, strategy.advance())
            snapshot = None
            if self._saver.due() and strategy.settled():
                newest_weights = self._weights.snapshot()
                if max(seen, 1) <= newest_weights.version - version < board.steps:
                    snapshot = newest_weights
                    done = snapshot.version - version  # callbacks see exactly the steps that are saved
                strategy.resume()
            state.step += done - seen
            self._tell_listeners(log, range(seen, done), rates)
            if snapshot is not None:
                progress = self._progress_inside(self._skipped + done, log.names)
                self._saver.save(snapshot, progress, log.until(done))
            seen = done
            self._status.update(seen)
            self.answer_requests()
            self._pool.follow(board, state.step)
            strategy.pace(self._pool.pace)

    def _tell_listeners(self, log: StepLog, steps: range, rates: list[float]) -> None:
        if not self._listeners:
            return
        for step in steps:
            logs = log.row(step) | {"version": self._weights.version, "restarts": self._pool.restarts}
            logs["learning_rate"] = rates[step]
            logs |= self._state.loss_of_turn(self._state.step - steps.stop + step, logs["loss"])
            for callback in self._listeners:
                callback.on_batch_end(self._skipped + step, logs)
                self._lifetime.check_owner()

    def answer_requests(self) -> None:
        """Answer the requests of other processes that have arrived."""
        if self._control is not None and self.inside_epoch and self._status.has_begun:
            self._control.poll(self._status)
            self._weights.look_after_name()
