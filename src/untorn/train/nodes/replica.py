"""What a node does: it keeps a replica of the weights, and its workers compute its shards of each step.

::

    driver ── messages ──> Replica.serve ──> setup, data, prepare: what a joining node needs, while the others train
                                         ──> session: exchange sums with these peers, from this step on    (run.py)
                                         ──> pause: stop at a step, and tell which

The driver decides who takes part; a node only does as it is told, and reports what it sees. Every message of the driver
is an attribute "do" with the name of a method below.
"""

from __future__ import annotations

import dataclasses
import hashlib
import logging
import pickle
import socket
import time
from typing import Any

import numpy as np

from untorn import _core
from untorn.board import BoardSpec
from untorn.engines.nodes.node import DriverLostError, Node
from untorn.engines.nodes.wire import Message
from untorn.engines.worker_logs import set_levels
from untorn.share import Publisher
from untorn.share.lowlevel import publish_raw, raw_version
from untorn.train.data import SharedData
from untorn.train.nodes.copies import Position, fetch_into, send_copy
from untorn.train.nodes.run import NodeRun
from untorn.train.optim.base import Optimizer
from untorn.train.run.cpus import available_cpus
from untorn.train.run.gradient_worker import GradientJob
from untorn.train.run.job import PickledModel
from untorn.train.run.plan import Plan
from untorn.train.run.pool import WorkerPool
from untorn.train.run.tasks import GradientTasks
from untorn.train.run.weights import Weights
from untorn.train.settings import Settings

__all__ = ["Replica", "serve"]

_log = logging.getLogger(__name__)
_STATUS_S = 0.5
_IDLE_S = 0.1
#: the number of the step whose random numbers a probe uses; no training reaches it
_STEP_OF_PROBE = 2**40


def serve(node: Node) -> None:
    """Do what the driver says, until it ends. The main function of a node process."""
    replica = Replica(node)
    try:
        replica.serve()
    finally:
        replica.close()


