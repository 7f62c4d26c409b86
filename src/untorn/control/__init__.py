"""A named job is looked at and resized from another process while it trains, by one line of JSON each way.

::

    untorn top, join, leave ── ask(name, request) ──> abstract socket of (uid, name) ──┐
                 ^                                                                     v
                 └──────────────── answer ──────────── handlers.status(), .resize() <── Control.poll, between steps

The socket is an abstract one, which has no file: the kernel removes it with the process, however that ends. Who
connects is told by the kernel, and only the job's user and root are answered. A network namespace has abstract sockets
of its own, so a job in a container is found from inside the container alone.

The training loop is never kept waiting: a client that is slow, silent or wrong costs it a few microseconds per poll and
is dropped after a second, and at most 16 are taken in or refused per poll, however many connect. A request of a client
that has given up is not carried out.

Every user may listen at any abstract address. So a client checks who answers, and another user's socket is no job.

======================================  ============================================
request                                 answer
======================================  ============================================
``{"do": "status"}``                    what ``handlers.status()`` returns
``{"do": "resize", "workers": 4}``      ``{"workers": 4, "was": 2}``
``{"do": "resize", "by": -1}``          ``{"workers": 1, "was": 2}``
anything else                           ``{"error": "...", "type": "ValueError"}``
======================================  ============================================
"""

from __future__ import annotations

import builtins
import contextlib
import errno
import hashlib
import json
import logging
import math
import os
import select
import socket
import struct
import time
import weakref
from dataclasses import dataclass, field
from typing import Any, Protocol

from untorn import errors, trees
from untorn.errors import BrokenChannelError, ChannelNotFoundError, FormatError, UntornError
from untorn.share.descriptors import keep_socket

__all__ = ["Control", "Handlers", "ask", "is_running", "running_jobs"]

_log = logging.getLogger(__name__)

#: bytes of a request, and seconds that a client may take to send one, and then to read the answer
REQUEST_NBYTES = 4096
SILENCE_S = 1.0
#: bytes of an answer, at most
ANSWER_NBYTES = 1 << 24
#: clients that are served at the same time; more wait in the kernel's queue
_MOST_CLIENTS = 16
_BACKLOG = 64
_RETRY_S = 0.01
#: what the kernel has room for, with the zero byte that makes an address abstract
_ADDRESS_NBYTES = 108
_KEPT_NBYTES = 48
_ROOT = 0
#: of /proc/net/unix: somebody listens
_LISTENS = 0x10000
#: errors of the server that are the same errors here; all others are an UntornError
_SAME_HERE = {
    name: getattr(source, name)
    for source, names in (
        (builtins, ("ValueError", "TypeError", "NotImplementedError", "PermissionError", "MemoryError")),
        (errors, ("BusyError", "CapacityError", "ClosedError")),
    )
    for name in names
}


class Handlers(Protocol):
    """What a job lets others see and change; called by ``Control.poll``, in the thread that polls."""

    @property
    def workers(self) -> int:
        """How many workers it has, or is about to have."""
        ...

    def status(self) -> dict[str, Any]:
        """Plain JSON values."""
        ...

    def resize(self, workers: int) -> None:
        """Go on with so many workers, 1 or more. What it raises is told to who asked; training goes on."""
        ...


# -- the server's side


@dataclass
class _Client:
    """A connection: its request is collected, then its answer is sent."""

    socket: socket.socket
    deadline: float
    request: bytearray = field(default_factory=bytearray)
    answer: memoryview | None = None


