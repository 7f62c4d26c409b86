"""How long a channel is found, and how readers go on when its publisher ends: docs/lifetimes.md."""

import asyncio
import gc
import os

import numpy as np
import pytest

import untorn
from helpers import WATCHDOG_S, start
from untorn import BrokenChannelError, ChannelNotFoundError


def _publish(pipe, name, value, options):
    """Publish in a child, and update to what comes through the pipe; None: end, with the publisher open."""
    publisher = untorn.publish(value, name=name, **options)
    while True:
        pipe.put(publisher.version)
        value = pipe.get()
        if value is None:
            os._exit(0)
        if value == "exit":
            return
        publisher.update(value)


# -- live=True


def test_without_live_the_value_of_yesterday_is_found_at_once(name):
    with untorn.publish("yesterday", name=name):
        pass
    assert untorn.subscribe(name, timeout_s=WATCHDOG_S).snapshot().value == "yesterday"
    with untorn.publish("today", name=name) as publisher:
        publisher.unlink()


def test_live_waits_for_a_living_publisher(name):
    with untorn.publish("yesterday", name=name):
        pass
    with pytest.raises(ChannelNotFoundError, match=r"no living publisher .*closed it.*Version 1.*without live=True"):
        untorn.subscribe(name, live=True)
    with start(_subscribe_live, name) as child:
        assert child.get() == "waits"
        with untorn.publish("today", name=name, keep=False) as publisher:
            assert child.get() == ("today", True)
            assert untorn.subscribe(publisher, live=True).snapshot().value == "today"
            assert untorn.subscribe(publisher.subscriber(), live=True).snapshot().value == "today"


def _subscribe_live(pipe, name):
    pipe.put("waits")
    reader = untorn.subscribe(name, live=True, timeout_s=WATCHDOG_S)
    pipe.put((reader.snapshot().value, reader.publisher_alive()))


def test_live_waits_for_a_channel_that_comes_anew_under_the_name(name):
    first = untorn.publish("first", name=name)
    first.unlink()
    with start(_subscribe_live, name) as child:
        child.get()
        with untorn.publish("second", name=name, keep=False):
            assert child.get() == ("second", True)
    first.close()


def test_live_says_why_there_is_none(name):
    with start(_publish, name, "dead", {}) as child:
        child.get()
        child.kill()
    with pytest.raises(ChannelNotFoundError, match=r"its publisher is dead. Version 1, published \d+ s ago"):
        untorn.subscribe(name, live=True, timeout_s=0.01)
    untorn.publish("collected", name=name)
    gc.collect()
    text = rf"garbage-collected while process {os.getpid()} ran on; keep it in a variable .*Version 2"
    with pytest.raises(ChannelNotFoundError, match=text):
        untorn.subscribe(name, live=True)
    with untorn.publish("again", name=name) as publisher:
        assert untorn.subscribe(name, live=True).snapshot().value == "again"
        publisher.unlink()


def test_a_publisher_that_takes_over_is_not_live_before_its_first_version(name, monkeypatch):
    """The publisher's lock alone does not say that the newest version is its own."""
    from untorn.share.versions import Versions

    with untorn.publish("yesterday", name=name):
        pass
    publish, found = Versions.publish, []

    def looked_at(*args):
        with pytest.raises(ChannelNotFoundError, match="it has not published yet"):
            found.append(untorn.subscribe(name, live=True))
        assert untorn.subscribe(name).publisher_alive()
        return publish(*args)

    monkeypatch.setattr(Versions, "publish", looked_at)
    with untorn.publish("today", name=name, keep=False):
        assert not found
        assert untorn.subscribe(name, live=True).snapshot().value == "today"


def test_a_forked_child_does_not_keep_its_parents_channel_alive(name):
    with start(_fork_and_die, name) as child:
        grandchild = child.get()
        child.kill()
        assert os.path.exists(f"/proc/{grandchild}")
        with pytest.raises(ChannelNotFoundError, match="no living publisher"):
            untorn.subscribe(name, live=True)
        os.kill(grandchild, 9)
    untorn.publish("x", name=name).unlink()


def _fork_and_die(pipe, name):
    publisher = untorn.publish("parent's", name=name)
    started = start(_wait, publisher)
    pipe.put(started.get())
    pipe.get()


def _wait(pipe, publisher):
    pipe.put(os.getpid())
    pipe.get()


# -- keep=False


def test_the_files_go_with_the_publisher(name, tmp_path):
    for how in ("close", "drop", "exit"):
        if how == "exit":
            with start(_publish, name, np.zeros(3), {"directory": tmp_path, "keep": False}) as child:
                child.get()
                assert len(os.listdir(tmp_path)) == 2
                child.put("exit")
                child.join()
        else:
            publisher = untorn.publish(np.zeros(3), name=name, directory=tmp_path, keep=False)
            reader = untorn.subscribe(name, directory=tmp_path)
            assert len(os.listdir(tmp_path)) == 2
            if how == "close":
                publisher.close()
            del publisher
            gc.collect()
            assert reader.snapshot().value.tolist() == [0, 0, 0]
        assert os.listdir(tmp_path) == [], how
        with pytest.raises(ChannelNotFoundError):
            untorn.subscribe(name, directory=tmp_path)


