"""NodeDevices: what one node's accelerators are, how they are, and who has them. The node's agent writes it, the
operator's orders (quarantine) excepted; placement and recovery read it."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from trainyard.api.base import Count, Lenient, Name, Text, Time

DeviceId = Annotated[str, Field(min_length=1, max_length=63)]
"""As kubelet knows it, such as Ascend910-3."""
Level = Literal[
    "NotHandleFault", "SubHealthFault", "RestartRequest", "RestartBusiness", "FreeRestartNPU", "RestartNPU",
    "PreSeparateNPU", "SeparateNPU",
]  # fmt: skip
"""How bad a fault is, in MindCluster's terms, from the mildest to the worst."""
LEVELS: tuple[Level, ...] = (
    "NotHandleFault", "SubHealthFault", "RestartRequest", "RestartBusiness", "FreeRestartNPU", "RestartNPU",
    "PreSeparateNPU", "SeparateNPU",
)  # fmt: skip
MILD: frozenset[Level] = frozenset({"NotHandleFault", "SubHealthFault"})
"""Levels that a device may go on working with, and be given new work."""


def stops_work(level: Level | None) -> bool:
    """Whether a pod that uses a device with this fault has to leave it. PreSeparate lets it finish."""
    return level is not None and level not in MILD and level != "PreSeparateNPU"


def takes_new_work(level: Level | None) -> bool:
    """Whether a device with this fault may be given to a new pod (sub-healthy ones only if there is no other)."""
    return level is None or level in MILD


class Device(Lenient):
    """What one device is; none of it changes while the node is up."""

    id: DeviceId
    """Its id, as kubelet knows it."""
    physical: Count
    """Physical number on the node: N of /dev/davinciN."""
    ring: Count = 0
    """Devices of one ring are joined by the node's fast links."""
    module: Count = 0
    """Devices of one module are given out together (the two dies of an A3)."""
    ip: Annotated[str, Field(max_length=45)] = ""
    """Address in the network between nodes; HCCL's device_ip."""
    super_device: Annotated[str, Field(max_length=63)] = ""
    """Number inside the super-pod; HCCL's super_device_id."""


class Order(Lenient):
    """An order about one device, by an administrator or by the operator; the agent obeys."""

    device: DeviceId
    """Which."""
    action: Literal["Quarantine", "Release"]
    """Quarantine keeps new work off whatever its health says; Release forgets faults that ended before `at`."""
    by: Literal["Operator", "Administrator"]
    """An administrator's order is never changed by the operator, before a quarantine's own end."""
    at: Time
    """When it was given."""
    until: Time | None = None
    """When a quarantine ends by itself; absent: never."""
    reason: Text = ""
    """Why."""


class NodeDevicesSpec(Lenient):
    """Static facts, and orders."""

    node: Name
    """The node."""
    resource: Annotated[str, Field(max_length=253)]
    """Extended resource under which kubelet counts them, such as huawei.com/Ascend910."""
    model: Literal["910A", "910B-8", "910B-16", "A3", "Other"] = "Other"
    """Decides which sets of devices may be used together (docs/placement.md). Other: any."""
    chip: Annotated[str, Field(max_length=63)] = ""
    """Name of the chip as its tool prints it."""
    backend: Literal["simulated", "npu-smi", "observe"] = "observe"
    """Where facts and health come from."""
    super_pod: Annotated[str, Field(max_length=63)] = ""
    """Super-pod that the node belongs to; empty: none."""
    rack: Annotated[str, Field(max_length=63)] = ""
    """Rack that the node stands in; empty: not known."""
    server: Annotated[str, Field(max_length=63)] = ""
    """Number of the node in its super-pod or HCCL's server_id; empty: not known."""
    remapped: bool = False
    """MindCluster, in its Volcano mode, gives pods other devices than kubelet has chosen: only jobs with `placement:
    Scheduler` may use them."""
    devices: Annotated[list[Device], Field(max_length=256)] = Field(default_factory=list)
    """All devices, by id."""
    orders: Annotated[list[Order], Field(max_length=256)] = Field(default_factory=list)
    """At most one order a device. Written by the operator and by administrators, never by the agent."""


class FaultRecord(Lenient):
    """One fault that a device had, or has."""

    code: Annotated[str, Field(max_length=64)]
    """Its code."""
    level: Level
    """Its level; once it is over, the last."""
    began: Time
    """When it was first seen."""
    ended: Time | None = None
    """When it was first seen to be gone; absent: it is there."""
    network: bool = False
    """It is one of the link to other nodes."""
    text: Annotated[str, Field(max_length=512)] = ""
    """What it means."""
    hold: Time | None = None
    """It came too often for the fault table, which wants the device kept out until then; the operator gives the order,
    unless so much of the pool is out already that a human has to."""


class DeviceStatus(Lenient):
    """How one device is."""

    id: DeviceId
    """Which."""
    health: Literal["Healthy", "Unhealthy", "Unknown"]
    """Healthy and Unhealthy are what kubelet is told. Unknown: it could not be read; no new work, running work
    stays."""
    code: Annotated[str, Field(max_length=64)] = ""
    """Code of its worst fault, or of the one whose probation is not over."""
    level: Level | None = None
    """How bad that is."""
    text: Annotated[str, Field(max_length=512)] = ""
    """What it means."""
    network: bool = True
    """Whether its link to other nodes works."""
    since: Time | None = None
    """When this health began."""
    faults: Count = 0
    """Faults in the last 24 hours, those that need no action excepted."""
    history: Annotated[list[FaultRecord], Field(max_length=16)] = Field(default_factory=list)
    """The newest faults that still matter, oldest first: the agent's memory, which outlives it here."""
    probation: Time | None = None
    """It works again, and takes new work after this."""
    quarantined: bool = False
    """An order keeps new work off it."""
    pod: Annotated[str, Field(max_length=317)] = ""
    """namespace/name of the pod that holds it; empty: free."""


class NodeCondition(Lenient):
    """metav1.Condition."""

    type: Literal["Ready"]
    """Ready: devices are known and their health was read just now."""
    status: Literal["True", "False", "Unknown"]
    """Whether it holds."""
    reason: Annotated[str, Field(min_length=1, max_length=1024)]
    """Serving, Observing, or what is wrong: HealthUnreadable, InvalidDevices, InvalidFaultTable, Unregistered, ..."""
    message: Annotated[str, Field(max_length=32768)] = ""
    """What was expected, what was found, what to do."""
    last_transition_time: Time
    """When the status last changed."""


class NodeDevicesStatus(Lenient):
    """What is."""

    healthy: Annotated[str, Field(max_length=16)] = ""
    """Healthy of all, such as 7/8."""
    free: Annotated[str, Field(max_length=253)] = ""
    """Healthy and free devices by ring, such as 4+3."""
    worst: Annotated[str, Field(max_length=253)] = ""
    """The worst fault: device, level, code."""
    devices: Annotated[list[DeviceStatus], Field(max_length=256)] = Field(default_factory=list)
    """By id, in the order of spec.devices."""
    conditions: Annotated[list[NodeCondition], Field(max_length=8, json_schema_extra={
        "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["type"]})] = Field(default_factory=list)
    """Ready."""
