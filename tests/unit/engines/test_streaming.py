"""Versions that follow a channel over a connection: whole, with their numbers, and the end of the source with them."""

import contextlib
import logging
import os
import signal
import socket
import threading
import time

import numpy as np
import pytest

import untorn
from helpers import WATCHDOG_S, start
from untorn import BrokenChannelError, ChannelNotFoundError
from untorn.engines.nodes.handshake import HandshakeError, connect
from untorn.engines.nodes.listening import Listener
from untorn.engines.nodes.streaming import Follower, VersionServer, fetch, frames, send_newest
from untorn.share.lowlevel import extra, publish_raw, publish_with_extra, raw_version, receive_raw, update_with_extra

SECRET = b"s" * 32
STREAMING = "untorn.engines.nodes.streaming"
HOST = "127.0.0.1"


def value_of(number, size=1000):
    return {"w": np.full(size, float(number)), "number": number}


def is_whole(snapshot):
    number = snapshot.value["number"]
    return snapshot.value["w"].min() == snapshot.value["w"].max() == number == snapshot.version


@contextlib.contextmanager
def serving(channel):
    server = VersionServer(channel, host=HOST, secret=SECRET)
    try:
        yield server
    finally:
        server.close()


@contextlib.contextmanager
def following(server, name, **options):
    """A follower in a thread of this process; yields it."""
    follower = Follower(server.address, SECRET, name, **options)
    thread = threading.Thread(target=follower.run)
    thread.start()
    try:
        yield follower
    finally:
        follower.stop()
        thread.join()


def subscribed(name):
    return untorn.subscribe(name, timeout_s=WATCHDOG_S)


def wait_until(condition):
    deadline = time.monotonic() + WATCHDOG_S
    while not condition():
        assert time.monotonic() < deadline, "never came"
        time.sleep(0.01)


def follow_in_child(pipe, address, name):
    pipe.put("ready")
    Follower(address, SECRET, name).run()
    pipe.put("ended")


def publish_in_child(pipe, name):
    """Publish what the test says; serve it."""
    publisher = untorn.publish(value_of(1), name=name)
    server = VersionServer(name, host=HOST, secret=SECRET)
    pipe.put(server.address)
    while (number := pipe.get()) is not None:
        publisher.update(value_of(number))
    publisher.close()
    publisher.unlink()
    server.close()
    pipe.put("closed")


@pytest.fixture
def copy(name):
    return f"{name}-copy"


def test_versions_arrive_whole_with_their_numbers(name, copy):
    with untorn.publish(value_of(1), name=name) as source, serving(source) as server:
        for number in (2, 3, 4):
            source.update(value_of(number))
        with following(server, copy):
            reader = subscribed(copy)
            assert reader.snapshot().version == 4
            for number in range(5, 30):
                source.update(value_of(number))
                snapshot = reader.snapshot(newer_than=number - 1, timeout_s=WATCHDOG_S)
                assert snapshot.version == number
                assert is_whole(snapshot)
        source.unlink()
    with pytest.raises(ChannelNotFoundError):
        untorn.subscribe(copy)


def test_what_lies_beside_the_value_and_other_structures_arrive_too(copy):
    with publish_with_extra([1, 2], {"steps": 3}) as source, serving(source) as server, following(server, copy):
        reader = subscribed(copy)
        assert (reader.snapshot().value, extra(reader.snapshot())) == ([1, 2], {"steps": 3})
        update_with_extra(source, {"a": "text"}, [None] * 40_000)
        snapshot = reader.snapshot(newer_than=1, timeout_s=WATCHDOG_S)
        assert (snapshot.value, len(extra(snapshot))) == ({"a": "text"}, 40_000)


def test_large_versions_arrive_whole_while_newer_ones_are_published(name, copy):
    """Each has more bytes than the sockets hold, so that they are under way while the next ones are made."""
    size = 2_000_000
    with untorn.publish(value_of(1, size), name=name) as source, serving(source) as server, following(server, copy):
        reader = subscribed(copy)
        seen = []
        number = 1
        while len(seen) < 6:
            for _ in range(5):
                number += 1
                source.update(value_of(number, size))
            newest = reader.snapshot(newer_than=seen[-1] if seen else 0, timeout_s=WATCHDOG_S)
            assert is_whole(newest)
            seen.append(newest.version)
        assert seen == sorted(set(seen))
        source.unlink()


