"""No torn read: every snapshot that readers take of a publisher at full speed is exactly one version.

The payload proves itself: an array whose every element is the version's number, a second one of the negative, and the
number as a scalar. So a mixture of two versions, in one of them or between them, is detected.
"""

import ctypes

import numpy as np
import pytest

import untorn
from helpers import start

#: the elements of the array (8 bytes each), and the number of snapshots per reader by default and in a soak
SIZES = {1: 60_000, 64: 60_000, 4096: 40_000, 65_536: 15_000, 524_288: 3_000}
SOAK = {1: 2_000_000, 64: 2_000_000, 4096: 1_000_000, 65_536: 60_000, 524_288: 6_000}
READERS = 2


def payload(size: int, version: int) -> dict:
    return {"x": np.full(size, version, "i8"), "version": version, "minus": np.full(min(size, 64), -version, "i8")}


def check(snapshot, size: int) -> None:
    """Fail unless the snapshot is one whole version."""
    value, version = snapshot.value, snapshot.version
    x, minus = value["x"], value["minus"]
    assert value["version"] == version, "header and scalar"
    assert x.shape == (size,) and x[0] == version and x[-1] == version, "first and last"
    assert np.array_equiv(x, version), "the whole array"
    assert np.array_equiv(minus, -version), "the other array"


def _read(pipe, reader, size, count):
    check_one = check
    pipe.put()
    versions, last = 0, 0
    for _ in range(count):
        snapshot = reader.snapshot()
        check_one(snapshot, size)
        assert snapshot.version >= last, "versions go back"
        versions += snapshot.version != last
        last = snapshot.version
    pipe.put((count, versions))


def _publish_until_all_read(publisher, children, size, rng):
    """Publish at full speed, by update and by edit in turn. Return the counts of the readers."""
    buffer = payload(size, 0)
    waiting, results = list(children), []
    while waiting:
        for _ in range(20):
            version = publisher.version + 1
            if rng.random() < 0.5:
                buffer["x"].fill(version)
                buffer["minus"].fill(-version)
                buffer["version"] = version
                publisher.update(buffer)
            else:
                with publisher.edit(copy=rng.random() < 0.5) as value:
                    value["minus"][...] = -version
                    value["version"] = version
                    value["x"][...] = version
        for child in [child for child in waiting if child.pipe.poll(0)]:
            results.append(child.get())
            waiting.remove(child)
    return results


def run(size, count, rng, readers=READERS):
    """Return the number of checked snapshots and of different versions among them."""
    with untorn.publish(payload(size, 1), max_slots=64) as publisher:
        children = [start(_read, publisher.subscriber(), size, count) for _ in range(readers)]
        for child in children:
            child.get()
        results = _publish_until_all_read(publisher, children, size, rng)
        published = publisher.version
        for child in children:
            assert child.join() == 0
    checked, versions = map(sum, zip(*results, strict=True))
    print(f"{size} elements: {checked} snapshots checked, of {versions} versions; {published} were published")
    return checked, versions


@pytest.mark.parametrize("size", SIZES)
def test_no_snapshot_is_torn(size, rng):
    checked, versions = run(size, SIZES[size], rng)
    assert checked == READERS * SIZES[size]
    assert versions > 20, "the readers saw the publisher at work"


@pytest.mark.soak
def test_no_snapshot_is_torn_in_ten_million(rng, capsys):
    total = 0
    for size, count in SOAK.items():
        with capsys.disabled():
            total += run(size, count, rng)[0]
    with capsys.disabled():
        print(f"{total} snapshots checked, none torn")
    assert total >= 10_000_000


def test_threads_of_one_process_read_whole_versions(rng):
    with untorn.publish(payload(4096, 1)) as publisher, start(_read_in_threads, publisher.subscriber(), 4096) as child:
        child.get()
        ((checked, _),) = _publish_until_all_read(publisher, [child], 4096, rng)
    assert checked == 12_000


def _read_in_threads(pipe, reader, size):
    import threading

    failures, counts = [], []

    def work():
        try:
            for _ in range(3000):
                check(reader.snapshot(), size)
            counts.append(3000)
        except BaseException as error:
            failures.append(error)

    pipe.put()
    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]
    pipe.put((sum(counts), 0))


def _look_without_a_hold(pipe, reader, size):
    """Read the memory of versions that are no longer pinned, until it is torn."""
    pipe.put()
    looks = 0
    while True:
        with reader.snapshot() as snapshot:
            address = snapshot.value["x"].__array_interface__["data"][0]
            array = np.frombuffer((ctypes.c_int64 * size).from_address(address), "i8")
        looks += 1
        for _ in range(20):
            if not (array == array[0]).all():
                pipe.put((looks, 0))
                return


def test_the_check_would_see_a_torn_read(rng):
    """As a control experiment, the same payload without a pin is soon torn."""
    with (
        untorn.publish(payload(65_536, 1)) as publisher,
        start(_look_without_a_hold, publisher.subscriber(), 65_536) as child,
    ):
        child.get()
        ((looks, _),) = _publish_until_all_read(publisher, [child], 65_536, rng)
    print(f"torn after {looks} looks")


def _keep(pipe, reader, size):
    """Keep only views of one version while the publisher continues."""
    snapshot = reader.snapshot()
    check(snapshot, size)
    version = snapshot.version
    x, minus = snapshot.value["x"][:], snapshot.value["minus"][::2]
    snapshot.close()
    pipe.put(version)
    checks = 0
    while not pipe.has_message():
        assert np.array_equiv(x, version) and np.array_equiv(minus, -version)
        check(reader.snapshot(), size)
        checks += 1
    pipe.get()
    assert np.array_equiv(x, version) and np.array_equiv(minus, -version)
    pipe.put(checks)


@pytest.mark.parametrize(("size", "versions"), [(1, 5_000), (4096, 5_000), (65_536, 2_000)])
def test_a_view_that_is_kept_does_not_change(size, versions, rng):
    with untorn.publish(payload(size, 1)) as publisher:
        children, kept = [], []
        for _ in range(3):
            child = start(_keep, publisher.subscriber(), size)
            kept.append(child.get())
            children.append(child)
            publisher.update(payload(size, publisher.version + 1))
        mine = publisher.subscriber().snapshot()
        for _ in range(versions):
            version = publisher.version + 1
            with publisher.edit(copy=False) as value:
                value["x"][...] = version
                value["minus"][...] = -version
                value["version"] = version
        check(mine, size)
        assert publisher.nbytes <= 12 * mine.nbytes + 65_536, "old versions give their space back"
        for child in children:
            child.put()
        assert all(child.get() >= 0 for child in children)
        assert kept == sorted(kept) and mine.version == kept[-1] + 1
        for child in children:
            assert child.join() == 0


def test_views_of_many_versions_at_once(rng):
    """Half of the versions stay pinned, in random order, each for a random while."""
    with untorn.publish(payload(500, 1), max_slots=64) as publisher:
        reader = publisher.subscriber()
        kept = {}
        for _ in range(20_000):
            publisher.update(payload(500, publisher.version + 1))
            snapshot = reader.snapshot()
            if rng.random() < 0.5:
                kept[snapshot.version] = snapshot
            while len(kept) > rng.randrange(1, 60):
                check(kept.pop(rng.choice(list(kept))), 500)
        for snapshot in kept.values():
            check(snapshot, 500)
