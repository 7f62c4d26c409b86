"""Find the cluster that a trainer is asked to run on, and make its pool of nodes.

What only nodes need is imported here when it is needed: every worker imports this module, with the trainer.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from untorn.engines.nodes import Cluster
from untorn.train.arguments import checked_count
from untorn.train.models.base import Model
from untorn.train.optim.base import Optimizer
from untorn.train.run.pool import Pool
from untorn.train.settings import Settings

__all__ = ["checked_cluster", "pool_of_nodes"]


def checked_cluster(
    engine: Any, *, nodes: Any, workers: Any, mode: str, ray_options: Mapping[str, Any] | None
) -> Cluster | None:
    """Return the cluster for this engine, with room for its nodes; None for an engine of one machine. Raises TypeError
    or ValueError, naming the argument, and what Cluster.open() does."""
    if engine in ("processes", "serial") or not (isinstance(engine, Cluster) or engine in ("ray", "loopback")):
        if nodes is not None:
            raise ValueError(
                f"nodes: engine={engine!r} runs on this machine alone; leave nodes out, or give engine='ray'"
            )
        if ray_options is not None:
            raise ValueError(f"ray_options: they are for engine='ray', found engine={engine!r}")
        return None
    if mode == "async":
        raise ValueError("mode: async training runs on one machine; use mode='sync' on several nodes")
    if workers == "auto":
        raise ValueError("workers: 'auto' works on one machine; give the number of workers of each node")
    if nodes is not None:
        nodes = checked_count("nodes", nodes, 1, 1000)
    if workers is not None:
        workers = checked_count("workers", workers, 1, 1000)
    cluster = _cluster_of(engine, ray_options)
    cluster.open(nodes, workers)
    return cluster


def _cluster_of(engine: Any, ray_options: Mapping[str, Any] | None) -> Cluster:
    if engine == "ray":
        from untorn.ray.cluster import RayCluster

        return RayCluster(ray_options)
    if ray_options is not None:
        raise ValueError(f"ray_options: they are for engine='ray', found engine={engine!r}")
    if isinstance(engine, Cluster):
        return engine
    from untorn.engines.nodes.loopback import LoopbackCluster

    return LoopbackCluster()


def pool_of_nodes(settings: Settings, model: Model, optimizer: Optimizer, cluster: Cluster) -> Pool:
    """Return the pool of the nodes of this cluster, which it owns."""
    from untorn.train.nodes.pool import NodePool

    return NodePool(settings, model, optimizer, cluster)
