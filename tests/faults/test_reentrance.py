"""A call of untorn that another one in the same thread interrupts does not hang and damages no version.

A signal handler, a finalizer that the garbage collector runs, and a fork can come between any two steps of a call. Here
they come before every line (see interruptions.py), and call untorn themselves. Each test runs in a child
process, so that a hang is a failure. The names come from ``untorn.__all__``: a new one needs a case.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import pickle
import random
import signal
import sys
import threading
import time
import types

import numpy as np
import pytest
from interruptions import at_each_line, at_every_line, in_a_child, in_finalizers, public_calls, raised_everywhere

import untorn
from helpers import WATCHDOG_S
from untorn import BrokenChannelError, BusyError, ClosedError, UntornError
from untorn.share.lowlevel import extra

SIZE = 40


def tree(number, *, more=0):
    """Return a value that shows damage, since all of its numbers are equal."""
    parts = {"a": np.full(SIZE, number), "b": [np.full(SIZE, number), {"c": number}]}
    return parts | {f"more {i}": np.full(SIZE, number) for i in range(more)}


def number_of(value):
    """Return the number that fills a tree; fail if there are several."""
    numbers = {int(number) for part in [value["a"], *value["b"][:1]] for number in part} | {value["b"][1]["c"]}
    assert len(numbers) == 1, f"a torn version: {numbers}"
    return numbers.pop()


class World:
    """A named channel with a publisher and a reader, and the actions of handlers."""

    def __init__(self, folder, name="world"):
        self.folder, self.name = folder, name
        self.publisher = untorn.publish(tree(1), name=name, directory=folder)
        self.reader = untorn.subscribe(f"{folder}/{name}")
        self.snapshot = self.reader.snapshot()
        self.table = untorn.FrozenDict({"a": 1, "b": np.arange(3), "c": {"d": 1.5}})
        self.queue = untorn.queue(8, name=f"{name}-queue", directory=folder)
        self.numbers = iter(range(2, 10**9))
        self.refused = 0

    def end(self):
        self.queue.unlink()
        self.queue.close()
        self.queue.leave()
        self.publisher.unlink()
        self.publisher.close()
        self.reader.close()

    def check(self):
        """Check that the channel is intact and works."""
        for more in (0, 1):  # another structure, and back
            value = tree(next(self.numbers), more=more)
            version = self.publisher.update(value)
            assert self.publisher.patch({"b/1/c": value["b"][1]["c"]}) == version + 1
            with self.publisher.edit() as edited:
                assert number_of(edited) == value["a"][0]
            snapshot = self.reader.snapshot()
            assert (number_of(snapshot.value), snapshot.version) == (value["a"][0], version + 2)

    # -- interrupting actions

    def subscribes(self):
        number_of(untorn.subscribe(f"{self.folder}/{self.name}").snapshot().value)

    def snapshots(self):
        reader = pickle.loads(pickle.dumps(self.reader))
        number_of(reader.snapshot().value)

    def publishes(self):
        with untorn.publish(tree(0), name="other", directory=self.folder) as other:
            number_of(other.subscriber().snapshot().value)
            other.unlink()

    def updates(self):
        try:
            self.publisher.update(tree(next(self.numbers), more=1))
            with self.publisher.edit() as edited:
                number_of(edited)
            self.publisher.patch({"more 0": np.zeros(2)})
        except BusyError:
            self.refused += 1

    def forks(self):
        pid = os.fork()
        if pid == 0:
            try:
                signal.alarm(int(WATCHDOG_S / 2))  # a hang ends here
                self.subscribes()
                self.publishes()
                number_of(self.reader.snapshot().value)
                self.publisher.close()
                os._exit(0)
            except BaseException:
                sys.excepthook(*sys.exc_info())
            finally:
                os._exit(1)
        assert os.waitpid(pid, 0)[1] == 0

    def closes(self):
        self.publisher.close()

    def unlinks(self):
        self.publisher.unlink()

    def is_taken_over(self):
        """Let another publisher take the channel and publish until it has used the slot that was being written."""
        self.publisher.close()
        successor = untorn.publish(tree(7), name=self.name, directory=self.folder)
        for _ in range(6):
            successor.update(tree(7))
        self.publisher = successor


def _update(world):
    """Publish another structure, and the same again, which takes another way."""
    for more in (1, 2, 2, 2):
        world.publisher.update(tree(next(world.numbers), more=more))


def _edit(world):
    number = next(world.numbers)
    with world.publisher.edit() as edited:
        edited["a"][:] = number
        edited["b"] = tree(number)["b"]


def _patch(world):
    number = next(world.numbers)
    value = tree(number)
    world.publisher.patch({"a": value["a"], "b": value["b"]})


def _publish(world):
    """Publish a separate channel, also after a dead publisher, and an anonymous one."""
    for _ in range(2):
        untorn.publish(tree(1), name="own", directory=world.folder).close()
    with untorn.publish(tree(1), name="own", directory=world.folder) as own:
        own.unlink()
    untorn.publish(tree(1)).close()


def _unlink(world):
    publisher = untorn.publish(tree(1), name="gone", directory=world.folder)
    publisher.close()
    publisher.unlink()


async def _all_async(world):
    waiting = world.reader.snapshot_async(newer_than=world.reader.version, timeout_s=WATCHDOG_S)
    task = asyncio.create_task(waiting)
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    world.publisher.update(tree(next(world.numbers)))
    number_of((await task).value)
    async for snapshot in world.reader:
        return snapshot.version
    raise AssertionError("the channel ended")


def _wait(world):
    with pytest.raises(TimeoutError):
        world.reader.wait(world.reader.version + 99, 0.0)


def _use_table(world):
    table = untorn.FrozenDict({"x": 1, "y": np.zeros(2), "z": (1, "two")})
    again = untorn.FrozenDict.of_parts(table.parts())
    assert again["x"] == 1 and [*again.keys()] == ["x", "y", "z"] and len([*again.values()]) == len([*again.items()])
    assert "FrozenDict" in repr(again) and again.get("w") is None and again.nbytes
    with untorn.publish({"table": table}) as publisher:
        assert publisher.subscriber().snapshot().value["table"]["z"] == (1, "two")


def _put_and_get(world, put=untorn.Queue.put, get=untorn.Queue.get):
    number = next(world.numbers)
    put(world.queue, tree(number))
    assert number_of(get(world.queue)) == number


def _put_and_get_many(world):
    numbers = [next(world.numbers), next(world.numbers)]
    world.queue.put_many([tree(number) for number in numbers])
    assert [number_of(value) for value in world.queue.get_many(2)] == numbers


def _reserve(world):
    number = next(world.numbers)
    with world.queue.reserve(like=tree(0)) as value:
        value["a"][:] = number
        value["b"][0][:] = number
    assert (world.queue.get()["a"] == number).all()


def _take(world):
    number = next(world.numbers)
    world.queue.put(tree(number))
    with world.queue.take() as item:
        assert number_of(item.value) == number and item.nbytes and item.put_at and repr(item)


def _give_back(world):
    number = next(world.numbers)
    world.queue.put(tree(number))
    world.queue.take().give_back()
    item = world.queue.take()
    assert number_of(item.value) == number
    item.finish()


async def _put_and_get_async(world):
    number = next(world.numbers)
    await world.queue.put_async(tree(number))
    assert number_of(await world.queue.get_async()) == number


async def _take_async(world):
    await world.queue.put_async(tree(1))
    (await world.queue.take_async()).finish()


def _own_queue(world):
    with untorn.queue(2) as own:
        own.put(1)
        pickle.loads(pickle.dumps(own)).leave()
        own.close()
        assert own.closed and own.get() == 1
    named = untorn.queue(2, name="own-queue", directory=world.folder)
    named.unlink()
    named.leave()


SHARE = {
    "queue": _own_queue,
    "Queue": lambda world: repr(world.queue),
    "Queue.cancel_join_thread": lambda world: world.queue.cancel_join_thread(),
    "Queue.capacity": lambda world: world.queue.capacity,
    "Queue.close": lambda world: untorn.queue(2).close(),
    "Queue.closed": lambda world: world.queue.closed,
    "Queue.empty": lambda world: world.queue.empty(),
    "Queue.full": lambda world: world.queue.full(),
    "Queue.get": _put_and_get,
    "Queue.get_async": lambda world: asyncio.run(_put_and_get_async(world)),
    "Queue.get_many": _put_and_get_many,
    "Queue.get_nowait": lambda world: _put_and_get(world, untorn.Queue.put_nowait, untorn.Queue.get_nowait),
    "Queue.join_thread": lambda world: world.queue.join_thread(),
    "Queue.leave": lambda world: pickle.loads(pickle.dumps(world.queue)).leave(),
    "Queue.name": lambda world: world.queue.name,
    "Queue.nbytes": lambda world: world.queue.nbytes,
    "Queue.processes": lambda world: world.queue.processes(),
    "Queue.put": _put_and_get,
    "Queue.put_async": lambda world: asyncio.run(_put_and_get_async(world)),
    "Queue.put_many": _put_and_get_many,
    "Queue.put_nowait": lambda world: _put_and_get(world, untorn.Queue.put_nowait, untorn.Queue.get_nowait),
    "Queue.qsize": lambda world: world.queue.qsize(),
    "Queue.reserve": _reserve,
    "Queue.take": _take,
    "Queue.take_async": lambda world: asyncio.run(_take_async(world)),
    "Queue.unlink": _own_queue,
    "QueueProcess": lambda world: [process.pid for process in world.queue.processes()],
    "Item": _take,
    "Item.finish": _give_back,
    "Item.give_back": _give_back,
    "Item.nbytes": _take,
    "Item.put_at": _take,
    "Item.value": _take,
    "publish": _publish,
    "subscribe": lambda world: number_of(untorn.subscribe(f"{world.folder}/{world.name}").snapshot().value),
    "Publisher": lambda world: repr(world.publisher),
    "Publisher.close": lambda world: untorn.publish(1).close(),
    "Publisher.edit": _edit,
    "Publisher.name": lambda world: world.publisher.name,
    "Publisher.nbytes": lambda world: world.publisher.nbytes,
    "Publisher.patch": _patch,
    "Publisher.readers": lambda world: world.publisher.readers(),
    "Publisher.subscriber": lambda world: number_of(world.publisher.subscriber().snapshot().value),
    "Publisher.unlink": _unlink,
    "Publisher.update": _update,
    "Publisher.version": lambda world: world.publisher.version,
    "ReaderInfo": lambda world: [reader.pid for reader in world.publisher.readers()],
    "Subscriber": lambda world: next(iter(pickle.loads(pickle.dumps(world.reader)))),
    "Subscriber.address": lambda world: world.reader.address,
    "Subscriber.attach": lambda world: world.publisher.subscriber().attach(),
    "Subscriber.close": lambda world: world.publisher.subscriber().close(),
    "Subscriber.name": lambda world: world.reader.name,
    "Subscriber.publisher_alive": lambda world: world.reader.publisher_alive(),
    "Subscriber.snapshot": lambda world: number_of(world.reader.snapshot(newer_than=0, timeout_s=1).value),
    "Subscriber.snapshot_async": lambda world: asyncio.run(_all_async(world)),
    "Subscriber.version": lambda world: world.reader.version,
    "Subscriber.wait": _wait,
    "Subscriber.wait_async": lambda world: asyncio.run(world.reader.wait_async(0)),
    "Subscriber.cached": lambda world: world.reader.cached(number_of),
    "Subscriber.follow": lambda world: number_of(next(world.reader.follow(timeout_s=WATCHDOG_S)).value),
    "Snapshot": lambda world: repr(world.reader.snapshot()),
    "Snapshot.close": lambda world: world.reader.snapshot().close(),
    "lowlevel.extra": lambda world: extra(world.snapshot),
    "Snapshot.nbytes": lambda world: world.snapshot.nbytes,
    "Snapshot.published_at": lambda world: world.snapshot.published_at,
    "Snapshot.value": lambda world: number_of(world.reader.snapshot().value),
    "Snapshot.version": lambda world: world.snapshot.version,
    "FrozenDict": _use_table,
    "FrozenDict.get": lambda world: world.table.get("a"),
    "FrozenDict.items": lambda world: [*world.table.items()],
    "FrozenDict.keys": lambda world: [*world.table.keys()],
    "FrozenDict.nbytes": lambda world: world.table.nbytes,
    "FrozenDict.of_parts": lambda world: untorn.FrozenDict.of_parts(world.table.parts()),
    "FrozenDict.parts": lambda world: world.table.parts(),
    "FrozenDict.values": lambda world: [*world.table.values()],
}
ACTIONS = ("subscribes", "snapshots", "publishes", "updates")
#: the calls that write, and so could damage a version
WRITES = ("Publisher.update", "Publisher.patch", "Publisher.edit")


def test_every_public_call_of_share_has_a_case():
    assert sorted({*public_calls("share"), "Snapshot.version", "lowlevel.extra"}) == sorted(SHARE)


def _every_line(case, folder, action):
    world = World(folder)
    count = at_every_line(lambda: SHARE[case](world), getattr(world, action))
    world.check()
    world.end()
    return count


@pytest.mark.parametrize("case", SHARE)
def test_calls_in_a_signal_handler(tmp_path, case):
    """Before every line of the call: subscribe, snapshot, publish and update."""
    counts = in_a_child(_many, case, tmp_path)
    print(f"{case}: {counts}")


def _many(case, folder):
    return {action: _every_line(case, folder, action) for action in ACTIONS}


def test_an_update_in_an_update_is_refused(tmp_path):
    assert in_a_child(_refusals, tmp_path) > 10


def _refusals(folder):
    world = World(folder)
    at_every_line(lambda: SHARE["Publisher.update"](world), world.updates)
    world.check()
    return world.refused


#: a fork before every ``every``-th line, from a random first one; before every line in the soak
@pytest.mark.parametrize("every", [9, pytest.param(1, marks=pytest.mark.soak)])
def test_forks_in_a_signal_handler(tmp_path, every, rng):
    """The fork comes once before each line of untorn's code that one of the calls reaches."""
    forks, lines = in_a_child(_forks, tmp_path, every, rng.randrange(every))
    print(f"forked at {forks} of {lines} lines")
    assert forks > 50


