"""Versions of a channel on another machine: a server sends the newest ones, a follower publishes them in a channel of
its own machine, under the same numbers.

::

    publisher ──> channel ──> VersionServer ═══ a connection each ═══> Follower ──> channel ──> subscribers
                                          <── what it has ───────────
                                          ─── the newest version ───>   straight from the socket into a free slot

A follower asks for a version when it has published the one before, and gets the newest one then. So a slow one misses
versions, holds one slot at the source at most, and keeps nobody waiting. While there is none, the server says every
second whether the publisher lives. The end of the source reaches the follower's subscribers as it reaches the source's:

=========================================  =============================================================
at the source                              in the follower's channel
=========================================  =============================================================
the publisher closes it                    it is closed
the publisher dies                         it has lost its publisher, as if that had died
a new publisher takes it over              it is continued
the names are removed                      the names are removed
another channel is made under the name     another channel is made under the name
the server's process dies                  it has lost its publisher; if the server comes again, it is continued
the server's machine is cut off            the same, after ``LOST_AFTER_S``
=========================================  =============================================================

A follower that is killed leaves its channel as a killed publisher does. The next one continues it: if its newest
version is the source's, byte for byte, it stays as it is, and if it is older, the next one follows it.

fetch() and send_newest() are the same for a single version.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import socket
import struct
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from untorn.engines.nodes.handshake import HandshakeError, connect, show_address
from untorn.engines.nodes.listening import Listener
from untorn.errors import (
    BrokenChannelError,
    BusyError,
    CapacityError,
    FormatError,
    UntornError,
)
from untorn.share import Publisher, Snapshot, Subscriber, subscribe
from untorn.share.lowlevel import (
    attachment_of,
    continue_channel,
    ending_of,
    has_name,
    id_of,
    publish_received,
    raw_version,
    receive_raw,
)

__all__ = ["LOST_AFTER_S", "Feed", "Follower", "VersionServer", "fetch", "send_newest"]

_log = logging.getLogger(__name__)

#: how often the server says that nothing is new
HEARTBEAT_S = 1.0
#: how long either side may be silent before the connection counts as broken
SILENCE_S = 5.0
#: how long a follower hears nothing of the source before its channel loses its publisher; the time is shorter if the
#: source's machine says that nobody listens there any more
LOST_AFTER_S = 10.0
_REFUSED_AFTER_S = 1.0
#: how often the server looks at a channel without a publisher, and whether it is being closed
_PIECE_S = 0.2
_RETRY_S = 0.05, 1.0
#: how long connecting may take
_CONNECT_TIMEOUT_S = 3.0
#: asks for nothing but the state of the channel
_ALL = (1 << 58) - 1
#: how long a follower waits for a free slot; its subscribers then hold all of them, and miss a version
_FREE_SLOT_TIMEOUT_S = 1.0
#: how much is sent at a time, so that a slow but steady connection is not taken for a broken one
_CHUNK_NBYTES = 1 << 20

_ASKING, _ANSWERING = b"utv?", b"utv!"
#: magic, the newest version here, the channel's id there, a digest of that version if the id is not known
_REQUEST = struct.Struct("!4s4xQ16s32s")
#: magic, kind, flags, version, nbytes, the channel's id there
_FRAME = struct.Struct("!4sBB2xQQ16s")
_VERSION, _SAME, _STATE, _END = 1, 2, 3, 4
#: flags of a _STATE
_CLOSED, _DEAD, _NAMELESS = 1, 2, 4
_NO_ID, _NO_DIGEST = bytes(16), bytes(32)
_HEADER_NBYTES = 64


class _Frame(NamedTuple):
    kind: int
    flags: int
    version: int
    nbytes: int
    id: bytes


class _Have(NamedTuple):
    """What a follower has: its newest version, and whose it is."""

    version: int
    id: bytes
    digest: bytes

    def is_of(self, reader: Subscriber) -> bool:
        return self.id == id_of(reader)


# -- bytes


def _receive_into(connection: socket.socket, memory: memoryview) -> None:
    """Fill the memory. Raises ConnectionError at the end of the stream, TimeoutError after silence."""
    got = 0
    while got < len(memory):
        with memory[got:] as rest:
            received = connection.recv_into(rest)
        if not received:
            raise ConnectionResetError(f"the connection ended after {got:,} of {len(memory):,} bytes")
        got += received


def _receive(connection: socket.socket, nbytes: int) -> bytes:
    received = bytearray(nbytes)
    with memoryview(received) as memory:
        _receive_into(connection, memory)
    return bytes(received)


def _send(connection: socket.socket, payload: memoryview) -> None:
    for at in range(0, len(payload), _CHUNK_NBYTES):
        with payload[at : at + _CHUNK_NBYTES] as chunk:
            connection.sendall(chunk)


def _receive_frame(connection: socket.socket) -> _Frame:
    magic, *fields = _FRAME.unpack(_receive(connection, _FRAME.size))
    if magic != _ANSWERING:
        raise FormatError(f"expected an answer with versions, found bytes that begin with {magic!r}")
    return _Frame(*fields)


def _receive_request(connection: socket.socket) -> _Have:
    magic, *fields = _REQUEST.unpack(_receive(connection, _REQUEST.size))
    if magic != _ASKING:
        raise FormatError(f"expected a request for versions, found bytes that begin with {magic!r}")
    return _Have(*fields)


def _send_version(connection: socket.socket, snapshot: Snapshot, id: bytes) -> int:
    """Send a version; return its size."""
    with raw_version(snapshot) as raw:
        header = _FRAME.pack(_ANSWERING, _VERSION, 0, snapshot.version, raw.nbytes, id)
        if raw.nbytes <= _CHUNK_NBYTES:
            connection.sendall(header + raw)  # one packet, for small versions
        else:
            connection.sendall(header)
            _send(connection, raw)
        return raw.nbytes


def _digest_of(snapshot: Snapshot) -> bytes:
    """Return a digest of a version without its header, in which each channel has its own times."""
    with raw_version(snapshot) as raw, raw[_HEADER_NBYTES:] as rest:
        return hashlib.blake2b(rest, digest_size=32).digest()


# -- a single version


def send_newest(connection: socket.socket, reader: Subscriber) -> int:
    """Answer fetch() with the channel's newest version; return its number. Blocks until it is sent."""
    _receive_request(connection)
    with reader.snapshot() as snapshot:
        _send_version(connection, snapshot, id_of(reader))
        return snapshot.version