class Control:
    """Listens for who asks about the job of this name.

    Where that is not possible (another job of this name listens, or sockets are forbidden) a warning is logged, and
    polling does nothing: training does not depend on it.

    Args:
        name: the job's, as in ``Trainer(name=)``.

    Example:
        >>> import os, threading
        >>> class Job:
        ...     workers = 2
        ...     def status(self):
        ...         return {"step": 7}
        ...     def resize(self, workers):
        ...         self.workers = workers
        >>> name = f"example-{os.getpid()}"
        >>> control, job, over = Control(name), Job(), threading.Event()
        >>> def train():
        ...     while not over.wait(0.001):
        ...         control.poll(job)
        >>> thread = threading.Thread(target=train)
        >>> thread.start()
        >>> ask(name, {"do": "status"}), ask(name, {"do": "resize", "by": 1})
        ({'step': 7}, {'workers': 3, 'was': 2})
        >>> over.set(); thread.join(); control.close()
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self._polling = False
        self._clients: dict[int, _Client] = {}
        self._poller = select.poll()
        self._listener = _listen(name)
        if self._listener is not None:
            self._poller.register(self._listener, select.POLLIN)
            _open_here.add(self)

    def poll(self, handlers: Handlers) -> None:
        """Answer who has asked by now. Never blocks; costs about a microsecond when nobody asks."""
        if self._listener is None:
            return
        ready = self._poller.poll(0)
        if (ready or self._clients) and not self._polling:  # a handler may come by here again
            self._polling = True
            try:
                self._serve(ready, handlers)
            finally:
                self._polling = False

    def close(self) -> None:
        """Stop listening, and drop who waits. Closing twice is fine."""
        for client in list(self._clients.values()):
            self._drop(client)
        if self._listener is not None:
            self._poller.unregister(self._listener)
            self._listener.close()
            self._listener = None

    def _serve(self, ready: list[tuple[int, int]], handlers: Handlers) -> None:
        assert self._listener is not None
        listening, now = self._listener.fileno(), time.monotonic()
        if any(fd == listening for fd, _ in ready):
            self._accept(self._listener)
            ready = self._poller.poll(0)  # most have sent their request with connecting, and some have hung up
        for fd, events in ready:
            client = self._clients.get(fd)
            if client is not None:
                self._attend(client, events, handlers)
        # by the clock of before: a handler that took its time is nobody's silence
        for client in [each for each in self._clients.values() if each.deadline <= now]:
            self._drop(client)

    def _accept(self, listener: socket.socket) -> None:
        """Take in who has connected: a bounded number at a time, since others connect as fast as they are refused."""
        for _ in range(_MOST_CLIENTS - len(self._clients)):
            try:
                accepted = keep_socket(listener.accept()[0])
            except OSError:  # nobody (any more), or no descriptor is left: they wait in the queue
                return
            accepted.setblocking(False)
            uid = _peer_uid(accepted)
            if uid not in (_ROOT, os.geteuid()):
                self._refuse(accepted, uid)
                continue
            client = _Client(accepted, time.monotonic() + SILENCE_S)
            self._clients[accepted.fileno()] = client
            self._poller.register(accepted, select.POLLIN)

    def _refuse(self, accepted: socket.socket, uid: int) -> None:
        """Answer another user that this is refused, if there is room for it at once; do nothing else."""
        with accepted, contextlib.suppress(OSError):
            accepted.send(_error(PermissionError(_not_yours(self.name, os.geteuid(), uid))))

    def _attend(self, client: _Client, events: int, handlers: Handlers) -> None:
        if events & ~(select.POLLIN | select.POLLOUT):  # it hung up
            self._drop(client)
        elif client.answer is not None:
            self._send(client)
        else:
            self._receive(client, handlers)

    def _receive(self, client: _Client, handlers: Handlers) -> None:
        try:
            received = client.socket.recv(REQUEST_NBYTES + 1 - len(client.request))
        except BlockingIOError:
            return
        except OSError:
            received = b""
        client.request += received
        line, newline, _ = client.request.partition(b"\n")
        if newline or len(client.request) > REQUEST_NBYTES:
            answer = _carried_out(self.name, bytes(line), handlers)
            if self._listener is not None:  # it was not a handler that closed this
                self._reply(client, answer)
        elif not received:
            self._drop(client)

    def _reply(self, client: _Client, answer: bytes) -> None:
        client.answer = memoryview(answer)
        client.deadline = time.monotonic() + SILENCE_S
        self._poller.modify(client.socket, select.POLLOUT)
        self._send(client)

    def _send(self, client: _Client) -> None:
        assert client.answer is not None
        try:
            client.answer = client.answer[client.socket.send(client.answer) :]
        except BlockingIOError:
            return
        except OSError:  # it does not listen any more
            client.answer = client.answer[:0]
        if not client.answer:
            self._drop(client)

    def _drop(self, client: _Client) -> None:
        del self._clients[client.socket.fileno()]
        self._poller.unregister(client.socket)
        client.socket.close()


_open_here: weakref.WeakSet[Control] = weakref.WeakSet()


def _after_fork() -> None:
    """A forked child neither answers for its parent nor keeps its name taken."""
    for control in list(_open_here):
        control.close()


os.register_at_fork(after_in_child=_after_fork)


def _listen(name: str) -> socket.socket | None:
    try:
        listener = keep_socket(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
    except OSError as error:
        _log.warning("job %r cannot be watched or resized from outside: %s", name, error)
        return None
    try:
        listener.setblocking(False)
        listener.bind(_address(name))
        listener.listen(_BACKLOG)
    except OSError as error:
        listener.close()
        reason = _who_holds(name) if error.errno == errno.EADDRINUSE else error
        _log.warning("job %r cannot be watched or resized from outside: %s", name, reason)
        return None
    return listener


def _who_holds(name: str) -> str:
    """Return why the name of a job is taken."""
    uid = _listener_uid(_address(name))
    if uid is not None and uid not in (_ROOT, os.geteuid()):
        return f"user {uid} has taken its address, as every user may; another name is another address"
    return "another job of this name is running"


def _carried_out(name: str, line: bytes, handlers: Handlers) -> bytes:
    """The answer to a request."""
    try:
        match _request(line):
            case {"do": "status", **more} if not more:
                return _line(handlers.status())
            case {"do": "resize", "workers": int(workers), **more} if not more and not isinstance(workers, bool):
                return _resized(name, handlers, workers)
            case {"do": "resize", "by": int(by), **more} if not more and not isinstance(by, bool):
                return _resized(name, handlers, handlers.workers + by, by)
        raise ValueError(
            'unknown request: expected {"do": "status"}, {"do": "resize", "workers": N} or {"do": "resize", "by": N}, '
            f"found {line[:80]!r}"
        )
    except Exception as error:
        if type(error).__name__ not in _SAME_HERE and not isinstance(error, UntornError):
            _log.warning("job %r: a request failed: %r", name, line[:80], exc_info=True)
        return _error(error)


def _request(line: bytes) -> Any:
    if len(line) > REQUEST_NBYTES:
        raise ValueError(f"a request is a line of at most {REQUEST_NBYTES} bytes; this one is longer")
    try:
        return json.loads(line)
    except (ValueError, RecursionError):
        raise ValueError(f'a request is a line of JSON such as {{"do": "status"}}; found {line[:80]!r}') from None


def _resized(name: str, handlers: Handlers, workers: int, by: int | None = None) -> bytes:
    was = handlers.workers
    if workers < 1:
        asked = f"{workers} were asked for" if by is None else f"{-by} were to leave"
        raise ValueError(f"job {name!r} has {was} worker{'s' * (was != 1)} and keeps at least 1; {asked}")
    if workers != was:
        handlers.resize(workers)
    return _line({"workers": workers, "was": was})


def _error(error: Exception) -> bytes:
    return _line({"error": str(error) or type(error).__name__, "type": type(error).__name__})


def _line(answer: dict[str, Any]) -> bytes:
    try:
        text = json.dumps(answer, allow_nan=False)
    except ValueError:
        text = json.dumps(trees.map(_finite, answer), allow_nan=False)
    return text.encode() + b"\n"


def _finite(value: Any) -> Any:
    """JSON has no NaN and no infinity: they become null."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


