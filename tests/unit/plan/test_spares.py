"""Spares: warm pods beside the gang that take a lost pod's place by one write of the World."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from trainyard.api.job import Avoid
from trainyard.placement.books import Books
from trainyard.plan.types import CreatePod, DeletePod, Quota
from unit.plan.builders import Case, books, condition, job, of_type, placed, rank_failure, training, world_of


def with_spares(nodes: int = 2, spares: int = 1, **fields: Any) -> Case:
    """A gang that trains, its spares warm."""
    case = training(nodes, spareNodes=spares, **fields).settled().warm().settled()
    assert case.snap.status.nodes.spare == spares
    return case


def names(case: Case) -> list[str]:
    return [pod.name for pod in case.snap.pods]


def used(case: Case) -> Case:
    """With books that know the job's pods."""
    return case.but(books=case.snap.books.take(
        {f"ns/{pod.name}": pod.node or "" for pod in case.snap.pods}, {"cpu": 1000, "pods": 1}))


def test_spares_are_made_once_all_members_run() -> None:
    case = training(2, spareNodes=2)
    assert names(case) == ["j-0-1", "j-1-1", "j-2-1", "j-3-1"], "the gang's have started"
    assert {pod.node for pod in case.snap.pods} == {"n0", "n1", "n2", "n3"}
    assert case.snap.status.nodes.dump() == {"ready": 2, "spare": 0, "desired": 2}
    words = "0 of 2 spare pods are warm: 2 not started yet."
    assert case.condition("SparesReady") == ("False", "SparesStarting", words)
    case = case.pod(2, started=True).settled()
    words = "0 of 2 spare pods are warm: 1 importing, 1 not started yet."
    assert case.condition("SparesReady") == ("False", "SparesStarting", words)
    case = case.warm().settled()
    assert case.snap.status.nodes.spare == 2
    assert case.condition("SparesReady") == ("True", "SparesReady", "All 2 spare pods are warm.")
    assert case.world_spec.generation == 1
    assert case.condition("Running")[0] == "True"


def test_none_before_the_gang_runs() -> None:
    case = placed(2, spareNodes=1)
    assert names(case) == ["j-0-1", "j-1-1"]
    assert names(case.pod(0, started=True).settled()) == ["j-0-1", "j-1-1"]


def test_a_spare_is_warm_once_its_supervisor_says_so() -> None:
    case = training(2, spareNodes=1).settled().started().settled()
    assert case.snap.status.nodes.dump() == {"ready": 2, "spare": 0, "desired": 2}
    assert case.condition("SparesReady")[2] == "0 of 1 spare pods are warm: 1 importing."
    told = case.report(2, "Warm").settled()
    assert told.snap.status.nodes.spare == 1
    assert told.condition("SparesReady") == ("True", "SparesReady", "The spare pod is warm.")
    later = told.report(1, "RankFailed", failure=rank_failure()).applied()
    assert (later.world_spec.generation, later.plan().status.nodes.spare) == (2, 1), "what is imported stays"
    assert case.pod(2, uid="another").plan().status.nodes.spare == 0
    assert told.pod(2, uid="another").plan().status.nodes.spare == 0, "it was said by an earlier pod"


def test_a_spare_whose_supervisor_says_nothing_counts_after_a_minute() -> None:
    case = training(2, spareNodes=1).settled().started().settled()
    case = case.pod(2, started_at=case.snap.now).settled()
    assert case.plan().requeue_after == 60
    assert case.after(59).plan().status.nodes.spare == 0
    assert case.after(60).condition("SparesReady")[0] == "True"


def test_a_warm_spare_goes_before_one_that_only_runs() -> None:
    case = training(2, spareNodes=2).settled().started().settled()
    assert world_of(case.without_pod(1).plan()).places == {"1": 2}, "better than a new pod"
    warm = case.report(3, "Warm")
    assert world_of(warm.without_pod(1).plan()).places == {"1": 3}
    assert world_of(warm.without_pod(0).without_pod(1).plan()).places == {"0": 3, "1": 2}
    fewer = warm.spec_with(spareNodes=1).settled()
    assert names(fewer) == ["j-0-1", "j-1-1", "j-3-1"], "the warm one stays"


@pytest.mark.parametrize("lost", [0, 1])
def test_a_spare_takes_the_place_of_a_lost_pod_in_one_write(lost: int) -> None:
    case = with_spares().without_pod(lost)
    made = case.plan()
    world = world_of(made)
    assert (world.generation, world.phase, world.size) == (2, "Run", 2)
    assert world.places == {str(lost): 2}
    assert world.incarnation(lost) == 2, "the lost pod is fenced, should it come back"
    assert world.cause.kind == "PodLost"
    assert world.master.pod_uid == ("uid-j-0-1" if lost else "uid-j-1-1")
    assert [(create.index, create.incarnation) for create in of_type(made, CreatePod)] == [(lost, 2)], "a spare again"
    assert [event.reason for event in made.events] == ["Promoted", "Recovering"]
    case = case.applied()
    assert case.snap.status.world.size == 2
    # The gang forms at once, before any new pod is there.
    first = case.report(2 if lost == 0 else 0, "Formed", formed_at=case.snap.now.isoformat(), progress={
        "step": 21, "first_step_at": case.snap.now.isoformat()})
    assert first.condition("Running")[0] == "True"
    assert first.plan().status.nodes.ready == 2
    assert first.plan().status.recoveries[-1].milliseconds.total is not None


