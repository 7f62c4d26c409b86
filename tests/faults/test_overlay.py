"""A channel on overlayfs, in a lower layer from a container's image.

A file of the lower layer is copied to the upper one when a process opens it for writing. A process that has
mapped the lower file by then continues to see that file. Each test has its own mount namespace.
"""

from __future__ import annotations

import errno
import os

import numpy as np
import pytest

import untorn
from helpers import start
from mounts import mount, own_mounts
from untorn.cli.gc import collect
from untorn.cli.listing import list_channels

LOWER = np.arange(1000.0)

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs root")


def layers(folder, *, writable: bool = True):
    """Mount an overlay whose lower layer has the channel "c", and return its mount point."""
    own_mounts()
    mount("tmpfs", folder)
    lower, upper, work, merged = (folder / name for name in ("lower", "upper", "work", "merged"))
    for each in (lower, upper, work, merged):
        each.mkdir()
    untorn.publish(LOWER, name="c", directory=lower).close()
    options = f"lowerdir={lower}" + (f",upperdir={upper},workdir={work}" if writable else f":{upper}")
    mount("overlay", merged, options=options)
    return merged


def in_layers(test, folder, *, writable: bool = True) -> None:
    """Run ``test(pipe, where)`` in a process with such an overlay; skip the test if there is none."""
    with start(_in_layers, test, folder, writable) as child:
        missing = child.get()
        if missing:
            pytest.skip(missing)
        child.get()
        assert child.join() == 0


def _in_layers(pipe, test, folder, writable):
    try:
        where = layers(folder, writable=writable)
    except OSError as error:
        pipe.put(f"no overlayfs here: {error}")
        return
    pipe.put("")
    test(pipe, where)
    pipe.put("done")


def _reader_before_the_copy(pipe, where):
    reader = untorn.subscribe(where / "c")
    held = reader.snapshot()
    kept = held.value[10:]
    with untorn.publish(np.zeros(300_000), name="c", directory=where) as publisher:
        for number in range(3, 10):
            publisher.update(np.full(100_000 * number, float(number)))
            snapshot = reader.snapshot()
            assert snapshot.version == publisher.version == number
            assert (snapshot.value == number).all()
            assert untorn.subscribe(where / "c").snapshot().version == number
    assert (kept == LOWER[10:]).all()
    assert reader.wait(1) == 9


def test_a_reader_that_came_before_the_file_was_copied_up(tmp_path):
    in_layers(_reader_before_the_copy, tmp_path)


def _many(pipe, where):
    """Read in other processes too, and through subscribers that were passed to them."""
    publisher = untorn.publish(np.ones(1000), name="c", directory=where)
    readers = [start(_read, untorn.subscribe(given)) for given in (where / "c", publisher)]
    for child in readers:
        assert child.get() == 2
    publisher.update(np.full(200_000, 3.0))
    for child in readers:
        child.put()
        assert child.get() == (3, 3.0)
        assert child.join() == 0
    publisher.close()
    assert [found.status for found in list_channels(where)] == ["unused"]
    assert [outcome.removed for outcome in collect(where)] == [True]
    assert os.listdir(where) == []


def _read(pipe, reader):
    pipe.put(reader.snapshot().version)
    pipe.get()
    snapshot = reader.snapshot()
    pipe.put((snapshot.version, snapshot.value.mean()))


def test_other_processes_and_gc(tmp_path):
    in_layers(_many, tmp_path)


def _read_only(pipe, where):
    """Readers must write to the control file, and get an error if they cannot."""
    for use in (lambda: untorn.subscribe(where / "c"), lambda: untorn.publish(1, name="c", directory=where)):
        with pytest.raises(OSError, match="read-only") as caught:
            use()
        assert caught.value.errno == errno.EROFS


def test_an_overlay_that_cannot_be_written(tmp_path):
    in_layers(_read_only, tmp_path, writable=False)