# -- the client's side


def ask(name: str, request: dict[str, Any], *, timeout_s: float = 2.0) -> dict[str, Any]:
    """Send a request to this user's running job of that name and return its answer; blocks at most ``timeout_s``.

    A job answers between steps. One that runs validation, a callback or an evaluation of its own answers after it.

    Raises:
        ChannelNotFoundError: no job of that name runs here.
        TimeoutError: it is busy. What was asked for is not carried out later.
        PermissionError: the job, or what listens in its place, is another user's.
        BrokenChannelError: it ended before it had answered.
        FormatError: something else than a job of untorn answers.
        ValueError: what was asked for is not possible; NotImplementedError, UntornError and others by their cause.
    """
    deadline = time.monotonic() + timeout_s
    with keep_socket(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)) as connection:
        try:
            _connect(connection, name, deadline)
            uid = _peer_uid(connection)
            if uid not in (_ROOT, os.geteuid()):
                raise PermissionError(_not_yours(name, uid, os.geteuid()))
            with contextlib.suppress(BrokenPipeError):  # it may have refused, and said why
                connection.sendall(json.dumps(request).encode() + b"\n")
            received = _received(connection, deadline)
        except TimeoutError:
            raise TimeoutError(
                f"job {name!r} did not answer within {timeout_s:g} s: it answers between the steps of fit, and "
                "validation or a callback may be running; try again later"
            ) from None
    return _answer_of(name, received)


