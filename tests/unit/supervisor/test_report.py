"""Times in a Report."""

from __future__ import annotations

import math

import pytest
from supervisor.report import timestamp


@pytest.mark.parametrize(("wall", "told"), [
    (0.5, "1970-01-01T00:00:00.500000Z"), (1e300, "9999-12-31T23:59:59.000000Z"), (-5.0, "1970-01-01T00:00:00.000000Z"),
    (math.nan, "1970-01-01T00:00:00.000000Z"), (-math.inf, "1970-01-01T00:00:00.000000Z"),
])
def test_a_time_that_cannot_be_is_the_nearest_that_can(wall: float, told: str) -> None:
    assert timestamp(wall) == told
