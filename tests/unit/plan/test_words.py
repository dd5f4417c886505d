"""What is said about a job: conditions, progress, recoveries, events."""

from __future__ import annotations

import re
from datetime import timedelta
from pathlib import Path

import pytest
import trainyard.placement
import trainyard.plan
from trainyard.api.job import TrainingJobStatus
from trainyard.api.protocol import RankProgress
from trainyard.plan.conditions import find
from trainyard.plan.times import fine_stamp
from unit.plan.builders import condition, job, placed, rank_failure, training

ROOT = Path(__file__).parents[3]


def test_the_state_of_a_whole_life() -> None:
    case = job()
    seen = [case.plan().status.state]
    for _ in range(3):
        case = case.applied()
        seen.append(case.snap.status.state)
    assert seen == ["Pending", "Pending", "Starting", "Starting"]
    running = training()
    assert running.snap.status.state == "Running"
    assert running.without_pod(1).plan().status.state == "Recovering"


def test_transition_times_move_only_with_the_verdict() -> None:
    case = placed().after(10).started()
    before, after = find(case.snap.status, "Running"), find(case.plan().status, "Running")
    assert before is not None
    assert after is not None
    assert before.reason != after.reason
    assert before.last_transition_time == after.last_transition_time
    later = find(case.after(10).formed().plan().status, "Running")
    assert later is not None
    assert later.last_transition_time == "2026-11-20T12:00:20Z"
    assert later.observed_generation == 1


def test_progress_is_written_every_five_seconds() -> None:
    case = training(step=20)
    told = {"steps": 100, "seconds_per_step": "2.0", "loss": "2.5"}
    early = case.after(2).formed(step=21, **told).plan()
    assert early.status == case.snap.status
    assert early.requeue_after is not None
    assert early.requeue_after <= 3
    late = case.after(5).formed(step=24, **told).plan().status.progress
    assert late is not None
    assert (late.step, late.percent, late.loss, late.eta) == (24, 24, "2.5", "2026-11-20T12:02:37Z")


def test_a_speed_that_changes_without_a_step_is_no_news() -> None:
    case = training().after(100).formed(step=20, steps=100, tokens_per_second=100).settled()
    for second in range(1, 20):
        case = case.after(1).formed(step=20, steps=100, tokens_per_second=100 + second)
        assert case.plan().status == case.snap.status


@pytest.mark.parametrize("end", ["Succeeded", "Failed", "Suspended"])
def test_who_does_not_train_has_no_time_of_its_end(end: str) -> None:
    case = training()
    assert case.snap.status.progress is not None
    assert case.snap.status.progress.eta is not None
    if end == "Suspended":
        case = case.spec_with(suspend=True).but(pods=())
    elif end == "Succeeded":
        case = case.report(0, "Finished")
    else:
        case = case.report(0, "RankFailed", failure=rank_failure(78))
    status = case.plan().status
    assert status.state == end
    assert status.progress is not None
    assert (status.progress.step, status.progress.eta) == (20, None)


@pytest.mark.parametrize("pace", ["-1e308", "-1", "0", "nan", "inf", "soon"])
def test_a_pace_that_makes_no_sense_is_not_believed(pace: str) -> None:
    told = {"step": 30, "steps": 2**50, "seconds_per_step": pace}
    progress = training(step=20).after(10).formed(**told).plan().status.progress
    assert progress is not None
    assert (progress.step, progress.eta) == (30, None)


def test_the_eta_is_observed_where_it_is_not_reported() -> None:
    case = training(step=20).after(10).formed(step=30, steps=100)
    progress = case.plan().status.progress
    assert progress is not None
    assert progress.eta == "2026-11-20T12:01:20Z"


