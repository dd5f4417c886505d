"""Pods and nodes that are gone: replaced, never counted; signals that convict nobody."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from trainyard.plan.lost_world import LEAP
from trainyard.plan.types import CreatePod, DeletePod, PutWorld, World
from unit.plan.builders import NOW, Case, condition, of_type, placed, rank_failure, training, world_of


def silent(case: Case, *nodes: str, for_seconds: float = 60.0) -> Case:
    """The nodes have been NotReady for this long."""
    for node in nodes:
        case = case.node(node, ready=False, since=case.snap.now - timedelta(seconds=for_seconds))
    return case


@pytest.mark.parametrize("index", [0, 1])
def test_a_lost_pod_takes_one_write_and_leaves_its_peers_alone(index: int) -> None:
    made = training().without_pod(index).plan()
    world = world_of(made)
    assert (world.generation, world.incarnations) == (2, {str(index): 2})
    assert (world.cause.kind, world.cause.step, world.cause.counted) == ("PodLost", 20, 0)
    assert isinstance(made.actions[0], PutWorld)
    assert [(pod.index, pod.incarnation) for pod in of_type(made, CreatePod)] == [(index, 2)]
    assert of_type(made, DeletePod) == []
    survivor = f"j-{1 - index}-1"
    assert world.master.pod == survivor, "the master is kept, or chosen among the survivors"


def test_a_second_loss_on_the_way_folds_in() -> None:
    case = training(3).without_pod(1).applied().after(2).without_pod(2)
    case = case.but(status=case.snap.status).applied()
    world = case.world_spec
    assert world.cause.kind == "PodLost"
    assert world.cause.total == 1
    assert len(case.snap.status.recoveries) == 1


def test_a_crash_between_the_fence_and_the_pod_is_completed_by_the_next_leader() -> None:
    case = training()
    broken = case.without_pod(1)
    after_fence = broken.but(world=broken.applied().snap.world)
    made = after_fence.plan()
    assert of_type(made, PutWorld) == []
    assert [(pod.index, pod.incarnation) for pod in of_type(made, CreatePod)] == [(1, 2)]
    assert made.status.restarts.total == 1


def test_a_container_that_ended_is_enough() -> None:
    """kubelet needs another second to call the pod Failed."""
    made = training().pod(1, exit_code=137, started=False).plan()
    assert world_of(made).incarnations == {"1": 2}
    assert [delete.name for delete in of_type(made, DeletePod)] == ["j-1-1"]


def test_incarnations_pass_every_known_pod() -> None:
    case = training()
    stale = next(pod for pod in case.snap.pods if pod.index == 1)
    case = case.but(pods=(*case.snap.pods, replace(stale, name="j-1-5", uid="x", incarnation=5)))
    case = case.but(pods=tuple(pod for pod in case.snap.pods if pod.name != "j-1-1"))
    assert world_of(case.plan()).incarnations == {"1": 6}


def test_an_unready_node_whose_job_goes_on_keeps_its_pod() -> None:
    assert silent(training(), "n1").plan().actions == ()


def test_an_unready_node_whose_job_stands_still_loses_its_pod() -> None:
    case = silent(training().after(50), "n1")
    world = world_of(case.plan())
    assert (world.cause.kind, world.incarnations, world.cause.counted) == ("NodeLost", {"1": 2}, 0)


def test_an_unready_node_is_convicted_by_a_complaint() -> None:
    case = silent(training(), "n1", for_seconds=1).report(0, "RankFailed", failure=rank_failure(1, False))
    assert world_of(case.plan()).cause.kind == "NodeLost"


def test_many_silent_nodes_are_waited_for() -> None:
    case = silent(training(4).after(50), "n0", "n1", "n2", for_seconds=50)
    waiting = case.plan()
    assert waiting.actions == ()
    assert waiting.requeue_after is not None
    assert waiting.requeue_after <= 10
    late = silent(training(4).after(130), "n0", "n1", "n2", for_seconds=130).plan()
    assert set(world_of(late).incarnations) == {"0", "1", "2"}


def test_a_deleted_pod_on_a_silent_node_is_replaced_without_waiting() -> None:
    case = silent(training(), "n1", for_seconds=6).pod(1, deleting=NOW + timedelta(seconds=24))
    assert world_of(case.plan()).cause.kind == "NodeLost"


def test_a_stale_pod_on_a_dead_node_is_removed_by_force_once_its_grace_is_over() -> None:
    stale = replace(training().snap.pods[1], node="n3", deleting=NOW + timedelta(seconds=30))
    case = silent(training().without_pod(1).settled().started().settled(), "n3")
    case = case.but(pods=(*case.snap.pods, stale)).formed(step=21)
    assert of_type(case.after(33).plan(), DeletePod) == []
    (delete,) = of_type(case.after(36).plan(), DeletePod)
    assert (delete.name, delete.grace_seconds) == ("j-1-1", 0)


def test_a_node_that_no_longer_exists_is_lost() -> None:
    case = training()
    nodes = {name: node for name, node in case.snap.books.nodes.items() if name != "n1"}
    states = {name: state for name, state in case.snap.nodes.items() if name != "n1"}
    case = case.but(books=type(case.snap.books)(nodes), nodes=states)
    assert world_of(case.plan()).cause.kind == "NodeLost"


def test_a_missing_world_is_made_again_past_every_known_generation() -> None:
    case = training().without_pod(1).settled().started().but(world=None)
    made = case.plan()
    (write,) = of_type(made, PutWorld)
    assert write.resource_version is None
    assert (write.spec.generation, write.spec.incarnations) == (2 + LEAP, {"1": 2})
    assert of_type(made, CreatePod) == of_type(made, DeletePod) == []
    assert made.status.restarts.total == 1


def test_members_that_never_join_are_replaced_if_they_had_the_time() -> None:
    case = training().without_pod(1).settled().started().settled()
    case = case.report(0, "Missing", missing=[1])
    assert case.after(10).plan().actions == ()
    world = world_of(case.after(61).plan())
    assert (world.generation, world.incarnations) == (3, {"1": 3})


def ended(case: Case, code: int = 137, **fields: Any) -> Case:
    """The container of pod 1 has ended with this code; nobody asked it to, and it reported nothing."""
    return case.pod(1, **{"phase": "Failed", "started": False, "exit_code": code, "reason": "Error"} | fields)


@pytest.mark.parametrize("code", [0, 137, 143])
@pytest.mark.parametrize("forms", [True, False])
def test_a_container_that_keeps_ending_by_itself_counts_from_the_second_time_on(code: int, forms: bool) -> None:
    """A liveness probe that can never succeed: not for ever."""
    case = ended(training(failurePolicy={"maxRestarts": 2}), code).applied()
    assert (case.world_spec.cause.total, case.world_spec.cause.counted) == (1, 0)
    for counted in (1, 2):
        case = case.started().formed().applied() if forms else case.started()
        case = ended(case.after(5), code).applied()
        cause = case.world_spec.cause
        assert (cause.kind, cause.total, cause.counted) == ("PodLost", 1 + counted, counted)
    case = case.started().formed().applied() if forms else case.started()
    verdict, reason, message = condition(ended(case.after(5), code).plan().status, "Failed")
    assert (verdict, reason) == ("True", "MaxRestartsExceeded")
    assert f"pod j-1-4 ended without a report (exit code {code}: Error), again without a new step" in message
    assert "livenessProbe" in message
    assert "after 2 of 2 restarts" in message


def test_containers_that_end_in_turn_count_too() -> None:
    case = ended(training()).applied().started().formed().applied()
    case = case.pod(0, phase="Failed", started=False, exit_code=137).applied()
    assert case.world_spec.cause.counted == 0, "the first time for pod 0"
    case = ended(case.started().formed().applied()).applied()
    assert case.world_spec.cause.counted == 1


def test_a_newly_finished_step_forgives_a_container_that_ended() -> None:
    case = ended(training(step=20)).applied().started().formed(step=21).applied()
    assert ended(case).applied().world_spec.cause.counted == 0


@pytest.mark.parametrize("fields", [
    {"exit_code": None, "reason": "NodeShutdown"}, {"disruption": "EvictionByEvictionAPI"},
    {"deleting": NOW + timedelta(seconds=30)},
], ids=str)
def test_a_pod_that_was_taken_away_never_counts(fields: dict[str, Any]) -> None:
    case = ended(training(), **fields).applied().started().formed().applied()
    assert ended(case, **fields).applied().world_spec.cause.counted == 0


def test_a_pod_on_a_silent_node_never_counts() -> None:
    case = ended(training()).applied().started().formed().applied()
    node = next(pod.node for pod in case.snap.pods if pod.index == 1)
    assert ended(silent(case, str(node))).applied().world_spec.cause.counted == 0


def test_a_rule_that_ignores_the_exit_code_is_obeyed() -> None:
    policy = {"rules": [{"onExitCodes": [137], "action": "Ignore"}]}
    case = ended(training(failurePolicy=policy)).applied().started().formed().applied()
    assert ended(case).applied().world_spec.cause.counted == 0


@pytest.mark.parametrize("code", [0, 137, 143])
def test_a_container_that_never_lives_until_the_gang_has_formed_ends_the_job_at_last(code: int) -> None:
    case = placed(failurePolicy={"maxRestarts": 1}).started().settled()
    for counted in (0, 1):
        case = ended(case.started(), code).applied()
        assert case.world_spec.cause.counted == counted
    assert condition(ended(case.started(), code).plan().status, "Failed")[1] == "MaxRestartsExceeded"


def test_a_container_that_is_told_to_stop_again_and_again_by_nobody_known_counts_too() -> None:
    """kubelet ends what fails its livenessProbe with SIGTERM, which the supervisor reports."""
    case = training(failurePolicy={"maxRestarts": 1}).report(1, "Stopping").applied()
    assert case.world_spec.phase == "Drain"
    case = case.report(0, "Drained").applied().started().formed().applied()
    assert (case.world_spec.cause.kind, case.world_spec.cause.counted) == ("Moved", 0)
    again = case.report(1, "Stopping").applied()
    assert (again.world_spec.cause.kind, again.world_spec.cause.counted) == ("PodLost", 1)
    verdict, reason, message = condition(again.started().formed().report(1, "Stopping").plan().status, "Failed")
    assert (verdict, reason) == ("True", "MaxRestartsExceeded")
    assert "pod j-1-3 was told to stop" in message
    deleted = case.pod(1, deleting=NOW + timedelta(seconds=30)).report(1, "Stopping").applied()
    assert (deleted.world_spec.cause.kind, deleted.world_spec.cause.counted) == ("Moved", 0)
    onward = case.formed(step=25).settled().report(1, "Stopping").applied()
    assert (onward.world_spec.phase, onward.world_spec.cause.counted) == ("Drain", 0)


def test_a_world_that_somebody_edited_is_made_again() -> None:
    case = training()
    assert case.snap.world is not None
    wrong = case.world_spec.model_copy(update={"phase": "Done", "size": 1, "generation": 40})
    edited = case.but(world=World(wrong, "99", edited=True))
    made = edited.plan()
    (put,) = of_type(made, PutWorld)
    assert put.resource_version == "99", "that very object is replaced"
    assert (put.spec.generation, put.spec.phase, put.spec.size) == (40 + LEAP, "Run", 2)
    assert any("WorldLost: the World object was edited by hand" in event.message for event in made.events)
    assert not of_type(made, DeletePod)