def fetch(connection: socket.socket, take: Callable[[int, int], contextlib.AbstractContextManager[memoryview]]) -> int:
    """Receive the newest version from a peer that calls send_newest(); return its number.

    Args:
        connection: to the peer. Its timeout, if it has one, limits each wait for the next bytes.
        take: is called with the size and the number of the version, and returns a context manager with the memory for
            it, as receive_raw() does.
    """
    connection.sendall(_REQUEST.pack(_ASKING, 0, _NO_ID, _NO_DIGEST))
    frame = _receive_frame(connection)
    if frame.kind != _VERSION:
        raise FormatError(f"expected a version, found an answer of kind {frame.kind}")
    with take(frame.nbytes, frame.version) as memory:
        _receive_into(connection, memory)
    return frame.version


# -- the server


@dataclass
class Feed:
    """The state of one follower, as its server sees it.

    Attributes:
        hello: what it said of itself when it connected.
        version: the newest version that it has; 0 before the first.
        versions: the number of versions that it was sent.
        nbytes: the bytes of these.
    """

    hello: dict[str, object]
    version: int = 0
    versions: int = 0
    nbytes: int = 0


class VersionServer:
    """Serves a channel's versions to followers on other machines, in a thread for each.

    Args:
        channel: a name, a path, a Publisher or a Subscriber of this machine.
        host: the address of this machine at which the followers reach it.
        secret: shared with the followers.

    Attributes:
        address: the host and port at which it listens.

    Raises what untorn.subscribe() does.
    """

    def __init__(self, channel: str | Publisher | Subscriber, *, host: str, secret: bytes) -> None:
        self._reader = subscribe(channel)
        self._reader.attach()
        self._stop = threading.Event()
        self._feeds: dict[threading.Thread, Feed] = {}
        self._listener = Listener(host, secret, self._serve, what=f"versions of {self._reader.name!r}")
        self.address = self._listener.address

    @property
    def name(self) -> str:
        """The channel's name."""
        return self._reader.name

    @property
    def version(self) -> int:
        """The channel's newest version."""
        return self._reader.version

    def feeds(self) -> list[Feed]:
        """Return the state of each follower that is connected."""
        return list(self._feeds.values())

    def close(self) -> None:
        """Send each follower the newest version, and that no further one comes, and end. Waits for followers that take
        it, and not longer than ``SILENCE_S`` for others. May be called twice."""
        self._listener.close()
        self._stop.set()
        for thread in list(self._feeds):
            thread.join()
        self._reader.close()

    def _serve(self, connection: socket.socket, hello: bytes) -> None:
        thread = threading.current_thread()
        try:
            if self._stop.is_set():
                return
            self._feeds[thread] = feed = Feed(dict(json.loads(hello or b"{}")))
            _Serving(connection, subscribe(self._reader), feed, self._stop).run()
        except (OSError, FormatError) as error:  # of the connection: the follower comes again
            if not self._stop.is_set():
                _log.info("versions of %r: a follower is gone: %s", self._reader.name, error)
        finally:
            connection.close()
            self._feeds.pop(thread, None)


