"""Listen for peers: each connection gets a thread, in which it proves the secret first.

So a peer that sends garbage or nothing occupies its own thread alone, for as long as a handshake may take, and what it
did is in the log.
"""

from __future__ import annotations

import contextlib
import logging
import socket
import threading
from collections.abc import Callable

from untorn.descriptors import keep_socket
from untorn.engines.nodes.handshake import HandshakeError, accept

__all__ = ["HANDSHAKE_TIMEOUT_S", "Listener"]

_log = logging.getLogger(__name__)

#: how long a peer may take to prove the secret
HANDSHAKE_TIMEOUT_S = 5.0
#: how many peers may be doing so at a time; further ones are closed at once
_MAX_HANDSHAKES = 128
_BACKLOG = 128
#: how long to wait when no connection can be accepted, since no descriptor is free
_PAUSE_S = 0.1


class Listener:
    """Accepts connections until close().

    Args:
        host: the address of this machine to listen at.
        secret: of the training.
        serve: is called with each connection whose peer knows the secret and with its hello, in a thread of its own. It
            owns the connection. An error that it raises is logged.
        what: what is listened for, in the log.

    Attributes:
        address: the host and the port.
    """

    def __init__(
        self, host: str, secret: bytes, serve: Callable[[socket.socket, bytes], None], *, what: str = "nodes"
    ) -> None:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._socket = keep_socket(socket.create_server((host, 0), family=family, backlog=_BACKLOG))
        self.address: tuple[str, int] = (host, self._socket.getsockname()[1])
        self._secret = secret
        self._serve = serve
        self._what = what
        #: the connections that are proving the secret; close() ends them
        self._greeting: set[socket.socket] = set()
        self._lock = threading.Lock()
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"untorn: {what}", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while not self._closed.is_set():
            try:
                connection, (host, *_) = self._socket.accept()
            except OSError as error:
                if not self._closed.is_set():
                    _log.warning("%s: no connection can be accepted now: %s", self._what, error)
                self._closed.wait(_PAUSE_S)
                continue
            self._begin(keep_socket(connection), host)

    def _begin(self, connection: socket.socket, host: str) -> None:
        """Have a connection greeted in a thread of its own."""
        with self._lock:
            refused = f"{_MAX_HANDSHAKES} others are silent" if len(self._greeting) >= _MAX_HANDSHAKES else ""
            if not refused:
                self._greeting.add(connection)
        if not refused:
            name = f"untorn: {self._what}"
            thread = threading.Thread(target=self._greet, args=(connection, host), name=name, daemon=True)
            try:
                thread.start()
                return
            except RuntimeError as error:  # the system starts no more threads
                self._greeted(connection)
                refused = str(error)
        self._refuse(host, refused)
        connection.close()

    def _refuse(self, host: str, reason: str) -> None:
        if not self._closed.is_set():
            _log.warning("%s: a connection from %s was refused: %s", self._what, host, reason)

    def _greeted(self, connection: socket.socket) -> None:
        with self._lock:
            self._greeting.discard(connection)

    def _greet(self, connection: socket.socket, host: str) -> None:
        try:
            hello = accept(connection, self._secret, HANDSHAKE_TIMEOUT_S)
        except HandshakeError as error:
            self._refuse(host, str(error))
            return
        finally:
            self._greeted(connection)
        try:
            self._serve(connection, hello)
        except Exception:
            connection.close()
            _log.exception("%s: a connection failed", self._what)

    def close(self) -> None:
        """Listen no longer. Connections that have proved the secret stay. May be called twice."""
        if self._closed.is_set():
            return
        self._closed.set()
        with contextlib.suppress(OSError):  # wakes accept()
            self._socket.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._socket.close()
        with self._lock:
            for connection in self._greeting:
                with contextlib.suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)  # its thread then ends
