"""How often copies are taken, from what they cost and the slots that there are."""

from __future__ import annotations

import pytest
from trainer.checkpoint.rhythm import Rhythm

Steps = int | None


@pytest.mark.parametrize(("own", "buddy", "together", "expected"), [
    (None, None, False, (4, 12)),  # 10, made a multiple of 4
    (None, None, True, (12, 12)),  # two slots: own copies become as rare
    (1, None, False, (1, 10)),
    (1, None, True, (1, 1)),  # what was set by hand stays
    (None, 10, False, (5, 10)),  # and own copies divide it
    (None, 2, False, (2, 2)),
    (None, 10, True, (10, 10)),
    (1, 5, False, (1, 5)),
])  # fmt: skip
def test_each_kind_gets_half_of_three_percent(own: Steps, buddy: Steps, together: bool, expected: tuple[int, int]
                                              ) -> None:
    rhythm = Rhythm(own, buddy)
    if together:
        rhythm.share()
    rhythm.decide(cost=0.050, step=1.0, sending=0.149)
    assert (rhythm.own, rhythm.buddy) == expected
    assert rhythm.decided


def test_what_costs_more_is_taken_less_often() -> None:
    """There is no end to that, so there is nothing to be turned off for the time that it takes."""
    chosen = []
    for cost in (0.001, 0.1, 60.0):
        rhythm = Rhythm(None, None)
        rhythm.decide(cost, step=0.1, sending=2 * cost)
        chosen.append((rhythm.own, rhythm.buddy))
        assert rhythm.own is not None
        assert cost / rhythm.own <= 0.0015 * (1 + 1e-9)
    assert chosen[0] == (1, 2)
    assert chosen[1][0] == 67
    assert chosen[2][0] == pytest.approx(40_000, abs=1)


@pytest.mark.parametrize(("own", "buddy", "turns"), [
    (None, None, (3, 2)), (1, None, (3, 2)), (None, 5, (3, 2)), (5, 5, (2,)), (1, 5, (3,)),
])  # fmt: skip
def test_two_slots_do_where_every_copy_is_sent(own: Steps, buddy: Steps, turns: tuple[int, ...]) -> None:
    assert Rhythm(own, buddy).turns == turns


def test_where_nothing_is_sent_both_were_set_by_hand_in_vain() -> None:
    rhythm = Rhythm(1, 5)
    rhythm.share()
    assert (rhythm.own, rhythm.buddy) == (1, 1)
