"""Two files, one channel: opening both by name, or by descriptors' numbers, gives those of one channel or none.

Opening takes two steps. Here something happens exactly between them, for each opener; tests/faults/test_churn.py lets
it happen by itself, and tests/model/opening_model.py in every order.
"""

import gc
import os
import pickle
import shutil
import signal

import numpy as np
import pytest

import untorn
from helpers import start
from untorn import BusyError, ChannelNotFoundError, FormatError, _core
from untorn.cli.gc import collect
from untorn.cli.listing import list_channels
from untorn.share import inspect, opening, places, storage
from untorn.share.inspect import ChannelView
from untorn.share.places import Address


def publish(folder, value, **options):
    return untorn.publish(value, name="c", directory=folder, **options)


def files_of(folder):
    return places.named("c", folder)


def replace(folder, old):
    """The publisher goes, with its channel's names, and another comes."""
    old.unlink()
    old.close()
    return publish(folder, "new")


@pytest.fixture
def between(monkeypatch):
    """between(action): run it once, when the next data file is about to be opened by name."""

    def arrange(action):
        pending = [action]
        for module, name in ((opening, "open_path"), (inspect, "open_file")):
            real = getattr(module, name)

            def interrupted(path, *args, real=real):
                if path.endswith(".data") and pending:
                    pending.pop()()
                return real(path, *args)

            monkeypatch.setattr(module, name, interrupted)

    return arrange


# -- a successor takes both names over between the two steps


def test_subscribe(tmp_path, between):
    publishers = [publish(tmp_path, "old")]
    between(lambda: publishers.append(replace(tmp_path, publishers[0])))
    reader = untorn.subscribe(tmp_path / "c")
    snap = reader.snapshot()
    assert snap.value == "new"
    assert [info.versions for info in publishers[1].readers()] == [(1,)], "its row is in the right control file"
    for number in range(10):
        publishers[1].update(number)
    assert snap.value == "new" and reader.snapshot().value == 9


def test_subscribe_again_and_again(tmp_path, monkeypatch):
    """A successor at every single try, up to the last."""
    publishers = [publish(tmp_path, "old")]
    real, tries = opening.open_path, []

    def interrupted(path, flags):
        if path.endswith(".data") and len(tries) < 12:
            tries.append(path)
            publishers.append(replace(tmp_path, publishers[-1]))
        return real(path, flags)

    monkeypatch.setattr(opening, "open_path", interrupted)
    assert untorn.subscribe(tmp_path / "c").snapshot().value == "new" and len(tries) == 12


def test_a_worker_that_writes(tmp_path, between):
    publishers = [publish(tmp_path, "old")]
    between(lambda: publishers.append(replace(tmp_path, publishers[0])))
    files = files_of(tmp_path)
    writer = opening.open_channel(((files.control, files.data),), files.label, _core.WRITER)
    assert writer.id == publishers[1].subscriber().address.id


def test_a_subscriber_that_was_handed_over_never_gets_a_successor(tmp_path, between):
    old = publish(tmp_path, "old")
    text = pickle.dumps(
        Address(old.subscriber().address.id, ((str(tmp_path / "c.control"), str(tmp_path / "c.data")),), "c")
    )
    publishers = []
    between(lambda: publishers.append(replace(tmp_path, old)))
    address = pickle.loads(text)
    with pytest.raises(ChannelNotFoundError):
        opening.open_channel(address.places, address.label, _core.READER, id=address.id)
    assert publishers[0].readers() == []


def test_a_publisher(tmp_path, between):
    """It has the lock of the old channel, whose names are not its any more: it must not touch the new one's."""
    publish(tmp_path, "old").close()
    publishers = []

    def replaced():
        for part in ("data", "control"):  # as a cleaner does: one that goes by the rules waits for the lock
            os.unlink(tmp_path / f"c.{part}")
        publishers.append(publish(tmp_path, "new"))

    between(replaced)
    with pytest.raises(BusyError):
        publish(tmp_path, "third")
    assert publishers[0].update("newer") == 2
    publishers[0].close()
    with publish(tmp_path, "third") as third:
        assert third.version == 3