def _forks(folder, every, first):
    world = World(folder)
    seen, forked = set(), []

    def fork():
        if len(seen) % every == first:
            world.forks()
            forked.append(len(seen))

    for case in SHARE.values():
        at_every_line(lambda case=case: case(world), fork, seen)
    world.check()
    return len(forked), len(seen)


@pytest.mark.parametrize("forks", [30, pytest.param(300, marks=pytest.mark.soak)])
def test_forks_while_another_thread_is_inside(tmp_path, forks):
    """The child can continue wherever that thread was, in Python or in C: it has neither the thread nor its locks."""
    calls = in_a_child(_forks_beside, tmp_path, forks)
    print(f"{forks} forks while a thread made {calls} calls")
    assert calls >= forks


def _forks_beside(folder, forks):
    world, busy = World(folder), World(folder, name="busy")
    calls, over = [], threading.Event()

    def work():
        while not over.is_set():
            for case in SHARE.values():
                case(busy)
                calls.append(case)

    thread = threading.Thread(target=work)
    thread.start()
    try:
        for number in range(forks):
            while len(calls) <= number:  # the thread is inside another call by now
                time.sleep(0)
            world.forks()
    finally:
        over.set()
        thread.join()
    for each in (world, busy):
        each.check()
        each.end()
    return len(calls)


