"""The objects that the sweeper holds while a victim works, and the conditions after a kill or an error.

A scene is one kind of surroundings, created again for each victim:

- ``NamedScene``: the victim publishes, takes over or removes a channel in a directory; the sweeper reads it.
- ``AnonymousScene``: the victim publishes without a name; the sweeper reads it.
- ``ReaderScene``: the sweeper publishes, the victim reads.

``problems`` is a list of broken promises, in words; it must stay empty.
"""

from __future__ import annotations

import gc
import os
import struct
from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

import untorn
from helpers import descriptors, untorn_mappings
from untorn.cli.gc import collect
from untorn.share.attached import drop_dead_attachments

#: elements of a small value; a large one has LARGE
SMALL, LARGE = 500, 20_000
PAGE = os.sysconf("SC_PAGESIZE")
NAME = "swept"


def payload(version: int, size: int = SMALL) -> dict[str, Any]:
    """A value that says its version in every element."""
    return {"x": np.full(size, version, "i8"), "version": version}


def table(version: int) -> untorn.FrozenDict:
    """The same in a FrozenDict, with an array that does not change, so that versions can consist of changes."""
    return untorn.FrozenDict({"rest": np.full(LARGE, 7), **payload(version)})


def whole(snapshot: untorn.Snapshot) -> int:
    """The version of a snapshot that is exactly one version. Raises AssertionError otherwise."""
    value, version = snapshot.value, snapshot.version
    assert value["version"] == version, f"version {version} says that it is {value['version']}"
    assert np.array_equiv(value["x"], version), f"version {version} is torn: it has {np.unique(value['x'])}"
    if isinstance(value, untorn.FrozenDict):
        assert np.array_equiv(value["rest"], 7), f"version {version} has another base"
        assert len(value) == 3, f"version {version} has {len(value)} entries"
    return version


