"""Devices that a file describes, for clusters without any: the same file for all nodes (docs/devices.md).

What stands behind it is real: kubelet, its device plugin socket, the pods. A change of the file takes effect at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import time
from collections import Counter
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import ConfigDict, Field, ValidationError, field_validator, model_validator

from trainyard.agent import published, written
from trainyard.agent.types import BackendName, Facts, Fault, Reading, Unreadable
from trainyard.api.base import Model
from trainyard.api.devices import Device, DeviceId, Level, NodeDevicesSpec

_LOOK_SECONDS = 0.1  # between two looks at the file
_AGAIN_SECONDS = 4.0  # a reading at least so often, changed or not
_SETTLED_SECONDS = 0.05  # a file that was written so recently may change again without a sign of it

_COUNTS = {"910A": 8, "910B-8": 8, "910B-16": 16, "A3": 16}
_RING = {"910A": 4, "910B-16": 8}
_SHOWN = 16  # wrong fields in a message
_SELECTOR = re.compile(r"([A-Za-z0-9./_-]+)(!=|=)([A-Za-z0-9._-]*)")

ModelName = Literal["910A", "910B-8", "910B-16", "A3", "Other"]
NodeInfo = tuple[str, Mapping[str, str] | None]
"""A node's name and labels; None while nobody could ask for them."""


class SimulatedFault(Model):
    """One fault that a device has."""

    code: Annotated[str, Field(min_length=1, max_length=64)]
    """As npu-smi prints it, such as 80E01801; a word for what has no number."""
    text: Annotated[str, Field(max_length=512)] = ""
    """What it means; default: what the table of faults says."""
    level: Level | None = None
    """Default: what the table of faults says."""
    severity: Literal["", "minor", "major", "critical"] = ""
    """Classes a code that the table does not know."""
    network: bool = False
    """It is a fault of the link to other nodes."""

    @model_validator(mode="before")
    @classmethod
    def _code_alone(cls, value: Any) -> Any:
        if isinstance(value, (int, float)):
            raise ValueError(f"put the code in quotes: YAML takes it for the number {value}")
        return {"code": value} if isinstance(value, str) else value


class SimulatedDevice(Device):
    """One device, every field of it."""

    model_config = ConfigDict(extra="forbid")


class SimulatedNode(Model):
    """The devices of one node, or of many alike. In `ip`, `superDevice`, `server`, `superPod` and `rack`, {node} stands
    for the node's name, {number} for the digits at its end, {device} for the device's physical number."""

    resource: Annotated[str, Field(min_length=1, max_length=253)] = "huawei.com/Ascend910"
    """Extended resource."""
    model: ModelName
    """Decides which devices may be used together."""
    count: Annotated[int, Field(ge=0, le=256)] | None = None
    """How many devices; default: as many as the model has."""
    devices: Annotated[list[SimulatedDevice], Field(max_length=256)] | None = None
    """Instead of `count`: each device by itself."""
    chip: Annotated[str, Field(max_length=63)] = ""
    """Name of the chip."""
    super_pod: Annotated[str, Field(max_length=63)] = ""
    """Super-pod; default: the node's label huawei.com/topotree.superpodid."""
    rack: Annotated[str, Field(max_length=63)] = ""
    """Rack; default: the node's label huawei.com/topotree.rackid."""
    server: Annotated[str, Field(max_length=63)] = ""
    """Number in the super-pod; default: the node's label huawei.com/topotree.serverid."""
    ip: str = ""
    """Address of each device, such as 10.{number}.0.{device}."""
    super_device: str = ""
    """Number of each device in the super-pod."""
    faults: dict[DeviceId, list[SimulatedFault]] = Field(default_factory=dict)
    """Faults by device."""
    unknown: list[DeviceId] = Field(default_factory=list)
    """Devices whose health cannot be read."""
    unreadable: Annotated[str, Field(max_length=4096)] = ""
    """Nothing can be read, as when a tool hangs; says why."""

    @field_validator("ip", "super_device", "server", "super_pod", "rack")
    @classmethod
    def _known_names(cls, value: str) -> str:
        _fill(value, "node-1", 0)
        return value

    @model_validator(mode="after")
    def _consistent(self) -> SimulatedNode:
        if self.devices is not None and self.count is not None:
            raise ValueError("either count or devices, not both")
        if self.devices is None and self.count is None and self.model not in _COUNTS:
            raise ValueError(f"model {self.model} needs count or devices")
        ids = [device.id for device in self.all("node-1")]
        if twice := sorted(name for name, times in Counter(ids).items() if times > 1):
            raise ValueError(f"device {', '.join(twice)} is there twice")
        numbers = Counter(device.physical for device in self.devices or ())
        if same := sorted(number for number, times in numbers.items() if times > 1):
            raise ValueError(f"several devices have the physical number {', '.join(map(str, same))}: each has its own")
        if strange := sorted({*self.faults, *self.unknown} - set(ids)):
            raise ValueError(f"no device {', '.join(strange)}; there are {', '.join(ids) or 'none'}")
        return self

    def all(self, node: str) -> list[Device]:
        """The devices on the node of this name."""
        if self.devices is not None:
            return list(self.devices)
        count = self.count if self.count is not None else _COUNTS[self.model]
        prefix, per_module = self.resource.rpartition("/")[2], 2 if self.model == "A3" else 1
        return [Device(id=f"{prefix}-{number}", physical=number, ring=number // _RING.get(self.model, count),
                       module=number // per_module, ip=_fill(self.ip, node, number),
                       super_device=_fill(self.super_device, node, number)) for number in range(count)]

    def reading(self, node: str, labels: Mapping[str, str]) -> Reading:
        """What the agent of that node reads."""
        def place(given: str, label: str) -> str:
            return _fill(given, node, 0) or labels.get(f"huawei.com/topotree.{label}", "")

        facts = Facts(self.resource, self.model, tuple(self.all(node)), self.chip or f"simulated {self.model}",
                      place(self.super_pod, "superpodid"), place(self.rack, "rackid"), place(self.server, "serverid"))
        faults = {name: tuple(Fault(f.code, f.text, f.level, f.severity, f.network) for f in found)
                  for name, found in self.faults.items() if found}
        return Reading(facts, faults, frozenset(self.unknown))


