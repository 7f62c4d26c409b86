"""The Trainer: the server's side of data-parallel training.

The workers move each epoch on by themselves (csrc/board.h). The server opens an epoch, watches, reads what was
measured, runs validation and callbacks, and opens the next::

    Trainer.fit ── epoch: order, learning rates ──> board ──> workers: gradients, updates, new versions
         ^                                            │
         └── losses, deaths, failures, want of slots ─┘
"""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import sys
import time
import weakref
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from untorn import _core
from untorn.engines import Death, Engine, ProcessEngine, SerialEngine
from untorn.errors import CapacityError, ClosedError, NonFiniteLossError, WorkerError
from untorn.share import Publisher, Snapshot, Subscriber, publish
from untorn.share.layout import Decoder, Layout
from untorn.share.publisher import FREE_SLOT_TIMEOUT_S, publish_spec
from untorn.share.tree import flatten
from untorn.share.views import array_over
from untorn.train import sampler
from untorn.train.callbacks import Callback
from untorn.train.cpus import available_cpus
from untorn.train.data import check_data, chunks
from untorn.train.history import History
from untorn.train.model import ModelFunction, take_examples
from untorn.train.optimizers import SGD
from untorn.train.plan import ParameterPlan, check_parameters
from untorn.train.worker import Job, ShardWorker, worker_main

__all__ = ["Trainer"]

#: reader rows, slots and slots that keep their space, of the channel of the weights
_CHANNEL_SIZES = (1024, 64, 8)
_SPIN_S = 0.002
_SPIN_CROWDED_S = 0.00002


