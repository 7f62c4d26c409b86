"""Start the processes of a contestant on virtual nodes."""

from __future__ import annotations

import contextlib
import multiprocessing
import subprocess
import sys
from collections.abc import Callable, Mapping
from multiprocessing.connection import Connection
from typing import Any

from benchmarks.on_nodes import ROOT
from benchmarks.peers.torch_crew import Launch, Member, Process, Seat
from untorn.engines.processes import worker_variables
from virtual_nodes import VirtualNodes


class NodeProcess:
    """A process on a node, behind the interface of multiprocessing's."""

    def __init__(self, process: subprocess.Popen[Any]) -> None:
        self._process = process

    def join(self, timeout: float | None = None) -> None:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout)

    def kill(self) -> None:
        self._process.kill()

    def close(self) -> None:
        """Do nothing: a Popen has nothing left to close."""


def launch_on(nodes: VirtualNodes, env: Mapping[str, str] | None = None) -> Launch:
    """Return a Launch that starts the process with rank k on node k, with more environment variables."""

    def launch(member: Member, seat: Seat) -> tuple[Process, Connection]:
        return call_on(
            nodes, seat.rank, run_member, member, seat, env={**worker_variables(seat.threads), **(env or {})}
        )

    return launch


def run_member(connection: Connection, member: Member, seat: Seat) -> None:
    member(seat, connection)


def call_on(
    nodes: VirtualNodes, node: int, function: Callable[..., None], *arguments: Any, env: Mapping[str, str] | None = None
) -> tuple[Process, Connection]:
    """Call a function in a new process on a node: ``function(connection, *arguments)``. Return the process and the
    other side of the connection."""
    ours, theirs = multiprocessing.Pipe()
    with theirs:
        process = nodes[node].popen(
            [sys.executable, "-m", "benchmarks.on_nodes.launching", str(theirs.fileno())],
            pass_fds=[theirs.fileno()],
            cwd=ROOT,
            env=dict(env or {}),
        )
    ours.send((function, arguments))
    return NodeProcess(process), ours


def main() -> None:
    connection = Connection(int(sys.argv[1]))
    function, arguments = connection.recv()
    with contextlib.suppress(EOFError, ConnectionError):  # the benchmark is over, or interrupted
        function(connection, *arguments)


if __name__ == "__main__":
    main()