def test_the_end_of_the_source_reaches_the_subscribers(name, copy):
    source = untorn.publish(value_of(1), name=name)
    with serving(name) as server, following(server, copy):
        reader = subscribed(copy)
        source.close()
        with pytest.raises(BrokenChannelError, match="its publisher closed it"):
            reader.wait(1)
        assert reader.snapshot().version == 1
        again = untorn.publish(value_of(2), name=name)  # takes it over
        assert reader.snapshot(newer_than=1, timeout_s=WATCHDOG_S).version == 2
        again.update(value_of(3))
        assert reader.snapshot(newer_than=2, timeout_s=WATCHDOG_S).version == 3
        again.close()
        again.unlink()
        wait_until(lambda: not_there(copy))
        other = untorn.publish(value_of(1), name=name)  # another channel, that begins anew
        wait_until(lambda: not not_there(copy))
        fresh = subscribed(copy)
        assert fresh.snapshot().version == 1
        with pytest.raises(BrokenChannelError, match="another channel has this name now"):
            reader.wait(3, timeout_s=WATCHDOG_S)
        assert reader.snapshot().version == 3
        other.update(value_of(2))
        assert fresh.snapshot(newer_than=1, timeout_s=WATCHDOG_S).version == 2
        other.unlink()
        other.close()


def not_there(name):
    try:
        untorn.subscribe(name)
    except ChannelNotFoundError:
        return True
    return False


def test_a_publisher_that_is_killed_is_dead_on_all_machines(name, copy):
    with start(hold, name) as child:
        child.get()
        with serving(name) as server, following(server, copy):
            reader = subscribed(copy)
            child.kill()
            with pytest.raises(BrokenChannelError, match="its publisher is dead"):
                reader.wait(1)
            with untorn.publish(value_of(2), name=name) as source:  # takes it over
                assert reader.snapshot(newer_than=1, timeout_s=WATCHDOG_S).version == 2
                reader.publisher_alive()
                source.unlink()


def hold(pipe, name):
    kept = untorn.publish(value_of(1), name=name)
    pipe.put("published")
    pipe.get()
    kept.close()


def test_a_server_that_is_killed_is_a_dead_publisher(name, copy):
    with start(publish_in_child, name) as child:
        address = child.get()
        follower = Follower(address, SECRET, copy)
        thread = threading.Thread(target=follower.run)
        thread.start()
        reader = subscribed(copy)
        child.put(2)
        assert is_whole(reader.snapshot(newer_than=1, timeout_s=WATCHDOG_S))
        child.kill()
        with pytest.raises(BrokenChannelError, match="its publisher is dead"):
            reader.wait(2)
        follower.stop()
        thread.join()
    with untorn.publish(1, name=name) as left:
        left.unlink()


def test_a_server_that_is_silent_for_too_long_is_a_dead_publisher_until_it_is_back(name, copy, monkeypatch):
    monkeypatch.setattr(f"{STREAMING}.server.SILENCE_S", 2.0)
    monkeypatch.setattr(f"{STREAMING}.follower.SILENCE_S", 2.0)
    monkeypatch.setattr(f"{STREAMING}.follower.LOST_AFTER_S", 1.0)
    monkeypatch.setattr(f"{STREAMING}.follower._CONNECT_TIMEOUT_S", 0.5)
    with start(publish_in_child, name) as child:
        follower = Follower(child.get(), SECRET, copy)
        thread = threading.Thread(target=follower.run)
        thread.start()
        reader = subscribed(copy)
        os.kill(child.pid, signal.SIGSTOP)
        with pytest.raises(BrokenChannelError, match="its publisher is dead"):
            reader.wait(1)
        assert is_whole(reader.snapshot())
        os.kill(child.pid, signal.SIGCONT)
        wait_until(reader.publisher_alive)  # without a new version
        child.put(2)
        assert is_whole(reader.snapshot(newer_than=1, timeout_s=WATCHDOG_S))
        child.put(None)
        assert child.get() == "closed"
        child.join()
        thread.join(WATCHDOG_S)
        assert not thread.is_alive()


def test_a_follower_that_is_killed_is_a_dead_publisher_and_the_next_one_continues(name, copy):
    with untorn.publish(value_of(1), name=name) as source, serving(source) as server:
        with start(follow_in_child, server.address, copy) as child:
            child.get()
            reader = subscribed(copy)
            source.update(value_of(2))
            assert reader.snapshot(newer_than=1, timeout_s=WATCHDOG_S).version == 2
            child.kill()
        with pytest.raises(BrokenChannelError, match="its publisher is dead"):
            reader.wait(2)
        with following(server, copy):  # it has the newest version: it receives nothing, and goes on
            wait_until(reader.publisher_alive)
            wait_until(lambda: [feed.version for feed in server.feeds()] == [2])
            assert sum(feed.versions for feed in server.feeds()) == 0
            source.update(value_of(3))
            assert is_whole(reader.snapshot(newer_than=2, timeout_s=WATCHDOG_S))
        source.unlink()


