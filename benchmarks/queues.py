"""Measure queues between processes: a round trip, large items, and many to one and one to many.

::

    round trip      one process puts an item and gets it: what the library itself costs, without waking anybody
    40 MB           put against a memcpy of the same bytes; get against that of 1 MB
    N to M          producers and consumers in processes of their own: seconds per item, with the consumers' last item

The peers do the same in turns. multiprocessing's queues, faster-fifo, ZeroMQ and iceoryx2 carry the pickle of a value,
as their users do; torch.multiprocessing sends tensors as handles of shared memory. Of Ray's queue, which is an actor
for the tasks of its cluster, and of iceoryx2, whose receivers look again and again, only the round trip is measured. A
peer that is not installed is left out.
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
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np

import untorn
from benchmarks.measure import Row, interleaved, row, seconds

NAME = "queues"
QUESTION = "What does an item cost that goes through a queue between processes, and does that depend on its size?"

TURNS = 30
SMALL = {"observation": np.zeros(4, np.float32), "reward": 1.0, "done": False, "step": 7}
ITEMS: dict[str, Any] = {"100 B": b"x" * 100, "small tree": SMALL, "10 KB": np.ones(1250), "1 MB": np.ones(125_000)}
NUMBERS = {"100 B": 200, "small tree": 200, "10 KB": 100, "1 MB": 10}
SHAPES = {"1 to 1": (1, 1), "2 to 1": (2, 1), "4 to 1": (4, 1), "1 to 4": (1, 4)}
MANY = 2000


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


class _Zmq:
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
        """Open this process's side. A producer of several consumers waits until all are there: it hands them the items
        in turns, and each waits for its share."""
        from zmq.utils.monitor import recv_monitor_message

        self._one_producer = producers == 1
        if side == "PUSH" and consumers > 1:
            import zmq

            self._sockets[side] = push = zmq.Context().socket(zmq.PUSH)
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


class _Iceoryx2:
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


class _Ray:
    """Ray's queue: an actor, so each put and each get is a call of another process."""

    def __init__(self) -> None:
        import ray
        from ray.util.queue import Queue

        if not ray.is_initialized():
            ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
        self._queue = Queue()
        self.put, self.get = self._queue.put, self._queue.get

    def remove(self) -> None:
        """End the actor, and Ray."""
        import ray

        self._queue.shutdown(force=True)
        ray.shutdown()


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
        made["ZeroMQ"] = _Zmq
    if importlib.util.find_spec("iceoryx2"):
        made["iceoryx2"] = _Iceoryx2
    return made


def _removed(each: Peer) -> None:
    if isinstance(each, _Iceoryx2 | _Ray):
        each.remove()


# -- one process


def _round_trip(each: Peer, item: Any, number: int) -> float:
    def once() -> None:
        each.put(item)
        each.get()

    return seconds(once, number)


def round_trips() -> Iterator[Row]:
    """Time a put and a get of each item through each queue."""
    for size, item in ITEMS.items():
        number = NUMBERS[size]
        contestants = {}
        made: dict[str, Peer] = {}
        makers = peers() | ({"Ray": _Ray} if importlib.util.find_spec("ray") else {})
        for name, make in makers.items():
            if size == "1 MB" and name in ("SimpleQueue", "ZeroMQ"):
                continue  # a pipe is full before anybody reads it
            made[name] = each = make()
            if isinstance(each, _Zmq | _Iceoryx2):
                each.join("PULL", 1, 1)  # before anything is put
            contestants[name] = partial(_round_trip, each, item, 5 if name == "Ray" else number)
        if size == "10 KB":
            contestants.update(_tensors(number))
        times = interleaved(contestants, turns=TURNS, warm_up=2)
        for each in made.values():
            _removed(each)
        carries = [name for name in times if name not in ("untorn", "torch.multiprocessing")]
        best = min(carries, key=lambda name: sum(times[name]))
        aims = {"100 B": ("faster-fifo", 1.0), "small tree": (best, 0.5)}
        to, most = aims.get(size, (best, None))
        to = to if to in times else best
        yield row(f"untorn, {size}", times["untorn"], to=times[to], ratio_to=to, ratio_at_most=most)
        for name in times:
            if name != "untorn":
                yield row(f"{name}, {size}", times[name], to=times["untorn"], ratio_to="untorn")


