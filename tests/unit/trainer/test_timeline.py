"""Stretches of time."""

from __future__ import annotations

import pytest
from trainer.timeline import Spans, length, united, without


@pytest.mark.parametrize(("given", "expected"), [
    ([], []), ([(0, 1), (2, 3)], [(0, 1), (2, 3)]), ([(2, 3), (0, 1), (1, 2)], [(0, 3)]),
    ([(0, 9), (1, 2), (3, 4)], [(0, 9)])])
def test_united(given: Spans, expected: Spans) -> None:
    assert united(given) == expected


@pytest.mark.parametrize(("spans", "others", "left"), [
    ([(0, 10)], [], [(0, 10)]), ([(0, 10)], [(0, 10)], []), ([(0, 10)], [(2, 3), (5, 20)], [(0, 2), (3, 5)]),
    ([(0, 4), (6, 10)], [(3, 7)], [(0, 3), (7, 10)]), ([(5, 6)], [(0, 1), (9, 10)], [(5, 6)]),
    ([(0, 4), (6, 10)], [(0, 20)], [])])
def test_without(spans: Spans, others: Spans, left: Spans) -> None:
    assert without(spans, others) == left
    assert length(left) <= length(spans)
