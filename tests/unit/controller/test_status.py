"""A status as another version of the operator may have left it."""

from __future__ import annotations

from typing import Any

import pytest
from trainyard.api.job import TrainingJobStatus
from trainyard.controller.status import read_status

SINCE = "2026-01-01T00:00:00Z"


def of(kind: str, verdict: str = "True") -> dict[str, Any]:
    """A condition as stored."""
    return {"type": kind, "status": verdict, "reason": "R", "message": "m", "lastTransitionTime": SINCE}


def test_a_status_of_this_version_is_read_whole() -> None:
    raw = {"state": "Running", "conditions": [of("Running")], "restarts": {"total": 2, "counted": 1}}
    status, ignored = read_status(raw)
    assert status == TrainingJobStatus.model_validate(raw)
    assert ignored == ()


def test_what_a_newer_version_added_is_left_aside_and_the_rest_is_kept() -> None:
    raw = {
        "state": "Hibernating",
        "conditions": [of("Accepted"), of("Rebalanced"), of("Running", "Perhaps"), of("Failed")],
        "world": {"generation": 7, "phase": "Pause"}, "restarts": {"total": 2, "counted": 1, "soft": 4},
        "progress": {"step": 5, "percent": 250}, "withdrawals": "many", "novelty": {"a": 1},
        "avoid": [{"node": "n1", "until": SINCE}, {"node": {"name": "n2"}, "until": SINCE}],
    }  # fmt: skip
    status, ignored = read_status(raw)
    assert status.state is None
    assert [condition.type for condition in status.conditions] == ["Accepted", "Failed"]
    assert (status.world.generation, status.world.phase) == (7, None)
    assert (status.restarts.total, status.restarts.counted) == (2, 1)
    assert status.progress is not None
    assert (status.progress.step, status.progress.percent, status.withdrawals) == (5, None, 0)
    assert [entry.node for entry in status.avoid] == ["n1"]
    assert ignored == ("avoid.1", "conditions.Rebalanced", "conditions.Running", "progress.percent", "state",
                       "withdrawals", "world.phase")
    assert raw["state"] == "Hibernating", "what the cache holds is not changed"


def test_many_unknown_conditions_do_not_take_the_known_ones_with_them() -> None:
    status, _ = read_status({"conditions": [*(of(f"New{number}") for number in range(16)), of("Succeeded")]})
    assert [condition.type for condition in status.conditions] == ["Succeeded"]


@pytest.mark.parametrize("raw", [
    {"conditions": "none"}, {"conditions": [None, 3]}, {"world": []}, {"recoveries": [{"at": SINCE}] * 11},
    {"progress": {"step": {}}}, {"conditions": [{"type": "Running"}]},
], ids=str)
def test_nonsense_is_no_error(raw: dict[str, Any]) -> None:
    status, ignored = read_status(raw)
    assert status == TrainingJobStatus.model_validate({key: {} for key in raw if key == "progress"})
    assert ignored
