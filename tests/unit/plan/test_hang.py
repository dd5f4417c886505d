"""Steps that stop."""

from __future__ import annotations

from datetime import timedelta

import pytest
from trainyard.api.job import Progress
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


@pytest.mark.parametrize("setting", ["auto", 20])
@pytest.mark.parametrize(("seconds", "restarts"), [(1700, False), (1900, True)])
def test_an_evaluation_or_export_is_no_hang(setting: object, seconds: float, restarts: bool) -> None:
    case = training(failurePolicy={"hangSeconds": setting})
    case = case.formed(step=20, steps=100, seconds_per_step="1.0", activity="evaluate").settled().after(seconds)
    assert bool(case.plan().actions) == restarts


def test_steps_that_nobody_could_report_are_not_missed() -> None:
    """After an outage of the API server the clock starts when reports can be heard again."""
    case: Case = training().after(900)
    assert world_of(case.plan()).cause.kind == "Hang"
    case = case.but(heard_since=case.snap.now - timedelta(seconds=100))
    made = case.plan()
    assert made.actions == ()
    assert made.requeue_after == pytest.approx(200)
    assert "for 1101 s after step 20" in world_of(case.after(201).plan()).cause.culprit


def test_a_pod_whose_clock_is_behind_is_not_hung_from_the_start() -> None:
    case: Case = training().status_with(progress=Progress(step=3))
    case = case.report(0, "Formed", formed_at=(case.snap.now - timedelta(hours=2)).isoformat())
    assert case.after(60).plan().actions == ()
    assert world_of(case.after(1801).plan()).cause.kind == "Hang"


def test_a_program_that_reports_no_steps_is_left_alone() -> None:
    case: Case = training(failurePolicy={"hangSeconds": 5})
    case = case.status_with(progress=None).formed().after(100)
    assert case.plan().actions == ()


def test_hangs_end_a_job_that_may_not_restart() -> None:
    case = training(failurePolicy={"hangSeconds": 5, "maxRestarts": 0}).after(6)
    assert condition(case.plan().status, "Failed")[1] == "MaxRestartsExceeded"