class _NodeUnread(Unreadable):
    """Nothing is wrong with the file; there is just nothing to read."""


class SimulatedCluster(Model):
    """The whole file."""

    nodes: dict[str, SimulatedNode]
    """By a node's name, by labels it must have (pool=npu,disk!=slow), or * for all others. A node without an entry has
    no devices."""

    @field_validator("nodes")
    @classmethod
    def _selectors(cls, value: dict[str, SimulatedNode]) -> dict[str, SimulatedNode]:
        for key in value:
            if "=" in key:
                _requirements(key)
        return value

    def of(self, node: str, labels: Mapping[str, str] | None) -> SimulatedNode | None:
        """The entry of a node: by its name, else the first selector that fits, else *. Raises Unreadable if that takes
        labels and nobody knows them yet."""
        if node in self.nodes:
            return self.nodes[node]
        selectors = [key for key in self.nodes if "=" in key]
        if selectors and labels is None:
            raise _NodeUnread("NodeUnread", f"the simulated devices are chosen by labels ({selectors[0]}), and those "
                              f"of node {node} could not be read from the API server yet")
        for key in selectors:
            if all((labels or {}).get(name, "") == wanted if same else (labels or {}).get(name) != wanted
                   for name, same, wanted in _requirements(key)):
                return self.nodes[key]
        return self.nodes.get("*")


def _requirements(selector: str) -> list[tuple[str, bool, str]]:
    found = []
    for part in selector.split(","):
        if not (match := _SELECTOR.fullmatch(part.strip())):
            raise ValueError(f"{selector!r} is no selector: expected label=value or label!=value, with commas between")
        found.append((match[1], match[2] == "=", match[3]))
    return found


def _fill(text: str, node: str, device: int) -> str:
    digits = re.search(r"[0-9]*$", node)
    number = int(digits[0]) if digits and digits[0] else 0
    known = {"{node}": node, "{number}": str(number), "{device}": str(device)}
    parts = re.split(r"(\{node\}|\{number\}|\{device\})", text)
    if any(brace in part for part in parts if part not in known for brace in "{}"):
        raise ValueError(f"{text!r}: only {{node}}, {{number}} and {{device}} can be filled in")
    return "".join(known.get(part, part) for part in parts)


def parse(text: str) -> SimulatedCluster:
    """Read a file. Raises Unreadable that names every wrong field."""
    try:
        # An empty file is one that somebody is writing just now, not a cluster without devices.
        return SimulatedCluster.model_validate(written.load(text, _Loader))
    except ValidationError as error:
        raise Unreadable("InvalidDevices", _said(error)) from error
    except (yaml.YAMLError, ValueError) as error:  # a date such as 2026-13-45
        raise Unreadable("InvalidDevices", f"not valid YAML: {str(error)[:2000]}") from error


def _said(error: ValidationError) -> str:
    """Every wrong field, of very many the first."""
    wrong = error.errors(include_input=False, include_url=False)
    more = f"; and {len(wrong) - _SHOWN} more" if len(wrong) > _SHOWN else ""
    return "; ".join(f"{'.'.join(map(str, each['loc'])) or 'the file'}: {each['msg']}"[:1000]
                     for each in wrong[:_SHOWN]) + more


