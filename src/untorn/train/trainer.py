"""The Trainer: the public face of training. It checks its arguments and delegates to the parts below.

::

    Trainer.fit ──────> FitLoop ─────┬──> WorkerPool      the workers, at a board
    Trainer.step ─────> Stepping ────┤
    Trainer.evaluate ─> Evaluator ───┤
    Trainer.save ─────> checkpoints  ├──> Weights         the newest version: weights and optimizer state
                                     └──> TrainingState   step, epoch, history, learning rate

The server is the process that has the Trainer. It begins an epoch, supervises the workers, reads the step log, runs
validation and callbacks, and begins the next epoch. Within an epoch the workers advance without it (csrc/board.h).
"""

from __future__ import annotations

import errno
import logging
import os
import weakref
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, Generic, Literal, Never, NoReturn, Self

from untorn.engines import StartMethod
from untorn.engines.nodes import Cluster
from untorn.errors import BusyError
from untorn.first_guesses import only_known_arguments, unknown_attribute, unknown_first
from untorn.share import Snapshot, Subscriber
from untorn.share.lowlevel import extra, flatten, read_value
from untorn.train.arguments import checked_callbacks, checked_count, checked_path
from untorn.train.callbacks import Callback
from untorn.train.callbacks.progress import with_progress
from untorn.train.checkpoints.checkpoint import check_installed, read, write
from untorn.train.checkpoints.resuming import check_settings
from untorn.train.checkpoints.saver import make_saver, newest
from untorn.train.data import source_of
from untorn.train.data.epochs import training_data
from untorn.train.describing import described, described_in_html
from untorn.train.guesses import ATTRIBUTE_GUESSES, unknown_to_evaluate, unknown_to_fit, unknown_to_trainer
from untorn.train.history import History
from untorn.train.interfaces import EngineName, Mode, ModelT_co, OptimizerLike
from untorn.train.models.base import Model, Parts
from untorn.train.models.carried import check_carried, check_order
from untorn.train.models.function import as_model
from untorn.train.models.local_steps import LocalStepsModel
from untorn.train.models.turns import check_losses
from untorn.train.nodes.clusters import checked_cluster, pool_of_nodes
from untorn.train.optim.convert import as_optimizer
from untorn.train.optim.learning_rate import LearningRate
from untorn.train.optim.local_steps import LocalSteps
from untorn.train.optim.tables import check_tables
from untorn.train.run.check import Check, check, data_to_check
from untorn.train.run.evaluation import EVALUATION_BATCH_SIZE, Evaluator
from untorn.train.run.lifetime import Lifetime
from untorn.train.run.local_model import LocalModel
from untorn.train.run.loop import FitLoop
from untorn.train.run.pool import Pool, WorkerPool
from untorn.train.run.resources import Resources
from untorn.train.run.step_log import NO_STEPS
from untorn.train.run.stepping import Stepping
from untorn.train.run.training_job import TrainingJobs
from untorn.train.run.tuner import Tuner
from untorn.train.run.weights import Weights, copy_weights
from untorn.train.settings import Setting, checked_settings
from untorn.train.state import TrainingState
from untorn.train.step_count import StepCount
from untorn.typevars import T

__all__ = ["Trainer"]

_log = logging.getLogger(__name__)


