"""What every node has and what is taken: the books that placement reads.

Quantities are whole numbers: cpu in millicores, memory and storage in bytes, everything else in units.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

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
    holder: str = ""  # namespace/name of the pod that had it when that was last told; told a few seconds late
    fault: str = ""  # what is wrong with it, for people: code and level


@dataclass(frozen=True, slots=True)
class DevicesView:
    """A node's accelerators, as its NodeDevices says."""

    resource: str
    model: str = "Other"  # 910A | 910B-8 | 910B-16 | A3 | Other
    super_pod: str = ""
    rack: str = ""
    known: bool = True  # health was read just now; otherwise no new work goes here
    trouble: str = ""  # why not, in a few words
    elsewhere: str = ""  # who else alone decides what goes here; no new work of ours does
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
    `pods` counts them). `pods` names those that request devices, by node and namespace/name: which devices they hold
    is told late, so that it is foretold of those that are not told yet (placement.seats)."""

    nodes: Mapping[str, NodeView]
    used: Mapping[str, Resources] = field(default_factory=dict)
    pods: Mapping[str, Mapping[str, Resources]] = field(default_factory=dict)

    def take(self, places: Mapping[str, str], each: Resources) -> Books:
        """The books with these pods more (namespace/name: node), each with the same requests."""
        return self._changed(places, each, 1)

    def release(self, places: Mapping[str, str], each: Resources) -> Books:
        """The books without these pods: what `take` did, undone."""
        return self._changed(places, each, -1)

    def _changed(self, places: Mapping[str, str], each: Resources, sign: int) -> Books:
        used, pods = dict(self.used), dict(self.pods)
        for key, node in places.items():
            _put(used, node, {name: used.get(node, {}).get(name, 0) + sign * amount for name, amount in each.items()})
            if any("/" in name for name in each):
                _put(pods, node, {key: each if sign > 0 else None})
        return Books(self.nodes, used, pods)


def _put(all_nodes: dict[str, Any], node: str, changes: Mapping[str, Any]) -> None:
    """Change a node's entries in a copy of them; what is nothing goes."""
    after = {name: value for name, value in {**all_nodes.get(node, {}), **changes}.items() if value}
    if after:
        all_nodes[node] = after
    else:
        all_nodes.pop(node, None)


@dataclass(frozen=True, slots=True)
class Nearness:
    """How near to each other the pods of a gang have to be (spec.topology)."""

    level: str  # ring | node | rack | superpod | key of a node label
    required: bool = False


@dataclass(frozen=True, slots=True)
class Demand:
    """What one pod of a gang needs, read from the pod that the API server's dry run gave back."""

    requests: Resources  # effective requests of the pod: containers, init containers, overhead; with `pods`: 1
    limits: Resources = field(default_factory=dict)  # effective limits; only quotas ask for them
    node_selector: Mapping[str, str] = field(default_factory=dict)
    affinity: Mapping[str, object] = field(default_factory=dict)  # raw spec.affinity
    tolerations: tuple[Mapping[str, object], ...] = ()
    apart: Literal["", "Preferred", "Required"] = ""  # on different nodes than others of the gang (placement.apart)
    priority_class: str = ""  # of the pod; only scoped quotas ask for it


@dataclass(frozen=True, slots=True)
class Gang:
    """Pods that want places, alike but for their index."""

    demand: Demand
    count: int  # those that want a place now
    size: int = 0  # all of the job's; 0: `count`
    nearness: Nearness | None = None
    without: Collection[str] = ()  # nodes that are out
    avoid: Mapping[str, str] = field(default_factory=dict)  # nodes used if there is no other: why
    spoiled: Mapping[str, Collection[str]] = field(default_factory=dict)  # the same for devices, by node
    mates: Collection[str] = ()  # namespace/name of the gang's pods that are there
    beside: Collection[str] = ()  # nodes that hold pods of the job, those on their way out included
    loose: bool = False  # better far from the rest of the gang: spares

    @property
    def packed(self) -> bool:
        """Whether few nodes are better than many: links between devices are the shorter, and what is left the larger.
        Pods without devices gain nothing by it, and lose more with a node."""
        devices = any("/" in name and amount for name, amount in self.demand.requests.items())
        return devices and not self.demand.apart and not self.loose

    @property
    def several(self) -> bool:
        """Whether the job may be on several nodes, and its devices have to reach each other between them."""
        return max(self.size, self.count) > 1


@dataclass(frozen=True, slots=True)
class Obstacle:
    """Why a gang has no place."""

    reason: str  # CamelCase: InsufficientResources, NoSuchDevice, NoMatchingNode, ...
    message: str  # a sentence: what is needed, how many nodes have it, what stands in the way on the others by cause
