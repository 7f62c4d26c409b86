"""The queues that benchmarks/queues.py and benchmarks/queues_between.py compare.

multiprocessing's queues, faster-fifo, ZeroMQ and iceoryx2 carry the pickle of a value, as their users do. A peer that
is not installed is left out.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib.util
import itertools
import multiprocessing
import os
import pickle
import queue
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import numpy as np

import untorn

__all__ = ["ITEMS", "Iceoryx2", "Peer", "Ray", "Zmq", "begin_ray", "peers", "removed"]

SMALL = {"observation": np.zeros(4, np.float32), "reward": 1.0, "done": False, "step": 7}
ITEMS: dict[str, Any] = {"100 B": b"x" * 100, "small tree": SMALL, "10 KB": np.ones(1250), "1 MB": np.ones(125_000)}


class Peer(Protocol):
    """What is timed."""

    def put(self, value: Any) -> object: ...

    def get(self) -> Any: ...


class _FasterFifo:
    def __init__(self) -> None:
        from faster_fifo import Queue

        self._queue = Queue(max_size_bytes=64 << 20)
        self.put = self._queue.put

    def get(self) -> Any:
        while True:
            with contextlib.suppress(queue.Empty):
                return self._queue.get(timeout=10)


class Zmq:
    """PUSH and PULL over ipc. The side that is alone binds, each of the others connects."""

    def __init__(self) -> None:
        self._address = f"ipc://@untorn-benchmark-{os.getpid()}-{next(_numbers)}"
        self._sockets: dict[str, Any] = {}
        self._one_producer = True

    def _socket(self, side: str) -> Any:
        import zmq

        if side not in self._sockets:
            self._sockets[side] = made = zmq.Context().socket(getattr(zmq, side))
            binds = (side == "PUSH") == self._one_producer
            made.bind(self._address) if binds else made.connect(self._address)
        return self._sockets[side]

    def join(self, side: str, producers: int, consumers: int) -> None:
        """Open this process's side. A producer of several consumers waits until all are there, and has no bound: it
        hands them the items in turns, but for those that are full, and each waits for its share."""
        from zmq.utils.monitor import recv_monitor_message

        self._one_producer = producers == 1
        if side == "PUSH" and consumers > 1:
            import zmq

            self._sockets[side] = push = zmq.Context().socket(zmq.PUSH)
            push.set_hwm(0)
            monitor = push.get_monitor_socket(zmq.EVENT_HANDSHAKE_SUCCEEDED)
            push.bind(self._address)
            for _ in range(consumers):
                recv_monitor_message(monitor)
            push.disable_monitor()
        self._socket(side)

    def flush(self) -> None:
        """Send what was put: a process that ends takes along what it did not send."""
        push = self._sockets.pop("PUSH")
        push.close()
        push.context.term()

    def put(self, value: Any) -> None:
        self._socket("PUSH").send(pickle.dumps(value, protocol=5))

    def get(self) -> Any:
        return pickle.loads(self._socket("PULL").recv())


class Iceoryx2:
    """A publish-subscribe service with slices of bytes, whose publisher waits for room. Every subscriber gets every
    item, so it is no queue for several consumers; receiving does not wait, so a consumer looks again and again."""

    MAX_NBYTES = 2 << 20

    def __init__(self) -> None:
        self._name = f"untorn-benchmark-{os.getpid()}-{next(_numbers)}"
        self._folder = tempfile.TemporaryDirectory(prefix="untorn-benchmark-")
        self._ends: dict[str, Any] = {}

    def _service(self) -> tuple[Any, Any]:
        import iceoryx2 as iox2

        iox2.set_log_level(iox2.LogLevel.Error)
        config = iox2.config.default()
        config.global_cfg.root_path = iox2.Path.new(self._folder.name)
        config.global_cfg.prefix = iox2.FileName.new(self._name)
        node = iox2.NodeBuilder.new().config(config).create(iox2.ServiceType.Ipc)
        service = (
            node.service_builder(iox2.ServiceName.new(self._name))
            .publish_subscribe(iox2.Slice[ctypes.c_uint8])
            .subscriber_max_buffer_size(64)
            .max_publishers(8)
            .max_subscribers(8)
            .enable_safe_overflow(False)
            .open_or_create()
        )
        return service, node

    def _end(self, side: str) -> Any:
        if side not in self._ends:
            import iceoryx2 as iox2

            service, node = self._service()
            if side == "PUSH":
                port = (
                    service.publisher_builder()
                    .initial_max_slice_len(self.MAX_NBYTES)
                    .backpressure_strategy(iox2.BackpressureStrategy.RetryUntilDelivered)
                    .create()
                )
            else:
                port = service.subscriber_builder().create()
            self._ends[side] = port, service, node
        return self._ends[side][0]

    def join(self, side: str, producers: int, consumers: int) -> None:
        """Open this process's side: a subscriber gets what is published from then on."""
        self._end(side)

    def put(self, value: Any) -> None:
        data = pickle.dumps(value, protocol=5)
        loan = self._end("PUSH").loan_slice_uninit(len(data))
        ctypes.memmove(loan.payload_ptr, data, len(data))
        loan.assume_init().send()

    def get(self) -> Any:
        subscriber = self._end("PULL")
        while (sample := subscriber.receive()) is None:
            os.sched_yield()
        return pickle.loads(sample.payload().as_memory_view())

    def remove(self) -> None:
        """Remove the files that it leaves."""
        self._ends.clear()
        self._folder.cleanup()
        for file in Path("/dev/shm").glob(f"{self._name}*"):
            file.unlink()


class Ray:
    """Ray's queue: an actor, so each put and each get is a call of another process."""

    def __init__(self) -> None:
        from ray.util.queue import Queue

        begin_ray()
        self.queue = Queue()
        self.put, self.get = self.queue.put, self.queue.get

    def remove(self) -> None:
        """End the actor, and Ray."""
        import ray

        self.queue.shutdown(force=True)
        ray.shutdown()


def begin_ray() -> None:
    """Start Ray in this machine, unless it runs."""
    import ray

    if not ray.is_initialized():
        ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")


_numbers = itertools.count()


def peers() -> dict[str, Callable[[], Peer]]:
    """Return how to make each queue that is installed here."""
    made: dict[str, Callable[[], Peer]] = {
        "untorn": lambda: untorn.queue(64),
        "multiprocessing.Queue": multiprocessing.Queue,
        "SimpleQueue": multiprocessing.SimpleQueue,
    }
    if importlib.util.find_spec("faster_fifo"):
        made["faster-fifo"] = _FasterFifo
    if importlib.util.find_spec("zmq"):
        made["ZeroMQ"] = Zmq
    if importlib.util.find_spec("iceoryx2"):
        made["iceoryx2"] = Iceoryx2
    return made


def removed(each: Peer) -> None:
    """Remove what a peer leaves in the file system, or end its processes."""
    if isinstance(each, Iceoryx2 | Ray):
        each.remove()
