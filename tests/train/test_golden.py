"""The first steps of the golden curves; `make golden` trains them whole."""

from __future__ import annotations

from pathlib import Path

import pytest
from golden import curves

PREFIX = 20


@pytest.mark.parametrize("name", curves.CURVES)
def test_curve_begins_as_the_golden_one(tmp_path: Path, name: str) -> None:
    golden = curves.kept(name)
    assert len(golden) == curves.STEPS
    step, apart = curves.furthest(curves.losses(name, tmp_path, PREFIX), golden[:PREFIX])
    assert apart <= curves.CLOSE, f"step {step} is {apart:.1e} off; intended? python -m golden.curves --write"


def test_a_curve_that_moves_is_noticed() -> None:
    golden = curves.kept("llama2-tiny")
    moved = [*golden[:10], golden[10] * (1 + 2 * curves.CLOSE), *golden[11:]]
    step, apart = curves.furthest(moved, golden)
    assert step == 11
    assert apart > curves.CLOSE
