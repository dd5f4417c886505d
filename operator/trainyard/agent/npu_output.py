"""What npu-smi and hccn_tool print, read by the headers that they print themselves. Pure.

Formats: 910A, 910B, A3 and 950, from the driver's source and recorded outputs (tests/unit/agent/recorded)."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise

from trainyard.agent.types import Unreadable

_COLUMNS = re.compile(r"NPU ID|NPU|Name|Chip|Phy-ID|Device|Health|Bus-Id")
_NUMBER = re.compile(r"[0-9]{1,9}")  # str.isdigit would take digits of any alphabet, and ones that are no number
_MOST = 256  # chips of a node that NodeDevices has room for
_MAPPING = ("NPU ID", "Slot ID", "Chip ID", "Chip Logic ID", "Chip Phy-ID", "Chip Name")
Place = tuple[int, int]
"""Numbers of the card (NPU ID) and of the chip on it."""


@dataclass(frozen=True, slots=True)
class Mapped:
    """One line of `npu-smi info -m`."""

    place: Place
    physical: int
    name: str


@dataclass(frozen=True, slots=True)
class ChipMap:
    """`npu-smi info -m`."""

    chips: tuple[Mapped, ...]
    takes_chip: bool  # whether other commands take -c; 950's do not


def mapping(text: str) -> ChipMap:
    """Which chip has which physical number. Chips without numbers (the card's controller) are left out.

    Raises Unreadable (ToolUnreadable)."""
    if "There is no NPU card" in text:
        return ChipMap((), True)
    lines = [line.strip() for line in text.splitlines()]
    start = next((number for number, line in enumerate(lines) if line.startswith("NPU ID")), None)
    if start is None:
        raise _unreadable("npu-smi info -m", "a header that begins with NPU ID", text)
    names = [name for _, name in sorted((lines[start].find(name), name) for name in _MAPPING if name in lines[start])]
    if "Chip ID" not in names or not {"Chip Phy-ID", "Chip Logic ID"} & set(names):
        raise _unreadable("npu-smi info -m", "columns Chip ID and Chip Phy-ID or Chip Logic ID", lines[start])
    chips = []
    for line in lines[start + 1 :]:
        values = line.split(None, len(names) - 1)
        if len(values) < len(names):
            continue
        row = dict(zip(names, values, strict=True))
        physical = row.get("Chip Phy-ID", row.get("Chip Logic ID", ""))
        if all(_NUMBER.fullmatch(text) for text in (row["NPU ID"], row["Chip ID"], physical)):
            chips.append(Mapped((int(row["NPU ID"]), int(row["Chip ID"])), int(physical), row.get("Chip Name", "")))
    if not chips:
        raise _unreadable("npu-smi info -m", "at least one chip with numbers", text)
    if len(chips) > _MOST:
        raise _unreadable("npu-smi info -m", f"at most {_MOST} chips", f"{len(chips)} of them: {text}")
    if len({chip.physical for chip in chips}) < len(chips):
        raise _unreadable("npu-smi info -m", "every physical number once", text)
    return ChipMap(tuple(chips), "Slot ID" not in names)


def table(text: str) -> dict[Place, str]:
    """Health (OK, Warning, Alarm, Critical, UNKNOWN, ...) of each chip by its place, from the table of `npu-smi info`.

    Raises Unreadable (ToolUnreadable)."""
    first, second = _headers(text)
    found: dict[Place, str] = {}
    rows = list(_rows(text))
    borders = [line.strip() for line in text.splitlines() if line.lstrip().startswith(("|", "+"))]
    if len(rows) % 2 or not (borders[-1].startswith("+") and borders[-1].endswith("+")):
        raise _unreadable("npu-smi info", "two lines a chip and a border at the end", text[-300:])
    for upper, lower in zip(rows[::2], rows[1::2], strict=True):
        values = _values(first, upper) | {f"lower {key}": value for key, value in _values(second, lower).items()}
        card, chip = values.get("NPU ID", values.get("NPU", "")), values.get("lower Chip", "0")
        if not _NUMBER.fullmatch(card) or not _NUMBER.fullmatch(chip) or not values.get("Health"):
            raise _unreadable("npu-smi info", "number and health of a chip", f"{'|'.join(upper)}/{'|'.join(lower)}")
        if (int(card), int(chip)) in found:
            raise _unreadable("npu-smi info", f"card {card} chip {chip} once", text)
        found[int(card), int(chip)] = values["Health"]
    if not found:
        raise _unreadable("npu-smi info", "at least one chip below the headers", text)
    return found


def _cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip().strip("|").split("|")]


def _headers(text: str) -> tuple[list[list[str]], list[list[str]]]:
    """The columns of each cell, in the upper and the lower line of a chip."""
    lines = [line for line in text.splitlines() if line.lstrip().startswith("|")]
    for upper, lower in pairwise(lines):
        cells = _cells(upper)
        if cells[0].startswith("NPU") and "Health" in cells:
            return [_COLUMNS.findall(cell) for cell in cells[: cells.index("Health") + 1]], [
                _COLUMNS.findall(cell) for cell in _cells(lower)[: cells.index("Health")]]
    raise _unreadable("npu-smi info", "a header with NPU and Health", text)


def _rows(text: str) -> Iterator[list[str]]:
    """The lines of chips: those below the header, above the table of processes."""
    below = False
    for line in text.splitlines():
        bare = line.strip()
        if bare.startswith("+="):
            below = True
        elif bare.startswith("|") and below:
            if "Process" in bare or bare.startswith(("| NPU", "| No running")):
                return
            yield _cells(bare)


def _values(columns: list[list[str]], cells: list[str]) -> dict[str, str]:
    values: dict[str, str] = {}
    for names, cell in zip(columns, cells, strict=False):
        if names:
            values |= dict(zip(names, cell.split(None, len(names) - 1), strict=False))
    return values


def _lines(text: str) -> Iterator[tuple[str, str]]:
    for line in text.splitlines():
        key, colon, value = line.partition(":")
        if colon:
            yield key.strip(), value.strip()


@dataclass(frozen=True, slots=True)
class Health:
    """`npu-smi info -t health`: a state, and codes with their texts."""

    state: str
    codes: tuple[tuple[str, str], ...]


def health(text: str) -> Health:
    """Raises Unreadable (ToolUnreadable)."""
    state, codes, texts, last = "", [], [], ""
    for key, value in _lines(text):
        last = key or last
        if key in ("Health Status", "Health"):
            state = value
        elif key == "Error Code" and value not in ("", "NA"):
            codes = value.split()
        elif last == "Error Information" and value not in ("", "NA"):
            texts.append(value)
    if not state:
        raise _unreadable("npu-smi info -t health", "a line Health Status", text)
    if any(re.fullmatch(r"[0-9A-Fa-f]{1,8}", code) is None for code in codes):
        raise _unreadable("npu-smi info -t health", "hexadecimal error codes", " ".join(codes))
    matched = texts if len(texts) == len(codes) else [""] * len(codes)
    return Health(state, tuple((code.upper(), said) for code, said in zip(codes, matched, strict=True)))


def numbers(text: str) -> Mapping[str, int]:
    """Lines `name : number`, as `-t ecc` and `-t spod-info` print them."""
    return {key: int(value) for key, value in _lines(text) if re.fullmatch(r"[0-9]{1,20}", value)}


def words(text: str) -> Mapping[str, str]:
    """Lines `name : word`, as `-t board` prints them."""
    return dict(_lines(text))


def addresses(configuration: str) -> dict[int, str]:
    """Addresses by physical number, from /etc/hccn.conf; those that are none are left out."""
    found = {}
    for line in configuration.splitlines():
        match = re.fullmatch(r"\s*address_([0-9]+)\s*=\s*(\S+)\s*", line)
        if match and (address := _address(match[2])):
            found[int(match[1])] = address
    return found


def address(text: str) -> str:
    """The address that `hccn_tool -ip -g` prints; empty: none."""
    match = re.search(r"^\s*ipaddr\s*:\s*(\S+)", text, re.MULTILINE)
    return _address(match[1]) if match else ""


def link_is_up(text: str) -> bool | None:
    """What `hccn_tool -link -g` prints; None: nothing of the kind."""
    match = re.search(r"link status\s*:\s*(UP|DOWN)", text, re.IGNORECASE)
    return None if match is None else match[1].upper() == "UP"


def _address(text: str) -> str:
    try:
        found = ipaddress.ip_address(text)
    except ValueError:
        return ""
    return "" if found.is_unspecified else str(found)


def _unreadable(command: str, expected: str, found: str) -> Unreadable:
    return Unreadable("ToolUnreadable", f"{command}: expected {expected}, found {' '.join(found.split())[:300]!r}")
