"""Admission, suspension, deadline and the end."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import pytest
from trainyard.plan.types import Admit, CreatePod, DeleteJob, DeletePod, PutWorld, Refusal
from unit.plan.builders import (
    NOW,
    RENDERING,
    Case,
    condition,
    job,
    of_type,
    placed,
    rank_failure,
    spec,
    training,
    world_of,
)


def test_another_controllers_job_is_not_even_spoken_of() -> None:
    case = job(managedBy="example.com/other")
    made = case.plan()
    assert (made.status, made.actions, made.events) == (case.snap.status, (), ())


def test_a_job_on_its_way_out_is_left_alone() -> None:
    assert training().but(deleting=True, pods=()).plan().actions == ()


def test_admission_comes_first_and_once() -> None:
    made = job().plan()
    assert made.actions == (Admit(),)
    case = job().applied()
    made = case.plan()
    assert [type(action) for action in made.actions] == [PutWorld, CreatePod, CreatePod]
    assert condition(made.status, "Accepted")[:2] == ("True", "Admitted")
    assert (made.status.rendered, made.status.admitted_hash) == ("j-0123456789", "hash")


def test_nothing_is_made_before_the_status_says_what_was_admitted() -> None:
    """From then on the API server lets nobody change it: pods of two manifests are never in one gang."""
    made = job().but(rendering=RENDERING).plan()
    assert (made.actions, made.status.rendered, made.status.admitted_hash) == ((), RENDERING.name, "hash")
    resumed = suspended().spec_with(suspend=False).but(rendering=RENDERING).plan()
    assert (resumed.actions, resumed.status.rendered) == ((), RENDERING.name)


@pytest.mark.parametrize(("permanent", "again"), [(True, False), (False, True)])
def test_a_refusal_is_quoted_and_tried_again_only_if_that_can_help(permanent: bool, again: bool) -> None:
    case = job().but(refusal=Refusal("TemplateRefused", "cpu: must be less than limit", permanent, 1, NOW))
    made = case.plan()
    assert condition(made.status, "Accepted") == ("False", "TemplateRefused", "cpu: must be less than limit")
    assert made.actions == ()
    assert bool(of_type(case.after(31).plan(), Admit)) == again
    assert case.but(generation=2).plan().actions == (Admit(),), "another manifest is another chance"


def test_an_invalid_spec_is_quoted_and_what_runs_goes_on() -> None:
    case = job().but(spec=None, spec_error="spec.numNodes: must be at least 1")
    assert condition(case.plan().status, "Accepted") == ("False", "InvalidSpec", "spec.numNodes: must be at least 1")
    assert case.plan().actions == ()
    lost = training(3).but(spec=None, spec_error="no").without_pod(1)
    assert world_of(lost.plan()).incarnations == {"1": 2}


def test_a_limit_that_cannot_be_read_ends_no_job() -> None:
    case = training(failurePolicy={"maxRestarts": 100})
    for number in range(12):
        told = {"step": 21 + number, "steps": 100}
        case = case.report(0, "RankFailed", failure=rank_failure(1)).settled().formed(**told).settled()
    assert case.snap.status.restarts.counted == 12
    made = case.but(spec=None, spec_error="no").report(0, "RankFailed", failure=rank_failure(1)).plan()
    assert condition(made.status, "Failed")[0] == ""
    assert world_of(made).cause.counted == 13


def test_an_invalid_spec_is_never_admitted_anew() -> None:
    case = training().but(spec=None, spec_error="no", rendering=None).without_pod(1)
    made = case.plan()
    assert of_type(made, Admit) == of_type(made, CreatePod) == []
    assert world_of(made).incarnations == {"1": 2}


def test_a_change_while_running_is_named_and_not_followed() -> None:
    case = training().but(admitted_hash="another", generation=2, spec=spec(3))
    made = case.plan()
    assert condition(made.status, "Accepted")[:2] == ("False", "SpecChanged")
    assert made.actions == ()
    assert case.settled().but(admitted_hash="hash").condition("Accepted")[0] == "True"


def suspended(nodes: int = 2) -> Case:
    """Suspended in mid-run."""
    case = training(nodes).spec_with(suspend=True).applied().report(0, "Drained", drained_step=21)
    return case.applied().applied()


def test_the_step_that_suspend_saved_is_in_the_status() -> None:
    """The Reports go with their pods; what they said last is written before, however recent the last write was."""
    case = training().spec_with(suspend=True).applied().after(1)
    case = case.report(0, "Drained", drained_step=29, progress={"step": 29, "steps": 100})
    made = case.plan()
    assert len(of_type(made, DeletePod)) == 2
    assert made.status.progress is not None
    assert made.status.progress.step == 29


def test_suspend_drains_then_deletes_then_says_so() -> None:
    case = training().spec_with(suspend=True)
    made = case.plan()
    assert world_of(made).phase == "Drain"
    assert of_type(made, DeletePod) == []
    assert made.status.state == "Suspending"
    case = case.applied()
    assert case.after(20).plan().actions == ()
    assert len(of_type(case.after(41).plan(), DeletePod)) == 2, "ranks that do not save are not waited for forever"
    assert len(of_type(case.report(0, "Drained").plan(), DeletePod)) == 2
    assert suspended().snap.status.state == "Suspended"


def test_copies_in_memory_go_with_the_pods_of_a_suspended_job() -> None:
    case = training().after(6).formed(step=27, durable_step=20, memory_step=26).settled()
    known = case.snap.status.checkpoint
    assert known is not None
    assert known.memory_step == 26
    gone = case.spec_with(suspend=True).applied().report(0, "Drained", drained_step=21).applied().applied().applied()
    assert not gone.snap.pods
    left = gone.snap.status.checkpoint
    assert left is not None
    assert left.durable_step is not None
    assert left.memory_step is None


def test_suspend_before_training_deletes_at_once() -> None:
    made = placed().spec_with(suspend=True).plan()
    assert world_of(made).phase == "Drain"
    assert len(of_type(made, DeletePod)) == 2


def test_resume_is_the_next_generation_with_pods_of_new_names() -> None:
    case = suspended().but(rendering=None, admitted_hash="another", spec=spec(3), generation=3, now=NOW + timedelta(60))
    made = case.plan()
    assert made.actions == (Admit(),), "rendered anew"
    assert made.status.start_time == "2027-01-19T12:00:00Z"
    case = case.applied().applied()
    world = case.world_spec
    assert (world.generation, world.phase, world.size, world.cause.kind) == (2, "Run", 3, "Resume")
    assert sorted(pod.name for pod in case.snap.pods) == ["j-0-2", "j-1-2", "j-2-1"]
    assert case.snap.status.restarts.total == 0


def test_a_job_suspended_while_it_had_no_pods_resumes_as_what_it_is_now() -> None:
    stuck = {"reason": "ImagePullBackOff", "message": "no such image"}
    withdrawn = placed().pod(0, node="n0", **stuck).pod(1, node="n1", **stuck).after(121).applied()
    assert withdrawn.snap.pods == ()
    case = withdrawn.spec_with(suspend=True).applied()
    assert (case.snap.status.state, case.world_spec.phase) == ("Suspended", "Drain")
    assert case.plan().actions == ()
    case = case.but(rendering=None, admitted_hash="another", spec=spec(3), generation=3).applied().settled()
    assert (case.world_spec.size, case.world_spec.cause.kind, len(case.snap.pods)) == (3, "Resume", 3)


def test_a_resumed_job_waits_from_its_resumption() -> None:
    case = suspended().but(now=NOW + timedelta(hours=1)).spec_with(suspend=False)
    made = case.but(books=type(case.snap.books)({})).applied().plan()
    assert made.waiting is not None
    assert made.waiting.since == NOW + timedelta(hours=1)


def test_a_suspension_that_began_is_completed_before_the_job_is_resumed() -> None:
    case = training().spec_with(suspend=True).applied().spec_with(suspend=False)
    assert case.plan().actions == ()
    case = case.report(0, "Drained").applied().applied()
    assert case.snap.status.state == "Suspended"


@pytest.mark.parametrize(("seconds", "reason"), [(7, ""), (8, "DeadlineExceeded")])
def test_deadline(seconds: float, reason: str) -> None:
    made = training(activeDeadlineSeconds=8).after(seconds).plan()
    assert condition(made.status, "Failed")[1] == reason
    if not reason:
        assert made.requeue_after == pytest.approx(1.0)


def test_the_deadline_does_not_run_while_suspended() -> None:
    case = suspended().spec_with(activeDeadlineSeconds=8).after(1000)
    assert case.plan().status.state == "Suspended"


def test_success_is_said_by_the_master_of_this_generation() -> None:
    done = {"progress": {"step": 100, "steps": 100}}
    assert training().report(1, "Finished").plan().status.state == "Running"
    made = training().report(0, "Finished", **done).plan()
    assert made.status.state == "Succeeded"
    assert world_of(made).phase == "Done"
    assert made.status.progress is not None
    assert made.status.progress.percent == 100
    assert "Succeeded" in [event.reason for event in made.events]


def test_the_last_step_is_the_masters_word() -> None:
    """Rank 0's pod, if another, told of an earlier step so far, or tells only now."""
    case = training().report(1, "Formed", progress={"step": 98, "steps": 100, "loss": "3"})
    made = case.report(0, "Finished", progress={"step": 100, "steps": 100, "loss": "2"})
    for late in (made, made.report(1, "Formed", progress={"step": 99, "steps": 100, "loss": "4"})):
        told = late.plan().status.progress
        assert told is not None
        assert (told.step, told.loss) == (100, "2")


