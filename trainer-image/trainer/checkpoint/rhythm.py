"""How often copies in memory are taken and sent: from what they cost, and from how many slots there are. Pure."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

BUDGET = 0.03  # of the training time, for own copies and buddies' together


@dataclass
class Rhythm:
    """Copies are taken every `own` steps, and every `buddy` steps (a multiple) sent to the buddies too. What is given
    was set by hand."""

    own: int | None  # None: not yet decided
    buddy: int | None
    costs: list[float] = field(default_factory=list)  # s that training stood still for a copy
    together: bool = False  # there are only slots for copies that are also sent

    def __post_init__(self) -> None:
        self._own_by_hand = self.own is not None

    @property
    def decided(self) -> bool:
        """Whether both are known."""
        return self.own is not None and self.buddy is not None

    def due(self, step: int) -> tuple[bool, bool]:
        """Whether this step is copied, and sent to the buddies."""
        own, buddy = self.own or 1, self.buddy or 1
        return step % own == 0, step % buddy == 0

    def __str__(self) -> str:
        return f"every {self.own} steps, to other pods every {self.buddy}"

    @property
    def turns(self) -> tuple[int, ...]:
        """How many slots may take turns, the most that are of use first. Two do if every copy is sent: with an own copy
        that is newer than what the buddies have, both must stay, and there would be no place for the next."""
        if not self.decided:
            return 3, 2
        return (2,) if self.own == self.buddy else (3,)

    def share(self) -> None:
        """Only two slots take turns: both kinds are taken at the same steps. Where both were set by hand and differ,
        that is so because nothing is sent."""
        if self.decided:
            self.buddy = self.own
        self.together = True

    def decide(self, cost: float, step: float, sending: float) -> None:
        """From seconds of an own copy (training stands still, the copier's CPU takes its sum), seconds a step and CPU
        seconds of sending (all the worst of all ranks): each kind gets half of the budget. What was set by hand
        stays; where slots are shared and nothing was set, own copies are as rare as the others."""
        half = BUDGET / 2 * max(step, 1e-6)
        if self.own is None:
            self.own = max(1, math.ceil(cost / half))
            if self.buddy is not None:
                self.own = next((own for own in range(self.own, self.buddy) if self.buddy % own == 0), self.buddy)
        if self.buddy is None:
            self.buddy = max(1, math.ceil(sending / half))
            self.buddy = -(-self.buddy // self.own) * self.own
        if self.together and self._own_by_hand:
            self.buddy = self.own
        elif self.together:
            self.own = self.buddy