def _answer_of(name: str, received: bytes) -> dict[str, Any]:
    """Return the answer, or raise the error that it is. Raises FormatError for an answer that no job gives."""
    line, newline, _ = received.partition(b"\n")
    if not newline and len(received) > ANSWER_NBYTES:
        raise FormatError(f"job {name!r} answers with more than {ANSWER_NBYTES} bytes, which no job of untorn does")
    if not newline:
        raise BrokenChannelError(f"job {name!r} ended before it had answered; `untorn top` lists the jobs that run")
    try:
        answer: Any = json.loads(line)
    except (ValueError, RecursionError):
        answer = None
    if not isinstance(answer, dict):
        raise FormatError(
            f"job {name!r} answers {line[:80]!r}, which no job of untorn does: something else listens under its name"
        )
    if "error" in answer:
        raise _SAME_HERE.get(str(answer.get("type")), UntornError)(str(answer["error"]))
    return answer


def running_jobs() -> list[str]:
    """The names of this user's running jobs, sorted: those that ``ask`` finds. A name of more than some 80 characters
    is cut short, and found under that too. What other users have put in the place of a job is left out. Empty where
    /proc cannot be read."""
    try:
        with open("/proc/net/unix", "rb") as table:
            names = _listed(table.read(), _prefix())
    except OSError:
        return []
    addresses = [b"\0" + _prefix() + os.fsencode(name) for name in names]
    ours = (_ROOT, os.geteuid())
    return [name for name, address in zip(names, addresses, strict=True) if _listener_uid(address) in ours]


def _listener_uid(address: bytes) -> int | None:
    """Return the user who listens there, by the kernel's word; None if nobody does any more. One whose queue is full
    cannot be told, and counts as this user: ask() finds out."""
    with keep_socket(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)) as connection:
        connection.setblocking(False)
        try:
            connection.connect(address)
        except BlockingIOError:
            return os.geteuid()
        except OSError:
            return None
        return _peer_uid(connection)


def _listed(table: bytes, prefix: bytes) -> list[str]:
    """Num RefCount Protocol Flags Type St Inode Path; an abstract address has @ for its zero byte."""
    rows = [row.split(None, 7) for row in table.split(b"\n")[1:]]
    paths = {row[7] for row in rows if len(row) == 8 and _listens(row[3])}
    return sorted(os.fsdecode(path[1 + len(prefix) :]) for path in paths if path.startswith(b"@" + prefix))


def _listens(flags: bytes) -> bool:
    """Return whether these flags are those of a listener. An address may have a newline in it, so a row may be anything
    that another user chose."""
    try:
        return bool(int(flags, 16) & _LISTENS)
    except ValueError:
        return False


def is_running(name: str) -> bool:
    """Return whether a job of that name runs here, as this user. Asks the kernel, not the job."""
    return os.fsdecode(_address(name)[1 + len(_prefix()) :]) in running_jobs()


def _connect(connection: socket.socket, name: str, deadline: float) -> None:
    connection.settimeout(0)
    while True:
        try:
            connection.connect(_address(name))
            break
        except BlockingIOError:  # the queue is full
            if time.monotonic() >= deadline:
                raise TimeoutError from None
            time.sleep(_RETRY_S)
        except (ConnectionRefusedError, FileNotFoundError):
            known = ", ".join(map(repr, running_jobs())) or "none"
            raise ChannelNotFoundError(
                f"no job {name!r} runs here (running: {known}); a job can be found while it trains if it has a name: "
                "Trainer(name=...), or `untorn train --name`. `untorn top` lists them"
            ) from None
    connection.settimeout(max(deadline - time.monotonic(), 1e-3))


def _received(connection: socket.socket, deadline: float) -> bytes:
    """Receive up to and with the newline; without one, the other side is gone, or goes on and on. Raises
    TimeoutError."""
    received = bytearray()
    while b"\n" not in received[-65536:] and len(received) <= ANSWER_NBYTES:
        left_s = deadline - time.monotonic()
        if left_s <= 0:  # one that never ends its line is as late as one that says nothing
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


# -- both sides


def _prefix() -> bytes:
    return f"untorn/{os.geteuid()}/".encode()


def _address(name: str) -> bytes:
    """Abstract: it begins with a zero byte. A name that does not fit is cut and told apart by a digest; ~ is in no
    job's name."""
    address = b"\0" + _prefix() + os.fsencode(name)
    if len(address) <= _ADDRESS_NBYTES:
        return address
    digest = hashlib.sha256(os.fsencode(name)).hexdigest()[:32]
    return b"\0" + _prefix() + os.fsencode(name)[:_KEPT_NBYTES] + b"~" + digest.encode()


def _peer_uid(connection: socket.socket) -> int:
    form = struct.Struct("iII")
    _, uid, _ = form.unpack(connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, form.size))
    assert isinstance(uid, int)
    return uid


def _not_yours(name: str, owner: int, other: int) -> str:
    return f"job {name!r} is of user {owner}, and you are user {other}: ask as that user"
