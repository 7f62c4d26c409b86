"""Nodes: processes on one or several machines that each have all weights, and workers of their own."""

from untorn.engines.nodes.cluster import Cluster, Ended, Invitation

__all__ = ["Cluster", "Ended", "Invitation"]
