"""Measure queues between processes: seconds per item with one or several producers and consumers.

Each is a process of its own. The first items of a process are not timed: the first put of a forked child costs
milliseconds of page faults, many times what a queue does, and multiprocessing.Queue starts a thread. Then all begin at
once, which takes longer the more they are: so the time begins with the first item that a consumer gets, and ends with
the last.

Ray's queue is an actor, so each put and each get is a call of another process, whatever its size. Its producers and
consumers are actors, and it carries fewer items, of one size. Ray takes most of a minute to start these where other
programs run, so it starts once, at the end. iceoryx2 gives every item to every subscriber, so it is no queue for
several consumers, and its subscribers look again and again.

A queue that does not carry its items in time is left out of the next turns, and its row says so.
"""

from __future__ import annotations

import importlib.util
import math
import multiprocessing
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection
from typing import Any

from benchmarks.measure import Row, interleaved, row
from benchmarks.peers.queues import ITEMS, Iceoryx2, Peer, Ray, Zmq, peers, removed

NAME = "queues-between"
QUESTION = "What does an item cost that goes through a queue between processes, from many to one, and from one to many?"

SHAPES = {"1 to 1": (1, 1), "2 to 1": (2, 1), "4 to 1": (4, 1), "1 to 4": (1, 4)}
SIZES = ("small tree", "10 KB")
MANY, MANY_OF_RAY = 8000, 40
MANY_OF_ONE_KIND = 40_000  # where untorn is compared with itself
FIRST = 8  # items of each producer for each consumer that are not timed
TURNS = 7
PATIENCE_S, PATIENCE_OF_RAY_S = 30, 120  # for all items of one turn; Ray's first turn starts it


def _join(each: Peer, side: str, shape: tuple[int, int]) -> None:
    if isinstance(each, Zmq | Iceoryx2):
        each.join(side, *shape)


@dataclass(frozen=True)
class _Signals:
    """What the processes of one turn wait for, and what they tell."""

    ready: Any
    joined: Any
    go: Any
    done: Any
    over: Any
    #: by consumer: when it had its first item, and when it had all
    times: Any

    @classmethod
    def make(cls) -> _Signals:
        ready, done = multiprocessing.Semaphore(0), multiprocessing.Semaphore(0)
        joined, go, over = (multiprocessing.Event() for _ in range(3))
        return cls(ready, joined, go, done, over, multiprocessing.SimpleQueue())


def _produce(each: Peer, value: Any, number: int, shape: tuple[int, int], signals: _Signals) -> None:
    _, consumers = shape
    if isinstance(each, Iceoryx2):  # a subscriber gets what is published after it has come
        signals.joined.wait()
    _join(each, "PUSH", shape)
    for _ in range(FIRST * consumers):
        each.put(value)
    signals.ready.release()
    signals.go.wait()
    for _ in range(number):
        each.put(value)
    if isinstance(each, type(multiprocessing.Queue())):
        each.close()
        each.join_thread()
    elif isinstance(each, Zmq):
        signals.over.wait()  # what a consumer with a full buffer did not read yet would be lost
        each.flush()


def _consume(each: Peer, number: int, shape: tuple[int, int], signals: _Signals) -> None:
    producers, _ = shape
    _join(each, "PULL", shape)
    signals.joined.set()
    for _ in range(FIRST * producers):
        each.get()
    signals.ready.release()
    signals.go.wait()
    each.get()
    first = time.perf_counter()  # the clock is the machine's
    for _ in range(number - 1):
        each.get()
    signals.times.put((first, time.perf_counter()))
    signals.done.release()


def _acquire(semaphore: Any, number: int, processes: Sequence[multiprocessing.Process]) -> None:
    """Wait for this number of the processes. Raises RuntimeError if one fails, and TimeoutError."""
    deadline = time.monotonic() + PATIENCE_S
    while number:
        failed = any(process.exitcode for process in processes)
        if semaphore.acquire(timeout=1):
            number -= 1
        elif failed or time.monotonic() > deadline:
            for process in processes:
                process.kill()
            if failed:
                raise RuntimeError("a process failed; its traceback is above")
            raise TimeoutError