class Trainer:
    """Data-parallel mini-batch training whose result does not depend on the number of workers.

    In sync mode the weights are bit-identical for the same ``seed`` and ``shards``, whatever the number of workers, the
    engine, and the workers that were killed on the way.

    Args:
        model: ``loss_and_grad(params, batch[, rng]) -> (loss, grads[, metrics])``, means over the batch, or an object
            with that method (and ``predict(params, x)``). params are read-only views of shared memory; grads is
            the same tree. With engine="processes" it must be importable by, or picklable for, the workers.
        params: the initial parameters: a tree of float32 and float64 arrays. Copied.
        optimizer: SGD(...).
        workers: worker processes; by default the processors that this process may use.
        engine: "processes", or "serial": in this process, the reference.
        shards: parts that every batch is cut into; by default ``workers``. The result depends on it.
        mode: "sync".
        seed: of the order of the examples and of ``rng``. 0 or more.
        threads_per_worker: BLAS threads of each worker.
        max_restarts: how often one shard's gradient may kill its worker before WorkerError.
        name: publish the weights under this name while the trainer is open, for untorn.subscribe().

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

    def __init__(
        self,
        model: Any,
        params: Any = None,
        *,
        optimizer: SGD,
        workers: int | None = None,
        engine: str = "processes",
        shards: int | None = None,
        mode: str = "sync",
        max_staleness: int | None = None,
        seed: int = 0,
        clip_norm: float | None = None,
        accumulate: int = 1,
        threads_per_worker: int = 1,
        max_restarts: int = 3,
        name: str | None = None,
    ) -> None:
        if mode != "sync" or max_staleness is not None or clip_norm is not None or accumulate != 1:
            raise NotImplementedError(
                "mode='async', max_staleness=, clip_norm= and accumulate= are not available in this version of untorn"
            )
        if engine not in ("processes", "serial"):
            raise ValueError(f"engine: expected 'processes' or 'serial', found {engine!r}")
        if not isinstance(optimizer, SGD):
            raise TypeError(f"optimizer: expected untorn.SGD(...), found {type(optimizer).__name__}")
        cpus = available_cpus()
        self.workers = cpus if workers is None else _count("workers", workers, 1, 1000)
        self.shards = _count("shards", self.workers if shards is None else shards, 1, 1024)
        self.engine = engine
        self.seed = _count("seed", seed, 0, 2**63 - 1)
        self.threads_per_worker = _count("threads_per_worker", threads_per_worker, 1, 1024)
        self.max_restarts = _count("max_restarts", max_restarts, 0, 1_000_000)
        self.optimizer = optimizer
        self.model = ModelFunction(model)
        check_parameters(params)
        #: set it to True in a callback to stop after the epoch
        self.stop_training = False
        #: the epoch that runs now or comes next, and the step since training began
        self.epoch = 0
        self.step = 0
        self._model = model
        self._initial: Any = params
        self._name = name
        self._spin_s = _SPIN_S if self.workers <= cpus else _SPIN_CROWDED_S
        self._closed = False
        self._open: _Open | None = None
        self._job_number = 0

    # -- what others may see

    @property
    def params(self) -> Any:
        """The newest weights: a writable copy, the same tree as was given."""
        with self.snapshot() as snapshot:
            return _copy_value(snapshot)

    def snapshot(self) -> Snapshot:
        """The newest weights: a zero-copy, read-only Snapshot; its version counts steps from 1."""
        return self._running().reader.snapshot()

    def subscriber(self) -> Subscriber:
        """Hand this to other processes: they follow the weights while they change."""
        return self._running().weights.subscriber()

    @property
    def restarts(self) -> int:
        """Workers that were replaced so far."""
        return self._open.engine.restarts if self._open else 0

    @property
    def pids(self) -> list[int]:
        """The process ids of the workers, by index; empty before fit and with the serial engine."""
        engine = self._open.engine if self._open else None
        return engine.pids if isinstance(engine, ProcessEngine) else []

    # -- training

    def fit(
        self,
        data: Any,
        *,
        epochs: int,
        batch_size: int,
        validation_data: Any = None,
        callbacks: Iterable[Callback] = (),
        checkpoint_dir: str | os.PathLike[str] | None = None,
        resume: bool = False,
    ) -> History:
        """Train for some epochs; blocks until they are done. Further calls go on where the last one ended.

        Args:
            data: a tuple, list or dict of arrays with one example per row, such as (x, y). Copied once into shared
                memory; workers slice it by index.
            epochs: how many.
            batch_size: examples per step, of all workers together. The last batch of an epoch may be smaller.
            validation_data: evaluated in this process after each epoch, as val_loss and val_... metrics.
            callbacks: Callback objects, called in this process; on_train_end after an error too.

        Returns:
            History: loss and metrics per epoch.

        Raises:
            WorkerError: the model function failed (its traceback is inside), or a worker died again and again.
            NonFiniteLossError: a loss became NaN or infinite; the weights of the step before are kept.
            CapacityError: no memory.
        """
        if checkpoint_dir is not None or resume:
            raise NotImplementedError("checkpoint_dir= and resume= are not available in this version of untorn")
        epochs = _count("epochs", epochs, 0, 2**31)
        batch_size = _count("batch_size", batch_size, 1, 2**31)
        examples = check_data("data", data)
        if validation_data is not None:
            check_data("validation_data", validation_data)
        running = self._running()
        callbacks = list(callbacks)
        for callback in callbacks:
            callback.set_trainer(self)
        self.stop_training = False
        history = History()
        with self._job(running, data, examples, min(batch_size, examples)) as board:
            for callback in callbacks:
                callback.on_train_begin({})
            try:
                for _ in range(epochs):
                    self._fit_epoch(running, board, history, epochs, validation_data, callbacks)
                    if self.stop_training:
                        break
            finally:
                for callback in callbacks:
                    callback.on_train_end({})
        return history

    @contextlib.contextmanager
    def _job(self, running: _Open, data: Any, examples: int, batch_size: int) -> Iterator[_core.Board]:
        """A board for one fit, with the workers at it."""
        plan = running.plan
        steps = sampler.steps_per_epoch(examples, batch_size)
        fd = os.memfd_create("untorn-board", os.MFD_CLOEXEC)
        try:
            sizes = (
                self.shards, running.engine.workers, steps, examples, batch_size, plan.nbytes, plan.state_stride,
                running.weights.version,
            )  # fmt: skip
            sgd = self.optimizer
            hyper = (0, sgd.momentum, sgd.weight_decay, int(sgd.nesterov))
            try:
                _core.format_board(fd, sizes, hyper, plan.ranges())
            except _core.StatusError as error:
                raise CapacityError(
                    f"no memory for {self.shards + running.engine.workers} gradient buffers of {plan.nbytes:,} bytes "
                    f"({os.strerror(error.args[1])}); use fewer shards or workers"
                ) from None
            board = _core.Board(fd)
            with publish(data, max_slots=2, slots=1, max_readers=4 * running.engine.workers + 16) as shared:
                job = self._make_job(running, fd, shared.subscriber())
                payload = {"board": job.board_path, "job": b""}
                if isinstance(running.engine, ProcessEngine):
                    payload["job"] = _pickle(job, self._model)
                try:
                    running.engine.begin(board, payload, lambda index: ShardWorker(job, index))
                    yield board
                finally:
                    running.engine.end()
        finally:
            os.close(fd)

    def _make_job(self, running: _Open, board_fd: int, data: Subscriber) -> Job:
        self._job_number += 1
        return Job(
            number=self._job_number,
            board_path=f"/proc/{os.getpid()}/fd/{board_fd}",
            weights=running.weights.subscriber().address,
            data=data,
            model=self._model,
            plan=running.plan,
            seed=self.seed,
            first_step=self.step,
            workers=running.engine.workers,
            spin_s=self._spin_s,
        )

    def _fit_epoch(
        self,
        running: _Open,
        board: _core.Board,
        history: History,
        epochs: int,
        validation_data: Any,
        callbacks: list[Callback],
    ) -> None:
        examples, steps = board.examples, board.steps
        started = time.perf_counter()
        array_over(board, np.int64, examples, board.order_at)[:] = sampler.epoch_order(self.seed, self.epoch, examples)
        array_over(board, np.float64, steps, board.lr_at)[:] = self.optimizer.learning_rate
        for callback in callbacks:
            callback.on_epoch_begin(self.epoch, {"steps": steps, "examples": examples, "epochs": epochs})
        first = board.limit
        log = _Log(board)
        # a row per step costs this process time that the workers could use
        listeners = [each for each in callbacks if type(each).on_batch_end is not Callback.on_batch_end]
        board.open(first + steps)
        seen = 0
        while seen < steps:
            deaths = running.engine.advance(first + steps)
            self._supervise(running, board, deaths)
            done = min(steps, board.step - first)
            self.step += done - seen
            if listeners:
                for step in range(seen, done):
                    logs = log.row(step) | {"version": running.weights.version, "restarts": self.restarts}
                    for callback in listeners:
                        callback.on_batch_end(step, logs)
            seen = done
        seconds = time.perf_counter() - started
        metrics = log.means()
        if validation_data is not None:
            metrics |= {f"val_{name}": value for name, value in self.evaluate(validation_data).items()}
        rate = examples / seconds
        history.append(self.epoch, metrics, seconds=seconds, examples_per_s=rate)
        for callback in callbacks:
            callback.on_epoch_end(self.epoch, metrics | {"examples_per_s": rate, "seconds": seconds})
        self.epoch += 1

    # -- supervision

    def _supervise(self, running: _Open, board: _core.Board, deaths: list[Death]) -> None:
        for death in deaths:
            running.count_death(death, self.max_restarts, board)
        if board.failed:
            raise self._failure(board)
        if board.need_slot:
            running.find_slot(board)

    def _failure(self, board: _core.Board) -> Exception:
        worker = board.failed - 1
        at = board.errors_at + worker * _core.BOARD_ERROR_NBYTES
        text = bytes(memoryview(board)[at : at + _core.BOARD_ERROR_NBYTES]).split(b"\0", 1)[0]
        report = json.loads(text)
        step, shard = report["step"], report["shard"]
        start, stop = sampler.shard_bounds(
            step % board.steps,
            shard,
            shards=board.shards,
            examples=board.examples,
            batch_size=board.batch_size,
        )
        indices = array_over(board, np.int64, board.examples, board.order_at)[start:stop]
        where = (
            f"epoch {self.epoch}, step {step % board.steps}, shard {shard} "
            f"({len(indices)} examples: {', '.join(map(str, indices[:8]))}{', ...' if len(indices) > 8 else ''})"
        )
        if report["non_finite"]:
            return NonFiniteLossError(
                f"{report['summary'].split(': ', 1)[-1]} in {where}; the weights of the step before are kept in "
                "trainer.params. Lower the learning rate, or look at these examples for bad values"
            )
        return WorkerError(f"the model failed in worker {worker}, {where}: {report['summary']}", report["traceback"])

    # -- evaluation

    def evaluate(self, data: Any, *, batch_size: int = 1024) -> dict[str, float]:
        """Loss and metrics of the newest weights, means over all examples. Runs in this process."""
        batch_size = _count("batch_size", batch_size, 1, 2**31)
        examples = check_data("data", data)
        totals: dict[str, float] = {}
        with self.snapshot() as snapshot:
            for indices in chunks(examples, batch_size):
                rng = sampler.shard_rng(self.seed, 2**40, 0, 1) if self.model.takes_rng else None
                answer = self.model(snapshot.value, take_examples(data, indices), rng)
                for name, value in ({"loss": answer.loss} | dict(answer.metrics)).items():
                    totals[name] = totals.get(name, 0.0) + value * len(indices)
        return {name: total / examples for name, total in totals.items()}

    def predict(self, x: Any, *, batch_size: int = 1024) -> Any:
        """The model's ``predict(params, x)`` on the newest weights, ``batch_size`` examples at a time, joined.

        Raises TypeError if the model has no predict method.
        """
        function = getattr(self._model, "predict", None)
        if function is None:
            raise TypeError(
                "predict: the model is a plain function; give Trainer an object with loss_and_grad(params, batch) "
                "and predict(params, x)"
            )
        examples = check_data("x", x)
        with self.snapshot() as snapshot:
            parts = [function(snapshot.value, take_examples(x, indices)) for indices in chunks(examples, batch_size)]
        return np.concatenate(parts)

    # -- the end

    def _running(self) -> _Open:
        if self._closed:
            raise ClosedError("this trainer is closed")
        if self._open is None:
            self._open = _Open(self._initial, self.optimizer, self._name, self._make_engine())
            self._initial = None
            self._finalizer = weakref.finalize(self, self._open.close)
        return self._open

    def _make_engine(self) -> Engine:
        if self.engine == "serial":
            return SerialEngine(self.threads_per_worker)
        return ProcessEngine(self.workers, self.threads_per_worker, worker_main)

    def close(self) -> None:
        """End the workers and close the weights' channel; a named one is removed. Closing twice is fine."""
        self._closed = True
        if self._open is not None:
            self._finalizer()
            self._open = None

    def __enter__(self) -> Trainer:
        self._running()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class _Open:
    """What a trainer holds while it is open: the channel of the weights, and the engine."""

    def __init__(self, params: Any, optimizer: SGD, name: str | None, engine: Engine) -> None:
        state = dict.fromkeys(optimizer.state_names, params) or None
        self.plan = ParameterPlan.of(params, state)
        self.weights: Publisher = publish_spec(
            params, _zeros(params, state), name=name, directory=None, sizes=_CHANNEL_SIZES
        )
        self.reader = self.weights.subscriber()
        self.engine = engine
        self._deaths: dict[tuple[int, int], int] = {}
        self._idle_deaths = 0
        self._idle_step = 0

    def count_death(self, death: Death, max_restarts: int, board: _core.Board) -> None:
        """Raises WorkerError when one task, or the very start, kills one worker after the other."""
        if death.shard >= 0:
            task = (death.step, death.shard)
            self._deaths[task] = self._deaths.get(task, 0) + 1
            if self._deaths[task] > max_restarts:
                raise WorkerError(
                    f"{self._deaths[task]} workers died one after the other at step {death.step % board.steps}, shard "
                    f"{death.shard} (the last {_how(death)}); max_restarts is {max_restarts}"
                )
        elif death.exitcode >= 0:  # it ended by itself, without a task
            if board.step != self._idle_step:
                self._idle_step, self._idle_deaths = board.step, 0
            self._idle_deaths += 1
            if self._idle_deaths > max_restarts:
                raise WorkerError(
                    f"{self._idle_deaths} workers ended before they could take part (the last {_how(death)}); what "
                    "they printed says why. A script that trains needs `if __name__ == '__main__':` around its start, "
                    "because worker processes import it"
                )

    def find_slot(self, board: _core.Board) -> None:
        """The workers found every slot of the weights held: make room, or say who holds them."""
        attachment = self.weights._open()
        with self.weights.subscriber().snapshot() as newest:
            nbytes = newest.nbytes
        deadline = time.monotonic() + FREE_SLOT_TIMEOUT_S
        while True:
            try:
                attachment.grow(nbytes)
            except _core.StatusError as error:
                code, number = error.args
                if code != "no_slot":
                    raise CapacityError(
                        f"the weights: no memory for one more version of {nbytes:,} bytes ({os.strerror(number)}); "
                        "let old snapshots of the weights go"
                    ) from None
                if time.monotonic() > deadline:
                    raise self.weights._no_slot(FREE_SLOT_TIMEOUT_S) from None
                time.sleep(0.001)
                continue
            board.slot_ready()
            return

    def close(self) -> None:
        self.engine.close()
        self.reader.close()
        self.weights.unlink()
        self.weights.close()


