"""Estimated memory against the allocator's events of real runs; `make bench-planner` does it for 20 configurations."""

from __future__ import annotations

import pytest
from planner.memory import compare


@pytest.mark.parametrize("number", [1, 2, 3])
def test_memory_is_estimated(number: int) -> None:
    layout, found, said = compare(number)
    assert said == pytest.approx(found, rel=0.25), layout
