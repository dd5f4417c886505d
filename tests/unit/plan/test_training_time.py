"""What recoveries cost a job."""

from __future__ import annotations

from datetime import timedelta

from trainyard.api.job import TrainingTime
from trainyard.plan.times import moment
from unit.plan.builders import Case, job, rank_failure, training


def time_of(case: Case) -> TrainingTime:
    found: TrainingTime | None = case.plan().status.training_time
    assert found is not None
    return found


def test_recoveries_and_steps_that_are_computed_again() -> None:
    case = training(step=25)  # saved at 20
    began = case.snap.now
    assert moment(time_of(case).since) == began
    failed = case.after(100).report(1, "RankFailed", failure=rank_failure()).applied()
    assert time_of(failed).lost_milliseconds == 0, "it is still under way"
    back = failed.after(2).formed(step=21, steps=100, durable_step=20, seconds_per_step="1.0").settled()
    assert time_of(back).lost_milliseconds == 2000 + 5 * 1000
    assert moment(time_of(back).since) == began
    assert time_of(back.after(50)) == time_of(back), "counted once"


def test_it_does_not_begin_before_the_first_step() -> None:
    assert job().settled().started().settled().plan().status.training_time is None


def test_it_begins_again_with_a_job_that_comes_back() -> None:
    case = training()
    cost = TrainingTime(since=(case.snap.now - timedelta(hours=5)).isoformat(), lost_milliseconds=7)
    again = time_of(case.status_with(training_time=cost))
    assert (moment(again.since), again.lost_milliseconds) == (case.snap.now, 0)
