"""The client's side: finds running jobs, and asks them."""

from __future__ import annotations

import contextlib
import os
import socket
import time
from typing import Any

from untorn.control.addresses import address_of, is_ours, listener_uid, not_ours, peer_uid, prefix
from untorn.control.protocol import ANSWER_NBYTES, read_answer, request_line
from untorn.descriptors import keep_socket
from untorn.errors import ChannelNotFoundError

__all__ = ["ask", "is_running", "running_jobs"]

_RETRY_S = 0.01
#: the flag of a listening socket in /proc/net/unix
_LISTENS = 0x10000


def ask(name: str, request: dict[str, Any], *, timeout_s: float = 2.0) -> dict[str, Any]:
    """Send a request to this user's running job of that name and return its answer. Blocks at most ``timeout_s``.

    A job answers between steps. While it runs validation, a callback or an evaluation, it is busy and answers later.

    Raises:
        ChannelNotFoundError: no job of that name is running here.
        TimeoutError: the job is busy. It will not carry out the request later.
        PermissionError: the job, or another program at its address, belongs to another user.
        BrokenChannelError: the job ended before it had answered.
        FormatError: another program than a job of untorn answers.
        ValueError: the request is not possible. The job's other errors are raised here as well: NotImplementedError and
            other built-in errors, UntornError and its subclasses.
    """
    deadline = time.monotonic() + timeout_s
    with keep_socket(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)) as connection:
        try:
            _connect(connection, name, deadline)
            uid = peer_uid(connection)
            if not is_ours(uid):
                raise not_ours(name, uid, os.geteuid())
            with contextlib.suppress(BrokenPipeError):  # it may have refused, and its answer says why
                connection.sendall(request_line(request))
            received = _received(connection, deadline)
        except TimeoutError:
            raise TimeoutError(
                f"job {name!r} did not answer within {timeout_s:g} s: it answers between the steps of fit, and "
                "validation or a callback may be running; try again later"
            ) from None
    return read_answer(received, name)


def running_jobs() -> list[str]:
    """Return the sorted names of this user's running jobs, which ``ask`` finds. A name of more than about 80 characters
    is cut, and ``ask`` finds the cut name too. Sockets of other users at such addresses are left out. Empty if /proc
    cannot be read."""
    try:
        with open("/proc/net/unix", "rb") as table:
            names = _names_in(table.read(), prefix())
    except OSError:
        return []
    return [name for name in names if is_ours(listener_uid(b"\0" + prefix() + os.fsencode(name)))]


def _names_in(table: bytes, begin: bytes) -> list[str]:
    """Return the sorted names of jobs whose addresses begin so, from the kernel's table of sockets. Its columns are
    Num, RefCount, Protocol, Flags, Type, St, Inode and Path, where an abstract address begins with @."""
    rows = [row.split(None, 7) for row in table.split(b"\n")[1:]]
    paths = {row[7] for row in rows if len(row) == 8 and _listens(row[3])}
    return sorted(os.fsdecode(path[1 + len(begin) :]) for path in paths if path.startswith(b"@" + begin))


def _listens(flags: bytes) -> bool:
    """Return whether these are the flags of a listener. Since an address may contain a newline, another user can make
    a row with any content."""
    try:
        return bool(int(flags, 16) & _LISTENS)
    except ValueError:
        return False


def is_running(name: str) -> bool:
    """Return whether this user runs a job of that name here, according to the kernel; the job is not asked."""
    return os.fsdecode(address_of(name)[1 + len(prefix()) :]) in running_jobs()


def _connect(connection: socket.socket, name: str, deadline: float) -> None:
    connection.settimeout(0)
    while True:
        try:
            connection.connect(address_of(name))
            break
        except BlockingIOError:  # the queue is full
            if time.monotonic() >= deadline:
                raise TimeoutError from None
            time.sleep(_RETRY_S)
        except (ConnectionRefusedError, FileNotFoundError):
            known = ", ".join(map(repr, running_jobs())) or "none"
            raise ChannelNotFoundError(
                f"no job named {name!r} is running here (running: {known}); a job can be found while it trains if it "
                "has a name: Trainer(name=...), or `untorn train --name`. `untorn top` lists running jobs"
            ) from None
    connection.settimeout(max(deadline - time.monotonic(), 1e-3))


def _received(connection: socket.socket, deadline: float) -> bytes:
    """Receive until a newline. Stops without one if the connection ends, or the answer is too long. Raises
    TimeoutError."""
    received = bytearray()
    while b"\n" not in received[-65536:] and len(received) <= ANSWER_NBYTES:
        left_s = deadline - time.monotonic()
        if left_s <= 0:  # an answer that never ends is late, too
            raise TimeoutError
        connection.settimeout(left_s)
        try:
            more = connection.recv(65536)
        except ConnectionResetError:
            break
        if not more:
            break
        received += more
    return bytes(received)
