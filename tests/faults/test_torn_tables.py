"""No torn read of a FrozenDict that changes: every snapshot has the entries of one version, through all compactions.

The entries prove themselves: each version sets some pairs of keys, both halves of a pair to its number, and records
which pair had which number in a checksum. So changes with the wrong base, or with the base overwritten, are detected.
"""

import numpy as np

import untorn
from helpers import start

PAIRS = 300
SNAPSHOTS = 400


def first() -> dict:
    halves = {f"{half}-{pair}": 1 for half in ("left", "right") for pair in range(PAIRS)}
    return {**halves, "sum": PAIRS, "version": 1, "rest": np.full(20_000, 7)}


def change(publisher, rng) -> None:
    """Publish the next version."""
    version = publisher.version + 1
    with publisher.edit() as table:
        for pair in rng.sample(range(PAIRS), rng.randrange(1, 30)):
            table["sum"] += version - table[f"left-{pair}"]
            table[f"left-{pair}"] = table[f"right-{pair}"] = version
        table["version"] = version
        if version % 3 == 0:
            table[f"new-{version % 7}"] = np.full(2000, version)
        for i in range(version % 7):
            table.pop(f"new-{i}", None)


def check(snapshot) -> int:
    """Fail unless the snapshot is one whole version; return the version that it consists of changes of, or 0."""
    table = snapshot.value
    assert table["version"] == snapshot.version
    left, right = ([table[f"{half}-{pair}"] for pair in range(PAIRS)] for half in ("left", "right"))
    assert left == right and sum(left) == table["sum"] and max(left) <= snapshot.version
    new = [table[key] for key in (f"new-{i}" for i in range(7)) if key in table]
    assert all(np.array_equiv(array, array[0]) and array[0] <= snapshot.version for array in new)
    assert np.array_equiv(table["rest"], 7) and len(table) == 2 * PAIRS + 3 + len(new)
    return snapshot._held().base_version


def _read(pipe, reader):
    pipe.put()
    versions, bases, held = set(), set(), reader.snapshot()
    for turn in range(SNAPSHOTS):
        with reader.snapshot() as snapshot:
            bases.add(check(snapshot))
            versions.add(snapshot.version)
        if turn % 40 == 0:
            check(held)
            held = reader.snapshot()
    pipe.put((len(versions), len(bases)))


def test_no_snapshot_of_changes_is_torn(rng):
    with untorn.publish(untorn.FrozenDict(first())) as publisher:
        children = [start(_read, publisher.subscriber()) for _ in range(2)]
        for child in children:
            child.get()
        waiting, results = list(children), []
        while waiting:
            change(publisher, rng)
            for child in [child for child in waiting if child.pipe.poll(0)]:
                results.append(child.get())
                waiting.remove(child)
        assert all(child.join() == 0 for child in children)
    versions, bases = map(sum, zip(*results, strict=True))
    print(f"{len(results) * SNAPSHOTS} snapshots checked, of {versions} versions with {bases} bases")
    assert versions > 20 and bases > 4, "the readers saw the publisher at work"
