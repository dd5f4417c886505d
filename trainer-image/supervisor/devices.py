"""Whether the pod's accelerators are free: no process of an earlier run, or of an earlier pod, is listed on them.

The driver's own tool tells, if the container has it: `npu-smi info` or `nvidia-smi`. The pids that it prints may be
those of the node and mean nothing in here, so it is devices that are looked at: no other pod may use an NPU of ours,
whoever is listed on it stands in our way. GPUs may be shared: what was there before our first rank is not ours.
A tool that fails or hangs keeps nobody from starting."""

from __future__ import annotations

import glob
import json
import re
import shutil
from typing import Dict, FrozenSet, Iterable, List, Mapping, NamedTuple, Optional, Set, Tuple, Union

LISTED = 8  # pids named
CHIP_NODES = "/dev/davinci[0-9]*"
GPU_NODES = "/dev/nvidia[0-9]*"
NOTHING = ("", "void", "none")

Place = Tuple[int, int]  # numbers of the card and of the chip on it


class Held(NamedTuple):
    """A device of ours with processes on it."""

    device: str  # as the device plugin names it
    pids: Tuple[int, ...]

    def __str__(self) -> str:
        shown = ", ".join(map(str, self.pids[:LISTED])) + (" ..." if len(self.pids) > LISTED else "")
        return f"{self.device} ({'process' if len(self.pids) == 1 else 'processes'} {shown})"


class Chips(NamedTuple):
    """What `npu-smi info` lists."""

    physical: Dict[Place, Optional[int]]  # number of the chip on its node; None: not told
    processes: List[Tuple[Place, int]]  # with their pids


def chips(text: str) -> Chips:
    """From the two tables of `npu-smi info`, by their headers. ValueError says what was expected."""
    columns: List[List[str]] = []  # of the first line of a device, of the second one
    physical: Dict[Place, Optional[int]] = {}
    processes: List[Tuple[Place, int]] = []
    card: Optional[int] = None
    below = False  # in the table of processes
    for line in text.splitlines():
        if not line.strip().startswith("|"):
            continue
        cells = [cell.strip() for cell in line.strip().strip("|").split("|")]
        if below:
            numbers = cells[0].split()
            if len(cells) > 1 and cells[1].isdigit() and all(number.isdigit() for number in numbers) and numbers:
                place = (int(numbers[0]), int(numbers[1]) if len(numbers) > 1 else 0)
                processes.append((place, int(cells[1])))
            elif not cells[0].startswith("No running processes"):
                raise ValueError(f"expected card, chip and pid of a process, found {line.strip()[:200]!r}")
        elif len(cells) > 1 and cells[1] == "Process id":
            below = True
        elif cells[0].startswith("NPU") and "Health" in cells:
            columns = [[]]
        elif len(columns) == 1:
            columns.append(cells[0].split())
        elif columns:
            numbers = cells[0].split()
            if card is None:
                card = _number(numbers, 0, line)
            else:
                chip = _number(numbers, 0, line) if "Chip" in columns[1] else 0
                known = "Phy-ID" in columns[1]
                physical[card, chip] = _number(numbers, columns[1].index("Phy-ID"), line) if known else None
                card = None
    if not below or not physical:
        raise ValueError("expected a table of devices and one of processes (a header with `Process id`), found "
                         f"{text.strip()[-200:]!r}")
    cards = [card for card, _ in physical]
    if len(set(cards)) == len(cards):  # one chip a card: the card's number is the chip's
        physical = {place: place[0] if number is None else number for place, number in physical.items()}
    return Chips(physical, processes)


def _number(words: List[str], at: int, line: str) -> int:
    if len(words) <= at or not words[at].isdigit():
        raise ValueError(f"expected the number of a device, found {line.strip()[:200]!r}")
    return int(words[at])


def own_chips(environment: Mapping[str, str]) -> Dict[int, str]:
    """The pod's NPUs by their physical numbers: from TRAINYARD_DEVICES or ASCEND_VISIBLE_DEVICES. Empty: not told."""
    try:
        return {int(one["physical"]): str(one["id"]) for one in json.loads(environment["TRAINYARD_DEVICES"])}
    except (LookupError, TypeError, ValueError):
        pass
    found: Dict[int, str] = {}
    for part in environment.get("ASCEND_VISIBLE_DEVICES", "").split(","):
        match = re.fullmatch(r"(?:Ascend910-)?(\d+)(?:-(\d+))?", part.strip())
        if match is None:
            return {}
        for number in range(int(match[1]), int(match[2] or match[1]) + 1):
            found[number] = f"Ascend910-{number}"
    return found


