"""The Trainer: checks what it is given, and hands it to the parts that do the work.

::

    Trainer.fit ──────> FitLoop ─────┬──> WorkerPool      the workers, at a board
    Trainer.evaluate ─> Evaluator ───┤
    Trainer.save ─────> checkpoints  ├──> Weights         the newest version: weights and optimizer state
                                     └──> TrainingState   step, epoch, history, learning rate

The workers move each epoch on by themselves (csrc/board.h). The server opens an epoch, watches, reads what was
measured, runs validation and callbacks, and opens the next.
"""

from __future__ import annotations

import errno
import logging
import os
import weakref
from collections.abc import Iterable
from typing import Any, Generic, Literal, Self

from untorn.errors import BusyError
from untorn.share import Snapshot, Subscriber
from untorn.share.lowlevel import extra
from untorn.train.arguments import checked_callbacks, checked_count, checked_path
from untorn.train.callbacks import Callback
from untorn.train.checkpoints.checkpoint import check_installed, read, write
from untorn.train.checkpoints.resuming import check_settings
from untorn.train.checkpoints.saver import make_saver, newest
from untorn.train.data import source_of
from untorn.train.data.epochs import training_data
from untorn.train.history import History
from untorn.train.interfaces import EngineName, Mode, ModelT_co, OptimizerLike
from untorn.train.models.base import Model, Parts
from untorn.train.models.function import as_model
from untorn.train.optim.convert import as_optimizer
from untorn.train.optim.learning_rate import LearningRate
from untorn.train.run.evaluation import EVALUATION_BATCH_SIZE, Evaluator
from untorn.train.run.lifetime import Lifetime, Resources
from untorn.train.run.local_model import LocalModel
from untorn.train.run.loop import FitLoop
from untorn.train.run.pool import WorkerPool
from untorn.train.run.step_log import NO_STEPS
from untorn.train.run.tuner import Tuner
from untorn.train.run.weights import Weights, copy_weights
from untorn.train.settings import checked_settings
from untorn.train.state import TrainingState
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
        settings = self._settings = checked_settings(
            workers=workers, engine=engine, shards=shards, mode=mode, max_staleness=max_staleness, seed=seed,
            clip_norm=clip_norm, accumulate=accumulate, threads_per_worker=threads_per_worker,
            max_restarts=max_restarts,
        )  # fmt: skip
        self.model = model
        self.optimizer = optimizer
        self.engine, self.mode, self.max_staleness = settings.engine, settings.mode, settings.max_staleness
        self.seed, self.shards, self.clip_norm = settings.seed, settings.shards, settings.clip_norm
        self.accumulate, self.threads_per_worker = settings.accumulate, settings.threads_per_worker
        self.max_restarts = settings.max_restarts
        self._model = as_model(model)
        initial = self._model.parts(params)
        self._initial: Parts | None = initial
        self._optimizer = as_optimizer(optimizer, initial.trained)
        self._local = LocalModel(self._model)
        self._state = TrainingState(settings, LearningRate(self._optimizer), self._optimizer.settings)
        server_works = settings.is_async or self._optimizer.server_steps
        self._pool = WorkerPool(settings, self._model.for_workers(), server_works=server_works)
        self.tuner = self._pool.tuner
        self._name = name
        self._lifetime = Lifetime()
        self._resources: Resources | None = None
        self._loop: FitLoop | None = None

    # -- what others may see

    @property
    def step(self) -> int:
        """The number of steps since training began."""
        return self._state.step

    @property
    def epoch(self) -> int:
        """The epoch that runs now, or comes next."""
        return self._state.epoch

    @property
    def stop_training(self) -> bool:
        """Whether to stop after this epoch; set it to True in a callback."""
        return self._state.stop

    @stop_training.setter
    def stop_training(self, stop: bool) -> None:
        self._state.stop = stop

    @property
    def params(self) -> Any:
        """The newest weights: a writable copy, the same tree as was given."""
        return self._weights().copy()

    @params.setter
    def params(self, value: Any) -> None:
        """Publish other weights, the same tree; copied. The optimizer's state stays. RuntimeError while workers work:
        set them in on_train_end, or between two calls of fit."""
        if self._pool.at_work:
            raise RuntimeError("params: training runs; set them in on_train_end, or between two calls of fit")
        self._weights().replace(lambda params, _: copy_weights(params, value))
        if self._state.partial is not None:
            _log.info("epoch %d, which is half done, begins anew with the weights that were set", self.epoch)
            self._state.partial = None

    @property
    def learning_rate(self) -> float:
        """The learning rate of the next step. One that is set counts from the next epoch on; where the optimizer's is
        a function of the step, it multiplies all later rates, so that the next step's is this one. Of torch.optim's
        it is the first parameter group's, and the others keep their ratio to it; optax's is NaN and cannot be set."""
        return self._state.learning_rate.at(self.step)

    @learning_rate.setter
    def learning_rate(self, rate: float) -> None:
        self._state.learning_rate.set(rate, step=self.step)

    def snapshot(self) -> Snapshot:
        """The newest weights: a zero-copy, read-only Snapshot; its version counts steps from 1."""
        return self._weights().snapshot()

    def subscriber(self) -> Subscriber:
        """Return a subscriber to hand to other processes: they follow the weights while they change. One that holds
        four versions or more, when slots run short, gets CapacityError from snapshot(); training goes on."""
        return self._weights().subscriber()

    def module(self: Trainer[Model[T]]) -> T:
        """A TorchModel's module with the newest parameters and buffers, in memory of its own. Raises TypeError for a
        model that has no module."""
        module: T = self._model.module(self.params)
        return module

    @property
    def workers(self) -> int:
        """The number of workers that is wanted; resize() changes it."""
        return self._pool.count.wanted

    def resize(self, workers: int) -> None:
        """Set the number of workers: while fit runs, too, from a callback or another thread. In sync mode the bits of
        the result do not change. Returns at once; a process takes a moment to start, and one that is too many ends
        after its gradient.

        Raises ValueError for less than 1, for more than there is room for (64, or twice as many as at first), for more
        than ``max_staleness`` + 1 in async mode, and with engine="serial"; CapacityError for want of memory.
        """
        self._lifetime.check_owner()
        self._pool.resize(workers)

    @property
    def restarts(self) -> int:
        """Workers that were replaced so far."""
        return self._pool.restarts

    @property
    def pids(self) -> list[int]:
        """The process ids of the workers, by index; empty before fit and with the serial engine."""
        return self._pool.pids

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
        self._lifetime.check_owner()
        epochs = checked_count("epochs", epochs, 0, 2**31)
        validation = None
        if validation_data is not None:
            validation = source_of("validation_data", self._model.arrays(validation_data))
        training = training_data(
            data, self._model.arrays, seed=self.seed, batch_size=batch_size, steps_per_epoch=steps_per_epoch,
            shuffle=shuffle, drop_last=drop_last, replay=resume,
        )  # fmt: skip
        if checkpoint_dir is not None:
            checkpoint_dir = checked_path("checkpoint_dir", checkpoint_dir)
        saver = make_saver(checkpoint_dir, resume=resume, every_s=checkpoint_every_s, keep=keep)
        callbacks = checked_callbacks(callbacks)
        resources = self._open()
        loop = FitLoop(
            settings=self._settings, state=self._state, weights=resources.weights, pool=self._pool,
            evaluator=self._evaluator(), lifetime=self._lifetime, optimizer=self._optimizer, data=training,
            epochs=epochs, validation=validation, callbacks=callbacks, saver=saver, control=resources.control,
        )  # fmt: skip
        with self._pool.lock:
            if self._loop is not None:
                raise RuntimeError(
                    "fit: it runs already, and this is one of its callbacks; call it again when it has returned"
                )
            try:
                with saver, loop:
                    for callback in callbacks:
                        callback.set_trainer(self)
                    self._loop, self._lifetime.fitting = loop, True
                    return loop.run(resume=resume)
            finally:
                self._loop, self._lifetime.fitting = None, False
                if self._lifetime.closed:
                    self._release()

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
        if self._loop is not None and self._loop.inside_epoch:
            raise RuntimeError("save: inside an epoch; call it from on_epoch_end, or give fit checkpoint_every_s=")
        with self.snapshot() as snapshot:
            partial, override = self._state.partial, self._state.learning_rate.override
            if partial is not None:
                progress, records, _ = partial.with_rate(override)
            else:
                progress, records = self._state.progress(self._loop.callbacks if self._loop else ()), NO_STEPS
            write(path, progress, params=snapshot.value, state=extra(snapshot), records=records)

    def load(self, path: str | os.PathLike[str]) -> None:
        """Go on from a checkpoint: a file, or the newest whole one in a directory. The next fit() begins where it was
        made, in the middle of an epoch too; ``step``, ``epoch`` and the optimizer's state are those of then.

        Raises ValueError if it was made with another seed, other shards or other parameters, FormatError if it is
        damaged, FileNotFoundError, ImportError if safetensors is not installed. Then nothing is changed.
        """
        path = checked_path("path", path)
        check_installed()
        if self._loop is not None:
            raise RuntimeError("load: training runs; call it between two calls of fit")
        found = newest(path) if path.is_dir() else read(path)
        if found is None:
            raise FileNotFoundError(errno.ENOENT, "there is no checkpoint in this directory", str(path))
        check_settings(found, self._state.settings(), only=("seed", "shards"))
        self._weights().replace(found.fill)
        self._state.restore(found)

    # -- evaluation

    def evaluate(self, data: Any, *, batch_size: int = EVALUATION_BATCH_SIZE) -> dict[str, float]:
        """Loss and metrics of the newest weights, means over all examples, ``batch_size`` at a time. The worker
        processes take part, if they run and there are several batches; the result has the same bits without them.

        Raises WorkerError if the model failed in one of them, with its traceback; NonFiniteLossError.
        """
        batch_size = checked_count("batch_size", batch_size, 1, 2**31)
        return self._evaluator().evaluate(source_of("data", self._model.arrays(data)), batch_size)

    def predict(self, x: Any, *, batch_size: int = EVALUATION_BATCH_SIZE) -> Any:
        """The model's ``predict(params, x)`` on the newest weights, ``batch_size`` examples at a time, joined: by the
        worker processes, as evaluate() is. Of a dict or tuple of arrays each is joined. A TorchModel gives its module's
        outputs, as arrays; x is then the input, a tuple of the inputs, or a dict.

        Raises TypeError if the model has no predict method, WorkerError if it failed in a worker.
        """
        batch_size = checked_count("batch_size", batch_size, 1, 2**31)
        return self._evaluator().predict(source_of("x", self._model.arrays(x)), batch_size)

    def _evaluator(self) -> Evaluator:
        return Evaluator(self._settings, self._weights(), self._pool, self._local, self._while_waiting)

    def _while_waiting(self) -> None:
        if self._loop is not None:
            self._loop.answer_requests()

    # -- the end

    def _weights(self) -> Weights:
        return self._open().weights

    def _open(self) -> Resources:
        self._lifetime.check_open()
        resources = self._resources
        if resources is None:
            resources = self._begin()
            self._lifetime.check_open()
        return resources

    def _begin(self) -> Resources:
        """Open the channel of the weights. A signal handler may do so, or close the trainer, in the middle of this."""
        initial = self._initial  # read first: it is gone only if another call was faster
        if self._resources is not None:
            return self._resources
        try:
            assert initial is not None
            resources = Resources(Weights(initial, self._optimizer, self._name), self._pool, self._name)
        except BusyError:
            if self._resources is None:
                raise
            return self._resources
        if self._resources is not None:
            resources.close()
            return self._resources
        finalizer = weakref.finalize(self, resources.close)
        self._finalizer, self._resources, self._initial = finalizer, resources, None
        self._lifetime.owner = os.getpid()
        if self._lifetime.closed:
            self._release()
        return resources

    def close(self) -> None:
        """End the workers and close the weights' channel; a named one is removed. Closing twice is fine. A fit that
        runs, in another thread or because this is one of its callbacks, ends with ClosedError; this waits for that of
        another thread."""
        self._lifetime.closed = True
        if self._lifetime.is_copy:
            self._release()  # the lock may be held by a thread that is not in this copy
            return
        with self._pool.lock:
            if self._loop is None:
                self._release()

    def _release(self) -> None:
        if self._resources is not None:
            self._finalizer()
            self._resources = None

    def __enter__(self) -> Self:
        self._open()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
