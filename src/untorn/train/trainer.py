"""The Trainer: the server's side of data-parallel training.

The workers move each epoch on by themselves (csrc/board.h). The server opens an epoch, watches, reads what was
measured, runs validation and callbacks, and opens the next::

    Trainer.fit ── epoch: order, learning rates ──> board ──> workers: gradients, updates, new versions
         ^                                            │
         └── losses, deaths, failures, want of slots ─┘
"""

from __future__ import annotations

import errno
import logging
import os
import threading
import weakref
from collections.abc import Iterable
from typing import Any, Generic, Literal, Self

from untorn.board import Board
from untorn.engines import Engine, ProcessEngine, SerialEngine
from untorn.errors import BusyError, ClosedError
from untorn.share import Snapshot, Subscriber, lowlevel
from untorn.train.arguments import (
    check_busy,
    check_no_cut,
    checked_callbacks,
    checked_count,
    checked_path,
    checked_shards,
    checked_staleness,
)
from untorn.train.callbacks import Callback
from untorn.train.checkpoints.checkpoint import Checkpoint, Progress, check_installed, read, write
from untorn.train.checkpoints.resuming import DataRef, Part, callback_states, check_settings
from untorn.train.checkpoints.saver import make_saver, newest
from untorn.train.data import SampledBatches, Stream, batches_of, sampler, source_of
from untorn.train.history import History
from untorn.train.interfaces import EngineName, Mode, ModelT_co, OptimizerLike
from untorn.train.models.base import Model, Parts
from untorn.train.models.function import as_model
from untorn.train.optim.convert import as_optimizer
from untorn.train.optim.fused import check_clip_norm
from untorn.train.optim.learning_rate import LearningRate
from untorn.train.run import evaluation
from untorn.train.run.copy_weights import copy_weights
from untorn.train.run.cpus import available_cpus
from untorn.train.run.evaluation import EVALUATION_BATCH_SIZE
from untorn.train.run.loop import run_epochs
from untorn.train.run.payload import payload_of
from untorn.train.run.running import Fit, Running
from untorn.train.run.status import JobStatus
from untorn.train.run.step_log import NO_RECORDS
from untorn.train.run.team import Team, Tuner
from untorn.train.run.worker import worker_main
from untorn.typevars import T

__all__ = ["Trainer"]

_log = logging.getLogger(__name__)


