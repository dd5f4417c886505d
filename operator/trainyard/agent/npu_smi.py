"""Ascend NPUs as the driver's own tools tell of them: npu-smi, and hccn_tool for the links to other nodes.

One tool runs at a time. What cannot be read is unknown, never well; every round tries again."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from trainyard.agent import ascend, npu_output
from trainyard.agent.ascend import Model
from trainyard.agent.host import Host
from trainyard.agent.npu_output import ChipMap, Place
from trainyard.agent.tool import Tool
from trainyard.agent.types import Facts, Fault, Reading, Severity, Unreadable
from trainyard.api.devices import Device, NodeDevicesSpec

log = logging.getLogger(__name__)

_SEVERITIES: Mapping[str, Severity] = {"WARNING": "minor", "ALARM": "major", "CRITICAL": "critical"}
_PAUSE_SECONDS = 3.0  # between two rounds
_ROUND_SECONDS = 12.0  # a round, everything included
_LINKS_SECONDS = 10.0  # between two looks at the links
_ECC_SECONDS = 60.0  # between two looks at the memory's error counts
_FACTS_SECONDS = 600.0  # between two looks at what does not change; a missing address may have been set meanwhile

LOST = "DeviceLost"
"""Code of a device that was there and is not any more."""
DOUBLE_BIT = "HbmDoubleBitErrors"
"""Code of a device whose memory has had errors that could not be corrected."""
LINK_DOWN = "81078603"
"""The driver's code of a link that is down."""


@dataclass(slots=True)
class _Known:
    """What does not change while the node is up."""

    chips: ChipMap = field(default_factory=lambda: ChipMap((), True))
    pci: str = ""
    addresses: dict[int, str] = field(default_factory=dict)  # by physical number, as all below
    super_devices: dict[int, str] = field(default_factory=dict)
    super_pod: str = ""
    server: str = ""
    read_at: float = float("-inf")


