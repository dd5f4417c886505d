"""What kubelet is told of the devices, and what a container gets with them. Pure."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from trainyard.agent.host import Host
from trainyard.agent.types import Facts
from trainyard.api.devices import Device, DeviceStatus, takes_new_work
from trainyard.placement.rings import choose

Runtime = Literal["ascend", "plain", "none"]
"""How devices get into a container: `ascend` by ascend-docker-runtime, which reads an environment variable; `plain` by
device nodes and mounts; `none`: only the variable, for simulated devices, which have no nodes."""

_COMMON_NODES = ("/dev/davinci_manager", "/dev/devmm_svm", "/dev/hisi_hdc")


@dataclass(frozen=True, slots=True)
class Served:
    """One device as kubelet is told of it."""

    device: Device
    healthy: bool  # what ListAndWatch says, and whether a container that has it may start
    grantable: bool  # whether a new pod may have it
    why: str = ""  # why not
    mild: bool = False  # it works, but is sub-healthy or without its link to other nodes: the last choice


def serve(facts: Facts, statuses: Iterable[DeviceStatus], before: Mapping[str, Served]) -> dict[str, Served]:
    """What kubelet is told, by device id, given what it was told before.

    Unknown health, a quarantine and a probation keep new work off and leave running work alone. kubelet knows only two
    words, and whoever reads a pod's `allocatedResourcesStatus` takes "Unhealthy" for a reason to move the pod. So such
    a device is Unhealthy to kubelet only while no pod holds it; a held one keeps its word, since kubelet will not give
    it to a second pod. Should its pod end before that is noticed, `Allocate` refuses it.

    A device that is known no longer stays in the list as Unhealthy: kubelet believes the last word about what is left
    out.
    """
    by_id = {status.id: status for status in statuses}
    served = {}
    for device in facts.devices:
        status = by_id.get(device.id) or DeviceStatus(id=device.id, health="Unknown")
        served[device.id] = _serve(device, status)
    for name, old in before.items():
        if name not in served:
            served[name] = Served(old.device, False, False, f"{name} is no longer among the node's devices")
    return served


def _serve(device: Device, status: DeviceStatus) -> Served:
    why = _obstacle(status)
    if not why:
        return Served(device, True, True, mild=status.level == "SubHealthFault" or not status.network)
    return Served(device, status.health != "Unhealthy" and bool(status.pod), False, why)


def _obstacle(status: DeviceStatus) -> str:
    """Why a new pod may not have the device; empty if it may."""
    if status.health == "Unknown":
        return f"the health of {status.id} cannot be read" + (f": {status.text}" if status.text else "")
    if status.quarantined:
        return f"{status.id} is quarantined"
    if status.health == "Unhealthy" or not takes_new_work(status.level):
        words = " ".join(word for word in (status.code, status.level or "", status.text) if word)
        until = f"; it works again and is on probation until {status.probation}" if status.probation else ""
        return f"{status.id} is unhealthy" + (f": {words}" if words else "") + until
    if status.probation:
        return f"{status.id} is on probation until {status.probation}"
    return ""


def prefer(model: str, served: Mapping[str, Served], available: Collection[str], must_include: Collection[str],
           count: int) -> list[str]:
    """Which `count` of the available devices a container should get; those with a mild fault only if it must be. Empty
    if nothing can be said."""
    devices = [each.device for each in served.values()]
    return choose(model, devices, available, must_include, count, [name for name in served if served[name].mild])


@dataclass(frozen=True, slots=True)
class Grant:
    """What a container gets with its devices."""

    environment: dict[str, str]
    nodes: tuple[str, ...] = ()  # device nodes, at the same path on both sides
    mounts: tuple[tuple[str, str], ...] = ()  # read-only: path in the container, path on the node


def grant(devices: Sequence[Device], runtime: Runtime, host: Host, *, super_pod: str = "", server: str = "") -> Grant:
    """What a container gets with these devices. ASCEND_RT_VISIBLE_DEVICES is left alone: it counts devices inside the
    container, and physical numbers in it hide them all. TRAINYARD_DEVICES is for the supervisor, who makes HCCL's rank
    table of it (docs/supervisor.md)."""
    physical = sorted(device.physical for device in devices)
    facts = [{"id": device.id, "physical": device.physical, "ip": device.ip, "superDevice": device.super_device,
              "superPod": super_pod, "server": server} for device in sorted(devices, key=lambda each: each.physical)]
    visible = {"ASCEND_VISIBLE_DEVICES": ",".join(map(str, physical)),
               "TRAINYARD_DEVICES": json.dumps(facts, separators=(",", ":"))}
    if runtime == "none":
        return Grant(visible)
    if runtime == "ascend":
        return Grant(visible | {"ASCEND_RUNTIME_OPTIONS": ""})
    nodes = (*(f"/dev/davinci{number}" for number in physical), *_COMMON_NODES)
    usual = Host()  # where programs in the container look for them
    return Grant(visible, nodes, tuple((there, here) for there, here in (
        (f"{usual.driver}/lib64", f"{host.driver}/lib64"), (f"{usual.driver}/include", f"{host.driver}/include"),
        (usual.dcmi, host.dcmi), (usual.npu_smi, host.npu_smi)) if host.has(here)))
