"""The planner's memory against what the trainer's own step allocates for LLaMA2 7B to 70B, on fake tensors: see
planner.account. `python -m planner.account` does it for whole models; here each has two layers, and four."""

from __future__ import annotations

import pytest
from planner.account import CASES, Compared, compare


@pytest.fixture(scope="module")
def steps() -> list[Compared]:
    """Every case of planner.account."""
    return compare(CASES)


@pytest.mark.parametrize("number", range(len(CASES)))
def test_what_a_step_holds(steps: list[Compared], number: int) -> None:
    each = steps[number]
    said = (f"{each.case.size}, {each.layout}: a layer keeps {each.kept / 1e6:.1f} MB, planned "
            f"{each.kept_planned / 1e6:.1f}; peak {each.peak / 1e9:.2f} GB, planned {each.peak_planned / 1e9:.2f}")
    print(said)
    assert each.kept_planned == pytest.approx(each.kept, rel=0.02), said
    assert each.peak_planned == pytest.approx(each.peak, rel=0.15), said
