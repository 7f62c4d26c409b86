"""Measure queues between processes: seconds per item with one or several producers and consumers.

Each is a process of its own. The first items of a process are not timed: the first put of a forked child costs
milliseconds of page faults, many times what a queue does, and multiprocessing.Queue starts a thread. Then all begin at
once, and the time ends with the consumers' last item.

Ray's queue is an actor, so each put and each get is a call of another process, whatever its size. Its producers and
consumers are actors, and it carries fewer items, of one size. iceoryx2 gives every item to every subscriber, so it is
no queue for several consumers, and its subscribers look again and again.
"""

from __future__ import annotations

import importlib.util
import multiprocessing
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

from benchmarks.measure import Row, interleaved, row
from benchmarks.peers.queues import ITEMS, Iceoryx2, Peer, Ray, Zmq, peers, removed

NAME = "queues-between"
QUESTION = "What does an item cost that goes through a queue between processes, from many to one, and from one to many?"

SHAPES = {"1 to 1": (1, 1), "2 to 1": (2, 1), "4 to 1": (4, 1), "1 to 4": (1, 4)}
SIZES = ("small tree", "10 KB")
MANY, MANY_OF_RAY = 4000, 40
FIRST = 8  # items of each producer for each consumer that are not timed
TURNS = 7


def _join(each: Peer, side: str, shape: tuple[int, int]) -> None:
    if isinstance(each, Zmq | Iceoryx2):
        each.join(side, *shape)


def _produce(each: Peer, value: Any, shape: tuple[int, int], ready: Any, joined: Any, go: Any) -> None:
    producers, consumers = shape
    if isinstance(each, Iceoryx2):  # a subscriber gets what is published after it has come
        joined.wait()
    _join(each, "PUSH", shape)
    for _ in range(FIRST * consumers):
        each.put(value)
    ready.release()
    go.wait()
    for _ in range(MANY // producers):
        each.put(value)
    if isinstance(each, type(multiprocessing.Queue())):
        each.close()
        each.join_thread()
    elif isinstance(each, Zmq):
        each.flush()


def _consume(each: Peer, shape: tuple[int, int], ready: Any, joined: Any, go: Any, done: Any) -> None:
    producers, consumers = shape
    _join(each, "PULL", shape)
    joined.set()
    for _ in range(FIRST * producers):
        each.get()
    ready.release()
    go.wait()
    for _ in range(MANY // consumers):
        each.get()
    done.release()


def _acquire(semaphore: Any, number: int, processes: Sequence[multiprocessing.Process]) -> None:
    """Wait for this number of the processes. Raises RuntimeError if one fails."""
    while number:
        if semaphore.acquire(timeout=1):
            number -= 1
        elif any(process.exitcode for process in processes):
            for process in processes:
                process.kill()
            raise RuntimeError("a process failed; its traceback is above")


def throughput(make: Callable[[], Peer], value: Any, shape: tuple[int, int]) -> float:
    """Return the seconds per item."""
    each, (producers, consumers) = make(), shape
    ready, done = multiprocessing.Semaphore(0), multiprocessing.Semaphore(0)
    go, joined = multiprocessing.Event(), multiprocessing.Event()
    processes = [
        multiprocessing.Process(target=_produce, args=(each, value, shape, ready, joined, go), daemon=True)
        for _ in range(producers)
    ] + [
        multiprocessing.Process(target=_consume, args=(each, shape, ready, joined, go, done), daemon=True)
        for _ in range(consumers)
    ]
    for process in processes:
        process.start()
    _acquire(ready, len(processes), processes)
    start = time.perf_counter()
    go.set()
    _acquire(done, consumers, processes)
    took = time.perf_counter() - start
    for process in processes:
        process.join()
    removed(each)
    return took / MANY


class _RayProcesses:
    """Actors that put into Ray's queue, and actors that get from it."""

    def __init__(self, value: Any, shape: tuple[int, int]) -> None:
        import ray

        self._each = Ray()
        queue = self._each.queue

        @ray.remote(num_cpus=0)
        class Worker:
            def put(self, number: int) -> None:
                for _ in range(number):
                    queue.put(value)

            def get(self, number: int) -> None:
                for _ in range(number):
                    queue.get()

        self._producers = [Worker.remote() for _ in range(shape[0])]
        self._consumers = [Worker.remote() for _ in range(shape[1])]

    def throughput(self) -> float:
        """Return the seconds per item."""
        import ray

        start = time.perf_counter()
        putting = [each.put.remote(MANY_OF_RAY // len(self._producers)) for each in self._producers]
        ray.get([each.get.remote(MANY_OF_RAY // len(self._consumers)) for each in self._consumers])
        took = time.perf_counter() - start
        ray.get(putting)
        return took / MANY_OF_RAY

    def end(self) -> None:
        """End them, and Ray."""
        import ray

        for each in self._producers + self._consumers:
            ray.kill(each)
        self._each.remove()


def _times(value: Any, shape: tuple[int, int]) -> dict[str, list[float]]:
    makers = peers()
    if shape[1] > 1:
        makers.pop("iceoryx2", None)
    contestants = {name: partial(throughput, make, value, shape) for name, make in makers.items()}
    return interleaved(contestants, turns=TURNS, warm_up=1)


def _times_of_ray(value: Any, shape: tuple[int, int]) -> dict[str, list[float]]:
    """Time Ray after the others, and untorn with it: its processes would keep the processors busy."""
    actors = _RayProcesses(value, shape)
    contestants = {"Ray": actors.throughput, "untorn": partial(throughput, peers()["untorn"], value, shape)}
    times = interleaved(contestants, turns=TURNS, warm_up=1)
    actors.end()
    return times


def _two_and_one(size: str) -> Row:
    """Compare two producers with one, in turns."""
    make = peers()["untorn"]
    contestants = {name: partial(throughput, make, ITEMS[size], SHAPES[name]) for name in ("1 to 1", "2 to 1")}
    times = interleaved(contestants, turns=2 * TURNS, warm_up=1)
    aim = 1.1  # never slower than one, within the noise of a turn
    return row(f"untorn, {size}, 2 to 1", times["2 to 1"], to=times["1 to 1"], ratio_to="1 to 1", ratio_at_most=aim)


def _rows(size: str) -> Iterator[Row]:
    yield _two_and_one(size)
    for name, shape in SHAPES.items():
        times = _times(ITEMS[size], shape)
        best = min((peer for peer in times if peer != "untorn"), key=lambda peer: sum(times[peer]))
        yield row(f"untorn, {size}, {name}", times["untorn"], to=times[best], ratio_to=best)
        for peer in times:
            if peer != "untorn":
                yield row(f"{peer}, {size}, {name}", times[peer], to=times["untorn"], ratio_to="untorn")
        if importlib.util.find_spec("ray") and size == SIZES[0] and name != "2 to 1":
            times = _times_of_ray(ITEMS[size], shape)
            yield row(f"Ray, {size}, {name}", times["Ray"], to=times["untorn"], ratio_to="untorn")


def run() -> list[Row]:
    return [line for size in SIZES for line in _rows(size)]
