"""Estimated memory against the allocator's events of real runs; `make bench-planner` does it for 20 configurations."""

from __future__ import annotations

import pytest
from planner.cases import LAYOUTS, LEAST, estimated, large_cases, memory_case, product
from planner.memory import compare


@pytest.mark.parametrize(("number", "off"), [(1, 0.25), (2, 0.25), (3, 0.25), (136, 0.15)])
def test_memory_is_estimated(number: int, off: float) -> None:
    """136: tensor parallel with a large vocabulary, of whose gradients a rank makes its own part only."""
    layout, found, said = compare(memory_case(number))
    assert said == pytest.approx(found, rel=off), layout


def test_a_rank_that_shares_with_nobody_keeps_what_it_casts() -> None:
    """Every product its weight, from the forward pass to the backward pass."""
    layout, found, said = compare(*product(0))
    assert said == pytest.approx(found, rel=0.1), layout


def test_what_the_table_is_made_of_is_large_and_of_every_layout() -> None:
    numbers = large_cases(20)
    assert all(estimated(memory_case(number))[1].memory.tensors >= LEAST for number in numbers)
    assert {number % len(LAYOUTS) for number in numbers} == set(range(len(LAYOUTS)))
