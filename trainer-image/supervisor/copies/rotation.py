"""Which slot a rank may overwrite. Pure; all ranks of a gang come to the same conclusions, because all that they go by
is agreed in the all-reduce of every step.

`newest`: the step copied last. Every rank has it whole once all take part in the next all-reduce. `agreed`: the newest
step that is known to be whole at every rank and at every buddy. `sent`: a later one on its way to the buddies. While
these are kept, any set of ranks may die at any moment: what is left always holds one common step (the buddies of pods
that died at the same moment excepted, that is what several copies are for).

One slot more than take turns, a spare, lets one be pinned for as long as a durable checkpoint is written from it. When
that ends differs from rank to rank, so nothing that must be alike at all of them depends on it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import List, Optional, Set, Tuple

RETRY = 10  # times as many steps as were waited for a buddy go by before it is tried again


@dataclass
class Rotation:
    """One rank's slots. `slots` says which step each holds; None: nothing whole."""

    slots: List[Optional[int]]
    newest: Optional[int] = None
    agreed: Optional[int] = None
    sent: Optional[int] = None
    skipped: int = 0
    waited: int = 0  # all-reduces since it was sent
    retry: int = 0  # all-reduces until something is sent again, after buddies were given up
    spare: int = 0  # slots beyond those that take turns
    pinned: Optional[int] = None  # slot that a checkpoint is written from

    @property
    def turns(self) -> int:
        """How many slots take turns."""
        return len(self.slots) - self.spare

    def kept(self) -> Set[int]:
        """Steps that must stay."""
        return {step for step in (self.newest, self.agreed, self.sent) if step is not None}

    def place(self) -> Optional[int]:
        """The slot for the next copy; None, counted, if what is in all of them must stay. All ranks skip together, also
        one that was replaced and has fewer slots filled."""
        if len(self.kept()) >= self.turns:
            self.skipped += 1
            return None
        return self._free()

    def _free(self) -> int:
        """A slot that may be overwritten: no more are kept than take turns, and with a spare one may be pinned."""
        kept = self.kept()
        free = [number for number, step in enumerate(self.slots)
                if number != self.pinned and (step is None or step not in kept)]
        return min(free, key=lambda number: (self.slots[number] is not None, self.slots[number] or 0, number))

    def pin(self, step: int, anew: bool = False) -> Tuple[int, bool]:
        """The slot that a checkpoint of this step is written from, and whether the step must first be written into it,
        which is for nothing else then: it is not copied(). No other may be pinned. `anew`: what a slot holds of this
        step is not trusted."""
        assert self.spare
        assert self.pinned is None
        there = step in self.slots and not anew
        self.pinned = self.slots.index(step) if there else self._free()
        return self.pinned, not there

    def begin(self, slot: int) -> None:
        """Its content is being overwritten."""
        self.slots[slot] = None

    def copied(self, slot: int, step: int) -> None:
        """It holds this step now."""
        self.slots[slot] = step
        self.newest = step

    @property
    def may_send(self) -> bool:
        """One at a time, and not right after buddies were given up."""
        return self.sent is None and self.retry == 0

    def send(self, step: int) -> None:
        """This step is on its way to the buddies."""
        assert self.may_send
        self.sent, self.waited = step, 0

    def behind(self, acknowledged: Optional[int]) -> bool:
        """For the all-reduce: is what was sent not yet whole at all of this rank's buddies?"""
        return self.sent is not None and acknowledged != self.sent

    def reduced(self, anybody_behind: bool, given_up: bool = False) -> None:
        """The all-reduce's answer, the same at every rank. `given_up`: some rank's buddy does not get there. Then own
        copies go on, which serve all faults but a pod's loss; if there are but two slots, they need the place of the
        last step that would have survived that, too. Later it is tried again, for a tenth of the time at most."""
        self.retry = max(0, self.retry - 1)
        if self.sent is None:
            return
        self.waited += 1
        if not anybody_behind:
            self.agreed, self.sent = self.sent, None
        elif given_up:
            self.sent, self.retry = None, RETRY * self.waited
            if self.turns < 3:
                self.agreed = None
