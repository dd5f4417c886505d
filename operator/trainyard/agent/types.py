"""What the parts of the agent tell each other."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from typing import Literal, Protocol

from trainyard.api.devices import Device, Level, NodeDevicesSpec

Severity = Literal["", "minor", "major", "critical"]
BackendName = Literal["simulated", "npu-smi", "observe"]


@dataclass(frozen=True, slots=True)
class Facts:
    """What the node's devices are; read at the start and when the backend says that they changed."""

    resource: str  # extended resource, such as huawei.com/Ascend910
    model: Literal["910A", "910B-8", "910B-16", "A3", "Other"]
    devices: tuple[Device, ...]
    chip: str = ""
    super_pod: str = ""
    rack: str = ""
    server: str = ""
    remapped: bool = False  # pods get other devices than kubelet believes


@dataclass(frozen=True, slots=True)
class Fault:
    """One fault that a device has now."""

    code: str  # hex without 0x, or a word
    text: str = ""
    level: Level | None = None  # None: to be classed by the table, or by severity if the table does not know the code
    severity: Severity = ""
    network: bool = False  # of the link to other nodes


@dataclass(frozen=True, slots=True)
class Reading:
    """The health of all devices at one moment."""

    facts: Facts
    faults: Mapping[str, tuple[Fault, ...]] = field(default_factory=dict)  # by device id; no entry: none
    unknown: frozenset[str] = frozenset()  # devices whose health could not be read
    warning: Unreadable | None = None  # what is wrong, yet leaves health known: a bad file, the last good one counts
    holders: Mapping[str, str] | None = None  # pods by device id, where kubelet does not know them; None: it does


class Unreadable(Exception):
    """Devices or their health cannot be read. `reason` is one word in CamelCase, the text what was expected, what was
    found and what to do."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message


class Backend(Protocol):
    """Where facts and health come from."""

    @property
    def name(self) -> BackendName:
        """Which it is."""

    def learn(self, labels: Mapping[str, str], annotations: Mapping[str, str]) -> None:
        """The node's labels and annotations, whenever they were read."""

    def recall(self, spec: NodeDevicesSpec) -> None:
        """What an agent before this one wrote; before the first reading."""

    def readings(self) -> AsyncIterator[Reading | Unreadable]:
        """What is, now: at once, at every change, and again at least every 5 s as a proof that it is still looked at.
        Never ends and raises nothing: what goes wrong is said as Unreadable and tried again."""