def test_a_spare_that_was_promoted_can_be_lost_like_any_member() -> None:
    case = with_spares(2, 1).without_pod(1).applied().warm().settled()
    assert case.world_spec.places == {"1": 2}
    assert case.snap.status.nodes.dump() == {"ready": 2, "spare": 1, "desired": 2}
    made = case.without_pod(2).plan()
    assert world_of(made).places == {}, "place 1 is again that of index 1, in its second incarnation"
    assert world_of(made).incarnations == {"1": 2, "2": 2}


def test_two_losses_and_one_spare() -> None:
    made = with_spares(3, 1).without_pod(0).without_pod(2).plan()
    world = world_of(made)
    assert world.places == {"0": 3}
    assert world.incarnations == {"0": 2, "2": 2, "3": 1}
    assert [create.index for create in of_type(made, CreatePod)] == [2], "the gang's own before a spare"


def test_a_failed_rank_needs_no_spare() -> None:
    made = with_spares().report(1, "RankFailed", failure=rank_failure()).plan()
    assert world_of(made).places == {}
    assert not of_type(made, CreatePod)


def test_a_pod_that_must_leave_is_followed_by_a_spare() -> None:
    case = with_spares().pod(1, disruption="EvictionByEvictionAPI").settled()
    assert case.world_spec.phase == "Drain"
    made = case.report(0, "Drained", drained_step=20).plan()
    assert (world_of(made).phase, world_of(made).places) == ("Run", {"1": 2})


@pytest.mark.parametrize("change", [
    {"started": False}, {"deleting": "soon"}, {"exit_code": 1}, {"disruption": "PreemptionByScheduler"},
    "node", "avoided",
])  # fmt: skip
def test_a_spare_that_is_not_ready_is_not_promoted(change: object) -> None:
    case = with_spares()
    if change == "node":
        case = case.node("n2", ready=False, since=case.snap.now)
    elif change == "avoided":
        case = case.status_with(avoid=[Avoid(node="n2", until="2027-01-01T00:00:00Z")])
    elif isinstance(change, dict):
        case = case.pod(2, **{key: case.snap.now if value == "soon" else value for key, value in change.items()})
    world = world_of(case.without_pod(1).plan())
    assert (world.generation, world.places, world.incarnation(1)) == (2, {}, 2)


def test_a_spare_that_is_ready_before_the_replacement_takes_the_place() -> None:
    case = with_spares().pod(2, started=False)
    case = case.without_pod(1).applied()
    assert (case.world_spec.generation, case.world_spec.places) == (2, {})
    assert "j-1-2" in names(case)
    case = case.pod(2, started=True).settled()
    assert (case.world_spec.generation, case.world_spec.places) == (3, {"1": 2})
    assert case.world_spec.cause.kind == "PodLost"
    assert case.snap.status.restarts.total == 1
    assert case.warm().settled().snap.status.nodes.spare == 1, "the replacement is a spare now"
    assert sorted(names(case)) == ["j-0-1", "j-1-2", "j-2-1"]


@pytest.mark.parametrize(("change", "wait"), [
    ({"exit_code": 1, "started": False, "phase": "Failed"}, 30),
    ({"deleting": "soon"}, 0), ("vanishes", 0), ("node", 40),
])  # fmt: skip
def test_a_lost_spare_is_made_again_without_touching_the_gang(change: object, wait: float) -> None:
    case = with_spares()
    if change == "vanishes":
        case = case.without_pod(2)
    elif change == "node":
        case = case.node("n2", ready=False, since=case.snap.now)
    elif isinstance(change, dict):
        case = case.pod(2, **{key: case.snap.now + timedelta(30) if value == "soon" else value
                              for key, value in change.items()})
    if wait:
        assert case.settled().world_spec.incarnation(2) == 1
    made = case.after(wait).plan()
    assert (world_of(made).generation, world_of(made).incarnation(2)) == (1, 2), "whatever comes back is fenced"
    assert [(one.index, one.incarnation) for one in of_type(made, CreatePod)] == [(2, 2)]
    assert [one.name for one in of_type(made, DeletePod)] == (["j-2-1"] if change == "node" else [])
    assert condition(made.status, "Running")[0] == "True"
    assert made.status.restarts.total == 0


