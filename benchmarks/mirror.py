"""Measure how long a new version takes from one node of a Ray cluster to another: untorn.ray.mirror, and Ray's objects.

::

    node 0: update() ── mirror's stream ──> node 1: a subscriber has the version
            ray.put() ── a call of an actor with the object ──> node 1: the actor has the array

Two virtual nodes of this machine (tests/virtual_nodes), whose clock is the same, on two networks: without a limit, and
with a delay of 1 ms each way and 1 Gbit/s. It takes about a minute, and needs root and Ray.
"""

from __future__ import annotations

import importlib.util
import json
import sys

from benchmarks.measure import Row, row

NAME = "mirror"
QUESTION = "How long does a new version take to the subscribers on another node, compared with an object of Ray?"

NETWORKS = {"no limit": (0.0, None), "1 ms, 1 Gbit/s": (1.0, 1000.0)}
TIMEOUT_S = 300.0
AIM = 1.0


def missing() -> str:
    """Return why this benchmark cannot run here, or an empty text."""
    from benchmarks.on_nodes import virtual_nodes

    if importlib.util.find_spec("ray") is None:
        return "ray is not installed (pip install 'untorn[ray]')"
    return virtual_nodes.missing()


def run() -> list[Row]:
    if missing():
        return [Row("a new version on another node", None, note=missing())]
    from benchmarks.on_nodes import ROOT
    from virtual_nodes import VirtualNodes
    from virtual_nodes.ray_nodes import RayNodes

    rows = []
    command = [sys.executable, "-m", "benchmarks.on_nodes.mirror_driver"]
    with VirtualNodes(2) as nodes:
        cluster = RayNodes(nodes)
        cluster.start_head()
        cluster.join(1)
        for network, (delay_ms, rate_mbit) in NETWORKS.items():
            nodes.set_delay(delay_ms)
            nodes.set_rate(rate_mbit)
            output = nodes[0].run(command, timeout_s=TIMEOUT_S, env=cluster.driver_environment(), cwd=ROOT)
            for size, times in json.loads(output.splitlines()[-1]).items():
                base = f"an object of Ray, {size}, {network}"
                rows.append(
                    row(
                        f"untorn.ray.mirror, {size}, {network}",
                        times["mirror"],
                        unit="ms",
                        to=times["object"],
                        ratio_to=base,
                        ratio_at_most=AIM,
                    )
                )
                rows.append(row(base, times["object"], unit="ms"))
    return rows
