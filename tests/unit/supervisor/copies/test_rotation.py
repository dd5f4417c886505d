"""Whatever moment pods are killed at, one step is whole at every rank or at its buddy."""

from __future__ import annotations

from dataclasses import dataclass, field

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


def test_a_checkpoint_that_came_to_nothing_is_written_from_another_slot() -> None:
    rotation = Rotation([6, 7, None], newest=7, agreed=6, sent=7, spare=1)
    assert rotation.pin(7) == (1, False)
    rotation.pinned = None
    assert rotation.pin(7, anew=True) == (2, True)
    assert rotation.slots == [6, 7, None], "the copies stay as they are"


def test_with_two_slots_an_own_copy_beside_the_buddies_leaves_no_place() -> None:
    """Why Rhythm.turns offers two only where both kinds are taken together."""
    rotation = Rotation([5, 6], newest=6, agreed=5)
    assert rotation.place() is None


@dataclass
class Member:
    """A rank: its slots and what its buddy (another pod) holds for it, in two places."""

    rotation: Rotation
    held: list[int | None]
    acknowledged: int | None = None
    on_the_way: tuple[int, int | None] | None = None  # step, and what the buddy must keep
    place: int = 0  # at the buddy, of what arrives
    stage: str = "compute"  # compute -> reduced -> writing -> compute
    slot: int | None = None
    step: int = 0
    arriving: bool = False  # the held slot's seal is broken
    saving: int | None = None  # step that a checkpoint is written of, from the pinned slot
    content: list[int | None] = field(default_factory=list)  # of the slots, whatever the rotation knows


class Gang(RuleBasedStateMachine):
    """Every rank moves on its own between the all-reduces; sends arrive and checkpoints are finished whenever they
    like; kills may come between any two moves. After each move, every set of lost pods that leaves each rank one copy
    is looked at."""

    @initialize(ranks=st.integers(2, 4), slots=st.integers(2, 3), every=st.integers(1, 3), ratio=st.integers(1, 3),
                spare=st.integers(0, 1), replicas=st.booleans())
    def start(self, ranks: int, slots: int, every: int, ratio: int, spare: int, replicas: bool) -> None:
        self.replicas = replicas  # 0 and 1 hold the same state, in two pods, and 2 and 3; nothing is sent
        ranks -= ranks % 2 if replicas else 0
        self.every, self.buddy_every, self.spare = every, every * ratio, spare
        self.members = [Member(Rotation([None] * (slots + spare), spare=spare), [None] * 2,
                               content=[None] * (slots + spare)) for _ in range(ranks)]
        self.save_due = self.anew = False
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
                step, keep = member.on_the_way
                if self.replicas:
                    member.acknowledged = step  # its sum is noted
                    member.on_the_way = None
                elif member.arriving:
                    member.held[member.place] = step
                    member.acknowledged = step
                    member.on_the_way = None
                else:
                    member.place = self._place(member.held, keep)
                    member.held[member.place] = None
                    member.arriving = True
            self.look()

    @staticmethod
    def _place(held: list[int | None], keep: int | None) -> int:
        """As Keeper does."""
        return min((0, 1), key=lambda place: (held[place] is not None and held[place] == keep,
                                              -1 if held[place] is None else held[place]))

    @rule(anew=st.booleans())
    def save(self, anew: bool) -> None:
        """After the next all-reduce a checkpoint begins, if none is being written; `anew` if the last was damaged."""
        self.save_due, self.anew = bool(self.spare), anew

    @rule(who=st.lists(st.integers(0, 7), min_size=1, max_size=8))
    def written(self, who: list[int]) -> None:
        """These ranks hear that the checkpoint is written, or that it never will be."""
        for number in who:
            member = self.members[number % len(self.members)]
            if member.stage == "compute":
                member.saving = member.rotation.pinned = None

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
        save = self.save_due and all(member.saving is None for member in self.members)
        if save:
            self.save_due = False
            for member in self.members:
                member.saving = member.step

    def _next(self, member: Member) -> None:
        rotation = member.rotation
        if member.stage == "reduced":
            member.stage = "compute"
            if member.step % self.every == 0:
                member.slot = rotation.place()
                if member.slot is not None:
                    rotation.begin(member.slot)
                    member.content[member.slot] = None
                    member.stage = "writing"
            if member.stage == "compute":
                self._pin(member)
        elif member.stage == "writing":
            assert member.slot is not None
            rotation.copied(member.slot, member.step)
            member.content[member.slot] = member.step
            member.stage = "compute"
            if member.step % self.buddy_every == 0 and rotation.may_send:
                rotation.send(member.step)
                member.on_the_way = member.step, rotation.agreed
                member.arriving = False
            self._pin(member)

    def _pin(self, member: Member) -> None:
        """The copy of the step is taken, or left out, when its checkpoint begins."""
        if member.saving == member.step and member.rotation.pinned is None:
            slot, empty = member.rotation.pin(member.step, self.anew)
            if empty:
                member.rotation.begin(slot)
                member.content[slot] = member.step

    def look(self) -> None:
        """After each single move."""
        self.nothing_is_lost_with_the_ranks()
        self.any_pod_may_go()
        self.time_only_goes_forward()
        self.checkpoints_are_of_their_step()

    def checkpoints_are_of_their_step(self) -> None:
        """Whatever training does meanwhile, and if all ranks die."""
        for member in self.members:
            if member.rotation.pinned is not None:
                assert member.content[member.rotation.pinned] == member.saving

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
                if self.replicas:
                    have |= set() if number ^ 1 == lost else self._own(self.members[number ^ 1])
                elif (number + 1) % len(self.members) != lost:
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
