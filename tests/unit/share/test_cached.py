"""cached(build): once per version, process and builder."""

import gc
import pickle
import threading
import weakref
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context

import numpy as np
import pytest

import untorn
from helpers import WATCHDOG_S, start
from untorn import BusyError, ClosedError

CALLS = []


class Index:
    def __init__(self, value, more=0):
        CALLS.append(value if isinstance(value, str) else len(value))
        self.value = value
        self.more = more


@pytest.fixture(autouse=True)
def no_calls():
    CALLS.clear()


@pytest.fixture
def publisher():
    with untorn.publish("one") as publisher:
        yield publisher


def test_once_per_version_for_all_subscribers(publisher):
    reader, other = publisher.subscriber(), pickle.loads(pickle.dumps(publisher.subscriber()))
    first = reader.cached(Index)
    assert reader.cached(Index) is first and other.cached(Index) is first and first.value == "one"
    publisher.update("two")
    second = other.cached(Index)
    assert second.value == "two" and reader.cached(Index) is second
    assert CALLS == ["one", "two"]


def test_builders_are_told_apart(publisher):
    reader = publisher.subscriber()
    made = [reader.cached(lambda value: Index(value, 1)) for _ in range(3)]
    assert made[0] is made[1] is made[2] and CALLS == ["one"]
    made = [reader.cached(partial(Index, more=more)) for more in (1, 2, 1)]
    assert made[0] is made[2] and [each.more for each in made] == [1, 2, 1]
    made = [reader.cached(lambda value: Index(value, more)) for more in (1, 2)]  # noqa: B023
    assert [each.more for each in made] == [1, 2]
    made = [reader.cached(lambda value, more=more: Index(value, more)) for more in (1, 2)]
    assert [each.more for each in made] == [1, 2]
    with pytest.raises(TypeError, match="expected a function"):
        reader.cached("no function")
    with pytest.raises(TypeError, match="unhashable"):
        reader.cached(partial(Index, more=[]))


def test_dropped_with_its_version():
    with untorn.publish(np.zeros(3)) as publisher:
        reader = publisher.subscriber()
        gone = weakref.ref(reader.cached(Index))
        gc.collect()
        assert gone() is not None and publisher.readers()[0].versions == (1,)
        publisher.update(np.zeros(4))
        assert reader.cached(len) == 4
        gc.collect()
        assert gone() is None and publisher.readers()[0].versions == ()
        gone = weakref.ref(reader.cached(Index))
        reader.close()
        del reader
        gc.collect()
        assert gone() is None


def test_many_builders_do_not_pile_up(publisher):
    reader = publisher.subscriber()
    made = [weakref.ref(reader.cached(partial(Index, more=more))) for more in range(100)]
    gc.collect()
    assert sum(each() is not None for each in made) <= 16 and made[-1]() is not None


def test_threads_wait_for_the_one_that_builds(publisher):
    reader, begun, go = publisher.subscriber(), threading.Event(), threading.Event()

    def build(value):
        CALLS.append(value)
        begun.set()
        assert go.wait(WATCHDOG_S)
        return object()

    found = []
    threads = [threading.Thread(target=lambda: found.append(reader.cached(build))) for _ in range(8)]
    threads[0].start()
    assert begun.wait(WATCHDOG_S)
    for thread in threads[1:]:
        thread.start()
    publisher.update("two")
    assert reader.cached(len) == 3  # of the newer version, while the older one is being made
    go.set()
    for thread in threads:
        thread.join(WATCHDOG_S)
    assert len(found) == 8
    assert CALLS in (["one"], ["one", "two"]) and len(set(map(id, found))) == len(CALLS)


def test_an_error_is_raised_and_not_kept(publisher):
    reader = publisher.subscriber()

    def build(value):
        CALLS.append(value)
        if len(CALLS) == 1:
            raise ValueError("the first time")
        return len(CALLS)

    with pytest.raises(ValueError, match="the first time"):
        reader.cached(build)
    assert reader.cached(build) == reader.cached(build) == 2


def test_a_builder_that_asks_for_its_own_result(publisher):
    reader = publisher.subscriber()

    def build(value):
        return reader.cached(build)

    with pytest.raises(BusyError, match="asks for its own result"):
        reader.cached(build)
    assert reader.cached(lambda value: (reader.cached(len), value)) == (3, "one")


def test_a_closed_subscriber(publisher):
    reader = publisher.subscriber()
    reader.cached(Index)
    reader.close()
    with pytest.raises(ClosedError):
        reader.cached(Index)


def test_a_child_forked_in_the_middle_makes_its_own(publisher):
    reader, begun, go = publisher.subscriber(), threading.Event(), threading.Event()
    reader.attach()

    def build(value):
        begun.set()
        assert go.wait(WATCHDOG_S)
        return Index(value)

    thread = threading.Thread(target=reader.cached, args=(build,))
    thread.start()
    assert begun.wait(WATCHDOG_S)
    with start(_build, reader, build, go) as child:
        assert child.get() == "one"
    go.set()
    thread.join(WATCHDOG_S)


def _build(pipe, reader, build, go):
    go.set()
    pipe.put(reader.cached(build).value)


def test_the_tasks_of_a_pool_share_it():
    with untorn.publish(np.arange(5)) as publisher:
        reader = publisher.subscriber()
        with ProcessPoolExecutor(1, mp_context=get_context("forkserver")) as pool:
            counts = list(pool.map(_count, [reader] * 5))
    assert counts == [1] * 5


def _count(reader):
    reader.cached(Index)
    return len(CALLS)
