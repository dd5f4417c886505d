"""Clusters to test on: an existing one, kind's, or a built-in one that needs nothing but a Linux machine."""

from cluster.api import Cluster
from cluster.errors import ClusterError

__all__ = ["Cluster", "ClusterError"]
