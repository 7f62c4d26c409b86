"""The loopback cluster: nodes as processes of this machine, which talk over its loopback interface.

It needs no other library. Tests run on it, and a program can be tried on several nodes before it moves to a cluster.
"""

from __future__ import annotations

import contextlib
import logging
import os

from untorn.engines.child import ChildProcess
from untorn.engines.launching import launch
from untorn.engines.nodes.cluster import Cluster, Ended, Invitation
from untorn.engines.nodes.handshake import HandshakeError
from untorn.engines.nodes.node import run_node
from untorn.engines.worker_logs import LogReceiver

__all__ = ["LoopbackCluster"]

_log = logging.getLogger(__name__)

_DEFAULT_NODES = 2
_MAX_NODES = 64
_JOIN_S = 5.0


class LoopbackCluster(Cluster):
    """Nodes as processes of this machine.

    Example:
        >>> cluster = LoopbackCluster()
        >>> cluster.open(nodes=3, workers=2)
        >>> cluster.wanted()
        3
        >>> cluster.close()
    """

    name = "loopback"
    host = "127.0.0.1"

    def __init__(self) -> None:
        self._nodes = 0
        self._processes: dict[int, ChildProcess] = {}
        self._logs: LogReceiver | None = None

    def open(self, nodes: int | None, workers: int | None) -> None:
        """See Cluster. The default is two nodes, which share the processors of this machine."""
        self.resize(_DEFAULT_NODES if nodes is None else nodes)
        share = len(os.sched_getaffinity(0)) // self._nodes
        self.workers = max(1, share) if workers is None else workers

    def neighbours(self) -> int:
        """See Cluster."""
        return self._nodes

    def wanted(self) -> int:
        """See Cluster."""
        return self._nodes

    def resize(self, nodes: int) -> None:
        """See Cluster."""
        if not 1 <= nodes <= _MAX_NODES:
            raise ValueError(f"nodes: expected 1 to {_MAX_NODES} on one machine, found {nodes}")
        self._nodes = nodes

    def start(self, invitation: Invitation) -> bool:
        """See Cluster."""
        if self._logs is None:
            self._logs = LogReceiver()
        name = f"untorn-node-{invitation.number}"
        call = _run, (invitation,)
        self._processes[invitation.number] = launch(name, call, environment={}, logs=self._logs.fd)
        return True

    def ended(self) -> list[Ended]:
        """See Cluster."""
        if self._logs is not None:
            self._logs.handle()
        found = []
        for number, process in list(self._processes.items()):
            if process.ended:
                del self._processes[number]
                found.append(Ended(number, _how(process.exitcode)))
                process.close()
        return found

    def stop(self, number: int, *, lost: bool = False) -> None:
        """See Cluster."""
        process = self._processes.get(number)
        if process is not None:
            process.kill()

    def pid(self, number: int) -> int | None:
        """Return the process id of a node; None once it has ended."""
        process = self._processes.get(number)
        return None if process is None else process.pid

    def close(self) -> None:
        """See Cluster. The nodes end by themselves when the driver has closed its connections to them."""
        processes, self._processes = self._processes, {}
        for process in processes.values():
            process.join(_JOIN_S)
            process.end()
        if self._logs is not None:
            logs, self._logs = self._logs, None
            with contextlib.suppress(OSError):
                logs.handle()
            logs.close()


def _run(invitation: Invitation, problem: Exception | None) -> None:
    """Be a node. A training that ends while this process starts is no error of it."""
    try:
        run_node(invitation, problem)
    except (ConnectionRefusedError, ConnectionResetError) as error:
        _log.debug("node %d is not needed any more: %s", invitation.number, error)
    except HandshakeError as error:
        if error.reason not in ("closed", "failed"):
            raise
        _log.debug("node %d is not needed any more: %s", invitation.number, error)


def _how(exitcode: int | None) -> str:
    if exitcode is None:
        return "ended for an unknown reason"
    return f"was ended by signal {-exitcode}" if exitcode < 0 else f"ended with exit code {exitcode}"