def test_a_publisher_after_one_that_is_gone_again(tmp_path, between):
    publish(tmp_path, "old").close()

    def replaced():
        for part in ("data", "control"):
            os.unlink(tmp_path / f"c.{part}")
        publish(tmp_path, "new").close()

    between(replaced)
    with publish(tmp_path, "third") as third:
        assert third.version == 2
        assert untorn.subscribe(tmp_path / "c").snapshot().value == "third"


def test_a_look(tmp_path, between):
    publishers = [publish(tmp_path, "old")]
    between(lambda: publishers.append(replace(tmp_path, publishers[0])))
    with ChannelView.open(files_of(tmp_path)) as view:
        state = view.state()
    assert state.id == publishers[1].subscriber().address.id.hex() and state.version == 1


def test_untorn_gc(tmp_path, between):
    """It looked at a channel that nobody uses, and has in its hands one that somebody does."""
    publish(tmp_path, "old").close()
    (found,) = list_channels(tmp_path)
    assert found.status == "unused"
    publishers = []

    def replaced():
        for part in ("data", "control"):
            os.unlink(tmp_path / f"c.{part}")
        publishers.append(publish(tmp_path, "new"))

    between(replaced)
    collect(tmp_path)
    assert untorn.subscribe(tmp_path / "c").snapshot().value == "new"
    assert sorted(os.listdir(tmp_path)) == ["c.control", "c.data"]


# -- descriptors' numbers are used again


def test_numbers_that_lead_to_two_channels():
    one, two = untorn.publish("one"), untorn.publish("two")
    (first,), (second,) = (publisher.subscriber().address.places for publisher in (one, two))
    id = one.subscriber().address.id
    for role in (_core.READER, _core.WRITER):
        for place in (
            (first[0], second[1]),
            (second[0], first[1]),
            second,
            (first[1], first[0]),
            ("/proc/1/fd/x",) * 2,
        ):
            with pytest.raises(ChannelNotFoundError):
                opening.open_channel((place,), "one", role, id=id)
            attachment = opening.open_channel((place, first), "one", role, id=id)
            assert attachment.id == id
            del attachment
    assert one.readers() == two.readers() == []
    one.close(), two.close()


def test_the_data_files_number_is_used_again_between_the_two_steps(monkeypatch):
    one, two = untorn.publish(np.zeros(3)), untorn.publish(np.ones(3))
    text = pickle.dumps(one.subscriber())
    data_fd, real, pending = one._attachment.data_fd, opening.open_path, [True]

    def interrupted(path, flags):
        if path.endswith(f"/{data_fd}") and pending:
            pending.pop()
            os.dup2(two._attachment.data_fd, data_fd, inheritable=False)
        return real(path, flags)

    saved = os.dup(data_fd)
    monkeypatch.setattr(opening, "open_path", interrupted)
    monkeypatch.setattr("untorn.share.attached._attached", {})
    try:
        with pytest.raises(ChannelNotFoundError):
            pickle.loads(text).attach()
        assert not pending and one.readers() == two.readers() == []
    finally:
        os.dup2(saved, data_fd, inheritable=False)
        os.close(saved)
    one.close(), two.close()


# -- a pair that stays mixed


@pytest.fixture
def mixed(tmp_path):
    """A folder with the control file of one channel and the data file of another."""
    folder, other = tmp_path / "mixed", tmp_path / "other"
    for place in (folder, other):
        place.mkdir()
        publish(place, str(place)).close()
    shutil.copy(other / "c.data", folder / "c.data")
    return folder


def test_a_pair_that_stays_mixed_is_a_format_error_that_says_what_to_do(mixed, monkeypatch):
    monkeypatch.setattr(opening, "_MIXED_S", 0.02)
    contents = [(mixed / f"c.{part}").read_bytes() for part in ("control", "data")]
    for use in (
        lambda: untorn.subscribe(mixed / "c"),
        lambda: publish(mixed, "new"),
        lambda: publish(mixed, "new"),  # the first left no lock behind
        lambda: ChannelView.open(files_of(mixed)),
    ):
        with pytest.raises(FormatError, match=r"belong to two different channels.*put the right one back, or remove"):
            use()
    (outcome,) = collect(mixed)
    assert not outcome.removed and "two different channels" in outcome.reason
    assert [(mixed / f"c.{part}").read_bytes() for part in ("control", "data")] == contents