def throughput(make: Callable[[], Peer], value: Any, shape: tuple[int, int], number: int = MANY) -> float:
    """Return the seconds per item, of this number of items. Raises TimeoutError."""
    each, (producers, consumers) = make(), shape
    signals = _Signals.make()
    processes = [
        multiprocessing.Process(target=_produce, args=(each, value, number // producers, shape, signals), daemon=True)
        for _ in range(producers)
    ] + [
        multiprocessing.Process(target=_consume, args=(each, number // consumers, shape, signals), daemon=True)
        for _ in range(consumers)
    ]
    try:
        for process in processes:
            process.start()
        _acquire(signals.ready, len(processes), processes)
        signals.go.set()
        _acquire(signals.done, consumers, processes)
        first, last = zip(*[signals.times.get() for _ in range(consumers)], strict=True)
        signals.over.set()
        for process in processes:
            process.join()
    finally:
        removed(each)
    return (max(last) - min(first)) / (number - consumers)


def _serve_ray(value: Any, pipe: Connection) -> None:
    """Carry items through Ray's queue, for each number of producers and consumers that comes through the pipe."""
    import ray

    each = Ray()
    queue = each.queue

    @ray.remote(num_cpus=0)
    class Worker:
        def put(self, number: int) -> None:
            for _ in range(number):
                queue.put(value)

        def get(self, number: int) -> None:
            for _ in range(number):
                queue.get()

    workers = [Worker.remote() for _ in range(max(map(sum, SHAPES.values())))]
    while (shape := pipe.recv()) is not None:
        producers, consumers = shape
        putters, getters = workers[:producers], workers[producers : producers + consumers]
        ray.get([worker.put.remote(0) for worker in workers])  # all have started
        start = time.perf_counter()
        putting = [worker.put.remote(MANY_OF_RAY // producers) for worker in putters]
        ray.get([worker.get.remote(MANY_OF_RAY // consumers) for worker in getters])
        took = time.perf_counter() - start
        ray.get(putting)
        pipe.send(took / MANY_OF_RAY)
    each.remove()


class _RayProcess:
    """Ray in a process of its own: forks of a process that has Ray's threads may hang."""

    def __init__(self, value: Any) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, other = context.Pipe()
        self._process = context.Process(target=_serve_ray, args=(value, other))
        self._process.start()
        other.close()

    def throughput(self, shape: tuple[int, int]) -> float:
        """Return the seconds per item. Raises TimeoutError."""
        if not self._process.is_alive():
            raise TimeoutError
        self._pipe.send(shape)
        if not self._pipe.poll(PATIENCE_OF_RAY_S):
            self._process.terminate()  # or its answer would be taken for that of the next turn
            self._process.join()
            raise TimeoutError
        return float(self._pipe.recv())

    def end(self) -> None:
        """End Ray."""
        if self._process.is_alive():
            self._pipe.send(None)
        self._process.join(PATIENCE_S)
        if self._process.is_alive():
            self._process.terminate()  # Ray then ends what it has started
            self._process.join()


def _in_time(contestant: Callable[[], float]) -> Callable[[], float]:
    """Return a contestant that takes NaN seconds in each turn, if once it did not end in time."""
    late = []

    def measured() -> float:
        if not late:
            try:
                return contestant()
            except TimeoutError:
                late.append(True)
        return math.nan

    return measured


def _compared(contestants: dict[str, Callable[[], float]], *, turns: int = TURNS) -> dict[str, list[float]]:
    return interleaved({name: _in_time(each) for name, each in contestants.items()}, turns=turns, warm_up=1)


def _line(what: str, times: list[float], *, to: list[float], ratio_to: str, aim: float | None = None) -> Row:
    if any(map(math.isnan, times + to)):
        return Row(what, None, note="not in time")
    return row(what, times, to=to, ratio_to=ratio_to, ratio_at_most=aim)


def _times(value: Any, shape: tuple[int, int]) -> dict[str, list[float]]:
    makers = peers()
    if shape[1] > 1:
        makers.pop("iceoryx2", None)
    return _compared({name: partial(throughput, make, value, shape) for name, make in makers.items()})


def _two_and_one(size: str) -> Row:
    """Compare two producers with one, in turns."""
    make = peers()["untorn"]
    times = _compared(
        {name: partial(throughput, make, ITEMS[size], SHAPES[name], MANY_OF_ONE_KIND) for name in ("1 to 1", "2 to 1")},
        turns=2 * TURNS,
    )
    aim = 1.1  # never slower than one, within the noise of a turn
    return _line(f"untorn, {size}, 2 to 1", times["2 to 1"], to=times["1 to 1"], ratio_to="1 to 1", aim=aim)


def _rows(size: str) -> Iterator[Row]:
    yield _two_and_one(size)
    for name, shape in SHAPES.items():
        times = _times(ITEMS[size], shape)
        in_time = [peer for peer in times if peer != "untorn" and not math.isnan(sum(times[peer]))]
        best = min(in_time, key=lambda peer: sum(times[peer]))
        yield _line(f"untorn, {size}, {name}", times["untorn"], to=times[best], ratio_to=best)
        for peer in times:
            if peer != "untorn":
                yield _line(f"{peer}, {size}, {name}", times[peer], to=times["untorn"], ratio_to="untorn")


def _rows_of_ray(size: str) -> Iterator[Row]:
    """Time Ray after the others, and untorn with it: its processes keep the processors busy."""
    ray = _RayProcess(ITEMS[size])
    for name, shape in SHAPES.items():
        times = _compared(
            {
                "Ray": partial(ray.throughput, shape),
                "untorn": partial(throughput, peers()["untorn"], ITEMS[size], shape),
            }
        )
        yield _line(f"Ray, {size}, {name}", times["Ray"], to=times["untorn"], ratio_to="untorn")
    ray.end()


def run() -> list[Row]:
    rows = [line for size in SIZES for line in _rows(size)]
    return rows + list(_rows_of_ray(SIZES[0])) if importlib.util.find_spec("ray") else rows
