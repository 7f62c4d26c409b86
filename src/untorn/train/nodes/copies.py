"""Copies of the weights between driver and nodes: a version as bytes over a connection of its own.

::

    reader ── handshake: fetch ──> owner of the weights
           <── header, bytes ─────

A node that joins, or is a step behind, reads the newest version of another node straight into its own channel.
"""

from __future__ import annotations

import contextlib
import json
import logging
import socket
import struct
from collections.abc import Callable
from typing import NamedTuple

from untorn.engines.nodes import handshake
from untorn.share.lowlevel import receive_raw
from untorn.train.run.weights import Weights

__all__ = ["Position", "fetch_into", "send_copy"]

_log = logging.getLogger(__name__)
#: the token, the version, and the bytes
_HEADER = struct.Struct("!16sQQ")
_TIMEOUT_S = 10.0
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


def fetch_into(
    weights: Weights,
    address: tuple[str, int],
    secret: bytes,
    wanted: Position,
    interrupted: Callable[[], bool],
) -> bool:
    """Read a version of the owner at this address into the channel of the weights. Return False, with nothing
    published, as soon as ``interrupted`` returns True. Blocks.

    Raises ConnectionError if the owner has another version or cannot be reached.
    """
    hello = json.dumps({"kind": "fetch", "version": wanted.version}).encode()
    with contextlib.closing(handshake.connect(address, secret, hello, _TIMEOUT_S)) as sock:
        sock.settimeout(_TIMEOUT_S)
        token, version, nbytes = _HEADER.unpack(_exactly(sock, _HEADER.size))
        if Position(token, version) != wanted:
            raise ConnectionError(f"{address[0]} has version {version} of the weights, not {wanted.version}")
        with contextlib.suppress(_InterruptedError), receive_raw(weights.channel, nbytes, version) as memory:
            at = 0
            while at < nbytes:
                if interrupted():
                    raise _InterruptedError
                with memory[at : at + _CHUNK_NBYTES] as rest:
                    at += _received(sock, rest)
    newest: int = weights.version
    return newest == wanted.version


class _InterruptedError(Exception):
    """The copy is not wanted any more."""


def _received(sock: socket.socket, memory: memoryview) -> int:
    count = sock.recv_into(memory)
    if count == 0:
        raise ConnectionError("the connection was closed in the middle of a version")
    return count


def _exactly(sock: socket.socket, nbytes: int) -> bytes:
    content = bytearray(nbytes)
    view, at = memoryview(content), 0
    while at < nbytes:
        at += _received(sock, view[at:])
    return bytes(content)
