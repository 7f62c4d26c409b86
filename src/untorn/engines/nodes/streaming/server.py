"""The server: it sends a channel's newest versions to followers on other machines."""

from __future__ import annotations

import contextlib
import json
import logging
import socket
import threading
import time
from dataclasses import dataclass

from untorn.engines.nodes.listening import Listener
from untorn.engines.nodes.streaming.frames import (
    CLOSED,
    DEAD,
    END,
    NAMELESS,
    NO_DIGEST,
    SAME,
    SILENCE_S,
    STATE,
    Have,
    digest_of,
    receive_request,
    send_frame,
    send_version,
)
from untorn.errors import BrokenChannelError, FormatError, UntornError
from untorn.share import Publisher, Subscriber, subscribe
from untorn.share.lowlevel import ending_of, has_name, id_of

__all__ = ["Feed", "VersionServer"]

_log = logging.getLogger(__name__)

#: how often the server says that nothing is new
_HEARTBEAT_S = 1.0
#: how often it looks at a channel without a publisher, and whether it is being closed
_PIECE_S = 0.2


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
        self._say(STATE, self._flags())  # tells the channel's id
        while True:
            have = self._what_it_has()
            self._feed.version = have.version
            if not self._wait(have):
                self._say(END, self._flags())
                return
            with self._reader.snapshot() as snapshot:
                self._feed.nbytes += send_version(self._connection, snapshot, id_of(self._reader))
            self._feed.versions += 1

    def _what_it_has(self) -> Have:
        """Receive a request, and compare the versions if the follower does not know the channel's id."""
        while True:
            have = receive_request(self._connection)
            if have.is_of(self._reader) or have.digest == NO_DIGEST:
                return have
            with self._reader.snapshot() as snapshot:
                if (snapshot.version, digest_of(snapshot)) != (have.version, have.digest):
                    return have
            self._say(SAME, 0, have.version)

    def _wait(self, have: Have) -> bool:
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
                self._say(STATE, flags)
                said, heartbeat_at = flags, now + _HEARTBEAT_S
            if flags:
                self._stop.wait(_PIECE_S)
        return True

    def _is_news(self, have: Have) -> bool:
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
        nameless = 0 if self._reader.name == "anonymous" or has_name(self._reader) else NAMELESS
        return nameless | (CLOSED if ending == "closed" else DEAD)

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
        send_frame(self._connection, kind, flags, version, id_of(self._reader))