class Replica:
    """The replica of one node.

    Args:
        node: this process as a node.
    """

    def __init__(self, node: Node) -> None:
        self._node = node
        self._workers = node.workers
        self._pool: WorkerPool | None = None
        self._optimizer: Optimizer | None = None
        self._weights: Weights | None = None
        self._token = b""
        self._data: dict[int, tuple[Publisher, SharedData]] = {}
        self._run: NodeRun | None = None
        #: the version at the last pause, which peers may fetch
        self._held: tuple[memoryview, Position] | None = None
        self._said_at = 0.0
        #: the traffic of the sessions that have ended
        self._traffic: dict[str, Any] = {}
        node.serve_fetch = self._serve_fetch
        node.wake = self._wake

    def serve(self) -> None:
        """Handle one message after another; between them, let the workers work."""
        while True:
            if self._run is not None:
                try:
                    self._run.advance()
                except DriverLostError:
                    raise
                except Exception as error:
                    self._fail(error)
            self._say_how_it_goes()
            found = self._node.next(0.0 if self._run is not None else _IDLE_S)
            if found is not None:
                self._handle(*found)

    def close(self) -> None:
        """End the workers and close everything."""
        self._end_run()
        if self._pool is not None:
            self._pool.close()
        self._release()
        for publisher, _ in self._data.values():
            publisher.close()
        self._data.clear()

    def _release(self) -> None:
        self._held = None
        if self._pool is not None:
            self._pool.steppers.close()
        if self._weights is not None:
            self._weights.close()
            self._weights = None

    def _wake(self) -> None:
        run = self._run
        if run is not None:
            run.wake()

    # -- messages

    def _handle(self, message: Message, blobs: list[bytearray]) -> None:
        number = message.get("id")
        try:
            if self._node.problem is not None and message["do"] == "setup":
                raise self._node.problem
            answer = getattr(self, f"_do_{message['do']}")(message, blobs)
        except DriverLostError:
            raise
        except Exception as error:
            if number is None:
                self._fail(error)
            else:
                self._node.post({"re": number, "error": _sendable(error)})
            return
        if number is not None:
            more, back = answer if answer is not None else ({}, ())
            self._node.post({"re": number} | more, back)

    def _fail(self, error: Exception) -> None:
        self._end_run()
        self._node.post({"failed": _sendable(error)})

    def _do_setup(self, message: Message, blobs: list[bytearray]) -> None:
        """Take the model, the optimizer and a version of the weights."""
        self._end_run()
        model, optimizer, raw, *target = blobs
        if self._pool is not None:
            self._pool.close()
        set_levels(message["levels"])
        given: Settings = message["settings"]
        places = available_cpus() // given.threads_per_worker // self._node.neighbours
        settings = dataclasses.replace(given, engine="processes", workers=self._workers, places=places)
        self._optimizer = pickle.loads(optimizer) if optimizer else None
        if optimizer:
            pickle.loads(model)  # imports the classes of the parameters' tree, which the optimizer's steps need
        # the link to the peers takes a processor, too
        self._pool = WorkerPool(settings, PickledModel(bytes(model)), server_works=True)
        self._take_weights(message, raw, target)

    def _do_weights(self, message: Message, blobs: list[bytearray]) -> None:
        """Take other weights."""
        self._end_run()
        raw, *target = blobs
        self._take_weights(message, raw, target)

    def _take_weights(self, message: Message, raw: bytearray, target: list[bytearray]) -> None:
        self._release()
        self._weights = Weights.received(message["form"], raw, message["version"], target[0] if target else None)
        self._token = message["token"]

    def _do_position(self, message: Message, blobs: list[bytearray]) -> tuple[Message, tuple[()]]:
        """Answer with the position."""
        return {"token": self._token, "version": 0 if self._weights is None else self._weights.version}, ()

    def _do_data(self, message: Message, blobs: list[bytearray]) -> None:
        """Take data, for the workers of this node to read."""
        pool = self._pool
        assert pool is not None
        publisher = publish_raw(blobs[0], 1, sizes=(pool.count.max_readers, 64, 1))
        data = SharedData(publisher.subscriber(), message["read"])
        self._data[message["key"]] = publisher, data
        data.open()  # a file that this machine does not have is an error now, with its name

    def _do_forget(self, message: Message, blobs: list[bytearray]) -> None:
        """Release data."""
        publisher, _ = self._data.pop(message["key"], (None, None))
        if publisher is not None:
            publisher.close()

    def _do_prepare(self, message: Message, blobs: list[bytearray]) -> tuple[Message, tuple[()]]:
        """Start the workers, and have them compute the gradient of a few examples with the weights of the setup. Answer
        with its digest, which is the same on every node whose processors give the same bits."""
        plan: Plan = message["plan"]
        pool, weights = self._pool, self._weights
        assert pool is not None
        assert weights is not None
        examples: int = message["examples"]
        spec = BoardSpec(
            shards=1,
            max_workers=pool.count.max,
            workers=pool.count.wanted,
            is_async=True,
            steps=1,
            examples=examples,
            batch_size=examples,
            gradient_nbytes=weights.layout.nbytes,
            first_version=weights.target.version,
        )
        job = GradientJob(
            weights=weights.subscriber().address,
            target=weights.target.subscriber().address,
            data=self._data[message["key"]][1],
            layout=weights.layout,
            seed=plan.settings.seed,
            first_step=_STEP_OF_PROBE,
            min_examples=plan.min_examples,
            turns=plan.turns,
        )
        with pool.make_board(spec, advice="use fewer workers") as board:
            board.order[:] = np.arange(examples)
            tasks = GradientTasks(board, plan.min_examples)
            with pool.run(job, board, at_rest=lambda: True):
                board.inflight_open(0, 0)
                while (found := board.in_flight(0)).state != _core.TASK_DONE:
                    pool.advance(board, tasks, 1, self._check_driver)
                digest = hashlib.sha256()
                for view in weights.layout.gradient_views(board, found.buffer_at):
                    digest.update(np.ascontiguousarray(view).tobytes())
        return {"digest": digest.hexdigest()}, ()

    def _check_driver(self) -> None:
        """Called while the workers work: messages wait until they are done. Raises DriverLostError."""
        self._node.check()
        self._say_how_it_goes()

    def _do_pause(self, message: Message, blobs: list[bytearray]) -> tuple[Message, tuple[bytes, ...]]:
        """Stop at a step. Answer with the position, and with the rows of the step log that the driver lacks."""
        self._node.forget_links(message["session"])
        answer: Message = {"step": None, "token": self._token}
        rows = b""
        if self._run is not None:
            self._run.pause()
            answer |= {"step": self._run.step, "names": self._run.metric_names}
            rows = self._run.rows(message["rows_from"])
        self._end_run()
        assert self._weights is not None
        self._hold()
        return answer | {"version": self._weights.version}, (rows,)

    def _hold(self) -> None:
        assert self._weights is not None
        self._held = None
        newest = self._weights.snapshot()
        self._held = raw_version(newest), Position(self._token, newest.version)

    def _do_session(self, message: Message, blobs: list[bytearray]) -> tuple[Message, tuple[()]]:
        """Take part, from the given step on."""
        self._end_run()
        plan: Plan = message["plan"]
        weights, pool = self._weights, self._pool
        assert weights is not None
        assert pool is not None
        wanted = Position(message["token"], message["version"])
        if (self._token, weights.version) != wanted and not self._fetch(message, wanted):
            return {"begun": False}, ()
        assert self._weights is not None
        addresses = message["addresses"]
        links = self._node.links(message["session"], message["index"], addresses)
        if links is None:
            return {"begun": False}, ()
        channel, data = self._data[message["key"]]
        self._run = NodeRun(
            plan=plan,
            optimizer=self._optimizer,
            pool=pool,
            weights=self._weights,
            data=data,
            channel=channel,
            session=message["session"],
            index=message["index"],
            cuts=message["cuts"],
            links=links,
            step=message["step"],
            post=self._node.post,
            check=self._node.check,
        )
        self._run.begin_epoch(message["epoch"], *blobs)
        self._said_at = 0.0  # the driver knows the workers before it hears of a step
        self._say_how_it_goes()
        return {"begun": True}, ()

    def _fetch(self, message: Message, wanted: Position) -> bool:
        weights = self._weights
        assert weights is not None
        if self._token != wanted.token or weights.version > wanted.version:
            raise RuntimeError("the driver has sent no weights of this training")
        sock = self._node.connect(tuple(message["fetch"]), {"kind": "fetch", "version": wanted.version})
        return sock is not None and fetch_into(weights, sock, wanted, lambda: self._node.has_messages)

    def _do_epoch(self, message: Message, blobs: list[bytearray]) -> None:
        """Begin an epoch on the board of the session."""
        if self._run is not None:
            self._run.begin_epoch(message["epoch"], *blobs)

    def _do_copy(self, message: Message, blobs: list[bytearray]) -> tuple[Message, tuple[Any, ...]]:
        """Answer with the newest version."""
        assert self._weights is not None
        if self._run is not None:
            self._run.report(now=True)
        snapshot = self._weights.snapshot()
        return {"version": snapshot.version, "token": self._token}, (raw_version(snapshot),)

    def _do_evaluate(self, message: Message, blobs: list[bytearray]) -> tuple[Message, tuple[Any, ...]]:
        """Evaluate chunks. Answer with what was measured and computed; with nothing if these are not the weights."""
        weights, pool, evaluation = self._weights, self._pool, message["evaluation"]
        names: list[str] = []
        chunks: list[int] = []
        back: list[bytes] = []
        if weights is not None and pool is not None and (self._token, weights.version) == message["position"]:
            data = self._data[message["key"]][1]
            for chunk, answer in pool.answers(evaluation, weights, data, message["chunks"], self._check_driver):
                names = answer.names
                chunks.append(chunk)
                back += [answer.measured.tobytes(), bytes(answer.payload)]
        return {"chunks": chunks, "names": names}, tuple(back)

    def _do_workers(self, message: Message, blobs: list[bytearray]) -> None:
        """Change the number of workers."""
        self._workers = message["count"]
        if self._pool is not None:
            self._pool.resize(self._workers)

    def _do_end(self, message: Message, blobs: list[bytearray]) -> None:
        """End the job; the workers stay."""
        self._end_run()

    def _end_run(self) -> None:
        run, self._run = self._run, None
        if run is not None:
            self._traffic = _added(self._traffic, run.traffic())
            run.close()

    # -- what others see

    def _say_how_it_goes(self) -> None:
        now = time.monotonic()
        if now - self._said_at < _STATUS_S or self._pool is None:
            return
        self._said_at = now
        status: Message = {"at": now, "workers": self._pool.members(), "restarts": self._pool.restarts}
        if self._run is not None:
            status |= self._run.status() | _added(self._traffic, self._run.traffic())
        else:
            status |= self._traffic
        self._node.post({"status": status})

    def _serve_fetch(self, sock: socket.socket) -> None:
        held = self._held
        if held is None:
            sock.close()
        else:
            send_copy(sock, *held)


def _added(traffic: dict[str, Any], more: dict[str, Any]) -> dict[str, Any]:
    return traffic | {name: traffic.get(name, 0) + value for name, value in more.items()}


def _sendable(error: Exception) -> bytes:
    """Return the pickle of an error, or of a RuntimeError that describes it."""
    try:
        content = pickle.dumps(error)
        pickle.loads(content)
    except Exception:
        content = pickle.dumps(RuntimeError(f"{type(error).__name__}: {error}"))
    return content