@pytest.mark.parametrize("left", [1, 5, 9])
def test_what_another_source_left_is_replaced_or_continued(name, copy, left):
    """A channel of the same name with other bytes, whose newest number is smaller, the same or greater."""
    untorn.publish("left", name=copy).close()
    with contextlib.ExitStack() as stack:
        if left > 1:
            with untorn.publish("left") as other, publish_raw(raw_version(newest(other)), left, name=copy):
                pass
        old = untorn.subscribe(copy)
        source = stack.enter_context(publish_raw(raw_of(value_of(5)), 5, name=name))
        server = stack.enter_context(serving(source))
        stack.enter_context(following(server, copy))
        if left < 5:
            assert old.snapshot(newer_than=left, timeout_s=WATCHDOG_S).version == 5
        else:
            with pytest.raises(BrokenChannelError, match="another channel has this name now"):
                old.wait(left, timeout_s=WATCHDOG_S)
            assert old.snapshot().value == "left"
        fresh = subscribed(copy)
        assert is_whole(fresh.snapshot())
        source.unlink()


def newest(publisher):
    return publisher.subscriber().snapshot()


def raw_of(value):
    with untorn.publish(value) as publisher:
        return bytes(raw_version(newest(publisher)))


def test_a_machine_that_shares_the_sources_memory_leaves_it_alone(name, caplog):
    with untorn.publish(value_of(1), name=name) as source, serving(source) as server, following(server, name):
        wait_until(lambda: len(server.feeds()) == 1)
        source.update(value_of(2))
        assert untorn.subscribe(name).snapshot().version == 2
        source.close()
        wait_until(lambda: [feed.version for feed in server.feeds()] == [frames.ALL])
        with untorn.publish(value_of(3), name=name) as again:  # the follower has not taken it over
            assert again.version == 3
            again.unlink()
    assert not caplog.records


def test_a_name_that_is_taken_here_is_said_once_and_waited_for(name, copy, caplog):
    with untorn.publish(value_of(1), name=name) as source, serving(source) as server:
        here = untorn.publish("mine", name=copy)
        with following(server, copy):
            wait_until(
                lambda: any(
                    "another process is its publisher" in r.message or copy in r.message for r in caplog.records
                )
            )
            assert untorn.subscribe(copy).snapshot().value == "mine"
            here.close()
            here.unlink()
            wait_until(lambda: not not_there(copy) and untorn.subscribe(copy).snapshot().value != "mine")
        assert len(caplog.records) == 1
        source.unlink()


def test_subscribers_that_hold_every_slot_miss_versions_and_get_the_newest_later(name, copy, caplog):
    with untorn.publish(value_of(1), name=name) as source, serving(source) as server:
        with following(server, copy, sizes=(8, 2, 1)):
            reader = subscribed(copy)
            held = [reader.snapshot()]
            source.update(value_of(2))
            held.append(reader.snapshot(newer_than=1, timeout_s=WATCHDOG_S))
            source.update(value_of(3))
            wait_until(lambda: any("no free slot for version 3" in record.message for record in caplog.records))
            assert reader.version == 2
            held.clear()
            newest = reader.snapshot(newer_than=2, timeout_s=WATCHDOG_S)
            assert newest.version == 3
            assert is_whole(newest)
        source.unlink()


def test_a_stopped_follower_holds_nobody_up(name, copy, monkeypatch):
    """It is stopped in the middle of a version: the source goes on, and loses one slot for a while."""
    monkeypatch.setattr(f"{STREAMING}.server.SILENCE_S", 1.0)
    size = 4_000_000
    with untorn.publish(value_of(1, size), name=name) as source, serving(source) as server:
        with start(follow_in_child, server.address, copy) as child, following(server, f"{copy}-2"):
            child.get()
            subscribed(copy)
            os.kill(child.pid, signal.SIGSTOP)
            other = subscribed(f"{copy}-2")
            for number in range(2, 12):
                source.update(value_of(number, size))
                assert is_whole(other.snapshot(newer_than=number - 1, timeout_s=WATCHDOG_S))
            wait_until(lambda: len(server.feeds()) == 1)
            wait_until(lambda: all(11 in reader.versions or not reader.versions for reader in source.readers()))
            os.kill(child.pid, signal.SIGCONT)
            assert subscribed(copy).snapshot(newer_than=10, timeout_s=WATCHDOG_S).version == 11
            server.close()
            assert child.get() == "ended"
            child.join()
        source.unlink()


