"""One suite over every pool: a Subscriber as an argument costs its attachment once per process, not once per task.

Each pool lives in its own program, a child of the tests: pools keep threads, signal handlers and caches for the
life of their process, and the end of that process is tested here too.

    test ── a function, its arguments ──> program: publisher, pool ── tasks ──> workers: Subscriber, snapshot
         <── their observations ─────────                          <── Read ───

The programs and all of their children carry a mark in their environment, by which the last test finds survivors.
"""

from __future__ import annotations

import contextlib
import functools
import gc
import importlib.util
import multiprocessing
import os
import pickle
import secrets
import signal
import sys
import tempfile
import time
import traceback
import weakref
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import resource_tracker
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

import untorn
from helpers import WATCHDOG_S, Failure, descriptors, start, untorn_mappings
from untorn.share.attached import drop_dead_attachments

pytestmark = pytest.mark.early

WORKERS = 2
TASKS = 60
ELEMENTS = 100_000
MARK = "UNTORN_TEST_PROGRAM"


# -- the pools: start, map(function, *iterables), end


class MultiprocessingPool:
    """multiprocessing.Pool, which replaces a worker that died, and loses its task."""

    pickles_closures = False

    def __init__(self, method: str) -> None:
        self._method = method

    def __enter__(self) -> MultiprocessingPool:
        self._pool = multiprocessing.get_context(self._method).Pool(WORKERS)
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.terminate()  # close() and join() would wait for the task of a killed worker
        self._pool.join()

    def map(self, function: Callable, *columns: Any) -> list:
        """Return all results. Raises EOFError if a worker ended meanwhile, since a result will then never arrive."""
        workers = set(self._pool._pool)
        result = self._pool.starmap_async(function, zip(*columns, strict=False), chunksize=1)
        while not result.ready():
            result.wait(0.01)
            if not workers <= set(self._pool._pool):
                raise EOFError("a worker of the pool ended")
        return result.get()

    def lose_a_worker(self, function: Callable, *arguments: Any) -> None:
        """Run a task after which its worker is dead."""
        with contextlib.suppress(EOFError):
            self.map(function, *([argument] for argument in arguments))


class Executor:
    """concurrent.futures.ProcessPoolExecutor, which ends when a worker dies."""

    pickles_closures = False

    def __enter__(self) -> Executor:
        self._pool = ProcessPoolExecutor(WORKERS, mp_context=multiprocessing.get_context("spawn"))
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown()

    def map(self, function: Callable, *columns: Any) -> list:
        return list(self._pool.map(function, *columns))

    def lose_a_worker(self, function: Callable, *arguments: Any) -> None:
        with contextlib.suppress(BrokenProcessPool):
            self._pool.submit(function, *arguments).result()
        self._pool.shutdown()
        self.__enter__()


class Joblib:
    """joblib.Parallel over loky, which keeps its workers from one Parallel to the next."""

    pickles_closures = True

    def __enter__(self) -> Joblib:
        return self

    def __exit__(self, *_: object) -> None:
        from joblib.externals.loky import get_reusable_executor

        get_reusable_executor().shutdown(wait=True)

    def map(self, function: Callable, *columns: Any) -> list:
        import joblib

        calls = (joblib.delayed(function)(*row) for row in zip(*columns, strict=False))
        return joblib.Parallel(WORKERS, backend="loky")(calls)

    def lose_a_worker(self, function: Callable, *arguments: Any) -> None:
        with contextlib.suppress(BrokenProcessPool):
            self.map(function, *([argument] for argument in arguments))


class Dask:
    """dask.distributed's LocalCluster of processes, whose nannies replace a worker that died."""

    pickles_closures = True

    def __enter__(self) -> Dask:
        import dask
        import distributed

        dask.config.set({"distributed.scheduler.allowed-failures": 0})  # without it, the fatal task is tried again
        self._cluster = distributed.LocalCluster(WORKERS, threads_per_worker=1, processes=True, dashboard_address=None)
        self._client = distributed.Client(self._cluster)
        return self

    def __exit__(self, *_: object) -> None:
        self._client.close()
        self._cluster.close()

    def map(self, function: Callable, *columns: Any) -> list:
        futures = self._client.map(function, *columns, pure=False)
        try:
            return self._client.gather(futures)
        finally:  # workers release a task and its arguments some time after its future is released
            self._client.cancel(futures)
            del futures
            while any(self._client.run(_count_tasks).values()):
                pass

    def lose_a_worker(self, function: Callable, *arguments: Any) -> None:
        import distributed

        with contextlib.suppress(distributed.KilledWorker):
            self._client.submit(function, *arguments, pure=False).result()