class _Log:
    """What the steps of the current epoch measured, as the board records it."""

    def __init__(self, board: _core.Board) -> None:
        self._board = board
        self._rows = array_over(board, np.float64, (board.steps, 2 + _core.BOARD_METRICS), board.log_at)
        self._names: list[str] | None = None

    @property
    def names(self) -> list[str]:
        """The metrics' names; whole as soon as one step is done."""
        if self._names is None:
            at = self._board.names_at
            text = bytes(memoryview(self._board)[at : at + 4096]).split(b"\0", 1)[0]
            self._names = json.loads(text) if text else []
        return self._names

    def row(self, step: int) -> dict[str, float | int]:
        """Loss, metrics and number of examples of one step of the epoch."""
        row = self._rows[step]
        measured: dict[str, float | int] = {"loss": float(row[1]), "examples": int(row[0])}
        return measured | {name: float(row[2 + i]) for i, name in enumerate(self.names)}

    def means(self) -> dict[str, float]:
        """Means over the examples of the epoch."""
        examples = self._rows[:, 0]
        means = (self._rows[:, 1:] * examples[:, None]).sum(axis=0) / examples.sum()
        return {"loss": float(means[0])} | {name: float(means[1 + i]) for i, name in enumerate(self.names)}


def _how(death: Death) -> str:
    if death.exitcode == -9:
        return "was killed by SIGKILL: by somebody, or by the kernel for want of memory"
    if death.exitcode < 0:
        return f"was ended by signal {-death.exitcode}"
    return f"ended with exit code {death.exitcode}"


