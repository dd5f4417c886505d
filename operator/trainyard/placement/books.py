"""What every node has and what is taken: the books that placement reads.

Quantities are whole numbers: cpu in millicores, memory and storage in bytes, everything else in units.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

Resources = Mapping[str, int]


@dataclass(frozen=True, slots=True)
class Taint:
    """A node's taint."""

    key: str
    effect: str  # NoSchedule | PreferNoSchedule | NoExecute
    value: str = ""


@dataclass(frozen=True, slots=True)
class DeviceView:
    """One device of a node."""

    id: str
    ring: int = 0
    module: int = 0
    free: bool = True  # nobody holds it
    usable: bool = True  # may be given to a new pod: healthy, not quarantined, not on probation
    sub_healthy: bool = False  # taken only when there is no other
    network: bool = True  # fit for jobs of several nodes


@dataclass(frozen=True, slots=True)
class DevicesView:
    """A node's accelerators, as its NodeDevices says."""

    resource: str
    model: str = "Other"  # 910A | 910B-8 | 910B-16 | A3 | Other
    super_pod: str = ""
    rack: str = ""
    known: bool = True  # health was read just now; otherwise no new work goes here
    trouble: str = ""  # why not, in a few words
    devices: tuple[DeviceView, ...] = ()  # by id, in the node's order


@dataclass(frozen=True, slots=True)
class NodeView:
    """What placement knows of one node."""

    name: str
    allocatable: Resources
    labels: Mapping[str, str] = field(default_factory=dict)
    taints: tuple[Taint, ...] = ()
    cordoned: bool = False
    ready: bool = True
    devices: DevicesView | None = None  # None: no agent told; counts of allocatable are all there is


@dataclass(frozen=True, slots=True)
class Books:
    """All nodes, and by node what its unfinished pods request (pods that are only planned included; the resource
    `pods` counts them)."""

    nodes: Mapping[str, NodeView]
    used: Mapping[str, Resources] = field(default_factory=dict)

    def take(self, nodes: Iterable[str], each: Resources) -> Books:
        """The books with one pod more on each of these nodes (a node may come several times)."""
        return self._changed(nodes, each, 1)

    def release(self, nodes: Iterable[str], each: Resources) -> Books:
        """The books with one pod less on each of these nodes: what `take` did, undone."""
        return self._changed(nodes, each, -1)

    def _changed(self, nodes: Iterable[str], each: Resources, sign: int) -> Books:
        used = dict(self.used)
        for node in nodes:
            before = used.get(node, {})
            after = dict(before)
            for name, amount in each.items():
                after[name] = before.get(name, 0) + sign * amount
                if not after[name]:
                    del after[name]
            if after:
                used[node] = after
            else:
                used.pop(node, None)
        return Books(self.nodes, used)


@dataclass(frozen=True, slots=True)
class Demand:
    """What one pod of a gang needs, read from the pod that the API server's dry run gave back."""

    requests: Resources  # effective requests of the pod: containers, init containers, overhead; with `pods`: 1
    limits: Resources = field(default_factory=dict)  # effective limits; only quotas ask for them
    node_selector: Mapping[str, str] = field(default_factory=dict)
    affinity: Mapping[str, object] = field(default_factory=dict)  # raw spec.affinity
    tolerations: tuple[Mapping[str, object], ...] = ()
    topology_key: str = "kubernetes.io/hostname"
    priority_class: str = ""  # of the pod; only scoped quotas ask for it


@dataclass(frozen=True, slots=True)
class Obstacle:
    """Why a gang has no place."""

    reason: str  # CamelCase: InsufficientResources, NoSuchDevice, NoMatchingNode, ...
    message: str  # a sentence: what is needed, how many nodes have it, what stands in the way on the others by cause
