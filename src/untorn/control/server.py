"""The server's side: Control answers requests between the steps of training."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import select
import socket
import time
import weakref
from dataclasses import dataclass, field

from untorn.control.addresses import address_of, is_ours, listener_uid, not_ours, peer_uid
from untorn.control.protocol import REQUEST_NBYTES, Handlers, answer_to, error_line
from untorn.descriptors import keep_socket

__all__ = ["Control"]

_log = logging.getLogger(__name__)

#: how long a client may take to send a request, and then to read the answer
SILENCE_S = 1.0
#: how many clients are served at a time; more wait in the kernel's queue
_MAX_CLIENTS = 16
_BACKLOG = 64


@dataclass
class _Client:
    """A connection: its request is collected, then its answer is sent."""

    socket: socket.socket
    deadline: float
    request: bytearray = field(default_factory=bytearray)
    answer: memoryview | None = None


class Control:
    """Answers requests to the job of this name.

    If it cannot listen, because another job of this name does or sockets are forbidden, it logs a warning and polling
    does nothing, since training does not depend on it.

    Args:
        name: the job's name, as in ``Trainer(name=)``.

    Example:
        >>> import os, threading
        >>> from untorn.control import ask
        >>> class Job:
        ...     workers, nodes = 2, 0
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
        """Answer the requests that have arrived. Never blocks; costs about a microsecond if there is none."""
        if self._listener is None:
            return
        ready = self._poller.poll(0)
        if (ready or self._clients) and not self._polling:  # a handler may call this again
            self._polling = True
            try:
                self._serve(ready, handlers)
            finally:
                self._polling = False

    def close(self) -> None:
        """Stop listening and drop all clients. May be called twice."""
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
            ready = self._poller.poll(0)  # most clients have sent their request by now, and some have hung up
        for fd, events in ready:
            client = self._clients.get(fd)
            if client is not None:
                self._attend(client, events, handlers)
        # by the time from before: a client is not to blame for a slow handler
        for client in [each for each in self._clients.values() if each.deadline <= now]:
            self._drop(client)

    def _accept(self, listener: socket.socket) -> None:
        """Accept clients, at most a fixed number at a time, since others may connect as fast as they are refused."""
        for _ in range(_MAX_CLIENTS - len(self._clients)):
            try:
                accepted = keep_socket(listener.accept()[0])
            except OSError:  # no client is waiting, or no descriptor is free and they wait in the queue
                return
            accepted.setblocking(False)
            uid = peer_uid(accepted)
            if not is_ours(uid):
                self._refuse(accepted, uid)
                continue
            client = _Client(accepted, time.monotonic() + SILENCE_S)
            self._clients[accepted.fileno()] = client
            self._poller.register(accepted, select.POLLIN)

    def _refuse(self, accepted: socket.socket, uid: int) -> None:
        """Send another user an error if that does not block, and close the connection."""
        with accepted, contextlib.suppress(OSError):
            accepted.send(error_line(not_ours(self.name, os.geteuid(), uid)))

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
            answer = answer_to(bytes(line), self.name, handlers)
            if self._listener is not None:  # otherwise a handler has closed this
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
        except OSError:  # the client is gone
            client.answer = client.answer[:0]
        if not client.answer:
            self._drop(client)

    def _drop(self, client: _Client) -> None:
        del self._clients[client.socket.fileno()]
        self._poller.unregister(client.socket)
        client.socket.close()


_open_here: weakref.WeakSet[Control] = weakref.WeakSet()


def _after_fork() -> None:
    """Close in a forked child, so that it neither answers for its parent nor occupies its name."""
    for control in list(_open_here):
        control.close()


os.register_at_fork(after_in_child=_after_fork)


def _listen(name: str) -> socket.socket | None:
    try:
        listener = keep_socket(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
    except OSError as error:
        _log.warning("job %r cannot be watched or resized by other processes: %s", name, error)
        return None
    try:
        listener.setblocking(False)
        listener.bind(address_of(name))
        listener.listen(_BACKLOG)
    except OSError as error:
        listener.close()
        reason = _why_taken(name) if error.errno == errno.EADDRINUSE else error
        _log.warning("job %r cannot be watched or resized by other processes: %s", name, reason)
        return None
    return listener


def _why_taken(name: str) -> str:
    """Return why the address of a job is in use."""
    uid = listener_uid(address_of(name))
    if uid is not None and not is_ours(uid):
        return f"user {uid} uses its address, as any user may; choose another name"
    return "another job of this name is running"