def test_a_recovery_is_told_from_its_cause_to_its_first_step() -> None:
    case = training(step=27).after(3).without_pod(1)
    made = case.plan()
    (recovery,) = made.status.recoveries
    assert (recovery.cause, recovery.generation, recovery.lost_steps) == ("PodLost", 2, 7)
    assert [event.reason for event in made.events] == ["Recovering"]
    case = case.settled().started().after(4).formed().settled()
    assert condition(case.snap.status, "Recovering")[0] == "True"
    resumed = case.after(1).formed(step=20, durable_step=20, first_step_at=None).plan()
    assert condition(resumed.status, "Recovering")[0] == "True", "where it resumes from is no finished step"
    done = case.after(2).formed(step=21).plan()
    (recovery,) = done.status.recoveries
    assert recovery.milliseconds.total == 6000
    assert "Recovered" in [event.reason for event in done.events]
    assert ("recovery", "PodLost", 6.0) in done.metrics
    assert condition(done.status, "Recovering")[:2] == ("False", "Recovered")


def test_copies_in_memory_that_are_gone_are_not_shown_and_the_checkpoint_stays() -> None:
    case = training(step=20).after(6).formed(step=27, durable_step=20, memory_step=26)
    made = case.plan().status.checkpoint
    assert made is not None
    assert (made.durable_step, made.memory_step) == (20, 26)
    later = case.settled().after(6).formed(step=28, durable_step=None, memory_step=None).plan().status.checkpoint
    assert later is not None
    assert (later.durable_step, later.memory_step) == (20, None)


def test_status_says_what_copies_in_memory_outlive() -> None:
    def shown(status: TrainingJobStatus) -> str | None:
        return status.checkpoint.protection if status.checkpoint else None

    case = training(step=20).after(6).formed(step=27, memory_step=26, protection="Node")
    assert shown(case.plan().status) == "Node"
    lost = case.settled().after(6).without_pod(1).settled()
    assert shown(lost.snap.status) == "Unprotected", "nobody knows yet"
    assert lost.snap.status.checkpoint is not None
    assert lost.snap.status.checkpoint.memory_step == 26, "but what it goes on from is known"
    back = lost.started().after(6).formed(step=27, memory_step=None, protection="Unprotected")
    assert shown(back.plan().status) == "Unprotected"
    one_node = back.settled().after(6).formed(step=29, memory_step=28, protection="Pod")
    assert shown(one_node.plan().status) == "Pod"


def test_steps_that_copies_in_memory_saved_are_not_lost() -> None:
    case = training(step=20).after(6).formed(step=27, durable_step=20, memory_step=26).settled().after(3)
    (recovery,) = case.without_pod(1).plan().status.recoveries
    assert recovery.lost_steps == 1


@pytest.mark.parametrize(("told", "lost"), [
    ({"resumed_step": 27, "finished_step": 27}, 0),
    ({"resumed_step": 26, "finished_step": 28}, 2),  # rank 0 had last told of 27
    ({"resumed_step": 30, "finished_step": 29}, 0),  # copies of a step that one rank had not finished
    ({"resumed_step": 20}, 7),  # nobody is left who knows
    ({"resumed_step": 22}, 5),
    ({}, 7),  # a program of somebody's own
])
def test_what_is_lost_is_known_once_the_ranks_have_said_what_they_go_on_from(told: dict[str, int], lost: int) -> None:
    case = training(step=27).after(3).without_pod(1).settled().started().after(4).formed().settled()
    assert case.snap.status.recoveries[-1].lost_steps == 7
    done = case.after(2).formed(step=31, **told).plan()
    assert done.status.recoveries[-1].milliseconds.total is not None
    assert done.status.recoveries[-1].lost_steps == lost


def test_copies_that_were_left_out_are_shown() -> None:
    case = training(step=20).after(6).formed(step=27, memory_step=20, memory_skipped=3)
    shown = case.plan().status.checkpoint
    assert shown is not None
    assert shown.memory_skipped == 3
    suspended = case.settled().spec_with(suspend=True).but(pods=()).plan().status.checkpoint
    assert suspended is not None
    assert suspended.memory_skipped is None


