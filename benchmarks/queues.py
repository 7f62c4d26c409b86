"""Measure queues between processes: a round trip, large items, and many to one and one to many.

::

    round trip      one process puts an item and gets it: what the library itself costs, without waking anybody
    40 MB           put against a memcpy of the same bytes; get against that of 1 MB
    N to M          producers and consumers in processes of their own: seconds per item, with the consumers' last item

The peers do the same in turns. multiprocessing's queues, faster-fifo and ZeroMQ carry the pickle of a value, as their
users do; torch.multiprocessing sends tensors as handles of shared memory. A peer that is not installed is left out.
"""

from __future__ import annotations

import contextlib
import importlib.util
import multiprocessing
import os
import pickle
import queue
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
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
    """PUSH and PULL over ipc. Each process connects when it first uses its side."""

    def __init__(self) -> None:
        self._address = f"ipc://{tempfile.mkdtemp()}/queue"
        self._sockets: dict[tuple[int, str], Any] = {}

    def listen(self) -> None:
        """Let this process be the one that gets."""
        self._socket("PULL")

    def _socket(self, side: str) -> Any:
        import zmq

        key = os.getpid(), side
        if key not in self._sockets:
            self._sockets[key] = made = zmq.Context().socket(getattr(zmq, side))
            made.bind(self._address) if side == "PULL" else made.connect(self._address)
        return self._sockets[key]

    def put(self, value: Any) -> None:
        self._socket("PUSH").send(pickle.dumps(value, protocol=5))

    def get(self) -> Any:
        return pickle.loads(self._socket("PULL").recv())


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
    return made


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
        for name, make in peers().items():
            if size == "1 MB" and name in ("SimpleQueue", "ZeroMQ"):
                continue  # a pipe is full before anybody reads it
            each = make()
            if isinstance(each, _Zmq):
                each.listen()
            contestants[name] = partial(_round_trip, each, item, number)
        if size == "10 KB":
            contestants.update(_tensors(number))
        times = interleaved(contestants, turns=TURNS, warm_up=2)
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


def _produce(each: Peer, value: Any, count: int, ready: Any, go: Any) -> None:
    ready.release()
    go.wait()
    for _ in range(count):
        each.put(value)
    if hasattr(each, "close") and isinstance(each, type(multiprocessing.Queue())):
        each.close()
        each.join_thread()


def _consume(each: Peer, count: int, ready: Any, go: Any, done: Any) -> None:
    ready.release()
    go.wait()
    for _ in range(count):
        each.get()
    done.release()


def throughput(make: Callable[[], Peer], value: Any, producers: int, consumers: int) -> float:
    """Return the seconds per item."""
    each = make()
    ready, done, go = multiprocessing.Semaphore(0), multiprocessing.Semaphore(0), multiprocessing.Event()
    processes = [
        multiprocessing.Process(target=_produce, args=(each, value, MANY // producers, ready, go), daemon=True)
        for _ in range(producers)
    ] + [
        multiprocessing.Process(target=_consume, args=(each, MANY // consumers, ready, go, done), daemon=True)
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
    return took / MANY


def between_processes() -> Iterator[Row]:
    """Time producers and consumers in processes of their own."""
    for size in ("small tree", "10 KB"):
        kept: list[float] = []
        for shape, (producers, consumers) in SHAPES.items():
            names = {name: make for name, make in peers().items() if name != "ZeroMQ"}  # it waits for a server
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
