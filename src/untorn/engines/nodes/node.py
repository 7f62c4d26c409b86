"""A node process: the connection to the driver, the listening socket for its peers, and the messages that come in.

::

    driver ── wire ──────> Node ── next() ──> the main function of the invitation: what the node is for
    peers  ── sockets ───>   └──── links ───>

The node process ends when its driver does, or gives it up.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import platform
import queue
import socket
import sys
import threading
import time
from collections.abc import Callable
from importlib.metadata import version
from typing import Any

import numpy as np

from untorn.engines.nodes import handshake
from untorn.engines.nodes.cluster import Invitation
from untorn.engines.nodes.wire import Blob, Hub, Message, Wire

__all__ = ["DriverLostError", "Node", "UnreachablePeerError", "run_node", "versions_here"]

_log = logging.getLogger(__name__)

_CONNECT_S = 10.0
_WAIT_S = 0.05
#: a driver may be stopped for a while, by Ctrl-Z or a debugger; its end closes the connection at once
_DRIVER_SILENCE_S = 30.0


class DriverLostError(Exception):
    """The driver has ended, or has given this node up."""


class UnreachablePeerError(ConnectionError):
    """A peer that cannot be reached, by its index in the session; -1 for another process."""

    def __init__(self, peer: int, reason: str) -> None:
        super().__init__(peer, reason)
        self.peer = peer
        self.reason = reason

    def __str__(self) -> str:
        return f"it cannot be reached: {self.reason}" if self.peer < 0 else f"peer {self.peer}: {self.reason}"


class Node:
    """This process as a node. Its methods are called by the main thread.

    Attributes:
        number: the number of the node process.
        workers: the number of workers that it begins with.
        neighbours: the number of nodes that share this machine.
        secret: what connections are authenticated with.
        problem: an error from the start of the process, which fails every job; or None.
        serve_fetch: answers a peer that asks for weights; called in a thread of its own with its socket.
        wake: called in another thread when a message has come.
    """

    def __init__(self, invitation: Invitation, problem: Exception | None) -> None:
        self.number = invitation.number
        self.workers = invitation.workers
        self.neighbours = invitation.neighbours
        self.secret = invitation.secret
        self.problem = problem
        self.serve_fetch: Callable[[socket.socket], None] | None = None
        self.wake: Callable[[], None] = lambda: None
        self._inbox: queue.SimpleQueue[tuple[Message, list[bytearray]]] = queue.SimpleQueue()
        self._over: str | None = None
        self._links: dict[tuple[int, int], socket.socket] = {}
        self._links_changed = threading.Condition()
        hello = json.dumps({"kind": "node", "number": self.number}).encode()
        sock = handshake.connect(invitation.address, self.secret, hello, _CONNECT_S)
        host = sock.getsockname()[0]
        self._hub = Hub(self.secret, host=host, on_connection=self._take, name="untorn-node")
        self._wire = self._hub.adopt(sock, {}, on_message=self._receive, on_end=self._end, silence_s=_DRIVER_SILENCE_S)
        self.post({"here": self._hub.address, "versions": versions_here()} | _place())

    def post(self, message: Message, blobs: tuple[Blob, ...] = ()) -> None:
        """Send a message to the driver; returns at once. The blobs must stay unchanged until they are sent."""
        self._wire.post(message, blobs)

    def next(self, timeout_s: float) -> tuple[Message, list[bytearray]] | None:
        """Return the next message of the driver, or None if there is none in time. Raises DriverLostError."""
        self.check()
        try:
            return self._inbox.get(timeout=timeout_s) if timeout_s > 0 else self._inbox.get_nowait()
        except queue.Empty:
            self.check()
            return None

    def check(self) -> None:
        """Raise DriverLostError if the driver has ended, or has given this node up."""
        if self._over is not None:
            raise DriverLostError(self._over)

    @property
    def has_messages(self) -> bool:
        """Whether a message waits, or the driver is gone."""
        return self._over is not None or not self._inbox.empty()

    def links(self, session: int, index: int, addresses: list[tuple[str, int]]) -> list[socket.socket | None] | None:
        """Return sockets connected to all peers of a session, None at the own index. Blocks until all peers are there;
        returns None as soon as a message of the driver comes, which then says what to do instead.

        Raises ConnectionError, naming the peer that cannot be reached.
        """
        hello = {"kind": "link", "session": session, "index": index}
        calls = [_Call(self, addresses[peer], hello, peer) for peer in range(index)]  # to those before this node
        accepted: dict[int, socket.socket] = {}
        missing = set(range(index + 1, len(addresses)))
        with contextlib.ExitStack() as stack:
            for call in calls:
                stack.callback(call.abandon)
            stack.callback(_close_all, accepted)
            with self._links_changed:
                while True:
                    for peer in [each for each in missing if (session, each) in self._links]:
                        accepted[peer] = self._links.pop((session, peer))
                        missing.discard(peer)
                    waiting = missing or not all(call.result() for call in calls)
                    if self.has_messages:
                        return None
                    if not waiting:
                        break
                    self._links_changed.wait(_WAIT_S)
            stack.pop_all()
        return [*(call.result() for call in calls), None, *(accepted[peer] for peer in sorted(accepted))]

    def connect(self, address: tuple[str, int], hello: Message) -> socket.socket | None:
        """Return a connection to another node or to the driver. Blocks; returns None as soon as a message of the driver
        comes. Raises ConnectionError."""
        call = _Call(self, address, hello, -1)
        with contextlib.ExitStack() as stack:
            stack.callback(call.abandon)
            with self._links_changed:
                while (found := call.result()) is None and not self.has_messages:
                    self._links_changed.wait(_WAIT_S)
            if found is not None:
                stack.pop_all()
        return found

    def run_aside(self, call: Callable[[], None]) -> None:
        """Do something in a thread of its own, and then let the main thread look again."""

        def run() -> None:
            call()
            with self._links_changed:
                self._links_changed.notify_all()

        threading.Thread(target=run, name="untorn-connect", daemon=True).start()

    def forget_links(self, session: int) -> None:
        """Close the sockets of peers for sessions before this one."""
        with self._links_changed:
            for key in [key for key in self._links if key[0] < session]:
                self._links.pop(key).close()

    def close(self) -> None:
        """Close all connections."""
        self.forget_links(1 << 63)
        self._hub.close()

    # -- in other threads

    def _take(self, hello: Message, sock: socket.socket) -> None:
        kind = hello.get("kind")
        if kind == "link":
            with self._links_changed:
                before = self._links.pop((hello["session"], hello["index"]), None)
                self._links[hello["session"], hello["index"]] = sock
                self._links_changed.notify_all()
            if before is not None:
                before.close()
        elif kind == "fetch" and self.serve_fetch is not None:
            threading.Thread(target=self.serve_fetch, args=(sock,), name="untorn-fetch", daemon=True).start()
        else:
            _log.warning("a connection was closed: it asks for %r", kind)
            sock.close()

    def _receive(self, wire: Wire, message: Message, blobs: list[bytearray]) -> None:
        self._inbox.put((message, blobs))
        self._tell()

    def _end(self, wire: Wire, reason: str) -> None:
        self._over = reason
        self._tell()

    def _tell(self) -> None:
        with self._links_changed:
            self._links_changed.notify_all()
        self.wake()


class _Call:
    """A connection that is being made, in a thread of its own: a peer that was cut off answers nothing for long."""

    def __init__(self, node: Node, address: tuple[str, int], hello: Message, peer: int) -> None:
        self._peer = peer
        self._lock = threading.Lock()
        self._found: socket.socket | None = None
        self._error: Exception | None = None
        self._abandoned = False

        def run() -> None:
            try:
                sock = handshake.connect(address, node.secret, json.dumps(hello).encode(), _CONNECT_S)
            except (OSError, handshake.HandshakeError) as error:
                self._error = error
                return
            with self._lock:
                self._found = sock
                if self._abandoned:
                    sock.close()

        node.run_aside(run)

    def result(self) -> socket.socket | None:
        """Return the connection; None while it is not made. Raises UnreachablePeerError."""
        if self._error is not None:
            raise UnreachablePeerError(self._peer, str(self._error)) from self._error
        return self._found

    def abandon(self) -> None:
        """Close the connection, now or when it is made."""
        with self._lock:
            self._abandoned = True
            if self._found is not None:
                self._found.close()


def _close_all(sockets: dict[int, socket.socket]) -> None:
    for sock in sockets.values():
        sock.close()


def run_node(invitation: Invitation, problem: Exception | None = None) -> None:
    """Be a node, until the driver ends or gives this node up. Blocks.

    Args:
        invitation: what the driver has sent.
        problem: an error from the start of this process, to report with the first job; or None.

    Raises ConnectionError or HandshakeError if the driver cannot be reached.
    """
    node = Node(invitation, problem)
    try:
        invitation.main(node)
    except DriverLostError as error:
        _log.debug("node %d ends: the driver: %s", node.number, error)
    finally:
        node.close()


def versions_here() -> dict[str, str]:
    """Return the versions that must be the same on all nodes, for the same bits."""
    return {
        "Python": ".".join(platform.python_version_tuple()[:2]),
        "NumPy": np.__version__,
        "untorn": version("untorn"),
        "byte order": sys.byteorder,
    }


def _place() -> dict[str, Any]:
    return {"host": socket.gethostname(), "pid": os.getpid(), "started": time.time()}
