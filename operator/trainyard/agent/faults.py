"""The fault table: how bad which fault is. `faults.yaml` beside this file is the table in use; a cluster's own table is
laid over it (docs/device-faults.md)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from typing import Annotated, Any, TypeVar

import yaml
from pydantic import AfterValidator, Field, ValidationError

from trainyard.agent import codes, written
from trainyard.agent.types import Fault, Unreadable
from trainyard.api.base import Model
from trainyard.api.devices import LEVELS, Level


def normal(code: str) -> str:
    """A code as the table writes it: hex digits in capitals without 0x; words stay as they are."""
    bare = code.strip()
    if bare[:2].lower() == "0x":
        bare = bare[2:]
    return bare.upper() if all(letter in "0123456789abcdefABCDEF" for letter in bare) else bare


def _code(code: str) -> str:
    if not _CODE.fullmatch(code):
        raise ValueError("a code is hex digits, or a word; put one of digits alone in quotes, lest it becomes a number")
    return normal(code)


_CODE = re.compile(r"[A-Za-z0-9_-]+")
Code = Annotated[str, Field(min_length=1, max_length=64), AfterValidator(_code)]
Codes = Annotated[list[Code], Field(min_length=1, max_length=1024)]


class Entry(Model):
    """What one code means."""

    level: Level
    """How bad it is."""
    text: Annotated[str, Field(max_length=512)] = ""
    """What it means."""
    network: bool = False
    """It is one of the link to other nodes."""


class Repeated(Model):
    """Faults that are worse when they come again and again."""

    codes: Codes
    """Of which each is counted by itself."""
    times: Annotated[int, Field(ge=2, le=16)]
    """How often ..."""
    hours: Annotated[float, Field(gt=0, le=48)] = 24
    """... within how long makes it worse."""
    level: Level
    """How bad it then is."""
    hold_hours: Annotated[float, Field(gt=0, le=168)] = 24
    """How long after the end of the last of them the operator is asked to keep the device out."""


class Lasting(Model):
    """Faults that are worse when they last."""

    codes: Codes
    """Of which each is timed by itself."""
    down_seconds: Annotated[float, Field(ge=0, le=86400)]
    """How long one lasts until it is worse."""
    up_seconds: Annotated[float, Field(ge=0, le=86400)]
    """How long it has to be gone to be over; what comes back before that goes on."""
    level: Level
    """How bad it then is."""


class Probation(Model):
    """How long a device that works again takes no new work: `seconds` after its first failure in 24 hours, `factor`
    times as long after each further one, at most `longest_seconds`. Longer than that only an order keeps a device out:
    who gives orders sees the whole pool."""

    seconds: Annotated[float, Field(ge=0, le=86400)] = 60
    """After the first failure."""
    factor: Annotated[float, Field(ge=1, le=100)] = 4
    """How much longer after each further one."""
    longest_seconds: Annotated[float, Field(ge=0, le=86400)] = 3600
    """At most."""


class Unlisted(Model):
    """How bad codes are that the table does not list, by the severity that came with them."""

    minor: Level = "NotHandleFault"
    """Minor ones."""
    major: Level = "SeparateNPU"
    """Major ones."""
    critical: Level = "SeparateNPU"
    """Critical ones."""
    network: Level = "PreSeparateNPU"
    """Those of the link to other nodes, whatever their severity."""
    none: Level = "SeparateNPU"
    """Those that came without a severity."""


class FaultTable(Model):
    """How bad which fault is."""

    codes: Annotated[dict[Code, Entry], Field(max_length=4096)] = Field(default_factory=dict)
    """By code."""
    repeated: Annotated[list[Repeated], Field(max_length=64)] = Field(default_factory=list)
    """Rules for faults that come again."""
    lasting: Annotated[list[Lasting], Field(max_length=64)] = Field(default_factory=list)
    """Rules for faults that last."""
    unlisted: Unlisted = Field(default_factory=Unlisted)
    """For codes that are not listed."""
    probation: Probation = Field(default_factory=Probation)
    """For devices that work again."""

    def entry(self, fault: Fault) -> Entry:
        """What this fault is: level, text and network of the fault itself come first, then those listed for its code,
        then the level for its severity and what the code says by itself."""
        code = normal(fault.code)
        listed = self.codes.get(code)
        network = fault.network or (listed is not None and listed.network)
        text = (fault.text or (listed.text if listed else "") or codes.meaning(code))[:512]
        if fault.level is not None:
            return Entry(level=fault.level, text=text, network=network)
        if listed is not None:
            return Entry(level=listed.level, text=text, network=network)
        level: Level = self.unlisted.network if network else getattr(self.unlisted, fault.severity or "none")
        return Entry(level=level, text=text or "a code that the fault table does not list", network=network)

    def repeats(self, code: str) -> Repeated | None:
        """The rule for this code when it comes again."""
        return next((rule for rule in self.repeated if code in rule.codes), None)

    def lasts(self, code: str) -> Lasting | None:
        """The rule for this code when it lasts."""
        return next((rule for rule in self.lasting if code in rule.codes), None)

    def under(self, other: FaultTable) -> FaultTable:
        """This table with another laid over it: codes, and what the other sets of `unlisted` and `probation`, replace
        what is here; a rule of the other is the only one for the codes that it names."""
        return FaultTable(
            codes=self.codes | other.codes,
            repeated=other.repeated + _without(self.repeated, other.repeated),
            lasting=other.lasting + _without(self.lasting, other.lasting),
            unlisted=self.unlisted.model_copy(update=other.unlisted.model_dump(exclude_unset=True)),
            probation=self.probation.model_copy(update=other.probation.model_dump(exclude_unset=True)),
        )


_Rule = TypeVar("_Rule", Repeated, Lasting)


def _without(rules: list[_Rule], others: list[_Rule]) -> list[_Rule]:
    """The rules, less the codes that the others name."""
    named = {code for other in others for code in other.codes}
    left = [(rule, [code for code in rule.codes if code not in named]) for rule in rules]
    return [rule.model_copy(update={"codes": codes}) for rule, codes in left if codes]


def worse_than(one: Level | None, other: Level | None) -> bool:
    """Whether the first is the worse of two levels."""
    return badness(one) > badness(other)


def badness(level: Level | None) -> int:
    """Larger is worse; -1 is none."""
    return -1 if level is None else LEVELS.index(level)


@cache
def shipped() -> FaultTable:
    """The table of this version."""
    return FaultTable.model_validate(yaml.load((files(__package__) / "faults.yaml").read_text(), _Loader))


class _Loader(yaml.BaseLoader):
    """Leaves every value as it is written: 81318008 is a code, no number; the types' fields say what is a number."""