class _Serving:
    """One follower's connection, at the server."""

    def __init__(self, connection: socket.socket, reader: Subscriber, feed: Feed, stop: threading.Event) -> None:
        connection.settimeout(SILENCE_S)
        self._connection = connection
        self._reader = reader
        self._feed = feed
        self._stop = stop

    def run(self) -> None:
        """Serve until the server stops. Raises OSError when the follower is gone."""
        self._say(_STATE, self._flags())  # tells the channel's id
        while True:
            have = self._what_it_has()
            self._feed.version = have.version
            if not self._wait(have):
                self._say(_END, self._flags())
                return
            with self._reader.snapshot() as snapshot:
                self._feed.nbytes += _send_version(self._connection, snapshot, id_of(self._reader))
            self._feed.versions += 1

    def _what_it_has(self) -> _Have:
        """Receive a request, and compare the versions if the follower does not know the channel's id."""
        while True:
            have = _receive_request(self._connection)
            if have.is_of(self._reader) or have.digest == _NO_DIGEST:
                return have
            with self._reader.snapshot() as snapshot:
                if (snapshot.version, _digest_of(snapshot)) != (have.version, have.digest):
                    return have
            self._say(_SAME, 0, have.version)

    def _wait(self, have: _Have) -> bool:
        """Wait for a version that the follower does not have. Returns False if there is none, and the server stops."""
        heartbeat_at = 0.0
        said = -1
        while not self._is_news(have):
            if self._stop.is_set():
                return False
            flags, now = self._flags(), time.monotonic()
            if flags and self._succeed():
                continue
            if flags != said or now >= heartbeat_at:
                self._say(_STATE, flags)
                said, heartbeat_at = flags, now + HEARTBEAT_S
            if flags:
                self._stop.wait(_PIECE_S)
        return True

    def _is_news(self, have: _Have) -> bool:
        """Return whether there is a version that the follower does not have. Waits for it, for a moment."""
        if not have.is_of(self._reader):
            return True
        with contextlib.suppress(TimeoutError, BrokenChannelError):
            self._reader.wait(have.version, 0.0 if self._stop.is_set() else _PIECE_S)
        return self._reader.version > have.version

    def _flags(self) -> int:
        ending = ending_of(self._reader)
        if not ending:
            return 0
        nameless = 0 if self._reader.name == "anonymous" or has_name(self._reader) else _NAMELESS
        return nameless | (_CLOSED if ending == "closed" else _DEAD)

    def _succeed(self) -> bool:
        """Change to the channel that has the name now, if it is another one."""
        if self._reader.name == "anonymous":
            return False
        try:
            successor = subscribe(self._reader.name)
        except (UntornError, OSError):
            return False
        if id_of(successor) == id_of(self._reader):
            return False
        self._reader = successor
        return True

    def _say(self, kind: int, flags: int, version: int = 0) -> None:
        self._connection.sendall(_FRAME.pack(_ANSWERING, kind, flags, version, 0, id_of(self._reader)))


# -- the follower