def _count(name: str, value: Any, least: int, most: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int | np.integer):
        raise TypeError(f"{name}: expected an int, found {type(value).__name__}")
    if not least <= value <= most:
        raise ValueError(f"{name}: expected {least} to {most}, found {value}")
    return int(value)


def _zeros(params: Any, state: Any) -> Any:
    """Trees of zeros like the parameters, one for each buffer of state; None for none."""
    if state is None:
        return None
    layout = Layout(flatten(params)[0])
    zeros = Decoder(layout.schema, layout.nbytes).value(bytearray(layout.nbytes))
    return dict.fromkeys(state, zeros)


def _copy_value(snapshot: Snapshot) -> Any:
    hold = snapshot._held()
    return snapshot._attached.decoder(hold).value(bytearray(memoryview(hold)))


def _pickle(job: Job, model: Any) -> bytes:
    """The job for the workers. What plain pickle cannot send, such as a lambda or a notebook's function, goes through
    cloudpickle if it is installed."""
    interactive = not hasattr(sys.modules["__main__"], "__file__")
    reason: object = "it is defined in an interactive session"
    if not (interactive and getattr(model, "__module__", getattr(type(model), "__module__", "")) == "__main__"):
        try:
            return pickle.dumps(job, protocol=5)
        except (pickle.PicklingError, AttributeError, TypeError) as error:
            reason = error
    try:
        import cloudpickle
    except ImportError:
        raise TypeError(
            f"model: it cannot be sent to worker processes ({reason}); define it at the top of a module, or install "
            "cloudpickle: pip install 'untorn[train]'"
        ) from None
    try:
        sent: bytes = cloudpickle.dumps(job, protocol=5)
    except Exception as error:
        raise TypeError(f"model: it cannot be sent to worker processes ({error})") from None
    return sent
