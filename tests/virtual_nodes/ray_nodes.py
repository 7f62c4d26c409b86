"""A Ray cluster on virtual nodes, one Ray node on each.

::

    with VirtualNodes(3) as nodes:
        cluster = RayNodes(nodes)
        cluster.start_head(cpus=1)  # on node 0
        cluster.join(1, cpus=2)
        nodes[0].run([sys.executable, "driver.py"], env=cluster.driver_environment())

It ends with the nodes. A Ray node has the resource ``node0``, ``node1``, ... by its number, which places actors.
Processes of Ray import from this checkout and its tests.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping

from virtual_nodes import HERE, VirtualNodes

__all__ = ["RayNodes"]

_START_S = 120.0
_PORT = 6379
_COMMAND = [sys.executable, "-W", "ignore", "-c", "from ray.scripts.scripts import main; main()"]


class RayNodes:
    """A Ray cluster on virtual nodes.

    Args:
        nodes: where it runs; it uses those that are told to.
        env: environment variables for all processes of Ray.
        store_bytes: the object store of each Ray node.
    """

    def __init__(
        self, nodes: VirtualNodes, *, env: Mapping[str, str] | None = None, store_bytes: int = 400_000_000
    ) -> None:
        self._nodes = nodes
        self._store_bytes = store_bytes
        self.address = f"{nodes[0].address}:{_PORT}"
        folders = [str(HERE.parents[1]), str(HERE.parents[1] / "src"), str(HERE.parent)]
        given = [path for path in os.environ.get("PYTHONPATH", "").split(":") if path]
        self._environment = {
            "PYTHONPATH": ":".join([*folders, *given]),
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_AUTH_MODE": "disabled",
            "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
            "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
            **(env or {}),
        }

    def driver_environment(self) -> dict[str, str]:
        """Return the variables that a driver on a node needs; ``ray.init()`` then finds the cluster."""
        return {**self._environment, "RAY_ADDRESS": self.address}

    def start_head(self, *, cpus: int = 1) -> None:
        """Start the cluster on node 0. Blocks for some seconds. Raises RuntimeError with Ray's message."""
        self._start(0, cpus, "--head", f"--port={_PORT}", "--include-dashboard=false")

    def join(self, node: int, *, cpus: int = 1) -> None:
        """Let a node join the cluster. Blocks for some seconds. Raises RuntimeError with Ray's message."""
        self._start(node, cpus, f"--address={self.address}")

    def _start(self, node: int, cpus: int, *options: str) -> None:
        command = [
            *_COMMAND,
            "start",
            *options,
            f"--node-ip-address={self._nodes[node].address}",
            f"--num-cpus={cpus}",
            f"--object-store-memory={self._store_bytes}",
            f"--resources={json.dumps({f'node{node}': 100})}",
        ]
        try:
            self._nodes[node].run(command, timeout_s=_START_S, env=self._environment, stderr=subprocess.STDOUT)
        except subprocess.CalledProcessError as error:
            raise RuntimeError(f"ray start on node{node}: {error.output}") from None