_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # the other one takes seconds for a large cluster


class Simulated:
    """The backend."""

    name: BackendName = "simulated"

    def __init__(self, file: Path, node: str, labels: Mapping[str, str] | None = None) -> None:
        self.labels = labels
        """The node's; whoever learns them sets them."""
        self._file = file
        self._node = node
        self._good: SimulatedCluster | None = None
        self._seen: tuple[int, ...] | None = (-1,)
        self._settled = False
        self._wrong: Unreadable | None = None

    def learn(self, labels: Mapping[str, str], annotations: Mapping[str, str]) -> None:
        """Labels choose the entry of the file."""
        self.labels = labels

    def recall(self, spec: NodeDevicesSpec) -> None:
        """The file says it all."""

    async def readings(self) -> AsyncIterator[Reading | Unreadable]:
        """Now, at every change, and every few seconds."""
        said: Reading | Unreadable | None = None
        due = 0.0
        while True:
            await self._look()
            found = self._found()
            if not _same(found, said) or time.monotonic() >= due:
                said, due = found, time.monotonic() + _AGAIN_SECONDS
                yield found
            await asyncio.sleep(_LOOK_SECONDS)

    async def _look(self) -> None:
        """Read the file if it is not the one that was read before. ConfigMaps are swapped as a whole folder, behind
        symbolic links: the number of the file tells."""
        try:
            stat = os.stat(self._file)
        except OSError as error:
            self._seen, self._wrong = None, _missing(self._file, error)
            return
        seen = (stat.st_dev, stat.st_ino, stat.st_mtime_ns, stat.st_size)
        if seen == self._seen and self._settled:
            return
        first = seen != self._seen
        self._seen = seen
        self._settled = time.time_ns() - stat.st_mtime_ns > _SETTLED_SECONDS * 1e9
        try:
            # A large file takes its time, and a container's start must not wait for it.
            self._good = await asyncio.to_thread(self._read)
            self._wrong = None
        except OSError as error:
            self._seen, self._wrong = None, _missing(self._file, error)
        except UnicodeDecodeError as error:
            self._wrong = Unreadable("InvalidDevices", f"{self._file}: expected text in UTF-8, found something else "
                                     f"({error})")
        except Unreadable as wrong:
            if first and not self._settled:
                return  # perhaps half written: the next look decides
            self._wrong = Unreadable(wrong.reason, f"{self._file}: {wrong.message}")

    def _read(self) -> SimulatedCluster:
        """The file, if this node's part of it can be used. Raises OSError, UnicodeDecodeError, Unreadable."""
        made = parse(self._file.read_text(encoding="utf-8"))
        with contextlib.suppress(_NodeUnread):  # then there is nothing to look at yet
            self._reading(made)
        return made

    def _reading(self, cluster: SimulatedCluster) -> Reading | None:
        """This node's; None if the file has no devices for it. Raises Unreadable: what is filled in does not fit."""
        entry = cluster.of(self._node, self.labels)
        if entry is None:
            return None
        try:
            made = entry.reading(self._node, self.labels or {})
            published.spec(self._node, self.name, made.facts)
        except ValidationError as error:
            raise Unreadable("InvalidDevices", f"filled in for node {self._node}: {_said(error)}") from error
        if entry.unreadable:
            raise _NodeUnread("HealthUnreadable", entry.unreadable)
        return made

    def _found(self) -> Reading | Unreadable:
        if self._good is None:
            return self._wrong or Unreadable("InvalidDevices", f"{self._file} has not been read yet")
        warning = None
        if self._wrong:
            warning = Unreadable(self._wrong.reason, f"{self._wrong.message}. The last good state of the file counts "
                                 "until it is mended")
        try:
            made = self._reading(self._good)
        except Unreadable as error:
            return error
        if made is None:
            return Reading(Facts("", "Other", ()), warning=warning)
        return Reading(made.facts, made.faults, made.unknown, warning)


def _missing(file: Path, error: Exception) -> Unreadable:
    return Unreadable("InvalidDevices", f"expected the description of simulated devices in {file}, found none "
                      f"({error}); mount it there, or choose another backend")


def _same(one: Reading | Unreadable, other: Reading | Unreadable | None) -> bool:
    if isinstance(one, Unreadable) or isinstance(other, Unreadable) or other is None:
        return (isinstance(one, Unreadable) and isinstance(other, Unreadable)
                and (one.reason, one.message) == (other.reason, other.message))
    wrong = [each.warning and (each.warning.reason, each.warning.message) for each in (one, other)]
    return (one.facts, one.faults, one.unknown, wrong[0]) == (other.facts, other.faults, other.unknown, wrong[1])
