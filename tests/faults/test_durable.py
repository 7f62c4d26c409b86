"""A crash of the machine at every step of a durable publisher.

A recorder (crashes.py) copies the bytes of both files before and after each step, and derives the states that a crash
could leave on the disk::

    steps    pick | write | finish | sync data | sync control | publish | sync control   update() returned 5
    disk     4 .......................................................... 4 or 5 ......  5

Each such state must open at the last version whose call had returned, or at the version that was being published. It
must be whole, and the next publisher must continue from it. Mutants of the code prove that the test detects errors.
"""

import contextlib
import errno
import itertools
import os
import resource
import struct
import threading
from collections.abc import Callable
from types import SimpleNamespace
from unittest import mock

import numpy as np
import pytest
from crashes import Machine

import untorn
from untorn import _core
from untorn.share import compaction, storage, table_writer, versions

SIZES_AFTER = (900, 30, 2500, 400, 1700)


def tree(version: int, n: int) -> dict:
    return {"a": np.full(n, version, "i8"), "b": np.arange(n // 2) * version, "version": version}


def same(value, expected) -> bool:
    return value["version"] == expected["version"] and all(np.array_equal(value[k], expected[k]) for k in "ab")


# -- scenarios


class Life:
    """A durable publisher, its value, and readers that hold versions."""

    def __init__(self, machine: Machine, *, max_slots: int = 8, n: int = 300, made: Callable = dict) -> None:
        self.machine = machine
        self.max_slots = max_slots
        self.made = made  # what is published instead of a dict
        self.publisher = None
        self.held: list = []
        self.take_over(n)

    def take_over(self, n: int) -> None:
        """The publisher dies, and another takes over."""
        if self.publisher is not None:
            self.publisher._open_versions = self.publisher._tables = self.machine._attachment = None
            self.publisher._when_dropped.detach()  # it would end the channel in order
        options = {"slots": 3, "max_slots": self.max_slots, "max_readers": 4, "durable": True}
        version = max(self.machine.expected, default=0) + 1
        value = self._expect(version, tree(version, n))
        self.publisher = untorn.publish(self.made(value), name="channel", directory=self.machine.folder, **options)
        self._returned(version)

    def _expect(self, version: int, value: dict) -> dict:
        self.machine.expected[version] = value
        return value

    def _returned(self, version: int) -> None:
        assert self.publisher.version == version
        self.machine.returned = version
        self.machine.step()

    def _next(self) -> tuple[int, dict]:
        version = self.publisher.version
        return version + 1, self.machine.expected[version]

    def update(self, n: int) -> None:
        version, _ = self._next()
        self._returned(self.publisher.update(self.made(self._expect(version, tree(version, n)))))

    def patch(self) -> None:
        version, old = self._next()
        changes = {"b": np.full_like(old["b"], -version), "version": version}
        self._expect(version, {**old, **changes})
        self._returned(self.publisher.patch(changes))

    def edit(self) -> None:
        version, old = self._next()
        self._expect(version, {"a": old["a"] + 1, "b": old["b"], "version": version})
        with self.publisher.edit() as value:
            value["a"] += 1
            value["version"] = version
            self.machine.step()
        self._returned(version)

    def hold(self) -> None:
        self.held.append(untorn.subscribe(self.publisher).snapshot())

    def fail(self) -> None:
        """An edit is dropped, and a version finds no room."""
        with contextlib.suppress(ZeroDivisionError), self.publisher.edit() as value:
            value["a"][:] = -7
            self.machine.step()
            raise ZeroDivisionError
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, limits[1]))
        try:
            with pytest.raises(untorn.CapacityError):
                self.publisher.update({"a": np.zeros(1 << 18)})
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)

    def interrupted(self, n: int) -> None:
        """Ctrl-C or a kill comes between the last two steps: the version is published, but may not be on the disk."""
        version, _ = self._next()
        self.machine.interrupt_at = f"version {version}"
        with pytest.raises(KeyboardInterrupt):
            self.update(n)

    def end(self) -> None:
        assert all(same(snap.value, self.machine.expected[snap.version]) for snap in self.held)
        self.held.clear()
        self.publisher.close()


def updates(machine):
    life = Life(machine)
    for n in (300, 300, 310, 300):
        life.update(n)
    return life


def growing(machine):
    life = Life(machine, n=20)
    for n in (600, 1200, 2400, 4000):
        life.update(n)
    return life


def shrinking(machine):
    life = Life(machine, n=4000)
    for n in (2000, 900, 100, 3000, 10, 2000):
        life.update(n)
    return life


def patches(machine):
    life = Life(machine, n=1500)
    for _ in range(4):
        life.patch()
    life.update(500)
    life.patch()
    return life


class InPlace(threading.Thread):
    """A thread whose work is done by start()."""

    def start(self) -> None:
        self.run()

    def is_alive(self) -> bool:
        return False

    def join(self, timeout: float | None = None) -> None:
        pass