def held_chips(listed: Chips, own: Mapping[int, str], ranks: int) -> List[Held]:
    """Those of ours with processes on them. A container may be shown only its own devices, or all of the node's;
    ValueError if it cannot be told which are ours."""
    names: Dict[Place, str] = {place: own[number] for place, number in listed.physical.items()
                               if number is not None and number in own}
    if len(names) < max(1, len(own)):  # numbered anew in the container, or nobody has told
        if len(listed.physical) != (len(own) or ranks):
            raise ValueError(f"npu-smi lists {len(listed.physical)} chips, and which of them are this pod's "
                             f"{len(own) or ranks} is not told (TRAINYARD_DEVICES, ASCEND_VISIBLE_DEVICES)")
        told = [own[number] for number in sorted(own)]
        places = sorted(listed.physical)
        names = dict(zip(places, told or [f"NPU {card} chip {chip}" for card, chip in places]))  # counts are equal
    return _grouped((names[place], pid) for place, pid in listed.processes if place in names)


def _grouped(pairs: Iterable[Tuple[str, int]]) -> List[Held]:
    found: Dict[str, Set[int]] = {}
    for device, pid in pairs:
        found.setdefault(device, set()).add(pid)
    return [Held(device, tuple(sorted(pids))) for device, pids in sorted(found.items())]


def gpu_processes(text: str) -> List[Tuple[str, int]]:
    """UUID and pid, from `nvidia-smi --query-compute-apps=pid,gpu_uuid --format=csv,noheader`. ValueError likewise."""
    found = []
    for line in filter(None, map(str.strip, text.splitlines())):
        pid, _, device = line.partition(",")
        if not pid.strip().isdigit() or not device.strip().startswith(("GPU-", "MIG-")):
            raise ValueError(f"expected a pid and a GPU's UUID, found {line[:200]!r}")
        found.append((device.strip(), int(pid)))
    return found


class Npus:
    """Asks npu-smi."""

    def __init__(self, tool: str, environment: Mapping[str, str], ranks: int) -> None:
        self._tool, self._own, self._ranks = tool, own_chips(environment), ranks

    def command(self) -> List[str]:
        """What to run next."""
        return [self._tool, "info"]

    def read(self, text: str) -> Optional[List[Held]]:
        """What it printed. ValueError if that cannot be used; None: there is more to run."""
        return held_chips(chips(text), self._own, self._ranks)


class Gpus:
    """Asks nvidia-smi."""

    def __init__(self, tool: str, environment: Mapping[str, str], ranks: int) -> None:
        self._tool, self._ranks = tool, ranks
        named = [part.strip() for part in environment.get("NVIDIA_VISIBLE_DEVICES", "").split(",")]
        self._own: FrozenSet[str] = frozenset(named) if all(name.startswith("GPU-") for name in named) else frozenset()
        self._others: Optional[FrozenSet[Tuple[str, int]]] = None  # there before our first rank

    def command(self) -> List[str]:
        """What to run next."""
        if not self._own:
            return [self._tool, "--query-gpu=uuid", "--format=csv,noheader"]
        return [self._tool, "--query-compute-apps=pid,gpu_uuid", "--format=csv,noheader"]

    def read(self, text: str) -> Optional[List[Held]]:
        """What it printed. ValueError if that cannot be used; None: there is more to run."""
        if not self._own:
            listed = text.split()
            if len(listed) != self._ranks or not all(name.startswith("GPU-") for name in listed):
                raise ValueError(f"nvidia-smi lists {len(listed)} GPUs, and which of them are this pod's {self._ranks} "
                                 "is not told (NVIDIA_VISIBLE_DEVICES)")
            self._own = frozenset(listed)
            return None
        now = [one for one in gpu_processes(text) if one[0] in self._own]
        if self._others is None:
            self._others = frozenset(now)
        return _grouped(one for one in now if one not in self._others)


def tool_of(environment: Mapping[str, str], ranks: int) -> Union[Npus, Gpus, None]:
    """Who can tell of this pod's devices; None: it has none, or no tool."""
    path = environment.get("PATH")
    if _has(environment, ("TRAINYARD_DEVICES", "ASCEND_VISIBLE_DEVICES"), CHIP_NODES):
        found = shutil.which("npu-smi", path=path)
        return Npus(found, environment, ranks) if found else None
    if glob.glob(GPU_NODES) or environment.get("NVIDIA_VISIBLE_DEVICES", "").startswith("GPU-"):
        found = shutil.which("nvidia-smi", path=path)
        return Gpus(found, environment, ranks) if found else None
    return None


def _has(environment: Mapping[str, str], names: Tuple[str, ...], nodes: str) -> bool:
    return any(environment.get(name, "").strip() not in NOTHING for name in names) or bool(glob.glob(nodes))