class _LocalChannel:
    """The channel that a follower writes, and what is known of it."""

    def __init__(self, name: str, sizes: tuple[int, int, int]) -> None:
        self.name = name
        self._sizes = sizes
        self._publisher: Publisher | None = None
        self._last: Publisher | None = None
        self.version = 0
        self.id = _NO_ID

    def is_the_same(self, id: bytes) -> bool:
        """Return whether the name leads to the channel with this id, which is not this one's."""
        if self._publisher is not None:
            return False
        try:
            return id_of(subscribe(self.name)) == id
        except (UntornError, OSError):
            return False

    def adopt(self) -> None:
        """Continue what an earlier follower left. Raises BusyError if the name has a living publisher."""
        if self._publisher is not None or self.version != 0:
            return
        self._publisher = self._last = continue_channel(self.name, tolerant=True)
        if self._publisher is not None:
            self.version = self._publisher.version

    def revive(self) -> None:
        """Continue the channel, if it has lost its publisher. Raises BrokenChannelError if it is gone."""
        if self._publisher is not None or self.version == 0:
            return
        publisher = continue_channel(self.name, tolerant=True)
        if publisher is None or publisher.version != self.version:
            if publisher is not None:
                publisher.close()
            self.forget()
            raise BrokenChannelError(f"channel {self.name!r} was removed or changed by another program")
        self._publisher = self._last = publisher

    def forget(self) -> None:
        """Begin anew."""
        self.close()
        self._last, self.version, self.id = None, 0, _NO_ID

    def have(self) -> _Have:
        """Return what the source is asked with."""
        digest = _NO_DIGEST
        if self._publisher is not None and self.id == _NO_ID:
            with self._publisher.subscriber() as reader, reader.snapshot() as snapshot:
                digest = _digest_of(snapshot)
        return _Have(self.version, self.id, digest)

    def receive(self, frame: _Frame, fill: Callable[[memoryview], None]) -> None:
        """Publish a version that ``fill`` writes. Raises CapacityError, before that is called, if there is no room."""
        follows = frame.version > self.version and self.id in (_NO_ID, frame.id)
        if not follows:
            self.remove()
        publisher = self._publisher
        if publisher is not None:
            with receive_raw(publisher, frame.nbytes, frame.version, timeout_s=_FREE_SLOT_TIMEOUT_S) as memory:
                fill(memory)
        else:
            self._publisher = self._last = publish_received(
                fill, frame.nbytes, frame.version, name=self.name, sizes=self._sizes, tolerant=True
            )
        self.version, self.id = frame.version, frame.id

    def close(self) -> None:
        """Tell its subscribers that the publisher has closed it."""
        publisher, self._publisher = self._publisher, None
        if publisher is not None:
            publisher.close()

    def die(self) -> None:
        """Let its subscribers find that the publisher is dead."""
        publisher, self._publisher = self._publisher, None
        if publisher is not None:
            attachment_of(publisher).abandon()
            publisher.close()

    def remove(self) -> None:
        """Close it, and remove its names."""
        self.close()
        last, self._last = self._last, None
        if last is not None:
            with contextlib.suppress(UntornError, OSError):  # another publisher has the names now
                last.unlink()
        self.version, self.id = 0, _NO_ID


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
        self._local = _LocalChannel(name, sizes)
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
            request = _Have(_ALL, first.id, _NO_DIGEST)
        else:
            self._local.adopt()
            request = self._local.have()
        while not self._stop.is_set():
            connection.sendall(_REQUEST.pack(_ASKING, *request))
            while (frame := self._next_frame(connection)).kind == _STATE:
                self._see(frame.flags)
            if frame.kind == _END:
                self._see(frame.flags)
                return True
            if frame.kind == _VERSION:
                self._receive_version(connection, frame)
            elif frame.kind == _SAME:
                self._local.id = frame.id
            else:
                raise FormatError(f"expected a version, found an answer of unknown kind {frame.kind}")
            request = self._local.have()
        return True

    def _next_frame(self, connection: socket.socket) -> _Frame:
        frame = _receive_frame(connection)
        self._heard_at = time.monotonic()
        return frame

    def _receive_version(self, connection: socket.socket, frame: _Frame) -> None:
        if self._local.is_the_same(frame.id):
            raise BusyError(f"channel {self._local.name!r} of this machine is the source's own")
        filling = False

        def fill(memory: memoryview) -> None:
            nonlocal filling
            filling = True
            _receive_into(connection, memory)

        try:
            self._local.receive(frame, fill)
            self._said = ""
        except (CapacityError, BusyError) as error:
            if filling:
                raise
            self._tell(error)
            with memoryview(bytearray(min(frame.nbytes, _CHUNK_NBYTES))) as scratch:
                for at in range(0, frame.nbytes, _CHUNK_NBYTES):
                    with scratch[: min(_CHUNK_NBYTES, frame.nbytes - at)] as part:
                        _receive_into(connection, part)
            self._stop.wait(_RETRY_S[1])  # the version that is the newest then comes instead

    def _see(self, flags: int) -> None:
        if not flags:
            self._local.revive()
        elif flags & _NAMELESS:
            self._local.remove()
        elif flags & _CLOSED:
            self._local.close()
        elif flags & _DEAD:
            self._local.die()

    def _tell(self, error: Exception) -> None:
        """Log what is wrong, once until it is over."""
        what = str(error) or type(error).__name__
        if what != self._said and not self._stop.is_set():
            self._said = what
            _log.warning("versions of %r from %s: %s", self._local.name, show_address(self._address), what)