class Trainer(Generic[ModelT_co]):
    """Data-parallel mini-batch training whose result does not depend on the number of workers.

    In sync mode the weights are bit-identical for the same ``seed`` and ``shards``, whatever the numbers of workers and
    nodes, the engine, and the workers and nodes that were killed on the way.

    Args:
        model: a function ``loss_and_grad(params, batch[, rng]) -> (loss, grads[, metrics])`` that returns means over
            the batch, or an object with that method (and ``predict(params, x)``). params are read-only views of shared
            memory; grads has the same tree structure, with None for a parameter that has no gradient and is skipped.
            metrics is a dict of numbers, with the same names for every batch.
            Worker processes, and nodes, must be able to import or unpickle it. A untorn.torch.TorchModel brings its
            own parameters. A dict of such functions by name takes turns: see Turns.
        params: the initial parameters: a tree of float32 and float64 arrays. Copied.
        optimizer: SGD, Adam, AdamW, RMSprop or Adagrad, or Turns of these. Or a function that makes an optimizer of
            torch.optim from a list of parameters, such as functools.partial(torch.optim.NAdam, lr=1e-3), or an
            optax.GradientTransformation: then the workers sum the gradients, and this process, on nodes one of each
            node, makes the step, which takes longer.
        workers: the number of worker processes, on nodes that of each node; by default one per ``threads_per_worker``
            processors. "auto" measures a few steps with that number and with smaller ones, and continues with the
            fastest: see ``tuner``; not on nodes. A number may exceed the number of processors.
        engine: "processes", or "serial", the reference, which computes in this process. Or nodes, which have all
            weights and data and workers of their own: "ray" for those of a Ray cluster, "loopback" for processes of
            this machine, to try a program, or a Cluster that starts them.
        nodes: the number of nodes; by default all that the Ray cluster has, and two with "loopback".
        shards: the number of parts that every batch is cut into; by default ``workers`` if that is a number, else the
            number of processors; on nodes, nodes times workers. The result depends on it, so give it if runs with
            other numbers are to have the same result.
        mode: "sync", or, on one machine, "async": one worker computes the gradient of a whole batch, and the gradient
            is applied when it arrives, to weights that other gradients may have changed meanwhile. Readers see whole
            versions in both.
        max_staleness: in async mode, the maximum number of versions between the weights that a gradient was computed
            on and the weights that it is applied to; at most ``max_staleness`` + 1 gradients are in flight. By default
            ``workers``. With 0 the result is that of sync mode with shards=1.
        seed: the seed of the order of the examples and of ``rng``. 0 or more.
        clip_norm: the maximum norm of the whole gradient; a larger one is scaled down to it, as
            ``torch.nn.utils.clip_grad_norm_`` does. The norm before clipping is the metric grad_norm.
        accumulate: the number of parts that every shard is cut into, computed one after another to save memory;
            gradients are averaged, weighted by their number of examples.
        threads_per_worker: the number of BLAS threads of each worker.
        max_restarts: how often one shard's gradient may kill its worker before WorkerError is raised; on nodes also how
            many more nodes than take part may be lost without a step in between.
        start_method: "forkserver": worker processes are forks of a process that has imported the main program and the
            modules of the model; they begin within milliseconds, and share its memory. Where that process must not be
            forked, and with ``threads_per_worker`` above 1, they are spawned; a log record says why. "spawn": each
            worker process is a new Python interpreter, which imports all of that itself.
        name: publish the weights under this name while the trainer is open, for untorn.subscribe(). `untorn top` shows
            the job of that name while it trains, and `untorn join` and `untorn leave` change its workers and nodes. On
            nodes, the channel is that of this machine: see subscriber().
        ray_options: for engine="ray", a dict: the ``address`` of the cluster and other arguments of ray.init(), as a
            dict ``init``; options of the actor of each node, such as ``num_cpus`` and ``resources``. See
            untorn.ray.RayCluster.

    Attributes:
        model, optimizer: the arguments, as they were given.
        engine, mode, seed, ...: the other settings; the engine of a Cluster is its name.
        tuner: the measurements and the choice of workers="auto"; None for a number. str() describes them.

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

    Raises:
        TypeError, ValueError: an argument is wrong; the message names it.
        CapacityError: the cluster has too few resources for these nodes and workers.
        ConnectionError: there is no cluster at the address.
        ImportError: a library of the engine is missing.
    """

    engine: Setting[str] = Setting()
    mode: Setting[Mode] = Setting()
    seed: Setting[int] = Setting()
    shards: Setting[int] = Setting()
    max_staleness: Setting[int] = Setting()
    clip_norm: Setting[float | None] = Setting()
    accumulate: Setting[int] = Setting()
    threads_per_worker: Setting[int] = Setting()
    max_restarts: Setting[int] = Setting()
    start_method: Setting[StartMethod] = Setting()
    tuner: Tuner | None

    @only_known_arguments
    @unknown_first
    def __init__(
        self,
        model: ModelT_co,
        params: Any = None,
        *more: Never,
        optimizer: OptimizerLike,
        workers: int | Literal["auto"] | None = None,
        engine: EngineName | Cluster = "processes",
        nodes: int | None = None,
        shards: int | None = None,
        mode: Mode = "sync",
        max_staleness: int | None = None,
        seed: int = 0,
        clip_norm: float | None = None,
        accumulate: int = 1,
        threads_per_worker: int = 1,
        max_restarts: int = 3,
        start_method: StartMethod = "forkserver",
        name: str | None = None,
        ray_options: Mapping[str, Any] | None = None,
        **unknown: Never,
    ) -> None:
        if more or unknown:
            raise unknown_to_trainer(more, unknown)
        if isinstance(optimizer, LocalSteps):
            shards = optimizer.checked_shards(mode, shards)
        cluster = checked_cluster(engine, nodes=nodes, workers=workers, mode=mode, ray_options=ray_options)
        settings = self._settings = checked_settings(
            workers=workers, engine=engine, shards=shards, mode=mode, max_staleness=max_staleness, seed=seed,
            clip_norm=clip_norm, accumulate=accumulate, threads_per_worker=threads_per_worker,
            max_restarts=max_restarts, start_method=start_method, cluster=cluster,
        )  # fmt: skip
        self.model = model
        self.optimizer = optimizer
        self._model: Model = as_model(model)
        if isinstance(optimizer, LocalSteps):
            self._model = LocalStepsModel(self._model, optimizer)
        initial = self._model.parts(params)
        self._initial: Parts | None = initial
        self._optimizer = as_optimizer(optimizer, initial.trained)
        check_losses(self._model, self._optimizer.turns, is_async=settings.is_async)
        check_tables(initial, self._optimizer, on_nodes=cluster is not None)
        if cluster is not None:
            self._check_inside(
                "engine", "nodes are lost and replaced, and a new one begins with a version of the weights"
            )
        check_carried(
            initial, shards=settings.shards, is_async=settings.is_async, accumulate=settings.accumulate,
            local_steps=isinstance(optimizer, LocalSteps),
        )  # fmt: skip
        self._carried = initial.carried
        self._local = LocalModel(self._model)
        turns = tuple(turn.name for turn in self._optimizer.turns)
        self._state = TrainingState(settings, LearningRate(self._optimizer), self._optimizer.settings, turns)
        server_works = settings.is_async or self._optimizer.server_steps
        for_workers = self._model.for_workers()
        self._pool: Pool
        if cluster is None:
            self._pool = WorkerPool(settings, for_workers, server_works=server_works)
        else:
            self._pool = pool_of_nodes(settings, for_workers, self._optimizer, cluster)
        self.tuner = self._pool.tuner
        self._name = name
        self._lifetime = Lifetime()
        self._resources: Resources | None = None
        self._loop: FitLoop | None = None
        #: whether a step runs
        self._in_step = False

    # -- state

    @property
    def step(self) -> StepCount:
        """The number of steps since training began, an int. Called with a batch, ``trainer.step(batch)``, it makes one
        more step and returns its loss and metrics, a dict of floats; blocks until the new weights are there.

        For programs that make their batches themselves, one after another: reinforcement learning, learning online,
        training that takes turns. A step costs little more than one inside an epoch, since the workers keep waiting for
        the next batch. Steps have the bits that ``fit`` has with the same batches: ``shards``, the seed, clipping,
        ``accumulate`` and a schedule of the learning rate by step are used alike, and ``save`` stores the count. They
        belong to no epoch: ``epoch``, ``history`` and callbacks know nothing of them. A rate that is set applies to the
        next step. In async mode, each step waits for its own gradient.

        The batch is a tree of arrays or tensors with one example per row, or any object that only the model knows, as
        the batches of an iterable are for ``fit``. It is copied. Batches may differ in size; on nodes, another size
        than that of the step before takes longer.

        Raises what ``fit`` raises: WorkerError, NonFiniteLossError, CapacityError, ClosedError, TypeError or ValueError
        for a batch that does not fit. The weights are then those of the step before. RuntimeError inside ``fit``.

        Example:
            >>> import numpy as np
            >>> from untorn import SGD, Trainer
            >>> def loss_and_grad(params, batch):
            ...     return float(((params["w"] - batch) ** 2).mean()), {"w": 2 * (params["w"] - batch.mean(0))}
            >>> with Trainer(loss_and_grad, {"w": np.zeros(1)}, optimizer=SGD(0.25), engine="serial") as trainer:
            ...     for step in range(3):
            ...         measured = trainer.step(np.ones((4, 1)))
            ...     trainer.step, measured, trainer.params["w"]
            (3, {'loss': 0.0625}, array([0.875]))
        """
        return StepCount.of(self._state.step, self._step)

    @property
    def epoch(self) -> int:
        """The number of the epoch that runs now, or of the next one between calls of fit."""
        return self._state.epoch

    @property
    def stop_training(self) -> bool:
        """Whether training stops after this epoch; a callback sets it to True."""
        return self._state.stop

    @stop_training.setter
    def stop_training(self, stop: bool) -> None:
        self._state.stop = stop

    @property
    def params(self) -> Any:
        """The newest weights: a writable copy, with the structure of the initial parameters. Blocks while they are
        copied from a node, if a node has newer ones than this process."""
        return self._model.visible(self._weights().copy())

    @params.setter
    def params(self, value: Any) -> None:
        """Publish other weights with the same structure; copied. The optimizer's state stays. Raises RuntimeError while
        the workers train: set them in on_train_end, or between two calls of fit."""
        self._end_steps()
        if self._state.step:
            self._check_inside("params", "with other weights it begins anew")
        if self._pool.at_work:
            raise RuntimeError("params: training runs; set them in on_train_end, or between two calls of fit")
        self._weights().replace(lambda params, _: copy_weights(self._model.visible(params), self._model.arrays(value)))
        if self._state.partial is not None:
            _log.info("epoch %d, which was partly done, starts over with the new weights", self.epoch)
            self._state.partial = None

    @property
    def learning_rate(self) -> float:
        """The learning rate of the next step. Setting it takes effect from the next epoch; if the optimizer's rate is
        a function of the step, it scales all later rates so that the next step has this one. For torch.optim it is the
        rate of the first parameter group, and the other groups keep their ratio to it; for optax it is NaN and cannot
        be set."""
        return self._state.learning_rate.at(self.step)

    @learning_rate.setter
    def learning_rate(self, rate: float) -> None:
        self._state.learning_rate.set(rate, step=self.step)

    def snapshot(self) -> Snapshot:
        """Return the newest weights as a zero-copy Snapshot; its version counts steps from 1. Its value is read-only;
        that of a TorchModel has tensors, and a write to one changes a private copy. While nodes train, it blocks until
        this process has a copy of their newest version."""
        return self._weights().snapshot()

    def subscriber(self) -> Subscriber:
        """Return a subscriber that other processes can use to follow the weights while they change. If slots run
        short, a subscriber that holds four versions or more gets CapacityError from snapshot(); training continues.

        While nodes train, this process gets a version only when it needs one: for snapshot(), params, validation, a
        checkpoint, and the end of fit. So a subscriber sees these versions, and not each one in between."""
        return self._weights().subscriber()

    def module(self: Trainer[Model[T]]) -> T:
        """Return a TorchModel's module with a copy of the newest parameters and buffers, as ``params`` has them. Raises
        TypeError for a model that has no module."""
        module: T = self._model.module(self.params)
        return module

    @property
    def workers(self) -> int:
        """The target number of workers, on nodes that of each node; resize() changes it."""
        return self._pool.count.wanted

    @property
    def nodes(self) -> int:
        """The target number of nodes; resize() changes it. 0 if the engine has no nodes."""
        return self._pool.wanted_nodes

    def resize(self, workers: int | None = None, *, nodes: int | None = None) -> None:
        """Set the number of workers, on nodes that of each node, and the number of nodes, also while fit runs, from a
        callback or another thread. In sync mode the bits of the result do not change. Returns at once; a new process
        takes a moment to start, a surplus worker ends after its current gradient, and a surplus node after a step.
        Nobody waits for a new node: it takes part when it has everything, from a step on.

        Raises ValueError for less than 1, for more than the maximum (of workers 64 or twice the initial number,
        whichever is larger), for more than ``max_staleness`` + 1 in async mode, with engine="serial", and for nodes
        with an engine that has none; CapacityError if there is no memory, or no room for these nodes.
        """
        self._lifetime.check_owner()
        if workers is None and nodes is None:
            raise TypeError("resize() needs workers=, nodes=, or both")
        if nodes is not None:
            self._pool.resize_nodes(checked_count("nodes", nodes, 1, 1000))
        if workers is not None:
            self._pool.resize(workers)

    @property
    def restarts(self) -> int:
        """The number of workers that have been replaced so far, and of nodes that were lost while they took part."""
        return self._pool.restarts

    @property
    def pids(self) -> list[int]:
        """The process ids of the workers, by index; empty before fit, with the serial engine, and on nodes, which may
        be on other machines (`untorn top NAME --json` shows theirs)."""
        return self._pool.pids

    # -- training

    @only_known_arguments
    @unknown_first
    def fit(
        self,
        data: Any,
        *more: Never,
        epochs: int,
        batch_size: int | None = None,
        steps_per_epoch: int | None = None,
        prefetch: int | None = None,
        shuffle: bool = True,
        drop_last: bool = False,
        validation_data: Any = None,
        callbacks: Iterable[Callback] = (),
        checkpoint_dir: str | os.PathLike[str] | None = None,
        resume: bool = False,
        checkpoint_every_s: float | None = 300.0,
        keep: int = 3,
        verbose: bool | Literal[0, 1, 2] | None = None,
        **unknown: Never,
    ) -> History:
        """Train for some epochs; blocks until they are done. Further calls continue where the last one ended, also in
        the middle of an epoch: the rest of it is then the first of ``epochs``. With other data, other batches or other
        weights, or an iterator of batches, that epoch starts over, and the log says so.

        Args:
            data: a tuple, list or dict of arrays with one example per row, such as (x, y): copied once into shared
                memory, or mapped from their files. Or a dataset with len() and [index], or a list of examples, whose
                items the workers read. Or an iterable of batches, which this process reads ahead of the workers. Nodes
                are sent arrays and datasets once each, and open mapped files themselves, under the same path.
            epochs: the number of epochs.
            batch_size: examples per step, of all workers together. The last batch of an epoch may be smaller. For an
                iterable of batches leave it out: each batch has its own size.
            steps_per_epoch: for an iterable of batches, the number of batches per epoch; by default all. An iterator
                that cannot restart, such as a generator, continues in each epoch where the last one ended.
            prefetch: for an iterable of batches, the number of batches that are read ahead of the step that runs, in a
                thread; by default up to 64 MB and 256 batches. With 0 the next batch is asked for in this thread when
                the weights of the step before are published, as learning on-policy needs it.
            shuffle: use a new order in each epoch, from the seed and the epoch's number. Otherwise the data's own.
            drop_last: leave out a last, smaller batch; with shuffle, other examples in each epoch.
            validation_data: data to evaluate after each epoch, as evaluate() does, for the metrics ``val_...``.
            callbacks: Callback objects, called in this process; on_train_end is also called after an error.
            checkpoint_dir: a directory to write a checkpoint to at each epoch's end, while training continues.
            resume: resume from the newest checkpoint there, as if training had never stopped. ``epochs`` is then the
                total number, and the history covers all of them. If there is no checkpoint, training begins.
            checkpoint_every_s: write a checkpoint inside an epoch too, this number of seconds after the last one; None
                for never.
            keep: the number of newest checkpoints to keep, beside the best one by val_loss, or by loss.
            verbose: show the progress on standard error, as the callback ProgressBar does. By default in the main
                thread of a program on a terminal (standard output and error), and in a notebook; True (1) always, 2
                with a line per epoch instead of a bar, False (0) never. Not beside a ProgressBar among the callbacks.

        Returns:
            History: loss and metrics per epoch.

        Raises:
            WorkerError: the model function failed (with its traceback), or workers or nodes died repeatedly; or a node
                has another version of Python, NumPy or untorn, or a processor that gives other bits, or none came
                within two minutes.
            NonFiniteLossError: a loss or a gradient became NaN or infinite; the weights of the step before are kept.
            ClosedError: the trainer was closed meanwhile.
            CapacityError: there is no memory.
            ImportError: checkpoint_dir is given, and safetensors is not installed.
            ValueError: the checkpoint was made with other settings, data or parameters; the message names them.
            FormatError: no checkpoint in the directory can be read. Damaged ones are skipped with a warning.
            FileExistsError: without resume, the directory has checkpoints of later steps than this training's.
            BusyError: another training writes its checkpoints to the directory.
            OSError: a checkpoint could not be written. The weights and the earlier checkpoints are kept.
        """
        self._lifetime.check_owner()
        if more or unknown:
            raise unknown_to_fit(more, unknown)
        epochs = checked_count("epochs", epochs, 0, 2**31)
        validation = None
        if validation_data is not None:
            validation = source_of("validation_data", self._model.arrays(validation_data))
        if batch_size is not None:
            batch_size = checked_count("batch_size", batch_size, 1, 2**31) * self._optimizer.batches
        training = training_data(
            data, self._model.arrays, seed=self.seed, batch_size=batch_size, steps_per_epoch=steps_per_epoch,
            shuffle=shuffle, drop_last=drop_last, replay=resume, prefetch=prefetch,
        )  # fmt: skip
        check_order(self._carried, shuffle=shuffle and training.source is not None)
        if checkpoint_dir is not None:
            checkpoint_dir = checked_path("checkpoint_dir", checkpoint_dir)
            self._check_inside("checkpoint_dir", "a training that resumes would go on differently")
        saver = make_saver(checkpoint_dir, resume=resume, every_s=checkpoint_every_s, keep=keep)
        callbacks = with_progress(checked_callbacks(callbacks), verbose)
        resources = self._open()
        loop = FitLoop(
            settings=self._settings, state=self._state, weights=resources.weights, pool=self._pool,
            evaluator=self._evaluator(), lifetime=self._lifetime, jobs=self._jobs(), data=training,
            epochs=epochs, validation=validation, callbacks=callbacks, saver=saver, control=resources.control,
        )  # fmt: skip
        with self._pool.lock:
            self._check_idle("fit")
            self._end_steps()
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

    def _step(self, batch: Any) -> dict[str, float]:
        """Make one step: see ``step``."""
        self._lifetime.check_owner()
        resources = self._open()
        with self._pool.lock:
            self._check_idle("step")
            if resources.stepping is None:
                resources.stepping = Stepping(
                    settings=self._settings, state=self._state, weights=resources.weights, pool=self._pool,
                    jobs=self._jobs(), lifetime=self._lifetime, control=resources.control,
                )  # fmt: skip
            try:
                self._in_step = self._lifetime.fitting = True
                return resources.stepping.step(batch)
            finally:
                self._in_step = self._lifetime.fitting = False
                if self._lifetime.closed:
                    self._release()

    def _check_idle(self, what: str) -> None:
        """Raise RuntimeError if this thread is inside fit or step. For the thread that has the lock."""
        if self._loop is not None:
            runs = "it" if what == "fit" else "fit"
            raise RuntimeError(
                f"{what}: {runs} runs already, and this is one of its callbacks; call it again when it has returned"
            )
        if self._in_step:
            raise RuntimeError(f"{what}: a step runs, and this is a signal handler inside it; call it after the step")

    def _check_inside(self, what: str, why: str) -> None:
        """Raise ValueError if the optimizer keeps something that no version of the weights has."""
        if self._optimizer.outside:
            raise ValueError(
                f"{what}: this optimizer cannot begin from a version of the weights: {self._optimizer.outside}; {why}. "
                "Give it a state_dict() and a load_state_dict() that have everything; a learning rate by the step is "
                "functools.partial(torch.optim.NAME, lr=schedule)"
            )

    def _end_steps(self) -> None:
        """End the job of single steps, which keeps the workers waiting for the next one."""
        if self._resources is not None and not self._in_step:
            self._resources.end_steps()

    def _jobs(self) -> TrainingJobs:
        return TrainingJobs(
            settings=self._settings, state=self._state, weights=self._weights(), pool=self._pool, local=self._local,
            optimizer=self._optimizer,
        )  # fmt: skip

    # -- checkpoints

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a checkpoint to this file; blocks until it is on the disk. An existing file is replaced atomically. The
        checkpoint is a safetensors file with the weights, the optimizer's state and the progress of training.

        After an error or Ctrl-C has ended fit inside an epoch, it stores the step that was reached, and load() and
        fit() continue there. A callback may call it in on_epoch_end or on_train_end; inside an epoch
        fit(checkpoint_every_s=...) writes checkpoints. Raises OSError; ImportError if safetensors is not installed.
        """
        path = checked_path("path", path)
        check_installed()
        self._check_inside("save", "a training that loads the file would go on differently")
        if self._loop is not None and self._loop.inside_epoch:
            raise RuntimeError("save: inside an epoch; call it from on_epoch_end, or give fit checkpoint_every_s=")
        with self.snapshot() as snapshot:
            partial, override = self._state.partial, self._state.learning_rate.override
            if partial is not None:
                progress, records, _ = partial.with_rate(override)
            else:
                progress, records = self._state.progress(self._loop.callbacks if self._loop else ()), NO_STEPS
            write(path, progress, params=read_value(snapshot, arrays=True), state=extra(snapshot), records=records)

    def load(self, path: str | os.PathLike[str]) -> None:
        """Restore a checkpoint: a file, or the newest intact one in a directory. The next fit() continues where it was
        made, also in the middle of an epoch, with its ``step``, ``epoch`` and optimizer state.

        Raises ValueError if it was made with another seed, other shards or other parameters; FormatError if it is
        damaged; FileNotFoundError; ImportError if safetensors is not installed. After an error nothing has changed.
        """
        path = checked_path("path", path)
        check_installed()
        self._check_inside("load", "training would not continue where the checkpoint was made")
        if self._loop is not None or self._in_step:
            raise RuntimeError("load: training runs; call it between two calls of fit")
        found = newest(path) if path.is_dir() else read(path)
        if found is None:
            raise FileNotFoundError(errno.ENOENT, "there is no checkpoint in this directory", str(path))
        check_settings(found, self._state.settings(), only=("seed", "shards"))
        self._end_steps()
        self._weights().replace(found.fill)
        self._state.restore(found)

    # -- evaluation

    @only_known_arguments
    @unknown_first
    def evaluate(
        self, data: Any, *more: Never, batch_size: int = EVALUATION_BATCH_SIZE, **unknown: Never
    ) -> dict[str, float]:
        """Return loss and metrics of the newest weights, means over all examples, ``batch_size`` at a time. Worker
        processes that run, also those of nodes, share the work if it is worth the overhead; the result has the same
        bits without them.

        Raises WorkerError, with the traceback, if the model failed in a worker; NonFiniteLossError.
        """
        if more or unknown:
            raise unknown_to_evaluate("evaluate", more, unknown)
        batch_size = checked_count("batch_size", batch_size, 1, 2**31)
        source = source_of("data", self._model.arrays(data))
        return self._evaluator().evaluate(source, batch_size)

    @only_known_arguments
    @unknown_first
    def predict(self, x: Any, *more: Never, batch_size: int = EVALUATION_BATCH_SIZE, **unknown: Never) -> Any:
        """Return the model's ``predict(params, x)`` for the newest weights, ``batch_size`` examples at a time, joined
        in order. If it is a dict or tuple of arrays, each of them is joined. Worker processes share the work as in
        evaluate(). A TorchModel returns its module's outputs as arrays; x is then the input, a tuple of the inputs, or
        a dict.

        Raises TypeError if the model has no predict method; WorkerError if it failed in a worker.
        """
        if more or unknown:
            raise unknown_to_evaluate("predict", more, unknown)
        batch_size = checked_count("batch_size", batch_size, 1, 2**31)
        source = source_of("x", self._model.arrays(x))
        return self._evaluator().predict(source, batch_size)

    def check(self, data: Any, *, batch_size: int | None = None) -> Check:
        """Check the model on some of the data, before it is trained; blocks for some seconds. Nothing is changed.

        It finds losses and gradients that are sums over the batch instead of means; gradients of a plain function that
        differ from numerical ones; and whether the result depends on ``shards``. It measures a gradient, and estimates
        what a step costs with one worker and with more. All of it is computed in this process.

        Args:
            data: as for fit(); of an iterable of batches the first one, and no iterator, which would lose it.
            batch_size: examples per step, as for fit().

        Returns:
            Check: ``ok``, ``problems``, ``workers`` and more; print it.

        Example:
            >>> import numpy as np
            >>> from untorn import SGD, Trainer
            >>> def loss_and_grad(params, batch):
            ...     x, y = batch
            ...     error = x @ params["w"] - y
            ...     return (error**2).mean(), {"w": 2 * x.T @ error}              # a sum: / len(x) is missing
            >>> x = np.random.default_rng(0).normal(size=(256, 2))
            >>> with Trainer(loss_and_grad, {"w": np.zeros(2)}, optimizer=SGD(0.1), engine="serial") as trainer:
            ...     found = trainer.check((x, x @ [1.0, -2.0]), batch_size=32)
            >>> found.ok, found.problems[0].partition(":")[0]
            (False, 'the gradient is a sum over the batch, and the loss is a mean')

        Raises TypeError or ValueError for data that does not fit, and for a model whose losses take turns; and what the
        model raises.
        """
        self._lifetime.check_owner()
        model = as_model(self.model)
        if model.losses:
            raise TypeError(
                f"check: the model has several losses, {', '.join(model.losses)}, which take turns; check a Trainer "
                "with one of them at a time"
            )
        source, size = data_to_check(data, model.arrays, batch_size)
        published = self._weights().copy()
        untrained = sum(self._weights().untrained)
        return check(
            source, size, replica=model.replica(self.threads_per_worker), params=self._model.visible(published),
            trained=len(flatten(published)[1]) - untrained, settings=self._settings, exact=not model.private_params,
        )  # fmt: skip

    def _evaluator(self) -> Evaluator:
        return Evaluator(self._settings, self._weights(), self._pool, self._local, self._while_waiting)

    def _while_waiting(self) -> None:
        self._lifetime.check()
        if self._loop is not None:
            self._loop.answer_requests()

    # -- resources

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
        """Open the channel of the weights. A signal handler may call this again, or close the trainer, meanwhile."""
        initial = self._initial  # read before the check below: another call that was faster sets it to None
        if self._resources is not None:
            return self._resources
        try:
            assert initial is not None
            weights = self._pool.first_weights(initial, self._optimizer, self._name)
            resources = Resources(weights, self._pool, self._name)
        except BusyError:
            if self._resources is None:
                raise
            return self._resources
        if self._resources is not None:
            resources.close()
            return self._resources
        finalizer, owner = weakref.finalize(self, resources.close), os.getpid()
        # no signal handler comes in between these
        self._finalizer, self._resources, self._initial, self._lifetime.owner = finalizer, resources, None, owner
        if self._lifetime.closed:
            self._release()
        return resources

    def close(self) -> None:
        """End the workers and close the weights' channel; a named one is removed. Closing twice is allowed. A running
        fit ends with ClosedError: close() waits for it if it is in another thread; if one of its callbacks calls
        close(), it ends after that callback."""
        self._lifetime.closed = True
        if self._lifetime.is_copy:
            self._release()  # a thread that does not exist in this process may hold the lock
            return
        with self._pool.lock:
            if self._loop is None and not self._in_step:
                self._release()

    def _release(self) -> None:
        if self._resources is not None:
            self._finalizer()
            self._resources = None

    if not TYPE_CHECKING:  # a type checker would take every name for one that is here

        def __getattr__(self, name: str) -> NoReturn:
            """Raise the error for an attribute that is not there."""
            raise unknown_attribute(self, name, ATTRIBUTE_GUESSES)

    def _repr_html_(self) -> str:
        return described_in_html(self, name=self._name, closed=self._lifetime.closed)

    def __repr__(self) -> str:
        return described(self, name=self._name, closed=self._lifetime.closed)

    def __enter__(self) -> Self:
        self._open()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
