"""One publisher and the readers of three processes do whatever they may, in any order, against a plain model.

The model is what was published, under which version, and who keeps what. From it follows what every snapshot must
show, when a version must be refused for lack of a slot, what readers() says, and how much memory there may be.
"""

from __future__ import annotations

import copy
import gc
import hashlib
import os
import pickle
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

import hypothesis
import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

import untorn
from conftest import SEED
from helpers import start, untorn_mappings
from untorn.share.attached import drop_dead_attachments

EXAMPLES, SOAK_EXAMPLES = 30, 2_000
STEPS, SOAK_STEPS = 30, 100
MOST_KEPT = 5
PAGE = os.sysconf("SC_PAGESIZE")
LEAF_OVERHEAD = 256  # alignment, and its part of the schema


@pytest.fixture(autouse=True, scope="module")
def _no_directory_here(tmp_path_factory):
    """Let hypothesis write its files to pytest's temporary directory."""
    hypothesis.configuration.set_hypothesis_home_dir(tmp_path_factory.mktemp("hypothesis"))
    yield
    hypothesis.configuration.set_hypothesis_home_dir(None)


# -- values


def array(size: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(size)


arrays = st.builds(array, st.sampled_from([0, 1, 7, 500, 5_000, 40_000]), st.integers(0, 99))
small = st.one_of(st.integers(-(2**70), 2**70), st.text(max_size=5), st.none(), st.floats(allow_nan=False))
subtrees = st.one_of(small, st.fixed_dictionaries({"a": arrays, "b": small}), st.lists(arrays, max_size=2))
values = st.fixed_dictionaries({"w": arrays, "n": st.integers(-9, 9), "sub": subtrees})


def digest(value: Any) -> str:
    """Return a digest that identifies a value, whole or in part."""
    made = hashlib.sha256()

    def add(node: Any) -> None:
        if isinstance(node, np.ndarray):
            made.update(f"{node.dtype.str} {node.shape} ".encode() + node.tobytes())
        elif isinstance(node, dict):
            made.update(f"dict {list(node)} ".encode())
            for child in node.values():
                add(child)
        elif isinstance(node, list):
            made.update(f"list {len(node)} ".encode())
            for child in node:
                add(child)
        else:
            made.update(f"{type(node)} {node!r} ".encode())

    add(value)
    return made.hexdigest()


def room(value: Any) -> int:
    """Bytes that a value may take, its schema included."""
    if isinstance(value, np.ndarray):
        return value.nbytes + LEAF_OVERHEAD
    children = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return LEAF_OVERHEAD + sum(map(room, children))


PARTS: dict[str, Callable[[Any], Any]] = {"snapshot": lambda value: value, "value": lambda value: value}
PARTS["view"] = lambda value: value["w"][::2]


# -- readers


class Reading:
    """The reading side of one process: subscribers, and what is kept of their snapshots."""

    def __init__(self) -> None:
        self.subscribers: list[untorn.Subscriber] = []
        self.kept: list[tuple[str, Any]] = []

    def open(self, channel: Any, how: str) -> None:
        if how == "pickled":
            channel = pickle.loads(pickle.dumps(channel))
        elif how != "as it is":
            channel = untorn.subscribe(channel)
        channel.attach()
        self.subscribers.append(channel)

    def close(self, index: int) -> None:
        subscriber = self.subscribers.pop(index)
        subscriber.close()
        subscriber.close()
        try:
            subscriber.snapshot()
        except untorn.ClosedError:
            return
        raise AssertionError("a closed subscriber gave a snapshot")

    def take(self, index: int, how: str) -> tuple[int, str]:
        """Take a snapshot and keep it, or its value, or a view into it: its version, and the digest of what is kept."""
        snapshot = self.subscribers[index].snapshot()
        if how == "snapshot":
            self.kept.append((how, snapshot))
        else:
            with snapshot:
                self.kept.append((how, PARTS[how](snapshot.value)))
        return snapshot.version, self._look(-1)

    def _look(self, index: int) -> str:
        how, kept = self.kept[index]
        return digest(kept.value if how == "snapshot" else kept)

    def look(self) -> list[str]:
        """The digests of all that is kept."""
        return [self._look(index) for index in range(len(self.kept))]

    def drop(self, index: int) -> None:
        how, kept = self.kept.pop(index)
        if how == "snapshot":
            kept.close()

    def version(self, index: int) -> int:
        return self.subscribers[index].version

    def wait(self, index: int, newer_than: int, timeout_s: float | None) -> int | str:
        """The version, or the name of the error."""
        try:
            return self.subscribers[index].wait(newer_than, timeout_s)
        except (TimeoutError, untorn.BrokenChannelError) as error:
            return type(error).__name__

    def pid(self) -> int:
        return os.getpid()

    def reset(self) -> list[str]:
        """Release everything; returns what is mapped all the same."""
        self.subscribers.clear()
        self.kept.clear()
        drop_dead_attachments()
        gc.collect()
        return untorn_mappings()


class Elsewhere:
    """A Reading in another process."""

    def __init__(self, child) -> None:
        self._child = child

    def __getattr__(self, method: str) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            self._child.put((method, arguments))
            return self._child.get()

        return call


def _serve(pipe):
    reading = Reading()
    while True:
        method, arguments = pipe.get()
        pipe.put(getattr(reading, method)(*arguments))
        del arguments


# -- the model


class Kept(NamedTuple):
    """The part of a version that one process keeps."""

    channel: int
    version: int
    digest: str


class Model:
    """The objects of each process."""

    def __init__(self) -> None:
        self.subscribed: list[int] = []
        self.kept: list[Kept] = []


class Channel(NamedTuple):
    """The newest version of a channel."""

    version: int
    value: Any


class Dropped(Exception):
    """The exception of an edit's block."""


class Machine(RuleBasedStateMachine):
    """The rules."""

    partners: tuple = ()
    names: Any = None

    def __init__(self) -> None:
        super().__init__()
        self.readers: list[Any] = [Reading(), *map(Elsewhere, self.partners)]
        self.models = [Model() for _ in self.readers]
        self.pids = [reader.pid() for reader in self.readers]
        self.newest: list[Channel] = []  # of each channel that there was
        self.name: str | None = None

    @initialize(value=values, named=st.booleans(), slots=st.integers(1, 4), max_slots=st.integers(2, 4))
    def first(self, value, named, slots, max_slots):
        self.name = next(self.names) if named else None
        self.new_channel(value, slots, max_slots)
        for number in range(len(self.readers)):
            self.open(number=number, how="as it is")

    def new_channel(self, value, slots, max_slots):
        self.publisher = untorn.publish(value, name=self.name, slots=slots, max_slots=max_slots)
        self.slots, self.max_slots = slots, max_slots
        self.newest.append(Channel(1, copy.deepcopy(value)))
        self.alive, self.linked = True, self.name is not None
        self.largest, self.taken = room(value), 0

    # -- what follows from the model

    @property
    def channel(self) -> int:
        return len(self.newest) - 1

    @property
    def value(self) -> Any:
        return copy.deepcopy(self.newest[-1].value)

    @property
    def version(self) -> int:
        return self.newest[-1].version

    def held(self) -> set[int]:
        """The versions of this channel that somebody keeps."""
        return {kept.version for model in self.models for kept in model.kept if kept.channel == self.channel}

    def is_full(self) -> bool:
        return len(self.held() | {self.version}) >= self.max_slots

    def picked(self, value: Any) -> None:
        """A slot was picked for this value."""
        self.taken = len(self.held() | {self.version})
        self.largest = max(self.largest, room(value))

    def published(self, value: Any) -> None:
        self.picked(value)
        self.newest[-1] = Channel(self.version + 1, copy.deepcopy(value))

    def write(self, value: Any, write: Callable[[], int | None]) -> None:
        """Call ``write``, which publishes ``value`` if there is a slot for it."""
        if self.is_full():
            with pytest.raises(untorn.CapacityError, match="no free slot"):
                write()
        else:
            returned = write()
            self.published(value)
            assert returned in (None, self.version)

    # -- the publisher

    @precondition(lambda self: self.alive)
    @rule(value=values)
    def update(self, value):
        self.write(value, lambda: self.publisher.update(value, timeout_s=0))

    @precondition(lambda self: self.alive)
    @rule(changes=st.fixed_dictionaries({}, optional={"w": arrays, "n": st.integers(-9, 9), "sub": subtrees}))
    def patch(self, changes):
        self.write(self.value | changes, lambda: self.publisher.patch(changes, timeout_s=0))

    @precondition(lambda self: self.alive and isinstance(self.value["sub"], dict))
    @rule(part=arrays, other=small, both=st.booleans())
    def patch_inside(self, part, other, both):
        value, changes = self.value, {"sub/a": part}
        value["sub"]["a"] = part
        if both:
            changes["sub/b"] = value["sub"]["b"] = other
        self.write(value, lambda: self.publisher.patch(changes, timeout_s=0))

    @precondition(lambda self: self.alive)
    @rule(sub=st.none() | subtrees, number=st.integers(-9, 9))
    def edit(self, sub, number):
        value = self.value

        def change(tree):
            tree["w"] *= number
            tree["n"] = number
            if sub is not None:
                tree["sub"] = sub

        def write():
            with self.publisher.edit(timeout_s=0) as tree:
                assert digest(tree) == digest(value)
                change(tree)

        after = self.value
        change(after)
        self.write(after, write)

    @precondition(lambda self: self.alive)
    @rule(number=st.integers(-9, 9), path=st.sampled_from(["w", "n"]), whole=st.booleans())
    def edit_leaves(self, number, path, whole):
        value = self.value
        value[path] = np.full_like(value["w"], number) if path == "w" else number

        def write():
            with self.publisher.edit(leaves=[path], copy=whole, timeout_s=0) as tree:
                if path == "w":
                    tree["w"][:] = number
                else:
                    tree["n"] = number

        self.write(value, write)

    @precondition(lambda self: self.alive)
    @rule(number=st.integers(-9, 9))
    def edit_without_a_copy(self, number):
        def fill(tree):
            for node in tree.values() if isinstance(tree, dict) else tree:
                if isinstance(node, np.ndarray):
                    node[...] = number
                elif isinstance(node, dict | list):
                    fill(node)

        def write():
            with self.publisher.edit(copy=False, timeout_s=0) as tree:
                fill(tree)

        value = self.value
        fill(value)
        self.write(value, write)

    @precondition(lambda self: self.alive and not self.is_full())
    @rule(leaves=st.sampled_from([None, ["w"], ["n"], []]))
    def edit_that_raises(self, leaves):
        with pytest.raises(Dropped), self.publisher.edit(leaves=leaves, timeout_s=0) as tree:
            if leaves is None or "w" in leaves:
                tree["w"][:] = 77
            tree["n"] = 77
            raise Dropped
        self.picked(self.value)

    @precondition(lambda self: self.alive)
    @rule()
    def refusals(self):
        with pytest.raises(untorn.UnsupportedTypeError, match="w/x"):
            self.publisher.update({"w": {"x": object()}}, timeout_s=0)
        with pytest.raises(KeyError):
            self.publisher.patch({"nowhere": 1}, timeout_s=0)
        if self.linked:
            with pytest.raises(untorn.BusyError):
                untorn.publish(0, name=self.name)

    @precondition(lambda self: self.alive)
    @rule()
    def close(self):
        self.publisher.close()
        self.publisher.close()
        with pytest.raises(untorn.ClosedError):
            self.publisher.update(1)
        self.alive = False

    @precondition(lambda self: self.linked)
    @rule()
    def unlink(self):
        self.publisher.unlink()
        self.linked = False
        with pytest.raises(untorn.ChannelNotFoundError):
            untorn.subscribe(self.name)

    @precondition(lambda self: not self.alive and self.linked and not self.is_full())
    @rule(value=values)
    def take_over(self, value):
        self.publisher = untorn.publish(value, name=self.name)
        self.published(value)
        self.alive = True

    @precondition(lambda self: not self.alive and not self.linked)
    @rule(value=values, slots=st.integers(1, 4), max_slots=st.integers(2, 4))
    def publish_again(self, value, slots, max_slots):
        self.new_channel(value, slots, max_slots)

    # -- readers

    def reader(self, data, among: Callable[[Model], Any]) -> tuple[Any, Model, int]:
        """A reader that has one of something, and which."""
        number = data.draw(st.sampled_from([i for i, model in enumerate(self.models) if among(model)]))
        model = self.models[number]
        return self.readers[number], model, data.draw(st.integers(0, len(among(model)) - 1))

    @precondition(lambda self: self.alive)
    @rule(number=st.integers(0, 2), how=st.sampled_from(["as it is", "pickled", "again", "by name"]))
    def open(self, number, how):
        named = how == "by name" and self.linked
        self.readers[number].open(self.name if named else self.publisher.subscriber(), how)
        self.models[number].subscribed.append(self.channel)

    @precondition(lambda self: self.models[0].subscribed)
    @rule(data=st.data(), number=st.integers(0, 2))
    def pass_on(self, data, number):
        """A subscriber of a channel that may have no publisher any more."""
        index = data.draw(st.integers(0, len(self.models[0].subscribed) - 1))
        self.readers[number].open(self.readers[0].subscribers[index], "pickled")
        self.models[number].subscribed.append(self.models[0].subscribed[index])

    @precondition(lambda self: any(model.subscribed for model in self.models))
    @rule(data=st.data())
    def close_subscriber(self, data):
        reader, model, index = self.reader(data, lambda model: model.subscribed)
        reader.close(index)
        del model.subscribed[index]

    @precondition(lambda self: any(model.subscribed and len(model.kept) < MOST_KEPT for model in self.models))
    @rule(data=st.data(), how=st.sampled_from(list(PARTS)))
    def take(self, data, how):
        reader, model, index = self.reader(data, lambda model: model.subscribed * (len(model.kept) < MOST_KEPT))
        channel = model.subscribed[index]
        version, value = self.newest[channel]
        expected = digest(PARTS[how](value))
        assert reader.take(index, how) == (version, expected)
        model.kept.append(Kept(channel, version, expected))

    @precondition(lambda self: self.alive)
    @rule(number=st.integers(0, 2), hows=st.lists(st.sampled_from(list(PARTS)), min_size=1, max_size=3), value=values)
    def take_and_go_on(self, number, hows, value):
        """As many versions are kept as a reader may come to keep in one step."""
        self.open(number=number, how="as it is")
        model = self.models[number]
        for how in hows[: MOST_KEPT - len(model.kept)]:
            expected = digest(PARTS[how](self.value))
            assert self.readers[number].take(len(model.subscribed) - 1, how) == (self.version, expected)
            model.kept.append(Kept(self.channel, self.version, expected))
            self.update(value=value)

    @precondition(lambda self: any(model.kept for model in self.models))
    @rule(data=st.data())
    def drop(self, data):
        reader, model, index = self.reader(data, lambda model: model.kept)
        reader.drop(index)
        del model.kept[index]

    @precondition(lambda self: any(model.subscribed for model in self.models))
    @rule(data=st.data(), back=st.integers(1, 3))
    def wait(self, data, back):
        reader, model, index = self.reader(data, lambda model: model.subscribed)
        channel = model.subscribed[index]
        version = self.newest[channel].version
        assert reader.version(index) == version
        assert reader.wait(index, max(0, version - back), 0) == version
        lives = self.alive and channel == self.channel
        has_successor = self.linked and channel != self.channel
        waits = lives or (self.name is not None and not has_successor)  # a publisher may take a named one over
        ended = reader.wait(index, version, 0)
        assert ended == ("TimeoutError" if waits else "BrokenChannelError"), (self.name, lives)
        if not lives:
            assert reader.wait(index, version, None) == "BrokenChannelError"

    # -- what always holds

    @invariant()
    def kept_snapshots_are_what_was_published(self):
        for reader, model in zip(self.readers, self.models, strict=True):
            if model.kept:
                assert reader.look() == [kept.digest for kept in model.kept]

    @invariant()
    def publisher_agrees(self):
        if not self.newest or not self.alive:
            return
        assert self.publisher.version == self.version
        expected = {}
        for pid, model in zip(self.pids, self.models, strict=True):
            versions = {kept.version for kept in model.kept if kept.channel == self.channel}
            if versions:
                expected[pid] = tuple(sorted(versions))
        assert {info.pid: info.versions for info in self.publisher.readers() if info.versions} == expected
        rounded = (self.largest // PAGE + 1) * PAGE
        assert self.publisher.nbytes <= (self.taken + 1 + self.slots) * rounded

    def teardown(self):
        if self.newest:
            self.publisher.unlink()
            self.publisher.close()
            del self.publisher
        left = [reader.reset() for reader in self.readers]
        if sys.exc_info()[0] is None:  # else the traceback keeps what its frames had
            assert left == [[]] * len(self.readers)


@pytest.mark.parametrize(
    ("count", "steps"),
    [(EXAMPLES, STEPS), pytest.param(SOAK_EXAMPLES, SOAK_STEPS, marks=pytest.mark.soak)],
    ids=["quick", "long"],
)
def test_a_channel_is_what_its_model_says(count, steps, name):
    print(f"UNTORN_SEED={SEED}")
    names = (f"{name}-{number}" for number in range(10**9))
    with start(_serve) as one, start(_serve) as two:
        machine = type("Channel", (Machine,), {"partners": (one, two), "names": names})
        run_state_machine_as_test(
            hypothesis.seed(SEED)(machine),
            settings=settings(
                max_examples=count,
                stateful_step_count=steps,
                deadline=None,
                database=None,
                print_blob=True,
                suppress_health_check=list(HealthCheck),
            ),
        )


# -- what was found, as plain tests


def test_a_subscriber_that_went_from_process_to_process_still_knows_the_name(name):
    """The processes that it came through may be gone by then, and another publisher may take the channel over."""
    with untorn.publish(1, name=name) as publisher, start(_serve) as last:
        subscriber = publisher.subscriber()
        for _ in range(3):
            with start(_pass_on) as child:
                child.put(subscriber)
                subscriber = child.get()
                child.put()
                child.join()
        last.put(("open", (subscriber, "pickled")))
        last.get()
        publisher.close()
        last.put(("wait", (0, 1, 0)))
        ended = last.get()
        publisher.unlink()
        del subscriber
        assert ended == "TimeoutError"


def _pass_on(pipe):
    subscriber = pipe.get()
    subscriber.attach()
    pipe.put(subscriber)
    pipe.get()
