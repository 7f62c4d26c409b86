"""One suite over every kind of value: readers get exactly the published value, whichever process reads or dies.

values.py has the kinds. Most checks need one process; ``processes`` has a partner that reads, publishes, and is killed.
Kinds of libraries that start threads are checked in a process of their own, so that this one may continue to fork.
"""

from __future__ import annotations

import contextlib
import copy
import gc
import importlib
import re
import threading
import time
import traceback
import warnings

import numpy as np
import pytest
from values import KINDS, TOGETHER, Box, Kind, Pair

import untorn
from helpers import descriptors, start, untorn_mappings
from untorn.share.attached import drop_dead_attachments
from untorn.share.queue_files import drop_lonely

ALL = KINDS | TOGETHER
NEWER_VERSIONS = 50
RETRIES = 50


def published(kind: Kind, value, **options):
    return untorn.publish(value, allow_pickle=kind.allow_pickle, **options)


def reader_of(kind: Kind, publisher):
    return publisher.subscriber(allow_pickle=kind.allow_pickle)


def newest(kind: Kind, publisher):
    return reader_of(kind, publisher).snapshot().value


def wrote(kind: Kind, value) -> bool:
    """Try to change a value in place; return whether that was possible."""
    if kind.write is None:
        return False
    errors = (ValueError, TypeError) if kind.refuses else (Exception,)  # each library has its own
    with contextlib.suppress(*errors):
        kind.write(value)
        return True
    return False


def assert_same(kind: Kind, found, expected) -> None:
    assert type(found) is type(expected)
    assert kind.equal(found, expected), f"{found!r}\n  is not\n{expected!r}"


def queue_of(kind: Kind, **options):
    return untorn.queue(4, allow_pickle=kind.allow_pickle, **options)


def assert_in_channel(kind: Kind, found, expected) -> None:
    """Check that the views of a value lie in a mapping of a channel or a queue."""
    mapped = [
        range(*(int(end, 16) for end in re.match("([0-9a-f]+)-([0-9a-f]+) ", line).groups()))
        for line in untorn_mappings()
    ]
    views = kind.views(found)
    assert bool(views) == bool(kind.views(expected))
    for address in views:
        assert any(address in place for place in mapped), f"{address:#x} is a copy"


# -- the checks; each gets a kind and a generator of random numbers


def round_trip(kind: Kind, rng: np.random.Generator) -> None:
    value, again = kind.make(rng), kind.other(rng)
    with published(kind, value) as publisher:
        got = newest(kind, publisher)
        assert_same(kind, got, value)
        assert_in_channel(kind, got, value)
        publisher.update(again)
        assert_same(kind, newest(kind, publisher), again)
        assert_same(kind, got, value)


def read_only(kind: Kind, rng: np.random.Generator) -> None:
    value, later = kind.make(rng), kind.other(rng)
    with published(kind, value) as publisher:
        reader = reader_of(kind, publisher)
        got, before = reader.snapshot().value, reader.snapshot().value
        assert not (wrote(kind, got) and kind.refuses)
        assert_same(kind, before, value)
        assert_same(kind, reader.snapshot().value, value)
        publisher.update(later)
        assert not (wrote(kind, got) and kind.refuses)
        assert_same(kind, reader.snapshot().value, later)
        publisher.update(value)
        assert_same(kind, reader.snapshot().value, value)


def lifetime(kind: Kind, rng: np.random.Generator) -> None:
    value, later = kind.make(rng), kind.other(rng)
    publisher = published(kind, value)
    reader = reader_of(kind, publisher)
    with reader.snapshot() as snapshot:
        got = snapshot.value
    part = kind.part(reader.snapshot().value)
    for version in range(NEWER_VERSIONS):
        publisher.update(later if version % 2 else value)
    assert_same(kind, newest(kind, publisher), later)
    reader.close()
    publisher.close()
    del publisher, reader, snapshot
    gc.collect()
    assert kind.parts_equal(part, kind.part(value))
    assert_same(kind, got, value)
    part = kind.part(got)
    del got
    gc.collect()
    assert kind.parts_equal(part, kind.part(value))


def structure(kind: Kind, rng: np.random.Generator) -> None:
    value, bigger = kind.make(rng), kind.bigger(rng)
    small, large = {"v": value}, {"v": bigger}
    steps = [small, {"v": "text"}, large, {"v": None, "w": 1}, small, large, {"v": []}, small]
    held = []
    with published(kind, small) as publisher:
        reader = reader_of(kind, publisher)
        for step in steps:
            publisher.update(step)
            held.append((step, reader.snapshot().value))
            for expected, found in held:
                assert found.keys() == expected.keys()
                if expected is small or expected is large:
                    assert type(found["v"]) is type(expected["v"])
                    one = type(expected["v"]) is type(value)
                    assert kind.equal(found["v"], expected["v"]) if one else all(map(kind.equal, found["v"], bigger))
                else:
                    assert found == expected


