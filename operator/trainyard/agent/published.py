"""What NodeDevices says, made of what the agent knows. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from trainyard.agent.serving import Served
from trainyard.agent.types import BackendName, Facts, Reading, Unreadable
from trainyard.api.devices import LEVELS, DeviceStatus, NodeCondition, NodeDevicesSpec, NodeDevicesStatus


@dataclass(frozen=True, slots=True)
class Word:
    """What the condition Ready says, but for its time."""

    status: Literal["True", "False"]
    reason: str
    message: str = ""


def spec(node: str, backend: BackendName, facts: Facts) -> NodeDevicesSpec:
    """The static facts."""
    return NodeDevicesSpec(node=node, resource=facts.resource, model=facts.model, chip=facts.chip, backend=backend,
                           super_pod=facts.super_pod, rack=facts.rack, server=facts.server, remapped=facts.remapped,
                           devices=list(facts.devices))


def facts(spec: NodeDevicesSpec) -> Facts:
    """The same the other way round: what an agent before this one knew."""
    return Facts(spec.resource, spec.model, tuple(spec.devices), spec.chip, spec.super_pod, spec.rack, spec.server,
                 spec.remapped)


def word(reading: Reading | Unreadable, backend: BackendName, unregistered: str, warning: Unreadable | None) -> Word:
    """Whether devices are known and their health was read just now. `unregistered` says why kubelet does not know the
    plugin, `warning` what else is wrong."""
    if isinstance(reading, Unreadable):
        return Word("False", reading.reason, reading.message)
    unread = [device.id for device in reading.facts.devices if device.id in reading.unknown]
    if unread:
        all_of_them = len(unread) == len(reading.facts.devices)
        return Word("False" if all_of_them else "True", "HealthUnreadable",
                    f"the health of {', '.join(unread)} cannot be read: no new pod gets them, running pods keep them")
    if unregistered:
        return Word("False", "Unregistered", unregistered)
    if wrong := warning or reading.warning:
        return Word("True", wrong.reason, wrong.message)
    return Word("True", "Observing" if backend == "observe" else "Serving")


def status(devices: Sequence[DeviceStatus], served: Mapping[str, Served], said: Word, before: NodeCondition | None,
           now: str) -> NodeDevicesStatus:
    """All of it. The condition keeps the time at which its status last changed."""
    since = before.last_transition_time if before and before.status == said.status else now
    condition = NodeCondition(type="Ready", status=said.status, reason=said.reason, message=said.message[:32768],
                              last_transition_time=since)
    healthy = sum(each.health == "Healthy" for each in devices)
    return NodeDevicesStatus(healthy=f"{healthy}/{len(devices)}", free=_free(devices, served), worst=_worst(devices),
                             devices=list(devices), conditions=[condition])


def _free(devices: Sequence[DeviceStatus], served: Mapping[str, Served]) -> str:
    """By ring, such as 4+3: devices that a new pod may have and none holds."""
    rings: Counter[int] = Counter()
    for each in devices:
        known = served.get(each.id)
        if known:
            rings[known.device.ring] += known.grantable and not each.pod
    return "+".join(str(rings[ring]) for ring in sorted(rings))


def _worst(devices: Sequence[DeviceStatus]) -> str:
    """Device, level and code of the worst fault."""
    ill = [each for each in devices if each.level]
    if not ill:
        return ""
    worst = max(ill, key=lambda each: LEVELS.index(each.level) if each.level else -1)
    return " ".join(part for part in (worst.id, worst.level, worst.code) if part)