def test_the_phases_of_a_recovery_are_what_pods_and_operator_saw() -> None:
    case = training(step=27).after(2)
    seen = case.snap.now

    def at(milliseconds: int) -> str:
        return fine_stamp(seen + timedelta(milliseconds=milliseconds))

    case = case.report(1, "RankFailed", failure=rank_failure(-9, at=at(-60))).settled()
    told = {"step": 21, "connected_at": at(180), "restored_at": at(400), "first_step_at": at(900)}
    case = case.after(1).report(0, "Formed", formed_at=at(100), progress=RankProgress.model_validate(told))
    done = case.plan()
    made = done.status.recoveries[-1].milliseconds
    assert (made.detect, made.decide, made.replace) == (60, 0, 100)
    assert (made.rendezvous, made.restore, made.first_step, made.total) == (80, 220, 500, 960)
    assert ("recovery.restore", "RankFailed", 0.22) in done.metrics


def test_a_leader_that_comes_late_tells_how_long_it_took_all_the_same() -> None:
    """The one before wrote the World and died before the status; training went on meanwhile."""
    case = training(step=27).after(2)
    before = case.snap.status
    seen = case.snap.now
    case = case.report(1, "RankFailed", failure=rank_failure(-9, at=fine_stamp(seen))).settled().but(status=before)
    told = {"step": 21, "first_step_at": fine_stamp(seen + timedelta(milliseconds=900))}
    case = case.after(10).report(0, "Formed", formed_at=fine_stamp(seen + timedelta(milliseconds=100)),
                                 progress=RankProgress.model_validate(told))
    (recovery,) = case.plan().status.recoveries
    assert recovery.milliseconds.decide == 0
    assert recovery.milliseconds.total == 900


def test_events_come_once() -> None:
    case = training().report(1, "RankFailed", failure=rank_failure(1))
    assert [event.reason for event in case.plan().events] == ["Recovering"]
    assert case.applied().plan().events == ()


def test_warnings_are_announced_once() -> None:
    warning = {"reason": "CheckpointFailed", "message": "disk full", "at": "2026-11-20T12:00:00Z"}
    case = training().report(1, "Formed", warnings=[warning])
    (event,) = case.plan().events
    assert (event.type, event.reason) == ("Warning", "CheckpointFailed")
    assert "disk full" in event.message
    after = case.applied()
    (told,) = after.status.warnings
    assert (told.pod, told.reason, told.message) == ("j-1-1", "CheckpointFailed", "disk full")
    assert after.plan().events == ()


def test_every_reason_is_explained() -> None:
    """docs/conditions.md has a row for every reason that this package writes."""
    source = "\n".join(path.read_text() for path in Path(trainyard.plan.__file__).parent.glob("*.py"))
    written = set(re.findall(r'(?:judge|end)\(\s*(?:turn, )?"\w+",\s*(?:"(?:True|False|Unknown)",\s*)?"(\w+)"', source))
    written |= set(re.findall(r'return "([A-Z]\w+)", f?"', source))
    written |= set(re.findall(r'(?:Obstacle|_quiet)\((?:turn, )?"(\w+)"', source))
    written |= set(re.findall(r'Fault\(\s*"(\w+)"', source)) | set(
        re.findall(r'why = "(\w+)" if .* else "(\w+)"', source)[0]
    )
    written -= {"True", "False", "Unknown"}
    assert len(written) > 25, written
    placing = "\n".join(path.read_text() for path in Path(trainyard.placement.__file__).parent.glob("*.py"))
    written |= set(re.findall(r'Obstacle\("(\w+)"', placing)) | set(
        re.findall(r'^ +return "([A-Z]\w+)"$', placing, re.M)
    )
    table = set(re.findall(r"^\| `(\w+)`", (ROOT / "docs/conditions.md").read_text(), re.MULTILINE))
    assert written <= table, f"not in docs/conditions.md: {sorted(written - table)}"