def writing(kind: Kind, rng: np.random.Generator) -> None:
    """update, patch and edit by assignment change one part, and no other."""
    first, second, third, fourth = (kind.make(rng) for _ in range(4))
    with published(kind, {"v": first, "n": 1, "a": np.zeros(3)}) as publisher:
        publisher.update({"v": second, "n": 2, "a": np.ones(3)})
        assert_same(kind, newest(kind, publisher)["v"], second)
        publisher.patch({"v": third})
        assert_same(kind, newest(kind, publisher)["v"], third)
        publisher.patch({"n": 3, "a": np.full(3, 3.0)})
        assert_same(kind, newest(kind, publisher)["v"], third)
        publisher.patch({"v": kind.bigger(rng), "n": 4})
        publisher.patch({"v": first})
        assert_same(kind, newest(kind, publisher)["v"], first)
        with publisher.edit() as tree:
            tree["v"] = fourth
        assert_same(kind, newest(kind, publisher)["v"], fourth)
        with publisher.edit() as tree:
            tree["n"] += 1
            tree["a"] += 1
        got = newest(kind, publisher)
        assert_same(kind, got["v"], fourth)
        assert (got["n"], got["a"].tolist()) == (5, [4, 4, 4])
        with publisher.edit(leaves=["n"]) as tree:
            tree["n"] = 6
        assert_same(kind, newest(kind, publisher)["v"], fourth)


def editing(kind: Kind, rng: np.random.Generator) -> None:
    """edit changes the value in place, if the kind allows it; parts that are kept cannot change it afterwards."""
    value = kind.make(rng)
    changed = copy.deepcopy(value)
    with published(kind, {"v": value, "n": 1}) as publisher:
        with publisher.edit() as tree:
            expected = value
            if wrote(kind, tree["v"]):
                assert wrote(kind, changed)
                expected = changed
        assert_same(kind, newest(kind, publisher)["v"], expected)
        publisher.update({"v": value, "n": 2})
        with publisher.edit() as tree:
            kept, part = tree["v"], kind.part(tree["v"])
        wrote(kind, kept)
        if isinstance(part, np.ndarray) and part.flags.writeable:
            part[...] = np.zeros((), part.dtype)
        assert_same(kind, newest(kind, publisher)["v"], value)
        before = newest(kind, publisher)["v"]
        with publisher.edit() as tree:
            tree["moved"] = [tree.pop("v")]
        assert_same(kind, newest(kind, publisher)["moved"][0], value)
        with pytest.raises(ZeroDivisionError), publisher.edit() as tree:
            wrote(kind, tree["moved"][0])
            raise ZeroDivisionError
        assert_same(kind, newest(kind, publisher)["moved"][0], value)
        assert_same(kind, before, value)


def nested(kind: Kind, rng: np.random.Generator) -> None:
    first, second, third = (kind.make(rng) for _ in range(3))
    tree = {"list": [1, first, "x"], "box": Box({"deep": (second, 2.0)}, "label"), "pair": Pair(third, first), 3: None}
    with published(kind, tree) as publisher:
        got = newest(kind, publisher)
        assert list(got) == list(tree)
        assert_same(kind, got["list"][1], first)
        assert_same(kind, got["box"].content["deep"][0], second)
        assert_same(kind, got["pair"].left, third)
        assert_same(kind, got["pair"].right, first)
        assert (got["list"][2], got["box"].label, got["box"].content["deep"][1], got[3]) == ("x", "label", 2.0, None)
        publisher.patch({"box/content/deep/0": first, "list/2": "y"})
        got = newest(kind, publisher)
        assert_same(kind, got["box"].content["deep"][0], first)
        assert_same(kind, got["pair"].left, third)
        assert got["list"][2] == "y"


def neighbour(kind: Kind, rng: np.random.Generator) -> None:
    """The error for a value that cannot be shared names its place, and nothing is published."""
    value = kind.make(rng)
    spoiled = {"v": value, "deep": [value, {"x": threading.Lock()}]}
    with pytest.raises(untorn.UnsupportedTypeError, match="deep/1/x: "):
        published(kind, spoiled)
    with published(kind, {"v": value, "deep": 1}) as publisher:
        with pytest.raises(untorn.UnsupportedTypeError, match="deep/1/x: "):
            publisher.update(spoiled)
        with pytest.raises(untorn.UnsupportedTypeError, match="deep/1/x: "), publisher.edit() as tree:
            tree["deep"] = spoiled["deep"]
        with pytest.raises(untorn.UnsupportedTypeError):
            publisher.patch({"v": [value, threading.Lock()]})
        assert publisher.version == 1
        assert_same(kind, newest(kind, publisher)["v"], value)


