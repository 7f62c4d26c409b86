"""Workers that fork servers start, and the fork servers of this process.

::

    launch_worker ─┬─> launch             spawn: a new interpreter
                   └─> ForkServer.ask ─ request ─> fork server (fork_serving.py) ─ forks ─> worker

A fork server has imported what a worker needs, so its forks begin within milliseconds and share its memory. It is
started with the first worker, and serves all workers that would begin in the same state (inherited.py): those of later
trainers too. A worker that none can serve is spawned.
"""

from __future__ import annotations

import atexit
import os
import threading
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any, Literal

from untorn.engines.child import WorkerHandle
from untorn.engines.forked_worker import ForkedWorker, ForkServer
from untorn.engines.inherited import inherited, variables_of_worker
from untorn.engines.launching import Call, launch
from untorn.engines.lifeline import lifeline_descriptors

__all__ = ["StartMethod", "end_fork_servers", "fork_server_resources", "hold_fork_servers", "launch_worker",
           "release_fork_servers"]  # fmt: skip

StartMethod = Literal["forkserver", "spawn"]

#: servers of different programs or models; the one that was asked least recently ends
_MAX_SERVERS = 3
#: keys of servers that had to become workers themselves
_MAX_UNFIT = 64
#: how long a server waits for another trainer when no trainer has workers
IDLE_S = 60.0


def launch_worker(
    name: str,
    call: Call,
    *,
    environment: Mapping[str, str],
    logs: int,
    modules: Sequence[str],
    start_method: StartMethod = "forkserver",
) -> WorkerHandle:
    """Start a worker that calls a function of untorn, as launch() does, in a fork of a process that has imported the
    main program and ``modules``, if it can be forked; otherwise in a new interpreter. Does not block while these are
    imported.

    Raises RuntimeError if no worker can be started here, OSError if the system starts no process.
    """

    def spawned() -> WorkerHandle:
        return launch(name, call, environment=environment, logs=logs)

    def forked(attempts: int) -> WorkerHandle:
        server = _servers.get(environment, modules, logs) if attempts else None
        if server is None:
            return spawned()
        request = server.ask(name, call, logs)
        if request is None:
            _servers.discard(server)
            return spawned()
        return ForkedWorker(
            server,
            request,
            again=lambda: forked(0 if server.is_unfit else attempts - 1),
            discard=_servers.discard,
        )

    return spawned() if start_method == "spawn" else forked(2)


class _Servers:
    """The fork servers of this process, by what their workers begin with."""

    def __init__(self) -> None:
        self._lock = threading.RLock()  # a signal handler may come in between
        self._by_key: dict[Any, ForkServer] = {}
        self._ending: list[ForkServer] = []
        self._unfit: dict[Any, None] = {}
        self._holders = 0

    def get(self, environment: Mapping[str, str], modules: Sequence[str], logs: int) -> ForkServer | None:
        """Return the server for such workers, which is started if there is none; None if they cannot be forked."""
        variables = variables_of_worker(environment)
        key = inherited(variables), tuple(modules)
        with self._lock:
            self._drop_ended()
            if key in self._unfit or not _can_fork():
                return None
            server = self._by_key.pop(key, None)
            if server is None:
                server = ForkServer.start(modules, variables, logs=logs, idle_s=IDLE_S)
                _at_exit()
            self._by_key[key] = server  # the last one of the dict
            while len(self._by_key) > _MAX_SERVERS:
                self._let_end(self._by_key.pop(next(iter(self._by_key))))
            return server

    def _drop_ended(self) -> None:
        for key, server in list(self._by_key.items()):
            if server.serves:
                continue
            del self._by_key[key]
            if server.is_unfit:
                self._unfit[key] = None
                if len(self._unfit) > _MAX_UNFIT:
                    del self._unfit[next(iter(self._unfit))]
            if server.verdict is not None and server.verdict[0] == "unfit":
                server.control.close()  # the process is a worker of a trainer
            elif not server.discarded:
                self._let_end(server)
        for server in list(self._ending):
            if server.process.ended:
                self._ending.remove(server)
                server.process.close()

    def _let_end(self, server: ForkServer) -> None:
        """Have a server end when it has done what it was asked for."""
        server.control.close()
        self._ending.append(server)

    def discard(self, server: ForkServer) -> None:
        with self._lock:
            for key in [key for key, each in self._by_key.items() if each is server]:
                del self._by_key[key]
            if not server.discarded:
                server.discard()

    def hold(self, more: int) -> None:
        with self._lock:
            self._holders += more
            if (self._holders, more) in ((1, 1), (0, -1)):
                for server in self._by_key.values():
                    server.tell(b"busy" if more > 0 else b"idle")

    def end(self) -> None:
        with self._lock:
            self._drop_ended()
            for server in [*self._by_key.values(), *self._ending]:
                if not server.discarded:
                    server.discard()
            self._by_key.clear()
            self._ending.clear()

    def resources(self) -> tuple[set[int], set[int]]:
        with self._lock:
            self._drop_ended()
            servers = [*self._by_key.values(), *self._ending]
            used = {fd for each in servers for fd in each.descriptors}
        return {each.process.pid for each in servers}, used | lifeline_descriptors()

    def forget(self) -> None:
        for server in [*self._by_key.values(), *self._ending]:
            server.forget()
        self.__init__()  # type: ignore[misc]


_servers = _Servers()


def _can_fork() -> bool:
    """Return whether the kernel has descriptors of processes, by which a server learns of its program's end."""
    try:
        os.close(os.pidfd_open(os.getpid()))
    except (OSError, NotImplementedError):
        return False
    return True


@cache
def _at_exit() -> None:
    atexit.register(end_fork_servers)


def end_fork_servers() -> None:
    """End the fork servers of this process now, instead of when they are idle. Workers are not affected."""
    _servers.end()


def hold_fork_servers() -> None:
    """Keep the fork servers until release_fork_servers() was called as often as this."""
    _servers.hold(1)


def release_fork_servers() -> None:
    """Let the fork servers end when they are idle. See hold_fork_servers()."""
    _servers.hold(-1)


def fork_server_resources() -> tuple[set[int], set[int]]:
    """Return the process ids of the fork servers, and the descriptors that this process has open for them and for its
    lifeline."""
    return _servers.resources()


os.register_at_fork(after_in_child=_servers.forget)
