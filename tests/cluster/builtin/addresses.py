"""Names and addresses of a built-in cluster; pure.

Every cluster lives in network namespaces of its own, to which the host has no route. So all clusters use the same
addresses and never collide; only the relay's port and the cgroup belong to the host and are told apart.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from cluster.errors import ClusterError

CONTROL_PLANE = "10.90.0.1"
CONTROL_PLANE_PORT = 6443
NODES = "10.90.0.0/16"
PODS = "10.91.0.0/16"
SERVICES = "10.96.0.0/16"
KUBERNETES_SERVICE = "10.96.0.1"
CLUSTER_DOMAIN = "cluster.local"

MAX_NODES = 250
_NAME = re.compile(r"[a-z0-9]([-a-z0-9]{0,28}[a-z0-9])?")


def checked_name(name: str) -> str:
    """The cluster's name, if it can be part of file, cgroup and Kubernetes names."""
    if not _NAME.fullmatch(name):
        raise ClusterError(
            f"cluster name {name!r}: expected 1 to 30 lower-case letters, digits and '-', starting and ending with "
            f"a letter or digit"
        )
    return name


def cgroup(name: str) -> str:
    """The cluster's cgroup, relative to the root of each hierarchy."""
    return f"/trainyard-{name}"


@dataclass(frozen=True)
class NodePlan:
    """Everything about a node that follows from its number (1 to MAX_NODES)."""

    number: int

    def __post_init__(self) -> None:
        if not 1 <= self.number <= MAX_NODES:
            raise ClusterError(f"node number {self.number}: a built-in cluster has nodes 1 to {MAX_NODES}")

    @property
    def name(self) -> str:
        return f"node-{self.number}"

    @property
    def ip(self) -> str:
        return f"10.90.1.{self.number}"

    @property
    def pods(self) -> str:
        """The node's pod addresses, a /24."""
        return f"10.91.{self.number}.0/24"

    @property
    def port(self) -> str:
        """Its end of the cable at the fabric's bridge."""
        return f"port{self.number}"


def node_number(name: str) -> int:
    """The inverse of ``NodePlan.name``."""
    match = re.fullmatch(r"node-([1-9][0-9]*)", name)
    if not match:
        raise ClusterError(f"node name {name!r}: built-in clusters name their nodes node-1, node-2, ...")
    return int(match[1])


def next_number(taken: list[int]) -> int:
    """The lowest free node number: a removed node's number is used again, its disk is not."""
    number = 1
    while number in taken:
        number += 1
    return number
