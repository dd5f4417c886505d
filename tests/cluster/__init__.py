"""Clusters to test on: an existing one, kind's, or a built-in one that needs nothing but a Linux machine."""

from cluster.api import Cluster, remove
from cluster.errors import ClusterError
from cluster.progress import Progress

__all__ = ["Cluster", "ClusterError", "Progress", "remove"]