def _tensors(number: int) -> dict[str, Callable[[], float]]:
    if not importlib.util.find_spec("torch"):
        return {}
    import torch
    import torch.multiprocessing

    torch.set_num_threads(1)
    each, tensor = torch.multiprocessing.SimpleQueue(), torch.ones(1250, dtype=torch.float64)
    return {"torch.multiprocessing": partial(_round_trip, each, tensor, number)}


def large() -> Iterator[Row]:
    """Time put and get of 40 MB."""
    item, target = np.ones(5_000_000), np.empty(5_000_000)
    small = np.ones(125_000)
    with untorn.queue(4) as each:
        got: dict[str, float] = {}

        def put_and_get(name: str, value: Any) -> float:
            took = seconds(lambda: each.put(value))
            np.copyto(target, item)  # so that the caches are as cold for each size
            got[name] = seconds(each.get)
            return took

        def get_of(name: str, value: Any) -> float:
            put_and_get(name, value)
            return got[name]

        times = interleaved(
            {
                "put": lambda: put_and_get("40 MB", item),
                "memcpy": lambda: seconds(lambda: np.copyto(target, item)),
                "get": lambda: get_of("40 MB", item),
                "get 1 MB": lambda: get_of("1 MB", small),
            },
            turns=TURNS,
            warm_up=3,
        )
    yield row("put, 40 MB", times["put"], unit="ms", to=times["memcpy"], ratio_to="memcpy", ratio_at_most=1.1)
    yield row("get, 40 MB", times["get"], to=times["get 1 MB"], ratio_to="get, 1 MB", ratio_at_most=1.5)


# -- several processes


def _produce(each: Peer, value: Any, shape: tuple[int, int], ready: Any, go: Any) -> None:
    if isinstance(each, _Zmq):
        each.join("PUSH", *shape)
    ready.release()
    go.wait()
    for _ in range(MANY // shape[0]):
        each.put(value)
    if isinstance(each, type(multiprocessing.Queue())):
        each.close()
        each.join_thread()
    elif isinstance(each, _Zmq):
        each.flush()


def _consume(each: Peer, shape: tuple[int, int], ready: Any, go: Any, done: Any) -> None:
    if isinstance(each, _Zmq):
        each.join("PULL", *shape)
    ready.release()
    go.wait()
    for _ in range(MANY // shape[1]):
        each.get()
    done.release()


def throughput(make: Callable[[], Peer], value: Any, producers: int, consumers: int) -> float:
    """Return the seconds per item."""
    each, shape = make(), (producers, consumers)
    ready, done = multiprocessing.Semaphore(0), multiprocessing.Semaphore(0)
    go = multiprocessing.Event()
    processes = [
        multiprocessing.Process(target=_produce, args=(each, value, shape, ready, go), daemon=True)
        for _ in range(producers)
    ] + [
        multiprocessing.Process(target=_consume, args=(each, shape, ready, go, done), daemon=True)
        for _ in range(consumers)
    ]
    for process in processes:
        process.start()
    for _ in processes:
        ready.acquire()
    start = time.perf_counter()
    go.set()
    for _ in range(consumers):
        done.acquire()
    took = time.perf_counter() - start
    for process in processes:
        process.join()
    _removed(each)
    return took / MANY


def between_processes() -> Iterator[Row]:
    """Time producers and consumers in processes of their own."""
    for size in ("small tree", "10 KB"):
        kept: list[float] = []
        for shape, (producers, consumers) in SHAPES.items():
            names = peers()
            names.pop("iceoryx2", None)
            times = interleaved(
                {name: partial(throughput, make, ITEMS[size], producers, consumers) for name, make in names.items()},
                turns=7,
                warm_up=1,
            )
            kept = kept or times["untorn"]
            best = min((name for name in times if name != "untorn"), key=lambda name: sum(times[name]))
            yield row(f"untorn, {size}, {shape}", times["untorn"], to=times[best], ratio_to=best)
            if shape == "2 to 1":
                aim = 1.1  # never slower than one, within the noise of a turn
                yield row(f"untorn, {size}, {shape}", times["untorn"], to=kept, ratio_to="1 to 1", ratio_at_most=aim)


def run() -> list[Row]:
    return [*round_trips(), *large(), *between_processes()]
