"""Places for gangs and single pods; pods that cannot start; gangs that are withdrawn."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import pytest
from trainyard.api.job import Avoid
from trainyard.plan.bringup import UNSCHEDULABLE
from trainyard.plan.times import moment, seconds_between
from trainyard.plan.types import CreatePod, DeletePod, Plan, PutWorld, Quota, Waiting
from unit.plan.builders import DEMAND, NOW, Case, books, condition, job, of_type, placed, training, world_of

IMAGE = {"reason": "ImagePullBackOff", "message": 'Back-off pulling image "no/such"'}


def test_all_or_nothing() -> None:
    case = job(6).but(books=books(4)).applied()
    made = case.plan()
    assert made.actions == ()
    verdict, reason, message = condition(made.status, "Scheduled")
    assert (verdict, bool(reason), bool(message)) == ("False", True, True)
    assert made.waiting is not None
    assert (made.waiting.key, made.waiting.count) == ("ns/j", 6)
    assert made.status.state == "Pending"


def test_a_quota_one_pod_short_is_named() -> None:
    made = job().applied().but(quotas=(Quota("small", {"pods": 1}),)).plan()
    assert made.actions == ()
    assert "small" in condition(made.status, "Scheduled")[2]


def test_a_strangers_pod_is_not_touched() -> None:
    made = job().applied().but(strangers=("j-1-1",)).plan()
    assert made.actions == ()
    assert condition(made.status, "Scheduled")[:2] == ("False", "PodNameTaken")
    assert "j-1-1" in condition(made.status, "Scheduled")[2]


@pytest.mark.parametrize(("waited", "places"), [(10, True), (301, False)])
def test_small_jobs_pass_large_ones_until_those_starve(waited: float, places: bool) -> None:
    ahead = Waiting("ns/large", 0, NOW - timedelta(seconds=waited), 4, DEMAND)
    made = job().but(books=books(4)).applied().but(ahead=(ahead,)).plan()
    assert bool(of_type(made, CreatePod)) == places


@pytest.mark.parametrize(
    "obstacle", [{"quotas": (Quota("small", {"pods": 1}),)}, {"strangers": ("j-1-1",)}, {"books": books(1)}]
)
def test_only_who_waits_for_nodes_has_a_claim_on_them(obstacle: dict[str, object]) -> None:
    waiting = job().applied().but(**obstacle).plan().waiting
    assert waiting is not None
    assert waiting.claims == ("books" in obstacle)
    ahead = replace(waiting, key="other/j", since=NOW - timedelta(hours=1), count=4)
    made = job().but(books=books(4)).applied().but(ahead=(ahead,)).plan()
    assert bool(of_type(made, CreatePod)) != waiting.claims


def test_a_scheduler_of_its_own_gets_unpinned_pods() -> None:
    made = job(placement="Scheduler").applied().plan()
    assert [pod.node for pod in of_type(made, CreatePod)] == [None, None]
    case = placed(placement="Scheduler").pod(0, unschedulable="0/4 nodes are available")
    assert case.condition("Scheduled")[:2] == ("False", "Unschedulable")
    assert case.after(500).plan().actions == (), "how long a queue takes is the queue's business"


def test_an_unpinned_pod_that_its_node_refuses_is_not_made_again_at_once() -> None:
    """Nothing keeps its successor from the same node."""
    case = placed(placement="Scheduler").pod(0, node="n0", phase="Failed", reason="UnexpectedAdmissionError")
    assert case.after(4).plan().actions == ()
    assert [pod.incarnation for pod in of_type(case.after(5).plan(), CreatePod)] == [2]


def test_an_interrupted_creation_is_completed_under_the_same_names() -> None:
    made = placed(3).without_pod(1).plan()
    assert of_type(made, PutWorld) == []
    assert [(pod.index, pod.incarnation) for pod in of_type(made, CreatePod)] == [(1, 1)]


def started_but(index: int, **changes: object) -> Case:
    """A gang of two of which one pod does not start."""
    return placed().started().pod(index, started=False, ready=False, phase="Pending", **changes)


@pytest.mark.parametrize(
    ("changes", "patience"),
    [
        ({"phase": "Failed", "reason": "UnexpectedAdmissionError"}, 0),
        ({"node": None, "unschedulable": "0/4 nodes are available: volume"}, 5),
        ({"reason": "CreateContainerConfigError", "message": "no secret", "node": "n1"}, 20),
        (IMAGE | {"node": "n1"}, 20),
    ],
    ids=["admission", "unschedulable", "config", "image"],
)
def test_a_pod_that_cannot_start_is_placed_again_alone(changes: dict[str, object], patience: float) -> None:
    case = started_but(1)
    case = case.pod(1, **changes)
    if patience:
        assert of_type(case.after(patience - 1).plan(), CreatePod) == []
    made = case.after(patience).plan()
    world = world_of(made)
    assert (world.generation, world.incarnations, world.cause.total) == (1, {"1": 2}, 0)
    (created,) = of_type(made, CreatePod)
    assert created.node != "n1"
    assert [entry.node for entry in made.status.avoid] == ["n1"]


def test_a_pod_that_no_node_can_take_is_withdrawn_with_its_gang_however_many_nodes_there_are() -> None:
    """A volume that cannot be mounted anywhere: not one pod every 5 s, node by node, for ever."""
    case, made = placed().but(books=books(1000)), 0
    for _ in range(300):
        if len(case.snap.pods) == 2:
            case = case.pod(1, node=None, unschedulable="volume node affinity conflict")
        made += len(of_type(case.plan(), CreatePod))
        case = case.applied().after(1)
        if case.snap.status.withdrawals:
            break
    assert case.snap.status.withdrawals == 1
    assert made <= 8
    assert "volume node affinity conflict" in condition(case.snap.status, "Scheduled")[2]


def test_a_scheduler_that_comes_late_to_a_pod_is_given_the_same_time() -> None:
    """Thousands of pods at once: it says its first no long after the pod was made."""
    case = started_but(1).pod(1, node=None, unschedulable="node not found")
    late = case.pod(1, unschedulable_since=case.snap.now + timedelta(seconds=30))
    assert of_type(late.after(34).plan(), CreatePod) == []
    assert len(of_type(late.after(35).plan(), CreatePod)) == 1


@pytest.mark.parametrize(
    ("size", "refused", "hopeless"), [(2, 3, False), (2, 4, True), (200, 9, False), (200, 10, True)])
def test_how_many_nodes_the_scheduler_may_refuse_depends_on_the_size_of_the_gang(
        size: int, refused: int, hopeless: bool) -> None:
    case = placed(size).but(books=books(size + 20)).pod(1, node=None, unschedulable="volume node affinity conflict")
    avoid = [Avoid(node=f"x{number}", reason=f"{UNSCHEDULABLE}volume", until="2026-11-20T13:00:00Z")
             for number in range(refused)]
    case = case.status_with(avoid=avoid).after(6)
    assert case.applied().snap.status.withdrawals == int(hopeless)


def test_where_every_other_node_is_avoided_the_reason_says_until_when() -> None:
    two = replace(books(2), used={"n0": {"cpu": 1000, "pods": 1}})
    case = started_but(1).but(books=two).pod(1, phase="Failed", reason="UnexpectedAdmissionError")
    made = case.plan()
    assert of_type(made, CreatePod) == []
    assert "n1 until 2026-11-20T12:00:20Z" in condition(made.status, "Scheduled")[2]
    later = case.applied().after(21).plan()
    assert [pod.node for pod in of_type(later, CreatePod)] == ["n1"]


def test_an_image_nobody_can_pull_withdraws_the_gang_with_growing_backoff() -> None:
    case = placed().pod(0, node="n0", **IMAGE).pod(1, node="n1", **IMAGE)
    assert case.condition("Running")[1] == "ImagePullFailed"
    assert "no/such" in case.condition("Running")[2]
    assert case.after(119).plan().actions == ()
    made = case.after(121).plan()
    assert world_of(made).incarnations == {"0": 2, "1": 2}, "fenced before they are deleted"
    assert len(of_type(made, DeletePod)) == 2
    assert made.status.withdrawals == 1
    assert 10 <= pause_of(made, case.after(121)) <= 13
    assert condition(made.status, "Scheduled")[1] == "Withdrawn"
    assert "no/such" in condition(made.status, "Scheduled")[2]
    assert made.requeue_after == pytest.approx(pause_of(made, case.after(121)))
    gone = case.after(121).applied()
    assert gone.after(9).plan().actions == ()
    again = gone.after(14).applied()
    assert sorted(pod.name for pod in again.snap.pods) == ["j-0-2", "j-1-2"]
    again = again.pod(0, node="n0", **IMAGE).pod(1, node="n1", **IMAGE).after(121)
    assert again.plan().status.withdrawals == 2
    assert 20 <= pause_of(again.plan(), again) <= 26


def pause_of(made: Plan, case: Case) -> float:
    """Seconds from the withdrawal to the next try, as the status has it."""
    retry = moment(made.status.retry_at)
    assert retry is not None
    return seconds_between(case.snap.now, retry)


def test_gangs_that_were_withdrawn_together_do_not_come_back_together() -> None:
    case = placed().pod(0, node="n0", **IMAGE).pod(1, node="n1", **IMAGE).after(121)
    many = [case.but(uid=f"uid-{number}") for number in range(40)]
    pauses = [pause_of(one.plan(), one) for one in many]
    assert len({round(pause, 2) for pause in pauses}) > 30
    assert max(pauses) - min(pauses) > 2
    assert pauses == [pause_of(one.plan(), one) for one in many], "the same snapshot gives the same plan"
    later = [pause_of(one.plan(), one) for one in (each.status_with(withdrawals=1) for each in many)]
    assert any(abs(second - 2 * first) > 0.5 for first, second in zip(pauses, later, strict=True)), "drawn anew"
    longest = [pause_of(one.plan(), one) for one in (each.status_with(withdrawals=40) for each in many)]
    assert 300 <= min(longest) < max(longest) <= 390


def test_survivors_of_a_gang_that_trained_are_never_withdrawn() -> None:
    case = training().without_pod(1).applied().after(200)
    made = case.plan()
    assert [delete.name for delete in of_type(made, DeletePod)] == ["j-1-2"]
    assert world_of(made).incarnations == {"1": 3}


def test_the_world_of_a_start() -> None:
    case = job().applied().applied()
    world = case.world_spec
    assert (world.generation, world.phase, world.size, world.cause.kind) == (1, "Run", 2, "Start")
    assert world.master.pod == ""
    case = case.applied()
    assert case.world_spec.master.pod == "j-0-1"
    case = case.started().report(0, "Master", address="10.0.0.1:7000").applied()
    assert case.world_spec.master.address == "10.0.0.1:7000"
    assert case.world_spec.generation == 1


def test_the_lowest_index_that_runs_is_the_master() -> None:
    case = job(3).applied().applied().pod(2, started=True)
    assert world_of(case.plan()).master.pod == "j-2-1"


def test_a_deleted_pod_is_moved_after_a_drain() -> None:
    case = training().pod(1, deleting=NOW + timedelta(seconds=30))
    made = case.plan()
    world = world_of(made)
    assert (world.generation, world.phase, world.cause.kind, world.drain_seconds) == (1, "Drain", "Moved", 26)
    assert of_type(made, CreatePod) == []
    moved = case.applied().report(0, "Drained", drained_step=21).plan()
    world = world_of(moved)
    assert (world.generation, world.phase, world.incarnations, world.cause.total) == (2, "Run", {"1": 2}, 0)
    assert world.drain_seconds == 30
    assert [event.reason for event in moved.events if event.reason == "Moved"] == ["Moved"]


@pytest.mark.parametrize(
    ("case", "drains"),
    [
        (training().pod(1, disruption="PreemptionByScheduler"), True),
        (training().node("n1", ready=True, no_execute="maintenance"), True),
        (training().report(1, "Stopping"), True),
        (training().node("n1", ready=True, cordoned=True), False),
    ],
    ids=["preempted", "tainted", "told to stop", "cordoned"],
)
def test_moves(case: Case, drains: bool) -> None:
    made = case.plan()
    if not drains:
        assert made.actions == ()
        return
    world = world_of(made)
    assert world.phase == "Drain"
    assert world.cause.kind == "Moved"
    assert world.cause.total == 0


def test_a_pod_deleted_without_time_to_save_is_lost() -> None:
    """kubectl delete --force is no move: whether its pod is still seen for a moment or not, it is told alike."""
    made = training().pod(1, deleting=NOW + timedelta(seconds=3)).plan()
    world = world_of(made)
    assert (world.phase, world.cause.kind, world.cause.total, world.cause.counted) == ("Run", "PodLost", 1, 0)
    assert world.incarnations == {"1": 2}


def test_without_a_volume_nothing_can_be_saved() -> None:
    case = training().pod(1, disruption="EvictionByEvictionAPI")
    assert case.snap.rendering is not None
    made = case.but(rendering=replace(case.snap.rendering, checkpoint=False)).plan()
    assert (world_of(made).phase, world_of(made).generation) == ("Run", 2)
