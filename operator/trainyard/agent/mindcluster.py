"""What MindCluster's device plugin publishes of a node: the ConfigMap mindx-dl-deviceinfo-<node>. Pure.

Format and hash are those of its source; documented examples are in the tests."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from trainyard.agent.types import Fault, Unreadable
from trainyard.api.devices import LEVELS, Level

KEY = "DeviceInfoCfg"
MANUAL = "ManuallySeparateNPU"
_OLD = timedelta(minutes=12)  # it is written every 5 minutes at least
_SUFFIXES = ("-Unhealthy", "-NetworkUnhealthy", "-Recovering", "-Fault")


@dataclass(frozen=True, slots=True)
class Published:
    """What it says."""

    resource: str
    devices: frozenset[str]  # those that it names: free healthy ones, and ill ones
    faults: Mapping[str, tuple[Fault, ...]] = field(default_factory=dict)  # by device id
    super_pod: str = ""
    server: str = ""


def read(data: Mapping[str, str], now: datetime) -> Published:
    """Read the ConfigMap's data. Raises Unreadable (MindClusterUnreadable) if it is broken, altered or old."""
    try:
        return _read(data, now)
    except (AttributeError, TypeError) as error:  # a number where a text belongs, a text where an object does
        raise _wrong(f"a field is of another type than MindCluster's ({error})") from error


def _read(data: Mapping[str, str], now: datetime) -> Published:
    text = data.get(KEY, "")
    try:
        whole = json.loads(text)
        info = whole["DeviceInfo"]
        lists, updated = dict(info["DeviceList"]), datetime.fromtimestamp(int(info["UpdateTime"]), UTC)
    except (ValueError, TypeError, KeyError, OverflowError) as error:
        raise _wrong(f"expected an object with DeviceInfo.DeviceList and UpdateTime, found {text[:120]!r} "
                     f"({type(error).__name__}: {error})") from error
    if whole.get("CheckCode") != _hash(text):
        raise _wrong("its CheckCode does not fit its DeviceInfo: somebody else has changed it, or its version differs")
    if now - updated > _OLD:
        raise _wrong(f"it was last written at {updated:%Y-%m-%dT%H:%M:%SZ} and should be every 5 minutes: "
                     "MindCluster's device plugin does not run, or the clocks differ")
    resource = next((key for key in lists if not key.endswith(_SUFFIXES)), "")
    if not resource:
        raise _wrong(f"it names no resource, only {', '.join(lists) or 'nothing'}")
    faults = _faults(lists, resource, _names(data.get(MANUAL, "")))
    named = _names(lists[resource]) | set(faults)
    return Published(resource, frozenset(named), {name: tuple(found) for name, found in faults.items()},
                     _number(whole.get("SuperPodID")), _number(whole.get("ServerIndex")))


def _hash(text: str) -> str:
    """SHA-256 of DeviceInfo exactly as it is written."""
    start = text.index('"DeviceInfo"') + len('"DeviceInfo"')
    start = text.index("{", start)
    _, end = json.JSONDecoder().raw_decode(text, start)
    return hashlib.sha256(text[start:end].encode()).hexdigest()


def _faults(lists: Mapping[str, str], resource: str, manual: set[str]) -> dict[str, list[Fault]]:
    """Each list says something of its own; the codes are in the last."""
    found: dict[str, list[Fault]] = {}
    try:
        entries = json.loads(lists.get(f"{resource}-Fault") or "[]")
        for entry in entries:
            found.setdefault(str(entry["npu_name"]), []).extend(_entry(entry))
    except (ValueError, TypeError, KeyError) as error:
        raise _wrong(f"{resource}-Fault is not a list of faults ({type(error).__name__}: {error})") from error
    for name in _names(lists.get(f"{resource}-Unhealthy", "")):
        if not any(not fault.network for fault in found.get(name, [])):
            found.setdefault(name, []).append(Fault("CardUnhealthy", "MindCluster calls it unhealthy, without a code",
                                                    level="SeparateNPU"))
    for name in _names(lists.get(f"{resource}-NetworkUnhealthy", "")):
        if not any(fault.network for fault in found.get(name, [])):
            found.setdefault(name, []).append(Fault("CardNetworkUnhealthy", "MindCluster calls its link unhealthy, "
                                                    "without a code", level="PreSeparateNPU", network=True))
    for name in _names(lists.get(f"{resource}-Recovering", "")):
        found.setdefault(name, []).append(Fault("Recovering", "MindCluster is resetting it", level="RestartNPU"))
    for name in manual:
        found.setdefault(name, []).append(Fault(MANUAL))
    return found


def _entry(entry: Mapping[str, Any]) -> Iterator[Fault]:
    """The faults of one device: codes with commas between, each with a level of its own in newer versions."""
    network = entry.get("fault_type") == "CardNetworkUnhealthy"
    each = entry.get("fault_time_and_level_map") or {}
    codes = [code for code in str(entry.get("fault_code", "")).split(",") if code.strip()]
    for code in codes or [str(entry.get("fault_type") or "CardUnhealthy")]:
        detail = each.get(code) or {}
        yield Fault(code.strip(), level=_level(detail.get("fault_level") or entry.get("fault_level")),
                    severity="critical", network=network)


def _level(name: Any) -> Level | None:
    """None: the fault table has to tell."""
    if name == MANUAL:
        return "SeparateNPU"
    return next((level for level in LEVELS if level == name), None)


def _names(text: str) -> set[str]:
    return {name.strip() for name in text.split(",") if name.strip()}


def _number(value: Any) -> str:
    """Negative numbers stand for none."""
    return str(value) if isinstance(value, int) and value >= 0 else ""


def _wrong(what: str) -> Unreadable:
    return Unreadable("MindClusterUnreadable", f"ConfigMap mindx-dl-deviceinfo of this node: {what}")