def over_shipped(text: str | None) -> FaultTable:
    """The shipped table with a cluster's own, in YAML or JSON, laid over it; None or nothing: the shipped one.

    Raises Unreadable (InvalidFaultTable) that names every wrong field."""
    if not text or all(line.lstrip()[:1] in ("", "#") for line in text.splitlines()):
        return shipped()
    try:
        read = written.load(text, _Loader)
    except (yaml.YAMLError, ValueError) as error:
        raise _invalid(f"it is no valid YAML: {' '.join(str(error).split())[:2000]}") from error
    if not isinstance(read, Mapping):
        raise _invalid(f"expected an object with {', '.join(_FIELDS)}; found {type(read).__name__}")
    try:
        own = FaultTable.model_validate(read)
    except ValidationError as error:
        raise _invalid("; ".join(_said(wrong) for wrong in error.errors()[:8])) from error
    return shipped().under(own)


_FIELDS = tuple(FaultTable.model_fields)


def _said(wrong: Mapping[str, Any]) -> str:
    path = ".".join(str(part) for part in wrong["loc"] if part != "[key]")
    found = repr(wrong["input"])
    return f"{path}: {wrong['msg']} (found {found if len(found) <= 60 else found[:57] + '...'})"


def _invalid(what: str) -> Unreadable:
    return Unreadable("InvalidFaultTable", f"The cluster's fault table is not used: {what}. The last valid table stays"
                                           " in force until this one is mended (docs/device-faults.md).")
