"""The beginning of every connection between machines: each side proves that it knows the secret, without sending it.

::

    connector                                        acceptor
        greeting: magic, protocol, role, nonce  ──>
                                                <──  greeting: magic, protocol, role, nonce
        hello, proof                            ──>  is the proof right?
    is the proof right?                         <──  verdict, proof

A proof is an HMAC-SHA256, under the secret, of the prover's role, both greetings and the hello. Nonces are random, so
that no proof is right a second time, and roles differ, so that none can be sent back. What follows is not encrypted and
not signed: who can change packets between the machines can change them after the handshake (docs/security.md).

Both sides have a time limit for all of it, and a peer of any other kind gets a HandshakeError that says what was found.
Numbers are in network byte order.
"""

from __future__ import annotations

import contextlib
import hmac
import os
import socket
import struct
import time
from typing import Literal

from untorn.descriptors import keep_socket
from untorn.errors import UntornError

__all__ = ["HELLO_NBYTES", "PROTOCOL", "HandshakeError", "Reason", "accept", "connect", "show_address"]

#: the version of what nodes say to one another, in the handshake and after it
PROTOCOL = 1
#: the largest hello
HELLO_NBYTES = 1 << 16

_MAGIC = b"\xf5untorn\n"
#: magic, protocol, role; the nonce follows
_GREETING = struct.Struct("!8sHc")
_NONCE_NBYTES, _PROOF_NBYTES = 32, 32
_GREETING_NBYTES = _GREETING.size + _NONCE_NBYTES
_CONNECTOR, _ACCEPTOR = b"C", b"A"
_LENGTH = struct.Struct("!I")
_TAKEN, _REFUSED = b"\x01", b"\x00"
_SHOWN = 24

Reason = Literal["foreign", "protocol", "secret", "silent", "closed", "failed"]


class HandshakeError(UntornError):
    """The other side of a connection is no peer of this training, or does not answer.

    Attributes:
        reason: ``"foreign"`` if it speaks another protocol, ``"protocol"`` for another version of this one,
            ``"secret"`` if it does not know the secret, ``"silent"`` if it took too long, ``"closed"`` if it closed the
            connection, ``"failed"`` if the network did.
    """

    def __init__(self, message: str, reason: Reason) -> None:
        super().__init__(message)
        self.reason: Reason = reason


def connect(address: tuple[str, int], secret: bytes, hello: bytes, timeout_s: float) -> socket.socket:
    """Connect to a peer that calls accept(). Return the connection, which is blocking and sends at once (TCP_NODELAY).

    Args:
        address: host and port.
        secret: of the training.
        hello: tells the acceptor what this connection is for; at most HELLO_NBYTES. It is not hidden from others.
        timeout_s: the longest time that connecting and the handshake may take together, in seconds.

    Raises OSError, with the address in its message, if nobody listens there; HandshakeError if it is no such peer.
    """
    if len(hello) > HELLO_NBYTES:
        raise ValueError(f"hello: expected at most {HELLO_NBYTES:,} bytes, found {len(hello):,}")
    deadline = time.monotonic() + timeout_s
    there = show_address(address)
    try:
        connection = keep_socket(socket.create_connection(address, timeout=timeout_s))
    except TimeoutError:
        raise TimeoutError(f"{there} cannot be reached: no answer within {timeout_s:g} s") from None
    except OSError as error:
        raise type(error)(error.errno, f"{there} cannot be reached: {error.strerror or error}") from None
    try:
        wire = _Wire(connection, there, timeout_s, deadline)
        own = _greeting(_CONNECTOR)
        wire.send(own)
        other = wire.greeting(_ACCEPTOR)
        wire.send(_LENGTH.pack(len(hello)) + hello + _proof(secret, _CONNECTOR, own, other, hello))
        verdict = wire.receive(1 + _PROOF_NBYTES)
        if verdict[:1] != _TAKEN:
            raise HandshakeError(f"{there} refuses this process: it has another secret", "secret")
        if not hmac.compare_digest(verdict[1:], _proof(secret, _ACCEPTOR, own, other, hello)):
            raise HandshakeError(f"{there} does not know the secret of this training", "secret")
        return _ready(connection)
    except BaseException:
        connection.close()
        raise


