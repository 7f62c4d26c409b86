"""The follower: it publishes the versions of another machine's channel in one of its own."""

from __future__ import annotations

import contextlib
import json
import logging
import socket
import threading
import time

from untorn.engines.nodes.handshake import HandshakeError, connect, show_address
from untorn.engines.nodes.streaming.frames import (
    ALL,
    CHUNK_NBYTES,
    CLOSED,
    DEAD,
    END,
    NAMELESS,
    NO_DIGEST,
    SAME,
    SILENCE_S,
    STATE,
    VERSION,
    Frame,
    Have,
    receive_frame,
    receive_into,
    send_request,
)
from untorn.engines.nodes.streaming.local_channel import LocalChannel
from untorn.errors import BusyError, CapacityError, FormatError, UntornError

__all__ = ["LOST_AFTER_S", "Follower"]

_log = logging.getLogger(__name__)

#: how long a follower hears nothing of the source before its channel loses its publisher; the time is shorter if the
#: source's machine says that nobody listens there any more
LOST_AFTER_S = 10.0
_REFUSED_AFTER_S = 1.0
#: the pause before a lost server is tried again: the first one, and the longest
_RETRY_S = 0.05, 1.0
#: how long connecting may take
_CONNECT_TIMEOUT_S = 3.0


class Follower:
    """Follows a VersionServer, and publishes the versions that it gets on this machine.

    Args:
        address: of the server.
        secret: shared with it.
        name: the name of the channel on this machine.
        hello: what the server is told of this follower, as JSON values.
        sizes: max_readers, max_slots and slots of the channel, as for untorn.publish().
    """

    def __init__(
        self,
        address: tuple[str, int],
        secret: bytes,
        name: str,
        *,
        hello: dict[str, object] | None = None,
        sizes: tuple[int, int, int] = (256, 64, 4),
    ) -> None:
        self._address = address
        self._secret = secret
        self._hello = json.dumps(hello or {}).encode()
        self._local = LocalChannel(name, sizes)
        self._stop = threading.Event()
        self._connection: socket.socket | None = None
        self._heard_at = time.monotonic()
        self._said = ""

    @property
    def version(self) -> int:
        """The newest version on this machine; 0 before the first."""
        return self._local.version

    def run(self) -> None:
        """Follow until the server ends or stop() is called; then remove the channel. If the server cannot be reached,
        try again and again.

        Raises HandshakeError if the server has another secret or another version of untorn.
        """
        try:
            self._follow()
        except BaseException:  # such as the SystemExit of a process that is told to end
            self._local.die()
            raise
        self._local.remove()

    def stop(self) -> None:
        """Let run() return, from another thread."""
        self._stop.set()
        connection = self._connection
        if connection is not None:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def _follow(self) -> None:
        pause_s = _RETRY_S[0]
        while not self._stop.is_set():
            patience_s, began_at = LOST_AFTER_S, time.monotonic()
            try:
                with connect(self._address, self._secret, self._hello, _CONNECT_TIMEOUT_S) as connection:
                    connection.settimeout(SILENCE_S)
                    self._connection = connection
                    try:
                        if self._receive_all(connection):
                            return
                    finally:
                        self._connection = None
            except HandshakeError as error:
                if error.reason in ("secret", "protocol"):
                    raise
                self._tell(error)
            except ValueError as error:  # another program has left a channel of this name, with other numbers
                self._local.forget()
                self._tell(error)
            except (UntornError, OSError, OverflowError) as error:
                if isinstance(error, ConnectionRefusedError):
                    patience_s = _REFUSED_AFTER_S
                self._tell(error)
            now = time.monotonic()
            if now - self._heard_at > patience_s:
                self._local.die()
            pause_s = _RETRY_S[0] if now - began_at > _RETRY_S[1] else min(2 * pause_s, _RETRY_S[1])
            self._stop.wait(pause_s)

    def _receive_all(self, connection: socket.socket) -> bool:
        """Receive what comes over one connection. Returns True at the end, and raises an error if the connection breaks
        before."""
        first = self._next_frame(connection)
        if self._local.is_the_same(first.id):
            request = Have(ALL, first.id, NO_DIGEST)
        else:
            self._local.adopt()
            request = self._local.have()
        while not self._stop.is_set():
            send_request(connection, request)
            while (frame := self._next_frame(connection)).kind == STATE:
                self._see(frame.flags)
            if frame.kind == END:
                self._see(frame.flags)
                return True
            if frame.kind == VERSION:
                self._receive_version(connection, frame)
            elif frame.kind == SAME:
                self._local.id = frame.id
            else:
                raise FormatError(f"expected a version, found an answer of unknown kind {frame.kind}")
            request = self._local.have()
        return True

    def _next_frame(self, connection: socket.socket) -> Frame:
        frame = receive_frame(connection)
        self._heard_at = time.monotonic()
        return frame

    def _receive_version(self, connection: socket.socket, frame: Frame) -> None:
        if self._local.is_the_same(frame.id):
            raise BusyError(f"channel {self._local.name!r} of this machine is the source's own")
        filling = False

        def fill(memory: memoryview) -> None:
            nonlocal filling
            filling = True
            receive_into(connection, memory)

        try:
            self._local.receive(frame, fill)
            self._said = ""
        except (CapacityError, BusyError) as error:
            if filling:
                raise
            self._tell(error)
            with memoryview(bytearray(min(frame.nbytes, CHUNK_NBYTES))) as scratch:
                for at in range(0, frame.nbytes, CHUNK_NBYTES):
                    with scratch[: min(CHUNK_NBYTES, frame.nbytes - at)] as part:
                        receive_into(connection, part)
            self._stop.wait(_RETRY_S[1])  # the version that is the newest then comes instead

    def _see(self, flags: int) -> None:
        if not flags:
            self._local.revive()
        elif flags & NAMELESS:
            self._local.remove()
        elif flags & CLOSED:
            self._local.close()
        elif flags & DEAD:
            self._local.die()

    def _tell(self, error: Exception) -> None:
        """Log what is wrong, once until it is over."""
        what = str(error) or type(error).__name__
        if what != self._said and not self._stop.is_set():
            self._said = what
            _log.warning("versions of %r from %s: %s", self._local.name, show_address(self._address), what)
