"""What server and follower say to each other: requests, and frames that answer them.

::

    request   magic, the newest version here, the channel's id there, a digest of that version if the id is not known
    frame     magic, kind, flags, version, nbytes, the channel's id there; the bytes follow if it is a VERSION
"""

from __future__ import annotations

import hashlib
import socket
import struct
from typing import NamedTuple

from untorn.errors import FormatError
from untorn.share import Snapshot, Subscriber
from untorn.share.lowlevel import id_of, raw_version

__all__ = [
    "ALL",
    "CHUNK_NBYTES",
    "CLOSED",
    "DEAD",
    "END",
    "NAMELESS",
    "NO_DIGEST",
    "NO_ID",
    "SAME",
    "SILENCE_S",
    "STATE",
    "VERSION",
    "Frame",
    "Have",
    "digest_of",
    "receive_frame",
    "receive_into",
    "receive_request",
    "send_frame",
    "send_request",
    "send_version",
]

#: how long either side may be silent before the connection counts as broken
SILENCE_S = 5.0
#: how much is sent at a time, so that a slow but steady connection is not taken for a broken one
CHUNK_NBYTES = 1 << 20

#: kinds of frames
VERSION, SAME, STATE, END = 1, 2, 3, 4
#: flags of a STATE
CLOSED, DEAD, NAMELESS = 1, 2, 4
#: the version to ask after for nothing but the state of the channel
ALL = (1 << 58) - 1
NO_ID, NO_DIGEST = bytes(16), bytes(32)

_ASKING, _ANSWERING = b"utv?", b"utv!"
_REQUEST = struct.Struct("!4s4xQ16s32s")
_FRAME = struct.Struct("!4sBB2xQQ16s")
_HEADER_NBYTES = 64


class Frame(NamedTuple):
    """What the server says."""

    kind: int
    flags: int
    version: int
    nbytes: int
    id: bytes


class Have(NamedTuple):
    """What a follower has: its newest version, and whose it is."""

    version: int
    id: bytes
    digest: bytes

    def is_of(self, reader: Subscriber) -> bool:
        """Return whether it is the channel of this subscriber that the follower has."""
        return self.id == id_of(reader)


def receive_into(connection: socket.socket, memory: memoryview) -> None:
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
        receive_into(connection, memory)
    return bytes(received)


def _send(connection: socket.socket, payload: memoryview) -> None:
    for at in range(0, len(payload), CHUNK_NBYTES):
        with payload[at : at + CHUNK_NBYTES] as chunk:
            connection.sendall(chunk)


def send_request(connection: socket.socket, have: Have) -> None:
    """Ask for the next version."""
    connection.sendall(_REQUEST.pack(_ASKING, *have))


def send_frame(connection: socket.socket, kind: int, flags: int, version: int, id: bytes) -> None:
    """Answer with a frame that is no version."""
    connection.sendall(_FRAME.pack(_ANSWERING, kind, flags, version, 0, id))


def receive_frame(connection: socket.socket) -> Frame:
    """Receive a frame without the bytes of its version. Raises FormatError if it is none."""
    magic, *fields = _FRAME.unpack(_receive(connection, _FRAME.size))
    if magic != _ANSWERING:
        raise FormatError(f"expected an answer with versions, found bytes that begin with {magic!r}")
    return Frame(*fields)


def receive_request(connection: socket.socket) -> Have:
    """Receive a request. Raises FormatError if it is none."""
    magic, *fields = _REQUEST.unpack(_receive(connection, _REQUEST.size))
    if magic != _ASKING:
        raise FormatError(f"expected a request for versions, found bytes that begin with {magic!r}")
    return Have(*fields)


def send_version(connection: socket.socket, snapshot: Snapshot, id: bytes) -> int:
    """Send a version; return its size."""
    with raw_version(snapshot) as raw:
        header = _FRAME.pack(_ANSWERING, VERSION, 0, snapshot.version, raw.nbytes, id)
        if raw.nbytes <= CHUNK_NBYTES:
            connection.sendall(header + raw)  # one packet, for small versions
        else:
            connection.sendall(header)
            _send(connection, raw)
        return raw.nbytes


def digest_of(snapshot: Snapshot) -> bytes:
    """Return a digest of a version without its header, in which each channel has its own times."""
    with raw_version(snapshot) as raw, raw[_HEADER_NBYTES:] as rest:
        return hashlib.blake2b(rest, digest_size=32).digest()