@pytest.mark.parametrize("most", [40, pytest.param(None, marks=pytest.mark.soak)])
@pytest.mark.parametrize("action", ["closes", "unlinks", "is_taken_over"])
@pytest.mark.parametrize("case", WRITES)
def test_the_publisher_ends_in_a_signal_handler(tmp_path, case, action, most, rng):
    """The call ends with its version or with ClosedError; the channel has only whole versions, and works."""
    print(f"{case}: {action} at {in_a_child(_ends, case, tmp_path, action, most, rng)} lines")


def _ends(case, folder, action, most, rng):
    worlds = []

    def make():
        while worlds:
            _check_ended(worlds.pop(), folder)
        world = World(folder)
        worlds.append(world)
        return lambda: _or_closed(SHARE[case], world), getattr(world, action)

    count = at_each_line(make, most=most, rng=rng)
    _check_ended(worlds.pop(), folder)
    return count


def _or_closed(call, world):
    publisher = world.publisher
    try:
        call(world)
    except ClosedError:
        with pytest.raises(ClosedError):
            publisher.update(1)


@pytest.mark.parametrize("case", [case for case in SHARE if case.startswith(("Subscriber", "Snapshot"))])
def test_a_reader_is_closed_in_a_signal_handler(tmp_path, case, rng):
    """The call returns its usual result, or raises ClosedError."""
    print(f"{case}: closed at {in_a_child(_reader_closes, case, tmp_path, rng)} lines")