def test_a_closing_server_sends_the_newest_version_first(name, copy):
    with start(publish_in_child, name) as child, contextlib.ExitStack() as stack:
        server_address = child.get()
        follower = Follower(server_address, SECRET, copy)
        thread = threading.Thread(target=follower.run)
        thread.start()
        stack.callback(thread.join)
        stack.callback(follower.stop)
        reader = subscribed(copy)
        child.put(2)
        child.put(None)
        seen = [snapshot.version for snapshot in reader]
        assert seen[-1] == 2
        assert child.get() == "closed"
        child.join()
        thread.join(WATCHDOG_S)
        assert not thread.is_alive()


# -- peers that are none


def test_wrong_peers_disturb_nobody(name, copy, caplog):
    with untorn.publish(value_of(1), name=name) as source, serving(source) as server, following(server, copy):
        reader = subscribed(copy)
        peers = [socket.create_connection(server.address) for _ in range(4)]
        _, garbage, half, gone = peers
        garbage.sendall(b"GET / HTTP/1.1\r\n\r\n")
        half.sendall(b"\xf5untorn\n\x00")
        gone.close()
        with pytest.raises(HandshakeError, match="another secret"):
            connect(server.address, b"wrong", b"", WATCHDOG_S)
        for behave in (b"", b"garbage after the handshake" * 10, b"utv?"):
            with connect(server.address, SECRET, b"{}", WATCHDOG_S) as peer:
                peer.sendall(behave)
        with connect(server.address, SECRET, b"not JSON", WATCHDOG_S) as peer:
            assert peer.recv(1) == b""
        source.update(value_of(2))
        assert is_whole(reader.snapshot(newer_than=1, timeout_s=WATCHDOG_S))
        wait_until(
            lambda: sum("a connection from 127.0.0.1 was refused" in record.message for record in caplog.records) >= 3
        )
        for peer in peers:
            peer.close()
        wait_until(lambda: len(server.feeds()) == 1)
        source.unlink()
    messages = [record.message for record in caplog.records]
    assert any("begins with b'GET / HTTP" in message for message in messages)
    assert any("does not know the secret" in message for message in messages)
    assert not any(record.levelno > logging.ERROR for record in caplog.records)


def test_a_follower_with_the_wrong_secret_ends(copy):
    with untorn.publish(1) as source, serving(source) as server:
        with pytest.raises(HandshakeError, match="another secret"):
            Follower(server.address, b"wrong", copy).run()
        assert not_there(copy)


@pytest.mark.parametrize("frame", ["garbage", "unknown", "damaged", "half"])
def test_a_server_that_sends_something_else_publishes_nothing(copy, frame, caplog):
    raw = raw_of(value_of(1))
    raw = bytes(len(raw)) if frame == "damaged" else raw
    answers = {
        "garbage": b"garbage" * 100,
        "unknown": frames._FRAME.pack(b"utv!", 9, 0, 1, 0, bytes(16)),
        "damaged": frames._FRAME.pack(b"utv!", 1, 0, 1, len(raw), bytes(16)) + raw,
        "half": frames._FRAME.pack(b"utv!", 1, 0, 1, len(raw), bytes(16)) + raw[:100],
    }

    def serve(connection, hello):
        with connection:
            connection.sendall(frames._FRAME.pack(b"utv!", 3, 0, 0, 0, b"i" * 16))
            frames.receive_request(connection)
            connection.sendall(answers[frame])

    listener = Listener(HOST, SECRET, serve)
    follower = Follower(listener.address, SECRET, copy)
    thread = threading.Thread(target=follower.run)
    thread.start()
    wait_until(lambda: caplog.records)
    assert not_there(copy)
    follower.stop()
    thread.join()
    listener.close()


# -- a single version


def test_the_newest_version_is_fetched_into_a_channel_or_into_memory(name):
    with publish_with_extra(value_of(1), "state") as source:
        source.update(value_of(2))

        def serve(connection, hello):
            with connection:
                send_newest(connection, source.subscriber())

        listener = Listener(HOST, SECRET, serve)
        with untorn.publish(0) as target:
            with connect(listener.address, SECRET, b"", WATCHDOG_S) as connection:
                number = fetch(connection, lambda nbytes, version: receive_raw(target, nbytes, version))
            assert number == target.version == 2
            assert is_whole(newest(target))
        memory = bytearray()

        @contextlib.contextmanager
        def into_memory(nbytes, version):
            memory.extend(bytes(nbytes))
            with memoryview(memory) as view:
                yield view

        with connect(listener.address, SECRET, b"", WATCHDOG_S) as connection:
            assert fetch(connection, into_memory) == 2
        with publish_raw(memory, 2) as third:
            assert is_whole(newest(third))
        listener.close()
