"""Small clusters for tests, written in a line."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from trainyard.placement.books import Books, Demand, NodeView, Resources, Taint

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


@dataclass(frozen=True)
class Claim:
    demand: Demand
    count: int
