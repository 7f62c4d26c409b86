"""Channels and training on a Ray cluster.

::

    with untorn.ray.mirror("policy") as mirrored:      every node of the cluster has the channel "policy"
        ...
    Trainer(..., engine="ray")                         a training on all nodes: a RayCluster starts its processes

Ray places processes on nodes, starts them and watches them. The bytes go over connections of untorn's own, which are
authenticated by a secret that Ray hands out (docs/security.md).
"""

try:
    import ray as _ray  # noqa: F401
except ImportError as _error:
    raise ImportError("untorn.ray needs Ray, which is not installed here: pip install 'untorn[ray]'") from _error

from untorn.ray.cluster import RayCluster
from untorn.ray.mirroring import Mirror, mirror

__all__ = ["Mirror", "RayCluster", "mirror"]