def tables(machine):
    """Versions consist of changes, a thread writes the next base, and the space of the one before is given back."""
    threads = SimpleNamespace(Thread=InPlace, current_thread=threading.current_thread)
    with (
        mock.patch.object(compaction, "threading", threads),
        mock.patch.multiple(table_writer, _SMALL_NBYTES=0, _LARGE_NBYTES=0, MAX_SHARE=3, _MAX_SHARE_MEANWHILE=1),
    ):
        life = Life(machine, n=1500, made=untorn.FrozenDict)
        bases = set()
        for _ in range(5):
            life.patch()
            life.hold()
            bases.add(life.held[-1]._held().base_version)
            del life.held[:-2]
        assert len(bases) > 2, "the base did not change"
        life.take_over(900)
        life.patch()
        return life


def edits(machine):
    life = Life(machine, n=700)
    for _ in range(4):
        life.edit()
    return life


def held(machine):
    life = Life(machine, n=400)
    for n in (800, 400, 1600, 800, 100):
        life.hold()
        life.update(n)
    del life.held[1:3]
    life.patch()
    life.update(2000)
    life.held.clear()
    life.update(900)
    return life


def many_held(machine):
    """The slot table needs more than one sector, and `latest` is in the first one."""
    life = Life(machine, max_slots=64, n=100)
    states, machine.states = machine.states, {}
    for n in range(26):
        life.hold()
        life.update(100 + 20 * n)
    machine.states = states
    for n in (700, 1500, 900):
        life.hold()
        life.update(n)
    life.held.clear()
    life.update(1200)
    return life


def moving(machine):
    """Slots release their space, and a slot in another line of the slot table gets it."""
    life = Life(machine, max_slots=16, n=600)
    for _ in range(8):
        life.hold()
        life.update(600)
    for index in (7, 6, 5, 1):
        del life.held[index]
    life.update(1800)
    life.hold()
    life.update(600)
    life.held.clear()
    life.update(3000)
    return life


def failures(machine):
    life = Life(machine, n=600)
    life.hold()
    for n in (600, 600, 600):
        life.update(n)
    for n in (600, 600, 900):
        life.fail()
        life.update(n)
    return life


def interruptions(machine):
    life = Life(machine)
    for n in (300, 500):
        life.update(n)
        life.interrupted(n)
        life.update(n)
    return life


def take_overs(machine):
    life = Life(machine)
    for n in (300, 900, 200):
        life.update(n)
        life.interrupted(n)
        life.take_over(n)
    life.take_over(300)
    return life


def not_durable_before(machine):
    """The guarantee begins when the first durable publish() has returned."""
    machine.expected[1] = tree(1, 300)
    untorn.publish(machine.expected[1], name="channel", directory=machine.folder).close()
    life = Life(machine)
    machine.states.clear()
    for n in (300, 400, 300):
        life.update(n)
    return life


SCENARIOS = (
    updates,
    growing,
    shrinking,
    patches,
    tables,
    edits,
    held,
    many_held,
    moving,
    failures,
    interruptions,
    take_overs,
    not_durable_before,
)


# -- states after a crash


def crashes(scenario, rng, folder, mutate=lambda patch: None) -> Machine:
    """Run a scenario and collect the states that a crash could leave."""
    folder.mkdir()
    machine = Machine(rng, folder)
    with pytest.MonkeyPatch.context() as patch:
        mutate(patch)
        machine.watch(patch)
        scenario(machine).end()
    return machine


def fault(state, expected, folder) -> str:
    """Return the faults of a state; empty if it keeps the guarantee."""
    try:
        _check(state, expected, folder)
        return ""
    except (untorn.UntornError, _core.StatusError, AssertionError) as error:
        return f"{type(error).__name__}: {error}"
    finally:
        for part in ("control", "data"):
            (folder / f"channel.{part}").unlink(missing_ok=True)


def _check(state, expected, folder) -> None:
    returned, begun, *parts = state
    for part, content in zip(("control", "data"), parts, strict=True):
        if content is not None:
            (folder / f"channel.{part}").write_bytes(content)
    first = kept = None
    if None not in parts:
        reader = untorn.subscribe(folder / "channel")
        first = kept = reader.snapshot()
        assert returned <= first.version <= begun, f"{first.version} is not of {returned} to {begun}"
        assert same(first.value, expected[first.version]), f"version {first.version} is torn"
    else:
        assert returned == 0, f"version {returned} had been published, and there is no channel"
    version = first.version if first else 0
    with untorn.publish(tree(version + 1, 50), name="channel", directory=folder) as publisher:
        reader = untorn.subscribe(publisher)
        assert publisher.version == version + 1
        for n in SIZES_AFTER:
            version = publisher.version + 1
            publisher.update(tree(version, n))
            snap = reader.snapshot()
            assert snap.version == version and same(snap.value, tree(version, n)), f"version {version} after it is torn"
            assert first is None or same(first.value, expected[first.version]), "a version that is held was torn"
            assert kept is first or same(kept.value, tree(kept.version, len(kept.value["a"]))), "a later one was torn"
            kept = snap if n == 30 else kept