def accept(connection: socket.socket, secret: bytes, timeout_s: float) -> bytes:
    """Check the peer of a connection that was just accepted, and return its hello. The connection is then blocking and
    sends at once. It blocks for at most ``timeout_s`` seconds, so call it in a thread that serves nobody else.

    Raises HandshakeError, and closes the connection, if the peer did not come through connect() with the same secret.
    """
    try:
        wire = _Wire(connection, _name_of_peer(connection), timeout_s, time.monotonic() + timeout_s)
        own = _greeting(_ACCEPTOR)
        wire.send(own)
        other = wire.greeting(_CONNECTOR)
        (nbytes,) = _LENGTH.unpack(wire.receive(_LENGTH.size))
        if nbytes > HELLO_NBYTES:
            raise HandshakeError(
                f"{wire.there} announces a hello of {nbytes:,} bytes, and the largest has {HELLO_NBYTES:,}", "foreign"
            )
        hello, proof = wire.receive(nbytes), wire.receive(_PROOF_NBYTES)
        if not hmac.compare_digest(proof, _proof(secret, _CONNECTOR, other, own, hello)):
            with contextlib.suppress(HandshakeError):
                wire.send(_REFUSED + bytes(_PROOF_NBYTES))
            raise HandshakeError(f"{wire.there} does not know the secret of this training", "secret")
        wire.send(_TAKEN + _proof(secret, _ACCEPTOR, other, own, hello))
        _ready(connection)
        return hello
    except BaseException:
        connection.close()
        raise


def show_address(address: object) -> str:
    """Return an address as messages show it."""
    if isinstance(address, tuple) and len(address) >= 2:
        return f"{address[0]}:{address[1]}"
    return str(address) or "a socket without a name"


def _greeting(role: bytes) -> bytes:
    return _GREETING.pack(_MAGIC, PROTOCOL, role) + os.urandom(_NONCE_NBYTES)


def _proof(secret: bytes, role: bytes, connector: bytes, acceptor: bytes, hello: bytes) -> bytes:
    """Return the proof of one side. All but the hello, which comes last, has a fixed length."""
    return hmac.digest(secret, role + connector + acceptor + hello, "sha256")


def _ready(connection: socket.socket) -> socket.socket:
    connection.settimeout(None)
    if connection.family in (socket.AF_INET, socket.AF_INET6):
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return connection


def _name_of_peer(connection: socket.socket) -> str:
    try:
        return show_address(connection.getpeername())
    except OSError:  # it is gone already
        return "a peer that is gone"


class _Wire:
    """Sends and receives whole messages before a deadline. Raises HandshakeError."""

    def __init__(self, connection: socket.socket, there: str, timeout_s: float, deadline: float) -> None:
        self.there = there
        self._connection = connection
        self._timeout_s = timeout_s
        self._deadline = deadline

    def send(self, message: bytes) -> None:
        try:
            self._wait_at_most()
            self._connection.sendall(message)
        except TimeoutError:
            raise self._silent("took nothing") from None
        except OSError as error:
            raise self._failed(error) from None

    def receive(self, nbytes: int) -> bytes:
        received = b""
        while len(received) < nbytes:
            received += self._some(nbytes - len(received), len(received), nbytes)
        return received

    def greeting(self, role: bytes) -> bytes:
        """Receive the greeting of a peer in this role. Whoever begins with other bytes is not waited for."""
        received = b""
        while len(received) < _GREETING_NBYTES:
            received += self._some(_GREETING_NBYTES - len(received), len(received), _GREETING_NBYTES)
            if not _MAGIC.startswith(received[: len(_MAGIC)]):
                raise HandshakeError(
                    f"{self.there} is no untorn process of this kind: it begins with {received[:_SHOWN]!r}", "foreign"
                )
        _, protocol, found = _GREETING.unpack_from(received)
        if protocol != PROTOCOL:
            raise HandshakeError(
                f"{self.there} speaks version {protocol} of untorn's protocol between nodes, and this process speaks "
                f"version {PROTOCOL}; install the same untorn on all machines",
                "protocol",
            )
        if found != role:
            raise HandshakeError(
                f"{self.there} is no untorn process of this kind: both sides are in the role {found!r}", "foreign"
            )
        return received

    def _some(self, most: int, so_far: int, of: int) -> bytes:
        try:
            self._wait_at_most()
            received = self._connection.recv(most)
        except TimeoutError:
            raise self._silent(f"sent {so_far} of {of} bytes") from None
        except OSError as error:
            raise self._failed(error) from None
        if not received:
            raise HandshakeError(
                f"{self.there} closed the connection in the handshake, after {so_far} of {of} bytes", "closed"
            )
        return received

    def _wait_at_most(self) -> None:
        left_s = self._deadline - time.monotonic()
        if left_s <= 0:
            raise TimeoutError
        self._connection.settimeout(left_s)

    def _silent(self, what: str) -> HandshakeError:
        return HandshakeError(
            f"{self.there} {what} within the {self._timeout_s:g} s that a handshake may take", "silent"
        )

    def _failed(self, error: OSError) -> HandshakeError:
        gone = isinstance(error, ConnectionError)
        return HandshakeError(
            f"{self.there}: the connection broke in the handshake ({error.strerror or error})",
            "closed" if gone else "failed",
        )