def _reader_closes(case, folder, rng):
    world = World(folder)

    def make():
        world.reader = untorn.subscribe(f"{folder}/{world.name}")
        world.snapshot = world.reader.snapshot()

        def call():
            with contextlib.suppress(ClosedError):
                SHARE[case](world)

        def action():
            world.reader.close()
            world.snapshot.close()

        return call, action

    count = at_each_line(make, most=60, rng=rng)
    world.reader = untorn.subscribe(f"{folder}/{world.name}")
    world.check()
    world.end()
    return count


def _check_ended(world, folder):
    number_of(world.reader.snapshot().value)
    world.end()
    again = World(folder)
    again.check()
    again.end()


@pytest.mark.parametrize("actions", [("subscribes", "updates"), pytest.param(ACTIONS, marks=pytest.mark.soak)])
@pytest.mark.parametrize("case", SHARE)
def test_calls_in_finalizers(tmp_path, case, actions):
    """An object's __del__ calls untorn, whenever the collector runs, inside the C code too."""
    counts = in_a_child(_finalizers, case, tmp_path, actions)
    print(f"{case}: {counts}")


def _finalizers(case, folder, actions):
    counts = {}
    for action in actions:
        world = World(folder)
        counts[action] = in_finalizers(lambda world=world: SHARE[case](world), getattr(world, action))
        world.check()
        world.end()
    return counts