def processes(kind: Kind, rng: np.random.Generator) -> None:
    """Another process reads the value and holds it, publishes one of its own, and is killed."""
    seed = int(rng.integers(2**32))
    random = np.random.default_rng(seed)
    value, other, bigger = kind.make(random), kind.other(random), kind.bigger(random)
    method = "spawn" if kind.threaded else "fork"
    partner = start(_partner, kind.name, seed, method=method)
    with partner, published(kind, value, slots=2, max_slots=2) as publisher:
        mine = newest(kind, publisher)
        wrote(kind, mine)
        partner.put(reader_of(kind, publisher))
        assert partner.get() == "read"
        assert_same(kind, newest(kind, publisher), value)
        del mine
        gc.collect()
        reader = partner.get()
        got = reader.snapshot().value
        assert_same(kind, got, other)
        publisher.update(other)
        with pytest.raises(untorn.CapacityError, match=f"pid {partner.pid} holds version 1"):
            publisher.update(value, timeout_s=0)
        assert partner.kill() == -9
        publisher.update(value, timeout_s=0)
        publisher.update(bigger, timeout_s=0)
        assert type(newest(kind, publisher)) is type(bigger)
        publisher.update(value, timeout_s=0)
        assert_same(kind, newest(kind, publisher), value)
        assert_same(kind, got, other)  # its publisher is dead
        assert_same(kind, reader.snapshot().value, other)
        assert_in_channel(kind, got, other)


# -- the same through a queue


def queued(kind: Kind, rng: np.random.Generator) -> None:
    """Items of one structure, and of others, come out as they went in, while earlier ones are held."""
    value, again, bigger = kind.make(rng), kind.other(rng), kind.bigger(rng)
    pad = np.zeros(20_000)  # so that none of it is copied because it is small
    with queue_of(kind) as queue:
        held = []
        for item in (value, bigger, again, value):
            queue.put(item)
            queue.put({"v": item, "pad": pad})
            held.append((item, queue.get()))
            got = queue.get()["v"]
            held.append((item, got))
            if type(item) is type(value):
                assert_in_channel(kind, got, item)
    for item, got in held:
        assert type(got) is type(item)
        is_pair = isinstance(item, tuple | list) and type(item) is not type(value)
        assert all(map(kind.equal, got, item)) if is_pair else kind.equal(got, item)


def queued_read_only(kind: Kind, rng: np.random.Generator) -> None:
    value = kind.make(rng)
    with queue_of(kind) as queue:
        queue.put(value)
        with pytest.raises(ZeroDivisionError), queue.take() as item:
            assert not (wrote(kind, item.value) and kind.refuses)
            raise ZeroDivisionError
        gc.collect()  # a frame of the traceback may have had the value
        assert_same(kind, queue.get(timeout_s=10), value)
        queue.put(value)
        copied = queue.get(copy=True)
        assert queue.processes()[0].held == 0
        assert_same(kind, copied, value)


def queued_lifetime(kind: Kind, rng: np.random.Generator) -> None:
    value, later = kind.make(rng), kind.other(rng)
    queue = queue_of(kind)
    queue.put(value)
    part = kind.part(queue.get())
    for _ in range(NEWER_VERSIONS):
        queue.put(later)
        assert_same(kind, queue.get(), later)
    queue.close()
    queue.leave()
    del queue
    gc.collect()
    assert kind.parts_equal(part, kind.part(value))


def queued_in_place(kind: Kind, rng: np.random.Generator) -> None:
    """reserve() with the value beside an array that is written in place, and cannot be written to afterwards."""
    value, other = kind.make(rng), kind.other(rng)
    with queue_of(kind) as queue:
        with queue.reserve(like={"v": value, "n": 1, "a": np.empty(3)}) as tree:
            tree["v"], tree["n"] = other, 2
            tree["a"][:] = 5
            kept = tree["a"][:]
        kept[:] = 6
        got = queue.get()
        assert_same(kind, got["v"], other)
        assert (got["n"], got["a"].tolist()) == (2, [5, 5, 5])
        with pytest.raises(ZeroDivisionError), queue.reserve(like={"v": value}) as tree:
            raise ZeroDivisionError
        assert queue.empty()


def queued_nested(kind: Kind, rng: np.random.Generator) -> None:
    first, second, third = (kind.make(rng) for _ in range(3))
    tree = {"list": [1, first, "x"], "box": Box({"deep": (second, 2.0)}, "label"), "pair": Pair(third, first), 3: None}
    with queue_of(kind) as queue:
        queue.put(tree)
        got = queue.get()
        assert list(got) == list(tree)
        assert_same(kind, got["list"][1], first)
        assert_same(kind, got["box"].content["deep"][0], second)
        assert_same(kind, got["pair"].left, third)
        with pytest.raises(untorn.UnsupportedTypeError, match="deep/1/x: "):
            queue.put({"v": first, "deep": [first, {"x": threading.Lock()}]})
        assert queue.empty()


