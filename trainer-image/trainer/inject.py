"""Faults on demand, to try out what a run does about them: $TRAINYARD_INJECT (docs/faults.md)."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from trainer.errors import ConfigError

_FORM = re.compile(r"nan:step=(\d+)(?:,rank=(\d+))?(?:,times=(\d+))?")
_SPIKE = re.compile(r"spike:step=(\d+)")
_CHECK = re.compile(r"check:pod=[^,;]+,how=(?:hang|sum)")  # acts before ranks start: supervisor/collective.py
_LAYOUT = re.compile(r"layout:number=(\d+),(?:(slow|waits)=(\d+(?:\.\d+)?)|(fails|dies))(?:,rank=(\d+))?")
SPIKE = 10.0


@dataclass(frozen=True)
class LayoutFault:
    """While this candidate is measured, counted from 1, this rank is slow, waits, fails or is killed."""

    number: int
    rank: int
    slow: float = 0.0  # s that a step counts as longer than it was
    waits: float = 0.0  # s before the first step, which does not count
    what: str = ""  # fails or dies, at the second step


@dataclass(frozen=True)
class Injection:
    """At these steps, this rank's gradients are NaN the first `times` that a batch is computed; at `spikes` the loss is
    told ten times too large. What happens while train.autotune measures is in `layouts`."""

    steps: dict[int, tuple[int, int]]  # by step: rank, times
    spikes: frozenset[int] = frozenset()
    layouts: tuple[LayoutFault, ...] = ()

    @classmethod
    def read(cls, text: str) -> Injection:
        """From `nan:step=5,rank=1,times=2`, `spike:step=7` and `layout:number=2,slow=0.5,rank=1` (`waits=5`, `fails` or
        `dies` instead of `slow`), several with a semicolon between them; rank is 0 and times 1 if they are not said.
        Raises ConfigError."""
        steps, spikes, layouts = {}, set(), []
        for part in filter(None, (part.strip() for part in text.split(";"))):
            if _CHECK.fullmatch(part) is not None:
                continue
            if (match := _SPIKE.fullmatch(part)) is not None:
                spikes.add(int(match[1]))
                continue
            if (match := _LAYOUT.fullmatch(part)) is not None:
                number, how, seconds, what, rank = match.groups()
                layouts.append(LayoutFault(int(number), int(rank or 0), what=what or "",
                                           **({how: float(seconds)} if how else {})))
                continue
            match = _FORM.fullmatch(part)
            if match is None:
                raise ConfigError("TRAINYARD_INJECT should be like nan:step=5,rank=1,times=2, spike:step=7, "
                                  f"layout:number=2,fails,rank=1 or check:pod=j-2-1,how=sum, found {part!r}")
            step, rank, times = match.groups()
            steps[int(step)] = (int(rank or 0), int(times or 1))
        return cls(steps, frozenset(spikes), tuple(layouts))

    def factor(self, step: int, rank: int, tries: int) -> float:
        """What this rank's loss is multiplied by before it goes backward."""
        where, times = self.steps.get(step, (-1, 0))
        return math.nan if rank == where and tries <= times else 1.0

    def spike(self, step: int) -> float:
        """What the loss that is told is multiplied by."""
        return SPIKE if step in self.spikes else 1.0
