"""A cluster of untorn's own on virtual nodes, without Ray: an agent on each node starts node processes.

A driver asks an agent over a connection, one for each node process: it sends the pickled invitation, and closes the
connection to end the process. The agent closes it when the process has ended. There are no secrets between them, since
the nodes are alone on their network.
"""

from __future__ import annotations

import multiprocessing
import pickle
import select
import socket
import threading
import time
from collections.abc import Sequence
from multiprocessing.connection import Connection

from benchmarks.on_nodes.launching import call_on
from untorn.engines.nodes import Cluster, Ended, Invitation
from untorn.engines.nodes.node import run_node
from untorn.engines.processes import worker_variables
from virtual_nodes import VirtualNodes

PORT = 7000
#: short, since nobody answers for a node that is cut off; it is asked again later
_CONNECT_S, _AGAIN_S = 0.25, 2.0


def start_agent(nodes: VirtualNodes, node: int) -> None:
    """Start the agent of a node; return when it listens. It ends with the node."""
    _, connection = call_on(nodes, node, agent, env=worker_variables(1))
    with connection:
        connection.recv()


def agent(connection: Connection) -> None:
    """Start node processes on this node, until the benchmark ends."""
    with socket.create_server(("", PORT)) as server:
        connection.send(True)
        connection.close()
        while True:
            driver, _ = server.accept()
            threading.Thread(target=serve, args=(driver,), daemon=True).start()


def serve(driver: socket.socket) -> None:
    """Run one node process."""
    with driver:
        with driver.makefile("rb") as lines:
            invitation = pickle.load(lines)
        process = multiprocessing.get_context("spawn").Process(target=run_node, args=(invitation,))
        process.start()
        select.select([driver, process.sentinel], [], [])
        process.kill()
        process.join()


class AgentCluster(Cluster):
    """Virtual nodes with agents.

    Args:
        host: the address of the driver.
        addresses: of the nodes; at most one node process is started on each.
    """

    name = "virtual nodes"

    def __init__(self, host: str, addresses: Sequence[str]) -> None:
        self.host = host
        self._addresses = addresses
        self._silent_until = dict.fromkeys(addresses, 0.0)
        self._wanted = len(addresses)
        self._processes: dict[int, tuple[str, socket.socket]] = {}

    def open(self, nodes: int | None, workers: int | None) -> None:
        self._wanted = len(self._addresses) if nodes is None else nodes
        self.workers = workers or 1

    def start(self, invitation: Invitation) -> bool:
        busy = {address for address, _ in self._processes.values()}
        for address in self._addresses:
            if address not in busy and self._silent_until[address] < time.monotonic():
                try:
                    connection = socket.create_connection((address, PORT), timeout=_CONNECT_S)
                except OSError:
                    self._silent_until[address] = time.monotonic() + _AGAIN_S
                    continue
                connection.sendall(pickle.dumps(invitation))
                self._processes[invitation.number] = address, connection
                return True
        return False

    def wanted(self) -> int:
        return self._wanted

    def resize(self, nodes: int) -> None:
        self._wanted = nodes

    def ended(self) -> list[Ended]:
        found = []
        for number, (address, connection) in list(self._processes.items()):
            if select.select([connection], [], [], 0)[0]:
                connection.close()
                del self._processes[number]
                found.append(Ended(number, f"ended on {address}"))
        return found

    def stop(self, number: int) -> None:
        if number in self._processes:
            self._processes.pop(number)[1].close()

    def close(self) -> None:
        for number in list(self._processes):
            self.stop(number)