def faults(machine: Machine, folder) -> list[str]:
    """Return the faults after each crash."""
    folder.mkdir()
    return [found for state in machine.states if (found := fault(state, machine.expected, folder))]


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_a_crash_at_any_step(scenario, rng, tmp_path):
    machine = crashes(scenario, rng, tmp_path / "life")
    assert len(machine.states) > 100
    assert faults(machine, tmp_path / "after") == []


# -- mutants that must be detected


def _without_data(patch):
    def sync_data(self):
        if self._table is None:
            os.fdatasync(self.attachment.control_fd)

    patch.setattr(versions.Versions, "_sync_data", sync_data)


def _data_after_latest(patch):
    sync_data, sync_latest = versions.Versions._sync_data, versions.Versions._sync_latest

    def late(self):
        sync_latest(self)
        sync_data(self)

    patch.setattr(versions.Versions, "_sync_data", lambda self: None)
    patch.setattr(versions.Versions, "_sync_latest", late)


def _without_table(patch):
    patch.setattr(versions.Versions, "_sync_data", lambda self: os.fdatasync(self.attachment.data_fd))


def _without_latest(patch):
    patch.setattr(versions.Versions, "_sync_latest", lambda self: setattr(self, "_settled", True))


def _without_settling(patch):
    patch.setattr(versions.Versions, "_settle", lambda self: None)


def _table_compared_at_the_end_alone(patch):
    begin = versions.Versions.begin

    def forgetful(self, nbytes, timeout_s):
        table = self._table
        try:
            return begin(self, nbytes, timeout_s)
        finally:
            self._table = table

    sync_data = versions.Versions._sync_data

    def compare(self):
        self._table = self._table if self._table == self._read_table() else None
        sync_data(self)

    patch.setattr(versions.Versions, "begin", forgetful)
    patch.setattr(versions.Versions, "_sync_data", compare)


def _without_the_directory(patch):
    patch.setattr(storage, "_sync_directory", lambda path: None)


MUTANTS = {
    "no sync of data": (_without_data, updates),
    "data synced after latest": (_data_after_latest, updates),
    "no sync of the slot table": (_without_table, growing),
    "no sync of latest": (_without_latest, updates),
    "an interrupted version is not settled": (_without_settling, interruptions),
    "a killed publisher's version is not settled": (_without_settling, take_overs),
    "the slot table is compared at the end alone": (_table_compared_at_the_end_alone, failures),
    "no sync of the directory": (_without_the_directory, updates),
    "no sync of the directory of a channel that exists": (_without_the_directory, not_durable_before),
}


@pytest.mark.parametrize("mutant", MUTANTS)
def test_a_mutant_is_caught(mutant, rng, tmp_path):
    mutate, scenario = MUTANTS[mutant]
    machine = crashes(scenario, rng, tmp_path / "life", mutate)
    assert faults(machine, tmp_path / "after")


@pytest.mark.parametrize("failing", range(6))
def test_an_error_of_the_disk_leaves_a_whole_version(tmp_path, monkeypatch, failing):
    """The version is the old or the new one, and the next call continues from it, also with another structure."""
    values = [{"a": np.arange(100)}, {"b": "text", "a": np.arange(50)}]
    real, left = os.fdatasync, [failing]

    def fdatasync(fd):
        left[0] -= 1
        if left[0] == -1:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        real(fd)

    with untorn.publish(values[0], name="channel", directory=tmp_path, durable=True) as publisher:
        reader = untorn.subscribe(tmp_path / "channel")
        monkeypatch.setattr(os, "fdatasync", fdatasync)
        shown = values[0]
        for value in values[1:] + values * 2:
            version = publisher.version
            with contextlib.suppress(OSError):
                publisher.update(value)
            shown = value if publisher.version > version else shown
            snap = reader.snapshot()
            assert snap.version == publisher.version and str(snap.value) == str(shown)
        assert left[0] < 0 and publisher.patch({"a": np.ones(50)}) == publisher.version
        assert reader.snapshot().value["a"].sum() == 50


def test_slots_that_overlap_are_among_what_is_left(rng, tmp_path):
    """The first publisher after a crash must not trust the slot table; a mutant in tests/c/test_attachment.c does."""
    machine = crashes(moving, rng, tmp_path / "life")
    assert any(control and overlaps(control) for _, _, control, _ in machine.states)


def overlaps(control: bytes) -> bool:
    """Return whether two slots of the slot table (docs/format.md) overlap."""
    extents = sorted(extent for extent in struct.iter_unpack("<QQ", control[128:1152]) if extent[1])
    return any(first[0] + first[1] > second[0] for first, second in itertools.pairwise(extents))