def test_after_a_kill_it_is_not_found_and_the_next_publisher_takes_it_over(name):
    with start(_publish, name, "killed", {"keep": False}) as child:
        child.get()
        reader = untorn.subscribe(name)
        child.kill()
    with pytest.raises(ChannelNotFoundError, match=r"keep=False, and its publisher is dead.*timeout_s=10"):
        untorn.subscribe(name)
    with untorn.publish("kept", name=name):
        assert reader.snapshot(newer_than=1).value == "kept"
    assert untorn.subscribe(name).snapshot().value == "kept"
    untorn.publish("x", name=name).unlink()


def test_a_forked_child_does_not_remove_its_parents_files(name):
    publisher = untorn.publish("parent's", name=name, keep=False)
    with start(_exit, publisher) as child:
        assert child.join() == 0
    assert untorn.subscribe(name).snapshot().value == "parent's"
    publisher.close()


def _exit(pipe, publisher):
    del publisher
    gc.collect()


def test_what_does_not_go_together():
    with pytest.raises(ValueError, match="use one"):
        untorn.publish(1, name="x", durable=True, keep=False)
    untorn.publish(1, keep=False).close()


# -- a Publisher that nobody keeps


def test_a_dropped_publisher_says_so_to_whoever_waits(name):
    for named in (name, None):
        publisher = untorn.publish("dropped", name=named)
        reader = untorn.subscribe(publisher)
        assert reader.snapshot().value == "dropped"
        if named:
            publisher.unlink()
        del publisher
        gc.collect()
        with pytest.raises(BrokenChannelError, match=rf"garbage-collected while process {os.getpid()} ran on"):
            reader.wait(1)


def test_a_dropped_anonymous_publisher_says_so_to_whoever_attaches():
    reader = untorn.publish("dropped").subscriber()
    gc.collect()
    with pytest.raises(ChannelNotFoundError, match=rf"process {os.getpid()} .* keep it in a variable"):
        reader.snapshot()


# -- follow()


@pytest.mark.parametrize("anew", [False, True], ids=["taken over", "published anew"])
def test_follow_goes_on_over_restarts(name, anew):
    first = untorn.publish("first", name=name)
    reader = untorn.subscribe(name)
    seen = reader.follow(timeout_s=WATCHDOG_S)
    assert next(seen).value == "first"
    first.update("more")
    assert next(seen).value == "more"
    for value in ("second", "third"):
        if anew:
            first.unlink()
        first.close()
        with start(_publish, name, value, {}) as child:
            child.get()
            snap = next(seen)
            assert (snap.value, snap.version) == (value, 1 if anew else {"second": 3, "third": 5}[value])
            child.put(value + " more")
            child.get()
            assert next(seen).value == value + " more"
            child.kill()
        first = untorn.publish("cleared", name=name) if anew else first
        if anew:
            assert next(seen).value == "cleared"
    untorn.publish("x", name=name).unlink() if not anew else (first.unlink(), first.close())


def test_follow_waits_while_there_is_no_channel(name):
    first = untorn.publish("first", name=name)
    seen = untorn.subscribe(name).follow(timeout_s=0.2)
    next(seen)
    first.unlink()
    first.close()
    with pytest.raises(TimeoutError, match=r"nothing newer than version 1 .* no other channel under its name"):
        next(seen)
    with untorn.publish("second", name=name, keep=False):
        assert next(seen).value == "second"


def test_follow_of_a_subscriber_whose_channel_is_gone(name):
    import pickle

    publisher = untorn.publish("first", name=name)
    packed = pickle.dumps(publisher.subscriber())
    publisher.unlink()
    publisher.close()
    del publisher
    reader = pickle.loads(packed)
    with untorn.publish("second", name=name, keep=False):
        assert next(reader.follow(timeout_s=WATCHDOG_S)).value == "second"


def test_follow_in_asyncio(name):
    async def main():
        found = []
        first = untorn.publish("first", name=name)
        publisher = None
        async for snap in untorn.subscribe(name).follow(timeout_s=WATCHDOG_S):
            found.append((snap.value, snap.version))
            if snap.value == "first":
                first.unlink()
                first.close()
                publisher = untorn.publish("second", name=name, keep=False)
            elif snap.value == "second":
                publisher.update("third")
            else:
                break
        publisher.close()
        return found

    assert asyncio.run(main()) == [("first", 1), ("second", 1), ("third", 2)]


def test_follow_of_an_anonymous_channel_ends_with_it():
    publisher = untorn.publish("first")
    reader = publisher.subscriber()
    found = []
    for snap in reader.follow():
        found.append(snap.value)
        if len(found) == 1:
            publisher.update("last")
        else:
            publisher.close()
    assert found == ["first", "last"]

    async def main():
        return [snap.value async for snap in reader.follow()]

    assert asyncio.run(main()) == ["last"]


def test_follow_of_an_anonymous_channel_whose_publisher_dies():
    with start(_publish_anonymous) as child:
        seen = child.get().follow()
        assert next(seen).value == "first"
        child.kill()
        with pytest.raises(BrokenChannelError, match="dead"):
            next(seen)


def _publish_anonymous(pipe):
    publisher = untorn.publish("first")
    pipe.put(publisher.subscriber())
    pipe.get()
