"""One node's accelerators as its NodeDevices says, small enough to be kept for thousands of nodes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from trainyard.api.devices import Level, stops_work, takes_new_work
from trainyard.placement.books import DevicesView, DeviceView

ELSEWHERE = "MindCluster's own scheduler's to give out (such jobs need spec.placement: Scheduler)"


@dataclass(frozen=True, slots=True)
class Failure:
    """A fault at a level that takes a device out of use, now or in the last day, or one that came too often."""

    code: str
    began: str  # RFC 3339
    ended: str = ""  # empty: it is there
    hold: str = ""  # the fault table wants the device kept out until then; empty: it does not


@dataclass(frozen=True, slots=True)
class Device:
    """How one device is."""

    id: str
    health: str = "Healthy"  # Healthy | Unhealthy | Unknown
    code: str = ""  # of its worst fault
    level: Level | None = None  # how bad that is
    text: str = ""  # what it means
    network: bool = True  # its link to other nodes works
    failures: tuple[Failure, ...] = ()  # oldest first
    probation: str = ""  # RFC 3339: it works again and takes new work after this
    quarantined: bool = False  # an order keeps new work off it
    pod: str = ""  # namespace/name of the pod that holds it; told a few seconds late
    ring: int = 0
    module: int = 0

    @property
    def stops(self) -> bool:
        """Whether a pod that uses it has to leave it. A device that is merely kept out (quarantine, probation) or whose
        health could not be read stops nobody; one that is unhealthy without a level does."""
        if self.health != "Unhealthy":
            return False
        if self.level is None:
            return not self.quarantined and not self.probation
        return stops_work(self.level)

    @property
    def usable(self) -> bool:
        """Whether a new pod may get it. The agent ends a probation by taking its time away."""
        free = not self.quarantined and not self.probation
        return self.health == "Healthy" and free and takes_new_work(self.level)

    @property
    def words(self) -> str:
        """What is wrong with it, for people: code, level and meaning as far as they are known."""
        told = ", ".join(part for part in (self.code, self.level or "") if part)
        return f"{told}: {self.text}" if told and self.text else told or self.text or "unhealthy"


@dataclass(frozen=True, slots=True)
class Order:
    """An order about one device."""

    device: str
    action: str  # Quarantine | Release
    by: str  # Operator | Administrator
    at: str  # RFC 3339
    until: str = ""  # empty: never
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Accelerators:
    """All devices of one node."""

    node: str
    uid: str = ""
    resource: str = ""
    model: str = "Other"
    backend: str = "observe"
    super_pod: str = ""
    rack: str = ""
    remapped: bool = False  # pods get other devices than kubelet believes
    devices: tuple[Device, ...] = ()  # in the node's order
    orders: tuple[Order, ...] = ()
    ready: bool = False  # health was read just now
    reason: str = ""  # of the condition Ready
    message: str = ""

    @property
    def pool(self) -> tuple[str, str]:
        """Devices of one resource and model can stand in for one another."""
        return (self.resource, self.model)

    def device(self, name: str) -> Device | None:
        """The device of this id."""
        return next((device for device in self.devices if device.id == name), None)


def devices_view(told: Accelerators, allocatable: Mapping[str, int], agent_ready: bool | None) -> DevicesView:
    """What placement reads. `agent_ready`: whether the agent's pod on the node is Ready; None: there is no such pod,
    which proves nothing."""
    trouble = _trouble(told, allocatable, agent_ready)
    return DevicesView(
        resource=told.resource, model=told.model, super_pod=told.super_pod, rack=told.rack, known=not trouble,
        trouble=trouble, elsewhere=ELSEWHERE if told.remapped else "",
        devices=tuple(_device_view(device) for device in told.devices))


def _trouble(told: Accelerators, allocatable: Mapping[str, int], agent_ready: bool | None) -> str:
    """Why health is not known just now; the agent's own word may be old when the agent is gone."""
    if not told.ready:
        return told.reason or "NotReady"
    if agent_ready is False:
        return "the agent's pod is not ready"
    if not allocatable.get(told.resource) and any(device.usable for device in told.devices):
        return f"kubelet offers no {told.resource}"
    return ""


def _device_view(device: Device) -> DeviceView:
    return DeviceView(
        id=device.id, ring=device.ring, module=device.module, free=not device.pod, usable=device.usable,
        sub_healthy=device.level == "SubHealthFault", network=device.network, holder=device.pod,
        fault=_fault(device))


def _fault(device: Device) -> str:
    """What is wrong with it, in as few words as a list of many devices can bear."""
    if told := " ".join(part for part in (device.code, device.level or "") if part):
        return told
    if device.quarantined:
        return "quarantined"
    if device.probation:
        return "on probation"
    return {"Unhealthy": "unhealthy", "Unknown": "its health cannot be read"}.get(device.health, "")