@pytest.mark.parametrize(("policy", "at_once", "later"), [("All", 2, 2), ("Running", 0, 2), ("None", 0, 0)])
def test_clean_pod_policy(policy: str, at_once: int, later: int) -> None:
    case = training(cleanPodPolicy=policy).report(0, "Finished")
    assert len(of_type(case.plan(), DeletePod)) == at_once
    ended = case.but(status=case.plan().status)
    assert len(of_type(ended.after(31).plan(), DeletePod)) == later


def test_pods_that_nobody_can_tell_of_the_end_are_removed_whatever_the_policy() -> None:
    """A spare that could not be reached when the job ended, and a World that somebody has deleted since."""
    case = training(cleanPodPolicy="None").report(0, "Finished")
    ended = case.but(status=case.plan().status, world=None)
    assert of_type(ended.plan(), DeletePod) == []
    assert len(of_type(ended.after(31).plan(), DeletePod)) == 2


def test_finished_pods_keep_their_logs() -> None:
    case = training().report(0, "Finished").applied()
    case = case.but(pods=tuple(replace(pod, phase="Succeeded", exit_code=0, started=False) for pod in case.snap.pods))
    assert case.after(100).plan().actions == ()


def test_terminal_means_terminal() -> None:
    case = training(failurePolicy={"maxRestarts": 0})
    case = case.report(1, "RankFailed", failure=rank_failure(1)).applied()
    for later in (case.without_pod(0), case.spec_with(suspend=True), case.but(pods=(), world=None)):
        made = later.after(5).plan()
        assert (made.status.state, made.actions) == ("Failed", ())


def test_an_end_that_reached_the_world_but_not_the_status_is_not_forgotten() -> None:
    case = training().report(1, "RankFailed", failure=rank_failure(78))
    case = case.but(world=case.applied().snap.world, reports=())
    assert condition(case.plan().status, "Failed")[:2] == ("True", "BadConfiguration")
    assert "ValueError: no" in condition(case.plan().status, "Failed")[2]


def test_ttl() -> None:
    case = training(ttlSecondsAfterFinished=60).report(0, "Finished").applied()
    waiting = case.after(59).plan()
    assert of_type(waiting, DeleteJob) == []
    assert waiting.requeue_after == pytest.approx(1.0)
    assert len(of_type(case.after(60).plan(), DeleteJob)) == 1
