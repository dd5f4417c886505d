"""Faults on demand, to try out what a run does about them: $TRAINYARD_INJECT (docs/faults.md)."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from trainer.errors import ConfigError

_FORM = re.compile(r"nan:step=(\d+)(?:,rank=(\d+))?(?:,times=(\d+))?")


@dataclass(frozen=True)
class Injection:
    """At these steps, this rank's gradients are NaN the first `times` that a batch is computed."""

    steps: dict[int, tuple[int, int]]  # by step: rank, times

    @classmethod
    def read(cls, text: str) -> Injection:
        """From `nan:step=5,rank=1,times=2`, several with a semicolon between them; rank is 0 and times 1 if they are
        not said. Raises ConfigError."""
        steps = {}
        for part in filter(None, (part.strip() for part in text.split(";"))):
            match = _FORM.fullmatch(part)
            if match is None:
                raise ConfigError(f"TRAINYARD_INJECT should be like nan:step=5,rank=1,times=2, found {part!r}")
            step, rank, times = match.groups()
            steps[int(step)] = (int(rank or 0), int(times or 1))
        return cls(steps)

    def factor(self, step: int, rank: int, tries: int) -> float:
        """What this rank's loss is multiplied by before it goes backward."""
        where, times = self.steps.get(step, (-1, 0))
        return math.nan if rank == where and tries <= times else 1.0