def test_a_mixed_pair_that_goes_away_is_a_channel_that_is_not_found(mixed, monkeypatch):
    real, tries = opening.open_path, []

    def interrupted(path, flags):
        if path.endswith(".control"):
            tries.append(path)
            if len(tries) == 5:
                files_of(mixed).unlink()
        return real(path, flags)

    monkeypatch.setattr(opening, "open_path", interrupted)
    with pytest.raises(ChannelNotFoundError):
        untorn.subscribe(mixed / "c")


# -- a publisher that is killed while it gives the names


def _killed_at(pipe, folder, call):
    """Publishes where a data file lies that was left over, and is killed at that call of one of them."""
    calls = []

    def stop(*_):
        calls.append(1)
        if len(calls) == call:
            os.kill(os.getpid(), signal.SIGKILL)

    for name in ("link", "unlink"):
        real = getattr(os, name)

        def watched(*args, real=real, **kwargs):
            stop()
            result = real(*args, **kwargs)
            stop()
            return result

        setattr(os, name, watched)
    publish(folder, "killed")
    pipe.put(len(calls))
    pipe.get()


@pytest.mark.parametrize("mend", ["publish", "gc"])
@pytest.mark.parametrize("call", range(1, 7))
def test_a_publisher_killed_among_its_names_over_a_data_file_that_was_left(tmp_path, call, mend):
    publish(tmp_path, "left over").close()
    os.unlink(tmp_path / "c.control")
    with start(_killed_at, tmp_path, call) as child:
        assert child.process.join() is None and child.process.exitcode == -signal.SIGKILL
    if mend == "gc":
        collect(tmp_path)
        assert os.listdir(tmp_path) == []
    else:
        with publish(tmp_path, "mended") as publisher:
            assert publisher.version == (2 if call == 6 else 1)
            assert untorn.subscribe(tmp_path / "c").snapshot().value == "mended"


def test_all_calls_among_the_names_were_tried(tmp_path):
    publish(tmp_path, "left over").close()
    os.unlink(tmp_path / "c.control")
    with start(_killed_at, tmp_path, 1000) as child:
        assert child.get() == 6
        child.put()


def test_a_publisher_stopped_among_its_names_is_waited_for(tmp_path, monkeypatch):
    """A reader that comes meanwhile finds a channel that is being made, and then it."""
    publish(tmp_path, "left over").close()
    os.unlink(tmp_path / "c.control")
    real_remove, outcome = storage._remove_stale_data, []

    def removing(files):
        try:
            untorn.subscribe(tmp_path / "c")
        except ChannelNotFoundError:
            outcome.append("not found")
        (found,) = list_channels(tmp_path)
        outcome.append(found.status)
        (kept,) = collect(tmp_path)
        outcome.append((kept.removed, "living publisher" in kept.reason))
        real_remove(files)

    monkeypatch.setattr(opening, "_MIXED_S", 0.02)
    monkeypatch.setattr(storage, "_remove_stale_data", removing)
    with publish(tmp_path, "new") as publisher:
        assert untorn.subscribe(tmp_path / "c").snapshot().value == "new"
        assert not publisher._attachment.naming
    assert outcome == ["not found", "control without data", (False, True)]


# -- the lock of a publisher that could not begin goes at once


def test_an_error_of_publish_keeps_no_lock(tmp_path):
    publish(tmp_path, 1).close()
    (tmp_path / "c.data").write_bytes(b"somebody's notes, which are longer than a header")
    errors = []
    for _ in range(2):
        with pytest.raises(FormatError, match="data file is damaged, or not a channel's") as caught:
            publish(tmp_path, 2)
        errors.append(caught.value)  # with its traceback, and all that is in its frames
    assert (tmp_path / "c.data").read_bytes().startswith(b"somebody's")
    gc.collect()


def test_a_data_file_that_was_cut_to_nothing_can_be_opened_after_the_next_version(tmp_path):
    with publish(tmp_path, 1) as publisher:
        os.truncate(tmp_path / "c.data", 0)
        with pytest.raises(FormatError, match="data file is damaged"):
            untorn.subscribe(tmp_path / "c")
        publisher.update("new")
        assert untorn.subscribe(tmp_path / "c").snapshot().value == "new"
