"""Steps that stop."""

from __future__ import annotations

import pytest
from unit.plan.builders import Case, condition, training, world_of


@pytest.mark.parametrize(
    ("setting", "pace", "seconds", "restarts"),
    [
        ("auto", "1.0", 299, False),
        ("auto", "1.0", 301, True),
        ("auto", "60", 500, False),
        ("auto", "60", 601, True),
        (20, "1.0", 19, False),
        (20, "1.0", 21, True),
    ],
)
def test_hang(setting: object, pace: str, seconds: float, restarts: bool) -> None:
    case = training(failurePolicy={"hangSeconds": setting})
    case = case.formed(step=20, steps=100, seconds_per_step=pace).settled().after(seconds)
    made = case.plan()
    if not restarts:
        assert made.actions == ()
        assert made.requeue_after is not None
        return
    world = world_of(made)
    assert (world.cause.kind, world.cause.counted, world.incarnations) == ("Hang", 1, {})
    assert "after step 20" in world.cause.culprit


def test_a_program_that_reports_no_steps_is_left_alone() -> None:
    case: Case = training(failurePolicy={"hangSeconds": 5})
    case = case.status_with(progress=None).formed().after(100)
    assert case.plan().actions == ()


def test_hangs_end_a_job_that_may_not_restart() -> None:
    case = training(failurePolicy={"hangSeconds": 5, "maxRestarts": 0}).after(6)
    assert condition(case.plan().status, "Failed")[1] == "MaxRestartsExceeded"
