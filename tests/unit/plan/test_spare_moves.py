"""A spare beside a member goes to a node of its own once there is one, and the job is never without a warm spare."""

from __future__ import annotations

from typing import Any

import pytest
from trainyard.api.job import Avoid
from trainyard.plan.types import CreatePod, DeletePod, Quota
from unit.plan.builders import Case, books, condition, job, of_type, rank_failure, world_of

TOLD = {"step": 20, "steps": 1000, "durable_step": 20, "seconds_per_step": "1.0"}
WARM = "The spare pod is warm."


def crowded(spares: int = 1) -> Case:
    """A gang of two that trains on the only two nodes, its spares warm beside it."""
    case = job(2, spareNodes=spares, failurePolicy={"hangSeconds": 86400}).but(books=books(2, 1 + spares))
    case = case.settled().started().settled()
    return case.formed(**TOLD).settled().warm().settled()


def room(case: Case, nodes: int = 3) -> Case:
    """With so many nodes, on which the job's pods are."""
    places = {f"ns/{pod.name}": pod.node or pod.pinned or "" for pod in case.snap.pods}
    return case.but(books=books(nodes, 2).take(places, {"cpu": 1000, "pods": 1}))


def names(case: Case) -> list[str]:
    return [pod.name for pod in case.snap.pods]


def moving() -> Case:
    """The new spare was just made, on n2."""
    case = room(crowded()).settled().after(60)
    assert of_type(case.plan(), CreatePod) == [CreatePod(3, 1, "n2")]
    return room(case.applied())


def test_it_says_with_whom_a_spare_would_be_lost() -> None:
    case = room(crowded(), 2).settled()
    shares = "Spare pod j-2-1 shares node n0 with j-0-1 and would be lost with it"
    words = f"{WARM} {shares}; no node without members has room for it."
    assert case.condition("SparesReady") == ("True", "SparesReady", words)
    assert case.plan().requeue_after == 30
    assert not case.after(600).plan().actions
    assert case.snap.status.spare_move is None


def test_another_is_made_on_a_node_that_has_had_room_for_a_minute() -> None:
    case = room(crowded()).settled()
    assert case.snap.status.spare_move is not None
    assert case.snap.status.spare_move.node == "n2"
    assert case.condition("SparesReady")[2].endswith(
        "; it is replaced by one on node n2 if that still has room at 12:01:00.")
    assert case.plan().requeue_after == 60
    assert not case.after(59).plan().actions
    made = case.after(60).plan()
    assert of_type(made, CreatePod) == [CreatePod(3, 1, "n2")]
    assert (world_of(made).generation, world_of(made).incarnations) == (1, {"2": 1, "3": 1})
    words = ("Spare pod j-2-1 shares node n0 with j-0-1 and would be lost with it; "
             "pod j-3-1 on node n2 replaces it once that is warm.")
    assert [(event.type, event.reason, event.message) for event in made.events] == [("Normal", "SpareMoved", words)]
    assert condition(made.status, "SparesReady") == ("True", "SparesReady", f"{WARM} {words}")
    assert made.status.spare_move is None


def test_the_old_spare_stays_until_the_new_one_is_warm() -> None:
    case = moving().settled()
    assert names(case) == ["j-0-1", "j-1-1", "j-2-1", "j-3-1"]
    assert case.condition("SparesReady")[2].endswith("; pod j-3-1 on node n2 replaces it once that is warm.")
    case = case.pod(3, started=True, phase="Running", started_at=case.snap.now).settled()
    assert names(case)[2:] == ["j-2-1", "j-3-1"]
    assert case.snap.status.nodes.spare == 1
    made = case.report(3, "Warm").plan()
    assert [one.name for one in of_type(made, DeletePod)] == ["j-2-1"]
    assert world_of(made).incarnations == {"2": 2, "3": 1}, "fenced first"
    assert made.status.nodes.spare == 1
    assert condition(made.status, "SparesReady") == ("True", "SparesReady", WARM)
    after = room(case.report(3, "Warm").applied()).settled()
    assert names(after) == ["j-0-1", "j-1-1", "j-3-1"]
    assert not after.after(600).plan().actions
    assert after.snap.status.restarts.total == 0


def test_a_node_that_is_free_only_for_a_moment_is_none() -> None:
    case = room(crowded()).settled().after(40)
    case = room(case, 2).settled()
    assert case.snap.status.spare_move is None
    case = room(case.after(10), 3).settled()
    assert not case.after(59).plan().actions
    assert of_type(case.after(60).plan(), CreatePod) == [CreatePod(3, 1, "n2")]