class Scene(ABC):
    """The surroundings of one victim, in its own directory."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.problems: list[str] = []
        self._before = (set(descriptors()), len(untorn_mappings()))

    def call(self, what: str, step: Any, *args: Any) -> Any:
        """Do one step of the check; record a failure as a problem, and continue with the next steps."""
        try:
            return step(*args)
        except Exception as error:
            self.problems.append(f"{what}: {type(error).__name__}: {error}")
            error.__traceback__ = None
            return None

    def before(self) -> None:  # noqa: B027 (most have nothing to do then)
        """After the victim was forked, and before it does anything."""

    @abstractmethod
    def ready(self, message: Any) -> None:
        """The victim is ready for its work, and says ``message``."""

    @abstractmethod
    def after(self, versions: tuple[int, ...]) -> None:
        """The victim is dead; ``versions`` are those that may be the newest."""

    def end(self) -> None:
        """Nothing may be left of all this."""
        drop_dead_attachments()
        gc.collect()
        fds, mappings = set(descriptors()) - self._before[0], len(untorn_mappings()) - self._before[1]
        if fds or mappings > 0:
            self.problems.append(f"the sweeper keeps descriptors {fds} and {mappings} mappings")
        left = sorted(os.listdir(self.folder))
        if left:
            self.problems.append(f"left in the directory: {left}")
            for name in left:
                os.unlink(self.folder / name)


class _Witness:
    """A reader that holds a version from before."""

    def __init__(self, reader: untorn.Subscriber) -> None:
        self.reader = reader
        self._snapshot = reader.snapshot()
        self._view = self._snapshot.value["x"][3:]
        self.version = whole(self._snapshot)

    def held(self) -> None:
        """Check that the version it holds is unchanged."""
        assert np.array_equiv(self._view, self.version), f"a held view of version {self.version} changed"
        assert whole(self._snapshot) == self.version

    def newest(self) -> int:
        """The newest version, whole, and not older than the one that it holds."""
        with self.reader.snapshot() as snapshot:
            version = whole(snapshot)
        assert version >= self.version, f"versions went back from {self.version} to {version}"
        return version

    def close(self) -> None:
        self._view = None
        self._snapshot.close()
        self.reader.close()


class NamedScene(Scene):
    """The victim writes a named channel.

    Args:
        watched: a reader watches the channel, which exists before.
        may_vanish: the work may remove the channel.
    """

    def __init__(self, folder: Path, *, watched: bool = True, may_vanish: bool = False) -> None:
        super().__init__(folder)
        self._watched, self._may_vanish = watched, may_vanish
        self._witness: _Witness | None = None

    def ready(self, message: Any) -> None:
        if self._watched:
            self._witness = _Witness(untorn.subscribe(self.folder / NAME))

    def after(self, versions: tuple[int, ...]) -> None:
        seen = None
        if self._witness:
            self.call("a held view", self._witness.held)
            seen = self.call("the next snapshot", self._witness.newest)
        found = self.call("attaching anew", self._found)
        if found not in versions and not (found == 0 and self._may_vanish):
            self.problems.append(f"expected one of versions {versions}, found {found}")
        if seen is not None and seen not in versions:
            self.problems.append(f"a reader from before sees version {seen}, expected one of {versions}")
        self.call("taking over", self._take_over, found or 0)
        if self._witness:
            self.call("a held view, after the next publisher", self._witness.held)
            self._witness.close()
        self._witness = None
        self.call("gc", collect, self.folder)

    def _found(self) -> int:
        """The newest version for somebody who comes now; 0 if there is no channel."""
        try:
            with untorn.subscribe(self.folder / NAME) as reader, reader.snapshot() as snapshot:
                return whole(snapshot)
        except untorn.ChannelNotFoundError:
            return 0

    def _take_over(self, newest: int) -> None:
        with untorn.publish(payload(newest + 1), name=NAME, directory=self.folder) as publisher:
            assert publisher.version == newest + 1, f"took over at {publisher.version} after {newest}"
            if self._witness and newest:
                assert self._witness.newest() == newest + 1
            go_on(publisher)


class AnonymousScene(Scene):
    """The victim publishes an anonymous channel and hands its subscriber over."""

    _witness: _Witness

    def ready(self, message: Any) -> None:
        self._witness = _Witness(message)

    def after(self, versions: tuple[int, ...]) -> None:
        self.call("a held view", self._witness.held)
        seen = self.call("the next snapshot", self._witness.newest)
        if seen is not None and seen not in versions:
            self.problems.append(f"a reader sees version {seen}, expected one of {versions}")
        self.call("waiting for a dead publisher", self._waits_for_nothing, seen or 0)
        self.call("a held view, after all", self._witness.held)
        self._witness.close()
        del self._witness

    def _waits_for_nothing(self, seen: int) -> None:
        try:
            self._witness.reader.wait(seen, timeout_s=0)
        except untorn.BrokenChannelError:
            return
        raise AssertionError(f"something newer than {seen} came from a dead publisher")


class ReaderScene(Scene):
    """The sweeper publishes, with few slots and rows, and the victim reads."""

    def before(self) -> None:
        self._publisher = untorn.publish(payload(1), name=NAME, directory=self.folder, max_slots=3, max_readers=3)
        self._publisher.update(payload(2))
        self._publisher.update(payload(3))

    def ready(self, message: Any) -> None:
        pass

    def after(self, versions: tuple[int, ...]) -> None:
        self.call("going on", go_on, self._publisher)
        self._publisher.unlink()
        self._publisher.close()
        del self._publisher


def go_on(publisher: untorn.Publisher) -> None:
    """A publisher whose readers are all of this process can do all that it should, without a wait, and no memory, row
    or slot is lost to the dead."""
    with publisher.subscriber() as reader:
        for work in (_update, _update, _grow, _patch, _edit, _update, _edit):
            with reader.snapshot() as held:
                before = whole(held)
                work(publisher)
                assert whole(held) == before
            with reader.snapshot() as snapshot:
                assert whole(snapshot) == publisher.version
        attachment = publisher._attachment
        assert attachment is not None
        attachment.reclaim()
        strangers = {info.pid for info in publisher.readers()} - {os.getpid()}
        assert not strangers, f"rows of processes {strangers} are still taken"
        holders = list(_held_rows(attachment))
        holding = sum(bool(info.versions) for info in publisher.readers())
        assert len(holders) == holding, f"rows {holders} hold slots, and {holding} readers do"
        taken = os.fstat(attachment.data_fd).st_blocks * 512
        assert taken <= publisher.nbytes + PAGE, f"the data file takes {taken} bytes, its slots {publisher.nbytes}"
        assert publisher.nbytes <= 8 * (LARGE * 8 + 2 * PAGE), f"the slots take {publisher.nbytes} bytes"


def _update(publisher: untorn.Publisher) -> None:
    publisher.update(payload(publisher.version + 1), timeout_s=0)


def _grow(publisher: untorn.Publisher) -> None:
    publisher.update(payload(publisher.version + 1, LARGE), timeout_s=0)


def _patch(publisher: untorn.Publisher) -> None:
    version = publisher.version + 1
    publisher.patch({"x": np.full(SMALL, version, "i8"), "version": version}, timeout_s=0)


def _edit(publisher: untorn.Publisher) -> None:
    with publisher.edit(timeout_s=0) as value:
        value["version"] = publisher.version + 1
        value["x"][:] = value["version"]


def _held_rows(attachment: Any) -> Iterator[int]:
    """The reader rows that hold anything, by the bytes of the control file."""
    raw = os.pread(attachment.control_fd, 64 * (attachment.max_readers + 1), 4096)
    for row in range(1, attachment.max_readers + 1):
        if struct.unpack_from("<Q", raw, 64 * row)[0]:
            yield row
