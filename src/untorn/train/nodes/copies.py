"""Copies of the weights between driver and nodes: a version as bytes over a connection of its own.

::

    reader ── handshake: fetch ──> owner of the weights
           <── header, bytes ─────

A node that joins, or is a step behind, reads the newest version of another node straight into its own channel.
"""

from __future__ import annotations

import contextlib
import logging
import socket
import struct
import time
from collections.abc import Callable
from typing import NamedTuple

from untorn.share.lowlevel import receive_raw
from untorn.train.run.weights import Weights

__all__ = ["Position", "fetch_into", "send_copy"]

_log = logging.getLogger(__name__)
#: the token, the version, and the bytes
_HEADER = struct.Struct("!16sQQ")
_TIMEOUT_S = 10.0
#: how often a reader looks whether it is still to read
_LOOK_S = 0.1
_CHUNK_NBYTES = 1 << 20


class Position(NamedTuple):
    """Which weights a process has. Versions with different tokens have nothing to do with each other."""

    token: bytes
    version: int


def send_copy(sock: socket.socket, raw: memoryview, position: Position) -> None:
    """Send a version, as raw_version() returns it, to a reader, and close the connection. Blocks; a reader that goes
    away or stops reading is logged."""
    with contextlib.closing(sock):
        sock.settimeout(_TIMEOUT_S)
        try:
            sock.sendall(_HEADER.pack(*position, raw.nbytes))
            sock.sendall(raw)
        except OSError as error:
            _log.warning("a copy of the weights was not sent: %s", error)


def fetch_into(weights: Weights, sock: socket.socket, wanted: Position, interrupted: Callable[[], bool]) -> bool:
    """Read a version of the owner at the other end into the channel of the weights. Return False, with nothing
    published, soon after ``interrupted`` returns True. Blocks, and closes the connection.

    Raises ConnectionError if the owner has another version, is silent for too long or cannot be reached.
    """
    with contextlib.closing(sock), contextlib.suppress(_InterruptedError):
        sock.settimeout(_LOOK_S)
        head = bytearray(_HEADER.size)
        _receive(sock, memoryview(head), interrupted)
        token, version, nbytes = _HEADER.unpack(head)
        if Position(token, version) != wanted:
            raise ConnectionError(f"it has version {version} of the weights, not {wanted.version}")
        with receive_raw(weights.channel, nbytes, version) as memory:
            _receive(sock, memory, interrupted)
    newest: int = weights.version
    return newest == wanted.version


class _InterruptedError(Exception):
    """The copy is not wanted any more."""


def _receive(sock: socket.socket, memory: memoryview, interrupted: Callable[[], bool]) -> None:
    at, heard = 0, time.monotonic()
    while at < memory.nbytes:
        if interrupted():
            raise _InterruptedError
        try:
            with memory[at : at + _CHUNK_NBYTES] as rest:
                count = sock.recv_into(rest)
        except TimeoutError:
            if time.monotonic() - heard > _TIMEOUT_S:
                raise ConnectionError(f"nothing came of a version for {_TIMEOUT_S:g} s") from None
            continue
        if count == 0:
            raise ConnectionError("the connection was closed in the middle of a version")
        at, heard = at + count, time.monotonic()
