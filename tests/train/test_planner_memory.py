"""Estimated memory against the allocator's events of real runs; `make bench-planner` does it for 20 configurations."""

from __future__ import annotations

import pytest
from planner.cases import LAYOUTS, LEAST, estimated, large_cases, memory_case
from planner.memory import compare


@pytest.mark.parametrize("number", [1, 2, 3])
def test_memory_is_estimated(number: int) -> None:
    layout, found, said = compare(number)
    assert said == pytest.approx(found, rel=0.25), layout


def test_what_the_table_is_made_of_is_large_and_of_every_layout() -> None:
    numbers = large_cases(20)
    assert all(estimated(memory_case(number))[1].memory.tensors >= LEAST for number in numbers)
    assert {number % len(LAYOUTS) for number in numbers} == set(range(len(LAYOUTS)))
