"""Whatever moment pods are killed at, one step is whole at every rank or at its buddy."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule
from supervisor.copies.rotation import Rotation


def test_two_slots_take_turns() -> None:
    rotation = Rotation([None, None])
    places = []
    for step in range(1, 5):
        slot = rotation.place()
        assert slot is not None
        places.append(slot)
        rotation.begin(slot)
        rotation.copied(slot, step)
        rotation.send(step)
        assert rotation.behind(None)
        assert not rotation.behind(step)
        rotation.reduced(anybody_behind=False)
    assert places == [0, 1, 0, 1]
    assert (rotation.agreed, rotation.skipped) == (4, 0)


def test_a_slow_buddy_makes_copies_be_left_out_and_counted() -> None:
    rotation = Rotation([1, 2], newest=2, agreed=1, sent=2)
    rotation.reduced(anybody_behind=True)
    assert rotation.place() is None
    assert rotation.skipped == 1
    rotation.reduced(anybody_behind=False)
    assert rotation.place() == 0


def test_a_replaced_rank_leaves_out_what_the_others_leave_out() -> None:
    others, replaced = Rotation([7, None], agreed=7), Rotation([None, None], agreed=7)
    for rotation in (others, replaced):
        slot = rotation.place()
        assert slot is not None
        rotation.begin(slot)
        rotation.copied(slot, 8)
        rotation.send(8)
    assert others.place() is None
    assert replaced.place() is None


@pytest.mark.parametrize(("slots", "agreed"), [(2, None), (3, 1)])
def test_own_copies_go_on_without_a_buddy_that_is_gone(slots: int, agreed: int | None) -> None:
    rotation = Rotation([1, *[None] * (slots - 1)], newest=1, agreed=1)
    copied = []
    for step in range(2, 30):
        slot = rotation.place()
        if slot is not None:
            rotation.begin(slot)
            rotation.copied(slot, step)
            copied.append(step)
            if rotation.may_send:
                rotation.send(step)
        rotation.reduced(anybody_behind=rotation.sent is not None, given_up=rotation.waited == 2)
    assert rotation.agreed == agreed
    assert len(copied) > 20
    assert rotation.newest == 29


@dataclass
class Member:
    """A rank: its slots and what its buddy (another pod) holds for it, slot by slot."""

    rotation: Rotation
    held: list[int | None]
    acknowledged: int | None = None
    on_the_way: tuple[int, int] | None = None  # slot, step
    stage: str = "compute"  # compute -> reduced -> writing -> compute
    slot: int | None = None
    step: int = 0
    arriving: bool = False  # the held slot's seal is broken


class Gang(RuleBasedStateMachine):
    """Every rank moves on its own between the all-reduces; sends arrive whenever they like; kills may come between any
    two moves. After each move, every set of lost pods that leaves each rank one copy is looked at."""

    @initialize(ranks=st.integers(2, 4), slots=st.integers(2, 3), every=st.integers(1, 3), ratio=st.integers(1, 3))
    def start(self, ranks: int, slots: int, every: int, ratio: int) -> None:
        self.every, self.buddy_every = every, every * ratio
        self.members = [Member(Rotation([None] * slots), [None] * slots) for _ in range(ranks)]
        self.common = -1
        self.given_up = False

    @rule(who=st.lists(st.integers(0, 7), min_size=1, max_size=8))
    def go_on(self, who: list[int]) -> None:
        """These ranks, one after the other, do what comes next for them."""
        for number in who:
            self._next(self.members[number % len(self.members)])
            self.look()
        if all(member.stage == "compute" for member in self.members):
            self._reduce()

    @rule(who=st.lists(st.integers(0, 7), min_size=1, max_size=8))
    def arrive(self, who: list[int]) -> None:
        """What these sent is on its way, or there."""
        for number in who:
            member = self.members[number % len(self.members)]
            if member.on_the_way is not None:
                slot, step = member.on_the_way
                if member.arriving:
                    member.held[slot] = step
                    member.acknowledged = step
                    member.on_the_way = None
                else:
                    member.held[slot] = None
                    member.arriving = True
            self.look()

    @rule()
    def give_up(self) -> None:
        """Somebody's buddy does not get there: what is on the way breaks off."""
        self.given_up = any(member.on_the_way is not None for member in self.members)

    def _reduce(self) -> None:
        behind = any(member.rotation.behind(member.acknowledged) for member in self.members)
        given_up, self.given_up = self.given_up and behind, False
        for member in self.members:
            member.rotation.reduced(behind, given_up)
            if given_up:
                member.on_the_way = None
            member.step += 1
            member.stage = "reduced"

    def _next(self, member: Member) -> None:
        rotation = member.rotation
        if member.stage == "reduced":
            member.stage = "compute"
            if member.step % self.every == 0:
                member.slot = rotation.place()
                if member.slot is not None:
                    rotation.begin(member.slot)
                    member.stage = "writing"
        elif member.stage == "writing":
            assert member.slot is not None
            rotation.copied(member.slot, member.step)
            member.stage = "compute"
            if member.step % self.buddy_every == 0 and rotation.may_send:
                rotation.send(member.step)
                member.on_the_way = member.slot, member.step
                member.arriving = False

    def look(self) -> None:
        """After each single move."""
        self.nothing_is_lost_with_the_ranks()
        self.any_pod_may_go()
        self.time_only_goes_forward()

    def _own(self, member: Member) -> set[int]:
        return {step for step in member.rotation.slots if step is not None}

    def _held(self, member: Member) -> set[int]:
        return {step for step in member.held if step is not None}

    def nothing_is_lost_with_the_ranks(self) -> None:
        """All processes die, all pods stay: own copies."""
        common = set.intersection(*(self._own(member) for member in self.members))
        assert max(common, default=-1) >= self._expected_own()

    def _expected_own(self) -> int:
        """The newest step that every rank has copied."""
        newest = [member.rotation.newest for member in self.members]
        return min(-1 if step is None else step for step in newest)

    def any_pod_may_go(self) -> None:
        """One pod dies with its slots and with what it held for the rank before it."""
        agreed = [member.rotation.agreed for member in self.members if member.rotation.agreed is not None]
        if not agreed:
            return
        for lost in range(len(self.members)):
            there = []
            for number, member in enumerate(self.members):
                have = set() if number == lost else self._own(member)
                if (number + 1) % len(self.members) != lost:
                    have |= self._held(member)
                there.append(have)
            common = max(set.intersection(*there), default=-1)
            assert common >= min(agreed)

    def time_only_goes_forward(self) -> None:
        common = set.intersection(*(self._own(member) | self._held(member) for member in self.members))
        newest = max(common, default=-1)
        assert newest >= self.common
        self.common = newest


TestGang = pytest.mark.timeout(120)(Gang.TestCase)
TestGang.settings = settings(max_examples=40, stateful_step_count=50, deadline=None)