@pytest.mark.parametrize("case", WRITES)
def test_ctrl_c_leaves_no_lock_and_no_damage(tmp_path, case, rng):
    """This holds also while the exception, and so its frames, are kept alive."""
    count = in_a_child(_interrupts, case, tmp_path, rng)
    print(f"{case}: interrupted at {count} places")
    assert count > 20


def _interrupts(case, folder, rng):
    world = World(folder)

    def check(_):
        other = threading.Thread(target=world.check, daemon=True)
        other.start()
        other.join(WATCHDOG_S / 2)
        assert not other.is_alive(), "a lock was left"
        world.check()

    count = raised_everywhere(lambda: lambda: SHARE[case](world), check, rng=rng)
    world.end()
    return count


def test_one_attachment_however_it_is_interrupted(tmp_path):
    """A channel with one reader row is enough for a process that attaches in the middle of attaching."""
    print(f"attached at {in_a_child(_one_row, tmp_path)} lines")


def _one_row(folder):
    with untorn.publish(tree(1), name="narrow", directory=folder, max_readers=1) as publisher:

        def attach():
            reader = untorn.subscribe(f"{folder}/narrow")
            number_of(reader.snapshot().value)
            assert len(publisher.readers()) == 1

        count = at_every_line(attach, attach)
        publisher.unlink()
        return count


def test_threads_attach_to_one_row(tmp_path):
    with untorn.publish(tree(1), name="narrow", directory=tmp_path, max_readers=1) as publisher:
        together = threading.Barrier(8)
        results = []

        def attach():
            together.wait()
            results.append(untorn.subscribe(tmp_path / "narrow").snapshot())

        threads = [threading.Thread(target=attach) for _ in range(8)]
        interval = sys.getswitchinterval()
        sys.setswitchinterval(1e-6)
        try:
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        finally:
            sys.setswitchinterval(interval)
        assert [number_of(snapshot.value) for snapshot in results] == [1] * 8
        assert len(publisher.readers()) == 1
        publisher.unlink()


@pytest.mark.parametrize("case", WRITES)
def test_a_child_that_goes_on_with_its_parents_version_damages_nothing(tmp_path, case, rng):
    """The handler forks, and the child returns from it into the middle of the call, which raises ClosedError there; its
    writes until then stay private. The parent's version is whole, also if the slot is reused meanwhile."""
    print(f"{case}: a child went on from {in_a_child(_children_go_on, case, tmp_path, rng)} lines")


def _children_go_on(case, folder, rng):
    world = World(folder)
    parent = os.getpid()

    def make():
        ready, go = os.pipe()

        def action():
            pid = os.fork()
            if pid == 0:
                os.close(go)
                os.read(ready, 1)  # until the parent has used all slots again
                return
            forked.append((pid, ready, go))

        def call():
            forked.clear()
            code = 1
            try:
                SHARE[case](world)
                code = 2
            except ClosedError:
                code = 0
            except BaseException:
                if os.getpid() != parent:
                    sys.excepthook(*sys.exc_info())
                raise
            finally:
                if os.getpid() != parent:
                    os._exit(code)
            if not forked:
                os.close(ready)
                os.close(go)
            for pid, *ends in forked:
                before = world.publisher.version
                for _ in range(6):
                    world.publisher.update(tree(5))
                os.close(ends[1])
                status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
                assert status in (0, 2), status
                assert world.publisher.version == before + 6, "the child published"
                for _ in range(6):
                    number_of(world.reader.snapshot().value)
                os.close(ends[0])
            forked.clear()

        return call, action

    forked = []
    count = at_each_line(make, rng=rng, most=25)
    world.check()
    world.end()
    return count


