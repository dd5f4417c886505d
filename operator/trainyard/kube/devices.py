"""Projection of NodeDevices. Read as raw JSON and kept as small values: thousands of nodes have tens of thousands of
devices, and a node writes again whenever a pod takes or leaves one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from sys import intern
from typing import Any, cast

from trainyard.api.devices import LEVELS, MILD, Level
from trainyard.api.times import moment
from trainyard.fleet.devices import Accelerators, Device, Failure, Order
from trainyard.kube.client import Object

_ENDING_SECONDS = 60.0  # clocks of nodes may differ by so much


def accelerators(raw: Object, old: Accelerators | None = None) -> Accelerators:
    """Of a NodeDevices object. Devices that have not changed stay the same values."""
    metadata, spec, status = raw["metadata"], raw.get("spec") or {}, raw.get("status") or {}
    orders = tuple(_order(order) for order in spec.get("orders") or ())
    kept_out = {order.device for order in orders if order.action == "Quarantine" and _lasts(order)}
    told = {str(each["id"]): each for each in status.get("devices") or ()}
    known = {device.id: device for device in old.devices} if old else {}
    devices = tuple(_device(facts, told.get(str(facts["id"])), kept_out, known) for facts in spec.get("devices") or ())
    ready: Mapping[str, Any] = next((c for c in status.get("conditions") or () if c["type"] == "Ready"), {})
    return Accelerators(
        node=intern(str(spec.get("node") or metadata["name"])), uid=metadata["uid"],
        resource=intern(str(spec.get("resource") or "")),
        model=intern(str(spec.get("model") or "Other")), backend=intern(str(spec.get("backend") or "observe")),
        super_pod=intern(str(spec.get("superPod") or "")), rack=intern(str(spec.get("rack") or "")),
        remapped=bool(spec.get("remapped")), devices=devices, orders=orders,
        ready=ready.get("status") == "True", reason=intern(str(ready.get("reason") or "NotReported")),
        message=str(ready.get("message") or ""))


def _device(facts: Mapping[str, Any], told: Mapping[str, Any] | None, kept_out: set[str],
            known: Mapping[str, Device]) -> Device:
    """A device of which the status says nothing yet is one of unknown health. An order counts from when it is given,
    not from when the agent has followed it."""
    said = told or {"health": "Unknown"}
    name = intern(str(facts["id"]))
    level = said.get("level")
    made = Device(
        id=name, health=intern(str(said.get("health") or "Unknown")), code=intern(str(said.get("code") or "")),
        level=cast(Level, intern(level)) if level in LEVELS else None, text=intern(str(said.get("text") or "")),
        network=bool(said.get("network", True)), failures=_failures(said.get("history") or ()),
        probation=str(said.get("probation") or ""), quarantined=bool(said.get("quarantined")) or name in kept_out,
        pod=str(said.get("pod") or ""), ring=int(facts.get("ring") or 0), module=int(facts.get("module") or 0))
    return known[name] if known.get(name) == made else made


def _failures(history: Sequence[Mapping[str, Any]]) -> tuple[Failure, ...]:
    return tuple(Failure(intern(str(each["code"])), str(each["began"]), str(each.get("ended") or ""),
                         str(each.get("hold") or ""))
                 for each in history if each.get("level") not in MILD or each.get("hold"))


def _lasts(order: Order) -> bool:
    """Whether the order surely counts now. When it is about to end, the agent says whether it still does."""
    until = moment(order.until)
    return until is None or until > datetime.now(UTC) + timedelta(seconds=_ENDING_SECONDS)


def _order(raw: Mapping[str, Any]) -> Order:
    return Order(
        device=str(raw["device"]), action=str(raw["action"]), by=str(raw["by"]), at=str(raw["at"]),
        until=str(raw.get("until") or ""), reason=str(raw.get("reason") or ""))
