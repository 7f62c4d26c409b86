"""A single version, from one machine to another: send_newest() at one end, fetch() at the other."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Callable

from untorn.engines.nodes.streaming.frames import (
    NO_DIGEST,
    NO_ID,
    VERSION,
    Have,
    receive_frame,
    receive_into,
    receive_request,
    send_request,
    send_version,
)
from untorn.errors import FormatError
from untorn.share import Subscriber
from untorn.share.lowlevel import id_of

__all__ = ["fetch", "send_newest"]


def send_newest(connection: socket.socket, reader: Subscriber) -> int:
    """Answer fetch() with the channel's newest version; return its number. Blocks until it is sent."""
    receive_request(connection)
    with reader.snapshot() as snapshot:
        send_version(connection, snapshot, id_of(reader))
        return snapshot.version


def fetch(connection: socket.socket, take: Callable[[int, int], contextlib.AbstractContextManager[memoryview]]) -> int:
    """Receive the newest version from a peer that calls send_newest(); return its number.

    Args:
        connection: to the peer. Its timeout, if it has one, limits each wait for the next bytes.
        take: is called with the size and the number of the version, and returns a context manager with the memory for
            it, as receive_raw() does.
    """
    send_request(connection, Have(0, NO_ID, NO_DIGEST))
    frame = receive_frame(connection)
    if frame.kind != VERSION:
        raise FormatError(f"expected a version, found an answer of kind {frame.kind}")
    with take(frame.nbytes, frame.version) as memory:
        receive_into(connection, memory)
    return frame.version
