"""Who is called a straggler."""

from __future__ import annotations

import pytest
import torch
from trainer.parallel.layout import Layout
from trainer.stragglers import Slow, Stragglers, measurable

ALIKE = [0, 0, 0, 0]


def test_slow_for_a_minute_and_told_once() -> None:
    judge = Stragglers()
    found = [judge.compare([0.1, 0.3, 0.1, 0.14], ALIKE, 10.0) for _ in range(8)]
    assert found == [[], [], [], [], [], [Slow(1, 0.3, 0.1)], [], []]
    assert judge.compare([0.1, 0.1, 0.1, 0.1], ALIKE, 10.0) == []
    again = [judge.compare([0.1, 0.3, 0.1, 0.1], ALIKE, 30.0) for _ in range(2)]
    assert again == [[], [Slow(1, 0.3, 0.1)]], "again, after it had recovered"


def test_of_two_ranks_the_slower_is_named() -> None:
    assert [slow.rank for slow in Stragglers().compare([0.3, 0.1], [0, 0], 60.0)] == [0]


def test_a_slow_minute_with_a_pause_is_none() -> None:
    judge = Stragglers()
    for own in ([0.1, 0.3], [0.1, 0.1], [0.1, 0.3]):
        assert judge.compare(own, [0, 0], 30.0) == []


def test_stages_are_judged_by_themselves() -> None:
    """The last stage has the head: more work for each of its ranks."""
    assert Stragglers().compare([0.1, 0.1, 0.3, 0.3], [0, 0, 1, 1], 60.0) == []
    assert Stragglers().compare([0.1, 0.1, 0.3, 0.5], [0, 0, 1, 1], 60.0) == [Slow(3, 0.5, 0.3)]


@pytest.mark.parametrize(("layout", "expected"), [
    (Layout(shard=4), True), (Layout(data=2, pipeline=2), True), (Layout(pipeline=2), False), (Layout(), False),
])
def test_where_it_can_be_measured(layout: Layout, expected: bool) -> None:
    assert measurable(layout, torch.device("cpu")) == expected
    assert not measurable(layout, torch.device("cuda", 0))
