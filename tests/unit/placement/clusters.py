"""Small clusters for tests, written in a line."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from trainyard.placement.books import Books, Demand, DevicesView, DeviceView, Nearness, NodeView, Resources, Taint

NPU = "huawei.com/Ascend910"
GPU = "nvidia.com/gpu"
GI = 1 << 30


def node(name: str, zone: str = "", **changes: Any) -> NodeView:
    """A node with 8 NPUs, 64 cpus and 256 GiB; `npus`, `cpu`, `pods` change those, other names fields of NodeView."""
    allocatable = {"cpu": 1000 * changes.pop("cpu", 64), "memory": 256 * GI, "pods": changes.pop("pods", 110)}
    npus = changes.pop("npus", 8)
    if npus is not None:
        allocatable[NPU] = npus
    allocatable |= changes.pop("more", {})
    labels = {"kubernetes.io/hostname": name} | ({"topology.kubernetes.io/zone": zone} if zone else {})
    view = NodeView(name, allocatable, labels | changes.pop("labels", {}))
    return replace(view, **changes)


def taint(key: str, effect: str = "NoSchedule", value: str = "") -> tuple[Taint, ...]:
    return (Taint(key, effect, value),)


def books(*nodes: NodeView, **used: Resources) -> Books:
    """`used` by node name, with _ for -."""
    return Books({one.name: one for one in nodes}, {name.replace("_", "-"): taken for name, taken in used.items()})


def npus(amount: int) -> dict[str, int]:
    return {NPU: amount, "pods": 1}


def demand(requests: Mapping[str, int] | None = None, **fields: Any) -> Demand:
    """A pod with 8 NPUs, or other requests."""
    return Demand({"pods": 1} | dict({NPU: 8} if requests is None else requests), **fields)


SIZES = {"910A": (8, 4), "910B-8": (8, 8), "910B-16": (16, 8), "A3": (16, 16), "Other": (8, 8)}  # devices, of a ring


def seats(model: str = "910A", free: Iterable[int] | None = None, **changes: Any) -> DevicesView:
    """All devices of a node, d0, d1, ...; the others than `free` are held by somebody. `sub`, `cut`, `ill` number
    devices that are sub-healthy, without network, unhealthy; other names are fields of DevicesView."""
    number, ring = SIZES[model]
    ill, sub, cut = (set(changes.pop(name, ())) for name in ("ill", "sub", "cut"))
    made = tuple(
        DeviceView(f"d{i}", i // ring, i // 2, free is None or i in free, i not in ill, i in sub, i not in cut,
                   fault="80E01801, RestartBusiness" if i in ill else "")
        for i in range(number)
    )  # fmt: skip
    return DevicesView(NPU, model, devices=made, **changes)


def seated(name: str, model: str = "910A", free: Iterable[int] | None = None, **changes: Any) -> NodeView:
    """A node whose agent tells of its devices. `used` of the books has to be given besides."""
    free = None if free is None else set(free)
    of_node = {key: changes.pop(key) for key in ("cpu", "labels", "cordoned", "ready", "taints") if key in changes}
    view = seats(model, free, **changes)
    healthy = sum(device.usable for device in view.devices)
    return node(name, npus=healthy, devices=view, **of_node)


def busy_cluster(nodes: int = 5000, jobs: int = 1000) -> Books:
    """8 devices a node, 40 super-pods of 16 racks; `jobs` jobs of 1 to 8 devices a pod, two thirds of them told."""
    sizes = (8, 4, 1, 2)
    made: dict[str, NodeView] = {}
    held: dict[int, tuple[str, int]] = {5 * i % nodes + i % 3: (f"ns/j{i}-0-1", sizes[i % 4]) for i in range(jobs)}
    used: dict[str, Resources] = {}
    there: dict[str, dict[str, Resources]] = {}
    for i in range(nodes):
        name, (holder, taken) = f"node-{i}", held.get(i, ("", 0))
        shown = bool(holder) and i % 3 != 0
        devices = tuple(DeviceView(f"Ascend910-{d}", d // 4, d // 2, not (shown and d < taken),
                                   not (i % 97 == 0 and d == 3), holder=holder if shown and d < taken else "")
                        for d in range(8))  # fmt: skip
        view = DevicesView(NPU, "910A", f"sp-{i // 125}", f"sp-{i // 125}-{i // 8}", devices=devices)
        made[name] = NodeView(name, {"cpu": 64000, "memory": 1 << 38, "pods": 110, NPU: 8}, devices=view)
        if holder:
            used[name], there[name] = npus(taken), {holder: npus(taken)}
    return Books(made, used, there)


@dataclass(frozen=True)
class Claim:
    demand: Demand
    count: int
    nearness: Nearness | None = None
