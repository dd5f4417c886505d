"""What the pods of a node tell of their devices: their health, which kubelet writes into a pod's status and which is
the last word of whoever serves them, and the devices that MindCluster has really given them. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from trainyard.kube.client import Object

_REAL = "huawei.com/AscendReal"
_BAD = ("Unhealthy", "Unknown", "Healthy")  # the worst first: containers of a pod may share a device


@dataclass(frozen=True, slots=True)
class PodWord:
    """One pod's."""

    health: Mapping[str, Mapping[str, str]] = field(default_factory=dict)  # Healthy, Unhealthy, Unknown; resource, id
    real: frozenset[str] | None = None  # None: it says nothing, or nothing yet
    picked: frozenset[str] = frozenset()  # resources of which a scheduler of MindCluster's has picked the devices


def pod_word(raw: Object, old: PodWord | None = None) -> PodWord | None:
    """Of a Pod; None if it says nothing, or has ended and holds nothing any more."""
    status = raw.get("status") or {}
    if status.get("phase") in ("Succeeded", "Failed"):
        return None
    told: dict[str, dict[str, str]] = {}
    for container in (*(status.get("initContainerStatuses") or ()), *(status.get("containerStatuses") or ())):
        for kind in container.get("allocatedResourcesStatus") or ():
            for each in kind.get("resources") or ():
                _note(told.setdefault(str(kind["name"]), {}), str(each["resourceID"]), str(each.get("health") or ""))
    annotations = raw["metadata"].get("annotations") or {}
    text = annotations.get(_REAL)
    real = frozenset(re.split(r"[,\s]+", text.strip())) if text else None
    picked = frozenset(key for key in annotations if key.startswith("huawei.com/") and key != _REAL)
    return PodWord(told, real, picked) if told or real else None


def health(words: Iterable[PodWord]) -> dict[str, dict[str, str]]:
    """Of all pods together, by resource and id."""
    together: dict[str, dict[str, str]] = {}
    for word in words:
        for resource, told in word.health.items():
            for name, state in told.items():
                _note(together.setdefault(resource, {}), name, state)
    return together


def _note(told: dict[str, str], name: str, state: str) -> None:
    state = state if state in _BAD else "Unknown"
    told[name] = min(told.get(name, state), state, key=_BAD.index)