class NpuSmi:
    """The backend. Devices that an agent before this one saw and that are gone are said to be lost."""

    name: Literal["npu-smi"] = "npu-smi"

    def __init__(self, resource: str, host: Host, *, pause: float = _PAUSE_SECONDS,
                 limit: float = _ROUND_SECONDS) -> None:
        self.labels: Mapping[str, str] = {}
        self.known: Sequence[Device] = ()
        libraries = ":".join(f"{host.driver}/lib64{part}" for part in ("", "/common", "/driver"))
        environment = {"LD_LIBRARY_PATH": libraries}
        self._smi = Tool(host.npu_smi, environment, host)
        self._hccn = Tool(f"{host.driver}/tools/hccn_tool", environment, host)
        self._host, self._resource, self._pause, self._limit = host, resource, pause, limit
        self._facts = _Known()
        self._missed: Counter[str] = Counter()
        self._links: dict[str, Fault] = {}
        self._memory: dict[str, Fault] = {}
        self._links_at: dict[str, float] = defaultdict(lambda: float("-inf"))  # when a device's was last asked for
        self._memory_at: dict[str, float] = defaultdict(lambda: float("-inf"))
        self._begun = 0.0  # the round
        self._learning = _Known()  # facts that are not all there yet

    def learn(self, labels: Mapping[str, str], annotations: Mapping[str, str]) -> None:
        """The node's labels say what model it is and where it stands."""
        self.labels = labels

    def recall(self, spec: NodeDevicesSpec) -> None:
        """Devices that were there."""
        if spec.backend == self.name and spec.resource == self._resource:
            self.known = tuple(spec.devices)

    async def readings(self) -> AsyncIterator[Reading | Unreadable]:
        """A round every few seconds, whatever becomes of it."""
        while True:
            yield await self.read()
            await asyncio.sleep(self._pause)

    async def read(self) -> Reading | Unreadable:
        """One round."""
        try:
            async with asyncio.timeout(self._limit):
                return await self._round()
        except TimeoutError:
            return Unreadable("ToolHangs", f"the tools of the driver took longer than {self._limit:.0f} s for one look "
                              "at all devices; it is tried again")
        except Unreadable as error:
            return error

    async def _round(self) -> Reading:
        self._begun = time.monotonic()
        health = npu_output.table(await self._info())
        if (time.monotonic() - self._facts.read_at > _FACTS_SECONDS
                or not set(health) <= {chip.place for chip in self._facts.chips.chips}):
            await self._learn()
        places = {chip.place: f"{self._prefix}-{chip.physical}" for chip in self._facts.chips.chips}
        facts = self._made_facts()
        faults: dict[str, list[Fault]] = {device.id: [] for device in facts.devices}
        unknown = set()
        for place, name in places.items():
            state = health.get(place, "").upper()
            if state in _SEVERITIES:
                found, known = await self._codes(place, state)
                faults[name] += found
                unknown |= set() if known else {name}
            elif state and state != "OK":
                unknown.add(name)
        self._find_lost(facts, {name for place, name in places.items() if place in health}, faults, unknown)
        await self._look_at_links(facts)
        await self._look_at_memory(places)
        for lasting in (self._links, self._memory):
            for name, fault in lasting.items():
                if name in faults and fault.code not in {each.code for each in faults[name]}:
                    faults[name].append(fault)
        return Reading(facts, {name: tuple(found) for name, found in faults.items() if found}, frozenset(unknown))

    @property
    def _prefix(self) -> str:
        return self._resource.rpartition("/")[2]

    async def _info(self, *arguments: str) -> str:
        # Less than a whole round, so that the one that hangs is named.
        return await self._smi.run("info", *arguments, seconds=self._limit * 2 / 3)

    def _at(self, place: Place) -> tuple[str, ...]:
        card, chip = place
        return ("-i", str(card), *(("-c", str(chip)) if self._facts.chips.takes_chip else ()))

    # Facts.

    async def _learn(self) -> None:
        """Read what does not change. Only the numbers of the chips are needed; the rest may be missing."""
        chips = npu_output.mapping(await self._info("-m"))
        if chips != self._learning.chips:
            self._learning = _Known(chips)
        known = self._learning  # where tools are slow it takes several rounds
        self._facts.chips = known.chips
        for chip in known.chips.chips:
            if not known.pci and (board := await self._optional("-t", "board", *self._at(chip.place))):
                known.pci = npu_output.words(board).get("PCI Device ID", "").upper()
            if chip.physical in known.super_devices:
                continue
            if self._model(known) == "A3" and (pod := await self._optional("-t", "spod-info", *self._at(chip.place))):
                numbers = npu_output.numbers(pod)
                known.super_devices[chip.physical] = str(numbers.get("SDID", ""))
                known.super_pod = str(numbers.get("Super Pod ID", known.super_pod))
                known.server = str(numbers.get("Server Index", known.server))
        known.addresses = await self._read_addresses(known.chips)
        known.read_at = time.monotonic()
        self._facts, self._learning = known, _Known()

    async def _optional(self, *arguments: str) -> str:
        """What npu-smi prints; empty if this generation or version does not know the question."""
        try:
            return await self._info(*arguments)
        except Unreadable as error:
            if error.reason == "ToolFails":
                return ""
            raise

    async def _read_addresses(self, chips: ChipMap) -> dict[int, str]:
        try:
            conf = self._host.find(self._host.hccn_conf)
            found = npu_output.addresses(await asyncio.to_thread(conf.read_text, errors="replace"))
        except OSError:
            found = {}
        for chip in chips.chips:
            if chip.physical not in found and self._host.has(self._hccn.program):
                try:
                    printed = await self._hccn.run("-i", str(chip.physical), "-ip", "-g", seconds=self._limit / 6)
                except Unreadable:
                    break  # no address is no reason to serve no devices; a rank table without them is refused
                if address := npu_output.address(printed):
                    found[chip.physical] = address
        return found

    def _model(self, known: _Known) -> Model:
        """By the node's label; else by what the hardware says of itself, never by the chip's name: 910B is the name of
        chips of two generations."""
        if model := ascend.labelled_model(self.labels):
            return model
        cards = Counter(chip.place[0] for chip in known.chips.chips)
        if known.pci == "0XD803" or (known.chips.takes_chip and cards and set(cards.values()) == {2}):
            return "A3"
        if known.pci == "0XD802":
            return "910B-16" if len(known.chips.chips) == 16 else "910B-8"
        return "910A" if known.pci == "0XD801" else "Other"

    def _made_facts(self) -> Facts:
        known, labels = self._facts, self.labels
        model = self._model(known)
        devices = {}
        for chip in known.chips.chips:
            device = Device(id=f"{self._prefix}-{chip.physical}", physical=chip.physical,
                            module=ascend.module(model, chip.physical), ring=ascend.ring(model, chip.physical),
                            ip=known.addresses.get(chip.physical, ""),
                            super_device=known.super_devices.get(chip.physical, ""))
            devices[device.id] = device
        for device in self.known:
            devices.setdefault(device.id, device)
        self.known = tuple(sorted(devices.values(), key=lambda one: one.physical))
        return Facts(
            self._resource, model, tuple(self.known), known.chips.chips[0].name[:63] if known.chips.chips else "",
            ascend.labelled(labels, "superpodid") or known.super_pod, ascend.labelled(labels, "rackid"),
            ascend.labelled(labels, "serverid") or known.server)

    # Health.

    async def _codes(self, place: Place, state: str) -> tuple[list[Fault], bool]:
        """Faults of a chip that is not OK, and whether they are known; one without codes is a fault of its own. A chip
        that is broken may not answer at all: what the table says of it counts, and of the other chips as well."""
        severity = _SEVERITIES[state]
        try:
            said = npu_output.health(await self._info("-t", "health", *self._at(place)))
        except Unreadable as error:
            log.warning("codes of chip %s: %s", place, error.message)
            if state == "WARNING":
                return [], False
            return [Fault(f"Health{state.capitalize()}", f"npu-smi calls it {state.capitalize()}; its codes cannot be "
                          f"read: {error.message}"[:512], severity=severity)], True
        # What the table calls the device's state is that of its worst code: it classes codes that nobody else knows.
        return [Fault(code, text, severity=severity) for code, text in said.codes] or [
            Fault(f"Health{state.capitalize()}", f"npu-smi calls it {state.capitalize()} and names no code",
                  severity=severity)], True

    def _find_lost(self, facts: Facts, seen: set[str], faults: dict[str, list[Fault]], unknown: set[str]) -> None:
        """Devices that are not in the table: unknown at first, since a table may be cut short, then lost."""
        for device in facts.devices:
            self._missed[device.id] = 0 if device.id in seen else self._missed[device.id] + 1
            if self._missed[device.id] == 1:
                unknown.add(device.id)
            elif self._missed[device.id] > 1:
                faults[device.id].append(Fault(LOST, "npu-smi does not list it any more", severity="critical"))

    async def _look_at_links(self, facts: Facts) -> None:
        """Which links to other nodes are down. Devices without an address have none. A tool that does not answer says
        nothing about the device: what was last known of its link stays."""
        for device in sorted(facts.devices, key=lambda each: self._links_at[each.id]):
            if not device.ip:
                self._links.pop(device.id, None)
            if not device.ip or self._missed[device.id]:
                continue
            if not self._due(self._links_at[device.id], _LINKS_SECONDS, 1 / 3):
                return
            self._links_at[device.id] = time.monotonic()
            try:
                printed = await self._hccn.run("-i", str(device.physical), "-link", "-g", seconds=self._limit / 6)
            except Unreadable as error:
                log.warning("links: %s", error.message)
                if error.reason == "ToolFails":
                    continue  # one broken chip must not hide the links of the others
                return
            if npu_output.link_is_up(printed):
                self._links.pop(device.id, None)
            elif npu_output.link_is_up(printed) is False:
                self._links[device.id] = Fault(LINK_DOWN, "hccn_tool says that its link is down", network=True)

    async def _look_at_memory(self, places: Mapping[Place, str]) -> None:
        """Errors that could not be corrected; what cannot be read says nothing."""
        for place, name in sorted(places.items(), key=lambda each: self._memory_at[each[1]]):
            if self._missed[name]:
                continue
            if not self._due(self._memory_at[name], _ECC_SECONDS, 1 / 2):
                return
            self._memory_at[name] = time.monotonic()
            try:
                counts = npu_output.numbers(await self._optional("-t", "ecc", *self._at(place)))
            except Unreadable as error:
                log.warning("memory: %s", error.message)
                return
            self._memory.pop(name, None)
            if errors := counts.get("HBM Double Bit Error Count", 0):
                pages = counts.get("HBM Double Bit Isolated Pages Count", 0)
                text = (f"{errors} errors in its memory could not be corrected since the driver was loaded, {pages} "
                        "pages are set aside")
                self._memory[name] = Fault(DOUBLE_BIT, text, severity="minor")

    def _due(self, asked: float, every: float, share: float) -> bool:
        """Whether to ask again: it was long ago, and less than this share of the round's time is gone. Where tools are
        slow the rest is asked in the next round, the longest not asked first."""
        now = time.monotonic()
        return now - asked >= every and now - self._begun < self._limit * share