def _count_tasks(dask_worker: Any) -> int:
    gc.collect()
    return len(dask_worker.state.tasks)


class Ray:
    """Ray on this machine, which replaces a worker that died."""

    pickles_closures = True

    def __enter__(self) -> Ray:
        os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
        os.environ["RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO"] = "0"
        os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)  # without it, Ray writes one to the home directory
        os.environ["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)
        import ray

        self._folder = tempfile.TemporaryDirectory(prefix="r")  # short, since it holds the paths of Unix sockets
        ray.init(
            num_cpus=WORKERS,
            include_dashboard=False,
            object_store_memory=80 * 2**20,
            log_to_driver=False,
            configure_logging=False,
            _temp_dir=self._folder.name,
        )
        self._call = ray.remote(max_retries=0)(_call)
        return self

    def __exit__(self, *_: object) -> None:
        import ray

        ray.shutdown()
        self._folder.cleanup()

    def map(self, function: Callable, *columns: Any) -> list:
        import ray

        return ray.get([self._call.remote(function, *row) for row in zip(*columns, strict=False)])

    def lose_a_worker(self, function: Callable, *arguments: Any) -> None:
        import ray

        with contextlib.suppress(ray.exceptions.WorkerCrashedError):
            ray.get(self._call.remote(function, *arguments))


def _call(function: Callable, *arguments: Any) -> Any:
    return function(*arguments)


POOLS: dict[str, Callable] = {
    "Pool-fork": lambda: MultiprocessingPool("fork"),
    "Pool-spawn": lambda: MultiprocessingPool("spawn"),
    "Pool-forkserver": lambda: MultiprocessingPool("forkserver"),
    "ProcessPoolExecutor": Executor,
    "joblib": Joblib,
    "dask": Dask,
    "ray": Ray,
}
NEEDS = {"joblib": "joblib", "dask": "distributed", "ray": "ray"}


# -- the programs


class Program:
    """A process with a pool, which calls functions in it."""

    def __init__(self, name: str) -> None:
        self.mark = secrets.token_hex(16)
        resource_tracker.ensure_running()  # the tests' own tracker outlives the program
        os.environ[MARK] = self.mark
        try:
            self.child = start(_run_program, name, method="spawn")
        finally:
            del os.environ[MARK]

    def call(self, function: Callable, *arguments: Any) -> Any:
        """Call ``function(pool, *arguments)`` in the program, and return its result."""
        self.child.put((function, arguments))
        return self._answer()

    def end(self) -> dict[str, Any]:
        """End the pool and then the process. Return the resources that the process had left after the pool's end."""
        self.child.put(None)
        left = self._answer()
        assert self.child.join() == 0
        return left

    def _answer(self) -> Any:
        failure, answer = self.child.get()
        if failure:
            raise Failure(failure)
        return answer

    def processes(self) -> dict[int, str]:
        """Return the living processes that carry the program's mark, with their command lines."""
        found = {}
        for folder in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                if f"{MARK}={self.mark}".encode() in (folder / "environ").read_bytes():
                    found[int(folder.name)] = (folder / "cmdline").read_text().replace("\0", " ")
        return found

    def kill(self) -> None:
        """End the program and all of its children, after a failure."""
        if not self.child.pipe.closed:
            self.child.kill()
        for pid in self.processes():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def _run_program(pipe, name: str) -> None:
    _serve(pipe, name)
    drop_dead_attachments()
    gc.collect()
    pipe.put(("", {"descriptors": _untorn_descriptors(), "mappings": untorn_mappings()}))


def _serve(pipe, name: str) -> None:
    with POOLS[name]() as pool:
        while (task := pipe.get()) is not None:
            function, arguments = task
            try:
                pipe.put(("", function(pool, *arguments)))
            except Exception:
                pipe.put((traceback.format_exc(), None))


def _untorn_descriptors() -> list[str]:
    return [target for target in descriptors().values() if "untorn" in target]


@pytest.fixture(scope="module")
def program(request: pytest.FixtureRequest) -> Iterator[Program]:
    name = request.param
    if name in NEEDS and importlib.util.find_spec(NEEDS[name]) is None:
        pytest.skip(f"{NEEDS[name]} is not installed")
    found = Program(name)
    yield found
    found.kill()


each_pool = pytest.mark.parametrize("program", POOLS, indirect=True)


# -- in the workers


class Read(NamedTuple):
    """The observations of a task."""

    pid: int
    task: Any
    attachments: int  # of this channel, that this process has had until now
    version: int
    is_right: bool
    is_shared: bool  # read-only memory of untorn's mapping, not a copy
    channels: int  # that this process has mapped


def payload(version: int) -> dict[str, Any]:
    return {"w": np.full(ELEMENTS, float(version)), "n": version}


def read(reader: untorn.Subscriber, task: Any) -> Read:
    with reader.snapshot() as snap:
        array = snap.value["w"]
        is_right = snap.value["n"] == snap.version and bool((array == snap.version).all())
        return Read(
            os.getpid(),
            task,
            attachments_seen(reader),
            snap.version,
            is_right,
            is_shared(array),
            len(channels_mapped()),
        )


def read_pair(pair: tuple[untorn.Subscriber, Any]) -> Read:
    return read(*pair)


_seen: dict[bytes, list[weakref.ref]] = {}


def attachments_seen(reader: untorn.Subscriber) -> int:
    """Return the number of attachments to this channel that the tasks of this process got, counted as objects."""
    seen = _seen.setdefault(reader.address.id, [])
    if not any(known() is reader._attached for known in seen):
        seen.append(weakref.ref(reader._attached))
    return len(seen)


def is_shared(array: np.ndarray) -> bool:
    address = array.__array_interface__["data"][0]
    for line in untorn_mappings():
        ends, rights = line.split()[:2]
        first, last = (int(end, 16) for end in ends.split("-"))
        if first <= address and address + array.nbytes <= last:
            return rights == "r--s" and not array.flags.owndata and not array.flags.writeable
    return False


def channels_mapped() -> set[str]:
    """Return the inodes of the control files that this process has mapped."""
    return {line.split()[4] for line in untorn_mappings() if "control" in line}


def die(pickled: bytes, fifo: str) -> None:
    """Kill this process while it holds a snapshot. The file gets its process id."""
    snap = pickle.loads(pickled).snapshot()
    with open(fifo, "w") as out:
        print(os.getpid(), snap.version, flush=True, file=out)
        os.kill(os.getpid(), signal.SIGKILL)


# -- as an argument


def _argument(pool, reader, tasks):
    return pool.map(read, [reader] * len(tasks), tasks)


def _partial(pool, reader, tasks):
    return pool.map(functools.partial(read, reader), tasks)


def _tuple(pool, reader, tasks):
    return pool.map(read_pair, [(reader, task) for task in tasks])


def _closure(pool, reader, tasks):
    return pool.map(lambda task: read(reader, task), tasks) if pool.pickles_closures else None


WAYS = {"argument": _argument, "partial": _partial, "tuple": _tuple, "closure": _closure}


def _read_in_every_way(pool):
    """Use a separate channel for each way, and check the readers that it has at the end."""
    found = {}
    for name, way in WAYS.items():
        with untorn.publish(payload(1)) as publisher:
            reads = way(pool, publisher.subscriber(), range(TASKS))
            if reads is not None:
                found[name] = reads, Counter(reader.pid for reader in publisher.readers())
    return os.getpid(), found


@each_pool
def test_many_tasks_are_one_attachment_per_process(program):
    own_pid, found = program.call(_read_in_every_way)
    assert len(found) >= 3
    for way, (reads, rows) in found.items():
        assert [read.task for read in reads] == list(range(TASKS)), way
        assert all(read.is_right and read.is_shared for read in reads), way
        workers = {read.pid for read in reads}
        assert own_pid not in workers
        assert {read.attachments for read in reads} == {1}, way
        assert workers <= rows.keys() <= workers | {own_pid}, way  # dask's scheduler is a thread of the program
        assert set(rows.values()) == {1}, way


def _read_named(pool, name):
    with untorn.publish(payload(1), name=name) as publisher:
        reads = pool.map(read, [untorn.subscribe(name)] * TASKS, range(TASKS))
        rows = Counter(reader.pid for reader in publisher.readers())
        publisher.unlink()
    return reads, rows


@each_pool
def test_a_named_channel_too(program, name):
    reads, rows = program.call(_read_named, name)
    assert all(read.is_right and read.is_shared and read.attachments == 1 for read in reads)
    assert {read.pid for read in reads} <= rows.keys()
    assert set(rows.values()) == {1}


# -- newer versions


def _read_while_publishing(pool):
    reads = []
    with untorn.publish(payload(1)) as publisher:
        reader = publisher.subscriber()
        for version in range(2, 7):
            reads.append(pool.map(read, [reader] * WORKERS, range(WORKERS)))
            publisher.update(payload(version))
    return reads


@each_pool
def test_later_tasks_read_the_newer_version(program):
    rounds = program.call(_read_while_publishing)
    for version, reads in enumerate(rounds, 1):
        assert all(read.version == version and read.is_right for read in reads)
        assert all(read.attachments == 1 for read in reads)


# -- the end of a worker, of a channel, of the pool


def _read_two_channels(pool):
    with untorn.publish(payload(1)) as first:
        pool.map(read, [first.subscriber()] * TASKS, range(TASKS))
    with untorn.publish(payload(1)) as second:
        return pool.map(read, [second.subscriber()] * TASKS, range(TASKS))


@each_pool
def test_an_attachment_goes_when_its_publisher_is_gone(program):
    reads = program.call(_read_two_channels)
    assert all(read.is_right for read in reads)
    assert {read.channels for read in reads} == {1}


def _read_named_without_publisher(pool, name):
    with untorn.publish(payload(1), name=name) as publisher:
        pass
    reads = pool.map(read, [untorn.subscribe(name)] * TASKS, range(TASKS))
    publisher.unlink()
    return reads


@each_pool
def test_a_file_whose_publisher_is_gone_is_one_attachment_too(program, name):
    reads = program.call(_read_named_without_publisher, name)
    assert all(read.is_right and read.is_shared for read in reads)
    assert {read.attachments for read in reads} == {1}


def _read_what_is_gone(pool):
    with untorn.publish(payload(1)) as publisher:
        reader = publisher.subscriber()
    try:
        return pool.map(read, [reader] * WORKERS, range(WORKERS))
    except untorn.ChannelNotFoundError as error:  # ray's own class is a subclass of the task's
        return "of the task", str(error)


@each_pool
def test_a_channel_that_is_gone_is_an_error_of_the_task(program):
    whose, message = program.call(_read_what_is_gone)
    assert whose == "of the task"
    assert "its Publisher was closed, or garbage-collected" in message


def _lose_a_worker(pool):
    with (
        tempfile.TemporaryDirectory() as folder,
        untorn.publish(payload(1), slots=2, max_slots=2) as publisher,
    ):
        fifo = os.path.join(folder, "fifo")
        os.mkfifo(fifo)
        reading = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
        reader = publisher.subscriber()
        pool.lose_a_worker(die, pickle.dumps(reader), fifo)  # bytes, since dask keeps the arguments of a failed task
        with open(reading) as lines:
            pid, version = map(int, lines.read().split())
        publisher.update(payload(2))
        publisher.update(payload(3), timeout_s=WATCHDOG_S)  # in the slot that the dead worker held
        reads = pool.map(read, [reader] * TASKS, range(TASKS))
        return pid, version, reads, Counter(reader.pid for reader in publisher.readers())


@each_pool
def test_a_killed_worker_holds_nothing(program):
    pid, version, reads, rows = program.call(_lose_a_worker)
    assert version == 1
    assert len(reads) == TASKS
    assert all(read.is_right and read.version == 3 and read.attachments == 1 for read in reads)
    assert pid not in rows
    assert set(rows.values()) == {1}


@each_pool
def test_after_the_pool_and_the_publishers_nothing_is_left(program):
    assert program.end() == {"descriptors": [], "mappings": []}
    deadline = time.monotonic() + WATCHDOG_S
    while left := program.processes():
        assert time.monotonic() < deadline, left
        time.sleep(0.02)  # some processes end a moment after their pool
