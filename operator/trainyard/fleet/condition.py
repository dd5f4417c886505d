"""The condition AcceleratorsHealthy of a node: one line for people who look at nodes."""

from __future__ import annotations

from dataclasses import dataclass

from trainyard.fleet.devices import Accelerators, Device
from trainyard.fleet.quarantine import failing

SHOWN = 4  # devices by name in a message


@dataclass(frozen=True, slots=True)
class Health:
    """A condition's status, reason and message."""

    status: str  # True | False | Unknown
    reason: str
    message: str


def health(told: Accelerators, trouble: str) -> Health:
    """`trouble`: why the devices' health is not known just now; empty when it is."""
    if trouble:
        reason = "AgentAway" if told.ready else told.reason
        return Health("Unknown", reason, told.message if not told.ready and told.message else f"{trouble}.")
    total = len(told.devices)
    for status, reason, word, found in (
        ("False", "DevicesUnhealthy", "have failed", [each for each in told.devices if failing(each)]),
        ("Unknown", "HealthUnknown", "cannot be read", [each for each in told.devices if each.health == "Unknown"]),
        ("False", "DevicesKeptOut", "are kept out", [each for each in told.devices if not each.usable]),
        ("False", "NetworkUnhealthy", "have no link to other nodes", [e for e in told.devices if not e.network]),
        ("True", "SubHealthy", "work with a mild fault", [each for each in told.devices if each.level]),
    ):
        if found:
            shown = "; ".join(_words(each) for each in found[:SHOWN])
            more = f"; and {len(found) - SHOWN} more" if len(found) > SHOWN else ""
            return Health(status, reason, f"{len(found)} of {total} devices {word}: {shown}{more}.")
    return Health("True", "AllHealthy", f"All {total} devices are healthy.")


def _words(device: Device) -> str:
    if device.level or device.code or device.text:
        return f"{device.id} ({device.words})"
    if device.quarantined:
        return f"{device.id} (quarantined)"
    return f"{device.id} (until {device.probation})" if device.probation else device.id
