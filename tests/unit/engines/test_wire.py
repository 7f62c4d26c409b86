"""Connections to a hub by others than its peers change nothing for anybody else."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import pickle
import socket
import threading
from typing import Any

import pytest

import helpers
from untorn.engines.nodes import handshake
from untorn.engines.nodes.wire import Hub, Wire

SECRET = os.urandom(32)


class Listener:
    """A hub that collects what its peers say."""

    def __init__(self) -> None:
        self.changed = threading.Condition()
        self.messages: list[Any] = []
        self.ends: list[str] = []
        self.hub = Hub(SECRET, host="127.0.0.1", on_connection=self._take, name="untorn-test")

    def _take(self, hello: Any, sock: socket.socket) -> None:
        self.hub.adopt(sock, hello, on_message=self._receive, on_end=self._end, silence_s=30.0)

    def _receive(self, wire: Wire, message: Any, blobs: list[bytearray]) -> None:
        with self.changed:
            self.messages.append((message, blobs))
            self.changed.notify_all()

    def _end(self, wire: Wire, reason: str) -> None:
        with self.changed:
            self.ends.append(reason)
            self.changed.notify_all()

    def wait(self, what: str, count: int) -> None:
        with self.changed:
            assert self.changed.wait_for(lambda: len(getattr(self, what)) >= count, helpers.WATCHDOG_S)


@pytest.fixture
def listener():
    made = Listener()
    yield made
    made.hub.close()


def peer(listener: Listener) -> socket.socket:
    return handshake.connect(listener.hub.address, SECRET, b"{}", helpers.WATCHDOG_S)


def say(listener: Listener, sock: socket.socket) -> None:
    """Send a message as a peer does, and wait until it has arrived."""
    count = len(listener.messages)
    content = pickle.dumps({"n": 1})
    sock.sendall(b"uwr1" + (1).to_bytes(4, "big") + len(content).to_bytes(8, "big") + (3).to_bytes(8, "big"))
    sock.sendall(content + b"abc")
    listener.wait("messages", count + 1)
    assert listener.messages[-1] == ({"n": 1}, [bytearray(b"abc")])


def test_strangers_are_logged_and_disturb_nobody(listener, caplog):
    caplog.set_level(logging.WARNING)
    with contextlib.closing(peer(listener)) as friend:
        say(listener, friend)
        for content in (b"GET / HTTP/1.1\r\n\r\n", os.urandom(200), b"\xf5unt"):
            with (
                contextlib.closing(socket.create_connection(listener.hub.address)) as stranger,
                contextlib.suppress(OSError),  # it is closed as soon as it says anything
            ):
                stranger.sendall(content)
                stranger.shutdown(socket.SHUT_WR)
                while stranger.recv(4096):
                    pass
        with pytest.raises(handshake.HandshakeError, match="another secret"):
            handshake.connect(listener.hub.address, b"x" * 32, b"{}", helpers.WATCHDOG_S)
        say(listener, friend)
    wait_for_log(caplog, 4)
    assert all("a connection from 127.0.0.1 was refused" in record.getMessage() for record in caplog.records)


def test_many_silent_connections_keep_no_peer_waiting(listener):
    silent = [socket.create_connection(listener.hub.address) for _ in range(40)]
    try:
        with contextlib.closing(peer(listener)) as friend:
            say(listener, friend)
    finally:
        for each in silent:
            each.close()


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"HTTP/1.1 200 OK\r\n\r\n", "begins no message of untorn"),
        (b"uwr1" + bytes(3) + b"\x00" + bytes(7) + b"\x03" + b"abc", "not understood"),
        (b"uwr1\x00", "closed the connection"),
    ],
)
def test_a_peer_that_goes_mad_ends_alone(listener, content, reason):
    with contextlib.closing(peer(listener)) as friend, contextlib.closing(peer(listener)) as mad:
        mad.sendall(content)
        mad.shutdown(socket.SHUT_WR)
        listener.wait("ends", 1)
        assert reason in listener.ends[0]
        say(listener, friend)


def test_a_peer_that_falls_silent_ends(listener):
    wires: list[Wire] = []
    listener.hub._on_connection = lambda hello, sock: wires.append(
        listener.hub.adopt(sock, hello, on_message=listener._receive, on_end=listener._end, silence_s=0.5)
    )
    with contextlib.closing(peer(listener)):
        listener.wait("ends", 1)
    assert listener.ends == ["nothing was heard of it for 0.5 s"]


def wait_for_log(caplog, count: int) -> None:
    """Wait until this number of records are there; threads of the hub write them."""
    done = threading.Event()
    for _ in range(600):
        if len(caplog.records) >= count:
            return
        done.wait(0.05)
    raise AssertionError(f"{len(caplog.records)} records: {caplog.text}")


def test_a_hub_ends_although_a_task_misses_its_cancellation(listener):
    waiting = threading.Event()

    async def misses_one():
        with contextlib.suppress(asyncio.CancelledError):
            waiting.set()
            await asyncio.Event().wait()
        await asyncio.Event().wait()

    listener.hub.call(listener.hub.spawn, misses_one())
    assert waiting.wait(helpers.WATCHDOG_S)
    listener.hub.close()
    assert not listener.hub.call(print)
