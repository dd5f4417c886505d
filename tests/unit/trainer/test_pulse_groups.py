"""The names by which groups of two ranks are compared."""

from __future__ import annotations

from trainer.pulse import renamed


def test_groups_of_an_earlier_generation_are_left_out_and_the_others_named_as_in_a_new_process() -> None:
    before = [("0", 9, 9), ("1", 4, 4)]  # and one that was never used
    now = [*before, ("3", 5, 5), ("5", 2, 1), ("13", 1, 1)]
    assert renamed(before, set()) == before
    assert renamed(now, {"0", "1"}) == [("0", 5, 5), ("10", 1, 1), ("2", 2, 1)]
    assert renamed(before, {"0", "1"}) == []