def queued_processes(kind: Kind, rng: np.random.Generator) -> None:
    """Another process takes the value, and is killed: it comes back. What it had finished does not."""
    seed = int(rng.integers(2**32))
    random = np.random.default_rng(seed)
    value, other, bigger = kind.make(random), kind.other(random), kind.bigger(random)
    partner = start(_consumer, kind.name, seed, method="spawn" if kind.threaded else "fork")
    with partner, queue_of(kind) as queue:
        for item in (value, other, bigger):
            queue.put(item)
        partner.put(queue)
        assert partner.get() == "took"
        assert partner.kill() == -9
        assert_same(kind, queue.get(timeout_s=0), other)
        assert type(queue.get(timeout_s=0)) is type(bigger)
        assert_same(kind, queue.get(timeout_s=0), value)  # what the dead process put
        assert queue.empty()


def _consumer(pipe, name, seed):
    kind, random = ALL[name], np.random.default_rng(seed)
    value, other = kind.make(random), kind.other(random)
    queue = pipe.get()
    held = queue.get()
    assert_same(kind, held, value)
    wrote(kind, held)
    queue.put(value)
    taken = queue.take()
    assert_same(kind, taken.value, other)
    pipe.put("took")
    pipe.get()  # never comes


def _partner(pipe, name, seed):
    kind, random = ALL[name], np.random.default_rng(seed)
    value, other = kind.make(random), kind.other(random)
    reader = pipe.get()
    held = reader.snapshot()
    assert_same(kind, held.value, value)
    assert_in_channel(kind, held.value, value)
    wrote(kind, held.value)
    assert_same(kind, reader.snapshot().value, value)
    pipe.put("read")
    with published(kind, other) as publisher:
        pipe.put(reader_of(kind, publisher))
        pipe.get()  # never comes


CHECKS = {
    check.__name__: check
    for check in (
        *(round_trip, read_only, lifetime, structure, writing, editing, nested, neighbour, processes),
        *(queued, queued_read_only, queued_lifetime, queued_in_place, queued_nested, queued_processes),
    )
}
#: with another process; those of libraries with threads check all kinds at once
IN_PROCESSES = ("processes", "queued_processes")


# -- where they run


@pytest.mark.parametrize("check", CHECKS)
@pytest.mark.parametrize("name", [name for name, kind in KINDS.items() if not kind.threaded])
def test_every_kind(name, check, seed):
    _skip_if_missing(KINDS[name])
    CHECKS[check](KINDS[name], np.random.default_rng(seed))


@pytest.mark.parametrize("check", [check for check in CHECKS if check not in IN_PROCESSES])
@pytest.mark.parametrize("name", [name for name, kind in KINDS.items() if kind.threaded])
def test_every_kind_of_a_library_with_threads(name, check, seed, home):
    _check_at(home, name, check, seed)


@pytest.mark.parametrize("check", IN_PROCESSES)
@pytest.mark.parametrize("name", TOGETHER)
def test_all_kinds_of_a_library_with_threads_in_two_processes(name, check, seed, home):
    _check_at(home, name, check, seed)


def _check_at(home, name, check, seed):
    _skip_if_missing(ALL[name])
    home.put((name, check, seed))
    failure = home.get()
    assert failure is None, failure


def _skip_if_missing(kind: Kind) -> None:
    if kind.missing():
        pytest.skip(f"{kind.missing()} is not installed")


@pytest.fixture(scope="module")
def home():
    """The process for kinds of libraries with threads."""
    with start(_home, method="spawn") as child:
        yield child
        child.put()
        assert child.join() == 0


def _home(pipe):
    while (request := pipe.get()) is not None:
        name, check, seed = request
        try:
            for library in ALL[name].needs:
                importlib.import_module(library)
            gc.freeze()  # collecting the objects of the libraries would take most of the time
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                CHECKS[check](ALL[name], np.random.default_rng(seed))
        except BaseException:
            pipe.put(traceback.format_exc())
        else:
            pipe.put(_left_behind())


def _left_behind() -> str | None:
    """Return the descriptors and mappings of channels that this process still has after everything was closed."""
    for _ in range(RETRIES):
        drop_dead_attachments()
        drop_lonely()
        gc.collect()
        left = untorn_mappings() + [target for target in descriptors().values() if "untorn" in target]
        if not left:
            return None
        time.sleep(0.02)  # the kernel takes a moment to release a dead process
    return "left behind:\n  " + "\n  ".join(left)
