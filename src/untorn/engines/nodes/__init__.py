"""Nodes: processes on one or several machines that each have all weights, and workers of their own."""

from untorn.engines.nodes.cluster import Cluster, Ended, Figures, Invitation

__all__ = ["Cluster", "Ended", "Figures", "Invitation"]
