"""What every node has and what is taken: the books that placement reads.

Quantities are whole numbers: cpu in millicores, memory and storage in bytes, everything else in units.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

Resources = Mapping[str, int]


@dataclass(frozen=True, slots=True)
class Taint:
    """A node's taint."""

    key: str
    effect: str  # NoSchedule | PreferNoSchedule | NoExecute
    value: str = ""


@dataclass(frozen=True, slots=True)
class NodeView:
    """What placement knows of one node."""

    name: str
    allocatable: Resources
    labels: Mapping[str, str] = field(default_factory=dict)
    taints: tuple[Taint, ...] = ()
    cordoned: bool = False
    ready: bool = True


@dataclass(frozen=True, slots=True)
class Books:
    """All nodes, and by node what its unfinished pods request (pods that are only planned included; the resource
    `pods` counts them)."""

    nodes: Mapping[str, NodeView]
    used: Mapping[str, Resources] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Demand:
    """What one pod of a gang needs, read from the pod that the API server's dry run gave back."""

    requests: Resources  # effective requests of the pod: containers, init containers, overhead; with `pods`: 1
    node_selector: Mapping[str, str] = field(default_factory=dict)
    affinity: Mapping[str, object] = field(default_factory=dict)  # raw spec.affinity
    tolerations: tuple[Mapping[str, object], ...] = ()
    topology_key: str = "kubernetes.io/hostname"


@dataclass(frozen=True, slots=True)
class Obstacle:
    """Why a gang has no place."""

    reason: str  # CamelCase: InsufficientResources, NoSuchDevice, NoMatchingNode, ...
    message: str  # one sentence: what is needed, how many nodes have it, what stands in the way on the others by cause
