"""Nodes with accelerators in a few words."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from trainyard.fleet.devices import Accelerators, Device

RESOURCE = "huawei.com/Ascend910"
BAD: dict[str, Any] = {
    "health": "Unhealthy", "code": "80E18005", "level": "RestartNPU", "text": "HBM error",
}  # fmt: skip


def node(name: str = "n1", count: int = 8, **fields: Any) -> Accelerators:
    """A node with healthy, free devices Ascend910-0, ..."""
    devices = tuple(Device(f"Ascend910-{i}", ring=i // 4) for i in range(count))
    made = Accelerators(node=name, uid=f"uid-{name}", resource=RESOURCE, model="910A", backend="simulated",
                        devices=devices, ready=True, reason="Serving")
    return replace(made, **fields)


def but(told: Accelerators, number: int, **changes: Any) -> Accelerators:
    """With changes to one device."""
    made = tuple(replace(device, **changes) if device.id == f"Ascend910-{number}" else device
                 for device in told.devices)
    return replace(told, devices=made)
