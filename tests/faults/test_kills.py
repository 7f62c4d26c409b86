"""SIGKILL at random moments: of readers that hold snapshots, of the publisher inside update and edit, of both.

Each time the survivors continue, a new publisher takes the channel over and continues the versions, nothing is torn,
memory does not grow, dead readers' rows are reclaimed, and in the end nothing is left (conftest.py checks).
"""

import os
import random
import struct
from pathlib import Path

import numpy as np
import pytest

import untorn
from helpers import WATCHDOG_S, start

SIZE = 20_000  # elements: most of a publisher's time goes into copying them
SLOT = SIZE * 8 + 8192
KILLS = 40
SOAK_KILLS = 1_000


def payload(version: int) -> dict:
    return {"x": np.full(SIZE, version, "i8"), "version": version}


def check(snapshot) -> int:
    """Return the number of a snapshot's version; fail unless it is one whole version."""
    value, version = snapshot.value, snapshot.version
    assert value["version"] == version
    assert np.array_equiv(value["x"], version)
    return version


def publish_one(publisher, rng) -> None:
    """Publish the next version, by update or by edit."""
    version = publisher.version + 1
    how = rng.randrange(3)
    if how == 0:
        publisher.update(payload(version))
        return
    with publisher.edit(copy=how == 1) as value:
        value["x"][: SIZE // 2] = version
        value["x"][SIZE // 2 :] = version
        value["version"] = version


def linger(rng, work) -> None:
    """Work for a random time."""
    for _ in range(int(rng.expovariate(1 / 8))):
        work()


def held_rows(publisher) -> int:
    """Return the number of reader rows that hold a slot, by the bytes of the control file."""
    attachment = publisher._attachment
    raw = os.pread(attachment.control_fd, 64 * (attachment.max_readers + 1), 4096)
    return sum(struct.unpack_from("<Q", raw, 64 * row)[0] != 0 for row in range(1, attachment.max_readers + 1))


def assert_clean(publisher) -> None:
    """Check that no row of a dead reader holds a slot, and that no memory is lost."""
    for _ in range(3):
        publish_one(publisher, random)
    publisher._attachment.reclaim()
    assert held_rows(publisher) == sum(bool(info.versions) for info in publisher.readers())
    assert publisher.nbytes <= 8 * SLOT
    status = os.fstat(publisher._attachment.data_fd)
    assert status.st_blocks * 512 <= 10 * SLOT and status.st_size <= 12 * SLOT


# -- readers


def _read_and_hold(pipe, reader, seed):
    """Read until killed, holding a few snapshots at any time."""
    rng = random.Random(seed)
    held = [reader.snapshot()]
    pipe.put(check(held[0]))
    while True:
        held.append(reader.snapshot())
        while len(held) > rng.randrange(1, 4):
            check(held.pop(rng.randrange(len(held))))


def kill_readers(rng, kills):
    with untorn.publish(payload(1), max_readers=8) as publisher:
        reader = publisher.subscriber()
        kept = reader.snapshot()
        children = []
        for _ in range(kills):
            children.append(start(_read_and_hold, reader, rng.randrange(2**32)))
            if len(children) < 3:
                continue
            linger(rng, lambda: publish_one(publisher, rng))
            assert children.pop(rng.randrange(len(children))).kill() == -9
            assert check(reader.snapshot()) == publisher.version
        for child in children:
            child.get()
            assert child.kill() == -9
        assert check(kept) == 1
        assert [info.pid for info in publisher.readers()] == [os.getpid()]
        assert_clean(publisher)


def test_readers_that_hold_snapshots_are_killed(rng):
    kill_readers(rng, KILLS)


def test_killed_readers_make_room_at_once():
    """A reader holds every slot and every row; after each kill of it, the writer continues without waiting."""
    with untorn.publish(payload(1), max_slots=3, max_readers=2) as publisher:
        for _ in range(30):
            with start(_hold_two, publisher.subscriber()) as child:
                child.get()
                publisher.update(payload(publisher.version + 1))
                child.put()
                child.get()
                publisher.update(payload(publisher.version + 1))
                with pytest.raises(untorn.CapacityError, match=f"pid {child.pid} holds"):
                    publisher.update(payload(0), timeout_s=0)
                child.kill()
                publisher.update(payload(publisher.version + 1), timeout_s=0)
        assert publisher.nbytes <= 3 * SLOT


def _hold_two(pipe, reader):
    held = [reader.snapshot()]
    pipe.put()
    pipe.get()
    held.append(reader.snapshot())
    pipe.put()
    pipe.get()
    del held


# -- the publisher


def _publish_for_ever(pipe, name, directory, seed):
    rng = random.Random(seed)
    # only the publisher knows the number of its first version after a takeover
    publisher = take(name, directory)
    pipe.put(publisher.version)
    while True:
        publish_one(publisher, rng)


def take(name, directory=None):
    """Publish under the name of a dead publisher, with a first version that holds its own number."""
    version = 1
    try:
        with untorn.subscribe(name if directory is None else Path(directory) / name) as old:
            version = old.version + 1
    except untorn.ChannelNotFoundError:
        pass
    publisher = untorn.publish(payload(version), name=name, directory=directory)
    assert publisher.version == version
    return publisher


def kill_publishers(rng, kills, name, directory=None):
    reader = kept = None
    last = kept_version = 0
    for _ in range(kills):
        with start(_publish_for_ever, name, directory, rng.randrange(2**32)) as child:
            first = child.get()
            assert first > last, "versions went back"
            reader = reader or untorn.subscribe(name if directory is None else Path(directory) / name)
            linger(rng, lambda: check(reader.snapshot()))  # noqa: B023 (called at once)
            if rng.random() < 0.2:
                kept = reader.snapshot()
                kept_version = check(kept)
            assert child.kill() == -9
        last = check(reader.snapshot())
        assert last >= first
        if kept:
            assert check(kept) == kept_version
    with take(name, directory) as publisher:
        assert publisher.version == last + 1
        kept = None
        assert_clean(publisher)
        publisher.unlink()


def test_the_publisher_is_killed_inside_update_and_edit(rng, name):
    kill_publishers(rng, KILLS, name)


def test_the_publisher_of_a_channel_on_disk_is_killed(rng, tmp_path):
    kill_publishers(rng, KILLS // 4, "channel", tmp_path)
    assert list(tmp_path.iterdir()) == []


def _create(pipe, name):
    pipe.put()
    while True:
        with untorn.publish(payload(1), name=name) as publisher:
            assert publisher.version == 1
            publisher.unlink()


def test_the_publisher_is_killed_while_it_makes_and_removes_files(rng, name):
    for _ in range(KILLS // 2):
        with start(_create, name) as child:
            child.get()
            linger(rng, lambda: payload(1))
            assert child.kill() == -9
        with take(name) as publisher:
            assert check(publisher.subscriber().snapshot()) == publisher.version
            publisher.unlink()


def _publish_anonymously(pipe, seed):
    rng = random.Random(seed)
    publisher = untorn.publish(payload(1))
    pipe.put(publisher.subscriber())
    while True:
        publish_one(publisher, rng)


def test_anonymous_publishers_are_killed_and_leave_nothing(rng):
    for _ in range(KILLS // 4):
        with start(_publish_anonymously, rng.randrange(2**32)) as child:
            reader = child.get()
            linger(rng, lambda: check(reader.snapshot()))  # noqa: B023 (called at once)
            snapshot = reader.snapshot()
            child.kill()
        with pytest.raises(untorn.BrokenChannelError):
            reader.wait(2**40)
        check(snapshot)
        check(reader.snapshot())


# -- both


def _read_by_name(pipe, name, seed):
    _read_and_hold(pipe, untorn.subscribe(name, timeout_s=WATCHDOG_S), seed)


def kill_both(rng, kills, name):
    def start_one(role):
        target, arguments = {
            "publisher": (_publish_for_ever, (name, None)),
            "reader": (_read_by_name, (name,)),
        }[role]
        return start(target, *arguments, rng.randrange(2**32))

    children = {}
    with take(name):
        pass
    watch = untorn.subscribe(name)
    last = 0
    for _ in range(kills):
        for place in ("publisher", "reader", "reader 2"):
            if place not in children:
                children[place] = start_one(place.split()[0])
                children[place].get()
        linger(rng, lambda: check(watch.snapshot()))
        for place in rng.sample(sorted(children), rng.randrange(1, 3)):
            child = children.pop(place)
            assert not child.pipe.poll(0), child.get()  # a reader that saw a torn version would have reported it
            assert child.kill() == -9
        version = check(watch.snapshot())
        assert version >= last
        last = version
    for child in children.values():
        assert child.kill() == -9
    with take(name) as publisher:
        assert_clean(publisher)
        assert [info.pid for info in publisher.readers()] == [os.getpid()]
        publisher.unlink()


def test_both_are_killed(rng, name):
    kill_both(rng, KILLS, name)


@pytest.mark.soak
def test_thousands_of_kills(rng, name):
    kill_readers(rng, SOAK_KILLS)
    kill_publishers(rng, SOAK_KILLS, name)
    kill_both(rng, SOAK_KILLS, name)


# -- fork


def _look_on(pipe, snapshot, view, version):
    """Check in a forked child that inherited versions stay whole."""
    pipe.put()
    while not pipe.has_message():
        assert check(snapshot) == version
        assert np.array_equiv(view, version)
    pipe.get()
    assert check(snapshot) == version
    assert np.array_equiv(view, version)
    pipe.put("whole")


@pytest.mark.parametrize("rows", [8, 1])
def test_a_snapshot_stays_whole_across_fork(rows):
    """This holds also if all rows are taken: then the child has a copy."""
    with untorn.publish(payload(1), max_readers=rows) as publisher:
        reader = publisher.subscriber()
        snapshot = reader.snapshot()
        view = snapshot.value["x"][5:]
        with start(_look_on, snapshot, view, 1) as child:
            del snapshot, view
            child.get()
            assert publisher.readers()[0].versions == ()
            assert len(publisher.readers()) == min(rows, 2)
            for version in range(2, 3000):
                with publisher.edit(copy=False) as value:
                    value["x"][...] = version
                    value["version"] = version
            child.put()
            assert child.get() == "whole"
            assert check(reader.snapshot()) == 2999
            assert child.join() == 0
        assert len(publisher.readers()) == 1
        assert_clean(publisher)


def _use_inherited(pipe, reader, snapshot):
    pipe.put(check(snapshot))
    pipe.get()
    snapshot.close()
    try:
        pipe.put(check(reader.snapshot()))
    except untorn.CapacityError as error:
        pipe.put(str(error))
    pipe.get()
    pipe.put(check(reader.snapshot()))


def test_a_child_that_was_forked_without_a_row_gets_one_later():
    with untorn.publish(payload(1), max_readers=1) as publisher:
        reader = publisher.subscriber()
        snapshot = reader.snapshot()
        with start(_use_inherited, reader, snapshot) as child:
            assert child.get() == 1
            child.put()
            assert "every reader row was taken" in child.get()
            reader.close()
            snapshot.close()
            del reader, snapshot
            publisher.update(payload(2))
            child.put()
            assert child.get() == 2


def _fork_an_orphan(pipe, name, orphans_in, orphans_out):
    """Run a publisher and reader with a child, which inherits everything and checks it when the pipe tells it to."""
    publisher = take(name)
    snapshot = publisher.subscriber().snapshot()
    pid = os.fork()
    if pid == 0:
        os.read(orphans_in, 1)
        os.write(orphans_out, b"whole" if check(snapshot) == snapshot.version else b"torn")
        os._exit(0)
    pipe.put((pid, publisher.version))
    pipe.get()


def test_a_child_does_not_keep_its_dead_parents_publisher_lock(name):
    orphans_in, tell = os.pipe()
    hear, orphans_out = os.pipe()
    with start(_fork_an_orphan, name, orphans_in, orphans_out) as child:
        orphan, version = child.get()
        os.close(orphans_in)
        os.close(orphans_out)
        child.kill()
    with take(name) as publisher:  # BusyError if the orphan had the lock
        assert publisher.version == version + 1
        assert [info.pid for info in publisher.readers() if info.versions] == [orphan]
        for number in range(version + 2, version + 2000):
            publisher.update(payload(number))
        os.write(tell, b"x")
        assert os.read(hear, 10) == b"whole"
        assert os.read(hear, 10) == b"", "the orphan ended"
        assert_clean(publisher)
        publisher.unlink()
    os.close(tell)
    os.close(hear)
