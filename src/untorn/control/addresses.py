"""The address of a job's abstract socket, made of the user and the job's name, and the users behind sockets."""

from __future__ import annotations

import hashlib
import os
import socket
import struct

from untorn.descriptors import keep_socket

__all__ = ["address_of", "is_ours", "listener_uid", "not_ours", "peer_uid", "prefix"]

#: the kernel's limit for an address, including the zero byte that makes it abstract
_ADDRESS_NBYTES = 108
_KEPT_NBYTES = 48
_ROOT = 0


def prefix() -> bytes:
    """Return how the addresses of this user's jobs begin, after the zero byte."""
    return f"untorn/{os.geteuid()}/".encode()


def address_of(name: str) -> bytes:
    """Return the address of the job of this name. It is abstract, since it begins with a zero byte. A name that does
    not fit is cut and gets a digest, after a ~, which no job's name contains."""
    address = b"\0" + prefix() + os.fsencode(name)
    if len(address) <= _ADDRESS_NBYTES:
        return address
    digest = hashlib.sha256(os.fsencode(name)).hexdigest()[:32]
    return b"\0" + prefix() + os.fsencode(name)[:_KEPT_NBYTES] + b"~" + digest.encode()


def is_ours(uid: int | None) -> bool:
    """Return whether this is the user of this process, or root."""
    return uid in (_ROOT, os.geteuid())


def not_ours(name: str, owner: int, other: int) -> PermissionError:
    """Return the error for a user who asks about a job of another user."""
    return PermissionError(f"job {name!r} belongs to user {owner}, and you are user {other}; ask as that user")


def peer_uid(connection: socket.socket) -> int:
    """Return the user at the other end, according to the kernel."""
    form = struct.Struct("iII")
    _, uid, _ = form.unpack(connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, form.size))
    assert isinstance(uid, int)
    return uid


def listener_uid(address: bytes) -> int | None:
    """Return the user who listens at this address, according to the kernel; None if no process listens there. If the
    queue is full, the user is unknown and taken for this one; ask() finds out."""
    with keep_socket(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)) as connection:
        connection.setblocking(False)
        try:
            connection.connect(address)
        except BlockingIOError:
            return os.geteuid()
        except OSError:
            return None
        return peer_uid(connection)
