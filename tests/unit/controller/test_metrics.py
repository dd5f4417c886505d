"""The part of a job's time that brought it further."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest
from trainyard.controller.metrics import training_ratio

NOW = datetime(2026, 1, 1, 1, 40, tzinfo=UTC)  # 6000 s after
SINCE = "2026-01-01T00:00:00.000000Z"
OPEN = {"at": "2026-01-01T01:35:00.000000Z", "milliseconds": {"decide": 1}}  # for 300 s
OVER = {"at": "2026-01-01T01:35:00.000000Z", "milliseconds": {"total": 1200}}


@pytest.mark.parametrize(("status", "ratio"), [
    ({}, None),
    ({"state": "Starting"}, None),
    ({"state": "Running", "lost": 0}, 1.0),
    ({"state": "Running", "lost": 600_000, "recoveries": [OVER]}, 0.9),
    ({"state": "Recovering", "lost": 600_000, "recoveries": [OVER, OPEN]}, 0.85),
    ({"state": "Suspended", "lost": 600_000}, None),
    ({"state": "Succeeded", "lost": 600_000, "completionTime": "2026-01-01T00:50:00Z"}, 0.8),
    ({"state": "Running", "lost": 9_000_000}, 0.0),
])  # fmt: skip
def test_training_ratio(status: dict[str, Any], ratio: float | None) -> None:
    lost = status.pop("lost", None)
    told = {**status} if lost is None else {**status, "trainingTime": {"since": SINCE, "lostMilliseconds": lost}}
    assert training_ratio(told, NOW) == (None if ratio is None else pytest.approx(ratio))