def test_a_child_writes_into_its_parents_edit():
    with untorn.publish({"w": np.zeros(1000)}) as publisher:
        with publisher.edit() as params:
            params["w"][:] = 1
            pid = os.fork()
            if pid == 0:
                params["w"][:] = 2
                os._exit(int(params["w"][0]))
            assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 2
        assert set(publisher.subscriber().snapshot().value["w"]) == {1}


def test_an_edit_that_goes_on_after_close_writes_for_itself(tmp_path):
    """Another publisher then has the channel, and the slot."""
    publisher = untorn.publish({"w": np.zeros(1000)}, name="next", directory=tmp_path)
    reader = untorn.subscribe(tmp_path / "next")
    with pytest.raises(ClosedError), publisher.edit() as params:
        publisher.close()
        with untorn.publish({"w": np.ones(1000)}, name="next", directory=tmp_path) as successor:
            for _ in range(5):
                successor.update({"w": np.ones(1000)})
                params["w"][:] = 2
                assert set(reader.snapshot().value["w"]) == {1}
            successor.unlink()


def test_an_interrupted_update_leaves_nothing_for_a_patch_to_build_on():
    """The half-written slot is chosen again, and must not be mistaken for the version that it had before."""

    class Stop(Exception):
        pass

    class Late:
        def __array__(self, dtype=None, copy=None):
            raise Stop

    with untorn.publish({"a": np.zeros(10), "b": np.zeros(10)}, slots=2, max_slots=2) as publisher:
        publisher.patch({"b": np.ones(10)})
        lines = []

        def stop(frame, event, _):
            if frame.f_code.co_name == "write_leaf" and event == "call":
                lines.append(frame)
                if len(lines) == 2:  # the first is written
                    raise Stop
            return stop

        sys.settrace(stop)
        try:
            with pytest.raises(Stop):
                publisher.update({"a": np.full(10, 9.0), "b": np.full(10, 9.0)})
        finally:
            sys.settrace(None)
        publisher.patch({"b": np.full(10, 2.0)})
        value = publisher.subscriber().snapshot().value
        assert (set(value["a"]), set(value["b"])) == ({0.0}, {2.0})


def test_an_adapter_that_is_being_imported_is_an_error_that_says_so(monkeypatch):
    """A handler that interrupts the import finds a partly initialised module."""
    scipy_sparse = pytest.importorskip("scipy.sparse")

    class Matrix(scipy_sparse.csr_array):
        __module__ = "scipy.sparse"

    monkeypatch.setitem(sys.modules, "untorn.adapters.scipy", types.ModuleType("untorn.adapters.scipy"))
    with pytest.raises(ImportError, match="being imported by the code that this signal handler"):
        untorn.publish(Matrix((2, 2)))


# -- long variants: real timers, at random moments


@pytest.mark.soak
@pytest.mark.parametrize("action", ["subscribes", "snapshots", "publishes", "updates", "forks"])
def test_storms_of_timers(tmp_path, action, seed):
    print(f"{action}: {in_a_child(_storm, tmp_path, action, seed)} calls, signals")


def _storm(folder, action, seed):
    world, rng = World(folder), random.Random(seed)
    signals = calls = 0
    end = time.monotonic() + WATCHDOG_S / 3

    def handler(*_):
        nonlocal signals
        signals += 1
        getattr(world, action)()
        signal.setitimer(signal.ITIMER_REAL, rng.uniform(1e-5, 2e-3))

    signal.signal(signal.SIGALRM, handler)
    signal.setitimer(signal.ITIMER_REAL, 1e-4)
    cases = [case for name, case in SHARE.items() if name != "Subscriber.wait"]
    while time.monotonic() < end:
        try:
            rng.choice(cases)(world)
        except (BusyError, BrokenChannelError):
            pass
        except UntornError as error:
            raise AssertionError(f"{action}: {error!r}") from error
        calls += 1
    signal.setitimer(signal.ITIMER_REAL, 0)
    world.check()
    world.end()
    return calls, signals