def test_a_spare_that_does_not_start_is_placed_elsewhere() -> None:
    case = training(2, spareNodes=1)
    case = used(case).pod(2, node=None, unschedulable="0/4 nodes: volume").after(5).applied()
    assert case.snap.status.avoid[0].node == "n2"
    assert [(pod.name, pod.node) for pod in case.snap.pods if pod.index == 2] == [("j-2-2", "n3")]


def test_without_room_the_job_runs_and_says_so() -> None:
    case = training(2, spareNodes=2)
    full = books(3).take({"ns/j-0-1": "n0", "ns/j-1-1": "n1"}, {"cpu": 1000, "pods": 1})
    alone = case.but(pods=tuple(pod for pod in case.snap.pods if pod.index < 2), books=full)
    made = alone.plan()
    assert [(one.index, one.node) for one in of_type(made, CreatePod)] == [(2, "n2")], "as many as there is room for"
    verdict, why, message = condition(made.status, "SparesReady")
    assert (verdict, why) == ("False", "InsufficientResources")
    assert message.startswith("0 of 2 spare pods are warm; the job runs without the rest. ")
    assert condition(made.status, "Running")[0] == "True"
    assert condition(made.status, "Scheduled")[0] == "True"
    assert made.waiting is not None
    assert not made.waiting.claims, "spares keep nobody from a place"
    assert [event.reason for event in made.events] == ["SparesMissing"]


def test_a_quota_without_room_for_spares() -> None:
    case = training(2, spareNodes=1)
    case = case.without_pod(2).but(quotas=(Quota("team", {"pods": 0}),))
    made = case.plan()
    assert condition(made.status, "SparesReady")[1] == "QuotaExceeded"
    assert condition(made.status, "Running")[0] == "True"


def test_spares_obey_a_required_topology() -> None:
    case = job(2, spareNodes=1, topology={"level": "zone", "policy": "Required"})
    nodes = {name: replace(node, labels={"zone": "a" if name in ("n0", "n1") else "b"})
             for name, node in books(4).nodes.items()}
    case = case.but(books=Books(nodes)).settled().started()
    zones = {nodes[pod.node or ""].labels["zone"] for pod in case.snap.pods}
    assert len(zones) == 1
    made = used(case).plan()
    assert condition(made.status, "SparesReady")[:2] == ("False", "InsufficientResources")


def test_fewer_or_none_wanted_later() -> None:
    case = with_spares(2, 2)
    case = case.spec_with(spareNodes=1).settled()
    assert names(case) == ["j-0-1", "j-1-1", "j-2-1"]
    assert case.world_spec.incarnation(3) == 2
    case = case.spec_with(spareNodes=0).settled()
    assert names(case) == ["j-0-1", "j-1-1"]
    assert condition(case.snap.status, "SparesReady") == ("", "", "")
    assert case.world_spec.generation == 1


def test_a_suspended_job_loses_its_spares_and_starts_with_fresh_names() -> None:
    case = with_spares().without_pod(1).applied().started().formed(step=20).settled()
    assert case.world_spec.places == {"1": 2}
    case = case.spec_with(suspend=True).settled().report(0, "Drained", drained_step=20).settled()
    assert not case.snap.pods
    assert condition(case.snap.status, "SparesReady") == ("", "", "")
    case = case.spec_with(suspend=False).settled()
    assert case.world_spec.places == {}
    assert names(case) == ["j-0-2", "j-1-3"], "no incarnation that a pod had before"
    assert names(case.started().settled())[2:] == ["j-2-3"]


def test_a_job_that_has_ended_keeps_no_spare() -> None:
    case = with_spares().report(0, "Finished").settled()
    assert case.world_spec.phase == "Done"
    assert condition(case.snap.status, "SparesReady") == ("", "", "")
    made = case.after(31).plan()
    assert {one.name for one in of_type(made, DeletePod)} == {"j-0-1", "j-1-1", "j-2-1"}, "what has not left by itself"


def test_a_deleted_world_is_made_of_the_pods_that_run() -> None:
    case = with_spares().without_pod(1).applied().started().formed(step=20).settled().without_pod(1)
    made = case.but(world=None).plan()
    assert world_of(made).members == (0, 2)
    assert world_of(made).incarnations.get("1", 1) == 1


def test_a_gang_that_is_withdrawn_takes_its_spares_with_it() -> None:
    """A member of a first start that is lost while a spare is there, and then cannot start."""
    case = with_spares()
    case = case.but(reports=()).status_with(conditions=[
        one.model_copy(update={"status": "False"}) if one.type == "Running" else one
        for one in case.snap.status.conditions])
    case = case.pod(0, started=False, phase="Pending").pod(2, started=False, phase="Pending")
    made = case.after(200).plan()
    assert condition(made.status, "Scheduled")[1] == "Withdrawn"
    assert world_of(made).incarnations == {"0": 2, "1": 2, "2": 2}
    assert len(of_type(made, DeletePod)) == 3