class Trainer(Generic[ModelT_co]):
    """Data-parallel mini-batch training whose result does not depend on the number of workers.

    In sync mode the weights are bit-identical for the same ``seed`` and ``shards``, whatever the number of workers, the
    engine, and the workers that were killed on the way.

    Args:
        model: ``loss_and_grad(params, batch[, rng]) -> (loss, grads[, metrics])``, means over the batch, or an object
            with that method (and ``predict(params, x)``). params are read-only views of shared memory; grads is
            the same tree. With engine="processes" it must be importable by, or picklable for, the workers. Or a
            untorn.torch.TorchModel, which brings its parameters.
        params: the initial parameters: a tree of float32 and float64 arrays. Copied.
        optimizer: SGD, Adam, AdamW, RMSprop or Adagrad. Or what makes an optimizer of torch.optim from a list of
            parameters, such as functools.partial(torch.optim.NAdam, lr=1e-3), or an optax.GradientTransformation: then
            the workers sum the gradients, and this process makes the step, which takes longer.
        workers: worker processes; by default as many as there are processors for, with ``threads_per_worker`` each.
            "auto" measures a few steps with that many and with fewer, and goes on with the fastest number: see
            ``tuner``. A number that was given is taken, more than there are processors too.
        engine: "processes", or "serial": in this process, the reference.
        shards: parts that every batch is cut into; by default ``workers`` where that is a number, else the processors.
            The result depends on it.
        mode: "sync", or "async": each batch's gradient is computed in one piece by one worker, and applied when it is
            there, to weights that others may have changed meanwhile. The weights are whole versions here too.
        max_staleness: in async mode, by how many versions the weights that a gradient is applied to may be newer than
            those that it was computed on; at most that many + 1 gradients are under way. By default ``workers``. With 0
            the result is that of sync mode with shards=1.
        seed: of the order of the examples and of ``rng``. 0 or more.
        clip_norm: the greatest norm of the whole gradient; a longer one is scaled down to it, as
            torch.nn.utils.clip_grad_norm_ does. The norm before clipping is the metric grad_norm.
        accumulate: parts that every shard is cut into, computed one after another to save memory; gradients are
            averaged by their examples.
        threads_per_worker: BLAS threads of each worker.
        max_restarts: how often one shard's gradient may kill its worker before WorkerError.
        name: publish the weights under this name while the trainer is open, for untorn.subscribe(). `untorn top` shows
            the job of that name while it trains, and `untorn join` and `untorn leave` change its workers.

    Attributes:
        model, optimizer: as they were given.
        tuner: what workers="auto" has measured and picked; None for a number. str() of it says so in words.

    Example:
        >>> import numpy as np
        >>> from untorn import SGD, Trainer
        >>> def loss_and_grad(params, batch):
        ...     x, y = batch
        ...     error = x @ params["w"] - y
        ...     return (error**2).mean(), {"w": 2 * x.T @ error / len(x)}
        >>> x = np.random.default_rng(0).normal(size=(256, 2))
        >>> with Trainer(loss_and_grad, {"w": np.zeros(2)}, optimizer=SGD(0.1), engine="serial") as trainer:
        ...     history = trainer.fit((x, x @ [1.0, -2.0]), epochs=5, batch_size=32)
        ...     trainer.params["w"].round(2)
        array([ 1., -2.])
    """

    seed: int
    shards: int
    max_staleness: int
    clip_norm: float | None
    accumulate: int
    threads_per_worker: int
    max_restarts: int
    tuner: Tuner | None

    def __init__(
        self,
        model: ModelT_co,
        params: Any = None,
        *,
        optimizer: OptimizerLike,
        workers: int | Literal["auto"] | None = None,
        engine: EngineName = "processes",
        shards: int | None = None,
        mode: Mode = "sync",
        max_staleness: int | None = None,
        seed: int = 0,
        clip_norm: float | None = None,
        accumulate: int = 1,
        threads_per_worker: int = 1,
        max_restarts: int = 3,
        name: str | None = None,
    ) -> None:
        if engine not in ("processes", "serial"):
            raise ValueError(f"engine: expected 'processes' or 'serial', found {engine!r}")
        self.engine: EngineName = engine
        self.mode: Mode = mode
        self.seed = checked_count("seed", seed, 0, 2**63 - 1)
        self.accumulate = checked_count("accumulate", accumulate, 1, 1_000_000)
        self.threads_per_worker = checked_count("threads_per_worker", threads_per_worker, 1, 1024)
        if isinstance(workers, str) and workers != "auto":
            raise TypeError(f"workers: expected an int or 'auto', found {workers!r}")
        cpus = available_cpus()
        fitting = max(1, cpus // self.threads_per_worker)
        self.tuner = Tuner(1 if engine == "serial" else fitting) if workers == "auto" else None
        given = workers is not None and workers != "auto"
        count = checked_count("workers", workers, 1, 1000) if given else fitting
        self.max_staleness = checked_staleness(mode, max_staleness, count, given=given)
        if mode == "async":
            count = min(count, self.max_staleness + 1)
        self.shards = checked_shards(mode, shards, count if given else fitting)
        self.max_restarts = checked_count("max_restarts", max_restarts, 0, 1_000_000)
        self.model = model
        self.optimizer = optimizer
        self._at_work = False
        self.clip_norm = check_clip_norm(clip_norm)
        self._model = as_model(model)
        self._initial: Parts | None = self._model.parts(params)
        self._optimizer = as_optimizer(optimizer, self._initial.trained)
        self._rate = LearningRate(self._optimizer)
        self._replica = self._model.replica(None)
        #: set it to True in a callback to stop after the epoch
        self.stop_training: bool = False
        #: the epoch that runs now or comes next, and the step since training began
        self.epoch: int = 0
        self.step: int = 0
        self._sent = self._model.for_workers()
        self._name = name
        self._team = Team(
            1 if engine == "serial" else count,
            cpus=cpus // self.threads_per_worker,
            server_works=mode == "async" or self._optimizer.server_steps,
            can_change=engine != "serial",
        )
        self._closed = False
        #: held by the thread that has the workers do something
        self._using = threading.RLock()
        self._open: Running | None = None
        #: of all epochs since training began; the epoch that was loaded half done; how the data is cut into batches
        self._history = History()
        self._part: Part | None = None
        self._cut: dict[str, Any] = {}
        self._fit: Fit | None = None

    # -- what others may see

    @property
    def params(self) -> Any:
        """The newest weights: a writable copy, the same tree as was given."""
        with self.snapshot() as snapshot:
            return lowlevel.copy_value(snapshot)

    @params.setter
    def params(self, value: Any) -> None:
        """Publish other weights, the same tree; copied. The optimizer's state stays. RuntimeError while workers work:
        set them in on_train_end, or between two calls of fit."""
        if self._at_work:
            raise RuntimeError("params: training runs; set them in on_train_end, or between two calls of fit")
        self._running().replace(lambda params, _: copy_weights(params, value))
        if self._part is not None:
            _log.info("epoch %d, which is half done, begins anew with the weights that were set", self.epoch)
            self._part = None

    @property
    def learning_rate(self) -> float:
        """The learning rate of the next step. One that is set counts from the next epoch on; where the optimizer's is
        a function of the step, it multiplies all later rates, so that the next step's is this one. Of torch.optim's
        it is the first parameter group's, and the others keep their ratio to it; optax's is NaN and cannot be set."""
        return self._rate.at(self.step)

    @learning_rate.setter
    def learning_rate(self, rate: float) -> None:
        self._rate.set(rate, step=self.step)

    def snapshot(self) -> Snapshot:
        """The newest weights: a zero-copy, read-only Snapshot; its version counts steps from 1."""
        return self._running().reader.snapshot()

    def subscriber(self) -> Subscriber:
        """Hand this to other processes: they follow the weights while they change. One that holds four versions or
        more, when slots run short, gets CapacityError from snapshot(); training goes on."""
        return self._running().weights.subscriber()

    @property
    def workers(self) -> int:
        """How many workers there are to be; resize() changes it."""
        return self._team.wanted

    def resize(self, workers: int) -> None:
        """Have so many workers from now on: while fit runs, too, from a callback or another thread. In sync mode the
        bits of the result do not change. Returns at once; a process takes a moment to start, and one that is too many
        ends after its gradient.

        Raises ValueError for less than 1, for more than there is room for (64, or twice as many as at first), for more
        than ``max_staleness`` + 1 in async mode, and with engine="serial"; CapacityError for want of memory.
        """
        self._check_owner()
        workers = checked_count("workers", workers, 1, 1000)
        if self.mode == "async":
            check_busy(workers, self.max_staleness)
        self._team.set(workers)

    @property
    def restarts(self) -> int:
        """Workers that were replaced so far."""
        running = self._open  # read once: a signal handler may close this in between
        return running.engine.restarts if running else 0

    @property
    def pids(self) -> list[int]:
        """The process ids of the workers, by index; empty before fit and with the serial engine."""
        running = self._open
        engine = running.engine if running else None
        return engine.pids if isinstance(engine, ProcessEngine) else []

    # -- training

    def fit(
        self,
        data: Any,
        *,
        epochs: int,
        batch_size: int | None = None,
        steps_per_epoch: int | None = None,
        shuffle: bool = True,
        drop_last: bool = False,
        validation_data: Any = None,
        callbacks: Iterable[Callback] = (),
        checkpoint_dir: str | os.PathLike[str] | None = None,
        resume: bool = False,
        checkpoint_every_s: float | None = 300.0,
        keep: int = 3,
    ) -> History:
        """Train for some epochs; blocks until they are done. Further calls go on where the last one ended, in the
        middle of an epoch too: the rest of it is then the first of ``epochs``. With other data, other batches or other
        weights, or an iterator of batches, that epoch begins anew, and the log says so.

        Args:
            data: a tuple, list or dict of arrays with one example per row, such as (x, y): copied once into shared
                memory, or mapped from their files. Or a dataset with len() and [index], whose items the workers read.
                Or an iterable of batches, which this process reads ahead of the workers.
            epochs: how many.
            batch_size: examples per step, of all workers together. The last batch of an epoch may be smaller. Of an
                iterable of batches each batch has its own.
            steps_per_epoch: of an iterable of batches: how many an epoch takes; by default all. An iterator that
                cannot start anew, such as a generator, goes on in each epoch where the last one left it.
            shuffle: a new order in each epoch, from the seed and the epoch's number. Otherwise the data's own.
            drop_last: leave a last, smaller batch out; with shuffle, other examples in each epoch.
            validation_data: evaluated after each epoch, as evaluate() does, as val_loss and val_... metrics.
            callbacks: Callback objects, called in this process; on_train_end after an error too.
            checkpoint_dir: write a checkpoint at each epoch's end into this directory, while training goes on.
            resume: go on from the newest checkpoint there, as if training had never stopped. ``epochs`` is then how
                many in all, and the history is that of all. Without a checkpoint there, training begins.
            checkpoint_every_s: inside an epoch too, this many seconds after the last one; None for never.
            keep: how many checkpoints stay: the last, and beside them the best by val_loss, or by loss.

        Returns:
            History: loss and metrics per epoch.

        Raises:
            WorkerError: the model function failed (its traceback is inside), or a worker died again and again.
            NonFiniteLossError: a loss or a gradient became NaN or infinite; the weights of the step before are kept.
            ClosedError: the trainer was closed meanwhile.
            CapacityError: no memory.
            ImportError: checkpoint_dir is given, and safetensors is not installed.
            ValueError: what is resumed was made with other settings, data or parameters; the message names them.
            FormatError: no checkpoint there can be read. Damaged ones are passed over with a warning.
            FileExistsError: without resume, there are checkpoints of later steps than this training's.
            BusyError: another training writes its checkpoints there.
            OSError: a checkpoint could not be written. The weights are kept, and so are the checkpoints before.
        """
        self._check_owner()
        epochs = checked_count("epochs", epochs, 0, 2**31)
        if validation_data is not None:
            validation_data = source_of("validation_data", self._model.arrays(validation_data))
        batches = batches_of(data)
        source, stream, examples = None, None, 0
        if batches is not None:
            check_no_cut(batch_size=batch_size, drop_last=drop_last)
            steps = None if steps_per_epoch is None else checked_count("steps_per_epoch", steps_per_epoch, 1, 2**31)
            if isinstance(batches, SampledBatches):
                batches.begin(self.seed, limit=steps, replay=resume)
            stream = Stream("data", batches, steps)
        elif steps_per_epoch is not None:
            raise ValueError("steps_per_epoch: an epoch of this data is all of it; only iterables of batches have one")
        else:
            source = source_of("data", self._model.arrays(data), in_epochs=True)
            if resume:
                source.replay()
            if batch_size is None:
                raise TypeError(
                    "fit() needs batch_size=, the examples per step; only iterables of batches have their own"
                )
            batch_size = checked_count("batch_size", batch_size, 1, 2**31)
            batch_size, examples = sampler.used_examples(source.examples, batch_size, drop_last=drop_last)
        if checkpoint_dir is not None:
            checkpoint_dir = checked_path("checkpoint_dir", checkpoint_dir)
        saver = make_saver(checkpoint_dir, resume=resume, every_s=checkpoint_every_s, keep=keep)
        callbacks = checked_callbacks(callbacks)
        fit = Fit(
            self._running(), source, stream, examples, batch_size or 0, epochs, validation_data, callbacks, saver,
            self._team.max_readers, DataRef(data), shuffle=bool(shuffle),
        )  # fmt: skip
        fit.status = JobStatus(self, fit)
        with self._using:
            if self._fit is not None:
                raise RuntimeError(
                    "fit: it runs already, and this is one of its callbacks; call it again when it has returned"
                )
            try:
                with saver, fit.held:
                    self._train(fit, data, resume=resume)
            finally:
                self._fit = None
                if self._closed:
                    self._let_go()
        return fit.history

    def _train(self, fit: Fit, data: Any, *, resume: bool) -> None:
        """Go on from the newest checkpoint, if asked to, and run the epochs."""
        for callback in fit.callbacks:
            callback.set_trainer(self)
        self.stop_training = False
        states = self._resume(fit) if resume else {}
        self._part = self._part_of(fit, data)
        self._cut, fit.part = fit.cut, self._part
        if resume and fit.stream is not None and fit.stream.goes_on:
            fit.behind = self.step - (self._part.progress.step_in_epoch if self._part else 0)
        fit.saver.begin(self.step, resume=resume)
        self._fit = fit
        run_epochs(self, fit, max(0, fit.epochs - self.epoch) if resume else fit.epochs, states)
        fit.saver.finish()

    def _part_of(self, fit: Fit, data: Any) -> Part | None:
        """Return the half-done epoch, if fit goes on with it. Raises ValueError if it was loaded and cannot go on."""
        if self._part is None:
            return None
        part = self._part.with_rate(self._rate.override)
        if part.data is None:
            part.check_cut(fit.cut)
            return part
        made, why_not = part.progress.step_in_epoch, part.why_not(fit.cut, data)
        if why_not:
            _log.warning("epoch %d, which was left after %d steps, begins anew: %s", self.epoch, made, why_not)
            return None
        _log.info("going on in epoch %d, which was left after %d steps", self.epoch, made)
        return part

    # -- checkpoints

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a checkpoint to this file, replacing one that is there at once and whole; blocks until it is on the
        disk. It is a safetensors file: weights, the optimizer's state, and where training stands.

        After an error or Ctrl-C has ended fit inside an epoch, it is of the step that was reached, and load() and fit()
        go on there. In a callback call it in on_epoch_end or on_train_end; inside an epoch
        fit(checkpoint_every_s=...) writes checkpoints. Raises
        OSError, ImportError if safetensors is not installed.
        """
        path = checked_path("path", path)
        check_installed()
        if self._fit is not None and self._fit.inside_epoch:
            raise RuntimeError("save: inside an epoch; call it from on_epoch_end, or give fit checkpoint_every_s=")
        with self.snapshot() as snapshot:
            progress, records = self._progress(), NO_RECORDS
            if self._part is not None:
                progress, records, _ = self._part.with_rate(self._rate.override)
            write(path, progress, params=snapshot.value, state=lowlevel.extra(snapshot), records=records)

    def load(self, path: str | os.PathLike[str]) -> None:
        """Go on from a checkpoint: a file, or the newest whole one in a directory. The next fit() begins where it was
        made, in the middle of an epoch too; ``step``, ``epoch`` and the optimizer's state are those of then.

        Raises ValueError if it was made with another seed, other shards or other parameters, FormatError if it is
        damaged, FileNotFoundError, ImportError if safetensors is not installed. Then nothing is changed.
        """
        path = checked_path("path", path)
        check_installed()
        if self._fit is not None:
            raise RuntimeError("load: training runs; call it between two calls of fit")
        found = newest(path) if path.is_dir() else read(path)
        if found is None:
            raise FileNotFoundError(errno.ENOENT, "there is no checkpoint in this directory", str(path))
        check_settings(found, self._settings(), only=("seed", "shards"))
        self._go_on_from(found)

    def _resume(self, fit: Fit) -> dict[str, Any]:
        """Go on from the newest checkpoint, if there is one; returns the states of the callbacks."""
        assert fit.saver.directory is not None
        found = newest(fit.saver.directory)
        if found is None:
            _log.info("%s: no checkpoint yet; training begins at step %d", fit.saver.directory, self.step)
            return {}
        check_settings(found, self._settings() | fit.cut)
        self._go_on_from(found)
        fit.history = History.from_dict(found.progress.history)
        _log.info("%s: going on at step %d, in epoch %d", found.path, self.step, self.epoch)
        return found.progress.callbacks

    def _go_on_from(self, found: Checkpoint) -> None:
        self._running().replace(found.fill)
        progress = found.progress
        self.step, self.epoch = progress.step, progress.epoch
        self._rate.override = progress.settings.get("learning_rate")
        self._history = History.from_dict(progress.history)
        cut = ("batch_size", "examples", "shuffle")
        self._cut = {name: progress.settings[name] for name in cut if name in progress.settings}
        self._part = Part(progress, found.records) if progress.step_in_epoch else None

    def _settings(self) -> dict[str, Any]:
        """What the bits depend on, beside the data and the model."""
        return {
            "seed": self.seed,
            "shards": self.shards,
            "mode": self.mode,
            "accumulate": self.accumulate,
            "clip_norm": self.clip_norm,
            "optimizer": self._optimizer.settings,
        }

    def _progress(self, **more: Any) -> Progress:
        return Progress(
            step=self.step,
            epoch=self.epoch,
            settings=self._settings() | self._cut | {"learning_rate": self._rate.override},
            history=self._history.to_dict(),
            callbacks=callback_states(self._fit.callbacks if self._fit else ()),
            **more,
        )

    # -- evaluation

    def evaluate(self, data: Any, *, batch_size: int = EVALUATION_BATCH_SIZE) -> dict[str, float]:
        """Loss and metrics of the newest weights, means over all examples, ``batch_size`` at a time. The worker
        processes take part, if they run and there are several batches; the result has the same bits without them.

        Raises WorkerError if the model failed in one of them, with its traceback; NonFiniteLossError.
        """
        batch_size = checked_count("batch_size", batch_size, 1, 2**31)
        return evaluation.evaluate(self, source_of("data", self._model.arrays(data)), batch_size)

    def predict(self, x: Any, *, batch_size: int = EVALUATION_BATCH_SIZE) -> Any:
        """The model's ``predict(params, x)`` on the newest weights, ``batch_size`` examples at a time, joined: by the
        worker processes, as evaluate() is. Of a dict or tuple of arrays each is joined. A TorchModel gives its module's
        outputs, as arrays; x is then the input, a tuple of the inputs, or a dict.

        Raises TypeError if the model has no predict method, WorkerError if it failed in a worker.
        """
        batch_size = checked_count("batch_size", batch_size, 1, 2**31)
        return evaluation.predict(self, source_of("x", self._model.arrays(x)), batch_size)

    def module(self: Trainer[Model[T]]) -> T:
        """A TorchModel's module with the newest parameters and buffers, in memory of its own. Raises TypeError for a
        model that has no module."""
        module: T = self._model.module(self.params)
        return module

    def _payload(self, job: Any, board: Board, *, within: int = 0) -> dict[str, Any]:
        """What workers get to know about a job."""
        return payload_of(
            job,
            number=board.job,
            board_path=board.path,
            model=self._sent,
            threads=self.threads_per_worker,
            within=within,
        )

    def _params_of(self, snapshot: Snapshot) -> Any:
        """The weights as a model reads them here."""
        if not self._model.private_params:
            return snapshot.value
        return lowlevel.private_value(snapshot)

    # -- the end

    def _running(self) -> Running:
        self._check_open()
        running = self._open
        if running is None:
            running = self._begin()
            self._check_open()
        return running

    def _begin(self) -> Running:
        """Open the weights' channel. A signal handler may do so, or close the trainer, in the middle of this."""
        initial: Any = self._initial  # read first: None only if somebody was faster
        if self._open is not None:
            return self._open
        try:
            running = Running(initial, self._optimizer, self._name, self._make_engine())
        except BusyError:
            if self._open is None:
                raise
            return self._open
        if self._open is not None:
            running.close()
            return self._open
        finalizer = weakref.finalize(self, running.close)
        self._finalizer, self._open, self._initial = finalizer, running, None
        if self._closed:
            self._let_go()
        return running

    def _make_engine(self) -> Engine:
        if self.engine == "serial":
            return SerialEngine(self.threads_per_worker)
        return ProcessEngine(self.workers, self._team.most, self.threads_per_worker, worker_main)

    def close(self) -> None:
        """End the workers and close the weights' channel; a named one is removed. Closing twice is fine. A fit that
        runs, in another thread or because this is one of its callbacks, ends with ClosedError; this waits for that of
        another thread."""
        self._closed = True
        if self._open is not None and self._open.is_copy:
            self._let_go()  # the lock may be held by a thread that is not in this copy
            return
        with self._using:
            if self._fit is None:
                self._let_go()

    def _let_go(self) -> None:
        if self._open is not None:
            self._finalizer()
            self._open = None

    def _check_open(self) -> None:
        if self._closed:
            raise ClosedError("this trainer was closed while it trained" if self._fit else "this trainer is closed")

    def _check_owner(self) -> None:
        """Raise ClosedError in a forked copy of the process that trains."""
        if self._open is not None and self._open.is_copy:
            raise ClosedError(
                f"this trainer is process {self._open.owner}'s, and this process was forked from it: here its weights "
                "can be read, and nothing else. A child that a callback forks is to end with os._exit()"
            )

    def __enter__(self) -> Self:
        self._running()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
