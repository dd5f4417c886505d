"""What is given up when the pods' memory does not suffice for all copies, in which order, and that it is said."""

from __future__ import annotations

import pytest
from trainer.checkpoint.buddies import Buddies
from trainer.checkpoint.room import Room, Unavailable, choose

MIB = 1 << 20


def of(free: int, hosts: str = "ab", turns: tuple[int, ...] = (3, 2), pins: bool = True, asked: bool = False) -> Room:
    """Pods of one rank each with a slot of 1 MiB, one copy each."""
    pods = list(range(len(hosts)))
    wanted, near, none = Buddies(pods, hosts, 1), Buddies(pods, hosts, 1, apart=False), Buddies(pods, hosts, 0)
    return choose(wanted, near, None if asked else none, MIB, free * MIB, turns, pins)


@pytest.mark.parametrize(("free", "turns", "pins", "said"), [
    (6, 3, True, ()),
    (5, 2, True, ("only taken when they are also sent",)),
    (4, 2, False, ("only taken when they are also sent", "written by the ranks")),
    (3, 2, True, ("would need 6 MiB a pod, 3 MiB can be used", "no other pod holds any")),
    (2, 2, False, ("no other pod holds any", "written by the ranks")),
])  # fmt: skip
def test_less_and_less(free: int, turns: int, pins: bool, said: tuple[str, ...]) -> None:
    found = of(free)
    assert (found.turns, found.pins) == (turns, pins)
    assert bool(found.given_up) == bool(said)
    assert all(words in found.given_up for words in said), found.given_up
    assert found.alone == (free < 4)
    assert found.need <= free * MIB


def test_a_node_with_most_pods_keeps_less_if_that_is_what_it_takes() -> None:
    found = of(5, hosts="aaab", turns=(2,))
    assert found.buddies.most_kept(0, 1) == 1
    assert "may lie on the same node" in found.given_up


@pytest.mark.parametrize(("free", "slots", "alone"), [(6, 3, False), (5, 3, False), (4, 2, True), (2, 2, True)])
def test_own_copies_between_those_that_are_sent_have_a_slot_or_nothing_is_sent(free: int, slots: int, alone: bool
                                                                               ) -> None:
    """every: 1 and copyEvery: 5 in two slots: no copy at all would be taken once the buddies have an older one."""
    found = of(free, turns=(3,))
    assert (found.turns, found.alone) == (slots, alone)
    with pytest.raises(Unavailable):
        of(4, turns=(3,), asked=True)


def test_a_pod_without_others_gives_up_nothing() -> None:
    assert not of(4, hosts="a").alone
    assert of(4, hosts="a").given_up == ""


@pytest.mark.parametrize(("free", "asked"), [(1, False), (3, True)])
def test_what_was_asked_for_is_not_made_less_without_a_word(free: int, asked: bool) -> None:
    with pytest.raises(Unavailable, match=f"{free} MiB can be used; give the pods more memory"):
        of(free, asked=asked)