def test_a_node_that_nobody_has_looked_at_for_long_is_looked_at_again() -> None:
    case = room(crowded()).settled().after(600).settled()
    assert "j-3-1" not in names(case)
    assert of_type(case.after(60).plan(), CreatePod) == [CreatePod(3, 1, "n2")]


def test_nothing_moves_while_the_gang_recovers() -> None:
    case = room(crowded()).settled().after(50).report(1, "RankFailed", failure=rank_failure()).settled()
    assert condition(case.snap.status, "Recovering")[0] == "True"
    assert case.snap.status.spare_move is None
    assert not of_type(case.after(70).plan(), CreatePod)
    case = case.report(0, "Formed", formed_at=case.snap.now.isoformat()).settled()
    assert not of_type(case.after(70).plan(), CreatePod), "formed, and no step yet"
    case = case.formed(**TOLD | {"step": 21}).settled()
    assert not of_type(case.after(59).plan(), CreatePod), "the minute begins anew"
    assert of_type(case.after(60).plan(), CreatePod) == [CreatePod(3, 1, "n2")]


def test_a_loss_meanwhile_is_answered_with_the_warm_spare() -> None:
    case = moving().without_pod(1)
    made = case.plan()
    assert (world_of(made).generation, world_of(made).places) == (2, {"1": 2})
    case = case.applied()
    assert names(case) == ["j-0-1", "j-2-1", "j-3-1"], "the other is the spare now: none has to be made"


def test_a_new_spare_that_does_not_start_is_given_up() -> None:
    case = moving()
    stuck = case.pod(3, node=None, unschedulable="0/3 nodes: volume").after(5).settled()
    assert names(stuck) == ["j-0-1", "j-1-1", "j-2-1"]
    assert stuck.snap.status.avoid[0].node == "n2"
    assert not room(stuck.after(100)).settled().after(60).plan().actions, "not there again for now"


def test_a_new_spare_that_is_of_no_use_is_given_up() -> None:
    case = moving().pod(3, started=True).status_with(avoid=[Avoid(node="n2", until="2027-01-01T00:00:00Z")])
    assert names(case.after(299).settled())[2:] == ["j-2-1", "j-3-1"]
    assert names(case.after(301).settled())[2:] == ["j-2-1"]


def test_a_quota_that_has_no_room_for_one_more() -> None:
    case = room(crowded()).but(quotas=(Quota("team", {"pods": 0}),)).settled()
    assert "; there is room elsewhere, but not for one pod more: Quota team has 0 pods left" in (
        case.condition("SparesReady")[2])
    assert not case.after(60).plan().actions


def test_an_operator_that_died_before_it_wrote_the_status_makes_no_second_one() -> None:
    case = room(crowded()).settled()
    before = case.snap.status
    case = room(case.after(60).applied()).but(status=before)
    assert not of_type(case.plan(), CreatePod)
    assert case.settled().snap.status.spare_move is None


def test_one_spare_a_minute() -> None:
    case = room(crowded(2), 4).settled().after(60).applied()
    assert names(case) == ["j-0-1", "j-1-1", "j-2-1", "j-3-1", "j-4-1"]
    case = room(case.warm(), 4).settled()
    assert names(case) == ["j-0-1", "j-1-1", "j-2-1", "j-4-1"]
    assert not of_type(case.after(59).plan(), CreatePod)
    case = room(room(case.after(60).applied(), 4).warm(), 4).settled()
    assert [pod.node for pod in case.snap.pods if pod.index > 1] == ["n2", "n3"]
    assert not case.after(600).plan().actions


def test_a_spare_on_a_node_of_its_own_is_promoted_first() -> None:
    case = room(room(crowded(2), 4).settled().after(60).applied().warm(), 4).settled()
    assert [(pod.name, pod.node) for pod in case.snap.pods[2:]] == [("j-2-1", "n0"), ("j-4-1", "n2")]
    assert world_of(case.without_pod(1).plan()).places == {"1": 4}


@pytest.mark.parametrize("change", [
    {"suspend": True}, {"placement": "Scheduler"}, {"spareNodes": 0}, {"numNodes": 3},
])  # fmt: skip
def test_jobs_whose_spares_stay_where_they_are(change: dict[str, Any]) -> None:
    case = room(crowded()).settled().spec_with(**change).settled()
    assert not any(one.index == 3 for one in of_type(case.after(60).plan(), CreatePod))
